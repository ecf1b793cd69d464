"""The experiment command: plans, what is missing, stops and failures, verdicts, sweeps; once with real trainings.

Their networks are tiny (`forks`).
"""

import dataclasses
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Run, write_pairs
from PIL import Image
from support import preloaded
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from dist_sketch.__main__ import parse
from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config
from dist_sketch.core.errors import UserError
from dist_sketch.core.folders import Lock
from dist_sketch.core.words import duration
from dist_sketch.data import pack, recipe
from dist_sketch.data.manifest import manifest_hash
from dist_sketch.experiments import measures, planning, presets, runner
from dist_sketch.experiments.claims import Values, comparisons, judge
from dist_sketch.experiments.presets import Claim
from dist_sketch.reports.compare.scores import CONFIDENCE
from dist_sketch.reports.page import render

LAUNCH = Path(__file__).parents[2] / "launch"

# Stands for `dist-sketch` where only the order and the files matter: --launch 'python fake.py dist-sketch'
FAKE = """
import json, os, signal, sys, time
from pathlib import Path
kind, words = sys.argv[2], sys.argv[3:]
out = Path(words[words.index("--out") + 1])
name = f"{out.name}-{kind}"
with open("calls.txt", "a") as f:
    f.write(name + "\\n")
print(f"this is {name}", flush=True)
out.mkdir(parents=True, exist_ok=True)
def leave(state, epochs=0):
    (out / "status.json").write_text(json.dumps({"state": state, "epochs": epochs, "step": 10 * epochs}))
def stop(*_):
    leave("stopped")
    sys.exit(int(os.environ["ON_STOP"]))
if name == os.environ.get("HANG"):
    signal.signal(signal.SIGTERM, stop)
    Path("hangs").touch()
    time.sleep(60)
if name == os.environ.get("FAIL"):
    print("out of luck")
    sys.exit(int(os.environ.get("CODE", 1)))
def seal(run, step):
    return run / f"checkpoints/step-{step:08d}/checkpoint.json"
if kind == "train":
    epochs = int(words[words.index("--train.epochs") + 1])
    file = seal(out, 10 * epochs)
    file.parent.mkdir(parents=True, exist_ok=True)
    weights = {"bytes": 1, "sha256": f"weights of {time.time_ns()}"}
    file.write_text(json.dumps({"step": 10 * epochs, "files": {"generator.safetensors": weights}}))
    leave("finished", epochs)
else:
    run = Path(words[words.index("--run") + 1])
    step = json.loads((run / "status.json").read_text())["step"]
    weights = json.loads(seal(run, step).read_text())["files"]["generator.safetensors"]["sha256"]
    about = {"step": step, "mode": {"statistics": "running"}, "weights_sha256": weights}
    (out / "infer.json").write_text(json.dumps(about))
    (out / "metrics.json").write_text("{}")
"""

PRESET = """
title = "Small"
config = "demo"
seeds = 2
[rows.a]
settings = { loss.lambda_l1 = 8 }
[rows.b]
like = "a"
settings = { conditional.mode = "off" }
[rows.c]
like = "b"
noise_removal = true
[rows.d]
settings = { loss.lambda_l1 = 8, conditional.mode = "on" }
[parts.one]
title = "One"
rows = ["a", "d"]
[parts.two]
title = "Two"
form = "faces"
rows = ["b", "c"]
[parts.three]
title = "Three"
rows = ["d"]
optional = true
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the preset small.toml and the program fake.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(PRESET)
    (tmp_path / "fake.py").write_text(FAKE)
    return tmp_path


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed shards with pairs enough for the largest batch of the paper's experiment."""
    out = tmp_path_factory.mktemp("sixteen")
    pack.pack(recipe.load(str(write_pairs(out / "pairs", 16, 1))), out / "shards", size=64, workers=1)
    return out / "shards"


def plan(shards: Path, *arguments: object, name: str = "paper") -> list[list[str]]:
    """The words of the lines that a dry run writes."""
    command = ["experiment", name, "--data", str(shards), "--out", "exp", "--dry-run", *map(str, arguments)]
    assert parse(command)() == 0
    return [shlex.split(x) for x in Path("exp/plan.txt").read_text().splitlines() if x and not x.startswith("#")]


def trainings(lines: list[list[str]]) -> dict[str, Config]:
    """Run's name -> its configuration, as `dist-sketch train` itself reads the line."""
    found = {}
    for words in lines:
        assert words[0] == "dist-sketch"
        if words[1] == "train":
            command: Any = parse(words[1:]).__self__  # type: ignore[attr-defined]
            found[command.out.name] = command.settings
    return found


def test_the_paper_s_plan_says_what_the_paper_did(shards: Path, folder: Path) -> None:
    lines = plan(shards, "--seeds", 2, "--epochs", 7)
    runs = trainings(lines)
    base = cfg.load("paper")
    assert list(runs) == [
        f"{r}-s{s}" for s in (0, 1) for r in ("pix2pix", "ct", "lambda-8", "lambda-20", "convolution")
    ]
    for name, config in runs.items():
        assert config.train.seed == int(name[-1])
        assert config.train.epochs == 7
        assert config.track.group == "paper"
        assert config.data.shards == shards
        assert config.data.shuffle is base.data.shuffle is False
    chosen = {n[:-3]: (c.conditional.mode, c.loss.lambda_l1, c.generator.network) for n, c in runs.items()}
    assert chosen == {
        "pix2pix": ("off", 100, "unet"),  # Table 1's lambda 100 is Table 2's pix2pix and Fig. 6's
        "ct": ("paper", 100, "unet"),  # +NR needs no training of its own
        "lambda-8": ("off", 8, "unet"),
        "lambda-20": ("off", 20, "unet"),
        "convolution": ("off", 100, "baseline"),
    }
    example = (LAUNCH.parent / "slurm/experiment.sbatch").read_text()  # of this plan
    assert f"sbatch --array=1-{len(runs)}%4" in example
    draws = [words for words in lines if words[1] == "infer"]
    assert [w[w.index("--run") + 1] for w in draws] == [f"exp/runs/{name}" for name in runs]
    assert [w[w.index("--out") + 1] for w in draws] == [f"exp/outputs/{name}" for name in runs]
    for words in draws:
        command: Any = parse(words[1:]).__self__  # type: ignore[attr-defined]
        assert command.input == [shards]
        assert words[words.index("--track.group") + 1] == "paper"
    assert [w[1] for w in lines] == ["train", "infer"] * len(runs)


def test_only_some_tables_and_the_optional_one(shards: Path, sixteen: Path, folder: Path) -> None:
    assert list(trainings(plan(shards, "--only", "table2"))) == ["pix2pix-s0", "ct-s0"]
    assert list(trainings(plan(shards, "--only", "fig4, fig6"))) == ["pix2pix-s0", "convolution-s0"]
    # The shared run has the same name whichever table asks for it.
    assert list(trainings(plan(shards, "--only", "table1"))) == ["pix2pix-s0", "lambda-8-s0", "lambda-20-s0"]
    batches = trainings(plan(sixteen, "--only", "batch"))
    assert {n: c.data.batch_size for n, c in batches.items()} == {"pix2pix-s0": 8, "batch-4-s0": 4, "batch-16-s0": 16}
    with pytest.raises(UserError, match="there is no 'table3' in paper; there are table1, table2, fig4"):
        plan(shards, "--only", "table3")


