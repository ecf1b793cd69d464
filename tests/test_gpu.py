"""What only a GPU can show: the CPU's step, no waiting for the device, runs and drawings from the shell.

CUDA graphs, and several processes on GPUs, are tested in `test_gpu_graphs.py`.
"""

import gc
import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Run
from PIL import Image
from support.forks import wait_until
from support.gpu import DECISIONS, GPU, PRESETS, build, pairs, ranks, weights
from support.jobs import last_step

from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config, DataConfig, GeneratorConfig
from dist_sketch.data import pixels
from dist_sketch.data.synthetic import dataset as synth
from dist_sketch.metrics import inception
from dist_sketch.model.pretrained import SketchGenerator
from dist_sketch.tracking.tracker import read_metrics
from dist_sketch.training.measures import read
from dist_sketch.training.policy import BOTH
from dist_sketch.training.validation import drawing

pytestmark = GPU

LAUNCH = Path(__file__).parents[1] / "launch"


def paper(**generator: float) -> Config:
    return Config(data=DataConfig(batch_size=4), generator=GeneratorConfig(**generator))  # type: ignore[arg-type]


def portrait() -> Config:
    config = cfg.load("portrait")
    return replace(config, generator=replace(config.generator, noise=0))  # its numbers are other ones on each device


@pytest.mark.parametrize("config", [paper(dropout=0.0), portrait()], ids=["paper", "portrait"])
def test_a_step_in_float64_is_the_cpu_s(config: Config) -> None:
    # Rates that float32 holds exactly, because the GPU's Adam takes them in float32
    config, steps = replace(config, optim=cfg.OptimConfig(lr_g=2**-10, lr_d=2**-11)), {}
    for device in ("cpu", "cuda"):
        on = ranks(device)
        step = build(config, on, "fp64")
        line, sketch = pairs(config, 128, torch.device("cpu"))
        measured = [
            read(step(line.double().to(on.device), sketch.double().to(on.device), d, bad=0, stop=False).reduced)
            for d in DECISIONS
        ]
        steps[device] = (measured, weights(step.g), weights(step.d))
    for ours, theirs in zip(steps["cuda"][0], steps["cpu"][0], strict=True):
        # d/real and d/fake are only looked at: their sigmoid is taken in float32
        assert ours == {k: pytest.approx(v, rel=1e-5 if k in ("d/real", "d/fake") else 1e-8) for k, v in theirs.items()}
    for net in (1, 2):
        assert (steps["cuda"][net] - steps["cpu"][net]).abs().max() < 1e-8


@pytest.mark.parametrize("capture", [True, False], ids=["captured", "eager"])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@PRESETS
def test_a_step_never_waits_for_the_gpu(precision: str, preset: str | None, capture: bool) -> None:
    config = cfg.load(preset)
    config = replace(config, generator=replace(config.generator, ema=0.99), optim=replace(config.optim, clip_norm=10.0))
    on = ranks("cuda")
    step = build(config, on, precision, capture=capture)
    line, sketch = pairs(config, 128, on.device)
    good = torch.ones(len(line), dtype=torch.bool, device=on.device)
    for decision in DECISIONS * 2:  # before: libraries are loaded, and graphs recorded
        step(line, sketch, decision, bad=0, stop=False, good=good)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for decision in DECISIONS:
            measured = step(line, sketch, decision, bad=1, stop=True, good=good)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert read(measured.reduced)["nonfinite"] == 0
    assert step.way.startswith("eager") == (precision == "fp16" or not capture), step.way


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_the_digits_train_as_well(precision: str) -> None:
    """The mean of L1 over the last of 60 steps, in the networks' own arithmetic and in float32."""
    means = {}
    config = replace(paper(dropout=0.0), optim=cfg.OptimConfig(lr_g=2e-4, lr_d=2e-4))
    on = ranks("cuda")
    line, sketch = pairs(config, 128, on.device)
    for arithmetic in ("no", precision):
        step = build(config, on, arithmetic)
        rows = [read(step(line, sketch, BOTH, bad=0, stop=False).reduced) for _ in range(60)]
        assert not any(row["nonfinite"] for row in rows)
        means[arithmetic] = np.mean([row["loss/g_l1"] for row in rows[-10:]])
        assert means[arithmetic] < 0.7 * rows[0]["loss/g_l1"]
    assert means[precision] == pytest.approx(means["no"], rel=0.1)


