import json
import re
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image
from support.pages import Parsed, assert_only_our_script_runs, assert_self_contained

from dist_sketch.__main__ import parse
from dist_sketch.core.config import ConditionalConfig, Config, to_dict
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import write_json
from dist_sketch.reports import curves, history, report
from dist_sketch.reports.by_label import label_groups
from dist_sketch.reports.compare import comparison
from dist_sketch.reports.curves import CURVE_POINTS, SVG_COLOURS, LockInterval, lock_intervals, thin
from dist_sketch.reports.page import find_picture
from dist_sketch.tracking.tracker import read_metrics

HOSTILE = 'Zoë "&" <b>x <script>alert(1) \' 東京.v2'
NAMES = [HOSTILE, *(f"{i}" for i in range(1, 12))]
FIGURES = {"ssim": 0.64, "scoot": 0.5, "psnr": 20.25, "l1": 0.0617, "specks": 0.18}
FIGURES |= {"fid_64": 1.5, "fid_192": 5.5, "fid_768": 0.4, "fid_2048": 71.9}


def picture(path: Path, size: int = 16, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)


def scores(**changes: float | None) -> dict[str, float | None]:
    return FIGURES | {"kid": 0.031} | changes


def images(names: list[str]) -> list[dict]:
    """SSIM of the denoised rises with the place in `names`."""
    return [
        {"name": n, "raw": {"ssim": 0.5, "scoot": 0.45, "l1": 0.1, "psnr": 18.0, "specks": 2},
         "denoised": {"ssim": 0.3 + i / 100, "scoot": 0.4, "l1": 0.1, "psnr": 19.0, "specks": 0}}
        for i, n in enumerate(names)
    ]  # fmt: skip


def metrics(**changes: object) -> dict:
    bad = {"scoot": 0.2, "psnr": 9.0, "l1": 0.2, "fid_64": 9, "fid_192": 9, "fid_768": 9, "specks": 0.0}
    made = {
        "n": 12,
        "size": 16,
        "raw": scores(ssim=0.61),
        "denoised": scores(),
        "baselines": {
            "blank": scores(ssim=0.331, **bad, fid_2048=310.4, kid=0.4),
            "input": scores(ssim=0.592, **bad, fid_2048=142.7, kid=0.1),
            "reference": scores(ssim=0.276, fid_2048=39.8),
        },
        "settings": {"ssim": {"sigma": 1.5}, "fid": {"weights": "w.pth", "resize": "bilinear to 299"}, "missing": {}},
        "images": images(NAMES),
    }
    return made | changes


def train(step: int, **values: object) -> dict:
    return {"kind": "train", "step": step, "epoch": step // 50, "loss/d": 1 + 1 / step, "loss/g": 2.0, "loss/g_l1": 0.1,
            "d/real": 0.6, "d/fake": 0.4, "speed/images_per_s": 17.0, "images": step * 8} | values  # fmt: skip


def lock(step: int, train_d: bool, train_g: bool, reason: str = "") -> dict:
    return {"kind": "lock", "step": step, "epoch": 0, "train_d": train_d, "train_g": train_g, "reason": reason}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder, run = tmp_path / "out", tmp_path / "run <1>"
    for i, name in enumerate(NAMES):
        for j, kind in enumerate(("line", "raw", "sketch", "real")):
            picture(folder / kind / f"{name}.png", seed=4 * i + j)
    config = to_dict(Config(conditional=ConditionalConfig(timer=3)))
    infer = {"run": str(run), "step": 200, "config": config, "input": "in", "split": "val", "size": 16,
             "output_size": "network", "format": "png", "mode": {"statistics": "running"}, "reference": None,
             "denoise": {"gray": True, "filter": "tv", "strength": 0.75, "shadows": False}, "names": NAMES}  # fmt: skip
    write_json(folder / "infer.json", infer)
    write_json(folder / "metrics.json", metrics())
    write_json(run / "config.json", {"config": config, "facts": {"world_size": 2}})
    lines = [train(s) for s in range(10, 201, 10)]
    lines += [lock(0, True, True), lock(50, False, True, "D locked: timer"), lock(100, True, True)]
    lines += [{"kind": "val", "step": 50 * e, "epoch": e - 1, "val/ssim": e / 10, "val/l1": 0.1} for e in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


def change(file: Path, **values: object) -> None:
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | values)