def test_train_s_settings_go_to_all_lines_and_a_row_s_own_win(sixteen: Path, folder: Path) -> None:
    settings = (
        "--data.batch-size",
        4,
        "--data.shuffle",
        "--norm",
        "group",
        "--track.wandb",
        "off",
        "--loss.lambda-l1",
        5,
    )
    lines = plan(sixteen, *settings, "--only", "table1,batch,fig5")
    runs = trainings(lines)
    # --data.shuffle is the default of `train`, but not of this preset
    assert all(c.data.shuffle and c.norm == "group" and c.track.wandb == "off" for c in runs.values())
    assert {n: c.loss.lambda_l1 for n, c in runs.items()} == {
        **{"ct-s0": 5, "lambda-8-s0": 8, "lambda-20-s0": 20, "lambda-100-s0": 100},
        **{"pix2pix-s0": 5, "batch-8-s0": 5, "batch-16-s0": 5},  # batch 4 is pix2pix now
    }
    assert {n: c.data.batch_size for n, c in runs.items() if n.startswith("batch")} == {
        "batch-8-s0": 8,
        "batch-16-s0": 16,
    }
    assert all("--track.wandb off" in shlex.join(words) for words in lines)
    for wrong in (("--train.seed", 3), ("--data.shards", sixteen)):
        with pytest.raises(UserError, match="set by the experiment itself: use --data and --seeds"):
            plan(sixteen, *wrong)
    with pytest.raises(UserError, match=r"optim.lr_g = -1.0: must be above 0"):
        plan(sixteen, "--optim.lr-g", -1)


def test_a_row_of_another_preset_starts_from_that(shards: Path, folder: Path) -> None:
    (folder / "own.toml").write_text("[loss]\nlambda_l1 = 7\n[optim]\nlr_d = 5e-4")
    text = PRESET.replace("[rows.b]\n", '[rows.b]\nconfig = "own.toml"\n').replace('like = "a"\n', "")
    (folder / "small.toml").write_text(text)
    lines = plan(shards, "--seeds", 1, "--epochs", 3, "--optim.beta1", 0.4, name="small.toml")
    runs = trainings(lines)
    assert list(runs) == ["a-s0", "b-s0"]  # c is like b: the same training
    own, demo = cfg.load("own.toml"), cfg.load("demo")
    assert (runs["a-s0"].loss.lambda_l1, runs["a-s0"].optim.lr_d) == (8, demo.optim.lr_d)
    assert (runs["b-s0"].loss.lambda_l1, runs["b-s0"].optim.lr_d, runs["b-s0"].conditional.mode) == (7, 5e-4, "off")
    assert runs["b-s0"].train.validate_interval_epochs == own.train.validate_interval_epochs
    assert {(c.train.epochs, c.optim.beta1) for c in runs.values()} == {(3, 0.4)}
    configs = [words[words.index("--config") + 1] for words in lines if words[1] == "train"]
    assert configs == ["demo", "own.toml"]
    (folder / "small.toml").write_text(text.replace("own.toml", "nothing"))
    with pytest.raises(UserError, match="nothing"):
        plan(shards, name="small.toml")


def test_portrait_stands_beside_the_paper_s_recipe_at_the_same_number_of_images(shards: Path, folder: Path) -> None:
    runs = trainings(plan(shards, name="portrait"))
    assert list(runs) == [f"{row}-s{seed}" for seed in (0, 1) for row in ("pix2pix", "ct", "portrait")]
    paper = dataclasses.replace(cfg.load("paper").conditional, mode="off")
    assert runs["pix2pix-s0"].conditional == paper
    assert runs["ct-s1"].conditional.mode == "paper"
    mine = dataclasses.replace(runs["portrait-s1"], track=Config().track, data=cfg.load("portrait").data)
    assert dataclasses.replace(mine, train=cfg.load("portrait").train) == cfg.load("portrait")
    assert {c.train.epochs for c in runs.values()} == {50}


def test_the_steps_to_portrait_end_there(shards: Path, folder: Path) -> None:
    runs = trainings(plan(shards, "--only", "steps", "--seeds", 1, name="portrait"))
    assert list(runs) == [f"{r}-s0" for r in ("pix2pix", "portrait", "rates", "gray", "group", "resize", "grain")]
    last, portrait = dict(cfg.items(runs["grain-s0"])), dict(cfg.items(runs["portrait-s0"]))
    same = ("checkpoint.", "conditional.", "loss.d_backward")  # no difference to the last networks
    differ = {k for k in last if last[k] != portrait[k] and not k.startswith(same)}
    assert differ == {"loss.lambda_ssim"}


def test_lines_are_started_as_the_user_wants(shards: Path, folder: Path) -> None:
    lines = plan(shards, "--launch", "accelerate launch --config_file 'my files/cpu2.yaml'", "--only", "fig4")
    start = ["accelerate", "launch", "--config_file", "my files/cpu2.yaml", "-m", "dist_sketch"]
    assert [words[:7] for words in lines] == [[*start, "train"], [*start, "infer"]]
    named = plan(shards, "--launch", shlex.join(start), "--only", "fig4")
    assert named == lines
    with pytest.raises(UserError, match="--launch is empty"):
        plan(shards, "--launch", "")


