import io
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from conftest import face
from rich.console import Console

from dist_sketch.config import Track
from dist_sketch.errors import UserError
from dist_sketch.progress import Progress
from dist_sketch.track import Tracker, read_metrics, versions

OFF = Track(wandb="off")
OFFLINE = Track(wandb="offline", group="tests", timeout_s=0.5)  # of a W&B that is made to misbehave
WANDB = Path(sys.executable).with_name("wandb")


def tracker(run: Path, settings: Track = OFF, *, step: int = 0, is_main: bool = True) -> Tracker:
    return Tracker(
        run,
        settings,
        job="train",
        run_id="abcd1234",
        step=step,
        settings={"config": {"norm": "batch"}},
        is_main=is_main,
    )


def lines(run: Path) -> list[str]:
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n") or not text
    return text.split("\n")[:-1]


# metrics.jsonl


def test_a_line_a_call(tmp_path: Path) -> None:
    before = time.time()
    log = tracker(tmp_path)
    log.log("train", 1, {"epoch": 0, "loss/d": 1.5, "lock/reason": "timer", "lock/d": 1})
    log.log("val", 1, {"val/ssim": 0.25, "name": "Zoë"})
    log.close()
    first, second = map(json.loads, lines(tmp_path))
    assert before - 1 <= first.pop("time") <= second.pop("time") <= time.time() + 1
    assert list(first) == ["kind", "step", "epoch", "loss/d", "lock/reason", "lock/d"]
    assert first == {"kind": "train", "step": 1, "epoch": 0, "loss/d": 1.5, "lock/reason": "timer", "lock/d": 1}
    assert second == {"kind": "val", "step": 1, "val/ssim": 0.25, "name": "Zoë"}
    assert "Zoë" in lines(tmp_path)[1]
    assert [r["kind"] for r in read_metrics(tmp_path)] == ["train", "val"]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    tracker(tmp_path).log("train", 1, {"loss/d": math.nan, "loss/g": math.inf, "n": {"a": [-math.inf]}})
    (line,) = lines(tmp_path)
    assert '"loss/d": null, "loss/g": null, "n": {"a": [null]}' in line


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "a\nb", "a\x1cb"])
def test_a_line_end_within_a_value_does_not_cut_its_line(tmp_path: Path, text: str) -> None:
    tracker(tmp_path).log("bad", 1, {"keys": text})
    tracker(tmp_path, step=1)
    assert [r["keys"] for r in read_metrics(tmp_path)] == [text]


def test_resuming_cuts_the_log_back_to_the_checkpoint(tmp_path: Path) -> None:
    log = tracker(tmp_path)
    for step in range(1, 6):
        log.log("train", step, {"loss/d": step / 10})
    log.log("epoch", 3, {})
    path = tmp_path / "metrics.jsonl"
    kept = [line for line in lines(tmp_path) if json.loads(line)["step"] <= 3]
    path.write_text(path.read_text() + '{"kind": "train", "step": 1, "loss')  # killed in mid-line
    log = tracker(tmp_path, step=3)
    assert lines(tmp_path) == kept
    log.log("train", 4, {"again": True})
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 3, 4]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    good = '{"kind": "train", "step": 1}'
    for bad in ("[]", "3", "null", '{"kind": "train"}', '{"step": "x"}', "\0\0\0", "\ufffd", ""):
        (tmp_path / "metrics.jsonl").write_text(f"{bad}\n{good}\n{bad}")
        tracker(tmp_path, step=1)
        assert lines(tmp_path) == [good]
    (tmp_path / "metrics.jsonl").write_bytes(b'\xff\xfe\n{"kind": "train", "step": 1}\n{"kind"')
    assert read_metrics(tmp_path) == [{"kind": "train", "step": 1}]
    tracker(tmp_path, step=1)
    assert lines(tmp_path) == [good]


