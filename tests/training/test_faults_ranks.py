"""One of several processes dies, gets a signal or raises an error; and runs continue on another number of processes.

The networks are tiny (`forks`); processes, launcher, signals and files are real.
"""

import json
import os
import random
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import TINY
from support import hooks
from support.forks import Ended, Forks, wait_until
from support.hooks import raises
from support.jobs import Job, last_step, with_tiny_networks
from support.outcome import Outcome, differences, outcome

from dist_sketch.model import checkpoint

STEPS = 3  # an epoch of the 13 pairs of `shards` at batch 4
STOPPED = os.EX_TEMPFAIL


# ---------------------------------------------------------------- in the ranks: hooks


def pauses(prefix: str, *places: str) -> None:
    """Hook: as `hooks.pauses`; at its end the process leaves the file PREFIX.step with the number of its steps."""
    from dist_sketch.training import loop
    from dist_sketch.training.run import Run

    hooks.pauses(prefix, *places)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # in case `nohup` started the tests
    whole_loop = loop.loop

    def told(run: Run) -> int:
        code = whole_loop(run)
        Path(f"{prefix}.step").write_text(str(run.state.step))
        return code

    loop.loop = told


def waits_late() -> None:
    """Hook: after 45 steps the process waits until it is asked to stop: it cannot end before the test disturbs it."""
    from dist_sketch.training import loop
    from dist_sketch.training.run import Run

    train_batch = loop.train_batch

    def waiting(run: Run, batch: Any) -> None:
        while run.state.step == 45 and not run.stop.asked:
            time.sleep(0.01)
        train_batch(run, batch)

    loop.train_batch = waiting


def small_files(size: str) -> None:
    """Hook: the kernel refuses to let a file grow beyond `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))


def tells_keys(file: str, stop_at: str = "0") -> None:
    """Hook: writes down the keys of each of this rank's batches; asks for a stop in step `stop_at`."""

    from dist_sketch.training import loop
    from dist_sketch.training.run import Run

    train_batch = loop.train_batch

    def telling(run: Run, batch: Any) -> None:
        with open(file, "a", encoding="utf-8") as f:
            f.write(json.dumps({"step": run.state.step + 1, "rank": run.ranks.rank, "keys": batch.keys}) + "\n")
        if run.state.step + 1 == int(stop_at):
            os.kill(os.getpid(), signal.SIGUSR2)
        train_batch(run, batch)

    loop.train_batch = telling


# ---------------------------------------------------------------- killed


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    server = Forks("test_faults_ranks", tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def options(shards: Path) -> tuple[Any, ...]:
    more = ("--train.validate-limit", 2, "--train.sample-count", 1, "--generator.ema", 0.9)
    return ("train", "--data.shards", shards, *TINY, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, forks: Forks, options: tuple[Any, ...]) -> Path:
    """A run of an epoch on two ranks."""
    run = tmp_path_factory.mktemp("finished") / "run"
    for ended in forks.run_ranks(2, *options, "--train.epochs", 1, "--out", run):
        assert ended.code == 0, ended.err
    return run


LONG = ("--train.epochs", 20, "--checkpoint.interval-steps", 7)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory, forks: Forks, options: tuple[Any, ...]) -> Outcome:
    """A long run on two ranks that nothing disturbed."""
    run = tmp_path_factory.mktemp("long") / "run"
    for ended in forks.run_ranks(2, *options, *LONG, "--out", run):
        assert ended.code == 0, ended.err
    found = outcome(run)
    assert found.status == ("finished", 20 * STEPS)
    return found


@pytest.fixture
def job() -> Iterator[Callable[..., Job]]:
    """Starts jobs, which do not outlive the test."""
    jobs: list[Job] = []

    def start(run: Path, *arguments: object, hook: tuple[Any, ...] = ("", "")) -> Job:
        jobs.append(Job(run, *arguments, program=with_tiny_networks(hook)))
        return jobs[-1]

    yield start
    for each in jobs:
        each.kill()


def finish(forks: Forks, run: Path, *arguments: object) -> None:
    """Runs the same command again, to the end."""
    for ended in forks.run_ranks(2, *arguments, "--out", run):
        assert ended.code == 0, ended
        assert "warning: saved on" not in ended.out