def test_data_that_cannot_be_scored_are_refused(shards: Path, folder: Path) -> None:
    (folder / "odd").mkdir()
    manifest = json.loads((shards / "manifest.json").read_text())
    del manifest["splits"]["val"]
    (folder / "odd/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="odd: has no val split with sketches"):
        plan(folder / "odd")
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        plan(folder / "nowhere")
    with pytest.raises(
        UserError, match=r"papre: neither a .toml file nor an experiment in launch/ \(there: paper, portrait, sweep\)"
    ):
        plan(shards, name="papre")
    (folder / "exp").mkdir()
    (folder / "exp/letter.txt").touch()
    with pytest.raises(UserError, match="exp: exists and is not an experiment's folder"):
        plan(shards)


def test_a_test_split_is_scored_where_there_is_one(pairs: Path, shards: Path, folder: Path) -> None:
    assert not any("--split" in words for words in plan(shards))
    manifest = pack.pack(recipe.load(str(pairs), test_fraction=0.4), folder / "three", size=64, workers=1)
    assert manifest["settings"]["test_fraction"] == 0.4
    assert manifest["splits"]["train"]["count"] + manifest["splits"]["test"]["count"] == 13
    words = [w for w in plan(folder / "three", "--only", "table2") if w[1] == "infer"]
    assert words
    assert all(w[w.index("--split") + 1] == "test" for w in words)


def test_trainings_get_longer_only_with_epochs(shards: Path, folder: Path) -> None:
    first = trainings(plan(shards, "--epochs", 7, "--only", "table2"))["pix2pix-s0"]
    (folder / "exp/runs/pix2pix-s0").mkdir(parents=True)
    saved = {"config": cfg.to_dict(first), "facts": {"manifest_sha256": manifest_hash(shards)}}
    (folder / "exp/runs/pix2pix-s0/config.json").write_text(json.dumps(saved))
    kept = trainings(plan(shards, "--only", "table2", "--seeds", 2))
    assert {config.train.epochs for config in kept.values()} == {7}  # also of those that are not there yet
    longer = trainings(plan(shards, "--only", "table2", "--epochs", 9))
    assert {config.train.epochs for config in longer.values()} == {9}


def test_the_folder_of_an_experiment_is_no_page(shards: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"^page\.html: --out is the folder for all runs .* a name such as page$"):
        parse(["experiment", "paper", "--data", str(shards), "--out", "page.html", "--dry-run"])()
    assert not (folder / "page.html").exists()


def fifo(file: Path) -> None:
    os.mkfifo(file)


@pytest.mark.parametrize(
    "put",
    [
        lambda file: file.write_text("1. Buy pencils\n"),
        lambda file: file.write_bytes(b"\xff\xfe\0"),
        lambda file: file.write_text(""),
        lambda file: file.mkdir(),
        fifo,
        lambda file: file.symlink_to("../small.toml"),
    ],
    ids=["text", "bytes", "empty", "folder", "fifo", "link"],
)
def test_a_plan_of_somebody_else_stays_as_it_is(shards: Path, folder: Path, put: Callable[[Path], None]) -> None:
    (folder / "exp").mkdir()
    file = folder / "exp/plan.txt"
    put(file)
    before = file.lstat().st_ino, file.lstat().st_mtime_ns
    with pytest.raises(UserError, match=r"exp/plan\.txt: is not a plan of dist_sketch, and would be overwritten"):
        plan(shards)
    assert (file.lstat().st_ino, file.lstat().st_mtime_ns) == before
    assert [p.name for p in (folder / "exp").iterdir()] == ["plan.txt"]


# The runner, with a program in the place of dist-sketch

ALL = [f"{row}-s{seed}-{kind}" for seed in (0, 1) for row in "ab" for kind in ("train", "infer")]


def command(shards: Path, *arguments: object) -> list[str]:
    launch = shlex.join([sys.executable, "fake.py", "dist-sketch"])
    words = [
        "experiment",
        "small.toml",
        "--data",
        shards,
        "--out",
        "exp",
        "--epochs",
        3,
        "--launch",
        launch,
        *arguments,
    ]
    return [sys.executable, "-m", "dist_sketch", *map(str, words)]


def run(shards: Path, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    Path("calls.txt").unlink(missing_ok=True)
    # without the page: the fake's outputs hold no pictures
    script = (
        "import sys, types; sys.modules['dist_sketch.experiments.page'] = types.SimpleNamespace(build=lambda _: 'PAGE')"
    )
    script += "; from dist_sketch.__main__ import main; main()"
    words = [sys.executable, "-c", script, *command(shards, *arguments)[3:]]
    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, **env}, timeout=120)


def calls() -> list[str]:
    file = Path("calls.txt")
    return file.read_text().split() if file.exists() else []


def test_lines_run_in_turn_and_a_second_start_does_what_is_missing(shards: Path, folder: Path) -> None:
    done = run(shards)
    assert done.returncode == 0, done.stderr
    assert calls() == ALL  # c is b's denoised output, d is a by another name
    assert "this is b-s1-infer" in done.stdout  # on the terminal, and in the log
    log = (folder / "exp/logs/b-s1-infer.log").read_text()
    assert log.startswith("$ ")
    assert log.endswith("this is b-s1-infer\n")
    assert done.stdout.endswith("PAGE\n")
    told = [line for line in done.stdout.splitlines() if ": done in " in line]
    assert len(told) == len(ALL)
    assert told[0].endswith(" so far; time left: not known before a line of each kind is done")
    assert all(re.search(r"; [\w ]+ so far; about [\w ]+ left$", line) for line in told[1:-1])
    assert re.search(r"; [\w ]+ so far$", told[-1])
    again = run(shards)
    assert (again.returncode, calls()) == (0, [])
    assert again.stdout.count("done before") == len(ALL)
    (folder / "exp/outputs/a-s1/metrics.json").unlink()
    (folder / "exp/runs/b-s0/status.json").write_text('{"state": "running", "epochs": 3, "step": 4}')
    assert run(shards).returncode == 0
    assert calls() == ["b-s0-train", "b-s0-infer", "a-s1-infer"]
    # Drawings of a training that went on are drawn again, a third seed is added
    assert run(shards, "--epochs", 4, "--seeds", 3, "--only", "one").returncode == 0
    assert calls() == [f"a-s{s}-{kind}" for s in range(3) for kind in ("train", "infer")]
    # and so are drawings of other weights, though of as many steps; time stamps prove nothing
    late = time.time() + 10
    os.utime(folder / "exp/runs/a-s0/status.json", (late, late))
    run(shards, "--epochs", 4, "--only", "one")
    assert calls() == []
    seal = folder / "exp/runs/a-s0/checkpoints/step-00000040/checkpoint.json"
    seal.write_text(seal.read_text().replace("weights of", "other weights of"))
    run(shards, "--epochs", 4, "--only", "one")
    assert calls() == ["a-s0-infer"]
    # and drawings of a checkpoint before the last
    (folder / "exp/outputs/a-s1/infer.json").write_text('{"step": 30, "mode": {}}')
    run(shards, "--epochs", 4, "--seeds", 3, "--only", "one")
    assert calls() == ["a-s1-infer"]


def test_the_weights_that_a_run_chose_are_to_draw(shards: Path, folder: Path) -> None:
    assert run(shards, "--only", "three").returncode == 0
    for name, drawn in (("a-s0", 20), ("a-s1", 30)):
        status = {"state": "finished", "draws": 20, "step": 30, "epochs": 3}
        (folder / f"exp/runs/{name}/status.json").write_text(json.dumps(status))
        (folder / f"exp/outputs/{name}/infer.json").write_text(json.dumps({"step": drawn, "mode": {}}))
        (folder / f"exp/outputs/{name}/metrics.json").touch()
    run(shards, "--only", "three")
    assert calls() == ["a-s1-infer"]


def test_other_options_of_inference_draw_again(shards: Path, folder: Path) -> None:
    assert run(shards, "--only", "three").returncode == 0
    preset = folder / "small.toml"
    preset.write_text(PRESET.replace("seeds = 2", 'seeds = 2\ninfer = { mode = "running" }'))
    assert run(shards, "--only", "three").returncode == 0
    assert calls() == []
    preset.write_text(PRESET.replace("seeds = 2", 'seeds = 2\ninfer = { mode = "paper" }'))
    assert run(shards, "--only", "three").returncode != 0  # the fake says "running" whatever it is told
    assert calls() == ["a-s0-infer", "a-s1-infer"]
    assert "--mode paper" in (folder / "exp/plan.txt").read_text()


