"""Jobs on a real SLURM cluster of two nodes: trained to the end, preempted, warned, killed, cancelled.

The cluster runs on this machine (`cluster/slurmlab.sh`). Its processes are visible here, with other process ids.
"""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.lab import ENDED, SCRIPT, SCRIPTS, Lab
from conftest import TINY, write_pairs
from support.jobs import last_step, processes
from support.scores import assert_same_scores

from dist_sketch.slurm.rank_logs import describe
from dist_sketch.tracking.speed import SLOW_FOR_S

pytestmark = pytest.mark.slurm

# Two nodes, two processes on each.
TWO = ("--nodes=2", "--gpus-per-node=0", "--cpus-per-task=2", "--time=20")
TRAIN = (
    *(*TINY, "--data.batch-size", 8, "--train.epochs", 9),  # 18 steps
    *("--generator.network", "baseline", "--train.validate-interval-epochs", 0, "--train.sample-interval-epochs", 0),
)
SOON_S = 30.0  # within this time a job notices that it must end


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    cluster = Lab(f"t{os.getpid()}n")
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def chain(lab: Lab) -> dict[str, int]:
    """From two folders of 16 + 2 images to the report, submitted at once: the jobs' ids."""
    source = write_pairs(lab.folder / "pairs", 16, 2)
    pack = ("pack", "--time=5", "--cpus-per-task=2", f"source={source}", f"out={lab.folder / 'shards'}")
    train = ("train", *TWO, f"out={lab.folder / 'undisturbed'}", "procs=2", *TRAIN)
    infer = ("infer", "--gpus-per-node=0", "--cpus-per-task=2", f"out={lab.folder / 'out'}", "procs=2")
    ids = lab.submit_all("chain", *pack, "--size", 64, "--shard-count", 10, "then", *train, "then", *infer)
    for job in ids.values():
        assert lab.wait(job) == "COMPLETED", lab.log(job)
    return ids


@pytest.fixture(scope="module")
def shards(lab: Lab, chain: dict[str, int]) -> Path:
    return lab.folder / "shards"


@pytest.fixture(scope="module")
def undisturbed(lab: Lab, chain: dict[str, int]) -> tuple[Path, int]:
    """A run that nothing happened to, and its job."""
    return lab.folder / "undisturbed", chain["train"]


def train(lab: Lab, shards: Path, run: Path, *settings: object, sbatch: tuple[str, ...] = TWO) -> int:
    """Submits a training."""
    script = ("shards=" + str(shards), f"out={run}", "procs=2")
    return lab.submit(*sbatch, SCRIPTS / "train.sbatch", *script, *settings)


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


def attempts(run: Path) -> list[tuple[str, int]]:
    """What the job did after each attempt, and the step."""
    records = [json.loads(line) for line in (run / "logs" / "legs.jsonl").read_text().splitlines()]
    return [(r["next"], r["step"]) for r in records]


def weights(run: Path) -> dict[str, bytes]:
    """The networks of the last checkpoint."""
    newest = max((run / "checkpoints").glob("step-*"))
    return {f"{newest.name}/{p.name}": p.read_bytes() for p in newest.glob("*.safetensors")}


def rank(run: Path, number: int) -> int | None:
    """The process of a rank, by its id on this machine."""
    found = {p.pid: p for p in processes(run)}
    of_rank = [
        p.pid for p in found.values() if p.rank == number and getattr(found.get(p.parent), "rank", None) != number
    ]
    return of_rank[0] if of_rank else None


def test_a_chain_goes_from_folders_to_the_report(lab: Lab, chain: dict[str, int]) -> None:
    assert list(chain) == ["pack", "train", "infer"]
    assert "train: 16 samples in 2 shard(s)" in lab.log(chain["pack"])
    scores = json.loads((lab.folder / "out" / "metrics.json").read_text())
    assert scores["n"] == 2
    assert "<html" in (lab.folder / "out" / "report.html").read_text()
    jobs = list(chain.values())
    for before, job in itertools.pairwise(jobs):
        assert lab.show(job, "StartTime") >= lab.show(before, "EndTime")


def test_a_chain_ends_when_a_job_fails(lab: Lab, shards: Path) -> None:
    ids = lab.submit_all(
        *("--force", "chain", "train", *TWO[1:], f"shards={shards}", f"out={lab.folder / 'fails'}", "procs=2"),
        *("--data.batch-size", 3, "then", "infer", "--gpus-per-node=0", f"out={lab.folder / 'never'}"),
    )
    assert lab.wait(ids["train"]) == "FAILED"
    assert lab.wait(ids["infer"]) == "CANCELLED"
    assert "error: data.batch_size = 3" in lab.log(ids["train"])


