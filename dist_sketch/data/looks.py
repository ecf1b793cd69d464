"""What looks wrong in pairs that can be read: said and kept in the manifest, never refused, because it may be meant."""

import hashlib
from typing import NamedTuple

from PIL import Image, ImageChops, ImageStat

from dist_sketch.core.words import tell

BLANK = 2.0  # gray levels: the tones of a page with strokes differ by more
SAME = 2.0  # gray levels: a line differs from its sketch by more; in FS2K by 9 and more
BLACK = 64.0  # gray level: the commonest tones of a page are lighter; in FS2K's darkest sketch they are at 129
INK = 5.0  # gray levels: by so much a page has to be darker before it counts as having more ink
WIDE = 0.04  # two pictures side by side are twice as wide as high, within 2 %

WHY = {
    "blank": "the line or the sketch has one tone everywhere",
    "same": "the line and the sketch are the same picture",
    "black": "the line or the sketch is mostly black (inverted?)",
    "swapped": "the line has more ink than the sketch (are the sides swapped?)",
    "double": "the files are twice as long as they are short (a line and a sketch in one picture?)",
    "again": "a picture is in another split, too (scores of pairs that are trained on say little)",
}
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


def warn(found: dict[str, list[str]]) -> None:
    """Prints a line for each kind, with the first names."""
    for kind, why in WHY.items():
        if names := found.get(kind):
            count = f"{len(names)} pair{'s' if len(names) > 1 else ''}"
            tell(f"warning: {count}: {why}, such as {', '.join(names[:NAMED])}")
