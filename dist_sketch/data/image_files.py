"""The one door for pictures: any supported format becomes 8-bit gray or RGB; everything else is refused by name."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageFile, ImagePalette, UnidentifiedImageError

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import open_regular
from dist_sketch.data.image_remarks import JPEG_START, ORIENTATION, PNG_START, orientation, strip

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # not EPS: Pillow starts Ghostscript to read it
MAX_PIXELS = 100_000_000  # 10,000 x 10,000; an A3 page at 600 dpi has 70 million
MAX_BYTES = 4 * MAX_PIXELS  # so many pixels with alpha, uncompressed
STARTS = {b"BM": "BMP", b"GIF8": "GIF", JPEG_START: "JPEG", PNG_START: "PNG", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
STRETCH = "multiply the levels by 255 / the level of white paper"
Half = Literal["left", "right"]
# Tags of TIFF
BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANES, COLORS, SIGN = 258, 259, 262, 277, 284, 320, 339
TURNS = {  # the orientation -> what turns the picture upright
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


def read_image(path: Path, half: Half | None = None) -> Image.Image:
    """Reads an image file as mode "L" if it is gray (also if a color file has R = G = B everywhere), else "RGB".

    It is turned as its EXIF says, or else its XMP; alpha is composited on white, 16-bit and float levels are scaled to
    8 bit, and an animation gives its first frame. Only the pixels decide whether a file is good: color profiles, texts
    and other remarks are ignored. `.info["mode"]` is the mode of the file.

    Args:
        half: of a picture that shows a line and its sketch side by side.

    Raises:
        BadImage: missing, not a regular file, empty, no image, damaged, of an unclear kind, or larger than MAX_PIXELS
            (decided before decoding) or MAX_BYTES; or it has no two halves of equal width.
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
    with _told_of(path, data):
        image = _decode(data)
    return image if half is None else _half(image, half, path)


def _half(image: Image.Image, half: Half, path: Path) -> Image.Image:
    """One half as `read_image` would give a file of it: gray if this half is."""
    width, rest = divmod(image.width, 2)
    if rest or not width:
        raise BadImage(path, f"has a width of {image.width} px, so that its halves, line and sketch, would differ")
    left = 0 if half == "left" else width
    cut = image.crop((left, 0, left + width, image.height))
    result = cut if cut.mode == "L" else _to_8bit(cut, {}, 8, None)
    result.info = {"mode": image.info["mode"]}
    return result


def as_read(picture: Image.Image, name: str) -> Image.Image:
    """A picture that Pillow has opened or made, as `read_image` would give it; it is left as it is.

    Args:
        name: for error messages.

    Raises:
        BadImage: as `read_image`; or it has no pixels.
    """
    if not (0 < picture.width * picture.height <= MAX_PIXELS):
        raise BadImage(Path(name), f"has {picture.width} x {picture.height} px; 1 to {MAX_PIXELS:,} can be read")
    with _told_of(Path(name)):
        picture.load()  # now its remarks are complete
        turn = TURNS.get(picture.getexif().get(ORIENTATION, 1))
        tags = dict(getattr(picture, "tag_v2", {})) or ({BITS: (32,)} if picture.mode == "I" else {})
        result = _to_8bit(picture, tags, 16 if picture.mode.startswith("I") else 8, None)
    if turn is not None:
        result = result.transpose(turn)
    result.info = {"mode": picture.mode}
    return result


