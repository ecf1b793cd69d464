"""A single drawing as a file: `dist-sketch infer --input face.png --out drawn.png`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeGuard

from dist_sketch.core import launcher
from dist_sketch.core.errors import SharedError, UserError
from dist_sketch.core.fileio import open_regular, write_atomic
from dist_sketch.core.places import Place
from dist_sketch.data.image_remarks import JPEG_START, PNG_START
from dist_sketch.inference.infer import LeftOut, infer
from dist_sketch.inference.options import InferOptions

FORMATS: dict[str, Literal["png", "jpg"]] = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg"}


def wanted(inputs: Sequence[Place], out: Path, options: InferOptions) -> TypeGuard[Sequence[Path]]:
    """Whether `out` is meant as a file: it is named like a picture, is no folder, and there is a single image to draw.

    Everything else goes into a folder, which may not get the name of a file.
    """
    single = len(inputs) == 1 and isinstance(inputs[0], Path) and inputs[0].is_file() and not options.part
    return single and out.suffix.lower() in FORMATS and not out.is_dir()


def draw(run: Path, source: Path, out: Path, options: InferOptions) -> None:
    """Draws one image and writes the drawing, with the noise removed, to `out`; its suffix says the format.

    A picture that is there is replaced when the drawing is finished.

    Raises:
        UserError: as `infer`; or `out` is the input, or is there and not a PNG or JPEG file.
    """
    if launcher.number("WORLD_SIZE") > 1:
        raise SharedError(f"{out}: one drawing is made by one process: start it without a launcher, or name a folder")
    _check_replaceable(out, source)
    with TemporaryDirectory(prefix="dist_sketch-") as folder:
        try:
            infer(run, source, Path(folder), replace(options, format=FORMATS[out.suffix.lower()]))
        except LeftOut as e:
            raise UserError(e.sentences[0]) from e
        (drawn,) = (Path(folder) / "sketch").iterdir()
        write_atomic(out, drawn.read_bytes())


def _check_replaceable(out: Path, source: Path) -> None:
    """Refuses to replace the input, or what is no picture."""
    try:
        if out.exists() and out.samefile(source):
            raise UserError(f"{out}: is the input, which would be overwritten; choose another --out")
        with open_regular(out) as file:
            begin = file.read(len(PNG_START))
    except FileNotFoundError:
        return
    except OSError as e:
        raise UserError(f"{out}: cannot be replaced ({e.strerror}); choose another --out") from e
    if begin and not begin.startswith((PNG_START, JPEG_START)):
        raise UserError(f"{out}: is there and not a PNG or JPEG picture, and would be lost; choose another --out")
