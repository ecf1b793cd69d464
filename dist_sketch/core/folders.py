"""Folders that commands write: whether they may, new contents whole or not at all, one command at a time."""

import fcntl
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import PART, no_links, part_of
from dist_sketch.core.workers import interrupts_wait

LOCK, LOGS, WANDB = ".lock", "logs", "wandb"
WAIT_S = 30.0  # for a process that is just ending
# The names of `part_of`, and a checkpoint that is being removed
OUR_PART = re.compile(r"\.(?:.+\.(\d{1,9})(?:\.old)?|step-\d+)" + re.escape(PART), re.DOTALL)
FILES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".pdf", ".svg", ".avif", ".heic"),
    *(".tar", ".tgz", ".gz", ".zip", ".html", ".json", ".toml", ".txt", ".csv", ".md", ".pt", ".safetensors"),
)
OUR_LOCK = re.compile(r"process \d+(?: .*)?")


def refuse_foreign(folder: Path, what: str, *marks: str, leftovers: bool = True) -> None:
    """Refuses a folder that somebody else has filled.

    A folder may be used if it is missing or empty, or has one of our files `marks`; with `leftovers` also if it holds
    only what a command of ours leaves when it is killed early: its lock, its logs, a half-written file.

    Raises:
        UserError: `folder` is a file, or holds anything else; the message says that it is not `what`.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_dir() and any((folder / mark).exists() for mark in marks):
        return
    passed_over = (LOCK, LOGS) if leftovers else ()
    if not folder.is_dir() or any(
        p.name not in passed_over and not (leftovers and OUR_PART.fullmatch(p.name)) for p in folder.iterdir()
    ):
        raise UserError(f"{folder}: exists and is not {what}; choose another --out")


def refuse_file_name(folder: Path, what: str) -> None:
    """Refuses to make a folder whose name ends like a file's: who asks for drawn.png wants no folder.

    Raises:
        UserError: says `what` the path is, and proposes another name.
    """
    if folder.suffix.lower() in FILES and not folder.is_dir():
        raise UserError(f"{folder}: {what}, not a file; choose a name such as {folder.with_suffix('')}")


def refuse_others(folder: Path, what: str, ours: Iterable[str]) -> None:
    """Refuses to remove a folder that holds, beside `what`, files of somebody else.

    Args:
        ours: names that may be there; the lock, W&B's files and half-written files may be there, too.

    Raises:
        UserError: there is something else.
    """
    known = {LOCK, WANDB, *ours}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in known and not OUR_PART.fullmatch(path.name):
            raise UserError(f"{path}: is not part of {what}, and would be lost; move it away, or choose another --out")


@contextmanager
def replaced(folder: Path, look: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yields an empty folder beside `folder` that takes its place when the block ends without an error.

    Until then `folder` stays as it was; if the last step fails, it is put back. The lock and W&B's files in `folder`
    are kept.

    Args:
        look: looks at the last moment whether `folder` may still be replaced, and raises UserError if not.

    Raises:
        UserError: somebody else works in `folder`, or has removed the new one.
        OSError: the disk is full or cannot be written.
    """
    folder = Path(os.path.realpath(folder))  # it gets siblings, which "." and links do not have
    new, old = part_of(folder), part_of(folder, ".old")
    _remove_left(new)
    try:
        new.mkdir(parents=True)
        made = os.open(new, os.O_RDONLY)  # while this is open, no other folder gets its number on the disk
        try:
            with suppress(OSError):  # this file system has no locks for folders
                fcntl.flock(made, fcntl.LOCK_SH)  # says that it is in use, also to other machines
            yield new
            if not (new.is_dir() and os.path.samestat(os.fstat(made), new.stat())):
                raise UserError(f"{new}: was removed by another process before it was complete; start this again")
        finally:
            os.close(made)
        sync(new)
        with _one_at_a_time(folder.parent), Lock(folder) as lock:
            look()
            if (folder / LOCK).exists():
                lock.acquire()
            with interrupts_wait():
                _exchange(new, folder, old)
    finally:
        with interrupts_wait():
            shutil.rmtree(new, ignore_errors=True)


