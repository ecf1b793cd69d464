"""The trained generator that comes with dist_sketch: it is small and complete, is found by its name, and draws."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image

from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config
from dist_sketch.core.errors import UserError
from dist_sketch.metrics.definitions import OPTIMISTIC
from dist_sketch.model import pretrained
from dist_sketch.model.pretrained import SketchGenerator

NAME, SIZE = "portrait-128", 128
LAUNCH = Path(__file__).parents[2] / "launch"
FOLDER = LAUNCH / NAME
SHIPPED = {"portrait-128": "portrait", "portrait-256": "portrait-256"}  # generator -> its preset


def gray(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"), dtype=float)


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_small_and_tells_of_no_machine(name: str) -> None:
    folder = LAUNCH / name
    assert {p.name for p in folder.iterdir()} == {"generator.safetensors", "config.json", "denoise.json", "README.md"}
    assert (folder / "generator.safetensors").stat().st_size < 5e6
    text = (folder / "config.json").read_text() + (folder / "README.md").read_text()
    assert not re.search(r'["\s`]/\w+/', text)  # no absolute path


@pytest.mark.parametrize("name", SHIPPED)
def test_its_card_tells_licence_and_scores(name: str) -> None:
    card = (LAUNCH / name / "README.md").read_text()
    assert OPTIMISTIC in card
    for said in (
        "Licence of the data: MIT",
        "n = 105 in every score",
        "| SCOOT",
        "| FID-2048",
        "## Limits",
        f"# {name}:",
    ):
        assert said in card, said


@pytest.mark.parametrize(("name", "preset_name"), SHIPPED.items())
def test_its_settings_are_those_of_the_preset(name: str, preset_name: str) -> None:
    preset, mine = cfg.load(preset_name), SketchGenerator.from_pretrained(name)
    assert name.endswith(f"-{mine.size}")
    passes = preset.loss.d_backward  # in how many passes D judges makes no difference to the result
    config = replace(mine.config, loss=replace(mine.config.loss, d_backward=passes))
    for part in ("norm", "generator", "discriminator", "optim", "loss", "conditional", "checkpoint"):
        assert getattr(config, part) == getattr(preset, part), part


def test_a_folder_wins_over_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pretrained.located(Path(NAME)) == FOLDER
    Path(NAME).mkdir()
    assert pretrained.located(Path(NAME)) == Path(NAME)
    with pytest.raises(UserError, match=rf"^{NAME}: is neither a run nor .* nor one of those that come .*{NAME}"):
        SketchGenerator.from_pretrained(NAME)


def test_it_draws_along_the_line_and_adds_tone(tmp_path: Path, cli: Run) -> None:
    """On faces of another kind than those in its training."""
    assert cli("synth", tmp_path / "faces", "--count", 8, "--val", 0, "--size", 256, "--seed", 5).returncode == 0
    lines = tmp_path / "faces" / "train_line"
    done = cli("infer", "--run", NAME, "--input", lines, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line, drawn = (
        np.stack([gray(tmp_path / "out" / folder / f"{p.stem}.png") for p in sorted(lines.iterdir())])
        for folder in ("line", "sketch")
    )
    assert drawn.shape == (8, SIZE, SIZE)
    page = np.median(drawn)
    assert page > 200
    ink, far = line < 128, line > 250
    assert drawn[ink].mean() < page - 40  # the line is drawn
    assert (drawn[far] < page - 40).mean() > 0.02  # and more than the line: hair, shade
    assert drawn.std(axis=0).mean() > 10  # not one face for all


def test_in_python(tmp_path: Path) -> None:
    model = SketchGenerator.from_pretrained(NAME)
    assert isinstance(model.config, Config)
    with torch.no_grad():
        page = model(torch.ones(1, 1, SIZE, SIZE))
    assert page.shape == (1, 1, SIZE, SIZE)
    assert page.mean() > 0.5  # a blank page stays blank
