"""preview.png beside the shards: some pairs, line beside sketch, so that one look shows whether they are pairs."""

from pathlib import Path
from typing import Any

from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from dist_sketch.core.fileio import LARGE, read_regular
from dist_sketch.core.words import one_line
from dist_sketch.data import pixels
from dist_sketch.data.shards import Shards

NAME = "preview.png"
FONT = "fonts/ttf/DejaVuSans.ttf"  # Matplotlib's; Pillow's own has no letters with accents
MARK = "Written by dist-sketch pack, which may replace it."
PAIRS, ROWS = 8, 4
SIDE, GAP, TEXT = 160, 8, 20  # px: a picture, the space between pairs, a name above its pair


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """Draws pairs of the shards that are in a folder: of each split in turn, at equal distances through the split."""
    chosen = _chosen({name: part["count"] for name, part in manifest["splits"].items()})
    columns, rows = -(-len(chosen) // ROWS), min(len(chosen), ROWS)
    width, height = 2 * SIDE + GAP, SIDE + TEXT + GAP
    page = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "lightgray")
    pen, font = ImageDraw.Draw(page), ImageFont.truetype(Path(get_data_path()) / FONT, 12)
    shards = {split: Shards(folder, split) for split, _ in chosen}
    for place, (split, number) in enumerate(chosen):
        sample = shards[split].read(number, 3)
        left, top = GAP + place // ROWS * width, GAP + place % ROWS * height
        name = _shortened(one_line(f"{split} {sample.name}"), font)
        pen.text((left, top), name, "black", font)
        page.paste(_small(sample.line), (left, top + TEXT))
        if sample.sketch is not None:
            page.paste(_small(sample.sketch), (left + SIDE, top + TEXT))
    about = PngInfo()
    about.add_text("Comment", MARK)
    page.save(folder / NAME, "PNG", pnginfo=about)


def is_ours(path: Path) -> bool:
    """Whether a file is such a picture, which may be replaced."""
    return is_marked(path, MARK)


def is_marked(path: Path, mark: str) -> bool:
    """Whether a file is there that can be read and has this text in it."""
    try:
        return mark.encode() in read_regular(path, LARGE)
    except OSError:
        return False


def _chosen(counts: dict[str, int]) -> list[tuple[str, int]]:
    """(split, number) of the pairs that are drawn; the splits get equal shares, as far as they have so many."""
    shares = dict.fromkeys(counts, 0)
    for _ in range(min(PAIRS, sum(counts.values()))):
        shares[min((split for split in counts if shares[split] < counts[split]), key=lambda split: shares[split])] += 1
    return [(split, i * counts[split] // share) for split, share in shares.items() for i in range(share)]


def _small(picture: Tensor) -> Image.Image:
    return Image.fromarray(pixels.resize(picture, SIDE, SIDE).permute(1, 2, 0).numpy())


def _shortened(text: str, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= 2 * SIDE:
        return text
    while font.getlength(f"{text}...") > 2 * SIDE:
        text = text[:-1]
    return f"{text}..."
