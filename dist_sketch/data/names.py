"""Names of pairs: which line and which sketch belong together, in which order they come, and their keys in shards.

Only names say what is a pair: never the order in which files are listed.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection

# Words that say which side a file is: photo1/image0001 and sketch1/sketch0001 of FS2K, 7_A and 7_B of pix2pix
SIDE = re.compile(r"(?<![a-z])(?:photo|image|img|line|edge|sketch|drawing|input|target|real|(?<=[-_])[ab])s?(?![a-z])")


def _unpadded(name: str) -> str:
    """1 for 0001."""
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", name)


def _without_side(name: str) -> str:
    """0001 for photo_0001 and 0001-sketch; f-005-01 for F2-005-01-sz1, as the sketches of CUFS are named."""
    name = re.sub(r"-sz[0-9]*$", "", SIDE.sub("", name.casefold()))
    return re.sub(r"[-_. ]+", "-", re.sub(r"^([fm])2-", r"\1-", name)).strip("-")


# Tried in order on the names that no earlier rule has paired
RULES: tuple[Callable[[str], str], ...] = (_unpadded, _without_side, lambda name: _unpadded(_without_side(name)))


def matched(lines: Collection[str], sketches: Collection[str]) -> dict[str, str]:
    """Line -> its sketch, for the names of one split: those that are equal, else those that one of the rules makes so.

    A rule holds only if it tells all names of the split apart, on both sides.

    Args:
        lines: names without extension, in Unicode NFC, as of `sketches`.
    """
    other = set(sketches)
    found = {name: name for name in lines if name in other}
    for rule in RULES:
        taken = set(found.values())
        left = [name for name in lines if name not in found], [name for name in sketches if name not in taken]
        if not all(left):
            break
        if any(len({rule(name) for name in side}) < len(side) for side in (lines, sketches)):
            continue
        of_rule = {rule(name): name for name in left[1]}
        found |= {name: of_rule[rule(name)] for name in left[0] if rule(name) in of_rule}
    return found


def short(paths: list[tuple[str, ...]]) -> list[str | None]:
    """Names for paths: as few of their last parts as tell them apart, joined by "_"; None for a path that came before.

    Args:
        paths: the parts of each.
    """
    names: list[str] = []
    for length in range(1, max(map(len, paths), default=0) + 1):
        names = [nfc("_".join(parts[-length:])) for parts in paths]
        if len(set(names)) == len(set(paths)):
            break
    first = {name: place for place, name in reversed(list(enumerate(names)))}
    return [name if first[name] == place else None for place, name in enumerate(names)]


def nfc(name: str) -> str:
    """The name with composed accents."""
    return unicodedata.normalize("NFC", name)


def fraction(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, so that pairs keep their split when the data set grows."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def natural(name: str) -> tuple[list[str | int], str]:
    """Sort key that orders numbers by value: 1, 2, 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))], name


def encode_key(name: str) -> str:
    """The sample's key: the NFC name with '.', '/', '%' and control characters percent-encoded, as WebDataset needs it.

    `urllib.parse.unquote` gives the name back.
    """
    return re.sub(r"[./%\x00-\x1f\x7f-\x9f]", lambda m: "".join(f"%{b:02X}" for b in m[0].encode()), nfc(name))
