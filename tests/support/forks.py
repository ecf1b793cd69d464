"""Runs commands without the seconds that their imports take.

A server has imported the whole package; it forks a process for each command. Such a process is like any other: it has
its own signals, output files, environment and working directory, and can be killed. The server has one thread and has
computed nothing, so a forked process starts as a new interpreter would.

All processes of a server share one seed of Python's hashes, and choose the noise removal at the end of a training on
PAIRS pairs: on as many as in earnest it takes five times as long as such a training itself. Tests whose subject are
interpreters, launchers or imports start real ones.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from support import python_path

PAIRS = 2
TIMEOUT_S = 300.0  # for anything that is waited for: generous, because the machine may be busy
# Beside dist_sketch's own modules: what these import only when it is needed, and what the hooks' modules import
PRELOADED = ("conftest", "matplotlib.figure", "scipy.linalg", "scipy.stats", "skimage.metrics", "typeguard")


class Ended(NamedTuple):
    """A process that has ended."""

    code: int  # negative: the signal that ended it
    out: str
    err: str


# ---------------------------------------------------------------- requests to the server


@cache
def address() -> str:
    """Address of this process's server, which is started by the first call and ends with this process."""
    found = Path(tempfile.mkdtemp(prefix="forks-")) / "socket"  # short: the path of a socket has at most 107 characters
    server = subprocess.Popen(
        [sys.executable, "-c", f"from support import forks; forks.serve({str(found)!r})"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert server.stdin is not None
    atexit.register(server.wait)
    atexit.register(server.stdin.close)  # runs before the wait; without its input the server ends
    wait_until(lambda: found.exists() or server.poll() is not None, "the start of the server")
    if not found.exists():
        shutil.rmtree(found.parent)
        raise AssertionError("the server did not start; standard error says why")
    return str(found)


def ask(address: str, request: dict[str, Any], descriptors: list[int] | None = None) -> Any:
    """The server's answer. `preloaded` repeats these lines because it must not import this module, which is slow."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(address)
        socket.send_fds(caller, [json.dumps(request).encode() + b"\n"], descriptors or [])
        return json.loads(caller.makefile().readline())


def fork(
    prints: tuple[Path, Path],
    *,
    arguments: tuple[object, ...] = (),
    call: tuple[object, ...] = (),
    tiny: bool = False,
    group: int = 0,
    cwd: Path | None = None,
    env: Mapping[str, str] = os.environ,
) -> int:
    """Has the server fork a process; returns its id.

    Args:
        prints: files for its standard output and error; it appends to them.
        arguments: of `dist-sketch`.
        call: module, name and arguments (which become strings) of a function to call before the command line; if there
            are no `arguments`, in its place.
        tiny: whether networks are tiny, see `shrink`.
        group: of processes, to join; 0: a new one.
        env: all its variables.
    """
    request = {"arguments": list(map(str, arguments)), "call": list(map(str, call)), "tiny": tiny, "group": group}
    with open(prints[0], "ab") as out, open(prints[1], "ab") as err:
        descriptors = [out.fileno(), err.fileno()]
        pid: int = ask(address(), {**request, "cwd": str(cwd or Path.cwd()), "env": dict(env)}, descriptors)
    return pid


def poll(pid: int) -> int | None:
    """The exit code (negative: a signal) of a process that has ended; None before."""
    code: int | None = ask(address(), {"poll": pid})
    return code


def wait(pid: int, timeout_s: float = TIMEOUT_S) -> int:
    """Waits for a process's end; returns its exit code (negative: a signal).

    Raises:
        subprocess.TimeoutExpired: it did not end in time.
    """
    if (code := poll(pid)) is None:
        opened = os.pidfd_open(pid)  # valid also if the process has just ended: the next poll is what removes it
        try:
            select.select([opened], [], [], max(0.0, timeout_s))
        finally:
            os.close(opened)
        code = poll(pid)
    if code is None:
        raise subprocess.TimeoutExpired(f"process {pid}", timeout_s)
    return code


def kill(pid: int) -> None:
    """Kills a process if it still runs, and waits for its end."""
    if poll(pid) is None:
        os.kill(pid, signal.SIGKILL)
        wait(pid)


def run(
    folder: Path, *arguments: object, cwd: Path | None = None, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """`dist-sketch ARGUMENTS` to its end, with the real networks; `folder` gets what it prints."""
    prints = folder / "out", folder / "err"
    code = wait(fork(prints, arguments=arguments, cwd=cwd, env=env), 600)
    return subprocess.CompletedProcess(arguments, code, *(p.read_text(encoding="utf-8") for p in prints))


def run_ranks(folder: Path, world: int, *arguments: object, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """As `run`, on `world` processes that work together; the exit code is the first that is not 0."""
    prints = folder / "out", folder / "err"
    pids = [fork(prints, arguments=arguments, env={**env, **place}) for place in places(world)]
    try:
        codes = [wait(pid, 600) for pid in pids]
    finally:
        for pid in pids:
            kill(pid)
    code = next(filter(None, codes), 0)
    return subprocess.CompletedProcess(arguments, code, *(p.read_text(encoding="utf-8") for p in prints))


class Forks:
    """Processes with tiny networks; `close` kills those that still live.

    Args:
        module: of the hooks, functions that a run calls before it starts.
        logs: folder for what the processes print.
    """

    def __init__(self, module: str, logs: Path):
        self._module, self._logs = module, logs
        self._prints: dict[int, tuple[Path, Path]] = {}

    def start(
        self, *arguments: object, hook: tuple[Any, ...] = (), group: int = 0, err: Path | None = None, **env: str
    ) -> int:
        """Starts `dist-sketch ARGUMENTS`; returns the process id.

        Args:
            hook: name of a function of the module, and its arguments, which it gets as strings.
            group: of processes, to join; 0: a new one.
            err: file for its standard error, which several processes may share.
            env: variables beside this process's own.
        """
        descriptor, name = tempfile.mkstemp(".out", dir=self._logs)
        os.close(descriptor)
        prints = Path(name), err or Path(name).with_suffix(".err")
        variables = {**os.environ, "ACCELERATE_USE_CPU": "true", **env}
        call = (self._module, *hook) if hook else ()
        pid = fork(prints, arguments=arguments, call=call, tiny=True, group=group, env=variables)
        self._prints[pid] = prints
        return pid

    def poll(self, pid: int) -> int | None:
        """The exit code (negative: a signal) of a process that has ended; None before."""
        return poll(pid)

    def wait(self, pid: int) -> Ended:
        """Waits for a process's end."""
        try:
            return Ended(wait(pid), *self.printed(pid))
        except subprocess.TimeoutExpired as e:
            raise AssertionError(f"{e}\n{self.printed(pid)[1]}") from None

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
        """Starts a process for each rank, all in one group (that of the first), without a launcher."""
        pids: list[int] = []
        for rank, place in enumerate(places(world)):
            hook, group = (hooks or {}).get(rank, ()), pids[0] if pids else 0
            pids.append(self.start(*arguments, hook=hook, group=group, err=err, **place, **env))
        return pids

    def run_ranks(self, world: int, *arguments: object, **more: Any) -> list[Ended]:
        """`start_ranks` and `wait`."""
        return [self.wait(pid) for pid in self.start_ranks(world, *arguments, **more)]

    def printed(self, pid: int) -> tuple[str, str]:
        """What a process has written to its standard output and error so far."""
        out, err = (p.read_text(encoding="utf-8") for p in self._prints[pid])
        return out, err

    def close(self) -> None:
        """Kills every process that still runs."""
        for pid in self._prints:
            kill(pid)


def places(world: int) -> list[dict[str, str]]:
    """The variables with which each of `world` processes finds the others."""
    from torch.distributed.elastic.utils.distributed import get_free_port

    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_port())}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **common} for rank in range(world)]