def test_four_processes_on_two_nodes_train_to_the_end(lab: Lab, undisturbed: tuple[Path, int]) -> None:
    run, job = undisturbed
    assert (status(run)["state"], status(run)["step"]) == ("finished", 18)
    assert json.loads((run / "config.json").read_text())["facts"]["world_size"] == 4
    log = lab.log(job)
    for number, node in enumerate(lab.nodes):
        where = f"node {number} of 2: {node}, 2 process(es) on CPUs, 1 CPU(s) each; they meet at {lab.nodes[0]}:"
        assert f"{where}{20000 + job}\n" in log
    assert log.count("world_size") == 1  # one rank's output, not four
    files = {p.name for p in (run / "logs").iterdir()}
    assert files == {"legs.jsonl", "node-00000.log", "node-00001.log", *(f"rank-0000{r}.log" for r in (1, 2, 3))}
    assert f"=== job {job} leg 0 on {lab.nodes[1]}, " in (run / "logs" / "rank-00003.log").read_text()
    assert attempts(run) == [("done", 18)]
    assert lab.show(job, "Restarts") == "0", lab.log(job)


def test_finished_work_is_not_repeated(lab: Lab, shards: Path, undisturbed: tuple[Path, int]) -> None:
    run, _ = undisturbed
    before = weights(run)
    job = train(lab, shards, run, *TRAIN)
    again = lab.submit("--time=5", SCRIPTS / "pack.sbatch", f"source={lab.folder / 'pairs'}", f"out={shards}",
        "--size", 64)  # fmt: skip
    assert lab.wait(again) == "COMPLETED"
    assert f"{shards}: packed already" in lab.log(again)
    assert lab.wait(job) == "COMPLETED"
    assert "this run is finished (18 steps); nothing to do" in lab.log(job)
    assert lab.show(job, "Restarts") == "0", lab.log(job)
    assert weights(run) == before


def test_preempted_and_warned_a_run_ends_bit_equal(lab: Lab, shards: Path, undisturbed: tuple[Path, int]) -> None:
    """A job of higher priority takes its nodes, then its time limit is near; each time it saves and continues."""
    run = lab.folder / "disturbed"
    job = train(lab, shards, run, *TRAIN, sbatch=(*TWO, "--partition=low"))
    lab.wait_for(lambda: last_step(run) >= 3, "step 3", job)
    other = lab.submit("--partition=high", "--nodes=2", "--exclusive", "--time=1", "--wrap", "hostname")
    assert lab.wait(other) == "COMPLETED"
    assert status(run)["state"] == "stopped"
    first = status(run)["step"]
    lab.wait_for(lambda: last_step(run) > first + 2, "step after it", job)
    lab("scancel", "--signal=USR2", "--batch", job)  # as --signal=B:USR2@180 does, but at once
    saved = lab.wait_for(lambda: status(run)["state"] == "stopped", "save", job)
    assert saved < SOON_S
    second = status(run)["step"]
    assert lab.wait(job) == "COMPLETED", lab.log(job)
    assert lab.show(job, "Restarts") == "2", lab.log(job)
    assert attempts(run) == [("requeue", first), ("requeue", second), ("done", 18)]
    assert 3 <= first < second < 18
    assert f"resumed from {run}/checkpoints/step-{second:08d}" in lab.log(job)
    assert weights(run) == weights(undisturbed[0])


