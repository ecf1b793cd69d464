"""Files of a place where shards lie, be it a folder or an address (object storage, a web server, the Hub).

Requests go through fsspec's file systems. A request that fails is made again, after a pause that grows; one that can
never succeed, or has failed for too long, is a sentence with the address. No request waits without end.
"""

import errno
import io
import itertools
import logging
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self, TypeVar
from urllib.parse import quote

from dist_sketch.core.config import DataConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import LARGE, open_regular, read_regular
from dist_sketch.core.places import Address, Place

T = TypeVar("T")
IN_FLIGHT = 16  # requests of a process at once
BLOCK = 2**23  # bytes of the largest request
GAP = 2**16  # bytes between two ranges that are fetched with them, because another request takes longer
REQUEST_S = 30.0  # for one request
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0  # between two tries
UNKNOWN_S = 20.0  # the most patience with a server that has never answered: its name is more likely wrong
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "https": "aiohttp", "http": "aiohttp", "hf": "huggingface_hub"}
CREDENTIALS = {
    "s3": "AWS_PROFILE or ~/.aws/credentials; FSSPEC_S3_ANON=true for public data",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS; FSSPEC_GS_TOKEN=anon for public data",
    "hf": "HF_TOKEN or `hf auth login`",
}


class NoAnswer(UserError):
    """A store refuses a request, or has not answered for too long."""


class Access(NamedTuple):
    """How an address is read; a folder needs none of it."""

    cache_mb: float = 4000.0  # of this node's disk, for what was fetched
    patience_s: float = 120.0  # longest time without success; 0: for ever

    @classmethod
    def of(cls, data: DataConfig) -> Self:
        """As a run's settings say."""
        return cls(data.cache_mb, data.stall_timeout_s)


class Range(NamedTuple):
    """A part of a file."""

    name: str
    offset: int
    length: int