def wait_until(
    holds: Callable[[], bool], what: str, about: Callable[[], str] = lambda: "", timeout_s: float = TIMEOUT_S
) -> None:
    """Returns when `holds()`; fails with `what` and `about()` when it never does."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s\n{about()}"
        time.sleep(0.003)


# ---------------------------------------------------------------- in the server


def serve(address: str) -> None:
    """Answers requests until standard input ends; then kills what still runs."""
    import dist_sketch
    from dist_sketch.__main__ import parse

    ours = (m.name for m in pkgutil.walk_packages(dist_sketch.__path__, "dist_sketch."))
    for module in (*PRELOADED, *ours):
        importlib.import_module(module)
    choose_on_pairs(PAIRS)
    parse(["train", "--out", "run"])  # fills caches of tyro
    gc.freeze()  # collecting garbage would copy the memory that the processes share
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not fork"
    codes: dict[int, int | None] = {}  # by process id; None: it still runs
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.new")
        listener.listen(64)
        os.rename(f"{address}.new", address)
        while 0 not in select.select([listener, 0], [], [])[0]:
            caller, _ = listener.accept()
            with caller, suppress(OSError):  # a caller that is gone
                _answer(caller, codes)
    for pid, code in codes.items():
        if code is None:
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(Path(address).parent)
    os._exit(0)


def _answer(caller: socket.socket, codes: dict[int, int | None]) -> None:
    data, descriptors, _, _ = socket.recv_fds(caller, 1 << 20, 2)
    while not data.endswith(b"\n"):
        data += caller.recv(1 << 20)
    request = json.loads(data)
    if "poll" in request:
        answer = request["poll"]
        if codes[answer] is None:
            found, status = os.waitpid(answer, os.WNOHANG)
            codes[answer] = os.waitstatus_to_exitcode(status) if found else None
        answer = codes[answer]
    else:
        answer = os.fork()
        if not answer:
            caller.detach()  # its descriptor is closed with all others
            _become(request, descriptors)
        codes[answer] = None
        with suppress(OSError):  # the process does the same: nobody knows who is first
            os.setpgid(answer, request["group"])
        for descriptor in descriptors:
            os.close(descriptor)
    caller.sendall(json.dumps(answer).encode() + b"\n")


def _become(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """The rest of a forked process's life."""
    from dist_sketch.__main__ import main

    os.setpgid(0, request["group"])
    for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), *descriptors)):
        os.dup2(descriptor, number)
    os.closerange(3, 64)  # these, the listener and the caller
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["dist-sketch", *request["arguments"]]
    code: Any = 0
    try:
        if request["tiny"]:
            shrink()
        if request["call"]:
            module, name, *arguments = request["call"]
            getattr(importlib.import_module(module), name)(*arguments)
        if request["arguments"] or not request["call"]:
            main()
    except SystemExit as e:
        code = e.code
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for the threads, as the end of an interpreter does
    except BaseException:  # which goes on, too
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)  # not the interpreter's own end: that frees each object, and so copies all the shared memory


