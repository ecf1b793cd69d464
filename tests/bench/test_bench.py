"""The whole bench on small sizes, the fairness of its baselines, and loose limits for the ratios.

No absolute times: ours and the baseline take turns in the same process, and mostly count CPU time.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import gpu_page
import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image

from dist_sketch.__main__ import parse
from dist_sketch.bench import gpu_idle, limit, paper_way
from dist_sketch.bench import infer as bench_infer
from dist_sketch.bench import loader as bench_loader
from dist_sketch.bench import metrics as bench_metrics
from dist_sketch.bench import step as bench_step
from dist_sketch.bench.measure import BenchReport, interleaved, rates
from dist_sketch.bench.options import BenchOptions
from dist_sketch.commands.bench import SUBJECTS
from dist_sketch.core.errors import UserError
from dist_sketch.core.precision import resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.data.shards import Shards
from dist_sketch.inference import infer as inference
from dist_sketch.inference.options import InferOptions
from dist_sketch.metrics import fid_kid, inception
from dist_sketch.training.measures import read
from dist_sketch.training.policy import BOTH

CPU = torch.device("cpu")
FAST = resolve_precision("auto", CPU) == "bf16"  # AMX or AVX-512 BF16
SMALL = BenchOptions(quick=True).resolved()


@pytest.fixture(scope="module")
def printed(cli: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The output of `dist-sketch bench --quick`, and its JSON file."""
    file = tmp_path_factory.mktemp("bench") / "new" / "figures.json"
    done = cli("bench", "--quick", "--repeats", 1, "--table", "--json", file)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr
    return done.stdout, json.loads(file.read_text())


def of(printed: tuple[str, dict[str, Any]], bench: str) -> dict[str, dict[str, Any]]:
    """A subject's figures by name."""
    return {f["name"]: f for f in printed[1]["figures"] if f["bench"] == bench}


# ---------------------------------------------------------------- the command


def test_every_figure_stands_beside_a_baseline_of_the_same_rounds(printed: tuple[str, dict[str, Any]]) -> None:
    figures = printed[1]["figures"]
    assert {f["bench"] for f in figures} == set(SUBJECTS)
    assert len({(f["bench"], f["name"]) for f in figures}) == len(figures)
    for f in figures:
        assert f["baseline_name"], f
        assert f["unit"], f
        assert f["rounds"] >= 1, f
        assert 0 <= f["low"] <= f["value"] <= f["high"], f
        assert 0 <= f["baseline_low"] <= f["baseline"] <= f["baseline_high"], f
        assert f["ratio"] is not None or not (f["value"] and f["baseline"]), f


def test_the_machine_is_described(printed: tuple[str, dict[str, Any]]) -> None:
    stdout, found = printed
    machine = found["machine"]
    assert machine["cores"] >= 1
    assert machine["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert machine["load_per_core"] >= 0
    assert found["options"]["size"] == 64  # as --quick sets it
    assert "small sizes" in stdout
    for subject in SUBJECTS:
        assert f"bench {subject}" in stdout


def test_the_step_s_figures(printed: tuple[str, dict[str, Any]]) -> None:
    found = of(printed, "step")
    auto = printed[1]["machine"]["precision"]
    assert f"{auto} (what auto picks), D locked" in found
    assert {"batch 2, " + auto, "batch 8, " + auto} <= set(found)
    for way in ("separate", "joint"):
        assert found[f"peak memory, {way} backward of D"]["value"] > 50  # Adam's state alone is 130 MB
    assert found["loss/g: bf16 beside float32, 4 steps"]["value"] < 5
    for b in (2, 4, 8):
        row, step = found[f"batch {b}, {auto}"], found[f"batch {b}, {auto}: a step"]
        assert step["value"] == pytest.approx(1e3 * b / row["value"])
        assert found[f"batch {b}, {auto}: share of the limit"]["ratio"] > 0
    assert any(note["text"].startswith("our step: ") for note in printed[1]["notes"])


def test_the_step_of_a_preset(cli: Run, tmp_path: Path) -> None:
    """Other networks than the paper's, in other batch sizes: the plain step does the same work."""
    words = ("--quick", "--repeats", 1, "--loss-steps", 2, "--preset", "demo", "--batch-sizes", 2, 3)
    done = cli("bench", "step", *words, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "figures.json").read_text())
    sizes = {f["name"].split(",")[0] for f in found["figures"] if f["name"].startswith("batch ")}
    assert sizes == {"batch 2", "batch 3"}
    assert found["options"]["preset"] == "demo"
    assert any("networks of demo" in note["text"] for note in found["notes"])
    # the page of tests/gpu.sh finds its figures by their names
    targets = gpu_page.targets({"step-portrait": found["figures"], "step-paper": found["figures"]}, None, quick=False)
    assert [t.name for t in targets if t.value is not None] == [targets[i].name for i in range(3)]
    assert set(gpu_page.by_batch(found["figures"])[3]) == {"", "a step", "share of the limit"}


def test_the_index_is_small(printed: tuple[str, dict[str, Any]]) -> None:
    # a key of 7 digits with its end, the place of its end, shard, offset, length, SHA-256
    assert of(printed, "loader")["index of 2,000 pairs"]["value"] == 7 + 1 + 8 + 4 + 8 + 8 + 32


