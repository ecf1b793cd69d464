"""Opens image files: any supported format becomes 8-bit gray or RGB; everything else is refused by name."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dist_sketch.core.errors import UserError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # not EPS: Pillow starts Ghostscript to read it
MAX_PIXELS = 100_000_000  # 10,000 x 10,000; an A3 page at 600 dpi has 70 million
PNG_END = b"IEND\xaeB`\x82"


class BadImage(UserError):
    """A file that is not a usable image: `path` and `why`."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = path, why

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


def read_image(path: Path) -> Image.Image:
    """Reads an image file as mode "L" if it is gray (also if a color file has R = G = B everywhere), else "RGB".

    EXIF orientation is applied, alpha is composited on white, 16-bit and float levels are scaled to 8 bit, and an
    animation gives its first frame. Color profiles are ignored. `.info["mode"]` is the mode of the file.

    Raises:
        BadImage: missing, empty, unreadable, truncated, or larger than MAX_PIXELS (decided before decoding).
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise BadImage(path, f"cannot be read ({e.strerror})") from e
    if not data:
        raise BadImage(path, "the file is empty (0 bytes)")
    # Pillow raises almost any exception for a malformed file, and warns of files that are refused or repaired here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if image.format == "PNG":
                    _verify_png(data)
                mode = image.mode
                result = _to_8bit(ImageOps.exif_transpose(image))
        except Image.DecompressionBombError as e:
            why = f"is too large (a decompression bomb?): more than {MAX_PIXELS:,} pixels; make it smaller"
            raise BadImage(path, why) from e
        except UnidentifiedImageError as e:
            raise BadImage(path, f"is not a readable image ({', '.join(FORMATS)} are read)") from e
        except Exception as e:
            raise BadImage(path, f"is damaged or truncated ({e})") from e
    result.info = {"mode": mode}
    return result


def _verify_png(data: bytes) -> None:
    """Checks checksums and the end, because Pillow's decoder stops at the last pixel and checks neither."""
    if PNG_END not in data:
        raise OSError("the PNG's end is missing")
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image.verify()


def _to_8bit(image: Image.Image) -> Image.Image:
    """Converts any mode to "L" or "RGB"."""
    if image.mode.startswith(("I", "F")):
        return _scale(np.asarray(image, np.float32), integer=image.mode != "F")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    if image.mode in ("1", "L"):
        return image.convert("L")
    image = image.convert("RGB")
    red, green, blue = (channel.tobytes() for channel in image.split())
    return image.getchannel("R") if red == green == blue else image


def _scale(levels: np.ndarray, *, integer: bool) -> Image.Image:
    """Scales levels (H, W) to "L". White is 65535 for integers; for floats the least of 1, 255, 65535 that fits."""
    low, high = levels.min(), levels.max()
    if not (low >= 0 and high <= 65535):  # NaN fails this too
        raise ValueError(f"gray levels from {low:g} to {high:g}; 0 to 65535 can be read")
    white = 65535 if integer else next(top for top in (1, 255, 65535) if high <= top)
    return Image.fromarray(np.rint(levels * (255 / white)).astype(np.uint8))