def shrink() -> None:
    """Networks of 8 channels instead of the paper's 512, with all kinds of layers; no search for a noise removal.

    FID and KID are those of a stand-in for Inception, and the run's page is written without its curves.
    """
    from torch import nn

    from dist_sketch.core.fileio import write_atomic
    from dist_sketch.model import networks
    from dist_sketch.model.networks import Down, Up
    from dist_sketch.reports import live
    from support.features import replace_inception

    class Generator(nn.Sequential):
        def __init__(self, *, channels: int, dropout: float, norm: Any, **_: Any):
            super().__init__(Down(channels, 8, norm), Up(8, 8, norm, dropout), nn.Conv2d(8, channels, 1), nn.Tanh())

    class Discriminator(networks.Discriminator):
        def __init__(self, *, channels: int, dropout: float, norm: Any, **_: Any):
            nn.Module.__init__(self)
            self.fine, self.coarser = 0.0, nn.ModuleList()
            last = (nn.Dropout2d(dropout), nn.Conv2d(8, 1, 3))
            self.layers = nn.Sequential(Down(2 * channels, 8, "none"), Down(8, 8, norm), *last)

    networks.Generator = Generator  # type: ignore[misc, assignment]
    networks.Discriminator = Discriminator  # type: ignore[misc]

    def build(run: Path, status: Any = None) -> Path:
        write_atomic(run / live.PAGE, "<!doctype html>", durable=False)
        return run / live.PAGE

    live.build = build
    replace_inception()
    choose_on_pairs(1)


def choose_on_pairs(count: int | str) -> None:
    """On how many training pairs the end of a training chooses the noise removal; of one there is no choice."""
    from dist_sketch.training import closing

    closing.PAIRS = int(count)
