"""Comparisons of runs and outputs that are written here file by file, and of real ones, drawn by the command line."""

import csv
import io
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from conftest import SMALL, Run
from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import escape
from PIL import Image
from scipy import stats
from support.pages import Parsed, assert_only_our_script_runs, assert_self_contained

from dist_sketch.core.config import Config, to_dict
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import write_json
from dist_sketch.metrics.definitions import METRICS
from dist_sketch.reports.compare import comparison, tables
from dist_sketch.reports.compare import plot as compare_plot
from dist_sketch.reports.compare import results as results_module
from dist_sketch.reports.compare import scores as scores_module
from dist_sketch.reports.compare.results import Result, read, read_all
from dist_sketch.reports.compare.scores import (
    Effect,
    Group,
    comparable,
    comparable_sets,
    differences,
    groups,
    holm,
    least_sure,
    mean_sd,
    mean_text,
    score,
    seed_scores,
    t_test,
)
from dist_sketch.reports.ours import OLD_PAGE
from dist_sketch.reports.page import render
from dist_sketch.tracking.tracker import read_metrics

HOSTILE = 'Zoë "&" <b>x $y_1$ | `*東京 \'2'
NAMES = ["1", HOSTILE, *map(str, range(2, 10))]
SCORES = {"ssim": 0.6, "scoot": 0.5, "psnr": 20.0, "l1": 0.06, "specks": 0.2, "fid_64": 1.5, "fid_192": 5.5,
          "fid_768": 0.4, "fid_2048": 71.9, "kid": 0.03}  # fmt: skip
BLANK = {m.key: 0.1 if m.sign > 0 else 999.0 for m in METRICS} | {"specks": 0.0}
LINES = {m.key: 0.2 if m.sign > 0 else 500.0 for m in METRICS} | {"specks": 0.1}

Make = Callable[..., Path]


def set_in(tree: dict, dotted: dict[str, Any]) -> dict:
    for key, value in dotted.items():
        *path, last = key.split(".")
        at = tree
        for part in path:
            at = at[part]
        at[last] = value
    return tree


@pytest.fixture
def run(tmp_path: Path) -> Make:
    def make(name: str = "a-s0", *, seed: int = 0, state: str = "finished", step: int = 40, facts: dict | None = None,
             ssim: float = 0.5, **config: Any) -> Path:  # fmt: skip
        folder = tmp_path / "runs" / name
        changes = {"train.seed": seed} | {k.replace("__", "."): v for k, v in config.items()}
        known = {"size": 16, "manifest_sha256": "ab" * 32, "world_size": 2, "precision": "no", "device": "cpu",
                 "steps": 40, "run_id": name, "versions": {"torch": "2.15"}}  # fmt: skip
        write_json(folder / "config.json", {"config": set_in(to_dict(Config()), changes), "facts": known | facts
                                            if facts else known})  # fmt: skip
        write_json(folder / "status.json", {"state": state, "step": step, "steps": 40, "epochs": 2})
        lines = [
            {"kind": "train", "step": s, "epoch": (s - 1) // 20, "images": s * 8, "loss/g": 3.0 + 1 / s, "loss/d": 1.0,
             "lock/d": 1.0 if s > 20 else 0.0, "lock/g": 0, "speed/images_per_s": 20.0 if s == 10 else 40.0,
             "speed/data_wait": 0.25, "speed/memory_mb": 100.0 + s}
            for s in range(10, step + 1, 10)
        ]  # fmt: skip
        for epoch in range(step // 20):
            about = {"step": 20 * (epoch + 1), "epoch": epoch, "images": 160 * (epoch + 1)}
            lines += [{"kind": "epoch", **about, "loss/g": 2.5 - epoch, "loss/d": 1.25},
                      {"kind": "val", **about, "val/ssim": ssim + 0.1 * (epoch == 0), "val/l1": 0.07}]  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        return folder

    return make


def write_scores(folder: Path, ssim: float = 0.6, **changes: Any) -> None:
    each = {"ssim": 0.5, "l1": 0.1, "psnr": 18.0}
    made = {
        "n": len(NAMES),
        "size": 16,
        "raw": SCORES | {"ssim": ssim - 0.1},
        "denoised": SCORES | {"ssim": ssim},
        "baselines": {"blank": BLANK, "input": LINES, "reference": dict.fromkeys(SCORES)},
        "settings": {"source": "memory", "ssim": {"sigma": 1.5}, "kid": {"dims": 2048},
                     "fid": {"weights_sha256": "cd" * 32, "dims": [64, 2048], "resize": "bilinear",
                             "note": "n is small"}},
        "images": [{"name": n, "raw": each, "denoised": each | {"ssim": 0.777}} for n in NAMES],
    }  # fmt: skip
    write_json(folder / "metrics.json", set_in(made, {k.replace("__", "."): v for k, v in changes.items()}))


@pytest.fixture
def output(tmp_path: Path, run: Make) -> Make:
    def make(name: str = "a-s0", *, ssim: float = 0.6, infer: dict | None = None, **of_run: Any) -> Path:
        folder, made = tmp_path / "outputs" / name, run(name, **of_run)
        config = json.loads((made / "config.json").read_text())["config"]
        about = {
            "run": str(made),
            "step": 40,
            "config": config,
            "split": "val",
            "size": 16,
            "output_size": "network",
            "format": "png",
            "denoise": {"filter": "tv"},
            "mode": {"statistics": "running"},
            "names": NAMES,
        }
        write_json(folder / "infer.json", about | (infer or {}))
        write_scores(folder, ssim)
        for i, person in enumerate(NAMES):
            for j, kind in enumerate(("line", "raw", "sketch", "real")):
                of = (i, j) if kind in ("line", "real") else (i, j, *map(ord, name))
                pixels = np.random.default_rng(of).integers(0, 256, (16, 16, 3), dtype=np.uint8)
                (folder / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / kind / f"{person}.png")
        return folder

    return make


def change(file: Path, **values: Any) -> None:
    write_json(file, set_in(json.loads(file.read_text(encoding="utf-8")), {k.replace("__", "."): v
                                                                          for k, v in values.items()}))  # fmt: skip


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., str]:
    def make(*paths: Path, **options: Any) -> str:
        comparison.write(list(paths), tmp_path / "page.html", **options)
        return (tmp_path / "page.html").read_text(encoding="utf-8")

    return make


def table(html: str, *columns: str) -> list[list[str]]:
    """The rows of the first table whose heading begins so, with single spaces."""
    for rows in Parsed(html).tables:
        single = [[" ".join(cell.split()) for cell in row] for row in rows]
        if single[0][: len(columns)] == list(columns):
            return single[1:]
    raise AssertionError(columns)


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def group(*paths: Path) -> Group:
    return Group("g", [read(p) for p in paths])


# What is read


def test_an_output_knows_its_run(output: Make) -> None:
    entry = read(output("b", seed=3, loss__lambda_l1=8.0))
    assert (entry.name, entry.kind, entry.names) == ("b", "output", NAMES)
    assert (entry.config["loss.lambda_l1"], entry.config["train.seed"], entry.facts["world_size"]) == (8.0, 3, 2)
    assert entry.scores is not None
    assert entry.scores["denoised"]["ssim"] == 0.6
    assert {r["kind"] for r in entry.records} == {"train", "epoch", "val"}