def test_a_failed_line_is_named_and_the_others_go_on(shards: Path, folder: Path) -> None:
    done = run(shards, FAIL="a-s0-train")
    assert done.returncode == 1
    assert calls() == [name for name in ALL if name != "a-s0-infer"]
    assert "error: failed: a-s0-train; its output: exp/logs/a-s0-train.log" in done.stderr
    assert "skipped, because their training failed: a-s0-infer" in done.stderr
    assert "out of luck" in (folder / "exp/logs/a-s0-train.log").read_text()
    assert "PAGE" in done.stdout  # of what there is
    assert run(shards).returncode == 0
    assert calls() == ["a-s0-train", "a-s0-infer"]


def test_a_line_that_cannot_be_started_is_a_sentence(shards: Path, folder: Path) -> None:
    done = run(shards, "--launch", "OMP_NUM_THREADS=1 dist-sketch")
    assert done.returncode == 2
    assert done.stderr.startswith("error: OMP_NUM_THREADS=1: there is no such program to start a line with (--launch)")
    assert len(done.stderr.splitlines()) == 1
    one = run(shards, WORLD_SIZE="2", RANK="0")
    assert (one.returncode, calls()) == (2, [])
    assert "call it without a launcher" in one.stderr


def test_a_run_stopped_from_elsewhere_stops_the_experiment(shards: Path, folder: Path) -> None:
    """SLURM asks the run itself; a launcher then says 1 where the run said 75."""
    for code in (75, 1):
        process = subprocess.Popen(
            command(shards),
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HANG": "b-s0-train", "ON_STOP": str(code)},
        )
        child = wait_for_child(process, folder)
        os.kill(child, signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 75
        assert "b-s0-train: stopped; the same command goes on" in output
        assert "b-s0-infer" not in output
    assert run(shards, FAIL="b-s0-train").returncode == 1  # an old status "stopped" is no stop
    assert run(shards, FAIL="b-s0-train", CODE="75").returncode == 75


def wait_for_child(process: subprocess.Popen[str], folder: Path) -> int:
    """The line that hangs: its process."""
    deadline = time.monotonic() + 60
    while not (folder / "hangs").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (folder / "hangs").unlink()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_request_to_stop_is_handed_on(shards: Path, folder: Path, number: signal.Signals) -> None:
    env = {**os.environ, "HANG": "a-s0-train", "ON_STOP": "75"}
    process = subprocess.Popen(command(shards), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    wait_for_child(process, folder)
    with pytest.raises(UserError, match="is at work in it"):
        Lock(folder / "exp").acquire(wait_s=0)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert json.loads((folder / "exp/runs/a-s0/status.json").read_text())["state"] == "stopped"
    assert calls() == ["a-s0-train"]
    assert "a-s0-train: stopped; the same command goes on" in output
    if number == signal.SIGINT:
        assert run(shards).returncode == 0
        assert calls() == ALL


def test_killed_it_leaves_no_training_behind(shards: Path, folder: Path) -> None:
    env = {**os.environ, "HANG": "a-s0-train", "ON_STOP": "75"}
    process = subprocess.Popen(command(shards), stdout=subprocess.DEVNULL, env=env, text=True)
    child = wait_for_child(process, folder)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while not (folder / "exp/runs/a-s0/status.json").exists():  # it was asked to save itself
        assert time.monotonic() < deadline
        time.sleep(0.01)
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
    assert run(shards).returncode == 0
    assert calls() == ALL
    assert "this is a-s0-train" in (folder / "exp/logs/a-s0-train.log").read_text()


# Presets


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            ("loss.lambda_l1 = 8 }", "loss.lamda = 8 }"),
            "rows.a: there is no setting loss.lamda; did you mean lambda_l1",
        ),
        (("loss.lambda_l1 = 8 }", "data.batch_size = 1.5 }"), "rows.a: data.batch_size = 1.5: must be of type int"),
        (("loss.lambda_l1 = 8 }", "train.seed = 8 }"), "train.seed is set by the experiment itself"),
        (('like = "a"', 'like = "c"'), "rows.c.like = 'b': must be another row, without a circle"),
        (('like = "a"', 'like = "z"'), "rows.b.like = 'z': must be another row"),
        (('rows = ["a", "d"]', 'rows = ["a", "e"]'), r"parts.one: there is no row 'e' \(rows: a, b, c, d\)"),
        (('rows = ["a", "d"]', "rows = []"), "parts.one: rows is empty"),
        (
            ('form = "faces"', 'form = "fasces"'),
            "parts.two.form = 'fasces': must be one of 'table', 'faces', 'curves'",
        ),
        (("optional = true", "optional = 1"), "parts.three.optional = 1: must be of type bool"),
        (("optional = true", 'paper = { FID = ["1", "2"] }'), "parts.three.paper: FID needs 1 values"),
        (("optional = true", 'scores = ["fid"]'), "parts.three.scores: 'fid': must be one of ssim, "),
        (("[rows.a]", '[rows."a b"]'), "small.toml: rows.b.like = 'a': must be another row"),
        (("seeds = 2", "seeds = 0"), "seeds = 0: must be at least 1"),
        (("seeds = 2", "sedes = 2"), "there is no setting sedes; did you mean seeds"),
        (('title = "Small"', ""), "small.toml: title is missing"),
    ],
)
def test_a_preset_s_mistake_is_a_sentence(folder: Path, change: tuple[str, str], error: str) -> None:
    assert change[0] in PRESET
    (folder / "small.toml").write_text(PRESET.replace(*change))
    with pytest.raises(UserError, match=error):
        presets.load("small.toml")


@pytest.mark.parametrize(
    ("claim", "error"),
    [
        ('measure = "beauty"\nrows = ["a", "b"]\nexpect = "lower"', "measure = 'beauty': must be one of ssim, "),
        ('measure = "kid"\nrows = ["a"]\nexpect = "lower"', r"1 row\(s\): \"below\" takes one row"),
        ('measure = "kid"\nrows = ["a"]\nexpect = "below"', 'limit is needed for expect = "below"'),
        ('measure = "kid"\nrows = ["a", "b"]\nexpect = "lower"\nlimit = 1', 'limit is needed for expect = "below"'),
        (
            'measure = "kid"\nrows = ["a", "b"]\nexpect = "same"\nlimit = 1\nby = [0.1, 0.2]',
            r"by = \[0.1, 0.2\]: must be \[least, largest\]",
        ),
        (
            'measure = "kid"\nrows = ["a", "b"]\nexpect = "lower"\nby = [0.4, 0.3]',
            r"by = \[0.4, 0.3\]: must be \[least, largest\]",
        ),
    ],
)
def test_a_claim_s_mistake_is_a_sentence(folder: Path, claim: str, error: str) -> None:
    (folder / "small.toml").write_text(PRESET + f'[[claims]]\nsays = "So."\n{claim}\n')
    with pytest.raises(UserError, match=rf"claims\[0\]: {error}"):
        presets.load("small.toml")