@pytest.mark.parametrize(
    ("who", "seed"), [("rank 1", 1), ("rank 0, saving", 2), ("launcher", 3), ("launcher, asked", 4)]
)
def test_killed_in_training_the_job_ends_and_the_run_goes_on_bit_equal(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], job: Callable[..., Job], long: Outcome, who: str, seed: int
) -> None:
    run = tmp_path / "run"
    command = (*options, *LONG, "--data.workers", 1)
    step = random.Random(seed).randrange(4, 30)
    disturbed = job(run, *command, hook=("test_faults_ranks", "waits_late"))
    disturbed.wait_for(lambda: last_step(run) >= step, f"step {step}")
    if who == "rank 0, saving":
        disturbed.wait_for(lambda: bool(list(run.glob("checkpoints/.step-*.part"))), "a checkpoint being written")
    if "launcher" in who:
        disturbed.launcher.send_signal(signal.SIGTERM if "asked" in who else signal.SIGKILL)
    else:
        os.kill(disturbed.pids()[1 if who == "rank 1" else 0], signal.SIGKILL)
    disturbed.gone()
    assert disturbed.launcher.returncode != 0
    status = json.loads((run / "status.json").read_text())
    # The ranks that are left record what happened; if only the launcher is gone, they save first.
    assert status["state"] == {"rank 1": "failed", "launcher": "stopped", "launcher, asked": "stopped"}.get(
        who, "running"
    )
    if status["state"] == "stopped":
        assert checkpoint.step_of(checkpoint.folders_of(run)[0]) == last_step(run) == status["step"]
    finish(forks, run, *command)
    assert differences(run, long) == []


@pytest.mark.parametrize("imports", [False, True], ids=["as interpreters", "in their imports"])
def test_the_launcher_is_killed_while_its_ranks_start(
    tmp_path: Path,
    forks: Forks,
    options: tuple[Any, ...],
    job: Callable[..., Job],
    short: Outcome,
    imports: bool,
) -> None:
    run = tmp_path / "run"
    disturbed = job(run, *options, *SHORT)
    disturbed.wait_for(lambda: len(disturbed.pids()) == 2, "two ranks")
    if imports:
        disturbed.wait_for(lambda: all(map(imports_torch, disturbed.pids())), "the import of torch")
    disturbed.launcher.kill()
    disturbed.gone()
    finish(forks, run, *options, *SHORT)
    assert differences(run, short) == []


def imports_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


# ---------------------------------------------------------------- asked to stop


SHORT = ("--train.epochs", 4, "--checkpoint.interval-steps", 5, "--train.validate-interval-epochs", 1)
SHORT = (*SHORT, "--train.sample-interval-epochs", 2)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, forks: Forks, options: tuple[Any, ...]) -> Outcome:
    """A short run on two ranks that nothing disturbed."""
    run = tmp_path_factory.mktemp("short") / "run"
    for ended in forks.run_ranks(2, *options, *SHORT, "--out", run):
        assert ended.code == 0, ended.err
    return outcome(run)


class Case(NamedTuple):
    """A request to stop, sent while a rank waits at a known place."""

    step: int  # the last step of all ranks
    pausing: int  # the rank that waits
    places: tuple[str, ...]  # where it waits
    signals: tuple[signal.Signals, ...]  # sent at each place
    to: int | None = 1  # the rank that gets them; None: the whole group of processes
    workers: int = 0