def test_memory_does_not_grow() -> None:
    on = ranks("cuda")
    step = build(paper(), on, "bf16")
    line, sketch = pairs(paper(), 128, on.device)
    peaks = []
    for _ in range(4):
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        for decision in itertools.islice(itertools.cycle(DECISIONS), 30):
            step(line, sketch, decision, bad=0, stop=False)
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1:] == [peaks[1]] * 3  # the first round also records the graphs


def test_drawings_are_the_cpu_s() -> None:
    """The same grays whatever the device: scores of runs can be compared."""
    lines = torch.stack([pixels.from_image(synth.draw(0, i, 128)[0], 1) for i in range(4)])
    net = SketchGenerator.from_pretrained("portrait-128")
    with drawing(net, torch.device("cpu")) as draw:
        cpu = draw(lines).int()
    with drawing(net.to("cuda"), torch.device("cuda")) as draw:
        gpu = draw(lines).int()
    assert (gpu - cpu).abs().max() <= 1
    assert (gpu != cpu).float().mean() < 1e-3


def test_a_run_as_the_readme_starts_it_and_its_drawings(shards: Path, new_cli: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / "one_gpu.yaml")]
    words = [str(w) for w in (*TINY, "--train.precision", "auto", "--data.workers", 2, "--train.epochs", 4)]
    done = subprocess.run(
        [*launcher, "-m", "dist_sketch", "train", "--data.shards", str(shards), "--out", str(run), *words],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr, done.stderr
    assert "how the steps run: one CUDA graph for each decision" in done.stdout
    facts = json.loads((run / "config.json").read_text())["facts"]
    assert facts["device"] == torch.cuda.get_device_name()
    assert facts["versions"]["cuda"]
    assert facts["precision"] == "bf16"
    rows = [r for r in read_metrics(run) if r["kind"] == "train"]
    assert [r["step"] for r in rows] == list(range(1, 13))  # also those that the host reads together
    assert all(np.isfinite(r["loss/g"]) for r in rows)

    for name, env in (("gpu", {}), ("cpu", {"ACCELERATE_USE_CPU": "true"})):
        done = new_cli("infer", "--run", run, "--input", shards, "--out", tmp_path / name, **env)
        assert done.returncode == 0, done.stderr
    gpu, cpu = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("gpu", "cpu"))
    assert gpu["n"] == cpu["n"] == 5
    for score in ("ssim", "l1", "psnr", *(("fid_64", "fid_2048", "kid") if inception.find() else ())):
        assert gpu["raw"][score] == pytest.approx(cpu["raw"][score], rel=2e-3, abs=1e-4), score
    for path in sorted((tmp_path / "cpu" / "raw").iterdir()):
        a, b = (np.asarray(Image.open(p), int) for p in (path, tmp_path / "gpu" / "raw" / path.name))
        assert np.abs(a - b).max() <= 1, path.name


@pytest.mark.parametrize("precision", ["bf16", "fp16"], ids=["captured", "eager"])
def test_stopped_and_started_again_it_goes_on(shards: Path, tmp_path: Path, precision: str) -> None:
    out = tmp_path / "run"
    words = [str(w) for w in (*TINY, "--train.precision", precision, "--train.epochs", 400)]
    command = [sys.executable, "-m", "dist_sketch", "train", "--data.shards", str(shards), "--out", str(out), *words]
    legs = []
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
        first = (legs[-1] if legs else 0) + 21
        wait_until(lambda p=process, n=first: p.poll() is not None or last_step(out) >= n, f"step {first}")
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=120)
        assert process.returncode == 75, text
        legs.append(json.loads((out / "status.json").read_text())["step"])
    assert legs[1] > legs[0] > 20
    steps = [r["step"] for r in read_metrics(out) if r["kind"] == "train"]
    assert steps == list(range(1, legs[1] + 1))


def test_the_bench_measures_it(new_cli: Run, tmp_path: Path) -> None:
    done = new_cli("bench", "step", "--quick", "--batch-sizes", 4, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["machine"]["gpu"] == torch.cuda.get_device_name()
    names = {f["name"].partition(",")[0] for f in found["figures"]}
    assert names >= {"fp16", "bf16 (what auto picks)", "no", "CUDA graphs", "GPU idle", "kernels a step"}
    (way,) = (note["text"] for note in found["notes"] if note["text"].startswith("our step: "))
    assert not way.startswith("our step: eager"), way
