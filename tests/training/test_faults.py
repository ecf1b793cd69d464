"""A process dies, or its disk fails, at any point of a run: the same command, started again, gives the same result.

The networks are tiny (`forks`), everything else is real: a whole run from the command line, its files, its signals.
"""

import builtins
import errno
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import TINY
from support import hooks
from support.forks import TIMEOUT_S, Ended, Forks, wait_until
from support.jobs import children, last_step
from support.outcome import Outcome, differences, half_files, outcome

from dist_sketch.model import checkpoint

STEPS = 3  # an epoch of the 13 pairs of `shards` at batch 4
LAST = f"checkpoints/step-{STEPS:08d}"


# ---------------------------------------------------------------- in the run: what happens to its files


class Operations:
    """Watches what a process does to the files below a folder, and lets one operation go wrong.

    Args:
        log: gets a line an operation: its name, its path and the state of the files before it.
        at: number of the operation, from 1.
        how: "before": killed there; "half": killed when half is written; "full", "read-only": from there on
            nothing can be written; "hiccup": this operation alone fails.
    """

    def __init__(self, folder: str, log: str, at: int, how: str):
        self.folder, self.at, self.how, self.count = folder, at, how, 0
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for name in ("fsync", "replace", "rename", "unlink", "remove", "rmdir", "mkdir"):
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        io.open = builtins.open = self._opening(io.open)  # type: ignore[assignment] - pathlib's and our own

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, dir_fd: int | None = None) -> Any:
            more = {} if dir_fd is None else {"dir_fd": dir_fd}
            path = arguments[1] if name in ("replace", "rename") else arguments[0]
            if name == "fsync":
                path = os.readlink(f"/proc/self/fd/{path}")
            elif dir_fd is not None:
                path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
            return self._happens(name, path, lambda: call(*arguments, **more))

        return operation

    def _opening(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def opening(file: Any, mode: str = "r", *arguments: Any, **more: Any) -> Any:
            if isinstance(file, int) or mode.startswith("r") or not self._ours(file):
                return call(file, mode, *arguments, **more)
            opened = self._happens("open", file, lambda: call(file, mode, *arguments, **more))
            write = opened.write

            def half(data: Any) -> None:
                write(data[: len(data) // 2])
                opened.flush()

            opened.write = lambda data: self._happens("write", file, lambda: write(data), lambda: half(data))
            return opened

        return opening

    def _ours(self, path: Any) -> bool:
        return os.path.abspath(path).startswith(self.folder + os.sep)

    def _happens(self, name: str, path: Any, act: Callable[[], Any], half: Callable[[], None] = lambda: None) -> Any:
        if not self._ours(path):
            return act()
        self.count += 1
        line = (name, os.path.relpath(path, self.folder), "" if self.at else state(self.folder))
        os.write(self.log, "\t".join(line).encode() + b"\n")
        if self.count == self.at and self.how in ("before", "half"):
            if self.how == "half":
                half()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count == self.at or (self.count > self.at and self.how != "hiccup"):
            if self.how == "read-only":
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            if self.how in ("full", "hiccup") and name not in ("unlink", "remove", "rmdir"):
                half()  # a full disk takes what still fits
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return act()


def state(folder: str) -> str:
    """A word that changes when anything below a folder does; what still waits in a buffer is not there yet."""
    found = [p.lstat() for p in sorted(Path(folder).rglob("*"))]
    return f"{hash(tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in found)):x}"


def watch(folder: str, log: str, at: str = "0", how: str = "") -> None:
    """Hook: see `Operations`."""
    Operations(folder, log, int(at), how)


def small_files(size: str) -> None:
    """Hook: the kernel refuses to let a file grow beyond `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))


def hold(marker: str) -> None:
    """Hook: the process stops working after its second step."""
    from dist_sketch.training.step_log import StepLog

    read = StepLog.read

    def held(self: StepLog, state: Any) -> bool:
        must_stop = read(self, state)
        if state.step == 2:
            Path(marker).touch()
            time.sleep(3600)
        return must_stop

    StepLog.read = held  # type: ignore[method-assign]


def hold_before_it_writes(marker: str) -> None:
    """Hook: as `hold`; but before it writes anything, the process waits for the file MARKER.go."""
    from dist_sketch.training import setup

    claim = setup.claim

    def slow(*arguments: Any) -> str:
        run_id = claim(*arguments)
        Path(marker).touch()
        wait_until(Path(f"{marker}.go").exists, "leave to go on")
        return run_id

    setup.claim = slow
    hold(f"{marker}.held")


def patience(seconds: str) -> None:
    """Hook: how long the process waits for a lock."""
    from dist_sketch.core.folders import Lock

    Lock.acquire.__defaults__ = (float(seconds),)


# ---------------------------------------------------------------- the undisturbed run


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    server = Forks("test_faults", tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def options(shards: Path) -> tuple[Any, ...]:
    more = ("--train.validate-limit", 2, "--train.sample-count", 2, "--generator.ema", 0.9)
    return ("train", "--data.shards", shards, *TINY, *more, "--train.epochs", 1, "--checkpoint.keep", 1)


class Reference(NamedTuple):
    """The undisturbed run."""

    operations: list[tuple[str, str]]  # name and path
    states: list[str]  # of the files, before each of them
    outcome: Outcome


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, forks: Forks, options: tuple[Any, ...]) -> Reference:
    run, log = tmp_path_factory.mktemp("reference") / "run", tmp_path_factory.mktemp("operations") / "log"
    done = forks.run(*options, "--out", run, hook=("watch", run, log))
    assert done.code == 0, done.err
    result = outcome(run)
    assert result.status == ("finished", STEPS)
    operations = [line.split("\t") for line in log.read_text().splitlines()]
    names = [(name, re.sub(r"\.\d+\.part", ".part", path)) for name, path, _ in operations]
    return Reference(names, [files for *_, files in operations], result)


def each(check: Callable[[Any], str], points: list[Any]) -> str:
    """What `check` says of all points, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return "\n".join(filter(None, pool.map(check, points)))


# ---------------------------------------------------------------- killed


def kill_points(reference: Reference) -> list[tuple[int, str]]:
    """Number of the operation and when: each state of the files in which a process can be killed, once.

    Many operations leave the files as they are, such as an fsync: who is killed after it leaves what it would before.
    """
    points, last = [], reference.states[0]
    for n, ((name, _), files) in enumerate(zip(reference.operations, reference.states, strict=True), 1):
        points += [(n, "before")] * (files != last)
        points += [(n, "half")] * (name == "write")
        last = files
    return points


def test_killed_at_any_write_fsync_or_rename_it_ends_bit_equal(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], reference: Reference
) -> None:
    def check(point: tuple[int, str]) -> str:
        at, how = point
        run = tmp_path / f"{at}-{how}"
        where = f"killed {how} operation {at} ({' '.join(reference.operations[at - 1])}): "
        killed = forks.run(*options, "--out", run, hook=("watch", run, f"{run}.log", at, how))
        if killed.code != -signal.SIGKILL:
            return f"{where}was not killed: {killed}"
        if half := half_files(run):
            return where + "; ".join(half)
        again = forks.run(*options, "--out", run)
        if again.code:
            return f"{where}does not go on: {again}"
        problems = differences(run, reference.outcome)
        shutil.rmtree(run)
        return where + "; ".join(problems) if problems else ""

    points = kill_points(reference)
    assert {"write", "fsync", "mkdir", "unlink"} <= {reference.operations[at - 1][0] for at, _ in points}
    renamed = {n for n, (name, _) in enumerate(reference.operations, 1) if name == "replace"}
    assert {(n + 1, "before") for n in renamed} <= {*points}
    assert len(points) > 80
    wrong = each(check, points)
    assert not wrong, wrong


# ---------------------------------------------------------------- the disk refuses


def refusals(operations: list[tuple[str, str]]) -> list[tuple[int, str]]:
    """Each kind of operation on each kind of file, the last of its kind; and a seeded choice of rarer errors."""
    last = {(name, re.sub(r"\d+", "N", path)): n for n, (name, path) in enumerate(operations, 1)}
    full = [(n, "full") for (name, _), n in last.items() if name not in ("unlink", "remove", "rmdir")]
    draw = random.Random(0)
    rarer = [(draw.choice(list(last.values())), how) for how in ("read-only", "hiccup") for _ in range(8)]
    return [*full, *rarer, (1, "read-only")]


def test_a_disk_that_refuses_is_a_sentence_and_costs_nothing(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], reference: Reference
) -> None:
    def check(point: tuple[int, str]) -> str:
        at, how = point
        run = tmp_path / f"{at}-{how}"
        name, path = reference.operations[at - 1]
        where = f"{how} from operation {at} ({name} {path}): "
        ended = forks.run(*options, "--out", run, hook=("watch", run, f"{run}.log", at, how))
        page, expected = "index.html" in path, reference.outcome
        needless = page or (path == ".lock" and name == "write") or name in ("unlink", "rmdir")
        if page and how == "hiccup":  # `dist-sketch report RUN` makes it later
            expected = expected._replace(files=expected.files - {"index.html"})
        if needless and how == "hiccup":
            wrong = [f"is no reason to fail: {ended}"] * (ended.code != 0)  # nothing depends on these files
        else:
            wrong = _no_sentence(ended, run)
            # Nobody must believe that it still runs, if its end can be written.
            if how == "hiccup" and at > reference.operations.index(("replace", "status.json")) + 1:
                status = json.loads((run / "status.json").read_text())
                wrong += [f"status.json: {status}"] * (status["state"] != "failed" or str(run) not in status["reason"])
        wrong += half_files(run)
        again = forks.run(*options, "--out", run)
        wrong += differences(run, expected) if again.code == 0 else [f"does not go on: {again}"]
        shutil.rmtree(run)
        return where + "; ".join(wrong) if wrong else ""

    points = refusals(reference.operations)
    assert len(points) > 50
    wrong = each(check, points)
    assert not wrong, wrong


def _no_sentence(ended: Ended, run: Path) -> list[str]:
    """Whether a run did not end as it should when the disk refuses: with one line that names a file and the reason."""
    good = rf"error: {re.escape(str(run))}\S*: (the checkpoint )?cannot be written \([^()]+\)[^\n]*\n"
    return [f"no sentence: {ended}"] * (ended.code != 2 or not re.fullmatch(good, ended.err))


# Each is less than that file's size, and more than what is written before it and printed.
@pytest.mark.parametrize("size", [1_000, 4_000, 20_000], ids=["config.json", "a network", "state.pt"])
def test_the_kernel_refuses_larger_files(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], reference: Reference, size: int
) -> None:
    run = tmp_path / "run"
    ended = forks.run(*options, "--out", run, hook=("small_files", size))
    assert not _no_sentence(ended, run)
    assert os.strerror(errno.EFBIG) in ended.err
    assert forks.run(*options, "--out", run).code == 0
    assert differences(run, reference.outcome) == []