TERM, USR2, INT, HUP = signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP
CASES = {
    "in training": Case(4, 1, ("training.loop:train_batch:4",), (TERM,)),
    # Rank 0 gets the signal after it has begun step 7.
    "in training, to the first": Case(8, 1, ("training.loop:train_batch:7",), (USR2,), to=0),
    "in training, the terminal hangs up": Case(4, 1, ("training.loop:train_batch:4",), (HUP,), to=None, workers=1),
    "in validation": Case(4, 1, ("training.validation:Validation.scores:1",), (USR2,)),
    "while samples are drawn": Case(7, 0, ("training.validation:Validation.picture:1",), (USR2,)),
    "while it saves": Case(6, 0, ("model.checkpoint:_write:1",), (TERM,)),
    "in a stalled loader": Case(3, 1, ("data.shards:Shards.read:5",), (USR2,), workers=1),
    "twice": Case(4, 1, ("training.validation:Validation.scores:1",), (USR2, USR2)),
    "twice, and while it saves therefore": Case(
        8, 1, ("training.loop:train_batch:8", "model.checkpoint:save:2"), (TERM, USR2, INT, TERM)
    ),
    "at the start": Case(1, 1, ("training.run:Run._resume:1",), (TERM,)),
    "all, with workers": Case(5, 1, ("training.loop:train_batch:5",), (USR2,), to=None, workers=2),
    "all, with workers, as a scheduler does": Case(8, 0, ("training.loop:train_batch:8",), (TERM, INT), None, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_asked_to_stop_all_ranks_save_the_same_step_and_go_on_bit_equal(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], short: Outcome, name: str
) -> None:
    case, run = CASES[name], tmp_path / "run"
    command = (*options, *SHORT, "--data.workers", case.workers)
    hooks = {rank: ("pauses", tmp_path / f"rank{rank}", *case.places * (rank == case.pausing)) for rank in (0, 1)}
    if case.to == 0:  # leaves a mark when its step has begun, and goes on
        hooks[0] += (f"training.step:Step.__call__:{case.step - 1}",)
        (tmp_path / "rank0.0.go").touch()
    pids = forks.start_ranks(2, *command, "--out", run, hooks=hooks)

    def wait(holds: Callable[[], bool], what: str) -> None:
        wait_until(holds, what, lambda: str([forks.printed(pid) for pid in pids]))

    for n in range(len(case.places)):
        marker = tmp_path / f"rank{case.pausing}.{n}"
        wait(marker.exists, f"pause {n}")
        if case.to == 0:
            wait((tmp_path / "rank0.0").exists, "the first rank's step")
        else:
            wait(lambda: last_step(run) >= case.step - 1, "the step before")
        for number in case.signals:
            if case.to is None:
                os.killpg(pids[0], number)
            else:
                os.kill(pids[case.to], number)
            time.sleep(0.05)
        (tmp_path / f"{marker.name}.go").touch()
    ended = [forks.wait(pid) for pid in pids]
    assert [e.code for e in ended] == [STOPPED, STOPPED], ended
    assert f"stopped at step {case.step}; the same command goes on from there" in ended[0].out
    assert [e.err for e in ended] == ["", ""]
    assert [(tmp_path / f"rank{rank}.step").read_text() for rank in (0, 1)] == [str(case.step)] * 2
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"]) == ("stopped", case.step)
    assert checkpoint.step_of(checkpoint.folders_of(run)[0]) == case.step
    assert last_step(run) == case.step
    finish(forks, run, *command)
    assert differences(run, short) == []


def loses_its_worker(count: str, once: str) -> None:
    """Hook: the process that reads is killed before its read number `count`, if the file `once` is not there yet."""

    def die() -> None:
        if not Path(once).exists():
            Path(once).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    hooks.at(f"data.shards:Shards.read:{count}", die)


# The step that a rank whose worker is killed before this read makes with a new one, of two reads a step
@pytest.mark.parametrize(("read", "step"), [(1, 1), (4, 2), (5, 3), (7, 4)])
@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_rank_s_worker_is_killed_all_ranks_save_the_same_step_and_go_on_bit_equal(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], short: Outcome, rank: int, read: int, step: int
) -> None:
    run, err = tmp_path / "run", tmp_path / "err"
    command = (*options, *SHORT, "--data.workers", 1, "--data.memory-mb", 0)
    hooks_ = {rank: ("loses_its_worker", read, tmp_path / "once")}
    ended = forks.run_ranks(2, *command, "--out", run, hooks=hooks_, err=err)
    assert [e.code for e in ended] == [2, 2], ended
    said = f"{'rank 1: ' * rank}a process that reads the data was killed, mostly because memory is short: "
    assert err.read_text().startswith(f"error: {said}")
    assert re.fullmatch(rf"[^\n]+; it goes on from step {step}\n", err.read_text())
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], said in status["reason"]) == ("failed", step, True)
    assert checkpoint.step_of(checkpoint.folders_of(run)[0]) == last_step(run) == step
    finish(forks, run, *command)
    assert differences(run, short) == []