def test_a_run_stands_for_itself(run: Make) -> None:
    entry = read(run("b"))
    assert (entry.kind, entry.scores, entry.names, entry.step) == ("run", None, [], 40)
    assert entry.unfinished == ""
    assert read(run("c", state="stopped", step=20)).unfinished == "is unfinished (stopped, step 20 of 40)"


def test_an_output_takes_the_place_of_its_run(output: Make, run: Make) -> None:
    drawn, other, last = output("a"), run("b"), output("c")
    order = [drawn, other, last]
    assert [r.path for r in read_all([read(drawn).run, other, last, drawn])] == order
    assert [r.path for r in read_all([*order, read(last).run])] == order


def test_names_are_unique_and_nothing_is_there_twice(output: Make, run: Make, tmp_path: Path) -> None:
    first, other = output("a"), output("b")
    again = tmp_path / "later" / "a"
    shutil.copytree(first, again)
    change(again / "infer.json", run="/gone")
    found = read_all([first, again, other, first, tmp_path / "runs" / "b"])  # b's run is told by b's output
    assert [e.name for e in found] == ["outputs/a", "later/a", "b"]
    assert [e.kind for e in found] == ["output"] * 3


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda o: shutil.rmtree(o), "there is no such folder"),
        (lambda o: (o / "infer.json").unlink(), "has neither config.json .* nor infer.json"),
        (lambda o: write_json(o / "infer.json", {"state": "running"}), "no infer.json of a finished inference"),
        (lambda o: write_json(o / "infer.json", [1]), r"infer\.json: the file must be a table"),
        (lambda o: change(o / "infer.json", config=None), r"infer\.json: config = None: must be of type dict"),
        (lambda o: (o / "metrics.json").write_text("{"), r"metrics\.json: is not valid JSON"),
        (lambda o: write_json(o / "metrics.json", {"n": 3}), r"metrics\.json: baselines is missing"),
        (lambda o: change(o / "metrics.json", raw__ssim="high"), r"raw\.ssim = .high.: must be of type float"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(output: Make, damage: Callable, words: str, page: Callable) -> None:
    folder = output()
    damage(folder)
    with pytest.raises(UserError, match=words):
        page(folder)
    assert not list(folder.parent.parent.glob("page*"))


def test_damaged_runs_and_exports_are_sentences(run: Make) -> None:
    folder = run()
    (folder / "generator.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="exported generator"):
        read(folder)
    write_json(folder / "config.json", {"facts": {}})
    with pytest.raises(UserError, match=r"config\.json: config is missing"):
        read(folder)


def test_the_run_may_be_gone_or_replaced(output: Make, page: Callable, run: Make) -> None:
    gone, replaced = output("gone"), output("replaced")
    shutil.rmtree(read(gone).run)
    run("replaced", loss__lambda_l1=1.0)
    html = page(gone, replaced)
    text = Parsed(html).text
    assert "gone has no curves, because the folder of its run is gone." in text
    assert "replaced has no curves, because the folder of its run now holds another run." in text
    assert "There are no curves" in text
    assert read(replaced).config["loss.lambda_l1"] == 100.0


def test_a_run_that_has_gone_on_is_still_the_same(output: Make) -> None:
    folder = output("a")
    change(read(folder).run / "config.json", config__train__epochs=60, facts__steps=80)
    entry = read(folder)
    assert entry.records
    assert entry.config["train.epochs"] == 50  # when it drew
    assert entry.unfinished == "was drawn at step 40 of 80"


def test_runs_of_before_a_setting_and_after_it_are_one_setting(output: Make) -> None:
    old, new = output("a-s0", seed=0), output("a-s1", seed=1)
    for file in (old / "infer.json", read(old).run / "config.json"):
        saved = json.loads(file.read_text())
        del saved["config"]["discriminator"]
        saved["config"]["data"]["jitter"] = False
        write_json(file, saved)
    found = read_all([old, new])
    assert found[0].records
    assert len(groups(found)) == 1
    assert "data.jitter" not in found[0].config


def test_weights_that_the_run_chose_are_one_setting_whatever_their_step(output: Make) -> None:
    paths = []
    for seed, step in ((0, 20), (1, 40)):
        chosen = {"step": step, "chosen": True, "chosen_on_these": True}
        paths.append(output(f"a-s{seed}", seed=seed, infer=chosen, checkpoint__choose="kid"))
    found = read_all(paths)
    assert [e.unfinished for e in found] == ["", ""]
    assert len(groups(found)) == 1
    said = comparison.verdicts(found, groups(found))
    assert [s.split(": The weights were selected")[0] for _, s in said[1:]] == ["a-s0", "a-s1"]
    trained = read_all([found[0].run])  # its validation scores are of these pairs, too
    assert "The weights were selected" in comparison.verdicts(trained, groups(trained))[-1][1]
    change(paths[0] / "infer.json", step=30, chosen=False)  # of somebody's own choice
    assert len(groups(read_all(paths))) == 2
    change(paths[1] / "infer.json", chosen_on_these=False)  # other pairs
    assert not any("a-s1: " in s for _, s in comparison.verdicts(read_all(paths), groups(read_all(paths))))


# What may be compared


@pytest.mark.parametrize(
    ("scores", "infer", "reason"),
    [
        ({"n": 9}, {}, "n: 10 and 9"),
        ({}, {"split": "train"}, "split: val and train"),
        ({}, {"names": NAMES[::-1]}, None),
        ({}, {"names": [*NAMES[:-1], "x"]}, "other faces"),
        ({"size": 32}, {}, "size in px: 16 and 32"),
        ({"baselines": {"blank": BLANK, "input": LINES | {"l1": 0.3}}}, {}, "other pictures under the same names"),
        ({"settings__fid__weights_sha256": "ef" * 32}, {}, "FID's weights: cdcdcdcdcdcd and efefefefefef"),
        ({"settings__fid__weights_sha256": None}, {}, None),  # then there is no FID to be compared
        ({"settings__fid__resize": "none"}, {}, "FID's resize: bilinear and none"),
        ({"settings__fid__dims": [64]}, {}, "FID's dims: [64, 2048] and [64]"),
        ({"settings__ssim": {"sigma": 2}}, {}, "SSIM's settings: {'sigma': 1.5} and {'sigma': 2}"),
        ({"settings__kid": {"dims": 64}}, {}, "KID's settings: {'dims': 2048} and {'dims': 64}"),
        ({"settings__source": "files"}, {}, None),
        ({"settings__source": "files"}, {"format": "jpg"}, "scored: exactly and from jpg files of size network"),
        ({}, {"mode": {"statistics": "paper"}}, None),
    ],
)
def test_scores_are_compared_only_if_they_were_measured_alike(
    output: Make, page: Callable, scores: dict, infer: dict, reason: str | None
) -> None:
    a, b = output("a"), output("b", infer=infer, loss__lambda_l1=8.0)
    write_scores(b, **scores)
    reasons = comparable(read(a), read(b))
    assert reasons == ([reason] if reason else [])
    assert len(comparable_sets(read_all([a, b]))) == (2 if reason else 1)
    html = page(a, b)
    text = Parsed(html).text
    (told, *_) = [*comparable(read(b), read(a)), None]
    verdict = f"b against a: no verdict, because their scores cannot be compared ({told})"
    assert (verdict in text) == bool(reason)
    assert ("Scores of different sections must not be compared" in text) == bool(reason)
    ranked = [row[0] for row in table(html, "", "seeds", "SSIM ↑") if row[1]]
    assert ranked == (["a"] if reason else ["a", "b"])
    assert (not differences(groups(read_all([a, b])))) == bool(reason)


def test_runs_and_outputs_are_not_ranked_against_each_other(output: Make, run: Make, page: Callable) -> None:
    reasons = comparable(read(output("a")), read(run("b")))
    assert len(reasons) == 1
    assert "the other only during its training" in reasons[0]
    unscored = output("c")
    (unscored / "metrics.json").unlink()
    assert comparable(read(unscored), read(unscored)) == ["c has no scores"] * 2
    assert "c has no scores." in Parsed(page(unscored)).text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"facts": {"manifest_sha256": "0"}}, "another data set"),
        ({"facts": {"size": 32}}, "size in px: 16 and 32"),
        ({"train__validate_limit": 4}, "train.validate_limit: 256 and 4"),
        ({"data__channels": 1}, "channels: 3 and 1"),
        ({"state": "stopped", "step": 20}, "b is unfinished (stopped, step 20 of 40)"),
        ({"loss__lambda_l1": 3.0}, None),
    ],
)
def test_runs_are_compared_by_their_validation(run: Make, page: Callable, changes: dict, reason: str | None) -> None:
    a, b = run("a"), run("b", ssim=0.51, **changes)
    assert comparable(read(a), read(b)) == ([reason] if reason else [])
    text = Parsed(page(a, b)).text
    (told, *_) = [*comparable(read(b), read(a)), None]
    assert (f"b against a: no verdict, because their scores cannot be compared ({told})" in text) == bool(reason)
    assert ("b against a, validation during training: one seed each" in text) == (not reason)