def test_a_locked_network_sends_nothing(printed: tuple[str, dict[str, Any]], alone: Ranks) -> None:
    found = of(printed, "scaling")
    step = bench_step.build(bench_step.settings(2), alone, "no")
    if "bytes of D reduced a step, D locked" in found:  # else the machine has one core
        for name, net in (("D", step.d), ("G", step.g)):
            row = found[f"bytes of {name} reduced a step, {name} locked"]
            parameters = list(net.parameters())
            gap = row["baseline"] - 4 * sum(p.numel() for p in parameters)
            assert row["value"] == 0
            assert 0 <= gap < 16 * len(parameters)  # each gradient begins at a multiple of 16 bytes


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["bench", "--size", "100"], "--size 100: must be a multiple of 64"),
        (["bench", "step", "--repeats", "0"], "--repeats 0: must be at least 1"),
        (["bench", "step", "--batch-sizes", "4", "1"], "--batch-sizes 4 1: each must be at least 2"),
        (["bench", "step", "--preset", "portrai"], "portrai"),
        (["bench", "step", "--size", "64", "--preset", "portrait-256"], "needs a size that is a multiple of 128 px"),
        (["bench", "loader", "--pairs", "4"], "--pairs 4: must be at least --batch-size"),
        (["bench", "metrics", "--dims", "100"], "--dims 100: must be one of"),
    ],
)
def test_a_wrong_option_is_a_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse(arguments)()


def test_small_sizes_are_not_too_small_for_the_preset() -> None:
    assert BenchOptions(quick=True, preset="portrait-256").resolved().size == 128
    assert BenchOptions(quick=True, preset="portrait").resolved().size == 64


def test_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without a launcher"):
        parse(["bench"])()


def test_a_file_that_cannot_be_written_is_known_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    since = time.process_time()
    with pytest.raises(UserError, match="cannot be written"):
        parse(["bench", "--json", str(tmp_path / "file" / "figures.json")])()
    assert time.process_time() - since < 5


def test_missing_weights_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Ranks) -> None:
    monkeypatch.setattr(inception, "find", lambda path: None)
    report = BenchReport(SMALL, None)
    bench_metrics.run(report, tmp_path)
    assert len(report.figures) == 2
    assert "no Inception weights" in report.notes[0]["text"]


# ---------------------------------------------------------------- measuring


def test_a_figure_is_a_median_and_its_ratio_is_better_above_one() -> None:
    def figure(ours: list[float], baseline: list[float], unit: str = "s") -> dict[str, Any]:
        report = BenchReport(SMALL, None)
        report.add("name", ours, baseline, unit, "baseline")
        return report.figures[0]

    faster = figure([4.0, 6.0, 20.0], [2.0, 2.0, 10.0], "images/s")
    assert [faster[k] for k in ("value", "low", "high", "baseline", "ratio")] == [6, 4, 20, 2, 2]
    less = figure([10.0], [40.0])
    assert (less["ratio"], less["rounds"]) == (4, 1)
    assert figure([0.0], [5.0])["ratio"] == math.inf
    assert figure([0.0], [0.0])["ratio"] == 1


def test_variants_take_turns_and_a_slow_comparison_ends_early() -> None:
    seen: list[str] = []
    variants = {name: (lambda n=name: seen.append(n)) for name in "ab"}
    times = interleaved(variants, BenchOptions(repeats=3), warm=1)
    assert "".join(seen) == "abababab"
    assert [len(t) for t in times.values()] == [3, 3]
    assert [len(t) for t in interleaved(variants, BenchOptions(repeats=3, budget_s=0.0)).values()] == [1, 1]


# ---------------------------------------------------------------- the baselines are fair


@pytest.mark.parametrize("preset", [None, "demo"])
def test_the_paper_s_step_computes_what_ours_computes(alone: Ranks, preset: str | None) -> None:
    config = bench_step.settings(4, preset)
    config = replace(config, generator=replace(config.generator, dropout=0.0, noise=0, ema=0.0))
    ours, paper = bench_step.build(config, alone, "no"), paper_way.PaperStep(config, CPU)
    line, sketch = bench_step.batch(4, 64, CPU, channels=config.data.channels)
    measured = read(ours(line, sketch, BOTH, bad=0, stop=False).reduced)
    for name, value in paper(line, sketch, BOTH).items():
        assert measured[name] == pytest.approx(value, rel=1e-4), name
    before = [p.clone() for p in paper.d.parameters()]
    terms = {"loss/g", "loss/g_bce", "loss/g_l1"} | ({"loss/g_ssim"} if config.loss.lambda_ssim else set())
    assert set(paper(line, sketch, bench_step.LOCKS["D locked"])) == terms
    assert all(map(torch.equal, before, paper.d.parameters()))