def page(out: Path) -> str:
    made = report.build(out)
    assert made == out / "report.html"
    return made.read_text(encoding="utf-8")


def test_page_holds_headline_figures_and_settings(out):
    text = Parsed(page(out)).text
    assert "12 validation portraits, SSIM 0.64 denoised (blank page 0.33, input 0.59)" in text
    assert "step 200 · 16 × 16 px" in text
    for shown in ("0.0617", "20.25", "71.9", "310.4", "142.7", "39.8", "0.0310", "sigma 1.5", "weights w.pth"):
        assert shown in text, shown
    assert "conditional.timer 3 2" in text  # what differs from the defaults: this run, default
    assert "filter tv" in text
    assert "strength 0.75" in text
    assert "world_size 2" in text
    assert "D locked once, 25 % of the steps: timer (1×)" in text
    assert "G never locked" in text


def test_the_folder_of_the_run_may_hold_another_run(out):
    run = Path(json.loads((out / "infer.json").read_text())["run"])
    change(run / "config.json", config=to_dict(Config(norm="group")))
    text = Parsed(page(out)).text
    assert f"The folder of its run, {run}, now holds another run, so there are no loss curves." in text
    assert "conditional.timer 3 2" in text  # of the run that drew
    for of_the_other in ("norm group", "world_size", "D locked once"):
        assert of_the_other not in text


def test_mistakes_in_the_sheet_are_told_before_the_page_is_written(out):
    (out / "report.html").write_text("the page before")
    for words, sentence in (
        (["--faces", "1"], "--faces: names the faces in the picture that --sheet FILE writes"),
        (["--sheet", out / "faces.gif"], "a sheet is a .png or .jpg file"),
        (["--sheet", out / "faces.png", "--faces", "nobody"], "has no face nobody"),
    ):
        with pytest.raises(UserError, match=sentence):
            parse(["report", *map(str, (out, *words))])()
    assert (out / "report.html").read_text() == "the page before"


def test_page_is_self_contained(out):
    html = page(out)
    assert_self_contained(html)


def test_hostile_names_are_text(out):
    html = page(out)
    parsed = Parsed(html)
    assert HOSTILE in parsed.text
    assert "<b>x" not in html
    assert "alert(1)</script" not in html
    assert_only_our_script_runs(html)
    assert f"denoised of {HOSTILE}" in {a.get("alt") for _, a in parsed.tags}
    assert "<1>" not in html  # the run's folder


def test_same_page_twice(out):
    assert page(out) == page(out)


@pytest.mark.parametrize(
    ("count", "worst", "median", "best"),
    [(12, [0, 1, 2], [4, 5, 6], [11, 10, 9]), (9, [0, 1, 2], [3, 4, 5], [8, 7, 6]), (4, [0], [1], [3])],
)
def test_choose_worst_median_best(count, worst, median, best):
    names = [f"n{i}" for i in range(count)]
    scored = {i["name"]: i for i in images(names)}
    shuffled = [names[i] for i in np.random.default_rng(0).permutation(count)]
    expected = [("Worst", worst), ("Median", median), ("Best", best)]
    assert report.choose(shuffled, scored) == [(title, [f"n{i}" for i in group]) for title, group in expected]


def test_choose_few_or_unscored():
    scored = {i["name"]: i for i in images(["a", "b", "c"])}
    scored["c"]["denoised"]["ssim"] = None
    assert report.choose(["b", "a", "c"], scored) == [("All", ["a", "b"])]
    assert report.choose(["b", "a"], {}) == [("A sample", ["b", "a"])]
    assert len(report.choose([str(i) for i in range(100)], {})[0][1]) == 9
    assert report.choose([], {}) == [("A sample", [])]


def test_rows_show_the_worst_first(out):
    order = re.findall(r'<div class="meta"><b>(.*?)</b>', page(out))  # without the one at the top
    assert order == [str(Markup.escape(HOSTILE)), "1", "2", "4", "5", "6", "11", "10", "9"]


