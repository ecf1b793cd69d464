"""Files: reading with clear errors, writing whole files or nothing, finding presets by name."""

import hashlib
import json
import os
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from dist_sketch.core.errors import UserError


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        UserError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: is not valid TOML: {e}") from e


def find_file(folder: Literal["launch", "shards", "slurm"], name: str, suffix: str = ".toml") -> Path:
    """Finds a preset, recipe or script that the user names, by path or else by name.

    Names are searched in the installed package and in the repository's folder.

    Raises:
        UserError: there is no such file; the message lists the names that exist.
    """
    if Path(name).suffix == suffix and Path(name).is_file():
        return Path(name)
    for home in homes(folder):
        if (home / f"{name}{suffix}").is_file():
            return home / f"{name}{suffix}"
    # Experiments have a prefix and are listed by `dist-sketch experiment`.
    found = {p.stem for h in homes(folder) for p in h.glob("*" + suffix)}
    names = sorted(n for n in found if not n.startswith("experiment-"))
    raise UserError(f"{name}: neither a {suffix} file nor a name in {folder}/ (there: {', '.join(names)})")


def homes(folder: Literal["launch", "shards", "slurm"]) -> tuple[Path, Path]:
    """Folders of files that users name: the installed package's copy, and the repository's (editable install)."""
    package = Path(__file__).resolve().parents[1]
    return package / "files" / folder, package.parent / folder


def read_json(path: Path, default: Any = ...) -> Any:
    """Reads a JSON file that dist_sketch has written; a missing one gives `default`, if there is a default.

    Raises:
        UserError: it is missing or damaged.
    """
    if default is not ... and not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except ValueError as e:
        raise UserError(f"{path}: is not valid JSON: {e}") from e


def write_atomic(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Writes a whole file or nothing: to a temporary file beside it, which is then renamed.

    Args:
        durable: wait until the data is on the disk; not needed for files that can be made again.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            if durable:
                os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        with suppress(OSError):  # fails on a read-only disk
            temporary.unlink()
        raise UserError(f"{path}: cannot be written ({e.strerror})") from e


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically. NaN and infinity become null, which every reader can parse."""
    write_atomic(path, json.dumps(finite(value), indent=2, ensure_ascii=False, default=str, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for the leaves of a nested dict."""
    for key, value in tree.items():
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
