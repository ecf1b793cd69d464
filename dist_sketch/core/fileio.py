"""Files: reading with clear errors, writing whole files or nothing, finding presets by name."""

import errno
import hashlib
import io
import json
import math
import os
import re
import stat
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from dist_sketch.core.errors import UserError

PART = ".part"  # ends the names of what is being written
SMALL = 2**22  # bytes; settings and states have some thousand
LARGE = 2**31  # bytes; the index of a million pairs has about 50 MB
MOST_LEVELS = 30  # of nested tables and lists in a JSON file; ours have less than ten


def open_regular(path: Path, most: int | None = None) -> io.FileIO:
    """Opens a file that somebody else may have put there for reading, unbuffered; links are followed.

    Args:
        most: bytes; a larger file is refused.

    Raises:
        OSError: it cannot be opened, is too large, or is not a regular file: a FIFO or a device may never end.
    """
    # Without O_NONBLOCK, opening a FIFO waits for somebody who writes into it.
    file = io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    found, why = os.fstat(file.fileno()), ""
    if not stat.S_ISREG(found.st_mode):
        why = "it is not a regular file"
    elif most is not None and found.st_size > most:
        why = f"it is larger than {most // 10**6:,} MB"
    if why:
        file.close()
        raise OSError(errno.EINVAL, why, str(path))
    return file


def read_regular(path: Path, most: int) -> bytes:
    """The bytes of such a file, as `open_regular` opens it."""
    with open_regular(path, most) as file:
        return file.readall()


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        UserError: it cannot be read, or is not TOML.
    """
    try:
        # Editors may begin a file with a byte order mark.
        value = tomllib.loads(read_regular(path, SMALL).decode("utf-8-sig"))
        _check_depth(value, MOST_LEVELS)
        return value
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except ValueError as e:
        raise UserError(f"{path}: is not valid TOML: {e}") from e
    except RecursionError as e:
        raise UserError(f"{path}: is nested too deep") from e


def find_file(folder: Literal["launch", "shards", "slurm"], name: str, suffix: str = ".toml") -> Path:
    """Finds a preset, recipe or script that the user names, by path or else by name.

    Names are searched in the installed package and in the repository's folder.

    Raises:
        UserError: there is no such file; the message lists the names that exist.
    """
    path = path_of(name)
    if path.suffix == suffix and path.is_file():
        return path
    for home in homes(folder):
        if (home / f"{name}{suffix}").is_file():
            return home / f"{name}{suffix}"
    # Experiments have a prefix and are listed by `dist-sketch experiment`.
    found = {p.stem for h in homes(folder) for p in h.glob("*" + suffix)}
    names = sorted(n for n in found if not n.startswith("experiment-"))
    raise UserError(f"{name}: neither a {suffix} file nor a name in {folder}/ (there: {', '.join(names)})")


def path_of(text: str | Path) -> Path:
    """A path as a user writes it: `~` at its beginning is the home folder."""
    return Path(os.path.expanduser(text))


def homes(folder: Literal["launch", "shards", "slurm"]) -> tuple[Path, Path]:
    """Folders of files that users name: the installed package's copy, and the repository's (editable install)."""
    package = Path(__file__).resolve().parents[1]
    return package / "files" / folder, package.parent / folder


def read_json(path: Path, default: Any = ..., most: int = LARGE) -> Any:
    """Reads a JSON file; a missing one gives `default`, if there is a default. `core.saved` checks what it holds.

    Raises:
        UserError: it is missing, damaged or larger than `most` bytes, or holds what dist_sketch never writes.
    """
    try:
        if default is not ... and not path.exists():
            return default
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is not a file")
        return parse_json(read_regular(path, most).decode("utf-8-sig"))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except ValueError as e:
        raise UserError(f"{path}: is not valid JSON: {e}") from e


def parse_json(text: str, *, finite_only: bool = True) -> Any:
    """The value of a JSON text.

    Args:
        finite_only: refuse numbers that are not finite; else they become None.

    Raises:
        ValueError: it is not JSON, or has what no reader expects: a key twice, a number that is not finite or above
            2^63, half a character, or more levels than any file of ours.
    """
    try:
        number = _number if finite_only else _number_or_none
        value = json.loads(text, parse_constant=number, parse_float=number, object_pairs_hook=_unique)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be written again
    except RecursionError as e:
        raise ValueError("it is nested too deep") from e
    _check_depth(value, MOST_LEVELS)
    return value


def _number(text: str) -> float:
    if (value := _number_or_none(text)) is None:
        raise ValueError(f"{text} is not a finite number")
    return value


def _number_or_none(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = {sys.intern(key): value for key, value in pairs}  # a log has the same keys in a million lines
    if len(found) < len(pairs):
        raise ValueError(f"a key is there twice among {', '.join(sorted(found)[:5])[:200]}")
    return found


def _check_depth(value: Any, levels: int) -> None:
    if not levels:
        raise ValueError("it is nested too deep")
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    kinds = set(map(type, inner))  # a list of a manifest has one kind, and so many values that looking at each is slow
    if int in kinds:
        largest = max(map(abs, inner if kinds == {int} else [v for v in inner if type(v) is int]))
        if largest >= 2**63:
            raise ValueError(f"{str(largest)[:20]}... is too large a number")
    for deeper in inner if kinds & {dict, list} else ():
        if isinstance(deeper, dict | list):
            _check_depth(deeper, levels - 1)


def part_of(path: Path, end: str = "") -> Path:
    """What this process writes first, beside `path`. The name tells the process, and is never too long for a file."""
    name = os.fsdecode(os.fsencode(path.name)[:200])
    return path.with_name(f".{name}.{os.getpid()}{end}{PART}")


def no_links(path: str, flags: int) -> int:
    """An `opener` for files of ours: it writes to the file itself, never to what a link or a pipe leads to.

    Raises:
        OSError: there is something else; its `strerror` says so.
    """
    if os.path.islink(path):
        raise OSError(errno.ELOOP, "it is a link; remove it", path)
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a file; remove it", path)
    return descriptor


def write_atomic(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Writes a whole file or nothing: to a temporary file beside it, which is then renamed.

    Args:
        durable: wait until the data is on the disk; not needed for files that can be made again.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    temporary = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb", opener=no_links) as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            if durable:
                os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror})") from e
    except UnicodeEncodeError as e:  # a file's name may have any bytes
        broken = e.object[max(0, e.start - 40) : e.end + 40]
        raise UserError(f"{path}: cannot be written: {broken!a} is no text; is it a name? Then rename that") from e
    finally:
        with suppress(OSError):  # it is there only after an error, or Ctrl-C
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically. NaN and infinity become null, which every reader can parse."""
    write_atomic(path, json.dumps(finite(value), indent=2, ensure_ascii=False, default=str, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open_regular(path) as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def step_in(name: str) -> int | None:
    """The step in a name as `step-00000500`, of a checkpoint's folder or a picture; None in another name."""
    found = re.fullmatch(r"step-([0-9]{8,13})", name)
    return int(found[1]) if found else None


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for the leaves of a nested dict; dicts in a list have their place in it as key."""
    for key, value in tree.items():
        if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            value = {str(place): v for place, v in enumerate(value)}
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def finite(value: Any) -> Any:
    """A copy of a JSON-like tree with None in place of NaN and infinity."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not (float("-inf") < value < float("inf")) else value