# ---------------------------------------------------------------- a checkpoint is damaged


@pytest.fixture(scope="module")
def killed(
    tmp_path_factory: pytest.TempPathFactory, forks: Forks, options: tuple[Any, ...], reference: Reference
) -> Path:
    """A run with checkpoints at steps 2 and 3, killed before its last file was written; read only."""
    run = tmp_path_factory.mktemp("killed") / "run"
    at = next(n for n, (_, path) in enumerate(reference.operations, 1) if path.startswith(".denoise"))
    # keep = 2: nothing is removed
    removals = sum(name in ("unlink", "rmdir") for name, _ in reference.operations[:at])
    hook = ("watch", run, f"{run}.log", at - removals, "before")
    assert forks.run(*options, "--checkpoint.keep", 2, "--out", run, hook=hook).code == -signal.SIGKILL
    assert [p.name for p in checkpoint.folders_of(run)] == ["step-00000003", "step-00000002"]
    assert not (run / "denoise.json").exists()
    return run


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "gone":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ["a flipped bit", "cut", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], reference: Reference, killed: Path, kind: str
) -> None:
    files = sorted(p.name for p in (killed / LAST).iterdir())
    assert len(files) == 6
    for name in files:
        run = tmp_path / name
        shutil.copytree(killed, run)
        damage(run / LAST / name, kind)
        again = forks.run(*options, "--out", run)
        assert again.code == 0, again
        said = [line for line in again.out.splitlines() if line.startswith(("passed over", "resumed"))]
        assert len(said) == 2, again
        if (name, kind) != ("checkpoint.json", "a flipped bit"):  # that may lie in the hash of any file
            assert said[0].startswith(f"passed over: {run / LAST / name}: ")
        assert said[0].startswith(f"passed over: {run / LAST}/")
        assert said[1] == f"resumed from {run}/checkpoints/step-00000002"
        assert differences(run, reference.outcome) == []


