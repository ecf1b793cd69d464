"""Processes that work for this one, and leave Ctrl-C to it."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, Literal

from dist_sketch.core.errors import UserError
from dist_sketch.core.signals import signal_on_parent_death


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C is heard at the end of this block. A process that starts in it never hears it."""
    if threading.current_thread() is not threading.main_thread():  # only the main one ever hears it
        yield
        return
    heard: list[int] = []
    # Both are needed: a new process inherits what is blocked, and another thread may get the signal for this one.
    handler = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, handler)
        if heard:
            signal.raise_signal(signal.SIGINT)


class _Pool(ProcessPoolExecutor):
    def submit(self, *call: Any, **more: Any) -> "Future[Any]":
        """Asks for a call. It may start a process, which Ctrl-C would reach as well, even while it still imports."""
        with interrupts_wait():
            return super().submit(*call, **more)


@contextmanager
def workers(
    count: int, method: Literal["fork", "spawn"], begin: Callable[[], object] = int
) -> Iterator[ProcessPoolExecutor]:
    """Yields a pool of processes, which end with this one. If the block ends early, they finish what they have begun.

    Args:
        begin: called in each of them first.

    Raises:
        UserError: one of them was killed.
    """
    pool = _Pool(count, get_context(method), _begin, (begin,))
    try:
        yield pool
    except BrokenProcessPool as e:
        raise UserError("a process was killed, mostly because memory is short; try fewer --workers") from e
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(begin: Callable[[], object]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the pool uses it to end the others after one was killed
    signal_on_parent_death(signal.SIGKILL)
    begin()