def test_best_of_raw_and_denoised_is_marked(out):
    change(out / "metrics.json", raw=scores(ssim=0.7, fid_2048=80.0))
    marked = re.findall(r'class="best[^>]*>(\S+?)</td>', page(out))
    assert marked == ["0.700", "71.9"]  # raw in SSIM, denoised in FID, where lower is better; the others are draws


def verdicts(out: Path, **changes: object) -> list[tuple[str, str]]:
    """(mood, sentence) of each verdict on the page of these scores."""
    write_json(out / "metrics.json", metrics(**changes))
    (block,) = re.findall(r'<ul class="verdicts">(.*?)</ul>', page(out), flags=re.S)
    return re.findall(r'<li class="(\w+)">(.*?)</li>', block)


def test_verdicts_name_what_is_not_beaten(out):
    found = verdicts(out, denoised=scores(ssim=0.5, kid=None), raw=scores(psnr=21.0))
    assert found == [
        ("bad", "The denoised output does not beat the input line in SSIM (0.500 against 0.592)."),
        ("good", "The raw output beats the blank page and the input line in every metric of likeness."),
        ("note", "Noise removal worsens SSIM and PSNR."),
    ]
    found = verdicts(out, denoised=scores(ssim=0.331, fid_2048=142.7))  # a draw is not a win
    assert found[0][1] == (
        "The denoised output does not beat the blank page in SSIM (0.331 against 0.331), nor the input line in SSIM "
        "(0.331 against 0.592) and FID-2048 (142.7 against 142.7)."
    )
    assert verdicts(out, raw=scores())[-1] == ("note", "Noise removal changes no metric.")


def test_differences_that_do_not_show_are_none(out):
    made = verdicts(out, raw=scores(ssim=0.6404, psnr=20.2), denoised=scores(ssim=0.6396, kid=0.03104))
    assert made[-1] == ("note", "Noise removal improves PSNR.")
    assert re.findall(r'class="best[^>]*>(\S+?)</td>', page(out)) == ["20.25"]


def test_scores_of_the_pairs_that_chose_the_weights_are_told(out):
    assert not any("selected by a score" in sentence for _, sentence in verdicts(out))
    change(out / "infer.json", chosen_on_these=True)
    assert "selected by a score" in verdicts(out)[-1][1]


def test_missing_figures_are_dashes_with_a_reason(out):
    none = dict.fromkeys(("fid_64", "fid_192", "fid_768", "fid_2048", "kid"))
    made = metrics(raw=scores(**none), denoised=scores(**none))
    made["baselines"] = {"blank": scores(**none), "input": scores(**none), "reference": dict.fromkeys(scores())}
    made["settings"]["missing"] = {"fid": "no weights <here>", "kid": "no weights <here>", "reference": "no shards"}
    made["images"][3]["denoised"] = {"ssim": None, "l1": None, "psnr": None}
    write_json(out / "metrics.json", made)
    html = page(out)
    assert html.count('title="no weights &lt;here&gt;">–</td>') == 5 * 5
    assert html.count('title="no shards">–</td>') == 5
    assert "– FID, KID: no weights <here>." in Parsed(html).text
    assert html.count('title="not computed">–</td>') == 5


def test_scores_that_older_files_lack_are_dashes(out):
    made = metrics()
    for found in (made["raw"], made["denoised"], *made["baselines"].values()):
        del found["scoot"], found["specks"]
    for image in made["images"]:
        for kind in ("raw", "denoised"):
            del image[kind]["scoot"], image[kind]["specks"]
    write_json(out / "metrics.json", made)
    assert page(out).count('title="not computed">–</td>') == 2 * (5 + 2 * len(NAMES))


def test_each_image_s_specks_are_counted(out):
    row = re.findall(r'<td data-v="\S*"[^>]*>(\S+)</td>', page(out))[:10]
    assert row == ["0.300", "0.500", "0.400", "0.450", "19.00", "18.00", "0.1000", "0.1000", "0", "2"]


def test_lock_intervals_from_lock_records():
    records = [lock(0, True, True), lock(40, False, True, "D locked: timer"), lock(60, False, True, "D locked: small"),
               lock(80, True, False, "G locked: strong"), lock(90, True, True),
               lock(150, False, True, "D locked: timer"),
               train(200)]  # fmt: skip
    assert lock_intervals(records) == {
        "d": [(40, 80, "timer"), (150, 201, "timer")],
        "g": [(80, 90, "strong")],
    }
    assert lock_intervals([]) == {"d": [], "g": []}


