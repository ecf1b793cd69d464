"""The one place where image files are opened: any format becomes 8-bit gray or RGB, or is refused by name."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dist_sketch.core.errors import UserError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # no EPS, PDF ...: those start other programs


MAX_PIXELS = 100_000_000  # 10,000 x 10,000; an A3 page at 600 dpi has 70 million


PNG_END = b"IEND\xaeB`\x82"


class BadImage(UserError):
    """A file that is no usable image: `path` and `why`."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = path, why

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


def read_image(path: Path) -> Image.Image:
    """Reads an image file as people see it: mode "L" where it is gray (a color file with R = G = B too), else "RGB".

    Turned by its EXIF orientation; alpha is laid on white; 16-bit and float levels are scaled to 8 bit; of an animation
    the first frame. Color profiles are not applied. `.info["mode"]` is the mode in the file.

    Raises:
        BadImage: missing, empty, unreadable, truncated, or above MAX_PIXELS (told from its header, before decoding).
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise BadImage(path, f"cannot be read ({e.strerror})") from e
    if not data:
        raise BadImage(path, "the file is empty (0 bytes)")
    # a malformed file makes Pillow raise almost anything, and warn of what is refused or mended here
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
    """Pillow's decoder stops at the last pixel and checks neither sums nor the end."""
    if PNG_END not in data:
        raise OSError("the PNG's end is missing")
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image.verify()


def _to_8bit(image: Image.Image) -> Image.Image:
    """Any mode -> "L" or "RGB"."""
    if image.mode.startswith(("I", "F")):
        return _scale(np.asarray(image, np.float32), integer=image.mode != "F")
    if image.has_transparency_data:
        color = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), color)
    if image.mode in ("1", "L"):
        return image.convert("L")
    red, green, blue = image.convert("RGB").split()
    gray = red.tobytes() == green.tobytes() == blue.tobytes()
    return red if gray else Image.merge("RGB", (red, green, blue))


def _scale(levels: np.ndarray, *, integer: bool) -> Image.Image:
    """(H, W) levels -> "L". Integers are out of 65535; floats out of the least of 1, 255, 65535 that holds them all."""
    low, high = levels.min(), levels.max()
    if not (low >= 0 and high <= 65535):  # also where it is NaN
        raise ValueError(f"gray levels from {low:g} to {high:g}; 0 to 65535 can be read")
    full = 65535 if integer else next(top for top in (1, 255, 65535) if high <= top)
    return Image.fromarray(np.rint(levels * (255 / full)).astype(np.uint8))
