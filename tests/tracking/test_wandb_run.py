"""The W&B layer alone: with the real client offline, and with a client that misbehaves."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import wandb
from conftest import face

from dist_sketch.core.config import TrackConfig
from dist_sketch.tracking import wandb_run
from dist_sketch.tracking.tracker import Tracker, drop_later_lines, read_metrics
from dist_sketch.tracking.wandb_file import records
from dist_sketch.tracking.wandb_run import Artifact, Fragment, WandbRun, fragments, is_shown

OFFLINE = TrackConfig(wandb="offline", group="tests", timeout_s=0.5)  # for a W&B that misbehaves
WANDB = Path(sys.executable).with_name("wandb")
KEY = "a" * 40


@pytest.fixture(autouse=True)
def _not_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def tracker(run: Path, settings: TrackConfig, *, step: int = 0) -> Tracker:
    log = WandbRun(run, settings, job="train", run_id="abcd1234", settings={"norm": "batch"})
    drop_later_lines(run, step)
    return Tracker(run, log, is_main=True)


def inspect(folder: Path) -> dict[str, Any]:
    """What W&B itself reads from an offline run."""
    command = [WANDB, "leet", "inspect", "--summary", "--json", folder]
    summary: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    return summary


# The real client, offline


def test_an_offline_run_is_really_written_and_each_attempt_has_the_same_id(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = TrackConfig(wandb="offline", project="faces", group="tests", timeout_s=120)
    face(1)[0].save(tmp_path / "grid.png")
    threads = threading.active_count()
    for attempt, steps in enumerate(([1, 2], [3, 4])):
        log = tracker(tmp_path, settings, step=2 * attempt)
        for step in steps:
            about = {"images": 8 * step, "epoch": attempt}
            log.log("train", step, {"loss/d": step / 10, "lock/reason": "timer", **about})
        log.log("epoch", steps[-1], {"loss/d": 7.0, "loss/g": math.nan, **about})
        log.wandb.picture("samples", steps[-1], about["images"], tmp_path / "grid.png")
        log.wandb.table("pairs", ("score", "drawn"), [[1 / 3, np.zeros((8, 8, 3), np.uint8)]] * 20)
        log.wandb.made(Artifact(kind="model", name="generator-abcd1234", sha256=f"hash{attempt}"))
        log.close()
    attempts = fragments(tmp_path)
    assert [(f.run_id, f.online) for f in attempts] == [("abcd1234", False)] * 2
    summary = inspect(attempts[-1].folder)
    assert (summary["run_id"], summary["project"], summary["name"]) == ("abcd1234", "faces", tmp_path.name)
    assert (summary["state"], summary["exit_code"], summary["step"]) == ("finished", 0, 4)
    made = {"model": {"name": "generator-abcd1234", "sha256": "hash1"}}
    assert summary["config"] == {"norm": "batch", "made": made}
    found = {k: v for k, v in summary["summary"].items() if not k.startswith("_")}
    table = found.pop("pairs")
    assert (table["nrows"], table["ncols"]) == (wandb_run.MOST_ROWS, 2)
    assert found.pop("samples")["_type"] == "image-file"
    # the epoch's mean stands beside the last step's value, not in its place
    assert found == {"loss/d": 0.4, "lock/reason": "timer", "images": 32, "epoch": 1, "epoch/d": 7.0}
    assert len(list(attempts[-1].folder.rglob("samples*.png"))) == 1
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 2, 3, 4, 4]
    assert capfd.readouterr() == ("", "")
    assert threading.active_count() <= threads + 1
    assert {p.name for p in tmp_path.iterdir()} == {"grid.png", "metrics.jsonl", "wandb"}


def test_images_are_the_axis(tmp_path: Path) -> None:
    log = tracker(tmp_path, TrackConfig(wandb="offline", timeout_s=120))
    log.log("train", 1, {"loss/d": 1.0, "images": 8})
    log.close()
    command = [WANDB, "leet", "inspect", "--json", fragments(tmp_path)[0].folder]
    printed = subprocess.run(command, capture_output=True, check=True).stdout
    records = [json.loads(line) for line in printed.splitlines()]
    metrics = [r["metric"] for r in records if r["type"] == "metric"]
    assert {m.get("glob_name") or m.get("name"): m.get("step_metric") for m in metrics}["*"] == "images", metrics


def test_a_preempted_run_and_an_alert_are_told(tmp_path: Path) -> None:
    track = TrackConfig(wandb="offline", timeout_s=120)
    with WandbRun(tmp_path, track, job="train", run_id="one", settings={}) as log:
        log.alert("run failed", "rank 1 is gone")
        log.preempting()
    found = [record for _, record in records(next(fragments(tmp_path)[0].folder.glob("*.wandb")))]
    assert sum(b"run failed" in r and b"rank 1 is gone" in r for r in found) == 1
    command = [WANDB, "leet", "inspect", "--json", fragments(tmp_path)[0].folder]
    printed = subprocess.run(command, capture_output=True, check=True).stdout
    assert {"alert", "preempting"} <= {json.loads(line)["type"] for line in printed.splitlines()}


def test_a_job_in_a_block_is_finished_when_the_block_is_left(tmp_path: Path) -> None:
    track = TrackConfig(wandb="offline", name="mine", timeout_s=120)

    def job(run_id: str) -> WandbRun:
        return WandbRun(tmp_path, track, job="infer", run_id=run_id, settings={})

    with job("one") as log:
        log.summary({"raw/ssim": 0.5})
    with job("one") as log:
        log.summary({"raw/ssim": 0.6})
    with pytest.raises(ZeroDivisionError), job("other"):
        print(1 // 0)
    found = [inspect(f.folder) for f in fragments(tmp_path)]
    one, again, other = sorted(found, key=lambda s: s["start_time"])  # runs of one second are in any order
    assert [s["run_id"] for s in (one, again, other)] == ["one", "one", "other"]
    assert (one["name"], one["exit_code"], other["exit_code"]) == ("mine", 0, 1)
    assert [s["summary"].get("raw/ssim") for s in (one, again, other)] == [0.5, 0.6, None]


# A client that misbehaves


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


def hanging(*_: Any, **__: Any) -> None:
    time.sleep(30)


def working(**broken: Callable[..., Any]) -> Callable[..., Any]:
    """A `wandb.init` whose run works, except for the calls in `broken`."""

    def nothing(*_: Any, **__: Any) -> None: ...

    calls: dict[str, Any] = {"log": nothing, "finish": nothing, "define_metric": nothing, "url": ""}
    return lambda **_: SimpleNamespace(**(calls | broken))


ERRORS = [
    raising(RuntimeError("no route\nfor you")),
    raising(wandb.errors.CommError("refused")),
    raising(SystemExit(1)),
    raising(KeyboardInterrupt()),
    hanging,
]
NAMES = ["error", "wandb's error", "exit", "interrupt", "hang"]


@pytest.mark.parametrize("call", ["init", "define_metric", "log", "finish"])
@pytest.mark.parametrize("bad", ERRORS, ids=NAMES)
def test_a_broken_wandb_costs_its_log_alone_and_says_so_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    call: str,
    bad: Callable[..., Any],
) -> None:
    monkeypatch.setattr(wandb, "init", bad if call == "init" else working(**{call: bad}))
    face(1)[0].save(tmp_path / "grid.png")
    began = time.monotonic()
    log = tracker(tmp_path, OFFLINE)
    for step in range(1, 4):
        log.log("train", step, {"loss/d": 1.0, "images": step})
        log.wandb.picture("samples", step, step, tmp_path / "grid.png")
    log.status(state="finished")
    log.close()
    log.close()
    assert time.monotonic() - began < 15
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3]
    said = capsys.readouterr().out
    assert said.count("warning: W&B is switched off for this run (") == said.count("\n") == 1
    assert ("no answer within 0.5 s" in said) == (bad is hanging)


def test_all_calls_at_the_end_share_one_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: Any, **__: Any) -> None:
        time.sleep(0.4)

    config, summary = SimpleNamespace(update=slow), SimpleNamespace(update=slow)
    monkeypatch.setattr(wandb, "init", working(log=slow, finish=slow, summary=summary, config=config))
    log = WandbRun(tmp_path, OFFLINE, job="train", run_id="a", settings={})
    log.log({"loss/d": 1.0}, step=1)
    log.made(Artifact(kind="model", name="generator", sha256="hash"))  # waits for 0.8 s, longer than the timeout
    assert not log.is_on
    log = WandbRun(tmp_path, OFFLINE, job="train", run_id="a", settings={})
    log.made(Artifact(kind="model", name="generator", sha256="hash"))  # in time
    assert log.is_on
    began = time.monotonic()
    for _ in range(20):
        log.summary({})
    log.finish()
    assert time.monotonic() - began < 5  # not 20 * 0.4
    assert not log.is_on


def test_a_call_that_hangs_does_not_hold_up_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb, "init", working(log=hanging))
    log = WandbRun(tmp_path, TrackConfig(wandb="offline", timeout_s=5), job="train", run_id="a", settings={})
    step = 0
    while log.is_on:  # each call returns at once, until the first one hangs for longer than the timeout
        log.log({"loss/d": 1.0}, step)
        step += 1
        time.sleep(0.05)
    assert step > 10
    log.finish()
    said = capsys.readouterr().out
    assert said == "warning: W&B is switched off for this run (no answer within 5 s); nothing else is lost\n"


def test_the_calls_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def slower_and_slower(values: dict[str, Any], step: int) -> None:
        time.sleep(0.001 * (50 - step))
        sent.append(step)

    monkeypatch.setattr(wandb, "init", working(log=slower_and_slower))
    log = WandbRun(tmp_path, TrackConfig(wandb="offline", timeout_s=60), job="train", run_id="a", settings={})
    for step in range(50):
        log.log({"loss/d": 1.0}, step)
    log.finish()
    assert sent == list(range(50))


def test_a_wandb_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    log = tracker(tmp_path, OFFLINE)
    log.log("train", 1, {"loss/d": 1.0})
    log.close()
    assert capsys.readouterr().out.startswith("warning: W&B is switched off for this run (ModuleNotFoundError")
    assert len(read_metrics(tmp_path)) == 1


def test_its_import_does_not_eat_the_timeout(tmp_path: Path) -> None:
    # a package whose import takes three times the timeout
    package = tmp_path / "slow" / "wandb"
    package.mkdir(parents=True)
    run = "type('Run', (), {'define_metric': lambda *a, **k: None, 'finish': lambda *a, **k: None, 'offline': True})()"
    (package / "__init__.py").write_text(
        f"import time; time.sleep(1.5); init = lambda **k: {run}; teardown = lambda: None\nclass Settings(dict): ..."
    )
    script = f"""
