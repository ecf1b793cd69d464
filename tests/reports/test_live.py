"""RUN/index.html: what it shows of runs that are written here file by file, and of a real one."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, Run
from PIL import Image
from support.pages import Parsed, assert_only_our_script_runs

from dist_sketch.core.config import Config, to_dict
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import write_json
from dist_sketch.reports import history, live
from dist_sketch.tracking.tracker import read_metrics

HOSTILE = 'a "&" <b>x <script>alert(1)<\u202e'
SCORES = {"val/scoot": 0.5, "val/l1": 0.07, "val/specks": 0.2, "val/fid_2048": 70.0, "val/kid": 0.03}


def records(steps: int, every: int = 5, **scores: float) -> list[dict[str, Any]]:
    """The log of ten steps an epoch, with D locked in the second epoch, a line every few steps, 2 s a step."""
    found: list[dict[str, Any]] = []
    for step in range(every, steps + 1, every):
        epoch = (step - 1) // 10
        about = {"step": step, "epoch": epoch, "images": 4 * step, "time": 1000.0 + 2 * step}
        found.append(
            {"kind": "train", **about, "loss/d": 1.0 + 1 / step, "loss/g": 2.0, "loss/g_l1": 0.1, "d/real": 0.6,
             "d/fake": 0.4, "lock/d": float(epoch == 1), "lock/g": 0.0, "lr/g": 2e-4, "lr/d": 1e-4,
             "speed/images_per_s": 2.0, "speed/step_s": 0.5, "speed/data_wait": 0.125, "speed/memory_mb": 500.0,
             "speed/slowest_rank": 3.0, "speed/slowest_times": 1.25}
        )  # fmt: skip
        if step % 10 == 0:
            found += [{"kind": "epoch", **about}, {"kind": "val", **about, "val/ssim": 0.6, **scores}]
    return found


Make = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Make:
    def make(name: str = "run", *, state: str = "running", step: int = 30, log: Any = None, **status: Any) -> Path:
        folder = tmp_path / name
        facts = {"steps": 100, "steps_an_epoch": 10, "size": 8, "device": "cpu"}
        write_json(folder / "config.json", {"config": to_dict(Config()), "facts": facts})
        about = {"step": step, "saved": step, "steps": 100, "epoch": step // 10, "epochs": 10, "time": 1.0}
        write_json(folder / "status.json", {"state": state} | about | status)
        lines = records(step) if log is None else log
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "samples").mkdir()
        for at in range(10, step + 1, 10):
            Image.new("L", (24, 16), at).save(folder / "samples" / f"step-{at:08d}.png")
        return folder

    return make


def page(run: Path) -> str:
    assert live.build(run) == run / "index.html"
    return (run / "index.html").read_text(encoding="utf-8")


def moments(html: str) -> list[dict[str, str]]:
    (text,) = re.findall(r'<script type="application/json" id="moments">(.*?)</script>', html)
    found: list[dict[str, str]] = json.loads(text)
    return found


def test_a_running_run_shows_its_state_and_what_is_logged(run: Make) -> None:
    html = page(run(log=records(30, 2, **SCORES), slow="rank 3 on n2 takes 1.30 times as long as the median rank"))
    parsed = Parsed(html)
    assert "run: running, epoch 3 of 10" in parsed.text
    assert "slowest rank 3, 1.25 × the median" in parsed.text
    assert "The ranks wait: rank 3 on n2 takes 1.30 times as long as the median rank." in parsed.text
    for shown in ("step 30 of 100", "time left 2 min 20 s", "waits for data 12.5 %", "memory 500 MB", "s/step 0.500"):
        assert shown in parsed.text, shown
    for shown in ("SSIM ↑ 0.600", "SCOOT ↑ 0.500", "Specks ↓ 0.20", "FID-2048 ↓ 70.0", "KID ↓ 0.0300"):
        assert shown in parsed.text, shown
    assert "D locked once, 33 % of the steps" in parsed.text
    titles = re.findall(r'<svg [^>]*aria-label="(.*?)"', html)
    assert titles[:3] == ["loss of D", "loss of G", "L1 term of G's loss"]
    assert {"SSIM ↑", "SCOOT ↑", "Specks ↓", "KID ↓", "images a second"} <= set(titles)
    assert "learning rates of G (solid) and D (dotted)" in titles
    assert 'data-reload-s="15"' in html
    assert '<meta http-equiv="refresh" content="15">' in html
    assert_only_our_script_runs(html)


@pytest.mark.parametrize(
    ("state", "more", "reload_s", "said"),
    [
        ("finished", {"draws": 20}, 0, "It draws with the weights of step 20, which had the best score."),
        ("stopped", {}, 60, "goes on from its newest checkpoint, step 30."),
        ("stopped", {"saved": 0}, 60, "It has no checkpoint yet, so the same command begins anew."),
        ("failed", {"reason": "RuntimeError: no <memory>"}, 60, "RuntimeError: no <memory>"),
    ],
)
def test_a_run_that_has_ended_says_how(run: Make, state: str, more: dict, reload_s: int, said: str) -> None:
    html = page(run(state=state, **more))
    assert f'data-reload-s="{reload_s}"' in html
    assert ("http-equiv=\"refresh\"" in html) == (reload_s > 0)  # fmt: skip
    assert said in Parsed(html).text
    assert "time left" not in Parsed(html).text


def test_the_footer_has_the_run_s_last_step(run: Make) -> None:
    """The last line was logged at step 30, the run has done 33."""
    html = page(run(state="stopped", step=33, log=records(30)))
    assert "Step 33, epoch 3." in Parsed(html).text
    made = history.read(run("other", state="finished", step=33, log=records(30), epoch=4))
    assert (made.step, made.epochs, made.images) == (33, 4, 132)


def test_pictures_are_named_beside_the_page_and_links_are_not(run: Make, tmp_path: Path) -> None:
    folder = run()
    (folder / "samples" / "step-00000025.png").symlink_to(tmp_path / "secret.png")
    (folder / "samples" / "other.png").write_bytes(b"")
    html = page(folder)
    assert moments(html) == [
        {"src": f"samples/step-000000{s}.png", "text": f"epoch {s // 10}, step {s}, SSIM of the validation 0.600"}
        for s in (10, 20, 30)
    ]
    assert len(html) < 500_000


def test_a_run_without_validations_or_records(run: Make) -> None:
    scored = [r for r in records(30) if r["kind"] != "val"]
    html = page(run("a", log=scored))
    assert "SSIM ↑" not in Parsed(html).text
    assert [m["text"] for m in moments(html)] == [f"epoch {i}, step {i}0" for i in (1, 2, 3)]
    text = Parsed(page(run("b", step=0, log=[]))).text
    assert "b: running, epoch 0 of 10" in text
    assert "No samples have been drawn yet" in text
    assert "Too few lines have been logged so far to show a trend." in text
    assert "time left not known yet" in text


def test_scores_of_training_pairs_are_not_shown(run: Make) -> None:
    lines = [{**{k: v for k, v in r.items() if not k.startswith("val/")}, "seen/ssim": 0.987} for r in records(30)]
    text = Parsed(page(run(log=lines))).text
    assert "It has no validation pairs" in text
    assert "0.987" not in text


def test_steps_that_were_done_again_count_once(run: Make) -> None:
    again = [r for r in records(30, **{"val/ssim": 0.8}) if r["step"] > 10]
    folder = run(log=records(30) + again)
    assert read_metrics(folder)[-1]["val/ssim"] == 0.8
    html = page(folder)
    assert "now 0.800, best 0.800 (epoch 2)" in Parsed(html).text
    assert moments(html)[-1]["text"].endswith("0.800")


def test_hostile_names_are_text(run: Make) -> None:
    folder = run(HOSTILE.replace("/", ""), state="failed", reason=HOSTILE)
    write_json(folder / "config.json", {"config": {"data": {HOSTILE: HOSTILE}}, "facts": {"device": HOSTILE}})
    html = page(folder)
    assert_only_our_script_runs(html)
    assert "<b>x" not in html
    assert "\u202e" not in html
    assert r'a "&" <b>x <script>alert(1)<\u202e' in Parsed(html).text


def test_the_time_left_forgets_breaks(run: Make) -> None:
    lines = records(60)
    for line in lines:
        line["time"] += 3600.0 * (line["step"] > 40)  # the run was stopped for an hour
    made = history.read(run(step=60, log=lines))
    assert history.seconds_left(made, 100) == pytest.approx(80)
    assert history.seconds_left(history.read(run("young", step=5)), 100) == pytest.approx(95 * 0.5)


def test_what_is_no_run_is_a_sentence(run: Make, tmp_path: Path) -> None:
    for folder, words in ((tmp_path / "none", "there is no such folder"), (tmp_path, "is not the folder of a run")):
        with pytest.raises(UserError, match=words):
            live.build(folder)
    folder = run()
    (folder / "index.html").write_text("<!doctype html><title>mine</title>")
    with pytest.raises(UserError, match=r"index\.html: was not written by this command"):
        live.build(folder)
    (folder / "index.html").unlink()
    (folder / "generator.safetensors").touch()
    with pytest.raises(UserError, match="is an exported generator"):
        live.build(folder)


def test_the_command_line_makes_it_for_any_run(run: Make, cli: Run) -> None:
    folder = run()
    done = cli("report", folder)
    assert (done.returncode, done.stdout) == (0, f"{folder / 'index.html'}\n"), done.stderr
    done = cli("report", folder, "--by", "style")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --by: {folder} is a training run")


def test_a_training_writes_it_and_is_not_hurt_if_it_cannot(shards: Path, tmp_path: Path, cli: Run) -> None:
    out = tmp_path / "run"
    command = ("train", "--data.shards", shards, "--out", out, *SMALL, "--train.sample-interval-epochs", 1)
    done = cli(*command, "--train.epochs", 1, "--train.validate-interval-epochs", 1)
    assert done.returncode == 0, done.stderr
    html = (out / "index.html").read_text(encoding="utf-8")
    assert "run: finished, epoch 1 of 1" in Parsed(html).text
    assert [m["src"] for m in moments(html)] == ["samples/step-00000003.png"]
    (out / "index.html").write_text("mine")
    done = cli(*command, "--train.epochs", 2, "--train.validate-interval-epochs", 1)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stdout.splitlines() if "warning" in line and "page" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: the run's page is not written (")
    assert (out / "index.html").read_text() == "mine"
    assert json.loads((out / "status.json").read_text())["state"] == "finished"