def test_a_grid_is_every_combination_or_a_seeded_sample(folder: Path) -> None:
    grid = 'title = "G"\n[grid]\n{}\n[grid.values]\n'
    grid += "loss.lambda_l1 = [1, 2, 3]\ndata.flip = [true, false]\ntrain.epochs = [1, 2]\n"

    def names(options: str) -> list[str]:
        (folder / "g.toml").write_text(grid.format(options))
        preset = presets.load("g.toml")
        assert preset.parts["grid"].rows == list(preset.rows)
        return list(preset.rows)

    every = names("")
    assert len(every) == 12
    assert every[:3] == [
        "lambda_l1_1-flip_True-epochs_1",
        "lambda_l1_1-flip_True-epochs_2",
        "lambda_l1_1-flip_False-epochs_1",
    ]
    some = names('method = "random"\nsample = 5\nseed = 3')
    assert some == names('method = "random"\nsample = 5\nseed = 3')
    assert some != names('method = "random"\nsample = 5\nseed = 4')
    assert len(set(some)) == 5
    assert set(some) < set(every)
    for options, error in (
        ('method = "random"', "sample = 0: must be from 1 to 12"),
        ('method = "random"\nsample = 13', "sample = 13: must be from 1 to 12"),
        ("sample = 3", 'sample = 3: is only for method = "random"'),
    ):
        with pytest.raises(UserError, match=error):
            names(options)
    (folder / "g.toml").write_text('config = "portrait"\n' + grid.format(""))
    assert {row.config for row in presets.load("g.toml").rows.values()} == {"portrait"}
    (folder / "g.toml").write_text(grid.format("").replace("[1, 2, 3]", "[1, 1]"))
    with pytest.raises(UserError, match=r"loss.lambda_l1 = \[1, 1\]: must be a list of different values"):
        presets.load("g.toml")


def test_the_sweep_for_a_server_is_the_grid_without_one(
    shards: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = yaml.safe_load((LAUNCH / "sweep.yaml").read_text())
    known = dict(cfg.items(Config()))
    values = {key.replace("-", "_"): each["values"] for key, each in sweep["parameters"].items()}
    for key, each in values.items():
        assert all(isinstance(v, int | float) and type(known[key]) is float for v in each)
    rows = presets.load("sweep").rows.values()
    assert [r.settings for r in rows] == [
        {"loss.lambda_l1": a, "optim.lr_g": b, "optim.lr_d": c}
        for a in values["loss.lambda_l1"] for b in values["optim.lr_g"] for c in values["optim.lr_d"]
    ]  # fmt: skip
    assert sweep["metric"] == {"name": "val/ssim", "goal": "maximize"}
    runs = trainings(plan(shards, name="sweep"))
    assert len(runs) == 12
    for run in runs.values():  # what the server's runs start from, too
        assert (run.conditional, run.data.shuffle) == (cfg.load("paper").conditional, False)
    # What W&B's agent makes of it, and starts with the run's id in the environment
    chosen = {key: {"value": each["values"][-1]} for key, each in sweep["parameters"].items()}
    macros = {f"${{{k}}}": v for k, v in create_sweep_command_args({"args": chosen}).items()}
    words = [w for part in create_sweep_command(sweep["command"]) for w in macros.get(part, [part])]
    words[2] = words[2].replace("train ", "train --dry-run ")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "SHARDS": str(shards), "WANDB_RUN_ID": "ab12"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert (said["out"], said["optim.lr_g"], said["optim.lr_d"]) == ("runs/sweep/ab12", "0.0002", "0.0002")
    assert (said["track.group"], said["conditional.mode"]) == ("sweep", "paper")


# Measures and verdicts


def test_measures_of_pictures() -> None:
    rng = np.random.default_rng(0)
    real = rng.uniform(0, 255, (4, 32, 32)).astype(np.float32)
    assert measures.variety(real, real) == pytest.approx(1)
    assert measures.variety(np.stack([real[0]] * 4), real) == 0
    assert measures.variety(real / 4, real) == pytest.approx(0.25)
    distance = [np.mean((real[i] - real[j]) ** 2) for i in range(4) for j in range(i)]
    # the root mean square over all pairs, as it says
    assert np.sqrt(2 * real.var(axis=0, ddof=1).mean()) == pytest.approx(np.sqrt(np.mean(distance)), rel=1e-5)
    assert measures.variety(real[:1], real[:1]) is None
    assert measures.sharpness(real / 2 + 100, real) == pytest.approx(0.5, rel=1e-5)
    assert measures.sharpness(real, np.zeros_like(real)) is None
    page = np.full((2, 64, 64), 240, np.float32)
    page[:, 30:34, 4:60] = 20  # a stroke is no speck
    assert measures.noise_pixels(page, page) == pytest.approx(0, abs=1e-6)
    noisy = page.copy()
    noisy[0, 10:20:4, 10:30:5] = 150  # 12 of 4096 pixels of one of two
    assert measures.noise_pixels(noisy, page) == pytest.approx(1000 * 12 / 4096 / 2, rel=1e-3)


def test_measures_of_ink() -> None:
    """A stroke three pixels wide, drawn too thick, with a gap, or a pixel away."""

    def stroke(top: int, bottom: int, *gap: int) -> np.ndarray:
        page = np.full((1, 64, 64), 250, np.float32)
        page[:, top:bottom, 4:60] = 60
        page[:, :, slice(*gap) if gap else slice(0)] = 250
        return page

    real = stroke(30, 33)
    for drawn, precision, recall in (
        (real, 1, 1),
        (stroke(29, 34), 1, 1),  # a pixel to either side is still the line
        (stroke(27, 36), 5 / 9, 1),  # three are not
        (stroke(30, 33, 20, 31), 1, 1 - 9 / 56),  # a gap of 11 pixels, less one on either side
        (stroke(31, 34), 1, 1),
        (np.full((1, 64, 64), 250, np.float32), None, 0),
        (real - 100, 1, 1),  # a darker page is no ink
    ):
        assert measures.ink_precision(drawn, real) == (precision and pytest.approx(precision))
        assert measures.ink_recall(drawn, real) == pytest.approx(recall)
    assert {*presets.SCORES, *measures.FROM_LOG, *measures.FROM_PICTURES} == set(presets.MEASURES)


def test_measures_of_the_log(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"kind": "epoch", "step": i, "loss/g": float(i), "loss/d": 1.0} for i in range(1, 21)
    ]
    speeds = [(1.0, 100.0), (20.0, 300.0), (10.0, 200.0)]
    records += [
        {"kind": "train", "step": i, "speed/images_per_s": s, "speed/memory_mb": m} for i, (s, m) in enumerate(speeds)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert measures.measure("loss_g", tmp_path, tmp_path, "raw") == 18.5  # the last fifth: 17, 18, 19, 20
    assert measures.measure("time", tmp_path, tmp_path, "raw") == pytest.approx(75)  # of 50 and 100; the first warms up
    assert measures.measure("memory", tmp_path, tmp_path, "raw") == 300
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records[:3]))
    assert measures.measure("loss_g", tmp_path, tmp_path, "raw") == 2.5  # two at least: both phases of the timer
    assert measures.measure("time", tmp_path, tmp_path, "raw") is None
    scores = {"raw": {"fid_2048": 8.0, "kid": None}, "denoised": {"fid_2048": 7.0}}
    whole = {**scores, "n": 1, "baselines": {}, "settings": {}, "images": []}
    (tmp_path / "metrics.json").write_text(json.dumps(whole))
    found = [measures.measure(m, tmp_path, tmp_path, v) for m, v in (("fid_2048", "raw"), ("fid_2048", "denoised"))]
    assert found == [8.0, 7.0]
    assert measures.measure("kid", tmp_path, tmp_path, "raw") is None


