"""What lies in a folder: pictures by name, and what file managers and archives leave there, which is passed over."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path, PurePath

from dist_sketch.core.errors import UserError
from dist_sketch.data.names import nfc

EXTENSIONS = (
    *(".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp"),
    *(".pbm", ".pgm", ".pnm", ".ppm"),
)
JUNK = ("__MACOSX", "@eaDir")  # folders of archives from macOS, and of network disks: small copies of the pictures


def names_in(path: Path) -> list[str]:
    """The names in a folder.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return os.listdir(path)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}); is the root right?") from e


def is_picture(name: str, extensions: Collection[str] = EXTENSIONS) -> bool:
    """Whether the name is that of a picture. Those that start with a dot belong to file managers (._1.jpg)."""
    return PurePath(name).suffix.lower() in extensions and (name[0] != "." or climbs(name))


def by_stem(names: Iterable[str], extensions: Collection[str] = EXTENSIONS) -> dict[str, list[str]]:
    """Pictures by their names without extension, in Unicode NFC.

    macOS archives decompose accents, so that the two names of a pair may differ only in that.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if is_picture(name, extensions):
            found[nfc(PurePath(name).stem)].append(name)
    return found


def refusal(files: list[str]) -> str | None:
    """Why the files of one stem cannot be used; None if they can, as far as their names tell."""
    if len(files) > 1:
        return f"has the same name as {', '.join(map(printable, files[1:]))} beside it: keep one of them"
    if printable(files[0]) != files[0]:
        return "its name is not valid UTF-8: rename it"
    return "its name leaves its folder: rename it" if climbs(files[0]) else None


def others(path: Path, used: Collection[str], extensions: Collection[str] = EXTENSIONS) -> dict[str, int]:
    """What is passed over in a folder: kind -> number of files.

    Args:
        used: normal paths of folders whose pictures are read.

    Raises:
        UserError: the folder cannot be read.
    """
    kinds: Counter[str] = Counter()
    for name in names_in(path):
        inner = path / name
        if is_picture(name, extensions):
            continue
        if inner.is_dir():
            if os.path.normpath(inner) not in used and name not in JUNK:
                within = [file for _, _, files in os.walk(inner) for file in files]
                kinds["pictures in sub-folders"] += sum(is_picture(file, extensions) for file in within)
        else:
            extension = printable(PurePath(name).suffix.lower()) or "without an extension"
            kinds["hidden files" if name[0] == "." else extension] += 1
    return {kind: kinds[kind] for kind in sorted(kinds) if kinds[kind]}


def sub_folders(path: Path) -> list[str]:
    """Names of the folders in a folder, also of linked ones, without hidden ones and those that archives leave."""
    return sorted(n for n in names_in(path) if n[0] != "." and n not in JUNK and (path / n).is_dir())


def has_pictures(path: Path) -> bool:
    """Whether pictures lie in the folder itself."""
    return any(map(is_picture, names_in(path)))


def climbs(name: str) -> bool:
    """Whether a name leads out of its folder."""
    return ".." in re.split(r"[/\\]", name)


def printable(text: str) -> str:
    """`text` with escapes for bytes of a file name that are not valid UTF-8 and could not be printed."""
    return text.encode("utf-8", "backslashreplace").decode()


def within(root: Path, folder: str, where: str) -> Path:
    """A recipe's folder or file below the root. A link there is the user's own and is followed, wherever it leads.

    Raises:
        UserError: the path is absolute or leaves the root.
    """
    if "\0" in folder:
        raise UserError(f"{where}: the path {folder!r} has a character that no name can have")
    if os.path.isabs(folder) or os.path.normpath(folder).split(os.sep)[0] == os.pardir:
        raise UserError(f"{where}: the path {folder} must be relative to {root}, and not leave it; link it there")
    return root / folder
