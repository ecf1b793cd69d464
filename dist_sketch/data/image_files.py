"""The one door for pictures: any supported format becomes 8-bit gray or RGB; everything else is refused by name."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from dist_sketch.core.errors import UserError
from dist_sketch.data.regular_files import open_regular

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # not EPS: Pillow starts Ghostscript to read it
MAX_PIXELS = 100_000_000  # 10,000 x 10,000; an A3 page at 600 dpi has 70 million
MAX_BYTES = 4 * MAX_PIXELS  # so many pixels with alpha, uncompressed
PNG_START = b"\x89PNG\r\n\x1a\n"
STARTS = {b"BM": "BMP", b"GIF8": "GIF", b"\xff\xd8\xff": "JPEG", PNG_START: "PNG", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# Tags of TIFF and EXIF
BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES, PLANES, SIGN = 258, 259, 262, 274, 277, 284, 339
TURNS = {  # EXIF's orientation -> what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(UserError):
    """A file that is not a usable image: `path` and `why`."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = path, why

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


class UnclearImage(Exception):
    """An undamaged picture of which nobody can say for sure how it looks in 8 bits."""


def read_image(path: Path) -> Image.Image:
    """Reads an image file as mode "L" if it is gray (also if a color file has R = G = B everywhere), else "RGB".

    It is turned as its EXIF orientation says, alpha is composited on white, 16-bit and float levels are scaled to 8
    bit, and an animation gives its first frame. Only the pixels decide whether a file is good: color profiles, texts
    and other remarks are ignored. `.info["mode"]` is the mode of the file.

    Raises:
        BadImage: missing, not a regular file, empty, no image, damaged, of an unclear kind, or larger than MAX_PIXELS
            (decided before decoding) or MAX_BYTES.
    """
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise BadImage(path, f"is too large: more than {MAX_BYTES:,} bytes; make it smaller")
            data = file.read()
    except OSError as e:
        raise BadImage(path, f"cannot be read ({e.strerror})") from e
    if not data:
        raise BadImage(path, "the file is empty (0 bytes)")
    # Pillow raises almost any exception for a malformed file, and warns of files that are refused or repaired here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _decode(data)
        except Image.DecompressionBombError as e:
            why = f"is too large (a decompression bomb?): more than {MAX_PIXELS:,} pixels; make it smaller"
            raise BadImage(path, why) from e
        except UnclearImage as e:
            raise BadImage(path, f"cannot be used: {e}; save it as an 8-bit PNG") from e
        except UnidentifiedImageError as e:
            kind = next((kind for start, kind in STARTS.items() if data.startswith(start)), None)
            why = f"is not a readable image ({', '.join(FORMATS)} are read)"
            if kind is not None:
                why = f"has a damaged header, or one of a kind that is not read ({kind}); save it as an 8-bit PNG"
            raise BadImage(path, why) from e
        except MemoryError as e:
            raise BadImage(path, "needs more memory than there is; make it smaller, or use fewer --workers") from e
        except Exception as e:
            raise BadImage(path, f"is damaged or truncated ({e})") from e


def read_packed(data: bytes, size: int) -> Image.Image:
    """Reads a picture of a sample: a PNG of `size` x `size`, mode "L" or "RGB".

    Raises:
        Exception: it is anything else; with bytes of a stranger Pillow may raise almost any exception.
    """
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.size != (size, size):
            raise ValueError(f"a picture has {image.width} x {image.height} px instead of {size} x {size}")
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"a picture has the mode {image.mode} instead of L or RGB")
        image.load()
        return image