def test_a_job_stops_that_was_killed_twice_at_the_same_step(lab: Lab, shards: Path) -> None:
    run = lab.folder / "killed"
    job = train(lab, shards, run, *TRAIN, "--train.epochs", 1000, "--checkpoint.interval-steps", 1000)
    lab.wait_for(lambda: last_step(run) >= 2, "step 2", job)
    pid = rank(run, 3)
    assert pid
    os.kill(pid, signal.SIGKILL)
    ended = lab.wait_for(lambda: (run / "logs" / "legs.jsonl").exists(), "end of the first attempt", job)
    assert ended < SOON_S
    lab.wait_for(lambda: lab.show(job, "Restarts") == "1" and lab.state(job) == "RUNNING", "second attempt", job)
    lab.wait_for(lambda: rank(run, 3) is not None, "rank 3", job)
    killed = rank(run, 3)
    assert killed
    os.kill(killed, signal.SIGKILL)
    started = time.monotonic()
    assert lab.wait(job) == "FAILED"
    assert time.monotonic() - started < SOON_S
    assert lab.show(job, "Restarts") == "1", lab.log(job)
    assert [word for word, _ in attempts(run)] == ["requeue", "stop"]
    assert not list(processes(run))
    end = lab.log(job).split("stop: failed twice, and got no further than step ")[1]
    assert f"rank 3 on {lab.nodes[1]} was killed by signal 9" in end
    assert f"failed first: rank 3 on {lab.nodes[1]} was killed by signal 9" in end


@pytest.mark.parametrize(("leaves", "returns"), [("kill-node", "start-node"), ("cut-node", "join-node")])
def test_a_node_dies_or_is_cut_off_and_comes_back(lab: Lab, shards: Path, leaves: str, returns: str) -> None:
    """SLURM requeues the job, and it continues on two nodes. When its user cancels it, it does not come back."""
    run = lab.folder / leaves
    job = train(lab, shards, run, *TRAIN, "--train.epochs", 1000)
    lab.wait_for(lambda: last_step(run) >= 3, "step 3", job)
    lab.verb(leaves, lab.nodes[1])
    waited = lab.wait_for(lambda: lab.state(job) == "PENDING", "requeue", job)
    assert waited < 90  # SlurmdTimeout is 15 s here
    lab.verb(returns, lab.nodes[1])
    lab.wait_for(lambda: f"resumed from {run}/checkpoints/" in lab.log(job), "second attempt", job)
    restarts = lab.show(job, "Restarts")
    lab("scancel", job)
    assert lab.wait(job) == "CANCELLED"
    time.sleep(3)
    assert (lab.state(job), lab.show(job, "Restarts")) == ("CANCELLED", restarts)
    assert "requeue" not in lab.log(job).split("resumed from")[-1]
    assert not list(processes(run))


def test_a_rank_that_hangs_and_then_is_slow_is_named_with_its_node(lab: Lab, shards: Path) -> None:
    run = lab.folder / "hangs"
    job = train(lab, shards, run, *TRAIN, "--train.epochs", 1000, "--train.hang-dump-s", 3)
    lab.wait_for(lambda: last_step(run) >= 3, "step 3", job)
    stopped = rank(run, 3)
    assert stopped is not None
    os.kill(stopped, signal.SIGSTOP)
    lab.wait_for((run / "hang.json").exists, "the report of the rank that hangs", job)
    text = json.loads((run / "hang.json").read_text())["text"]
    assert re.search(rf"rank 3 on {lab.nodes[1]} does not answer \(.*\); its last word: [a-z]", text), text
    assert text in describe(run)
    assert f"rank 2 on {lab.nodes[1]}: no progress for " in (run / "logs" / "rank-00002.log").read_text()
    os.kill(stopped, signal.SIGCONT)
    step = last_step(run)
    lab.wait_for(lambda: last_step(run) > step + 2 and not (run / "hang.json").exists(), "further steps", job)

    def told_while_it_stumbles() -> bool:
        """Stops the rank for a second, lets it run for half of one, and looks whether it was called slow."""
        os.kill(stopped, signal.SIGSTOP)
        time.sleep(1)
        os.kill(stopped, signal.SIGCONT)
        time.sleep(0.5)
        return any(line.startswith('{"kind": "slow"') for line in (run / "metrics.jsonl").read_text().splitlines())

    lab.wait_for(told_while_it_stumbles, "slow rank", job, 4 * SLOW_FOR_S)
    slow = rf"rank 3 on {lab.nodes[1]} takes \d+\.\d\d times as long as the median rank"
    assert re.search(f"warning: the ranks wait: .*{slow}", lab.log(job))
    lab.wait_for(lambda: re.search(slow, describe(run)) is not None, "slow rank in `logs`", job)
    lab("scancel", job)
    assert lab.wait(job) == "CANCELLED"