def read_file(place: Place, name: str, most: int = LARGE) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: it is not there, is larger than `most` bytes, or (in a folder) cannot be read.
        NoAnswer: the store at that address refuses, or does not answer.
    """
    return Remote(place).read(name, most) if isinstance(place, Address) else read_regular(place / name, most)


def exists(place: Place, name: str, patience_s: float = Access().patience_s) -> bool:
    """Whether a file is there; NoAnswer if that cannot be found out."""
    try:
        return Remote(place, patience_s).size(name) >= 0 if isinstance(place, Address) else (place / name).is_file()
    except FileNotFoundError:
        return False


def size_of(place: Place, name: str) -> int:
    """Bytes of a file; raises as `read_file` does."""
    return Remote(place).size(name) if isinstance(place, Address) else (place / name).stat().st_size


def has_size(place: Place, name: str, size: int) -> bool:
    """Whether a file is there and has so many bytes; NoAnswer if that cannot be found out."""
    try:
        return size_of(place, name) == size
    except OSError:
        return False


def open_file(place: Place, name: str, patience_s: float = Access().patience_s) -> BinaryIO:
    """Opens a file to be read from its beginning to its end; raises as `read_file` does, also while it is read."""
    if not isinstance(place, Address):
        return open_regular(place / name)
    return io.BufferedReader(_Stream(Remote(place, patience_s), name), BLOCK)


class _Connection(NamedTuple):
    """What one process has of one address: file systems do not survive a fork."""

    system: Any
    pool: ThreadPool  # its threads do not keep a process alive whose requests hang


# Nothing is ever removed: a forked process must not finalize a pool whose threads it does not have.
_connections: dict[tuple[int, Address], _Connection] = {}
_answered: set[Address] = set()  # those that this process, or the one that it was forked from, has had an answer from


class Remote:
    """The files at an address. It may be used by several threads, and by processes that are forked later.

    Args:
        patience_s: how long a request is tried again and again; 0: for ever.
    """

    def __init__(self, address: Address, patience_s: float = Access().patience_s):
        self.address, self.patience_s = address, patience_s or math.inf

    def read(self, name: str, most: int = LARGE) -> bytes:
        """The whole file; raises as `read_file`."""
        size = self.size(name)
        if size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most // 10**6:,} MB", f"{self.address}/{name}")
        parts = self.ranges([Range(name, at, min(BLOCK, size - at)) for at in range(0, size, BLOCK)])
        for part in parts:
            if isinstance(part, OSError):
                raise part
        return b"".join(part for part in parts if isinstance(part, bytes))

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: it is not there.
            NoAnswer: the store refuses, or does not answer.
        """
        found = self._try(name, lambda system: system.info(self._path(name), **self._limit(system)))["size"]
        if found is None:
            raise NoAnswer(f"{self.address}/{name}: the server does not say how long this file is")
        return int(found)

    def names(self) -> list[str] | None:
        """Names of the files there; None for a web server, which has no list of them."""
        if self.address.scheme in ("http", "https"):
            return None
        try:
            found = self._try("", lambda system: system.ls(str(self.address), detail=False, **self._limit(system)))
        except FileNotFoundError:  # object storage has no empty folders
            return []
        return [str(path).rpartition("/")[2] for path in found]

    def send(self, file: Path, name: str) -> None:
        """Uploads a file; raises NoAnswer, or OSError where there is no such place."""
        self._try(name, lambda system: system.put_file(str(file), self._path(name)))

    def remove(self, name: str) -> None:
        """Removes a file, if it is there; raises NoAnswer."""
        with suppress(FileNotFoundError):
            self._try(name, lambda system: system.rm_file(self._path(name)))

    def ranges(self, asked: Sequence[Range]) -> list[bytes | OSError]:
        """The bytes of each range, fewer where the file ends before, or an error where there is no such file.

        Neighbours are fetched together, and several requests are made at once.

        Raises:
            NoAnswer: the store refuses, or does not answer.
        """
        together = joined(asked)
        wholes = [whole for whole, _ in together]
        # A single request needs no other thread
        fetched = self._connection().pool.map(self._range, wholes, 1) if len(wholes) > 1 else map(self._range, wholes)
        found: list[bytes | OSError] = [b""] * len(asked)
        for (whole, numbers), data in zip(together, fetched, strict=True):
            for i in numbers:
                start = asked[i].offset - whole.offset
                found[i] = data if isinstance(data, OSError) else data[start : start + asked[i].length]
        return found

    def _range(self, part: Range) -> bytes | OSError:
        def fetch(system: Any) -> bytes:
            # Without a cache, a file system that has no asynchronous requests reads no more than it is asked for.
            more = self._limit(system) or {"cache_type": "none"}
            end = part.offset + part.length
            data = bytes(system.cat_file(self._path(part.name), start=part.offset, end=end, **more))
            if len(data) > part.length:
                raise NoAnswer(
                    f"{self.address}: the server sends whole files where it is asked for parts of them (it ignores "
                    "Range): copy the shards to a disk, or serve them with another program"
                )
            return data

        try:
            return self._try(part.name, fetch)
        except OSError as e:
            return e

    def _limit(self, system: Any) -> dict[str, Any]:
        """The option that ends a request; file systems without asynchronous requests have limits of their own."""
        return {"timeout": self._request_s} if system.async_impl else {}

    @property
    def _request_s(self) -> float:
        return min(REQUEST_S, self.patience_s)

    def _path(self, name: str) -> str:
        web = self.address.scheme in ("http", "https")
        return f"{self.address}/{quote(name) if web else name}"

    def _connection(self) -> _Connection:
        key = os.getpid(), self.address
        if key not in _connections:
            _connections[key] = _Connection(file_system(self.address, self._request_s), ThreadPool(IN_FLIGHT))
        return _connections[key]

    def _try(self, name: str, request: Callable[[Any], T]) -> T:
        """The result of a request, which is made again until it succeeds, cannot succeed, or the time is over."""
        where, began = f"{self.address}/{name}".rstrip("/"), time.monotonic()
        for number in itertools.count():
            try:
                found = request(self._connection().system)
                _answered.add(self.address)
                return found
            except UserError:
                raise
            except Exception as e:  # each library has its own errors
                if (status := _status(e)) is not None:
                    _answered.add(self.address)
                if status == 404:
                    raise FileNotFoundError(errno.ENOENT, "there is no such file", where) from e
                if status == 416:  # the file ends before this range
                    raise OSError(errno.EINVAL, "it ends before this place", where) from e
                if (why := _refusal(e, status, self.address.scheme)) is not None:
                    raise NoAnswer(f"{where}: {why}") from e
                pause = min(FIRST_PAUSE_S * 2**number, LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
                known = self.address in _answered or self.patience_s == math.inf
                if time.monotonic() - began + pause > (self.patience_s if known else min(UNKNOWN_S, self.patience_s)):
                    tries = f"{number + 1} tries in {time.monotonic() - began:.0f} s, the last: {_short(e)}"
                    more = "start again when it does" if known else "is the address right, and is the server up?"
                    raise NoAnswer(f"{where}: the server does not answer ({tries}); {more}") from e
                time.sleep(pause)
        raise AssertionError


class _Stream(io.RawIOBase):
    """A remote file as a buffered reader wants it."""

    def __init__(self, remote: Remote, name: str):
        self._remote, self._name, self._at = remote, name, 0
        self._size = remote.size(name)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        (data,) = self._remote.ranges([Range(self._name, self._at, length)])
        if isinstance(data, OSError):
            raise data
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def joined(asked: Sequence[Range]) -> list[tuple[Range, list[int]]]:
    """Joins ranges of a file that lie close together, up to `BLOCK` bytes; each with the numbers of its parts."""
    found: list[tuple[Range, list[int]]] = []
    for i in sorted(range(len(asked)), key=lambda i: asked[i]):
        part = asked[i]
        if found:
            whole, numbers = found[-1]
            end = max(whole.offset + whole.length, part.offset + part.length)
            near = part.offset <= whole.offset + whole.length + GAP and end - whole.offset <= BLOCK
            if whole.name == part.name and near:
                found[-1] = Range(whole.name, whole.offset, end - whole.offset), [*numbers, i]
                continue
        found.append((part, [i]))
    return found


def file_system(address: Address, request_s: float) -> Any:
    """fsspec's file system for an address, made for this process. It shall not try again by itself.

    Raises:
        UserError: its package is not installed.
    """
    scheme = address.scheme
    try:
        import fsspec

        # Its threads would print a traceback for each request that a server breaks off
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        kind = fsspec.get_filesystem_class(scheme)
        # The Hub's list of files is kept, because each request needs an entry of it, and such requests are limited.
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": scheme == "hf"}
        if scheme == "s3":
            timeouts = {"connect_timeout": request_s, "read_timeout": request_s, "max_pool_connections": IN_FLIGHT}
            options["config_kwargs"] = timeouts | {"retries": {"total_max_attempts": 1}}
        elif scheme in ("http", "https"):
            # The environment may name a proxy, and ~/.netrc a password
            options["client_kwargs"] = {"trust_env": True, "headers": {"Accept-Encoding": "identity"}}
        system = kind(**options)
    except ImportError as e:
        package = PACKAGES[scheme]
        raise UserError(f"{address}: needs the package {package}: pip install 'dist-sketch[remote]'") from e
    if scheme == "s3":
        system.retries = 1
    return system


def _status(error: BaseException) -> int | None:
    """The HTTP status behind a library's error, if there is one."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause is not None:  # of fsspec's web server, whatever the reason
        return _status(cause)
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        found: Any = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(error, "status", None) or getattr(response, "status_code", None) or getattr(error, "code", None)
    if isinstance(found, int | str) and str(found).isdecimal():
        return int(found)
    if cause is not None and isinstance(error, OSError):  # as s3fs translates botocore's
        return _status(cause)
    return 404 if isinstance(error, FileNotFoundError) else 403 if isinstance(error, PermissionError) else None


def _refusal(error: Exception, status: int | None, scheme: str) -> str | None:
    """Why it is of no use to ask again; None if it may be of use."""
    advice = f"; credentials are looked for in {CREDENTIALS[scheme]}" if scheme in CREDENTIALS else ""
    if "Credential" in type(error).__name__:
        return f"{_short(error)}{advice}"
    if status in (401, 403):
        return f"the server refuses ({status}): this user has no rights to it{advice}"
    if status is not None and 400 <= status < 500 and status not in (408, 409, 425, 429):
        return f"the server refuses ({status}: {_short(error)})"
    if status is None and "certificate" in str(error).lower():
        return f"the server's certificate is not trusted ({_short(error)})"
    return None


def _short(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:  # see `_status`
        error = error.__cause__
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
