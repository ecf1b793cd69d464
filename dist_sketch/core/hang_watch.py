"""Notices that a run makes no progress, and says on which rank, where, and since when.

A thread of each rank looks at what the rank last noted that it does. When that stays the same for too long, the rank
writes it and its Python stacks to standard error, which is its log. A second thread tells it to the other ranks,
through the store at which they met: a rank that is stopped, or whose machine is gone, tells nothing any more.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NamedTuple

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import parse_json, read_json, write_json

FILE = "hang.json"  # in the run's folder, from when a rank hangs until it goes on: {"time", "text"}
PIPE = "TORCH_NCCL_DEBUG_INFO_PIPE_FILE"  # where torch listens for a request to write what NCCL did
LOOKS = 8  # in the time after which a rank is said to hang
LONGEST_PAUSE_S = 10.0  # between two looks
JOIN_S = 5.0  # how long the end waits for the thread, which may be writing to a disk that hangs
SILENT = 4  # pauses without a word, after which a rank is said not to answer


def record_collectives(out: Path) -> None:
    """Switches NCCL's flight recorder on, before the ranks meet; what the environment says already stays as it is.

    It keeps each rank's last operations between GPUs, and writes them to OUT/nccl-N when one takes too long, or when a
    rank hangs. torch's `torchfrtrace` reads these files.
    """
    files = {"TORCH_FR_DUMP_TEMP_FILE": str(out / "nccl-"), PIPE: str(Path(gettempdir()) / f"nccl-{os.getppid()}-")}
    for name, value in {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1", **files}.items():
        os.environ.setdefault(name, value)


class Doing(NamedTuple):
    """What a rank does. All ranks note the same things in the same order, so the number says who is behind."""

    number: int
    what: str
    since: float  # time.monotonic()


class Heard(NamedTuple):
    """What another rank has told last."""

    beat: int
    number: int
    what: str
    waits_s: float
    host: str
    at: float  # time.monotonic() of this rank


class HangWatch:
    """Watches this rank from a thread until `close`.

    Args:
        out: the run's folder.
        after_s: how long a rank may make no progress; 0: nothing is watched.
    """

    def __init__(self, out: Path, rank: int, world_size: int, after_s: float):
        self._out, self._rank, self._world_size, self._after_s = out, rank, world_size, after_s
        self._host, self._pause_s = socket.gethostname(), min(after_s / LOOKS, LONGEST_PAUSE_S)
        self._doing = Doing(0, "the start", time.monotonic())
        self._told: Doing | None = None  # what was told as a hang, until it goes on
        self._heard: dict[int, Heard] = {}
        self.alarm: Callable[[str], None] = lambda text: None
        """Is also called with what is said about a hang, on the rank that writes it down."""
        self._over = threading.Event()
        self._watching: threading.Thread | None = None
        if after_s:
            self._take_back()
            self._watching = self._begin(self._watch)
            if world_size > 1:
                self._begin(self._exchange)

    def note(self, what: str) -> None:
        """This rank goes on, with `what`."""
        self._doing = Doing(self._doing.number + 1, what, time.monotonic())

    def still(self) -> None:
        """This rank goes on with the same; to be called in work that only some of the ranks do."""
        self._doing = self._doing._replace(since=time.monotonic())

    def close(self) -> None:
        """Ends the watch. A rank that hangs to the end leaves the file as it is."""
        self._over.set()
        if self._watching is not None:
            self._watching.join(JOIN_S)
        self._has_gone_on()

    def _begin(self, work: Callable[[], None]) -> threading.Thread:
        def safely() -> None:
            try:
                work()
            except Exception as e:  # such as a disk that is full: to watch a run must not end it
                if not self._over.is_set():
                    self._say(f"warning: ranks that hang are no longer noticed here ({type(e).__name__}: {e})")

        thread = threading.Thread(target=safely, daemon=True)
        thread.start()
        return thread

    def _say(self, text: str) -> None:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{now} rank {self._rank} on {self._host}: {text}", file=sys.stderr, flush=True)

    def _watch(self) -> None:
        while not self._over.wait(self._pause_s):
            doing = self._doing
            waits_s = time.monotonic() - doing.since
            self._has_gone_on()
            if waits_s >= self._after_s and self._told is None:
                self._told = doing
                self._say(f"no progress for {waits_s:.0f} s in: {doing.what}. The Python stacks of this rank:")
                faulthandler.dump_traceback(sys.stderr)
                self._ask_nccl()
                if not self._over.wait(SILENT * self._pause_s):  # the others look at other moments
                    self._name_the_late(doing)

    def _ask_nccl(self) -> None:
        """Has NCCL's flight recorder write down the last operations between the ranks' GPUs, if there are any."""
        pipe = f"{os.environ.get(PIPE, '')}{self._rank}.pipe"
        with suppress(OSError):  # gloo has none
            waker = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            os.write(waker, b"1")
            os.close(waker)

    def _has_gone_on(self) -> None:
        """Says so, and takes the file back, if this rank has gone on since it hung."""
        if self._told not in (None, self._doing):
            self._told = None
            self._say(f"goes on: {self._doing.what}")
            self._take_back()

    def _take_back(self) -> None:
        with suppress(OSError):  # a disk that refuses shows elsewhere; to watch a run must not end it
            if (self._out / FILE).exists():
                (self._out / FILE).unlink()

    def _name_the_late(self, own: Doing) -> None:
        """The first rank that answers writes down which ranks have not come, or do not answer."""
        oldest = time.monotonic() - SILENT * self._pause_s
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        silent = {rank for rank in others if rank not in self._heard or self._heard[rank].at < oldest}
        if self._doing != own or any(rank not in silent for rank in range(self._rank)):
            return
        lines = []
        for rank in others:
            last = self._heard.get(rank)
            place = f"rank {rank} on {last.host}" if last else f"rank {rank}"
            if rank in silent:
                word = last.what if last else "none"
                lines.append(f"{place} does not answer (it is stopped, or its machine is gone); its last word: {word}")
            elif last and last.number < own.number:
                lines.append(f"{place} has not come; it has been for {last.waits_s:.0f} s at: {last.what}")
        if not lines:
            lines = ["the stacks in the logs of all ranks say what they wait for"] if others else []
        text = "; ".join([f"no progress for {time.monotonic() - own.since:.0f} s in: {own.what}", *lines])
        self._say(text)
        write_json(self._out / FILE, {"time": round(time.time(), 3), "text": text})
        self.alarm(text)

    def _exchange(self) -> None:
        """Tells the others what this rank does, and hears them while it waits. It hangs if the store does."""
        # Not above, because `dist-sketch logs` needs no torch
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # A connection of its own, because the main thread uses the first one.
        store = TCPStore(address, port, timeout=timedelta(seconds=self._after_s), wait_for_workers=False)
        beat = 0
        while not self._over.wait(self._pause_s):
            doing, beat = self._doing, beat + 1
            waits_s = time.monotonic() - doing.since
            told = [beat, doing.number, doing.what, waits_s, self._host]
            store.set(f"doing/{self._rank}", json.dumps(told))
            if waits_s >= self._after_s / 2:
                for rank in range(self._world_size):
                    if rank != self._rank and store.check([f"doing/{rank}"]):
                        self._hear(rank, parse_json(store.get(f"doing/{rank}").decode()))

    def _hear(self, rank: int, told: list[Any]) -> None:
        if rank not in self._heard or self._heard[rank].beat != told[0]:
            self._heard[rank] = Heard._make([*told, time.monotonic()])


def read_hang(run: Path) -> str:
    """Which ranks of a run hang, and where; empty if none is known to."""
    try:
        found = read_json(run / FILE)
    except UserError:  # there is none, or it is damaged: it is only a hint
        return ""
    text = found.get("text") if isinstance(found, dict) else None
    return text if isinstance(text, str) else ""