def test_two_jobs_start_at_the_same_moment_on_the_same_nodes(lab: Lab, shards: Path) -> None:
    """They do not meet each other's ranks or ports. One of them reads its own copy of the shards."""
    runs, jobs = [lab.folder / "left", lab.folder / "right"], []
    for i, run in enumerate(runs):
        settings = ("procs=1", f"stage={i}", *TRAIN, "--train.epochs", 3)
        own_disk = "--export=ALL,TMPDIR=/dev/shm"
        jobs.append(train(lab, shards, run, *settings, sbatch=(*TWO, "--hold", own_disk)))
    lab("scontrol", "release", ",".join(map(str, jobs)))
    for job, run in zip(jobs, runs, strict=True):
        assert lab.wait(job) == "COMPLETED", lab.log(job)
        assert (status(run)["state"], status(run)["step"]) == ("finished", 6)
        assert lab.show(job, "Restarts") == "0", lab.log(job)
        assert json.loads((run / "config.json").read_text())["facts"]["world_size"] == 2
    assert lab.log(jobs[1]).count(f"/dev/shm/dist-sketch-{jobs[1]}-") == 2
    assert lab.log(jobs[1]).count(f": a good copy of {shards} (") == 2
    assert json.loads((runs[1] / "config.json").read_text())["config"]["data"]["shards"] == str(shards)
    assert weights(runs[0]) == weights(runs[1])


def test_a_time_limit_warns_saves_requeues_and_the_run_is_done(lab: Lab, shards: Path) -> None:
    """SLURM's own signal before a limit of one minute; SLURM checks the limits every 30 s."""
    run = lab.folder / "limited"
    long = ("--train.epochs", 150, "--data.batch-size", 2, "--checkpoint.interval-steps", 100)  # 1,200 steps
    one = ("--nodes=1", "--gpus-per-node=0", "--cpus-per-task=2", "--time=1", "--signal=B:USR2@55")
    job = train(lab, shards, run, *TRAIN, *long, sbatch=one)
    lab.wait_for(lambda: lab.show(job, "Restarts") == "1", "requeue", job)
    lab("scontrol", "update", f"JobId={job}", "TimeLimit=20")
    assert lab.wait(job) == "COMPLETED", lab.log(job)
    assert attempts(run) == [("requeue", step := attempts(run)[0][1]), ("done", 1200)]
    assert 0 < step < 1200
    assert "requeue: saved at step" in lab.log(job)


EXPERIMENT = """
title = "Four rates"

[infer]
batch-size = 2

[grid]
method = "grid"

[grid.values]
optim.lr_g = [2e-3, 1e-3]
optim.lr_d = [1e-3, 5e-4]
"""


def test_an_array_runs_an_experiment_and_one_task_is_preempted(lab: Lab, shards: Path) -> None:
    (lab.folder / "four.toml").write_text(EXPERIMENT)
    out = lab.folder / "four"
    node = ("--nodes=1", "--gpus-per-node=0", "--cpus-per-task=2", "--time=20")
    words = ("name=four.toml", f"data={shards}", f"out={out}", *TRAIN, "--train.epochs", 40, "--track.wandb", "offline")
    on_first = ("experiment", *node, "--partition=low", f"--nodelist={lab.nodes[0]}")
    ids = lab.submit_all(*on_first, *words)
    assert list(ids) == ["experiment", "page"]
    tasks = [f"{ids['experiment']}_{n}" for n in (1, 2, 3, 4)]
    runs = [Path(r) for r in re.findall(r"train .*--out (\S+)", (out / "plan.txt").read_text())]
    assert len(set(runs)) == 4
    lab.wait_for(lambda: any(last_step(r) >= 2 for r in runs), "step 2", tasks[0])
    # The tasks use all eight CPUs of the node, so a job that needs two of them preempts one task.
    urgent = ("--partition=high", f"--nodelist={lab.nodes[0]}", "--cpus-per-task=2", "--time=1", "--wrap", "hostname")
    assert lab.wait(lab.submit(*urgent)) == "COMPLETED"
    restarts = sorted(lab.show(task, "Restarts") for task in tasks)
    assert restarts == ["0", "0", "0", "1"]
    # The last task has the job id of the whole array; it must requeue only itself.
    lab.wait_for(lambda: last_step(runs[3]) >= 2, "step 2 of the last task", tasks[3])
    alone = int(lab.show(tasks[3], "Restarts"))
    lab("scancel", "--signal=USR2", "--batch", tasks[3])
    for task in tasks:
        assert lab.wait(task) == "COMPLETED", lab.log(task)
    assert int(lab.show(tasks[3], "Restarts")) == alone + 1
    assert sum(int(lab.show(task, "Restarts")) for task in tasks) == 2
    assert lab.wait(ids["page"]) == "COMPLETED", lab.log(ids["page"])
    assert "<html" in (out / "compare.html").read_text()
    for run in runs:
        assert (status(run)["state"], status(run)["step"]) == ("finished", 80)
        recorded = b"".join(p.read_bytes() for p in (run / "wandb").glob("*run-*/*.wandb"))
        assert f"slurm-array-{ids['experiment']}".encode() in recorded
    # Finished trainings are left out; a missing drawing is made again.
    assert list(lab.submit_all("--dry-run", *on_first, *words)) == []
    (out / "outputs" / runs[2].name / "metrics.json").unlink()
    again = lab("dist-sketch", "submit", "--dry-run", *on_first, *words)
    assert "--array=3 " in again


