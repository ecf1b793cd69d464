"""From shards to scores as W&B sees it: attempts, job types, artifacts; online, and offline and sent later.

The server is a local one that answers as W&B's client expects; the real one is not tested.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from support.forks import Forks
from support.outcome import outcome
from support.wandb_server import Kept, Server

from dist_sketch.core.folders import Lock
from dist_sketch.data.manifest import manifest_hash
from dist_sketch.tracking import wandb_run
from dist_sketch.tracking.tracker import read_metrics, versions
from dist_sketch.tracking.wandb_run import fragments

NO_ACCOUNT = {"NETRC": os.devnull, "WANDB_MODE": "offline"}
SHORT_RUN = ("--train.epochs", 2, "--train.validate-limit", 2, "--train.sample-count", 2, "--track.timeout-s", 60)


# ---------------------------------------------------------------- in the run


def signalled(step: str, number: str) -> None:
    """Hook: sends the process a signal after a step."""
    from dist_sketch.training import loop
    from dist_sketch.training.run import Run

    train_batch = loop.train_batch

    def signalling(run: Run, batch: Any) -> None:
        if run.state.step == int(step):
            if int(number) == signal.SIGKILL:
                time.sleep(2 * wandb_run.FLUSH_S)  # W&B loses newer values if the process is killed
            os.kill(os.getpid(), int(number))
        train_batch(run, batch)

    loop.train_batch = signalling


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    server = Forks("test_wandb_flow", tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


# ---------------------------------------------------------------- attempts


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory, forks: Forks, shards: Path) -> Path:
    """A run of six steps in three offline attempts: killed in step 4, asked to stop in step 5, finished. Read only."""
    run = tmp_path_factory.mktemp("attempts") / "run"
    command = ("train", "--data.shards", shards, *TINY, *SHORT_RUN, "--track.wandb", "offline", "--out", run)
    ends = [("signalled", 3, int(signal.SIGKILL)), ("signalled", 4, int(signal.SIGUSR2)), ()]
    codes = [forks.run(*command, hook=hook, **NO_ACCOUNT).code for hook in ends]
    assert codes == [-signal.SIGKILL, os.EX_TEMPFAIL, 0]
    return run


@pytest.fixture
def run(attempts: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    shutil.copytree(attempts, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def summary(folder: Path) -> dict[str, Any]:
    """What `wandb leet` shows of a fragment."""
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--summary", "--json", folder]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    return found


def test_all_attempts_have_one_id_and_metrics_jsonl_is_the_truth(attempts: Path) -> None:
    config = json.loads((attempts / "config.json").read_text())
    found = fragments(attempts)
    assert {f.run_id for f in found} == {config["facts"]["run_id"]}
    assert len(found) == 3
    records = read_metrics(attempts)
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]  # cut back, not twice
    assert len((attempts / "metrics.jsonl").read_text().splitlines()) == len(records)
    states = [summary(f.folder) for f in found]
    assert [s["exit_code"] for s in states[1:]] == [os.EX_TEMPFAIL, 0]
    assert states[-1]["summary"]["images"] == 24


def test_the_names_are_few_enough_to_read_and_grouped(attempts: Path) -> None:
    shown = summary(fragments(attempts)[-1].folder)["summary"]
    names = {n for n in shown if not n.startswith("_")}
    assert len(names) <= 40
    assert {n for n in names if "/" not in n} == {"epoch", "images", "pairs", "samples", "validation"}
    assert shown["validation"]["ncols"] == 5  # the same table at each step: W&B shows a slider
    assert {n.partition("/")[0] for n in names if "/" in n} == {
        *("loss", "d", "norm", "lock", "lr", "speed", "skipped", "epoch", "val", "finite_steps"),
    }
    logged = {k for r in read_metrics(attempts) if r["kind"] == "train" for k in r if "/" in k}
    assert logged <= names
    assert {
        *("loss/d", "loss/d_real", "loss/d_fake", "loss/g", "loss/g_bce", "loss/g_l1", "d/real", "d/fake"),
        *("lock/d", "lock/g", "lock/reason", "lr/d", "lr/g", "norm/d", "norm/g", "skipped/nonfinite", "skipped/bad"),
        *("skipped/policy_d", "skipped/policy_g", "skipped/overflow_d", "skipped/overflow_g"),
        *("speed/images_per_s", "speed/data_wait", "speed/step_s", "speed/memory_mb"),
    } == logged
    # TIMER 2: D rests in the second of two epochs; counted through all attempts
    assert [(r["skipped/policy_d"], r["skipped/policy_g"]) for r in read_metrics(attempts) if r["kind"] == "train"] == [
        *[(0, 0)] * 3, *((n, 0) for n in (1, 2, 3)),
    ]  # fmt: skip


def test_the_configuration_says_what_was_run_with_what(attempts: Path, shards: Path) -> None:
    config = summary(fragments(attempts)[-1].folder)["config"]
    saved = json.loads((attempts / "config.json").read_text())
    assert {k: config[k] for k in saved["config"]} == saved["config"]
    facts = config["facts"]
    assert facts == saved["facts"]
    assert facts["manifest_sha256"] == manifest_hash(shards)
    assert (facts["world_size"], facts["global_batch"]) == (1, 4)
    assert facts["versions"] == versions()
    assert re.fullmatch(r"[0-9a-f]{40}(\+dirty)?|\d+\.\d+\.\d+", facts["code"])
    # offline W&B has no artifacts: their names and hashes stand here
    digest = manifest_hash(shards)
    assert config["uses"] == {"dataset": {"name": f"shards-{digest[:12]}", "sha256": digest}}
    newest = json.loads((attempts / "checkpoints" / "step-00000006" / "checkpoint.json").read_text())
    model = config["made"]["model"]
    assert model["name"] == f"generator-{facts['run_id']}"
    assert model["sha256"] in json.dumps(newest)


# ---------------------------------------------------------------- sync


def check_arrived(kept: Kept) -> None:
    steps = [h["_step"] for h in kept.history]
    # Killed in step 4 and resumed from step 2's checkpoint, it made step 3 twice. W&B sends a step with the next one.
    assert steps in ([1, 2, 3, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]), steps
    assert [h["images"] for h in kept.history] == [4 * s for s in steps]
    assert kept.about["jobType"] == "train"
    assert kept.exit_code == 0


def test_sync_sends_the_attempts_in_their_order(run: Path, forks: Forks) -> None:
    littered = Path("wandb").exists()
    with Server() as server:
        sent = forks.run("sync", run, **server.env)
        assert sent.code == 0, sent
        assert Path("wandb").exists() == littered  # W&B leaves nothing in the working directory
        ((run_id, kept),) = server.runs.items()
        check_arrived(kept)
        before = len(kept.history)
        assert sent.out.count(f"run {run_id}, begun ") == 3
        again = forks.run("sync", run, **server.env)
        assert (again.code, again.out) == (0, f"{run}: nothing to send; 3 attempt(s) were sent before\n")
        assert len(kept.history) == before


def test_sync_stops_at_what_is_not_taken_and_goes_on_from_there(run: Path, forks: Forks) -> None:
    with Server() as server:
        server.mood = 401
        refused = forks.run("sync", run, **server.env)
        first = fragments(run)[0].folder
        assert refused.code == 2
        assert re.fullmatch(
            rf"error: {first}: W&B did not take it \(.+\); start this again, or remove that folder\n", refused.err
        )
        assert refused.out.count("begun") == 1
        server.mood = "good"
        assert forks.run("sync", run, **server.env).code == 0
        check_arrived(*server.runs.values())


def test_an_attempt_that_has_written_nothing_is_skipped(run: Path, forks: Forks) -> None:
    first = fragments(run)[0]
    (file,) = first.folder.glob("*.wandb")
    file.write_bytes(file.read_bytes()[:7])
    with Server() as server:
        sent = forks.run("sync", run, **server.env)
        assert sent.code == 0, sent
        assert [h["_step"] for h in server.runs[first.run_id].history] == [3, 4, 5, 6]


def test_sync_says_what_is_wrong(run: Path, tmp_path: Path, forks: Forks) -> None:
    (tmp_path / "empty").mkdir()
    for folder, env, code, says in (
        (run, NO_ACCOUNT | {"HOME": str(tmp_path)}, 2, "error: W&B knows no account here: `wandb login`"),
        (tmp_path / "none", NO_ACCOUNT, 2, f"error: {tmp_path}/none: there is no such folder"),
        (tmp_path / "empty", NO_ACCOUNT, 0, f"{tmp_path}/empty: nothing to send (no wandb/offline-run-*)"),
    ):
        ended = forks.run("sync", folder, **env)
        assert ended.code == code, ended
        assert (ended.out + ended.err).startswith(says)
        assert len((ended.out + ended.err).splitlines()) == 1
    assert list((tmp_path / "empty").iterdir()) == []
    lock = Lock(run)  # as long as this object lives
    lock.acquire()
    busy = forks.run("sync", run, **NO_ACCOUNT)
    assert (busy.code, busy.out) == (2, "")
    assert busy.err.startswith(f"error: {run}: process {os.getpid()} on ")


# ---------------------------------------------------------------- pack, train, infer, evaluate


def jobs(forks: Forks, pairs: Path, folder: Path, way: str, **env: str) -> None:
    track = ("--track.group", "first", "--track.wandb", way, "--track.timeout-s", 60)
    packed, run, out = folder / "shards", folder / "run", folder / "out"
    tiny = [*TINY, *SHORT_RUN, "--train.epochs", 1]
    for command in (
        ("pack", pairs, "--out", packed, "--size", 64, "--workers", 1, *track),
        ("verify", packed),
        ("train", "--data.shards", packed, "--out", run, *tiny, *track),
        ("infer", "--run", run, "--input", packed, "--out", out, "--workers", 0, *track),
        ("evaluate", out, *track),
    ):
        ended = forks.run(*command, **env)
        assert ended.code == 0, ended
        assert "warning" not in ended.out, ended.out
    assert forks.run("infer", "--run", run, "--input", packed, "--out", out, "--workers", 0).code == 0  # once more


def test_online_w_and_b_sees_which_run_used_what(tmp_path: Path, forks: Forks, pairs: Path) -> None:
    with Server() as server:
        jobs(forks, pairs, tmp_path, "online", **server.env)
        by_job = {kept.about["jobType"]: (run_id, kept) for run_id, kept in server.runs.items()}
        assert list(by_job) == ["pack", "train", "infer"]
        assert len(server.runs) == 3  # evaluate goes to infer's
        assert {kept.about["groupName"] for kept in server.runs.values()} == {"first"}
        assert {kept.exit_code for kept in server.runs.values()} == {0}
        digest = manifest_hash(tmp_path / "shards")
        made = [(a["artifactCollectionName"], a["artifactTypeName"]) for a in server.artifacts]
        dataset, model = (f"shards-{digest[:12]}", "dataset"), (f"generator-{by_job['train'][0]}", "model")
        assert made.index(dataset) < made.index(model)
        used = [(made[int(u["artifactID"][1:]) - 1], u["runName"]) for u in server.used]
        assert (dataset, by_job["train"][0]) in used
        assert {(dataset, by_job["infer"][0]), (model, by_job["infer"][0])} <= set(used)
        metadata = {json.loads(a["metadata"])["sha256"] for a in server.artifacts if a["artifactTypeName"] == "dataset"}
        assert metadata == {digest}
        pack, infer = by_job["pack"][1].config, by_job["infer"][1].config
        assert pack["made"]["value"]["dataset"]["sha256"] == pack["manifest_sha256"]["value"] == digest
        assert infer["uses"]["value"]["model"] == by_job["train"][1].config["made"]["value"]["model"]
        assert outcome(tmp_path / "run").status == ("finished", 3)


def test_offline_all_jobs_are_logged_and_can_be_sent_later(tmp_path: Path, forks: Forks, pairs: Path) -> None:
    jobs(forks, pairs, tmp_path, "offline", **NO_ACCOUNT)
    found = {name: [summary(f.folder) for f in fragments(tmp_path / name)] for name in ("shards", "run", "out")}
    assert [len(v) for v in found.values()] == [1, 1, 2]
    pack, out = found["shards"][0], found["out"]
    assert (pack["summary"]["train/samples"], pack["summary"]["val/samples"]) == (13, 5)
    assert out[0]["run_id"] == out[1]["run_id"]
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for kind in ("raw", "denoised"):
        shown = {k.split("/")[1]: v for k, v in out[0]["summary"].items() if k.startswith(f"{kind}/")}
        assert shown.keys() >= {"ssim", "l1", "psnr"}
        assert shown == pytest.approx({k: v for k, v in scores[kind].items() if v is not None})
    assert out[0]["summary"]["pairs"]["nrows"] == 5
    with Server() as server:
        sent = forks.run("sync", *(tmp_path / name for name in found), **server.env)
        assert sent.code == 0, sent
        assert [kept.about["jobType"] for kept in server.runs.values()] == ["pack", "train", "infer"]