def test_when_all_checkpoints_are_damaged_it_says_so_and_starts_anew(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], reference: Reference, killed: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(killed, run)
    for folder in checkpoint.folders_of(run):
        damage(folder / "state.pt", "a flipped bit")
    again = forks.run(*options, "--out", run)
    assert again.code == 0, again
    assert again.out.count("passed over: ") == 2
    assert "resumed" not in again.out
    assert differences(run, reference.outcome) == []


# ---------------------------------------------------------------- no data comes


def stops_reading(count: str, how: str = "hangs", once: str = "") -> None:
    """Hook: before its read number `count` the process that reads hangs for ever, is killed, or has no disk any more.

    Args:
        once: a file that is made then; where it is there, all goes well.
    """
    from dist_sketch.data.shards import BadSample, Shards

    def gone(*_: Any) -> None:
        raise BadSample("the disk is gone")

    def stop() -> None:
        if once and Path(once).exists():
            return
        Path(once or os.devnull).touch()
        if how == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hangs":
            time.sleep(3600)
        Shards.read = gone  # type: ignore[assignment]

    hooks.at(f"data.shards:Shards.read:{count}", stop)


WITH_WORKER = ("--data.workers", 1, "--data.memory-mb", 0, "--checkpoint.interval-steps", 100)