@pytest.mark.parametrize("words", [(), ("--dry-run",)], ids=["finished", "dry run"])
def test_ranks_that_have_nothing_to_do_leave_together(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], finished: Path, words: tuple[str, ...]
) -> None:
    """If one rank left alone, the others would abort, and a launcher would report that the job failed."""
    hooks = {1: ("pauses", tmp_path / "rank1", "core.ranks:Ranks.__exit__:1")}
    pids = forks.start_ranks(2, *options, "--train.epochs", 1, *words, "--out", finished, hooks=hooks)
    wait_until((tmp_path / "rank1.0").exists, "rank 1 leaves", lambda: str([forks.printed(pid) for pid in pids]))
    time.sleep(1)
    assert forks.poll(pids[0]) is None
    (tmp_path / "rank1.0.go").touch()
    assert [(e.code, e.err) for e in map(forks.wait, pids)] == [(0, "")] * 2
    assert words or "this run is finished (3 steps); nothing to do" in forks.printed(pids[0])[0]


def test_a_checkpoint_holds_what_each_rank_has_of_its_own(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], short: Outcome
) -> None:
    """For example the running statistics: had they been averaged, the next steps would differ."""
    run = tmp_path / "run"
    command = (*options, *SHORT, "--data.workers", 1)
    hooks = {1: ("pauses", tmp_path / "rank1", "training.loop:train_batch:11")}
    pids = forks.start_ranks(2, *command, "--out", run, hooks=hooks)
    wait_until((tmp_path / "rank1.0").exists, "step 11", lambda: str([forks.printed(pid) for pid in pids]))
    os.killpg(pids[0], signal.SIGKILL)
    assert [forks.wait(pid).code for pid in pids] == [-signal.SIGKILL] * 2
    assert checkpoint.step_of(checkpoint.folders_of(run)[0]) == 10
    finish(forks, run, *command)
    assert differences(run, short) == []


# ---------------------------------------------------------------- a rank fails


LOST = r"error{}: another rank failed or is gone: its message says why\n"
HERE = "training.loop:train_batch:3"
OURS = "ValueError: on purpose\nThis is a fault of dist_sketch{}, not of your input.\n"


@pytest.mark.parametrize(
    ("rank", "place", "step"),
    [
        (0, "training.loop:train_batch:3", 2),
        (1, "training.loop:train_batch:3", 2),
        (0, "training.validation:Validation.picture:1", 6),  # rank 1 waits for rank 0's decision
        (1, "training.validation:Validation.scores:1", 3),
    ],
)
def test_a_rank_that_raises_ends_the_job_with_its_traceback_first(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], rank: int, place: str, step: int
) -> None:
    run, err = tmp_path / "run", tmp_path / "err"
    ended = forks.run_ranks(2, *options, *SHORT, "--out", run, hooks={rank: ("raises", place, "ValueError")}, err=err)
    assert [e.code for e in ended] == [1, 1]
    own, other = (" (rank 1)", "") if rank else ("", " (rank 1)")
    said = err.read_text()
    assert said.startswith("Traceback")
    assert said.count("Traceback") == 1
    first, last = said.split(OURS.format(own))
    assert "in fail\n" in first
    assert re.fullmatch(LOST.format(re.escape(other)), last)
    status = json.loads((run / "status.json").read_text())
    reason = "another rank failed or is gone: its message says why" if rank else "ValueError: on purpose"
    assert (status["state"], status["step"], status["reason"]) == ("failed", step, reason)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_sentence_of_one_rank_is_told_once(tmp_path: Path, forks: Forks, options: tuple[Any, ...], rank: int) -> None:
    run, err = tmp_path / "run", tmp_path / "err"
    ended = forks.run_ranks(2, *options, *SHORT, "--out", run, hooks={rank: ("raises", HERE, "UserError")}, err=err)
    assert [e.code for e in ended] == ([1, 2] if rank else [2, 1])
    own, other = (r" \(rank 1\)", "") if rank else ("", r" \(rank 1\)")
    sentence = rf"error{own}: this rank's disk is gone; mend it\n"
    assert re.fullmatch(sentence + LOST.format(other), err.read_text()), err.read_text()