def _remove_left(new: Path) -> None:
    """Removes what killed commands left that were making the same folder. Never an `.old`: it may be the only copy."""
    begin = new.name.removesuffix(f"{os.getpid()}{PART}")
    for part in new.parent.glob(f".*{PART}"):
        pid = part.name.removeprefix(begin).removesuffix(PART)
        if not (part.name.startswith(begin) and re.fullmatch(r"\d{1,9}", pid)) or _lives(int(pid)) or part.is_symlink():
            continue
        with suppress(OSError):  # also if a process of another machine has locked it
            left = os.open(part, os.O_RDONLY)
            try:
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(part)
            finally:
                os.close(left)


def _exchange(new: Path, folder: Path, old: Path) -> None:
    """Puts `new` in the place of `folder`, by way of `old`."""
    try:
        if folder.is_dir():
            os.replace(folder, old)
        os.replace(new, folder)
    except BaseException:
        if old.is_dir() and not folder.exists():
            os.replace(old, folder)
        raise
    for kept in (LOCK, WANDB):
        if os.path.lexists(old / kept):
            os.replace(old / kept, folder / kept)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Lets one process at a time replace something in a folder, where its file system has locks for folders."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Waits until the disk has a file, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tidy(folder: Path) -> None:
    """Removes what killed processes left half written in a folder; only for the holder of its lock."""
    for part in (*folder.glob(f".*{PART}"), *folder.glob(f"*/.*{PART}")):
        if (name := OUR_PART.fullmatch(part.name)) is None or (name[1] and _lives(int(name[1]))):
            continue
        if part.parent != folder and part.parent.is_symlink():  # what a link leads to is not ours
            continue
        with suppress(OSError):  # if the disk is broken, a later write will report it
            shutil.rmtree(part) if part.is_dir() else part.unlink()


def _lives(pid: int) -> bool:
    """Whether another process has this number: a command that needs no lock, such as an export into a run."""
    if pid == os.getpid():  # this process has written nothing yet: an earlier one had its number
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Lock:
    """Keeps other processes out of a folder, from `acquire` to `close`, or until this process ends."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._file: IO[str] | None = None

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def acquire(self, wait_s: float | None = None, *, shared: bool = False) -> None:
        """Takes the lock; waits up to `wait_s` seconds (None: WAIT_S) for a process that is just ending.

        Args:
            shared: with others that also share it, as the jobs that draw parts of one output.

        Raises:
            UserError: another process holds it, or the folder cannot be written.
        """
        path, started = self._folder / LOCK, time.monotonic()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Open until `close`, or the end of this process
            self._file = open(path, "a+", encoding="utf-8", errors="replace", opener=no_links)  # noqa: SIM115
        except OSError as e:
            raise UserError(f"{path}: cannot be written ({e.strerror})") from e
        self._file.seek(0)
        text = self._file.read(500)
        if not ("process ".startswith(text) or OUR_LOCK.fullmatch(text)):  # a full disk or a kill may have cut it
            raise UserError(f"{path}: is not a lock of dist_sketch, and would be overwritten; move it away")
        while True:
            try:
                # Not flock: loader workers that outlive a killed run would inherit it.
                # Its first byte stands for the folder, the second is for `turn`.
                fcntl.lockf(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB, int(shared))
                break
            except (BlockingIOError, PermissionError) as e:
                self._file.seek(0)
                holder = self._file.read().strip() or "another process"
                if time.monotonic() - started > (WAIT_S if wait_s is None else wait_s):
                    raise UserError(f"{self._folder}: {holder} is at work in it; wait for its end, or stop it") from e
                time.sleep(0.1)
            except OSError:
                return  # this file system has no locks
        with suppress(OSError):  # the name is only for messages, so a full disk does not matter
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Lets one at a time of those that share the lock do something."""
        assert self._file is not None
        with suppress(OSError):  # this file system has no locks
            fcntl.lockf(self._file, fcntl.LOCK_EX, 1, 1)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, 1)

    def close(self) -> None:
        """Lets others in."""
        if self._file is not None:
            self._file.close()
            self._file = None