def _decode(data: bytes) -> Image.Image:
    png = data.startswith(PNG_START)
    if png:
        data = _png_pixels(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        mode = image.mode
        tags = dict(getattr(image, "tag_v2", {}))  # of a TIFF; turning the picture removes some
        if mode in ("I", "F") and data.startswith(b"MM") and tags.get(COMPRESSION, 1) != 1:
            raise UnclearImage("Pillow mixes up the order of the bytes in a compressed big-endian TIFF")
        image.load()
        turn = TURNS.get(_orientation(image.info.get("exif", b"")))
        result = _to_8bit(image, tags, png_bits=data[24] if png else 8)
    if turn is not None:
        result = result.transpose(turn)
    result.info = {"mode": mode}
    return result


def _png_pixels(data: bytes) -> bytes:
    """The PNG without the chunks that do not change its pixels, which may be large, odd or damaged.

    Raises:
        OSError: the checksum of pixels is wrong, or the end is missing. Pillow's decoder stops at the last pixel and
            checks neither.
    """
    kept, place = [PNG_START], len(PNG_START)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        chunk = data[place : place + 12 + length]
        if len(chunk) < 12 + length:
            break
        good = zlib.crc32(memoryview(chunk)[4:-4]).to_bytes(4, "big") == chunk[-4:]
        if good and kind in (*PIXEL_CHUNKS, b"eXIf"):
            kept.append(chunk)
        elif kind in PIXEL_CHUNKS:
            raise OSError(f"the checksum of a PNG's chunk {kind.decode()} is wrong")
        if kind == b"IEND":
            return b"".join(kept)
        place += len(chunk)
    raise OSError("the PNG's end is missing")


def _orientation(exif: bytes) -> int:
    """How the camera was held. Only this tag is looked at, because a damaged one beside it says nothing of the pixels.

    A TIFF has no EXIF block: Pillow turns it while it is loaded.
    """
    block = exif.removeprefix(b"Exif\0\0")
    try:
        order = {b"II": "<", b"MM": ">"}[block[:2]]
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", block, entry)
            if tag == ORIENTATION:
                return int(struct.unpack_from(order + {3: "H", 4: "I"}[kind], block, entry + 8)[0])
    except (KeyError, struct.error):
        pass
    return 1


def _to_8bit(image: Image.Image, tags: dict[int, Any], png_bits: int) -> Image.Image:
    """Converts any mode to "L" or "RGB".

    Raises:
        UnclearImage: it is not clear which level is white, or Pillow would read the picture wrongly.
    """
    deep, gray = max(tags.get(BITS, (8,))) > 8 or png_bits > 8, image.mode in ("1", "L") or image.mode[0] in "IF"
    if deep and tags.get(PLANES) == 2 and tags.get(SAMPLES, 1) > 1:
        raise UnclearImage("its colors have more than 8 bits and lie in separate planes")
    if image.mode == "L" and tags.get(SIGN, (1,))[0] == 2:
        raise UnclearImage("its levels are signed bytes")
    if image.mode == "LAB":
        raise UnclearImage("its colors are L*a*b*")
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        raise UnclearImage("its colors are CMYK, and no remark of Adobe's says that 0 is full ink")
    clear = image.info.get("transparency")  # a level that is transparent: that of the paper
    if gray and (clear is not None or image.mode not in ("1", "L")):
        whites = _whites(image.mode, tags)
        if image.mode in ("1", "L"):
            image = image.convert("L")
            clear *= 255 // (2 ** min(png_bits, 8) - 1)  # Pillow scales levels of fewer than 8 bits, but not this one
        return _scale(np.asarray(image), whites, clear, white_is_zero=tags.get(PHOTOMETRIC) == 0)
    if gray:
        return image.convert("L")
    if image.has_transparency_data:
        if deep and "transparency" in image.info:
            raise UnclearImage("it has 16-bit colors, of which one is transparent")
        image = _on_white(image)
    image = image.convert("RGB")
    red, green, blue = (channel.tobytes() for channel in image.split())
    return image.getchannel("R") if red == green == blue else image


def _on_white(image: Image.Image) -> Image.Image:
    shown = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if shown.getchannel("A").getextrema() == (0, 0):
        if image.format == "BMP":  # many programs leave this byte at 0 and mean an opaque picture
            return shown
        raise UnclearImage("it is transparent everywhere")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), shown)


def _whites(mode: str, tags: dict[int, Any]) -> tuple[int, ...]:
    """The levels that may be white; the least that fits is."""
    if mode in ("1", "L"):
        return (255,)
    if mode == "F":
        return 1, 255, 65535
    bits, signed = max(tags.get(BITS, (16,))), tags.get(SIGN, (1,))[0] == 2
    return (2 ** (bits - signed) - 1,) if bits <= 16 else (255, 65535)


def _scale(levels: np.ndarray, whites: tuple[int, ...], clear: int | None, *, white_is_zero: bool) -> Image.Image:
    """Scales levels (H, W) to "L"; the level `clear` becomes white."""
    low, high = levels.min(), levels.max()
    if not (low >= 0 and high <= whites[-1]):  # NaN fails this too
        raise UnclearImage(f"its gray levels go from {low:g} to {high:g}; 0 to {whites[-1]} can be read")
    white = next(top for top in whites if high <= top)
    if levels.dtype != np.uint8 and white > 1 and 0 < high < white / 128:
        raise UnclearImage(f"its gray levels go from {low:g} to {high:g}, which would be almost black of {white}")
    gray = np.rint(levels * np.float32(255 / white)).astype(np.uint8)
    if white_is_zero:
        gray = 255 - gray
    if clear is not None:
        gray[levels == clear] = 255
    return Image.fromarray(gray)