def test_a_full_disk_of_the_first_rank_is_told_once_and_costs_nothing(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], short: Outcome
) -> None:
    run, err = tmp_path / "run", tmp_path / "err"
    ended = forks.run_ranks(2, *options, *SHORT, "--out", run, hooks={0: ("small_files", 20_000)}, err=err)
    assert [e.code for e in ended] == [2, 2]
    told = rf"error: {run}/checkpoints/step-00000005: the checkpoint cannot be written \(File too large\); [^\n]+\n"
    assert re.fullmatch(told, err.read_text()), err.read_text()
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    finish(forks, run, *options, *SHORT)
    assert differences(run, short) == []


def test_the_launcher_ends_a_job_of_which_a_rank_raises(
    tmp_path: Path, options: tuple[Any, ...], job: Callable[..., Job]
) -> None:
    run = tmp_path / "run"
    failing = job(run, *options, *SHORT, "--data.workers", 1, hook=("test_faults_ranks", "raises_on_rank_1"))
    failing.wait_for(lambda: (run / "metrics.jsonl").exists(), "the first step")
    failing.gone()
    assert failing.launcher.returncode == 1
    said = failing.printed()[1]
    first = said.index("ValueError: on purpose")
    assert said.index("Traceback") < first < said.index("error: another rank failed or is gone")
    assert json.loads((run / "status.json").read_text())["state"] == "failed"


def raises_on_rank_1() -> None:
    """Hook of a launched job, whose ranks all have the same hook."""
    if os.environ["RANK"] == "1":
        raises(HERE, "ValueError")


# ---------------------------------------------------------------- another number of ranks


def keys_of_steps(file: Path) -> list[tuple[int, list[str]]]:
    """The keys of each global batch, in the order of the ranks."""
    told = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda t: (t["step"], t["rank"]))
    found: dict[int, list[str]] = {}
    for t in told:
        found.setdefault(t["step"], []).extend(t["keys"])
    return sorted(found.items())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_goes_on_with_other_numbers_of_ranks(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], workers: int
) -> None:
    more = ("--norm", "none", "--generator.dropout", 0, "--train.precision", "fp64", "--data.flip")
    more = (*more, "--optim.lr-g", 2e-4, "--optim.lr-d", 2e-4, "--data.workers", workers)
    command = (*options, *SHORT, *more)
    steady, changing = tmp_path / "steady", tmp_path / "changing"

    def leg(world: int, run: Path, stop_at: int = 0) -> list[Ended]:
        last = world - 1
        hooks = {r: ("tells_keys", f"{run}.keys", stop_at if r == last else 0) for r in range(world)}
        ended = forks.run_ranks(world, *command, "--out", run, hooks=hooks)
        assert [e.code for e in ended] == [STOPPED if stop_at else 0] * world, ended
        return ended

    leg(4, steady)
    said = [leg(4, changing, 2), leg(2, changing, 4), leg(1, changing, 8), leg(1, changing, 9), leg(4, changing)]
    warnings = [re.findall("warning: .*", "".join(e.out + e.err for e in ranks)) for ranks in said]
    assert [len(w) for w in warnings] == [0, 1, 1, 0, 1]
    for (warning,), (saved, resumed) in zip(filter(None, warnings), ((4, 2), (2, 1), (1, 4)), strict=True):
        assert warning.startswith(f"warning: saved on {saved} rank(s), resumed on {resumed}: ")

    steps = keys_of_steps(Path(f"{changing}.keys"))
    assert steps == keys_of_steps(Path(f"{steady}.keys"))
    assert [n for n, _ in steps] == list(range(1, 4 * STEPS + 1))
    assert all(len(set(keys)) == 4 for _, keys in steps)

    found, expected = outcome(changing), outcome(steady)
    assert found.status == expected.status == ("finished", 4 * STEPS)
    assert [(r["kind"], r["step"]) for r in found.metrics] == [(r["kind"], r["step"]) for r in expected.metrics]
    for a, b in zip(found.metrics, expected.metrics, strict=True):
        numbers = [n for n in b if n.startswith(("loss/", "norm/", "lr/", "val/"))]
        assert {n: a[n] for n in numbers} == pytest.approx({n: b[n] for n in numbers}, rel=1e-9)
    for name in ("generator", "discriminator", "ema"):
        a, b = (weights(run, name) for run in (changing, steady))
        assert all(torch.allclose(a[n], b[n], rtol=0, atol=1e-9) for n in b), name


def weights(run: Path, name: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(checkpoint.folders_of(run)[0] / f"{name}.safetensors")