def test_lock_intervals_from_train_records():
    marks = [0, 1, 1, 0, 1]
    records = [train(10 * (i + 1), **{"lock/d": m, "lock/g": 0, "lock/reason": "why"}) for i, m in enumerate(marks)]
    assert lock_intervals(records) == {"d": [(20, 40, "why"), (50, 51, "why")], "g": []}


def test_bands_stand_at_their_steps():
    steps = {"d": [(50, 100), (120, 130)], "g": [(101, 110), (150, 175)]}
    locks = {net: [LockInterval(*pair, "") for pair in pairs] for net, pairs in steps.items()}
    records = [train(s) for s in range(1, 201)]
    curve = curves.Curve(*curves.points(records, "step", "loss/d"), SVG_COLOURS["d"])
    shaded = {SVG_COLOURS[net]: intervals for net, intervals in locks.items()}
    with curves.style(SVG_COLOURS):
        svg = curves.svg(curves.plot([curves.Panel("loss of D", [curve], shaded)], "step", 10.0), "Discriminator")

    def edges(style: str) -> list[tuple[float, float]]:
        paths = re.findall(rf'<path d="([^"]*)"[^>]*style="{style}', svg)
        return [(min(x), max(x)) for p in paths for x in [[float(v) for v in re.findall(r"[ML] (\S+) ", p)]]]

    first, last = edges(r"fill: none; stroke: var\(--d\)")[0]  # the curve spans steps 1 to 200
    for net, expected in steps.items():
        found = [
            tuple(1 + 199 * (x - first) / (last - first) for x in pair) for pair in edges(rf"fill: var\(--{net}\)")
        ]
        assert found == [pytest.approx(pair, abs=0.5) for pair in expected]


def test_bands_close_gaps_that_nobody_sees():
    every_second_step = [LockInterval(s, s + 1, "") for s in range(0, 10_000, 2)]
    assert curves.bands(every_second_step) == [(0, 9_999)]
    assert curves.bands([LockInterval(0, 10, ""), LockInterval(20, 30, "")]) == [(0, 10), (20, 10)]
    assert curves.bands([]) == []


def test_records_survive_torn_lines_and_repeated_steps(tmp_path):
    lines = [json.dumps(train(10, **{"loss/d": 1.0})), json.dumps(train(20)), json.dumps(train(10, **{"loss/d": 5.0}))]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, "[1]", '{"kind": "odd"}', '{"kind": "train", "st']))
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records] == [10, 20]
    assert records[0]["loss/d"] == 5.0
    assert read_metrics(tmp_path / "none") == []


