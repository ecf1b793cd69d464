"""What a training says while it runs: a bar on a terminal, a line an epoch with its means in a log file."""

import io

import pytest
from rich.console import Console

from dist_sketch.core.words import duration
from dist_sketch.metrics.definitions import scores_text
from dist_sketch.training.progress import ProgressBar, counted


def said(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> io.StringIO:
    """What is printed from now on by this module."""
    out = io.StringIO()
    monkeypatch.setattr(
        "dist_sketch.training.progress.Console", lambda **k: Console(file=out, force_terminal=terminal, width=150, **k)
    )
    return out


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, is_main: bool) -> str:
    out = said(monkeypatch, terminal=terminal)
    with ProgressBar(6, 8, 2, is_main) as progress:
        for step in (3, 4, 5, 6):
            values = {"loss/d": 1.25, "loss/g": 2.5, "loss/g_l1": 0.125} if step > 3 else {}
            progress.show(step, (step - 1) // 3, 2, values)
            if step % 3 == 0:
                means = {"loss/d": 1.5, "loss/g": None if step == 3 else 7.0}
                scores = {"val/ssim": 0.5, "val/kid": 0.01} if step == 6 else {}
                progress.epoch_done(step, step // 3 - 1, 2, means, scores)
        progress.console.print("saved step 6")
    return out.getvalue()


def test_a_log_file_gets_a_line_an_epoch_with_its_means(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in shown(monkeypatch, terminal=False, is_main=True).splitlines() if line]
    assert lines == [
        "epoch 1/2 step 3: means D 1.500 G none finite; 0 s, 0 s left",
        "epoch 2/2 step 6: means D 1.500 G 7.000; validation: SSIM 0.500, KID 0.0100; 0 s",
        "saved step 6",
    ]


def test_a_terminal_gets_a_bar_and_other_ranks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = shown(monkeypatch, terminal=True, is_main=True)
    for part in ("epoch 2/2", "6/6", "images/s", "D 1.250 G 2.500"):
        assert part in bar
    assert "means" not in bar
    for terminal in (True, False):
        assert shown(monkeypatch, terminal=terminal, is_main=False) == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_counted_work_is_said_at_its_start(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    out = said(monkeypatch, terminal=terminal)
    with counted("choosing on 24 pairs", 24) as done:
        for n in (6, 24):
            done(n)
    text = out.getvalue()
    assert ("24/24" in text) == terminal
    assert terminal or text == "choosing on 24 pairs ...\n"
    assert "choosing on 24 pairs" in text


def test_scores_of_training_pairs_are_not_called_validation() -> None:
    assert scores_text({"seen/ssim": 0.25, "step": 3, "epoch": 1}) == "training pairs: SSIM 0.250"
    assert scores_text({"step": 3}) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((-1, "0 s"), (59.4, "59 s"), (59.9, "1 min"), (200, "3 min 20 s"), (3600, "1 h")),
        *((3661, "1 h 1 min"), (90000, "1 d 1 h")),
    ],
)
def test_a_duration_has_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