def test_of_a_hash_the_first_digits_are_shown(run: Make, page: Callable) -> None:
    a, b = run("a", facts={"code": "0123456789abcdef" + "a" * 24}), run("b", facts={"code": "b" * 40 + "+dirty"})
    text = Parsed(page(a, b)).text
    assert "0123456789ab" in text
    assert "b" * 12 + "+dirty" in text
    assert "0123456789abc" not in text


# Seeds


def test_seeds_are_one_setting_whatever_else_is_harmless(output: Make) -> None:
    paths = [
        output("ct-s0"),
        output("ct-s1", seed=1, data__workers=4, track__group="g", data__shards="/elsewhere", checkpoint__keep=1),
        output("ct-s10", seed=10, train__sample_count=2),
        *(output(f"x{i}", seed=2, **changes) for i, changes in enumerate((
            {"loss__lambda_l1": 8.0}, {"train__epochs": 49}, {"facts": {"world_size": 4}}, {"facts": {"code": "1234"}},
            {"facts": {"precision": "bf16"}}, {"facts": {"versions": {"torch": "3"}}}, {"train__accumulate": 2},
            {"infer": {"step": 20}}, {"infer": {"mode": {"statistics": "paper"}}}))),
    ]  # fmt: skip
    found = groups(read_all(paths))
    assert [g.label for g in found] == ["ct", *(f"x{i}" for i in range(9))]
    assert [e.name for e in found[0].results] == ["ct-s0", "ct-s1", "ct-s10"]


def test_the_same_seed_again_is_no_further_seed(output: Make) -> None:
    found = groups(read_all([output("a"), output("b"), output("c", seed=1)]))
    assert [[e.name for e in g.results] for g in found] == [["a", "c"], ["b"]]
    assert found[0].label == "a and 1 more"


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (["paper-s0", "paper-s1"], "paper"),
        (["paper-s10", "paper-s11"], "paper"),
        (["lambda8-s1", "lambda8-s2"], "lambda8"),
        (["paper_seed1", "paper_seed2"], "paper"),
        (["pass0", "pass1"], "pass"),
        (["run1", "run12"], "run"),
        (["lambda8", "lambda8b"], "lambda8"),
        (["x", "y"], "x and 1 more"),
    ],
)
def test_groups_are_named_after_what_their_names_share(output: Make, names: list[str], label: str) -> None:
    (made,) = groups(read_all([output(n, seed=i) for i, n in enumerate(names)]))
    assert made.label == label


def test_mean_and_standard_deviation(output: Make) -> None:
    seeds = group(*(output(f"s{i}", seed=i, ssim=v) for i, v in enumerate((0.60, 0.62, 0.67))))
    assert seed_scores(seeds, "denoised", "ssim") == [0.60, 0.62, 0.67]
    mean, sd = mean_sd([0.60, 0.62, 0.67])
    assert mean == pytest.approx(0.63)
    assert sd == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    assert mean_sd(seed_scores(seeds, "blank", "psnr")) == (pytest.approx(0.1), pytest.approx(0.0))
    assert mean_sd([0.5]) == (0.5, None)
    assert seed_scores(seeds, "reference", "ssim") == []
    assert [mean_text(values, 2) for values in ([], [0.5], [0.5, 0.7])] == ["–", "0.50", "0.60 ± 0.14"]
    assert score(seeds.results[0], "val", "ssim") == 0.5
    assert score(seeds.results[0], "best", "ssim") == 0.6
    assert score(seeds.results[0], "best", "l1") == 0.07


def fake(values: list[float], template: Result) -> Group:
    assert template.scores is not None
    scores = [template.scores | {"denoised": {"ssim": v, "l1": v}} for v in values]
    return Group("g", [replace(template, scores=s) for s in scores])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("t")
    about = {"run": "/gone", "config": {}, "names": NAMES, "split": "val", "format": "png", "output_size": "network"}
    write_json(folder / "infer.json", about)
    write_scores(folder)
    return read(folder)


samples = st.lists(st.integers(0, 1000).map(lambda i: i / 1000), min_size=1, max_size=5)


@pytest.mark.filterwarnings("ignore:Precision loss")  # of SciPy, for seeds that agree
@given(a=samples, b=samples)
@example(a=[0.495] * 3, b=[0.495] * 2)  # whose means differ in the last digit
def test_a_difference_counts_if_the_t_test_says_so(a: list[float], b: list[float]) -> None:
    found = t_test(a, b)
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b))
    if len(a) == len(b) == 1:
        assert (found.mood(1), found.error) == ("unknown", None)
        return
    spread = len(set(a)) > 1 or len(set(b)) > 1
    p = stats.ttest_ind(a, b, equal_var=True).pvalue if spread else float(a[0] == b[0])
    if abs(p - 0.05) > 1e-6:
        mood = "noise" if p > 0.05 else "better" if np.mean(a) > np.mean(b) else "worse"
        assert found.mood(1) == mood
        assert found.mood(-1) == {"better": "worse", "worse": "better"}.get(mood, "noise")