def test_parts_that_are_packed_by_an_array_are_merged(lab: Lab, shards: Path) -> None:
    """To the same bytes as those of one job."""
    out = lab.folder / "packed"
    where = (f"source={lab.folder / 'pairs'}", f"out={out}")
    ids = lab.submit_all("pack", "--array=1-2", "--time=5", *where, "--size", 64, "--shard-count", 10)
    assert list(ids) == ["pack", "merge"]
    assert lab.wait(ids["merge"]) == "COMPLETED", lab.log(ids["merge"])
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in shards.iterdir()}


def test_the_parts_of_an_array_are_merged(lab: Lab, shards: Path, chain: dict[str, int]) -> None:
    out, whole = lab.folder / "parts", lab.folder / "out"
    where = (f"run={lab.folder / 'undisturbed'}", f"input={shards}", f"out={out}")
    ids = lab.submit_all("infer", "--array=1-2", "--gpus-per-node=0", "--cpus-per-task=2", *where)
    assert list(ids) == ["infer", "merge"]
    assert lab.wait(ids["merge"]) == "COMPLETED", lab.log(ids["merge"])
    drawn = {p.relative_to(whole): p.read_bytes() for p in whole.glob("*/*.png")}
    assert len(drawn) == 8
    assert {p.relative_to(out): p.read_bytes() for p in out.glob("*/*.png")} == drawn
    assert_same_scores(*(json.loads((f / "metrics.json").read_text()) for f in (out, whole)))
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("out=run",), "error: shards=FOLDER is missing"),
        (("shards=a", "shard=b", "out=run"), "error: shard=b: neither a setting of this script (name=value) nor"),
        (("shards=no-such", "out=run", "--train.epochs", "1"), "stop: it could not begin: rank 0: error: no-such"),
    ],
)
def test_a_mistake_ends_the_job_at_once(lab: Lab, words: tuple[str, ...], sentence: str) -> None:
    job = lab.submit(*TWO[1:], "--nodes=1", SCRIPTS / "train.sbatch", *words)
    assert lab.wait(job) == "FAILED"
    assert sentence in lab.log(job)
    assert lab.show(job, "Restarts") == "0", lab.log(job)


def test_a_copied_script_finds_the_shared_part(lab: Lab) -> None:
    folder = lab.folder / "my scripts"
    folder.mkdir()
    shutil.copy(SCRIPTS / "pack.sbatch", folder / "mine.sbatch")

    def log(*options: str) -> str:
        job = lab.submit("--time=5", *options, "my scripts/mine.sbatch", "source=a/b.sbatch")
        assert lab.wait(job) == "FAILED"
        return lab.log(job)

    assert f"error: {folder}/common.sh is missing: copy it together with this script" in log()
    assert log(f"--export=ALL,DIST_SKETCH_SLURM={SCRIPTS}") == "error: out=FOLDER is missing\n"
    shutil.copy(SCRIPTS / "common.sh", folder)
    assert log() == "error: out=FOLDER is missing\n"


def test_scripts_are_clean() -> None:
    command = ["shellcheck", "--external-sources", "--check-sourced", *SCRIPTS.glob("*.s*"), SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_nothing_is_left_of_a_cluster() -> None:
    cluster = Lab(f"u{os.getpid()}n")
    inside = str(cluster.home)
    job = cluster.submit("--nodes=2", "--wrap", "srun sleep 600")
    cluster.wait_for(lambda: cluster.state(job) not in ("PENDING", *ENDED), "start", job)
    cluster.close()
    assert not cluster.home.exists()
    commands = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
    assert not [c for c in commands if inside.encode() in c]