def verdict(claim: dict[str, Any], *rows: list[float], same_weights: bool = False) -> str:
    claim = {"says": "", "measure": "fid_2048", "rows": [], **claim}
    values = [Values(f"row {i}", "w" if same_weights else f"w{i}", dict(enumerate(row))) for i, row in enumerate(rows)]
    return judge(Claim(**claim), values)[0]


LOWER, BY = {"expect": "lower"}, {"expect": "lower", "by": [0.3, 0.4]}
WITHIN, ONE = "within noise over the seeds", "one seed, no noise known"


@pytest.mark.parametrize(
    ("claim", "rows", "word"),
    [
        (LOWER, ([100, 101, 102], [90, 91, 92]), "held"),
        (LOWER, ([90, 91, 92], [100, 101, 102]), "not held"),
        (LOWER, ([100, 80, 90], [95, 75, 85]), WITHIN),
        # two seeds: t of 2 degrees of freedom, 4.30 standard errors of sqrt((2 + 2) / 2 * (1/2 + 1/2)) = 1.414
        (LOWER, ([100, 102], [94, 96]), WITHIN),
        (LOWER, ([100, 102], [93, 96]), WITHIN),
        (LOWER, ([100, 102], [93, 95]), "held"),
        (LOWER, ([100], [50]), ONE),
        (LOWER, ([100], []), "not measured"),
        (LOWER, ([100, 101], [90]), WITHIN),
        (LOWER, ([100, 101, 102], [90, 91, 92], [80, 81, 82]), "held"),
        (LOWER, ([100, 101, 102], [90, 91, 92], [90, 91, 92.5]), WITHIN),
        (LOWER, ([100, 101, 102], [90, 91, 92], [95, 96, 97]), "not held"),
        ({"expect": "higher"}, ([1.0, 1.1, 1.2], [2.0, 2.1, 2.2]), "held"),
        ({"expect": "higher"}, ([1, 1], [1, 1]), WITHIN),
        (BY, ([100, 101, 102], [65, 65.5, 66]), "held"),
        (BY, ([100, 101, 102], [80, 80.5, 81]), "not held"),  # lower, but by 20 % only
        (BY, ([100, 101, 102], [71.5, 72, 72.5]), WITHIN),  # 28.7 %, and 30 within the noise
        (BY, ([100, 101, 102], [50, 51, 52]), "not held"),  # more than was claimed
        (BY, ([100, 101, 102], [135, 136, 137]), "not held"),
        (BY, ([100, 60, 80], [60, 30, 66]), WITHIN),
        (BY, ([100], [65]), ONE),
        ({"expect": "same", "limit": 6.0}, ([100, 101, 102], [100.5, 101, 101.5], [99, 101, 104]), "held"),
        ({"expect": "same", "limit": 3.0}, ([100, 101, 102], [100.5, 101, 101.5], [99, 101, 104]), WITHIN),
        ({"expect": "same", "limit": 5.0}, ([100, 101, 102], [100, 101, 102], [90, 91, 92]), "not held"),
        ({"expect": "same", "limit": 20.0}, ([100, 101, 102], [90, 91, 92]), "held"),
        ({"expect": "same", "limit": 5.0}, ([100, 140], [80, 90]), WITHIN),
        ({"expect": "same", "limit": 1.0}, ([100], [100]), ONE),
        ({"expect": "below", "limit": 0.2}, ([0.10, 0.11, 0.12],), "held"),
        ({"expect": "below", "limit": 0.2}, ([0.9, 0.8, 0.9],), "not held"),
        ({"expect": "below", "limit": 0.2}, ([0.1, 0.25, 0.2],), WITHIN),
        ({"expect": "below", "limit": 0.2}, ([0.1],), ONE),
    ],
)
def test_a_verdict_needs_more_than_the_seeds_noise(
    claim: dict[str, Any], rows: tuple[list[float], ...], word: str
) -> None:
    assert verdict(claim, *rows) == word


def test_the_same_weights_are_compared_seed_by_seed() -> None:
    raw, denoised = [100.0, 130.0, 80.0], [97.0, 126.8, 76.9]
    assert verdict(LOWER, raw, denoised) == WITHIN
    assert verdict(LOWER, raw, denoised, same_weights=True) == "held"


def test_rows_of_one_run_without_a_seed_in_common_are_compared_unpaired() -> None:
    rows = [Values("raw", "a", {0: 100.0, 1: 101.0}), Values("denoised", "a", {2: 50.0, 3: 51.0})]
    assert judge(Claim(says="", measure="fid_2048", rows=[], expect="lower"), rows)[0] == "held"


def test_a_verdict_s_sentence_holds_the_figures() -> None:
    claim = Claim(says="", measure="loss_g", rows=[], expect="lower", by=[0.3, 0.4])
    rows = [Values("off", "a", {0: 2.0, 1: 2.0}), Values("on", "b", {0: 1.2, 1: 1.4})]
    # noise: t(2) = 4.303 times sqrt(0.02 / 2 * 1) = 0.1, of 2.0
    sentence = "Loss_G at the end: off 2.000 ± 0.000, on 1.300 ± 0.141; lower by 35.0 ± 21.5 %, claimed: 30 to 40 %"
    assert judge(claim, rows) == ("held", sentence)
    claim = Claim(says="", measure="fid_2048", rows=[], expect="lower")
    rows = [Values("8", "a", {0: 50.0}), Values("20", "b", {0: 60.0}), Values("100", "c", {0: 45.0})]
    sentence = "FID-2048: 8 50.0, 20 60.0, 100 45.0; +20.0 % and −25.0 %: 1 of 2 steps as claimed"
    assert judge(claim, rows) == (ONE, sentence)
    about = {"confidence": CONFIDENCE, "tests": 9, "limits": [13.4, 114.6]}
    rules = [render("rule.j2", seeds=seeds, **about) for seeds in (1, 2)]
    assert "With one seed" in rules[0]
    assert "corrected for the 9 comparisons of this table" in rules[1]
    assert "a difference must exceed 13.4 standard errors (114.6 if paired)" in rules[1]


