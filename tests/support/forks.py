"""Runs of the command line without the seconds that its imports take: a server that has them forks a process a run.

Such a process is like any other: it has its own signals, its own output files, and can be killed. The server has
one thread and has computed nothing, so that what is forked is as good as new.
"""

import atexit
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from support import python_path

TIMEOUT_S = 300.0  # for whatever is waited for: a busy machine is no fault


class Ended(NamedTuple):
    """A process that has ended."""

    code: int  # negative: the signal that ended it
    out: str
    err: str


class Forks:
    """A server in a process of its own; `close` kills whatever of it still lives.

    Args:
        module: of the hooks, functions that a run calls before it starts.
        logs: folder for what the processes print.
    """

    def __init__(self, module: str, logs: Path):
        code = f"from support import forks; forks.serve({module!r})"
        self._server = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        )
        self._logs, self._started = logs, 0
        self._prints: dict[int, tuple[Path, Path]] = {}
        self._lock = threading.RLock()

    def start(
        self, *arguments: object, hook: tuple[Any, ...] = (), group: int = 0, err: Path | None = None, **env: str
    ) -> int:
        """Starts `dist-sketch ARGUMENTS`; returns the process id.

        Args:
            hook: name of a function of the module, and its arguments, which it gets as strings.
            group: of processes, to join; 0: one of its own.
            err: file for its standard error, which several processes may share.
            env: variables beside this process's own.
        """
        with self._lock:
            self._started += 1
            out, err = self._logs / f"{self._started:04d}.out", err or self._logs / f"{self._started:04d}.err"
            out.touch()
            err.touch()
            request = {"arguments": list(map(str, arguments)), "prints": [str(out), str(err)]}
            pid: int = self._ask({**request, "hook": list(map(str, hook)), "group": group, "env": env})
            self._prints[pid] = (out, err)
        return pid

    def poll(self, pid: int) -> int | None:
        """The exit code (negative: a signal) of a process that has ended; None before."""
        return self._ask({"poll": pid})

    def wait(self, pid: int) -> Ended:
        """Waits for a process's end."""
        code: list[int] = []

        def ended() -> bool:
            found = self.poll(pid)
            if found is not None:
                code.append(found)
            return found is not None

        wait_until(ended, f"the end of process {pid}", lambda: self.printed(pid)[1])
        return Ended(code[0], *self.printed(pid))

    def run(self, *arguments: object, hook: tuple[Any, ...] = (), **env: str) -> Ended:
        """`start` and `wait`."""
        return self.wait(self.start(*arguments, hook=hook, **env))

    def start_ranks(
        self,
        world: int,
        *arguments: object,
        hooks: dict[int, tuple[Any, ...]] | None = None,
        err: Path | None = None,
        **env: str,
    ) -> list[int]:
        """Starts a process a rank, all in one group (that of the first): they find each other, there is no launcher."""
        from torch.distributed.elastic.utils.distributed import get_free_port

        port, pids = str(get_free_port()), []
        for rank in range(world):
            of_rank = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), **env}
            of_rank |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            hook, group = (hooks or {}).get(rank, ()), pids[0] if pids else 0
            pids.append(self.start(*arguments, hook=hook, group=group, err=err, **of_rank))
        return pids

    def run_ranks(self, world: int, *arguments: object, **more: Any) -> list[Ended]:
        """`start_ranks` and `wait`."""
        return [self.wait(pid) for pid in self.start_ranks(world, *arguments, **more)]

    def printed(self, pid: int) -> tuple[str, str]:
        """What a process has written to its standard output and error so far."""
        out, err = (p.read_text(encoding="utf-8") for p in self._prints[pid])
        return out, err

    def close(self) -> None:
        """Kills every process that still runs, then the server."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with self._lock:
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            return json.loads(self._server.stdout.readline())


def wait_until(
    holds: Callable[[], bool], what: str, about: Callable[[], str] = lambda: "", timeout_s: float = TIMEOUT_S
) -> None:
    """Returns when `holds()`; fails with `what` and `about()` when it never does."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s\n{about()}"
        time.sleep(0.003)


# ---------------------------------------------------------------- in the server


def serve(module: str) -> None:
    """Answers one request a line of standard input until that ends."""
    pass

    hooks = importlib.import_module(module)
    _shrink()
    gc.freeze()  # collecting garbage would copy the memory that the processes share
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not fork"
    alive: dict[int, int | None] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid = request["poll"]
            if alive[pid] is None:
                found, status = os.waitpid(pid, os.WNOHANG)
                alive[pid] = os.waitstatus_to_exitcode(status) if found else None
            answer = alive[pid]
        else:
            answer = os.fork()
            if not answer:
                _become(request, hooks)
                return
            alive[answer] = None
            with suppress(OSError):  # the process itself does it, too: who is first, nobody knows
                os.setpgid(answer, request["group"])
        print(json.dumps(answer), flush=True)
    for pid, code in alive.items():
        if code is None:
            os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _shrink() -> None:
    """Networks of 8 channels instead of the paper's 512, with all kinds of layers; no search for a noise removal."""
    from torch import nn

    from dist_sketch.model import networks
    from dist_sketch.model.networks import Down, Up
    from dist_sketch.training import closing

    class Generator(nn.Sequential):
        def __init__(self, *, channels: int, dropout: float, norm: Any, **_: Any):
            super().__init__(Down(channels, 8, norm), Up(8, 8, norm, dropout), nn.Conv2d(8, channels, 1), nn.Tanh())

    class Discriminator(networks.Discriminator):
        def __init__(self, *, channels: int, dropout: float, norm: Any, **_: Any):
            nn.Module.__init__(self)
            self.fine = 0.0
            last = (nn.Dropout2d(dropout), nn.Conv2d(8, 1, 3))
            self.layers = nn.Sequential(Down(2 * channels, 8, "none"), Down(8, 8, norm), *last)

    networks.Generator = Generator  # type: ignore[misc, assignment]
    networks.Discriminator = Discriminator  # type: ignore[misc]
    closing.PAIRS = 1


def launched(hook: str) -> None:
    """In a process that a launcher has started: the hook (JSON), then the command line.

    The networks are made small when the process listens to signals, as early as in the real command.
    """
    from dist_sketch.__main__ import main
    from dist_sketch.core.signals import StopRequest

    listen = StopRequest.listen

    def listen_first(self: StopRequest, *numbers: signal.Signals, **more: Any) -> None:
        StopRequest.listen = listen  # type: ignore[method-assign]
        listen(self, *numbers, **more)
        _shrink()
        module, name, *arguments = json.loads(hook)
        if module:
            getattr(importlib.import_module(module), name)(*arguments)

    StopRequest.listen = listen_first  # type: ignore[method-assign]
    main()


def _become(request: dict[str, Any], hooks: Any) -> None:
    """The rest of a forked process's life."""
    from dist_sketch.__main__ import main

    os.setpgid(0, request["group"])
    for descriptor, path in ((0, os.devnull), (1, request["prints"][0]), (2, request["prints"][1])):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.update(request["env"])
    sys.argv = ["dist-sketch", *request["arguments"]]
    if request["hook"]:
        name, *arguments = request["hook"]
        getattr(hooks, name)(*arguments)
    code: Any = 0
    try:
        main()
    except SystemExit as e:
        code = e.code
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not the interpreter's end: it frees each object, which copies all the memory that is shared


if __name__ == "__main__":
    launched(sys.argv.pop(1))
