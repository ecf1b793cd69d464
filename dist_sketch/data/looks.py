"""What looks wrong in pictures that can be read: said and kept, never refused, because it may be meant."""

import hashlib
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageOps, ImageStat

from dist_sketch.core.words import tell

BLANK = 2.0  # gray levels: the tones of a page with strokes differ by more
SAME = 2.0  # gray levels: a line differs from its sketch by more; in FS2K by 9 and more
BLACK = 64.0  # gray level: the commonest tones of a page are lighter; in FS2K's darkest sketch they are at 129
INK = 5.0  # gray levels: by so much a page has to be darker before it counts as having more ink
WIDE = 0.04  # two pictures side by side are twice as wide as high, within 2 %
SQUARE = 0.02  # a page whose sides differ by less is square
# At least 78 % of FS2K's and synthetic lines is as light as paper, also on gray paper or in pencil; half of lines three
# times as thick. Of 100 photographs of faces 97 have less than half, and so have FS2K's darkest sketches.
LIGHT = 0.8  # as light as paper: at least this share of the tone that 5 % of the picture reach
PAPER = 0.5
CHROMA = 48  # levels between the channels of a clearly colored pixel; off-white paper has less
COLORED = 0.01  # share of such pixels: fewer may be a stamp or JPEG's traces

WHY = {
    "blank": "the line or the sketch has one tone everywhere",
    "same": "the line and the sketch are the same picture",
    "black": "the line or the sketch is mostly black (inverted? --invert turns the lines)",
    "swapped": "the line has more ink than the sketch (are the sides swapped, or is it a photo?)",
    "double": "the files are twice as long as they are short (a line and a sketch in one picture?)",
    "again": "a picture is in another split, too (scores of pairs that are trained on say little)",
}
MEANT = "generators are made for dark lines on white paper"
WHY_INPUT = {  # of the lines that `infer` draws
    "blank": "the line has one tone everywhere, so there is nothing to draw from",
    "inverted": f"the line is light on black, but {MEANT}: give --invert, or leave it out",
    "photo": f"the line looks like a photograph or a shaded picture, but {MEANT}: trace its lines first",
    "color": f"the line has colors, but {MEANT}: save it in gray, with lines that are dark there",
    "shape": "the page is not square and gets squashed: --fit pad or --fit crop keeps its shape",
}
TURN = "; --direction turns them round"
NAMED = 3


class Look(NamedTuple):
    """What one pair looks like: keys of `WHY`, and hashes of the pixels of its pictures that are not blank."""

    kinds: list[str]
    digests: list[bytes]


def look(files: list[tuple[int, int]], pictures: list[Image.Image]) -> Look:
    """Looks at a pair, or at a line alone.

    Args:
        files: width and height of the line's and the sketch's files.
        pictures: the line and the sketch, both of one size.
    """
    gray = [picture.convert("L") for picture in pictures]
    pages = [ImageStat.Stat(page) for page in gray]
    blank = [page.stddev[0] < BLANK for page in pages]
    of_both = len(gray) == 2
    kinds = []
    if any(blank):
        kinds.append("blank")
    elif of_both and ImageStat.Stat(ImageChops.difference(*gray)).mean[0] < SAME:
        kinds.append("same")
    elif any(page.median[0] < BLACK for page in pages):
        kinds.append("black")
    elif of_both and pages[0].mean[0] + INK < pages[1].mean[0]:
        kinds.append("swapped")
    if all(abs(width / height - 2) <= WIDE for width, height in files) or all(
        abs(height / width - 2) <= WIDE for width, height in files
    ):
        kinds.append("double")
    seen = (picture for picture, none in zip(pictures, blank, strict=True) if not none)
    return Look(kinds, [hashlib.sha256(picture.tobytes()).digest() for picture in seen])


def look_at_input(line: Image.Image) -> list[str]:
    """What a line looks like that `infer` draws, at the network's size: keys of `WHY_INPUT` but "shape"."""
    gray = line.convert("L")
    page = ImageStat.Stat(gray)
    if page.stddev[0] < BLANK:
        return ["blank"]
    if page.median[0] < BLACK and _on_paper(ImageOps.invert(gray)):
        return ["inverted"]
    if not _on_paper(gray):
        return ["photo"]
    return ["color"] if line.mode == "RGB" and _is_colored(line) else []


def is_square(width: int, height: int) -> bool:
    """Whether a page of this shape hardly changes when it is squashed to a square."""
    return abs(width / height - 1) <= SQUARE


def _on_paper(gray: Image.Image) -> bool:
    """Whether most of the picture is as light as paper, as in a drawing of lines."""
    counts = np.array(gray.histogram())
    bright = int(np.searchsorted(counts.cumsum(), 0.95 * counts.sum()))
    return bool(counts[math.ceil(LIGHT * bright) :].sum() >= PAPER * counts.sum())


def _is_colored(picture: Image.Image) -> bool:
    red, green, blue = picture.split()
    lightest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    darkest = ImageChops.darker(ImageChops.darker(red, green), blue)
    counts = ImageChops.subtract(lightest, darkest).histogram()
    return sum(counts[CHROMA + 1 :]) >= COLORED * sum(counts)


class Looks:
    """Collects what pairs look like, split by split; `found` has the pairs as SPLIT/NAME for each kind."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}
        self._splits: dict[bytes, str] = {}  # hash of a picture -> the first split that has it

    def add(self, split: str, name: str, look: Look) -> None:
        """Adds a pair."""
        before = {self._splits.setdefault(digest, split) for digest in look.digests}
        for kind in [*look.kinds, *(["again"] if before - {split} else [])]:
            self.found.setdefault(kind, []).append(f"{split}/{name}")


def reasons(turns: bool) -> dict[str, str]:
    """`WHY`, for a source whose sides the user can turn round or not."""
    return WHY | {"swapped": WHY["swapped"] + TURN} if turns else WHY


def warn(found: dict[str, list[str]], reasons: Mapping[str, str] = WHY, what: str = "pair") -> None:
    """Prints a line for each kind, with the first names."""
    for kind, why in reasons.items():
        if names := found.get(kind):
            count = f"{len(names)} {what}{'s' if len(names) > 1 else ''}"
            more = ", ..." if len(names) > NAMED else ""
            tell(f"warning: {count} ({', '.join(names[:NAMED])}{more}): {why}")