def test_chance_alone_moves_few_tables_of_claims() -> None:
    """Tables of eight claims about methods that are equal: how many hold or refute one of them."""
    random = np.random.default_rng(0)
    claim = Claim(says="", measure="fid_2048", rows=["a", "b"], expect="lower")
    assert comparisons(claim) == 1
    tables, moved = 400, {1: 0, 8: 0}
    for _ in range(tables):
        drawn = [[Values("", f"w{i}", dict(enumerate(row))) for i, row in enumerate(random.normal(50, 1, (2, 3)))]
                 for _ in range(8)]  # fmt: skip
        for tests in moved:
            moved[tests] += any(judge(claim, rows, tests)[0] in ("held", "not held") for rows in drawn)
    assert moved[8] / tables < 0.08
    assert 0.25 < moved[1] / tables < 0.42  # 1 - 0.95^8


@pytest.mark.parametrize(
    ("claim", "count"),
    [
        ({"expect": "same", "limit": 1.0, "rows": ["a", "b", "c"]}, 3),
        ({"expect": "higher", "rows": ["a", "b", "c"]}, 2),
        ({"expect": "below", "limit": 1.0, "rows": ["a"]}, 1),
    ],
)
def test_comparisons_are_counted(claim: dict[str, Any], count: int) -> None:
    assert comparisons(Claim(says="", measure="fid_2048", **claim)) == count


# Real trainings


def test_the_paper_in_small_stopped_and_gone_on(folder: Path, cli: Run) -> None:
    write_pairs(folder / "pairs", 8, 2)
    shards = folder / "shards"
    pack.pack(recipe.load(str(folder / "pairs")), shards, size=64, workers=1)
    settings = ["--data.batch-size", "4", "--data.workers", "0", "--train.precision", "no", "--track.wandb", "off"]
    settings += ["--track.log-interval-steps", "1", "--train.validate-interval-epochs", "0"]
    options = ["experiment", "paper", "--data", str(shards), "--out", "exp", "--seeds", "2", "--epochs", "1"]
    options += ["--only", "table2,fig4,fig6", *settings]
    stop_and_go_on(folder, cli, [*options, "--launch", shlex.join(preloaded.command(tiny=True))])
    # Another configuration, or other data, in the same folder
    other = cli(*options, "--optim.lr-g", 1e-3)
    assert other.returncode == 2
    assert "was trained with another configuration; choose another --out, or undo:" in other.stderr
    assert "optim.lr_g: 0.002 -> 0.001" in other.stderr
    shutil.copytree(shards, folder / "copy")
    manifest = json.loads((folder / "copy/manifest.json").read_text())
    (folder / "copy/manifest.json").write_text(json.dumps({**manifest, "license": "another"}))
    options[options.index(str(shards))] = "copy"
    with pytest.raises(UserError, match="--data copy: another data set"):
        parse([*options, "--dry-run"])()