def test_a_run_without_a_log(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    tracker(tmp_path, step=5)
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    log = tracker(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written \(Is a directory\)$"):
        log.log("train", 1, {})


# status.json


def test_status_is_whole_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, replace, seen = tracker(tmp_path), os.replace, []
    log.status(state="running", step=1, loss=math.nan)
    first = json.loads((tmp_path / "status.json").read_text())
    assert (first["state"], first["step"], first["loss"]) == ("running", 1, None)
    assert abs(first["time"] - time.time()) < 60

    def look(old: Path, new: Path) -> None:
        seen.append((json.loads(new.read_text()), json.loads(old.read_text())["state"]))
        replace(old, new)

    monkeypatch.setattr(os, "replace", look)
    log.status(state="finished")
    assert seen == [(first, "finished")]
    assert os.listdir(tmp_path) == ["status.json"]


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("W&B is rank 0's"))
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 9}\n')
    log = tracker(tmp_path, OFFLINE, is_main=False)
    log.log("train", 1, {"loss/d": 1.0})
    log.status(state="running")
    log.picture("samples", 1, tmp_path / "none.png")
    log.close()
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    assert lines(tmp_path) == ['{"kind": "train", "step": 9}']


# W&B


def inspect(folder: Path) -> dict[str, Any]:
    """What W&B itself reads from an offline run."""
    command = [WANDB, "leet", "inspect", "--summary", "--json", folder]
    summary: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    return summary


def test_an_offline_run_is_really_written_and_each_leg_has_the_same_id(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = Track(wandb="offline", project="faces", group="tests", timeout_s=120)
    face(1)[0].save(tmp_path / "grid.png")
    for leg, steps in enumerate(([1, 2], [3, 4])):
        log = tracker(tmp_path, settings, step=2 * leg)
        for step in steps:
            log.log("train", step, {"loss/d": step / 10, "lock/reason": "timer", "images": 8 * step, "epoch": leg})
        log.log("epoch", steps[-1], {"loss/g": math.nan})
        log.picture("samples", steps[-1], tmp_path / "grid.png")
        log.close()
    offline = sorted((tmp_path / "wandb").glob("offline-run-*"), key=lambda p: p.stat().st_mtime)
    # offline-run-TIME-ID; W&B appends -1 where both legs begin within a second
    assert [p.name.split("-")[3] for p in offline] == ["abcd1234", "abcd1234"]
    summary = inspect(offline[-1])
    assert (summary["run_id"], summary["project"], summary["name"]) == ("abcd1234", "faces", tmp_path.name)
    assert (summary["state"], summary["exit_code"], summary["step"]) == ("finished", 0, 4)
    assert summary["config"] == {"config": {"norm": "batch"}}
    numbers = {k: summary["summary"][k] for k in ("loss/d", "images")}
    assert numbers == {"loss/d": 0.4, "images": 32}
    assert "lock/reason" not in summary["summary"]
    assert len(list(offline[-1].rglob("samples*.png"))) == 1
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 2, 3, 4, 4]
    assert "W&B" not in capfd.readouterr().out


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


def hanging(*_: Any, **__: Any) -> None:
    time.sleep(30)


def working(**broken: Callable[..., Any]) -> Callable[..., Any]:
    """A `wandb.init` whose run works but for the calls in `broken`."""
    calls: dict[str, Callable[..., Any]] = {"log": lambda *_, **__: None, "finish": lambda *_, **__: None}
    return lambda **_: SimpleNamespace(**(calls | broken))


ERRORS = [
    raising(RuntimeError("no route")),
    raising(wandb.errors.CommError("refused")),
    raising(SystemExit(1)),
    raising(KeyboardInterrupt()),
    hanging,
]
NAMES = ["error", "wandb's error", "exit", "interrupt", "hang"]


@pytest.mark.parametrize("call", ["init", "log", "finish"])
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
        log.log("train", step, {"loss/d": 1.0})
        log.picture("samples", step, tmp_path / "grid.png")
    log.status(state="finished")
    log.close()
    log.close()
    assert time.monotonic() - began < 10
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3]
    said = capsys.readouterr().out
    assert said.count("warning: W&B is switched off for this run (") == said.count("\n") == 1
    assert ("no answer within 0.5 s" in said) == (bad is hanging)


def test_a_wandb_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    log = tracker(tmp_path, OFFLINE)
    log.log("train", 1, {"loss/d": 1.0})
    log.close()
    assert capsys.readouterr().out.startswith("warning: W&B is switched off for this run (ModuleNotFoundError")
    assert len(read_metrics(tmp_path)) == 1


def test_a_missing_picture_costs_wandb_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb, "init", working())
    log = tracker(tmp_path, OFFLINE)
    log.picture("samples", 1, tmp_path / "missing.png")
    log.log("train", 1, {"loss/d": 1.0})
    assert capsys.readouterr().out.startswith("warning: W&B is switched off for this run (")
    assert len(read_metrics(tmp_path)) == 1


