"""A picture of a few faces of an output folder: line, drawn and real sketch side by side."""

import io
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageDraw, ImageFont

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import write_atomic
from dist_sketch.core.saved import read_finished_infer
from dist_sketch.data import pixels
from dist_sketch.data.image_files import read_image
from dist_sketch.reports.ours import PICTURE_MARK, refuse_others

COLUMNS = {"line": "line", "sketch": "drawn", "real": "real"}  # folder of the output -> label above the column
JPEG = {"format": "JPEG", "quality": 95}
OPTIONS: dict[str, dict[str, Any]] = {".png": {"format": "PNG"}, ".jpg": JPEG, ".jpeg": JPEG}  # Pillow's, by suffix
ACROSS = 2  # faces beside each other
GAP, HEADER, FONT = 16, 24, 15  # px: between faces, height of the row of labels, size of its letters


def write_sheet(out: Path, names: list[str], file: Path) -> None:
    """Writes faces of `out` to a PNG or JPEG file, at the network's size and with labels above the columns.

    Args:
        names: the faces, in order; none: the first four.

    Raises:
        UserError: `out` is not an output folder of infer with real sketches, or has no face of one of the names; a
            picture is missing or damaged; `file` is not a .png or .jpg file, cannot be written, or is somebody else's.
    """
    if file.suffix.lower() not in OPTIONS:
        raise UserError(f"{file}: a sheet is a .png or .jpg file")
    refuse_others(file)
    if not (out / "real").is_dir():
        raise UserError(f"{out}: has no drawings with real sketches; run `dist-sketch infer ... --out {out}` first")
    infer = read_finished_infer(out, "size", "format")
    names = names or infer["names"][:4]
    for name in names:
        if name not in infer["names"]:
            raise UserError(f"{out}: has no face {name}; its faces are {', '.join(infer['names'][:5])}, ...")
    size, across = infer["size"], min(ACROSS, len(names))
    width, height = len(COLUMNS) * size + GAP, size + GAP
    sheet = Image.new("RGB", (across * width - GAP, HEADER + -(-len(names) // across) * height - GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    for i, name in enumerate(names):
        for column, (folder, label) in enumerate(COLUMNS.items()):
            suffix = infer["format"] if folder == "sketch" else "png"
            picture = pixels.resize(pixels.from_image(read_image(out / folder / f"{name}.{suffix}"), 3), size, size)
            left, top = i % across * width + column * size, HEADER + i // across * height
            sheet.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()), (left, top))
            if i < across:
                pen.text((left + size / 2, HEADER / 2), label, fill="black", font=font, anchor="mm")
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Software] = PICTURE_MARK  # by which the next sheet may replace this one
    sheet.save(buffer, exif=exif, **OPTIONS[file.suffix.lower()])
    write_atomic(file, buffer.getvalue())