from pathlib import Path
from dist_sketch.core.config import TrackConfig
from dist_sketch.tracking.wandb_run import WandbRun
config = TrackConfig(wandb="offline", timeout_s=0.5)
log = WandbRun(Path({str(tmp_path)!r}), config, job="train", run_id="a", settings={{}})
print("on:", log.is_on)
log.finish()
"""
    env = {**os.environ, "PYTHONPATH": str(package.parent), "WANDB_MODE": "offline"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=120)
    assert (done.stdout, done.returncode) == ("on: True\n", 0), done


def test_a_picture_or_table_that_fails_is_left_out_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(wandb, "init", working(log=lambda values, step: sent.append(step)))
    log = tracker(tmp_path, OFFLINE)
    log.wandb.picture("samples", 1, 8, tmp_path / "missing.png")
    log.wandb.table("pairs", ("one", "column too many"), [[1]])
    log.log("train", 2, {"loss/d": 1.0})
    log.close()
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in said] == [
        "warning: W&B did not take the picture",
        "warning: W&B did not take the table",
    ]
    assert sent == [2]


def test_which_values_go_to_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(wandb, "init", working(log=lambda values, step: sent.append((step, values))))
    log = tracker(tmp_path, OFFLINE)
    log.log("lock", 3, {"epoch": 0, "train_d": False, "reason": "timer"})
    log.log("nonfinite", 3, {"keys": {"0": ["a/b"]}})
    values = {"lock/reason": "timer", "lock/d": 1, "loss/g": math.nan, "d/real": 0.5}
    log.log("train", 4, {"epoch": 0, "images": 32, **values})
    log.log("epoch", 4, {"epoch": 0, "images": 32, "loss/d": 0.25})
    log.close()
    about = {"epoch": 0, "images": 32}
    assert sent == [(4, {"lock/reason": "timer", "lock/d": 1, "d/real": 0.5} | about), (4, {"epoch/d": 0.25} | about)]


# Online or offline


@pytest.mark.parametrize(
    ("variables", "netrc", "mode"),
    [
        ({}, None, "offline"),
        ({"WANDB_API_KEY": KEY}, None, "online"),
        ({"WANDB_API_KEY": "short"}, None, "offline"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, None, "offline"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "dryrun"}, None, "offline"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, None, None),
        ({}, f"machine api.wandb.ai login user password {KEY}\n", "online"),
        ({}, f"machine example.org login user password {KEY}\n", "offline"),
        ({}, "machine\n", "offline"),
    ],
)
def test_auto_is_online_for_those_who_are_logged_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], netrc: str | None, mode: str | None
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(file))
    if netrc is not None:
        file.write_text(netrc)
        file.chmod(0o600)
    asked: list[Any] = []

    def init(**about: Any) -> Any:
        asked.append(about)
        return working()()

    monkeypatch.setattr(wandb, "init", init)
    for way in ("auto", "online", "offline", "off"):
        tracker(tmp_path, TrackConfig(wandb=way, timeout_s=60))
    if mode is None:
        assert asked == []
        return
    known = KEY in str(variables) or (netrc is not None and "api.wandb.ai" in netrc)
    assert [k["mode"] for k in asked] == [mode, "online" if known else "offline", "offline"]
    assert {k["id"] for k in asked} == {"abcd1234"}
    for about in asked:
        assert about["resume"] == ("allow" if about["mode"] == "online" else None)  # W&B cannot resume offline


# Pictures and fragments


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 64, 1000])
def test_pictures_are_capped_evenly_and_the_last_is_among_them(count: int) -> None:
    shown = [n for n in range(1, count + 1) if is_shown(n, count)]
    assert len(shown) <= wandb_run.MOST_PICTURES
    assert len(shown) >= min(count, wandb_run.MOST_PICTURES // 2)
    assert shown[-1] == count
    assert len({b - a for a, b in pairwise(shown[:-1])}) <= 1


def test_fragments_are_in_the_order_of_their_beginning(tmp_path: Path) -> None:
    names = [
        "run-20260101_115959-abcd1234",
        "offline-run-20260101_120000-abcd1234",
        *(f"offline-run-20260101_120000-abcd1234-{n}" for n in (1, 2, 10)),
        "offline-run-20260101_120001-abcd1234",
        "offline-run-20260102_000000-00001234",
    ]
    for name in sorted(names, key=hash):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to(names[0])
    (tmp_path / "wandb" / "artifacts").mkdir()
    found = fragments(tmp_path)
    assert [f.folder.name for f in found] == names
    folder = tmp_path / "wandb" / names[4]
    assert found[4] == Fragment("20260101_120000", 10, "abcd1234", False, folder)
    assert [f.online for f in found] == [True] + [False] * 6
    assert fragments(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("track", "names"),
    [
        (TrackConfig(), ("theirs", "its name")),
        (TrackConfig(project="faces", name="mine"), ("faces", "mine")),
    ],
)
def test_defaults_give_way_to_the_variables_of_wandb(
    track: TrackConfig, names: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_NAME", "its name")
    assert wandb_run.project_and_name(tmp_path / "run", track) == names
    monkeypatch.delenv("WANDB_PROJECT")
    monkeypatch.delenv("WANDB_NAME")
    assert wandb_run.project_and_name(tmp_path / "run", TrackConfig()) == ("dist_sketch", "run")