def stop_and_go_on(folder: Path, cli: Run, options: list[str]) -> None:
    """Stops the experiment in its second training, lets it finish, and looks at the page."""
    process = subprocess.Popen([sys.executable, "-m", "dist_sketch", *options], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (folder / "exp/runs/ct-s0/status.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=120)
    assert process.returncode == 75
    assert not (folder / "exp/compare.html").exists()
    first = folder / "exp/outputs/pix2pix-s0/metrics.json"
    before = first.stat().st_mtime_ns
    done = cli(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert first.stat().st_mtime_ns == before
    assert "pix2pix-s0-train: done before" in done.stdout
    assert "pix2pix-s0-infer: done before" in done.stdout
    assert {p.name for p in (folder / "exp/outputs").iterdir()} == {
        f"{r}-s{s}" for r in ("pix2pix", "ct", "convolution") for s in (0, 1)
    }
    markdown = (folder / "exp/compare.md").read_text()
    scores = {p.parent.name: json.loads(p.read_text()) for p in (folder / "exp/outputs").glob("*/metrics.json")}
    ssim = [scores[f"ct-s{s}"]["denoised"]["ssim"] for s in (0, 1)]
    row = next(line for line in markdown.splitlines() if "pix2pix+CT+NR" in line and "1.34" in line)
    assert f"{np.mean(ssim):.3f} ± {np.std(ssim, ddof=1):.3f}".replace("-", "−") in row
    assert "| 2 |" in row
    page = (folder / "exp/compare.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    for text in ("Table 2", "Fig. 6", "Avg_FID (the paper)", "30 to 40 %", "Student", "5-layer convolution network"):
        assert text in page
    assert "Table 1" not in page
    assert (folder / "exp/figures/fig4-pix2pix.png").read_bytes().startswith(b"\x89PNG")
    assert Image.open(folder / "exp/figures/fig4-pix2pix.png").size[0] > 800


def test_each_preset_travels_by_its_name() -> None:
    for file in LAUNCH.glob("experiment-*.toml"):
        assert presets.load(file.stem.removeprefix("experiment-")) == presets.load(str(file))
    assert planning.arguments({"data.flip": False, "data.batch_size": 4, "a": True}) == [
        *("--data.no-flip", "--data.batch-size", "4", "--a"),
    ]


@pytest.mark.parametrize(
    "settings",
    [
        'data = 1\n"data.flip" = true',
        '"data.flip" = true\ndata = 1',
        'data.flip = true\n"data.flip" = false',
        '"" = 1\n"." = 1',
        '"." = 1',
        '"data." = 1',
        '"data.flip" = true\n"data.flip.more" = 1',
        '"data.flip.more" = 1\n"data.flip" = true',
    ],
)
@pytest.mark.parametrize("table", ["rows.a.settings", "grid.values"])
def test_keys_that_contradict_each_other_are_a_sentence(table: str, settings: str, folder: Path) -> None:
    if table == "grid.values":
        settings = re.sub(r"= (.*)", r"= [\1]", settings)
    rest = '[parts.p]\ntitle = "x"\nrows = ["a"]\n' if table != "grid.values" else ""
    (folder / "odd.toml").write_text(f'title = "t"\n[{table}]\n{settings}\n{rest}')
    with pytest.raises(UserError, match=r"^odd\.toml: "):
        presets.load("odd.toml")


def chain_of_rows(count: int) -> str:
    rows = "".join(f'[rows.r{i}]\nlike = "r{i + 1}"\n' for i in range(count))
    last = f"[rows.r{count}]\nsettings = {{ loss.lambda_l1 = 8 }}\n"
    return f'title = "t"\n{rows}{last}[parts.p]\ntitle = "x"\nrows = ["r0"]\n'


@pytest.mark.parametrize("count", [1, 2000])
def test_a_row_is_like_any_number_of_others(count: int, folder: Path) -> None:
    (folder / "like.toml").write_text(chain_of_rows(count))
    rows = presets.load("like.toml").rows
    assert list(rows) == [f"r{i}" for i in range(count + 1)]
    assert {row.settings["loss.lambda_l1"] for row in rows.values()} == {8}


def test_rows_that_are_like_each_other_in_a_circle_are_named(folder: Path) -> None:
    circle = chain_of_rows(9).replace('like = "r9"', 'like = "r5"')
    (folder / "like.toml").write_text(circle)
    with pytest.raises(UserError, match=r"rows\.r8\.like = 'r5': must be another row, without a circle"):
        presets.load("like.toml")


def sweep(method: str, values: str, sample: int = 4) -> str:
    more = f"sample = {sample}\nseed = 3\n" if method == "random" else ""
    return f'title = "t"\n[grid]\nmethod = "{method}"\n{more}[grid.values]\n{values}'


SETTINGS = ["optim.lr_g", "optim.lr_d", "loss.scale", "loss.lambda_l1", "conditional.growth", "conditional.timer"]


def test_a_sample_is_drawn_from_more_combinations_than_fit_into_memory(folder: Path) -> None:
    (folder / "g.toml").write_text(sweep("random", "".join(f"{s} = {list(range(1, 31))}\n" for s in SETTINGS)))
    rows = presets.load("g.toml").rows
    assert len(rows) == 4
    assert len({row.settings["optim.lr_g"] for row in rows.values()}) > 1


def test_a_sample_is_the_one_that_a_list_of_all_combinations_gives(folder: Path) -> None:
    """So that an experiment that has begun goes on with the same rows."""
    (folder / "g.toml").write_text(
        sweep("random", "optim.lr_g = [1, 2, 3]\nloss.scale = [4, 5]\nnorm = ['none', 'group']")
    )
    rows = presets.load("g.toml").rows
    every = list(itertools.product([1, 2, 3], [4, 5], ["none", "group"]))
    assert [tuple(row.settings.values()) for row in rows.values()] == random.Random(3).sample(every, 4)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (sweep("grid", "".join(f"{s} = {list(range(1, 31))}\n" for s in SETTINGS)), "729000000 combinations, but an"),
        (sweep("random", f"loss.scale = {list(range(1, 10))}", 10), r"sample = 10: must be from 1 to 9"),
        (sweep("random", "".join(f"{s} = {list(range(1, 31))}\n" for s in SETTINGS), 10**6), "from 1 to 10000"),
        (sweep("random", "".join(f"{s} = {list(range(1, 3001))}\n" for s in SETTINGS)), "combinations are too many"),
    ],
)
def test_a_grid_has_a_limit(text: str, sentence: str, folder: Path) -> None:
    (folder / "g.toml").write_text(text)
    with pytest.raises(UserError, match=rf"^g\.toml: grid\..*{sentence}"):
        presets.load("g.toml")


@pytest.mark.parametrize("seeds", [10**9, 5001])
def test_an_experiment_has_a_limit_of_trainings(seeds: int, shards: Path, folder: Path) -> None:
    sentence = rf"^2 setting\(s\) with {seeds} seed\(s\) each: an experiment has at most 10,000 trainings"
    with pytest.raises(UserError, match=sentence):
        plan(
            shards,
            "--seeds",
            seeds,
            name="small.toml",
        )
    (folder / "small.toml").write_text(PRESET.replace("seeds = 2", f"seeds = {seeds}"))
    with pytest.raises(UserError, match=sentence):
        plan(shards, name="small.toml")
    assert not (folder / "exp").exists()


@pytest.mark.parametrize(
    "options",
    ["nonsense = [1, {a = 2}]", 'mode = "odd"', 'batch-size = "x"', "help = true", 'out = "x"', '"" = 1',
     "denoise.nonsense = 1", "scores = false", "no_scores = true"],
)  # fmt: skip
def test_options_that_infer_does_not_take_are_refused_by_the_plan(options: str, shards: Path, folder: Path) -> None:
    (folder / "small.toml").write_text(f"{PRESET}[infer]\n{options}\n")
    with pytest.raises(UserError, match=r"^small: \[infer\]"):
        plan(shards, name="small.toml")
    assert not (folder / "exp").exists()


def test_options_of_infer_reach_it(shards: Path, folder: Path) -> None:
    text = 'batch-size = 4\nmode = "paper"\ninvert = true\nskip_bad = false\n'
    text += "denoise = { gray = false, strength = 2.0 }\n"
    (folder / "small.toml").write_text(f"{PRESET}[infer]\n{text}")
    (words, *_) = [line for line in plan(shards, name="small.toml") if line[1] == "infer"]
    options = parse(words[1:]).__self__.options  # type: ignore[attr-defined]
    assert (options.batch_size, options.mode, options.denoise.gray, options.denoise.strength) == (4, "paper", False, 2)
    assert (options.invert, options.skip_bad) == (True, False)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("data.batch_size = 14", r"data\.batch_size = 14: an epoch has only 13 pairs"),
        ('norm = "instance"', r"norm = 'instance' at 64 px"),
        ("generator.enhance = 1", r"generator\.enhance = 1: needs a size that is a multiple of 128 px, not 64"),
        ("data.where = 'style == 1'", r"its pairs have no label 'style'"),
    ],
)
def test_a_row_that_cannot_be_trained_is_refused_by_the_plan(
    settings: str, sentence: str, shards: Path, folder: Path
) -> None:
    (folder / "small.toml").write_text(PRESET.replace('conditional.mode = "off"', settings))
    with pytest.raises(UserError, match=rf"^small: rows\.b: .*{sentence}"):
        plan(shards, name="small.toml")
    assert not (folder / "exp").exists()


def test_a_dry_run_builds_no_page(shards: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="give one of them"):
        plan(shards, "--page-only", name="small.toml")


def test_the_time_left_counts_the_epochs_that_a_training_still_has_to_do(
    shards: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Any = parse(["experiment", "small.toml", "--data", str(shards), "--out", "exp", "--epochs", "10"]).__self__  # type: ignore[attr-defined]
    lines = made.plan().lines
    for name, epoch in (("a-s0", 8), ("b-s0", 5)):
        (folder / "exp/runs" / name).mkdir(parents=True)
        (folder / "exp/runs" / name / "status.json").write_text(json.dumps({"state": "stopped", "epoch": epoch}))
    monkeypatch.setattr(runner.time, "monotonic", lambda: 0.0)
    clock = runner.Clock(lines)
    clock.note(lines[0], 20.0)  # a-s0: two epochs of 10 s
    clock.note(lines[1], 1.0)
    # b-s0 has 5 epochs left, a-s1 and b-s1 10 each; three inferences
    assert clock.told(lines[2:]).endswith(f"about {duration(253)} left")


@pytest.mark.parametrize("size", ["abc", "-1", "2.0"])
def test_a_number_of_ranks_that_is_none_is_a_sentence(size: str, shards: Path, folder: Path, cli: Run) -> None:
    done = cli("experiment", "small.toml", "--data", shards, "--out", "exp", "--dry-run", WORLD_SIZE=size)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: WORLD_SIZE={size}: ")


def test_a_page_of_somebody_else_is_told_before_the_first_training(shards: Path, folder: Path) -> None:
    plan(shards, name="small.toml")
    (folder / "exp" / "compare.html").write_text("<p>my own notes</p>")
    with pytest.raises(UserError, match=r"compare\.html: was not written by this command"):
        plan(shards, name="small.toml")