def test_the_noise_of_a_difference_is_that_of_the_t_test() -> None:
    # by hand: t of 2 degrees of freedom is 4.303; sqrt((2 + 2) / 2 * (1 / 2 + 1 / 2)) = 1.414 standard errors
    effect = t_test([100, 102], [93, 95])
    assert effect[:3] == (7, pytest.approx(4.3027 * 2**0.5, rel=1e-4), pytest.approx(2**0.5))
    assert (effect.sign, t_test([93, 95], [100, 102]).sign, t_test([100, 102], [94, 96]).sign) == (1, -1, 0)
    # one seed against two has the spread of the two: t of 1 degree of freedom is 12.706, sqrt(0.5 * 1.5) = 0.866
    assert t_test([3.0], [1.0, 2.0])[:3] == (1.5, pytest.approx(12.706 * 0.866, rel=1e-3), pytest.approx(0.75**0.5))
    # against 0: t of 2 degrees of freedom times 1 / sqrt(3)
    assert t_test([1.0, 2.0, 3.0])[:3] == (2, pytest.approx(4.3027 / 3**0.5, rel=1e-4), pytest.approx(3**-0.5))


@pytest.mark.filterwarnings("error")
def test_seeds_that_agree_or_are_alone() -> None:
    assert t_test([0.1] * 3, [0.3] * 2).sign == -1  # no spread: each difference counts
    assert t_test([0.495] * 3, [0.495] * 2).sign == 0
    assert t_test([0.1 + 0.2] * 3, [0.3] * 3).sign == 0  # but for a difference in the last digit
    assert t_test([0.1] * 3).sign == 1
    assert t_test([0.0, 0.0]).sign == 0
    assert t_test([2.0], [1.0]) == Effect(1.0, None, None)
    assert t_test([2.0]) == Effect(2.0, None, None)


# The page


@pytest.fixture
def three(output: Make) -> list[Path]:
    """A setting of three seeds, one much better in SSIM of the denoised, one of a single seed."""
    return [
        *(output(f"base-s{i}", seed=i, ssim=v) for i, v in enumerate((0.60, 0.63, 0.66))),
        *(output(f"good-s{i}", seed=i, ssim=v, loss__lambda_l1=8.0) for i, v in enumerate((0.80, 0.81, 0.79))),
        output("one", ssim=0.64, conditional__mode="off", facts={"world_size": 8, "device": "H100"}),
    ]


def test_verdicts(three: list[Path], tmp_path: Path, output: Make) -> None:
    same = "SCOOT, PSNR, L1, Specks, FID-64, FID-192, FID-768, FID-2048 and KID"
    out = tmp_path / "c.html"
    assert comparison.write(three, out) == [
        f"good against base, denoised: better in SSIM (+0.170); within the seeds' noise in {same}.",
        f"one against base, denoised: within the seeds' noise in all of SSIM, {same}.",
    ]
    # By itself the SSIM of two seeds each would differ; among all tests of the page it may do so by chance.
    assert comparison.write([three[3], three[4], *three[:2]], out) == [
        f"base against good, denoised: within the seeds' noise in all of SSIM, {same}."
    ]
    (sentence,) = comparison.write([three[6], three[0]], out)
    assert sentence.startswith("base-s0 against one, denoised: one seed each, so any difference may be mere noise: "
                               "SSIM (−0.040).")  # fmt: skip
    twin = output("twin", ssim=0.64, conditional__timer=9)
    assert comparison.write([three[6], twin], out) == [
        "twin against one, denoised: equal in all digits that are shown."
    ]
    assert comparison.write(three[:3], out) == ["There is only one setting, so there is nothing to compare it with."]
    none = output("none", conditional__timer=9)
    write_scores(none, raw={}, denoised={})
    assert "nothing was scored in both" in comparison.write([three[0], none], out)[0]


def test_scores_stand_with_their_spread_and_context(three: list[Path], page: Callable) -> None:
    html = page(*three)
    rows = {row[0]: row[1:] for row in table(html, "", "seeds", "SSIM ↑")}
    assert rows["base"][:3] == ["3", "0.630 ± 0.030", "0.500 ± 0.000"]
    assert rows["good"][0:2] == ["3", "0.800 ± 0.010"]
    assert rows["one"][:2] == ["1", "0.640"]
    assert rows["blank page"][:2] == ["", "0.100"]
    assert rows["input line"][:2] == ["", "0.200"]
    assert "other real sketches" not in rows  # nothing is known of them here
    assert re.findall(r'<td class="best"[^>]*>(0\.\d+)<small>', html)[0] == "0.800"
    against = {tuple(row[:2]): row[2:] for row in table(html, "", "", "SSIM ↑")}
    assert against["good", "denoised"][0] == "+0.170 better"
    assert against["good", "raw"][0] == "+0.170 better"
    assert against["one", "denoised"][0] == "+0.010 noise"
    assert "Noise: the spread of the seeds alone explains such a difference." in Parsed(html).text
    seeds = {tuple(row[:3]): row[3:] for row in table(html, "", "seed", "", "SSIM ↑")}
    assert seeds["base-s2", "2", "denoised"][0] == "0.660"
    text = Parsed(html).text
    assert "Scores of 10 validation portraits at 16 px" in text
    assert "FID's weights cdcdcdcdcdcd; resize bilinear." in text
    assert "7 outputs of 3 settings" in text
    assert "†" not in text


def test_what_is_no_better_than_a_blank_page_is_marked(output: Make, page: Callable) -> None:
    html = page(output("a", ssim=0.2), output("b", ssim=0.21, loss__lambda_l1=8.0))
    rows = {row[0]: row[2] for row in table(html, "", "seeds", "SSIM ↑")}
    assert (rows["a"], rows["b"]) == ("0.200†", "0.210")
    assert 'title="Not better than the input line">0.200†' in html
    assert "† Not better than the blank page or the input line." in Parsed(html).text


def test_only_what_differs_is_shown_and_the_seeds_always(three: list[Path], page: Callable) -> None:
    html = page(*three)
    assert table(html, "setting", "base", "good", "one") == [
        ["train.seed", "0, 1, 2", "0, 1, 2", "0"],
        ["loss.lambda_l1", "100", "8", "100"],
        ["conditional.mode", "on", "on", "off"],
        ["world_size", "2", "2", "8"],
        ["device", "cpu", "cpu", "H100"],
    ]
    html = page(*three[:3])
    assert table(html, "setting", "base") == [["train.seed", "0, 1, 2"]]
    assert "Nothing else differs." in Parsed(html).text


def test_paths_and_tracking_are_no_difference(run: Make, page: Callable) -> None:
    a, b = run("a", data__shards="/here"), run("b", data__shards="/there", track__group="g", loss__scale=0.2)
    rows = table(page(a, b), "setting", "a", "b")
    assert rows == [["train.seed", "0", "0"], ["loss.scale", "0.1", "0.2"]]