def test_curves_keep_their_spikes_and_skip_what_is_not_finite(tmp_path):
    x = np.arange(50_000.0)
    y = np.sin(x)
    y[12_345] = 99.0
    kept_x, kept_y = thin(x, y)
    assert len(kept_x) <= CURVE_POINTS
    assert kept_y[kept_x == 12_345] == 99.0
    records = [
        train(s, **{"loss/d": None if s % 2 else 1.0, "d/real": float("nan"), "d/fake": None}) for s in range(1, 17)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    made = dict(history.read(tmp_path).groups)
    assert list(made) == ["Losses", "Speed"]
    assert [re.search('aria-label="(.*?)"', c.svg)[1] for c in made["Losses"]][:2] == ["loss of D", "loss of G"]
    assert not any("nan" in chart.svg for chart in made["Losses"])


def test_line_only_input(out):
    (out / "metrics.json").unlink()
    for file in (out / "real").iterdir():
        file.unlink()
    (out / "real").rmdir()
    parsed = Parsed(page(out))
    assert " 12 portraits " in parsed.text  # a plain folder has no splits
    source = out.parent / "in"
    (source / "val_line").mkdir(parents=True)
    change(out / "infer.json", input=str(source))
    assert " 12 validation portraits " in Parsed(page(out)).text
    assert "There are no scores: the input had only lines" in parsed.text
    assert "A sample" in parsed.text
    alts = {a["alt"].split(" of ")[0] for t, a in parsed.tags if t == "img"}
    assert alts == {"line", "raw", "denoised"}


def test_not_scored_yet_says_how(out):
    (out / "metrics.json").unlink()
    assert f"Not scored yet: run dist-sketch evaluate {out}" in Parsed(page(out)).text


def candidate(**values: object) -> dict:
    plain = {"filter": "none", "strength": 1.0, "shadows": False, "ssim": 0.7, "noise_distance": 1.0}
    return plain | {"distance": None, "allowed": True, "chosen": False} | values


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], None),
        (
            [candidate(), candidate(filter="tv", shadows=True, chosen=True)],
            "Chosen on 24 training pairs out of 2 settings.",
        ),
        (
            [candidate(distance=0.1), candidate(filter="tv", chosen=True, distance=0.05),
             candidate(filter="nlm", strength=0.5, shadows=True, allowed=False, distance=0.25),
             candidate(shadows=True, allowed=False), candidate(filter="median", allowed=False)],
            "Chosen on 24 training pairs out of 5 settings; ruled out: 2 because they cost SSIM; nlm of "
            "strength 0.5 with removal of shadows because it raises KID (0.100 to 0.250). The removal of shadows would "
            "not have helped and is switched off.",
        ),
        (
            [candidate(chosen=True, distance=0.1), candidate(shadows=True, allowed=False, distance=0.2)],
            "Chosen on 24 training pairs out of 2 settings; ruled out: removal of shadows because it raises KID "
            "(0.100 to 0.200). "
            "No other setting helps, so filter and shadow removal are switched off.",
        ),
        ([candidate(), candidate(shadows=True, chosen=True)],
         "Chosen on 24 training pairs out of 2 settings. A filter would not have helped and is switched off."),
    ],
)  # fmt: skip
def test_what_the_noise_removal_was_chosen_on(out, rows, sentence):
    run = Path(json.loads((out / "infer.json").read_text())["run"])
    used = json.loads((out / "infer.json").read_text())["denoise"]
    write_json(run / "denoise.json", {"denoise": used, "pairs": 24, "candidates": rows})
    before = "These steps turned the raw output into the denoised one."
    assert f" {' '.join(filter(None, (before, sentence)))} gray conversion" in Parsed(page(out)).text
    change(out / "infer.json", denoise=used | {"strength": 3.0})  # the drawings were made with something else
    assert f" {before} gray conversion" in Parsed(page(out)).text


def test_where_the_drawings_differ(out):
    parsed = Parsed(page(out))
    assert "Means over 12 denoised drawings" in parsed.text
    alts = [a["alt"] for t, a in parsed.tags if t == "img"]
    assert [a.split(":")[0] for a in alts if ":" in a] == ["absolute difference of tone (0 to 1)", "1 − SSIM"]


def test_run_is_gone(out):
    run = Path(json.loads((out / "infer.json").read_text())["run"])
    for file in run.iterdir():
        file.unlink()
    parsed = Parsed(page(out))
    assert f"The run's history {run / 'metrics.jsonl'} is missing or empty" in parsed.text
    assert "conditional.timer 3 2" in parsed.text  # infer.json remembers the configuration
    assert not any(tag == "svg" for tag, _ in parsed.tags)
    (run / "generator.safetensors").touch()
    assert "An exported generator has no training history." in Parsed(page(out)).text


def test_larger_jpegs_are_scaled_and_lost_pictures_shown_as_lost(out):
    for name in NAMES:
        for kind in ("raw", "sketch"):
            (out / kind / f"{name}.png").unlink()
            picture(out / kind / f"{name}.jpg", 64)
    (out / "sketch" / "11.jpg").write_bytes(b"no picture")
    change(out / "infer.json", format="jpg", output_size="64")
    html = page(out)
    assert html.count("no file") == 2  # in its row and in the table of all
    uri = find_picture(out / "sketch", "1", 16, False)
    assert uri in html
    assert find_picture(out / "sketch", "11", 16, False) == ""


def test_rows_lose_nothing(out):
    import base64
    import io

    uri = find_picture(out / "raw", HOSTILE, 16, False)
    shown = np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert np.array_equal(shown, np.array(Image.open(out / "raw" / f"{HOSTILE}.png")))