def test_asked_to_stop_while_no_batch_comes_it_saves_and_ends(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], reference: Reference
) -> None:
    """A scheduler kills those that do not end, half a minute after it has asked."""
    run = tmp_path / "run"
    # The worker reads ahead: the third batch is the one that does not come.
    pid = forks.start(*options, *WITH_WORKER, "--out", run, hook=("stops_reading", 2 * 4 + 1))
    wait_until(lambda: last_step(run) == 2, "two steps", lambda: str(forks.printed(pid)))
    os.kill(pid, signal.SIGTERM)
    ended = forks.wait(pid)
    assert (ended.code, ended.err) == (os.EX_TEMPFAIL, "")
    assert "stopped at step 2; the same command goes on from there" in ended.out
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"]) == ("stopped", 2)
    again = forks.run(*options, *WITH_WORKER, "--out", run)
    assert again.code == 0, again
    assert differences(run, reference.outcome) == []


KILLED = "a process that reads the data was killed, mostly because memory is short"


# Of four reads a step: the steps that are made before all processes of the run end
@pytest.mark.parametrize(
    ("how", "at", "once", "steps", "sentence"),
    [
        ("is killed", 9, True, 3, KILLED),
        ("is killed", 1, True, 1, KILLED),
        ("is killed", 1, False, 0, KILLED),
        ("hangs", 9, False, 2, "no batch for 1 s; does the disk answer?"),
        ("hangs", 1, False, 0, "no batch for 1 s; does the disk answer?"),
        ("has no disk", 9, False, 2, "not one of the 13 train pairs can be read; does the disk answer?"),
    ],
)
def test_when_no_data_come_the_run_is_saved_and_ends_with_a_sentence(
    tmp_path: Path,
    forks: Forks,
    options: tuple[Any, ...],
    reference: Reference,
    how: str,
    at: int,
    once: bool,
    steps: int,
    sentence: str,
) -> None:
    run = tmp_path / "run"
    hook = ("stops_reading", at, how, tmp_path / "once" if once else "")
    ended = forks.run(*options, *WITH_WORKER, "--data.stall-timeout-s", 1, "--out", run, hook=hook)
    assert (ended.code, len(ended.err.splitlines())) == (2, 1), ended
    assert ended.err.startswith("error: ")
    assert sentence in ended.err
    assert ended.err.endswith(f"; it goes on from step {steps}\n")
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], sentence in status["reason"]) == ("failed", steps, True)
    assert checkpoint.step_of(checkpoint.folders_of(run)[0]) == steps  # without this the next one is step 100
    if not once:  # it happens again at once
        ended = forks.run(*options, *WITH_WORKER, "--data.stall-timeout-s", 1, "--out", run, hook=(*hook[:1], 1, how))
        assert (ended.code, ended.err.endswith(f"; it goes on from step {steps}\n")) == (2, True), ended
    again = forks.run(*options, *WITH_WORKER, "--out", run)
    assert again.code == 0, again
    assert differences(run, reference.outcome) == []