def test_a_setting_that_an_older_run_did_not_know_was_at_its_default(run: Make, page: Callable) -> None:
    old, new = run("old"), run("new", generator__ema=0.9)
    saved = json.loads((old / "config.json").read_text())
    del saved["config"]["generator"]["ema"], saved["config"]["discriminator"], saved["facts"]["device"]
    write_json(old / "config.json", saved)
    rows = table(page(old, new), "setting", "old", "new")
    assert ["generator.ema", "0", "0.9"] in rows
    assert "discriminator.fine" not in [r[0] for r in rows]
    assert "device" not in [r[0] for r in rows]  # of which nothing is known


def test_runs_learn_and_cost(run: Make, page: Callable, output: Make) -> None:
    html = page(run("a", ssim=0.5), run("b", step=20, state="stopped"), output("c", loss__lambda_l1=2.0))
    learned = {row[0]: row[1:] for row in table(html, "", "state", "epochs")}
    assert learned["a"] == ["finished", "2", "40", "1.500", "1.250", "0.500", "0.600 epoch 1", "0.0700", "50%", "0%"]
    assert learned["b"][:3] == ["stopped", "1", "20 of 40"]
    cost = {row[0]: row[1:] for row in table(html, "", "processes")}
    # 10 of 40 steps at 20 images/s, the others at 40, 8 images each
    assert cost["a"] == ["2 × cpu", "320", "10 s", "40.0", "25%", "140 MB"]
    assert set(cost) == {"a", "b", "c"}


def test_a_run_without_records_has_no_figures(run: Make, page: Callable) -> None:
    folder = run("a")
    (folder / "metrics.jsonl").unlink()
    (folder / "status.json").unlink()
    found = tables.summarize("a", read(folder))
    shown = [found[key] for key in ("state", "step", "loss_g", "train_s", "locked_d")]
    assert shown == ["no history", 0, None, None, None]
    assert table(page(folder), "", "state", "epochs")[0][4] == "–"