def test_operations_are_counted_as_by_hand(alone: Ranks) -> None:
    """Convolutions in the paper's layers at 256 px: 44 GFLOP for an image, and 47 if D is not frozen."""
    pairs = (torch.rand(2, 3, 256, 256), torch.rand(2, 3, 256, 256))
    config = bench_step.settings(2)
    ours = bench_step.repeated(bench_step.build(config, alone, "no"), pairs)
    paper = bench_step.repeated(paper_way.PaperStep(config, CPU), pairs)
    assert limit.count_flops(ours) / 2 == pytest.approx(44e9, rel=0.03)
    assert limit.count_flops(paper) / 2 == pytest.approx(47e9, rel=0.03)
    (convolution,) = limit.plain_convolutions(SMALL, CPU, ["no"]).values()  # 2 x 32 x 32 x 32
    assert limit.count_flops(convolution) == 3 * 2 * (2 * 32 * 32) * (32 * 32 * 9)


def test_what_a_gpu_does_is_the_union_of_its_kernels() -> None:
    assert gpu_idle.covered([(5, 7), (0, 2), (1, 3), (1, 2)]) == 5
    assert gpu_idle.covered([]) == 0
    assert gpu_idle.idle_percent(0.5, [1.0, 0.5, 0.4]) == [50, 0, 0]
    a = torch.rand(64, 64)
    seen = gpu_idle.watch(lambda: [a @ a for _ in range(8)], CPU)  # operators in place of kernels
    assert seen.kernels >= 8
    since = time.perf_counter()
    again = gpu_idle.watch(lambda: [a @ a for _ in range(8)], CPU)
    assert 0 < again.busy_s < time.perf_counter() - since


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Four pairs as JPEGs at 1024 px, and packed at 256."""
    options = BenchOptions(pairs=4, batch_size=4)
    return bench_loader.make(options, tmp_path_factory.mktemp("sources"))


def test_the_folder_of_jpegs_gives_the_packed_pixels(sources: tuple[Path, Path]) -> None:
    folder, shards = paper_way.JpegFolder(sources[0], 256), Shards(sources[1], "train")
    assert len(folder) == len(shards) == 4
    for i in range(4):
        line, sketch = folder[i]
        packed = shards.read(i, 3)
        assert torch.equal(line, packed.line)
        assert packed.sketch is not None
        assert torch.equal(sketch, packed.sketch)


def test_the_plain_loop_draws_what_infer_draws(tmp_path: Path, alone: Ranks) -> None:
    generator, shards = bench_infer.write_generator(SMALL, tmp_path), bench_infer.write_lines(SMALL, tmp_path)
    paper_way.infer(generator, shards, "val", tmp_path / "plain", 4, CPU)
    assert inference.infer(generator, shards, tmp_path / "ours", InferOptions(batch_size=4)) is None
    for folder in ("raw", "sketch", "line"):
        names = sorted(p.name for p in (tmp_path / "plain" / folder).iterdir())
        assert names == sorted(p.name for p in (tmp_path / "ours" / folder).iterdir())
        assert len(names) == 8
    for path in (tmp_path / "plain" / "raw").iterdir():
        a, b = (np.asarray(Image.open(p)).astype(int) for p in (path, tmp_path / "ours" / "raw" / path.name))
        assert np.abs(a - b).max() <= 1  # of 255


def test_scipy_s_distance_is_ours() -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((n, 24)) * rng.random(24) + i for i, n in enumerate((50, 60)))
    assert paper_way.frechet(x, y) == pytest.approx(fid_kid.frechet(x, y), rel=1e-6)


# ---------------------------------------------------------------- loose limits for ratios


def ratio(variants: dict[str, Callable[[], object]], clock: Callable[[], float] = time.process_time) -> float:
    """How many times faster "ours" is than "baseline": the median over three rounds."""
    times = interleaved(variants, BenchOptions(repeats=3), clock=clock)
    return median(b / a for a, b in zip(times["ours"], times["baseline"], strict=True))


def test_the_loader_is_quicker_than_a_folder_of_large_jpegs(sources: tuple[Path, Path]) -> None:
    report = BenchReport(BenchOptions(pairs=4, batch_size=4, repeats=3), None)
    bench_loader.per_core(report, *sources)
    found = {f["name"]: f["ratio"] for f in report.figures}
    assert found["streaming from shards"] > 3
    assert found["decoded in memory"] > 40  # streaming alone has about 10


def test_the_frechet_distance_of_few_images_needs_no_matrix_square_root() -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((60, 512)) + i for i in range(2))
    assert ratio({"baseline": lambda: paper_way.frechet(x, y), "ours": lambda: fid_kid.frechet(x, y)}) > 10


def test_the_step_is_no_slower_than_the_paper_s(alone: Ranks) -> None:
    """If bf16 is fast here. Otherwise both are float32, and ours only has to be comparable."""
    pairs = bench_step.batch(4, 128, CPU)
    config = bench_step.settings(4)
    step = bench_step.build(config, alone, resolve_precision("auto", CPU))
    variants = {
        "baseline": bench_step.repeated(paper_way.PaperStep(config, CPU), pairs),
        "ours": bench_step.repeated(step, pairs),
    }
    assert ratio(variants) > (1.0 if FAST else 0.5)


def test_rates() -> None:
    assert rates([0.5, 2.0], 4) == [8, 2]
