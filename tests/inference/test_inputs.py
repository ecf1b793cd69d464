"""What `infer` is fed: odd inputs are drawn and named; pages of any shape and tone come back as they should."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL, Run, face, write_pairs
from PIL import Image, ImageOps
from support.scores import assert_same_scores

from dist_sketch.data.looks import WHY_INPUT
from dist_sketch.model.pretrained import SketchGenerator

GENERATOR = ("--run", "portrait-128", "--workers", 0)
FOLDERS = ("line", "raw", "sketch", "real")


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two validation pairs on pages of 90 x 120 px, of which one is stored lying, with an EXIF turn."""
    root = write_pairs(tmp_path_factory.mktemp("tall"), 1, 2, 120)
    for file in root.glob("*/*.png"):
        with Image.open(file) as image:
            image.crop((15, 0, 105, 120)).save(file)
    turned = root / "val_line" / "3.png"
    with Image.open(turned) as image:
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise
        image.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    return root


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory, cli: Run, tall: Path) -> Path:
    """The tall pages, drawn with --fit pad; read only."""
    return drawn(cli, tmp_path_factory.mktemp("padded") / "out", tall, "--fit", "pad")[0]


def drawn(cli: Run, out: Path, source: Path, *options: object) -> tuple[Path, str]:
    done = cli("infer", *GENERATOR, "--input", source, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def sizes(out: Path) -> set[tuple[int, int]]:
    return {Image.open(file).size for folder in FOLDERS for file in (out / folder).glob("*")}


def settings(out: Path) -> Any:
    return json.loads((out / "metrics.json").read_text())["settings"]["input"]


def test_odd_lines_are_drawn_and_named(tmp_path: Path, cli: Run) -> None:
    """In two parts, so that what each has seen is joined."""
    lines, out = tmp_path / "lines", tmp_path / "out"
    lines.mkdir()
    good = face(1)[0]
    odd = {
        "blank": Image.new("L", (80, 80), 250),
        "inverted": ImageOps.invert(good),
        "photo": Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)).resize((80, 80)),
        "color": Image.merge("RGB", (good, good, Image.new("L", good.size, 255))),
        "shape": good.resize((80, 100)),
        "good": good,
    }
    for name, image in odd.items():
        image.save(lines / f"{name}.png")
    for part in ("1/2", "2/2"):
        said = drawn(cli, out, lines, "--part", part)[1]
        named = [f"warning: 1 input ({kind}): {why}\n" in said for kind, why in WHY_INPUT.items()]
        assert 2 <= sum(named) <= 3
        assert said.count("warning") == sum(named)
    assert cli("merge", out).returncode == 0
    assert sorted(path.stem for path in (out / "sketch").iterdir()) == sorted(odd)
    assert json.loads((out / "infer.json").read_text())["looks"] == {kind: [kind] for kind in WHY_INPUT}


def test_pad_gives_the_page_back_in_its_shape(tmp_path: Path, cli: Run, tall: Path, padded: Path) -> None:
    assert sizes(padded) == {(96, 128)}
    assert settings(padded) == {"fit": "pad", "invert": False}
    with Image.open(padded / "line" / "3.png") as line, Image.open(tall / "val_line" / "3.png") as file:
        upright = ImageOps.exif_transpose(file).resize((96, 128), Image.Resampling.BICUBIC)
        assert line.convert("L").tobytes() == upright.convert("L").tobytes()
    shutil.copytree(padded, tmp_path / "again")
    done = cli("evaluate", tmp_path / "again")  # from the files, which have no margins
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((out / "metrics.json").read_text()) for out in (padded, tmp_path / "again"))
    for result in (first, second):
        del result["settings"]["source"]
    assert_same_scores(second, first)


def test_other_fits_and_sizes(tmp_path: Path, cli: Run, tall: Path) -> None:
    line = tall / "val_line" / "2.png"
    for name, options, size in (
        ("squash", (), (128, 128)),
        ("crop", ("--fit", "crop"), (128, 128)),
        ("page", ("--fit", "pad", "--output-size", "source"), (90, 120)),
        ("square", ("--fit", "crop", "--output-size", "source"), (90, 90)),
    ):
        out, said = drawn(cli, tmp_path / name, line, *options)
        assert Image.open(out / "sketch" / "2.png").size == size
        assert (WHY_INPUT["shape"] in said) == (name == "squash")


def test_shards_are_drawn_as_they_were_packed(tmp_path: Path, cli: Run, tall: Path, padded: Path) -> None:
    shards = tmp_path / "shards"
    assert cli("pack", tall, "--out", shards, "--size", 128, "--fit", "pad").returncode == 0
    out = drawn(cli, tmp_path / "out", shards)[0]
    for folder in FOLDERS:
        for file in (padded / folder).iterdir():
            assert (out / folder / file.name).read_bytes() == file.read_bytes()
    assert settings(out) == {"fit": "pad", "invert": False, "packed px": 128}
    refused = cli("infer", *GENERATOR, "--input", shards, "--out", tmp_path / "other", "--fit", "crop")
    assert refused.returncode == 2
    assert f"--fit crop: {shards} was packed with --fit pad" in refused.stderr


def test_a_generator_draws_as_its_shards_were_packed(tmp_path: Path, cli: Run, tall: Path) -> None:
    shards, run, line = tmp_path / "shards", tmp_path / "run", tall / "val_line" / "2.png"
    assert cli("pack", tall, "--out", shards, "--size", 64, "--fit", "pad").returncode == 0
    options = ("--data.batch-size", 1, "--train.epochs", 1, "--norm", "none", "--train.validate-limit", 1)
    trained = cli("train", "--data.shards", shards, *SMALL, *options, "--out", run)
    assert trained.returncode == 0, trained.stderr
    out = tmp_path / "drawn.png"
    done = cli("infer", "--run", run, "--input", line, "--out", out, "--workers", 0)
    assert done.returncode == 0, done.stderr
    assert WHY_INPUT["shape"] not in done.stdout
    assert Image.open(out).size == SketchGenerator.load(run).draw(line).size == (48, 64)
    squashed = cli("infer", "--run", run, "--input", line, "--out", out, "--workers", 0, "--fit", "squash")
    assert (squashed.returncode, Image.open(out).size) == (0, (64, 64))


def test_shards_of_another_size_are_said(tmp_path: Path, cli: Run, shards: Path) -> None:
    out, said = drawn(cli, tmp_path / "out", shards)
    assert "warning: the shards were packed at 64 px, and the generator draws 128 px" in said
    assert settings(out) == {"fit": "squash", "invert": False, "packed px": 64}
    assert cli("report", out).returncode == 0
    assert "packed px" in (out / "report.html").read_text()


def test_inverted_lines_are_turned(tmp_path: Path, cli: Run) -> None:
    line = face(1)[0]
    line.save(tmp_path / "a.png")
    ImageOps.invert(line).save(tmp_path / "b.png")
    expected = drawn(cli, tmp_path / "expected", tmp_path / "a.png")[0]
    out, said = drawn(cli, tmp_path / "out", tmp_path / "b.png", "--invert")
    assert "warning" not in said
    assert json.loads((out / "infer.json").read_text())["invert"] is True
    for folder in ("line", "raw", "sketch"):
        assert (out / folder / "b.png").read_bytes() == (expected / folder / "a.png").read_bytes()