def test_page_size_is_bounded(out, monkeypatch):
    monkeypatch.setattr(report, "TABLE_LIMIT", 10)
    monkeypatch.setattr(report, "TABLE_END", 2)
    html = page(out)
    assert "Of 12 images, only 4 are listed, to keep this page small: the 2 worst and the 2 best" in Parsed(html).text
    body = html[html.index('<table class="images sorts">') :]
    assert re.findall(r"<tr data-face=.*?><td>(.*?)</td>", body) == [str(Markup.escape(HOSTILE)), "1", "10", "11"]


@pytest.mark.parametrize("content", [None, {"state": "running"}])
def test_not_an_output_folder(tmp_path, content):
    if content:
        write_json(tmp_path / "infer.json", content)
    with pytest.raises(UserError, match=r"infer\.json of a finished inference"):
        report.build(tmp_path)


STEP = {"kind": "train", "step": 5}
HISTORIES = {
    "no other values": [STEP, STEP | {"step": 9}],
    "not finite": [STEP | {"loss/g": float("nan"), "speed/images_per_s": float("inf")}],
    "step 0": [STEP | {"step": 0, "lock/d": 1.0}, {"kind": "val", "step": 0, "epoch": 0, "val/ssim": 0.5}],
    "one step": [STEP | {"lock/d": 1.0}] * 3,
    "steps that go back": [STEP | {"step": s, "lock/d": 1.0, "loss/g": 1.0} for s in (30, 10, 20, 5)],
    "huge": [
        STEP | {"step": s, "loss/d": 1e308 * (-1) ** s, "loss/g": 1e308, "speed/images_per_s": 1e308, "lock/d": 1e308}
        for s in range(1, 9)
    ],
    "tiny": [STEP | {"step": s, "loss/d": 5e-324, "speed/images_per_s": 5e-324} for s in range(1, 9)],
    "none or negative": [STEP | {"step": s, "speed/images_per_s": -s % 3 - 1, "lock/d": -5.0} for s in range(1, 9)],
    "late": [STEP | {"step": 10**12 - s, "epoch": 10**12, "images": 10**12, "loss/d": 1.0} for s in range(4)],
}
TEXTS = {
    "empty": b"",
    "zeros": b"\0" * 100,
    "cut": b'{"kind": "train", "st',
    "a key twice": b'{"kind": "train", "step": 3, "step": 4}',
    "a huge number": b'{"kind": "train", "step": ' + b"9" * 5000 + b"}",
    "deep": b'{"kind": "train", "step": 3, "x": ' + b"[" * 10_000,
    "text for a number": b'{"kind": "train", "step": 3, "loss/g": "3"}',
    "UTF-16": json.dumps(STEP).encode("utf-16"),
    "BOM": b"\xef\xbb\xbf" + json.dumps(STEP).encode(),
}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("kind", [*HISTORIES, *TEXTS])
def test_odd_histories_are_shown_as_far_as_they_go(kind, out):
    run = Path(json.loads((out / "infer.json").read_text())["run"])
    text = "".join(json.dumps(r) + "\n" for r in HISTORIES[kind]).encode() if kind in HISTORIES else TEXTS[kind]
    (run / "metrics.jsonl").write_bytes(text)
    assert "12 validation portraits" in Parsed(page(out)).text
    comparison.write([out], out / "compare.html")
    comparison.write([run], out / "run.html")
    for made in out.glob("*.html"):
        assert not re.search(r"\b(nan|inf)\b", Parsed(made.read_text(encoding="utf-8")).text)


def test_invisible_characters_of_others_are_shown(out):
    run = Path(json.loads((out / "infer.json").read_text())["run"])
    odd, escaped = "a\u202eb\x1b[31mc", r"a\u202eb\x1b[31mc"
    picture(out / "line" / f"{odd}.png")
    change(out / "infer.json", names=[odd, *NAMES[1:]], mode={"statistics": odd})
    write_json(run / "config.json", {"config": {"data": {odd: odd}}, "facts": {"device": odd}})
    assert escaped in Parsed(page(out)).text
    comparison.write([out], out / "compare.html")
    comparison.write([run], out / "run.html")
    for html in (made.read_text(encoding="utf-8") for made in out.glob("*.html")):
        assert not {"\u202e", "\x1b"} & set(html)


