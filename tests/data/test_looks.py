"""What looks wrong in pairs: each kind is said with names, kept in the manifest and said again by `verify`.

And what the lines look like that `infer` draws.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from conftest import Run, face
from PIL import Image, ImageOps

from dist_sketch.data.looks import WHY, is_square, look, look_at_input
from dist_sketch.data.manifest import read_manifest
from dist_sketch.data.pack import pack
from dist_sketch.data.recipe import load


def of(root: Path, side: str, split: str = "train", name: str = "2") -> Path:
    return root / f"{split}_{side}" / f"{name}.png"


def blank(root: Path) -> None:
    Image.new("L", (80, 80), 255).save(of(root, "sketch"))


def all_black(root: Path) -> None:
    Image.new("L", (80, 80)).save(of(root, "line"))


def copied(root: Path) -> None:
    shutil.copy(of(root, "line"), of(root, "sketch"))


def copied_with_loss(root: Path) -> None:
    of(root, "sketch").unlink()
    Image.open(of(root, "line")).convert("RGB").save(of(root, "sketch").with_suffix(".jpg"), quality=90)


def inverted_line(root: Path) -> None:
    ImageOps.invert(Image.open(of(root, "line")).convert("L")).save(of(root, "line"))


def inverted_sketch(root: Path) -> None:
    ImageOps.invert(Image.open(of(root, "sketch")).convert("L")).save(of(root, "sketch"))


def swapped(root: Path) -> None:
    line, sketch = Image.open(of(root, "line")).copy(), Image.open(of(root, "sketch")).copy()
    sketch.save(of(root, "line"))
    line.save(of(root, "sketch"))


def side_by_side(root: Path) -> None:
    for side in ("line", "sketch"):
        Image.open(of(root, side)).resize((161, 80)).save(of(root, side))


def one_above_the_other(root: Path) -> None:
    for side in ("line", "sketch"):
        Image.open(of(root, side)).resize((80, 160)).save(of(root, side))


def trained_on(root: Path) -> None:
    for side in ("line", "sketch"):
        shutil.copy(of(root, side, name="1"), of(root, side, "val", "2"))


def line_trained_on(root: Path) -> None:
    shutil.rmtree(root / "val_sketch")
    shutil.copy(of(root, "line", name="1"), of(root, "line", "val", "2"))


KINDS: list[tuple[Callable[[Path], None], str, str]] = [
    (blank, "blank", "train/2"),
    (all_black, "blank", "train/2"),
    (copied, "same", "train/2"),
    (copied_with_loss, "same", "train/2"),
    (inverted_line, "black", "train/2"),
    (inverted_sketch, "black", "train/2"),
    (swapped, "swapped", "train/2"),
    (side_by_side, "double", "train/2"),
    (one_above_the_other, "double", "train/2"),
    (trained_on, "again", "val/2"),
    (line_trained_on, "again", "val/2"),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for split, seeds in (("train", (1, 2, 3)), ("val", (4, 5))):
        for name, seed in enumerate(seeds, 1):
            for side, picture in zip(("line", "sketch"), face(seed), strict=True):
                of(root, side, split, str(name)).parent.mkdir(parents=True, exist_ok=True)
                picture.save(of(root, side, split, str(name)))
    return root


@pytest.mark.parametrize(("make", "kind", "name"), KINDS)
def test_each_kind_is_said_and_kept(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], None],
    kind: str,
    name: str,
) -> None:
    make(source)
    pack(load(str(source)), tmp_path / "out", size=64, workers=1)
    assert read_manifest(tmp_path / "out")["looks"] == {kind: [name]}
    assert f"warning: 1 pair ({name}): {WHY[kind]}\n" in capsys.readouterr().out


def test_good_pairs_give_no_warning(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack(load(str(source)), tmp_path / "out", size=64, workers=1)["looks"] == {}
    assert "warning" not in capsys.readouterr().out


def test_names_are_counted_and_verify_repeats_them(source: Path, tmp_path: Path, cli: Run) -> None:
    for name in ("1", "2", "3", "4\x1b[31m\n"):
        shutil.copy(of(source, "line", name="1"), of(source, "line", name=name)) if name[0] == "4" else None
        shutil.copy(of(source, "line", name=name), of(source, "sketch", name=name))
    said = f"warning: 4 pairs (train/1, train/2, train/3, ...): {WHY['same']}\n"
    out = tmp_path / "out"
    assert said in cli("pack", source, "--out", out, "--size", 64).stdout
    done = cli("verify", out)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["looks"] = {"same": ["\x1b[31mred\nline"], "a kind of later versions": ["x"]}
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert r"warning: 1 pair (\x1b[31mred\nline): " in cli("verify", out).stdout
    del manifest["looks"]  # as of earlier versions
    (out / "manifest.json").write_text(json.dumps(manifest))
    done = cli("verify", out)
    assert (done.returncode, "warning" in done.stdout) == (0, False)


def test_a_dark_sketch_and_a_banner_are_no_faults() -> None:
    line, sketch = (picture.convert("L") for picture in face(1))
    dark = sketch.point(lambda tone: tone // 2)
    assert look([(80, 80), (80, 80)], [line, dark]).kinds == []
    assert look([(300, 100), (200, 100)], [line, sketch]).kinds == []


LINES = [
    Image.open(path).convert("L") for path in sorted((Path(__file__).parents[2] / "launch" / "lines").glob("*.png"))
]


def colored(line: Image.Image, ink: tuple[int, ...], paper: tuple[int, ...]) -> Image.Image:
    share = np.asarray(line)[..., None] / 255
    return Image.fromarray((share * paper + (1 - share) * ink).astype(np.uint8))


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize(
    ("made", "kinds"),
    [
        (lambda line: line, []),
        (lambda line: line.point(lambda v: v * 0.85), []),  # off-white paper
        (lambda line: line.point(lambda v: 140 + v * 77 / 255), []),  # pencil on it
        (lambda line: colored(line, (70, 60, 50), (245, 235, 210)), []),  # brown ink on warm paper
        (lambda line: colored(line, (40, 60, 190), (255, 255, 255)), ["color"]),  # a blue pen
        (ImageOps.invert, ["inverted"]),
        (lambda line: ImageOps.invert(line.point(lambda v: 110 + v * 145 / 255)), ["inverted"]),  # gray on black
        (lambda line: Image.new("L", line.size, 240), ["blank"]),
        (lambda _: Image.fromarray(skimage.data.astronaut()), ["photo"]),
        (lambda _: Image.fromarray(skimage.data.camera()), ["photo"]),
    ],
)
def test_what_the_lines_that_are_drawn_look_like(
    made: Callable[[Image.Image], Image.Image], kinds: list[str], size: int
) -> None:
    for line in LINES:
        assert look_at_input(made(line).resize((size, size), Image.Resampling.BICUBIC)) == kinds


def test_which_pages_are_square() -> None:
    assert [is_square(*page) for page in ((100, 100), (101, 100), (100, 104), (210, 297))] == [True, True, False, False]