def test_only_numbers_go_to_wandb_with_their_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(wandb, "init", working(log=lambda values, step: sent.append((step, values))))
    log = tracker(tmp_path, OFFLINE)
    log.log("lock", 3, {"epoch": 0, "train_d": False, "reason": "timer"})
    log.log(
        "train", 4, {"epoch": 0, "images": 32, "lock/reason": "timer", "lock/d": 1, "loss/g": math.nan, "d/real": 0.5}
    )
    assert sent == [(4, {"lock/d": 1, "d/real": 0.5, "images": 32})]


def test_a_server_that_never_answers(tmp_path: Path) -> None:
    # The real client against a port that takes connections and says nothing; the process must still end by itself.
    script = """
import socket, sys
from pathlib import Path
from dist_sketch.config import Track
from dist_sketch.track import Tracker
server = socket.create_server(("127.0.0.1", 0))
import os
os.environ["WANDB_BASE_URL"] = f"http://127.0.0.1:{server.getsockname()[1]}"
import wandb
track = Track(wandb="online", timeout_s=2)
log = Tracker(Path(sys.argv[1]), track, job="train", run_id="abcd1234", step=0, settings={}, is_main=True)
for step in (1, 2, 3):
    log.log("train", step, {"loss/d": 1.0})
log.close()
print("the run is over", flush=True)
"""
    variables = {k: v for k, v in os.environ.items() if k != "WANDB_MODE"} | {"WANDB_API_KEY": "a" * 40}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("warning: W&B is switched off for this run (") == 1
    assert "the run is over" in done.stdout
    assert len(read_metrics(tmp_path)) == 3


@pytest.mark.parametrize(
    ("variables", "netrc", "mode"),
    [
        ({}, None, "offline"),
        ({"WANDB_API_KEY": "k"}, None, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, None, "offline"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, None, "offline"),
        ({}, "machine api.wandb.ai login user password k\n", "online"),
        ({}, "machine example.org login user password k\n", "offline"),
        ({}, "machine\n", "offline"),
    ],
)
def test_auto_is_online_for_those_who_are_logged_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], netrc: str | None, mode: str
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
    monkeypatch.setattr(wandb, "init", lambda **k: asked.append(k))
    tracker(tmp_path, Track(wandb="auto"))
    tracker(tmp_path, Track(wandb="online"))
    tracker(tmp_path, Track(wandb="offline"))
    tracker(tmp_path, OFF)
    assert [k["mode"] for k in asked] == [mode, "online", "offline"]
    assert {k["id"] for k in asked} == {"abcd1234"}
    assert asked[1]["resume"] == "allow"
    assert asked[2]["resume"] is None  # W&B cannot resume offline


def test_versions_are_those_that_are_installed() -> None:
    import torch

    found = versions()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert {"dist-sketch", "torchvision", "accelerate", "webdataset", "cuda"} <= set(found)


# The progress bar


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, is_main: bool) -> str:
    out = io.StringIO()
    monkeypatch.setattr(
        "dist_sketch.progress.Console", lambda **k: Console(file=out, force_terminal=terminal, width=120, **k)
    )
    with Progress(6, 8, 2, is_main) as progress:
        for step in (3, 4, 5, 6):
            values = {"loss/d": 1.25, "loss/g": 2.5, "loss/g_l1": 0.125} if step > 3 else {}
            progress.update(step, (step - 1) // 3, 2, values)
        progress.say("[saved] step 6")
    return out.getvalue()


def test_a_log_file_gets_a_line_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    said = shown(monkeypatch, terminal=False, is_main=True).splitlines()
    assert [" ".join(s.split()) for s in said if s] == [
        "epoch 1/2 step 3",
        "epoch 2/2 step 4 D 1.250 G 2.500 L1 0.1250",
        "[saved] step 6",
    ]


def test_a_terminal_gets_a_bar_and_other_ranks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = shown(monkeypatch, terminal=True, is_main=True)
    for part in ("epoch 2/2", "6/6", "images/s", "D 1.250 G 2.500"):
        assert part in bar
    for terminal in (True, False):
        assert shown(monkeypatch, terminal=terminal, is_main=False) == ""