# ---------------------------------------------------------------- the lock


def test_one_process_at_a_time_works_in_a_run(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], reference: Reference
) -> None:
    run, marker = tmp_path / "run", tmp_path / "marker"
    command = (*options, "--data.workers", 1, "--out", run)
    first = forks.start(*command, hook=("hold", marker))
    wait_until(marker.exists, "the first process's second step", lambda: str(forks.printed(first)))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    refused = forks.run(*command, hook=("patience", 0.2))
    assert refused.code == 2
    assert re.fullmatch(
        rf"error: {run}: process {first} on \S+ is at work in it; wait for its end, or stop it\n", refused.err
    )
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}

    # In the group of the first one: the kernel would end a stopped worker whose group has no other process.
    waiting = forks.start(*command, group=first, hook=("patience", TIMEOUT_S))
    lock = str(run / ".lock")
    wait_until(
        lambda: lock in open_files(waiting), "the second process at the lock", lambda: str(forks.printed(waiting))
    )
    time.sleep(0.5)
    assert forks.poll(waiting) is None
    (worker,) = children(first)
    os.kill(worker, signal.SIGSTOP)  # it outlives its parent, and must not keep the lock
    try:
        os.kill(first, signal.SIGKILL)
        assert forks.wait(first).code == -signal.SIGKILL
        ended = forks.wait(waiting)
    finally:
        with suppress(ProcessLookupError):  # on Linux it ends with its parent
            os.kill(worker, signal.SIGKILL)
    assert ended.code == 0, ended
    assert differences(run, reference.outcome) == []


def test_who_waited_for_the_lock_looks_again_whose_run_it_is(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...]
) -> None:
    run, marker = tmp_path / "run", tmp_path / "marker"
    first = forks.start(*options, "--out", run, hook=("hold_before_it_writes", marker))
    wait_until(marker.exists, "the first process at its start", lambda: str(forks.printed(first)))
    # No run is there yet
    waiting = forks.start(*options, "--out", run, "--optim.lr-g", 1e-3, hook=("patience", TIMEOUT_S))
    lock = str(run / ".lock")
    wait_until(
        lambda: lock in open_files(waiting), "the second process at the lock", lambda: str(forks.printed(waiting))
    )
    (tmp_path / "marker.go").touch()
    wait_until((tmp_path / "marker.held").exists, "the first process's second step", lambda: str(forks.printed(first)))
    os.kill(first, signal.SIGKILL)
    ended = forks.wait(waiting)
    assert ended.code == 2, ended
    assert "optim.lr_g: 0.002 -> 0.001" in ended.err


def open_files(pid: int) -> set[str]:
    folder = Path(f"/proc/{pid}/fd")
    found = set()
    for entry in os.listdir(folder):
        with suppress(OSError):
            found.add(os.readlink(folder / entry))
    return found
