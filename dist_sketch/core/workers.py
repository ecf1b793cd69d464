"""Processes that work for this one, and leave Ctrl-C to it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from typing import Any, Literal

from dist_sketch.core.errors import SharedError, UserError

MOST = 256  # with more, a machine has no time left for anything else


def check_count(count: int | None, least: int) -> None:
    """Refuses a wrong number of processes; None leaves it to the command.

    Raises:
        SharedError: says which numbers are possible.
    """
    if count is not None and not least <= count <= MOST:
        raise SharedError(f"--workers {count}: must be {least} to {MOST}")


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

    def __exit__(self, *_: object) -> None:
        with interrupts_wait():  # a second Ctrl-C would leave processes behind that wait for work
            self.shutdown(cancel_futures=True)


@contextmanager
def starting(what: str, instead: str) -> Iterator[None]:
    """Processes are started in this block.

    Args:
        what: names them, in the sentence for the user.
        instead: what to try if they cannot be started.

    Raises:
        UserError: they cannot be started.
    """
    try:
        yield
    except (OSError, ImportError, NotImplementedError, BrokenProcessPool) as e:  # their locks need a little of /dev/shm
        for process in active_children():  # else this process would wait for them at its end
            process.kill()
        raise UserError(
            f"{what} cannot be started ({e}); is /dev/shm full or missing, or memory short? Mend that, or use {instead}"
        ) from e


@contextmanager
def workers(
    count: int, method: Literal["fork", "spawn"], instead: str, begin: Callable[[], object] = int
) -> Iterator[ProcessPoolExecutor]:
    """Yields a pool of processes, which end with this one. If the block ends early, they finish what they have begun.

    Args:
        instead: what a user can try if they cannot be started.
        begin: called in each of them first.

    Raises:
        UserError: they cannot be started, or one of them was killed.
    """
    what = f"{count} processes that share the work"
    with starting(what, instead):
        pool = _Pool(count, get_context(method), _begin, (begin,))
    with pool:
        with starting(what, instead):
            for begun in [pool.submit(int) for _ in range(count)]:
                begun.result()
        try:
            yield pool
        except BrokenProcessPool as e:
            raise UserError("a process was killed, mostly because memory is short; try fewer --workers") from e


def _begin(begin: Callable[[], object]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the pool uses it to end the others after one was killed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begin()


def _end_with_parent() -> None:
    """Ends this process when the one that has started it is gone, or was gone before this began."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
