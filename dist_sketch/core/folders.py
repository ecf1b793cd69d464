"""Folders that commands write: whether they may, new contents whole or not at all, one command at a time."""

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dist_sketch.core.errors import UserError

LOCK, LOGS, PART = ".lock", "logs", ".part"


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
        p.name not in passed_over and not (leftovers and p.suffix == PART) for p in folder.iterdir()
    ):
        raise UserError(f"{folder}: exists and is not {what}; choose another --out")


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder` that takes its place when the block ends without an error.

    Until then `folder` stays as it was; if the last step fails, it is put back.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    folder = Path(os.path.realpath(folder))  # it gets siblings, which "." and links do not have
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}{end}{PART}") for end in ("", ".old"))
    try:
        new.mkdir(parents=True)
        yield new
        sync(new)
        had_one = folder.is_dir()
        if had_one:
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            if had_one:
                os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


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
        with suppress(OSError):  # if the disk is broken, a later write will report it
            shutil.rmtree(part) if part.is_dir() else part.unlink()


class Lock:
    """Keeps other processes out of a folder, from `acquire` until this process ends."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._file: IO[str] | None = None

    def acquire(self, wait_s: float = 30.0) -> None:
        """Takes the lock; waits up to `wait_s` seconds for a process that is just ending.

        Raises:
            UserError: another process holds it, or the folder cannot be written.
        """
        path, started = self._folder / LOCK, time.monotonic()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - stays open until the process ends
        except OSError as e:
            raise UserError(f"{path}: cannot be written ({e.strerror})") from e
        while True:
            try:
                # Not flock: loader workers that outlive a killed run would inherit it.
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError) as e:
                self._file.seek(0)
                holder = self._file.read().strip() or "another process"
                if time.monotonic() - started > wait_s:
                    raise UserError(f"{self._folder}: {holder} is at work in it; wait for its end, or stop it") from e
                time.sleep(0.1)
            except OSError:
                return  # this file system has no locks
        with suppress(OSError):  # the name is only for messages, so a full disk does not matter
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()
