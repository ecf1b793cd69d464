"""Jobs of several processes under accelerate's launcher, to be disturbed.

As a program, `python jobs.py HOOK dist-sketch's ARGUMENTS`, it is what the launcher starts in place of the real command
to make the networks tiny.
"""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from support import python_path
from support.forks import shrink, wait_until


class Process(NamedTuple):
    """A process that has the run's folder in its command line."""

    pid: int
    parent: int
    rank: int | None  # a launcher has none; a loader's worker has that of its parent


def processes(run: Path) -> Iterator[Process]:
    """All processes of a job: launcher, ranks, workers of their loaders."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):  # gone meanwhile, or no process
            pid = int(entry.name)
            if str(run).encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                rank = re.search(rb"(?:^|\0)RANK=(\d+)\0", (entry / "environ").read_bytes())
                yield Process(pid, _parent(entry), int(rank[1]) if rank else None)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if _parent(entry) == pid:
                found.append(int(entry.name))
    return found


def _parent(process: Path) -> int:
    return int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])


def last_step(run: Path) -> int:
    """The step of the last whole line of a run's log; 0 before there is one."""
    with suppress(OSError, IndexError, ValueError):
        return int(json.loads((run / "metrics.jsonl").read_bytes().split(b"\n")[-2])["step"])
    return 0


class Job:
    """`accelerate launch ... PROGRAM ARGUMENTS --out RUN` on CPUs, in a group of processes of its own."""

    def __init__(self, run: Path, *arguments: object, program: tuple[str, ...] = ("-m", "dist_sketch"), ranks: int = 2):
        from torch.distributed.elastic.utils.distributed import get_free_port

        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(ranks)]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(get_free_port())]
        command += [*program, *map(str, arguments), "--out", str(run)]
        env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}
        self.run, self.started = run, time.monotonic()
        self._prints = [run.with_name(f"{run.name}.{time.monotonic_ns()}.{kind}") for kind in ("out", "err")]
        with open(self._prints[0], "wb") as out, open(self._prints[1], "wb") as err:
            self.launcher = subprocess.Popen(command, stdout=out, stderr=err, env=env, start_new_session=True)

    def printed(self) -> tuple[str, str]:
        """Standard output and error of all its processes so far."""
        out, err = (p.read_text(encoding="utf-8") for p in self._prints)
        return out, err

    def pids(self) -> list[int]:
        """The process ids of the ranks, in their order; of those that have been started and live."""
        of_rank = {p.rank: p.pid for p in processes(self.run) if p.parent == self.launcher.pid and p.rank is not None}
        return [of_rank[rank] for rank in sorted(of_rank)]

    def wait_for(self, holds: Callable[[], bool], what: str) -> None:
        """Waits for something that this job does."""

        def holds_in_time() -> bool:
            assert self.launcher.poll() is None, f"the job ended before {what}\n{self.printed()[1]}"
            return holds()

        wait_until(holds_in_time, what, lambda: self.printed()[1])

    def gone(self) -> float:
        """Waits until nothing is left of it: no rank waits `train.rank_timeout_s` for another. Returns the seconds."""
        started = time.monotonic()
        wait_until(lambda: self.launcher.poll() is not None, "the launcher's end", lambda: self.printed()[1])
        wait_until(lambda: not any(processes(self.run)), "the job's end", lambda: str([*processes(self.run)]))
        return time.monotonic() - started

    def kill(self) -> None:
        """Kills all of it at once."""
        for process in list(processes(self.run)):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.launcher.wait()


def with_tiny_networks(hook: tuple[object, ...] = ("", "")) -> tuple[str, ...]:
    """The `program` of a job whose networks are tiny.

    Args:
        hook: module, name and arguments of a function that each rank calls before it starts.
    """
    return __file__, json.dumps(list(map(str, hook)))


def _main(hook: str) -> None:
    """Calls the hook (JSON), then runs the command.

    The imports for the tiny networks wait until the process listens to signals, as in the real command.
    """
    from dist_sketch.__main__ import main
    from dist_sketch.core.signals import StopRequest

    listen = StopRequest.listen

    def listen_first(self: StopRequest, *numbers: signal.Signals, **more: Any) -> None:
        StopRequest.listen = listen  # type: ignore[method-assign]
        listen(self, *numbers, **more)
        shrink()
        module, name, *arguments = json.loads(hook)
        if module:
            getattr(importlib.import_module(module), name)(*arguments)

    StopRequest.listen = listen_first  # type: ignore[method-assign]
    main()


if __name__ == "__main__":
    _main(sys.argv.pop(1))