def test_a_share_counts_steps_not_lines(run: Make) -> None:
    folder = run("a")
    lines = [{"kind": "train", "step": 10, "lock/d": 1, "lock/g": None}, {"kind": "train", "step": 40, "lock/d": 0.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    found = tables.summarize("a", read(folder))
    assert (found["locked_d"], found["locked_g"]) == (0.625, None)
    assert {found[key] for key in ("images_per_s", "train_s", "val_ssim", "best_epoch")} == {None}


def test_durations(run: Make, page: Callable) -> None:
    expected = {None: "–", 0.4: "0 s", 59.4: "59 s", 59.6: "1 min", 83: "1 min 23 s", 7320: "2 h 2 min"}
    folders = []
    for i, seconds in enumerate(expected):
        folders.append(run(f"r{i}", train__epochs=50 + i))
        record = {"kind": "train", "step": 40} | ({"speed/images_per_s": 40 * 8 / seconds} if seconds else {})
        (folders[-1] / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    assert [row[3] for row in table(page(*folders), "", "processes")] == list(expected.values())


def test_tables_are_written_as_csv(three: list[Path], page: Callable, tmp_path: Path) -> None:
    page(*three)
    scores = read_csv(tmp_path / "page-scores.csv")
    line = next(r for r in scores if (r["name"], r["variant"]) == ("good-s1", "denoised"))
    assert (line["group"], line["seed"], line["n"], line["split"], line["size"]) == ("good", "1", "10", "val", "16")
    assert (line["ssim"], line["fid_2048"], line["fid_weights_sha256"]) == ("0.81", "71.9", "cd" * 32)
    assert line["path"] == str(three[4])
    assert {r["variant"] for r in scores} == {"denoised", "raw", "blank", "input", "val", "best"}
    means = {(r["group"], r["variant"], r["metric"]): r for r in read_csv(tmp_path / "page-groups.csv")}
    assert float(means["good", "denoised", "ssim"]["mean"]) == pytest.approx(0.80)
    assert float(means["good", "denoised", "ssim"]["sd"]) == pytest.approx(0.01)
    assert (means["good", "denoised", "ssim"]["seeds"], means["one", "raw", "ssim"]["sd"]) == ("3", "")
    config = {r["setting"]: r for r in read_csv(tmp_path / "page-config.csv")}
    assert (config["loss.lambda_l1"]["good-s0"], config["facts.world_size"]["one"]) == ("8.0", "8")
    runs = {r["name"]: r for r in read_csv(tmp_path / "page-runs.csv")}
    assert (runs["one"]["images_per_s"], runs["one"]["locked_d"], runs["one"]["state"]) == ("40.0", "0.5", "finished")


def markdown_tables(text: str) -> Iterator[list[list[str]]]:
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        yield [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]


def test_tables_are_written_as_markdown(three: list[Path], page: Callable, tmp_path: Path) -> None:
    page(*three, title="Why * and |")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert text.startswith(
        "# Why \\* and \\|\n\n7 outputs of 3 settings\n\n- good against base, denoised: better in SSIM"
    )
    found = list(markdown_tables(text))
    assert len(found) == 7  # denoised, raw, against, each seed, what differs, learned, cost
    for rows in found:
        assert {len(row) for row in rows} == {len(rows[0])}
        assert set("".join(rows[1])) <= set(":-")
    assert found[0][2][:3] == ["base", "3", "0.630 ± 0.030"]
    assert found[0][3][:3] == ["good", "3", "**0.800 ± 0.010**"]


def test_hostile_names_are_text_everywhere(output: Make, page: Callable, tmp_path: Path) -> None:
    html = page(output(HOSTILE), output("b", loss__lambda_l1=8.0), title="<i>")
    parsed = Parsed(html)
    assert_self_contained(html)
    assert_only_our_script_runs(html)
    assert not re.search(r"<[bi]>", html)
    assert f"b against {HOSTILE}, denoised" in parsed.text
    assert f"{HOSTILE}: D locked in 50% of the steps" in parsed.text  # in the plot
    assert f"raw by {HOSTILE} of {HOSTILE}" in {a.get("alt") for _, a in parsed.tags}
    (rows, *_) = markdown_tables((tmp_path / "page.md").read_text(encoding="utf-8"))
    assert rows[2][0] == str.translate(HOSTILE, {ord(c): f"\\{c}" for c in "|`*"} | {ord("<"): "&lt;"})
    assert {r["name"] for r in read_csv(tmp_path / "page-scores.csv")} == {HOSTILE, "b"}


def test_several_files_are_asked_for_properly(run: Make, tmp_path: Path, cli: Run) -> None:
    with pytest.raises(UserError, match="nothing to compare"):
        comparison.write([], tmp_path / "page.html")
    for name in ("page", "page.md", "."):
        with pytest.raises(UserError, match="must be the name of an HTML file"):
            comparison.write([run()], tmp_path / name)
    done = cli("compare", tmp_path / "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path / 'none'}: there is no such folder\n"


# Curves and locks


def test_a_strip_shows_when_a_network_was_locked(run: Make) -> None:
    result = read(run("a"))
    (strip,) = compare_plot.strips([compare_plot.RunCurve("a", 0, result)])
    assert strip.label == "a: D locked in 50% of the steps"
    assert strip.bars == [(160.0, 160.0, 1.0)]  # images 160 to 320: steps 20 to 40
    steps = [{"kind": "train", "step": s, "lock/d": 0.5, "lock/g": s == 40} for s in range(10, 41, 10)]
    one_by_one = replace(result, records=steps, config={"data.batch_size": 1})
    both = compare_plot.strips([compare_plot.RunCurve("b", 0, one_by_one)])
    assert [s.label for s in both] == ["b: D locked in 50% of the steps", "b: G locked in 25% of the steps"]
    assert both[0].bars == [(0.0, 40.0, pytest.approx(0.6))]  # half of the steps: between the shades 0.4 and 0.6
    assert both[1].bars == [(20.0, 20.0, pytest.approx(0.6))]


def test_strips_of_many_runs_are_those_of_the_first_seeds(run: Make) -> None:
    result = read(run("a"))
    curves = [compare_plot.RunCurve(f"r{i}", i // 4, result) for i in range(compare_plot.MAX_STRIPS)]
    assert len(compare_plot.strips(curves)) == compare_plot.MAX_STRIPS
    more = [*curves, compare_plot.RunCurve("more", 99, result)]
    assert [s.label.split(":")[0] for s in compare_plot.strips(more)] == [*(f"r{i}" for i in range(0, 36, 4)), "more"]


def paths(svg: str, colour: str) -> list[list[tuple[float, float]]]:
    found = re.findall(rf'<path d="([^"]*)"[^>]*style="[^"]*stroke: var\(--{colour}\)', svg)
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", p)] for p in found]


def test_curves_share_a_plot_over_images_seen(run: Make) -> None:
    a, b = read(run("a")), read(run("b", data__batch_size=16))
    other_seeds = [compare_plot.RunCurve(name, 0, a) for name in "cd"]
    curves = [compare_plot.RunCurve("a", 0, a), compare_plot.RunCurve("b", 1, b), *other_seeds]
    svg = compare_plot.draw(curves, 10.0)
    for title in ("loss of G", "loss of D", "SSIM on the validation split", "images seen"):
        assert title in svg
    assert "FID" not in svg
    (one, *_), (other, *_) = paths(svg, "c0"), paths(svg, "c1")
    assert len(paths(svg, "c0")) == 3 * 3  # three seeds in three panels
    assert other[-1][0] - other[0][0] == pytest.approx(2 * (one[-1][0] - one[0][0]), rel=1e-3)  # twice the batch
    assert compare_plot.draw([compare_plot.RunCurve("a", 0, replace(a, records=a.records[:1]))], 10.0) == ""
    assert compare_plot.look(0) != compare_plot.look(8) != compare_plot.look(16)


def test_the_legend_names_what_is_drawn(three: list[Path], page: Callable) -> None:
    shutil.rmtree(read(three[-1]).run)
    html = page(*three)
    legend = re.search(r'<ul class="legend">(.*?)</ul>', html, flags=re.S)
    assert legend
    assert re.findall(r"</i>(.*?)</li>", legend[1]) == ["base (3 seeds)", "good (3 seeds)"]
    assert "The loss of G contains lambda" in Parsed(html).text
    assert "The loss of G contains lambda" not in Parsed(page(*three[:3])).text


# Faces


def pixels(uri: str) -> np.ndarray:
    import base64

    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_the_same_faces_stand_side_by_side(three: list[Path], page: Callable) -> None:
    html = page(*three)
    pictures = {a["alt"]: a["src"] for tag, a in Parsed(html).tags if tag == "img"}
    shown = list(dict.fromkeys(alt.split(" of ", 1)[1] for alt in pictures))
    assert shown == [NAMES[i * 10 // 6] for i in range(6)]
    for alt, folder, kind in (
        ("line of 3", three[0], "line"), ("real of 3", three[0], "real"), ("raw by base of 3", three[0], "raw"),
        ("denoised by good of 3", three[3], "sketch"), ("denoised by one of 3", three[6], "sketch"),
    ):  # fmt: skip
        assert np.array_equal(pixels(pictures[alt]), np.array(Image.open(folder / kind / "3.png"))), alt
    assert table(html, "", "line", "base", "good", "one", "real")
    assert "0.777" in Parsed(html).text


def test_faces_are_those_that_all_outputs_have(output: Make, page: Callable) -> None:
    a, b = output("a"), output("b", infer={"names": ["9", "1", "x"]}, loss__lambda_l1=8.0)
    assert [row["name"] for row in comparison.faces(groups(read_all([a, b])))["rows"]] == ["1", "9"]
    other = output("c", infer={"names": ["p", "q"]}, loss__lambda_l1=9.0)
    assert "show different faces, so none are compared here" in Parsed(page(a, other)).text
    write_scores(b, baselines={"blank": BLANK | {"l1": 0.5}, "input": LINES})
    change(b / "infer.json", names=NAMES)
    assert "show different faces" in Parsed(page(a, b)).text


def test_a_lost_picture_is_taken_from_another_output_or_shown_as_lost(output: Make, page: Callable) -> None:
    a, b = output("a"), output("b", loss__lambda_l1=8.0)
    (a / "line" / "1.png").unlink()
    (a / "raw" / "1.png").unlink()
    html = page(a, b)
    assert html.count("no file") == 1
    assert "line of 1" in {attributes.get("alt") for _, attributes in Parsed(html).tags}


def test_runs_without_outputs_show_their_last_samples(run: Make, page: Callable) -> None:
    for step, shade in ((20, 10), (40, 200)):
        (run("a") / "samples").mkdir(exist_ok=True)
        Image.new("L", (48, 64), shade).save(run("a") / "samples" / f"step-{step:08d}.png")
    html = page(run("a"), run("b", loss__lambda_l1=8.0))
    pictures = [a["src"] for tag, a in Parsed(html).tags if tag == "img"]
    assert len(pictures) == 1
    assert abs(int(pixels(pictures[0]).mean()) - 200) <= 2
    assert "a, step 40" in Parsed(html).text


# What a caller adds


def test_sections_come_first(output: Make, page: Callable, tmp_path: Path) -> None:
    a = output("a")
    row = ("person", [("one", a / "raw" / "1.png"), ("no", a / "x.png")])
    sections = [
        comparison.Section("Table <1>", ["method", "FID"], [["<CT>", "1 | 2"]], ["Held, *so far*."]),
        comparison.Section("Fig. 6", text=["Faces."], pictures=[row]),
    ]  # fmt: skip
    html = page(a, title="The paper", sections=sections)
    parsed = Parsed(html)
    assert parsed.text.index("Table <1>") < parsed.text.index("Fig. 6") < parsed.text.index("What differs")
    assert table(html, "method", "FID") == [["<CT>", "1 | 2"]]
    assert "Held, *so far*." in parsed.text
    shown = [a["src"] for tag, a in parsed.tags if tag == "img" and a["alt"] == "one of person"]
    assert np.array_equal(pixels(shown[0]), np.array(Image.open(a / "raw" / "1.png")))
    assert "no file" in parsed.text
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "## Table &lt;1>\n\nHeld, \\*so far\\*.\n\n| method | FID |\n| :-- | --: |\n| &lt;CT> | 1 \\| 2 |" in text
    assert str(escape("<CT>")) in html


# The real thing


def test_real_runs_through_the_command_line(shards: Path, tmp_path: Path, cli: Run) -> None:
    for seed in (0, 1):
        done = cli("train", "--data.shards", shards, "--out", tmp_path / f"run-s{seed}", *SMALL, "--train.epochs", 1,
                   "--train.seed", seed, "--train.validate-interval-epochs", 1)  # fmt: skip
        assert done.returncode == 0, done.stderr
    done = cli("infer", "--run", tmp_path / "run-s0", "--input", shards, "--out", tmp_path / "out-s0")
    assert done.returncode == 0, done.stderr
    done = cli("compare", tmp_path / "run-s0", tmp_path / "run-s1", "--out", tmp_path / "runs.html")
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout == f"There is only one setting, so there is nothing to compare it with.\n{tmp_path / 'runs.html'}\n"
    )
    assert done.stderr == ""
    html = (tmp_path / "runs.html").read_text(encoding="utf-8")
    assert_self_contained(html)
    assert table(html, "setting", "run") == [["train.seed", "0, 1"]]
    learned = table(html, "", "state", "epochs")
    assert [row[:4] for row in learned] == [[f"run-s{i}", "finished", "1", "3"] for i in (0, 1)]
    assert not any("–" in row for row in learned)
    assert sum(tag == "img" for tag, _ in Parsed(html).tags) == 1  # samples of the first seed
    assert html.count("<svg") == 2
    out = tmp_path / "both.html"
    (sentence,) = comparison.write([tmp_path / "out-s0", tmp_path / "run-s1"], out)
    assert sentence.startswith("run-s1 against out-s0: no verdict")
    html = out.read_text(encoding="utf-8")
    assert "Scores of 5 validation portraits at 64 px" in Parsed(html).text
    scores = json.loads((tmp_path / "out-s0" / "metrics.json").read_text())
    assert table(html, "", "seeds", "SSIM ↑")[0][2].rstrip("†") == f"{scores['denoised']['ssim']:.3f}"


def test_chance_alone_moves_few_pages() -> None:
    """Pages of 2 against 2 seeds whose scores differ by chance only: how many of them call some score different."""
    random = np.random.default_rng(0)
    pages, alarms = 1000, {"alone": 0, "holm": 0}
    for _ in range(pages):
        effects = {i: t_test(*random.normal(size=(2, 2)).tolist()) for i in range(8)}
        alarms["alone"] += any(e.sign for e in effects.values())
        alarms["holm"] += any(e.sign for e in holm(effects).values())
    assert 0.3 < alarms["alone"] / pages < 0.38  # 1 - 0.95^8
    assert 0.03 < alarms["holm"] / pages < 0.07


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_of_differences_that_are_just_sure_half_are_found_or_more(seeds: int) -> None:
    """One of eight scores differs by `least_sure`; the others differ by chance only."""
    random = np.random.default_rng(seeds)
    power = {}
    for times in (0.0, 0.5, 1.0, 2.0):
        hits = 0
        for _ in range(300):
            drawn = random.normal(size=(8, 2, seeds))
            drawn[0, 0] += times * least_sure(seeds, seeds, 8)
            effects = {i: t_test(*both.tolist()) for i, both in enumerate(drawn)}
            hits += bool(holm(effects)[0].sign)
        power[times] = hits / 300
    assert power[0.0] < 0.04
    assert power[0.0] < power[0.5] < power[1.0] < power[2.0]
    assert 0.4 < power[1.0] < 0.75
    assert power[2.0] > 0.75


def test_chance_alone_moves_few_verdicts(template: Result) -> None:
    """The same through the page: equal runs, 2 against 2 seeds, all scores of raw and denoised drawings."""
    random = np.random.default_rng(1)
    pages, alarms = 400, 0
    assert template.scores is not None
    for _ in range(pages):
        results = []
        for i, drawn in enumerate(random.normal(1, 0.1, size=(4, 2, len(METRICS))).tolist()):
            scores = {v: dict(zip(SCORES, of, strict=True)) for v, of in zip(("raw", "denoised"), drawn, strict=True)}
            config = template.config | {"train.seed": i % 2, "loss.lambda_l1": i // 2}
            results.append(
                replace(template, name=f"{'ab'[i // 2]}-s{i % 2}", config=config, scores=template.scores | scores)
            )
        made = groups(results)
        assert [len(g.results) for g in made] == [2, 2]
        effects = differences(made)
        assert len(effects) == 2 * len(METRICS)
        alarms += any(e.sign for e in effects.values())
    assert 0.02 < alarms / pages < 0.08


def test_the_correction_is_holms() -> None:
    effects = {i: t_test([x, x + 1], [-x, 1 - x]) for i, x in enumerate((0.5, 40.0, 8.0, 2.0))}
    order = sorted(effects, key=lambda i: effects[i].chance)
    sure = True
    for rank, i in enumerate(order):  # by hand: the smallest p against 0.05 / 4, the next one against 0.05 / 3 ...
        sure = sure and effects[i].chance < 0.05 / (4 - rank)
        assert bool(holm(effects)[i].sign) == sure
    assert {bool(e.sign) for e in holm(effects).values()} == {True, False}
    alone = Effect(1.0, None, None)
    assert holm({"a": alone}) == {"a": alone}  # one seed each: no test


def test_a_history_is_read_once_for_all_tables(run: Make, page: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each table asks for the last and the best of ten scores; searching the log each time would take minutes."""
    looked_up = Counter[str]()

    class Counted(dict):
        def get(self, key: str, default: Any = None) -> Any:
            looked_up[key] += key.startswith("val/")
            return super().get(key, default)

    def counted(folder: Path) -> list[dict]:
        return [Counted(r) for r in read_metrics(folder)]

    monkeypatch.setattr(results_module, "read_metrics", counted)
    made = [run(f"a-s{i}", seed=i) for i in range(4)]
    page(*made)
    lines = sum(len(read_metrics(folder)) for folder in made)
    curves = 2 * 2 * len(made) * 2  # two panels of two records at two widths
    assert max(looked_up.values()) <= 2 * lines + curves


def test_a_page_of_many_runs_compiles_each_template_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = Counter[str]()
    original = jinja2.Environment.compile

    def counted(self: jinja2.Environment, source: Any, name: str | None = None, *rest: Any, **options: Any) -> Any:
        compiled[str(name)] += 1
        return original(self, source, name, *rest, **options)

    monkeypatch.setattr(jinja2.Environment, "compile", counted)
    for i in range(50):
        render("rule.j2", seeds=1 + i % 2, confidence=0.95, tests=i, limits=[4.3, 12.7])
    assert compiled["rule.j2"] <= 1


def many(template: Result, count: int, **changes: Any) -> list[Result]:
    """Results of different settings, as a sweep has them; the last one is the best."""
    assert template.scores is not None
    found = []
    for i in range(count):
        scores = template.scores | {"denoised": SCORES | {"ssim": 0.3 + i / 10_000}, "n": 10}
        config = template.config | {"optim.lr_g": 1e-6 * (i + 1)}
        found.append(replace(template, name=f"r{i}", config=config, scores=scores, **changes))
    return found


def test_of_thousands_of_runs_a_part_is_shown_and_the_rest_is_named(
    template: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2 * comparison.MAX_ROWS
    monkeypatch.setattr(comparison, "read_all", lambda _: many(template, count))
    said = comparison.write([tmp_path], tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    text = Parsed(html).text
    rows = [row[0] for row in table(html, "", "seeds", "SSIM ↑") if row[1]]
    assert rows == [*(f"r{i}" for i in range(comparison.MAX_ROWS)), f"r{count - 1}"]  # and the best one
    assert f"{count - comparison.MAX_ROWS - 1} further rows are left out here; all are in page.md" in text
    verdicts = [sentence for sentence in said if sentence in text]
    assert len(verdicts) == comparison.MAX_SAID
    assert f"{len(said) - comparison.MAX_SAID} further verdicts are left out here; all are in page.md" in text
    assert {len(row) for row in table(html, "setting")} == {comparison.MAX_COLUMNS + 1}
    assert f"{count - comparison.MAX_COLUMNS} further settings are left out here; all are in page-config.csv" in text
    markdown = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert all(f"\n| r{i} | 1 |" in markdown for i in range(count))
    assert len(read_csv(tmp_path / "page-config.csv")[0]) == count + 1
    assert len(html) < 5_000_000


def test_verdicts_that_find_a_difference_are_shown_first(
    template: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [("note", f"note {i}.") for i in range(2 * comparison.MAX_SAID)] + [("good", "The last one is better.")]
    monkeypatch.setattr(comparison, "read_all", lambda _: [template])
    monkeypatch.setattr(comparison, "verdicts", lambda *_: said)
    assert comparison.write([tmp_path], tmp_path / "page.html") == [sentence for _, sentence in said]
    assert "The last one is better. note 0." in Parsed((tmp_path / "page.html").read_text(encoding="utf-8")).text


def test_many_seeds_and_many_sets_of_scores_stay_readable(
    template: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = [replace(r, config=template.config | {"train.seed": i}) for i, r in enumerate(many(template, 60))]
    monkeypatch.setattr(comparison, "read_all", lambda _: seeds)
    comparison.write([tmp_path], tmp_path / "page.html")
    (row,) = table((tmp_path / "page.html").read_text(encoding="utf-8"), "setting")
    assert row[1].endswith("18, 19, 40 more")
    assert template.scores is not None
    unlike = [replace(r, scores=template.scores | {"n": i}) for i, r in enumerate(many(template, 30))]
    monkeypatch.setattr(comparison, "read_all", lambda _: unlike)
    comparison.write([tmp_path], tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.count("<h2>Scores of ") == comparison.MAX_SECTIONS
    assert f"{30 - comparison.MAX_SECTIONS} further sets of scores are left out here" in Parsed(html).text


def test_many_results_are_compared_in_linear_time(template: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Counter[str]()

    def counted(*results: Result) -> list[str]:
        calls["comparable"] += 1
        return comparable(*results)

    monkeypatch.setattr(scores_module, "comparable", counted)
    found = {}
    for n in (20, 80):
        results = [replace(template, name=f"r{i}", config=template.config | {"optim.lr_g": i}) for i in range(n)]
        calls.clear()
        assert [len(s) for s in comparable_sets(results)] == [n]
        assert len(groups(results)) == n
        differences(groups(results))
        found[n] = calls["comparable"]
    assert found[80] <= 4.5 * found[20]


def test_formulas_in_names_are_texts_for_table_programs(output: Make, page: Callable, tmp_path: Path) -> None:
    page(output("=1+1"), output("@SUM(A1)", loss__lambda_l1=8.0))
    files = sorted(tmp_path.rglob("page*.csv"))
    assert files
    for file in files:
        for row in csv.reader(io.StringIO(file.read_text())):
            assert not any(cell.startswith(("=", "@")) for cell in row)
    assert "'=1+1" in "".join(f.read_text() for f in files)


@pytest.mark.parametrize("name", ["notes.html", "notes.md", "notes-runs.csv", "notes-scores.csv"])
def test_files_of_somebody_else_are_not_replaced(output: Make, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("my own notes on dist_sketch")
    before = sorted(tmp_path.iterdir())
    folder = output()
    with pytest.raises(UserError, match=rf"{name}: was not written by this command, and would be lost"):
        comparison.write([folder], tmp_path / "notes.html")
    assert (tmp_path / name).read_text() == "my own notes on dist_sketch"
    assert [p for p in sorted(tmp_path.iterdir()) if p.is_file()] == before


def test_a_comparison_replaces_one_of_ours(output: Make, tmp_path: Path) -> None:
    page, folder = tmp_path / "notes.html", output()
    comparison.write([folder], page)
    ours = {p.name: p.read_bytes() for p in tmp_path.glob("notes*")}
    comparison.write([folder], page, title="another one")
    assert {p.name for p in tmp_path.glob("notes*")} == set(ours)
    assert "another one" in page.read_text()
    # The pages of older versions had no mark, but all began alike.
    page.write_bytes(OLD_PAGE + b'">\n<title>old</title>')
    comparison.write([folder], page)
    assert page.read_bytes() == ours["notes.html"]


@pytest.mark.parametrize("name", ["notes.html", "notes.md"])
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_only_regular_files_are_replaced(output: Make, tmp_path: Path, name: str, kind: str) -> None:
    page, folder = tmp_path / "notes.html", output()
    comparison.write([folder], page)
    file = tmp_path / name
    file.rename(tmp_path / f"real{file.suffix}")
    os.mkfifo(file) if kind == "pipe" else file.symlink_to(tmp_path / f"real{file.suffix}")
    with pytest.raises(UserError, match=rf"{name}: is not a regular file, and is not replaced"):
        comparison.write([folder], page)
    assert not file.is_file() or file.is_symlink()


def test_scores_by_a_label_stand_beside_each_other(output: Make, run: Make, page: Callable) -> None:
    styles = [i % 2 for i in range(len(NAMES))]
    first, second = (output(name, infer={"labels": {"style": styles}}) for name in ("a-s0", "b-s0"))
    other = output("c-s0")
    rows = table(page(first, second, other, by="style"), "style")
    assert [row[:2] for row in rows] == [["0", "a-s0"], ["0", "b-s0"], ["1", "a-s0"], ["1", "b-s0"]]
    assert sum(int(row[2]) for row in rows) == 2 * len(NAMES)
    assert "Left out, without scores by this label: c-s0." in Parsed(page(first, second, other, by="style")).text
    with pytest.raises(UserError, match="its pictures have no labels"):
        page(other, by="style")
    with pytest.raises(UserError, match="has no such label; it has style"):
        page(first, other, by="hair")