def test_scores_of_training_pairs_are_no_validation(out):
    run = Path(json.loads((out / "infer.json").read_text())["run"])
    assert "no validation pairs" not in Parsed(page(out)).text
    lines = [train(50), {"kind": "val", "step": 50, "epoch": 0, "seen/ssim": 0.9, "seen/l1": 0.1}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert "It had no validation pairs, so it was scored on pairs that it trained on." in Parsed(page(out)).text
    said = comparison.write([run], out / "run.html")
    assert "was scored only on pairs that it trained on, because it had no validation pairs" in said[-1]


def test_a_folder_in_which_infer_begins_to_draw_gives_no_half_report(out, monkeypatch):
    original = report.error_map.error_map

    def meanwhile(*arguments):
        change(out / "infer.json", state="running", step=300)
        return original(*arguments)

    monkeypatch.setattr(report.error_map, "error_map", meanwhile)
    with pytest.raises(UserError, match="began to draw there meanwhile"):
        report.build(out)
    assert not (out / "report.html").exists()


def test_damaged_file_is_named(out):
    (out / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json.*not valid JSON"):
        report.build(out)
    assert not (out / "report.html").exists()


def test_long_curves_are_smoothed_as_short_ones_are(monkeypatch):
    x = np.arange(40_003.0)
    at, value = curves.coarse(x, np.sin(x / 2000))
    assert len(value) == 8000  # stretches of 5; the last three points are left out
    assert np.abs(value - np.sin(at / 2000)).max() < 1e-5
    assert len(curves.coarse(x[:100], x[:100])[0]) == 100
    seen = []
    monkeypatch.setattr(curves, "gaussian_filter1d", lambda y, *_, **__: seen.append(len(y)) or y)
    curves.plot([curves.Panel("loss", [curves.Curve(x, x, "k")], {})], "step", 5.0)
    assert max(seen) <= curves.SMOOTHED_POINTS


def test_scores_by_a_label(out):
    styles = [2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, None]
    change(out / "infer.json", labels={"style": styles, "smile": [True] * 12})
    assert "Scores by" not in page(out)
    rows = next(t for t in Parsed(report.build(out, "style").read_text(encoding="utf-8")).tables if t[0][0] == "style")
    assert rows[0][1:4] == ["images", "SSIM ↑", "SCOOT ↑"]
    assert [row[:2] for row in rows[1:]] == [["0", "8"], ["2", "3"], ["no value", "1"]]
    # SSIM of the denoised is 0.30, 0.31, 0.32 for style 2 and 0.33 to 0.40 for style 0
    assert [row[2].split() for row in rows[1:]] == [["0.365", "0.500"], ["0.310", "0.500"], ["0.410", "0.500"]]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1234567.0, 1234568.0, 0.1, 2], ["0.1", "2", "1234567", "1234568"]),
        (["1", 1, 1.0, True, None, "no value", "b"], ["1", "true", '"1"', "b", '"no value"', "no value"]),
    ],
)
def test_different_values_of_a_label_are_different_groups(values, shown):
    names = [str(i) for i in range(len(values))]
    found = label_groups(Path("out"), {"names": names, "labels": {"x": values}}, {"images": images(names)}, "x")
    assert [group.value for group in found] == shown


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, "its pictures have no labels"),
        ({"smile": [True] * 12, "hair": [0] * 12}, "has no such label; it has smile, hair"),
        ({"style": [1]}, "has not a value for each name"),
        ({"style": [1] * 11 + [[2]]}, r"labels\.style = .*: must be a list of numbers"),
    ],
)
def test_a_wrong_label_is_a_sentence(out, labels, words):
    if labels is not None:
        change(out / "infer.json", labels=labels)
    with pytest.raises(UserError, match=words):
        report.build(out, "style")


def test_a_label_with_too_many_values_is_a_sentence():
    names = [str(i) for i in range(21)]
    infer = {"names": names, "labels": {"age": list(range(21))}}
    with pytest.raises(UserError, match=r"21 different values.* at most 20"):
        label_groups(Path("out"), infer, {"images": images(names)}, "age")