@contextmanager
def _told_of(path: Path, data: bytes = b"") -> Iterator[None]:
    """Turns what Pillow raises into a BadImage; it raises almost any exception for a malformed file.

    Pillow also warns of files that are refused or repaired here.

    Args:
        data: the file, for what its first bytes say.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
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
    data, turns, white = strip(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        mode = image.mode
        tags = dict(getattr(image, "tag_v2", {}))  # of a TIFF
        if mode in ("I", "F") and data.startswith(b"MM") and tags.get(COMPRESSION, 1) != 1:
            raise UnclearImage("Pillow mixes up the order of the bytes in a compressed big-endian TIFF")
        if COLORS in tags and mode[0] == "P" and max(tags[COLORS]) < 256:  # of 65535; old programs mean 8 bits
            image.palette = ImagePalette.raw("RGB;L", bytes(tags[COLORS]))
        if image.format == "BMP" and "BGRX" in (image.tile[0].args or ()):
            _check_fourth_bytes(data[image.tile[0].offset :], image.width * image.height)
        bits = _bits(image, data)
        image.load()
        turn = TURNS.get(orientation([*turns, *(image.info.get(kind) or b"" for kind in ("exif", "xmp"))]))
        result = _to_8bit(image, tags, bits, white)
    if turn is not None:
        result = result.transpose(turn)
    result.info = {"mode": mode}
    return result


def _bits(image: ImageFile.ImageFile, data: bytes) -> int:
    """Bits of a level in a PNG or PPM; a TIFF has a tag for it, and other formats have no more than 8."""
    if image.format == "PNG":
        return data[24]
    args = image.tile[0].args if image.format == "PPM" else None
    return 16 if isinstance(args, tuple) and args[-1] > 255 else 8


def _check_fourth_bytes(levels: bytes, pixels: int) -> None:
    """The fourth byte of a BMP's pixel has no meaning here, but some programs write alpha there."""
    blue, green, red, fourth = np.frombuffer(levels, np.uint8, 4 * pixels).reshape(-1, 4).T
    clear = fourth == 0
    if clear.any() and fourth.any() and not (blue | green | red)[clear].any():
        raise UnclearImage("its pixels have a fourth byte, which should mean nothing and seems to say where paper is")


def _to_8bit(image: Image.Image, tags: dict[int, Any], bits: int, white: int | None) -> Image.Image:
    """Converts any mode to "L" or "RGB".

    Raises:
        UnclearImage: it is not clear which level is white, or Pillow would read the picture wrongly.
    """
    deep, gray = max(tags.get(BITS, (bits,))) > 8, image.mode in ("1", "L") or image.mode[0] in "IF"
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
        whites = _whites(image.mode, tags, white)
        if image.mode in ("1", "L"):
            image = image.convert("L")
            clear *= 255 // (2 ** min(bits, 8) - 1)  # Pillow scales levels of fewer than 8 bits, but not this one
        return _scale(np.asarray(image), whites, clear, white_is_zero=tags.get(PHOTOMETRIC) == 0)
    if gray:
        return image.convert("L")
    if deep:
        _check_brightness(image)
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


def _check_brightness(image: Image.Image) -> None:
    """Refuses deep colors of which Pillow has kept almost nothing: it takes the upper 8 bits of 16."""
    tops = dict(zip(image.getbands(), np.asarray(image).max(axis=(0, 1)).tolist(), strict=True))
    alpha, _ = tops.pop("A", tops.pop("a", 255)), tops.pop("X", None)
    if 0 < max(tops.values()) < 32 or 0 < alpha < 32:
        raise UnclearImage(f"its levels use less than an eighth of their 16 bits; {STRETCH}")


def _whites(mode: str, tags: dict[int, Any], said: int | None) -> dict[float, float]:
    """The levels that may be white, in order -> what the brightest level must reach, or else it is another scale."""
    if mode in ("1", "L"):
        return {255: 0}
    guesses: dict[float, float] = {255: 255 / 2, 65535: 65535 / 2}
    if mode == "F":
        return {1: 1 / 8, **guesses}
    bits, signed = max(tags.get(BITS, (16,))), tags.get(SIGN, (1,))[0] == 2
    if bits > 16:
        return guesses
    white = 2 ** (bits - signed) - 1
    whites: dict[float, float] = {white: white / 8}
    if said and said < white and said & (said + 1) == 0:  # all bits set; else a TIFF means the top of this picture
        whites = {said: said / 8, **whites}
    return whites


def _scale(levels: np.ndarray, whites: dict[float, float], clear: int | None, *, white_is_zero: bool) -> Image.Image:
    """Scales levels (H, W) to "L"; the level `clear` becomes white."""
    low, high, top = levels.min(), levels.max(), max(whites)
    if not (low >= 0 and high <= top):  # NaN fails this too
        raise UnclearImage(f"its gray levels go from {low:g} to {high:g}; 0 to {top} can be read")
    white, least = next((white, least) for white, least in whites.items() if high <= white)
    if 0 < high < least:
        raise UnclearImage(f"its gray levels go from {low:g} to {high:g}, which is too dark for {white}; {STRETCH}")
    gray = np.rint(levels * np.float32(255 / white)).astype(np.uint8)
    if white_is_zero:
        gray = 255 - gray
    if clear is not None:
        gray[levels == clear] = 255
    return Image.fromarray(gray)
