"""Single pictures and pictures by name: quick, into a file or a folder, and one broken input costs only itself."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run, face
from PIL import Image

from dist_sketch.__main__ import parse
from dist_sketch.core.errors import UserError
from dist_sketch.data import sources

GENERATOR = ("infer", "--run", "portrait-128", "--workers", 0)


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """A line drawing."""
    face(1)[0].save(tmp_path / "face.png")
    return tmp_path / "face.png"


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory, cli: Run) -> bytes:
    """The drawing of that line, as a folder of output has it."""
    folder = tmp_path_factory.mktemp("drawing")
    face(1)[0].save(folder / "face.png")
    done = cli(*GENERATOR, "--input", folder / "face.png", "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    return (folder / "out" / "sketch" / "face.png").read_bytes()


def test_one_picture_needs_no_process_and_imports_only_what_draws(line: Path, drawing: bytes) -> None:
    """Also where W&B has an account: nobody asked for a run of it."""
    script = """
import os, sys

def forbidden():
    raise AssertionError("a process was started")

os.fork = forbidden
from dist_sketch import __main__
try:
    __main__.main()
finally:
    slow = {"torchvision", "torch._dynamo", "sympy", "wandb", "pytorch_fid", "matplotlib", "webdataset"}
    slow |= {"scipy.ndimage", "scipy.stats", "skimage.filters.rank", "skimage.metrics", "dist_sketch.metrics.scorer"}
    print("SLOW", sorted(slow & set(sys.modules)))
"""
    out = line.with_name("drawn.png")
    env = {**os.environ, "WANDB_API_KEY": "0" * 40}
    del env["WANDB_MODE"]
    words = [sys.executable, "-c", script, "infer", "--run", "portrait-128", "--input", str(line), "--out", str(out)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=line.parent, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{out}\nSLOW []\n")
    assert out.read_bytes() == drawing
    assert sorted(path.name for path in line.parent.iterdir()) == ["drawn.png", "face.png"]


def test_the_suffix_says_the_format_and_an_earlier_picture_is_replaced(tmp_path: Path, cli: Run, line: Path) -> None:
    out = tmp_path / "new" / "drawn.JPEG"
    for size in ("64", "source"):
        done = cli(*GENERATOR, "--input", line, "--out", out, "--output-size", size)
        assert done.returncode == 0, done.stderr
        with Image.open(out) as image:
            assert (image.format, image.size) == ("JPEG", (64, 64) if size == "64" else (80, 80))
    assert [path.name for path in out.parent.iterdir()] == ["drawn.JPEG"]


def test_a_file_that_is_no_picture_stays_as_it_is(tmp_path: Path, cli: Run, line: Path) -> None:
    before = line.read_bytes()
    (tmp_path / "link.png").symlink_to(line)
    (tmp_path / "notes.png").write_text("mine")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, sentence in (
        ("face.png", "is the input, which would be overwritten"),
        ("link.png", "is the input, which would be overwritten"),
        ("notes.png", "is there and not a PNG or JPEG picture, and would be lost"),
        ("pipe.jpg", "cannot be replaced (it is not a regular file)"),
    ):
        done = cli(*GENERATOR, "--input", line, "--out", tmp_path / name)
        assert done.returncode == 2
        assert done.stderr == f"error: {tmp_path / name}: {sentence}; choose another --out\n"
    assert line.read_bytes() == before
    assert (tmp_path / "notes.png").read_text() == "mine"


def test_what_cannot_be_drawn_into_a_file_is_a_sentence(tmp_path: Path, cli: Run, line: Path, pairs: Path) -> None:
    broken, out = tmp_path / "broken.png", tmp_path / "drawn.png"
    broken.write_bytes(line.read_bytes()[:-40])
    for source, more, env, sentence in (
        (broken, ("--skip-bad",), {}, f"error: {broken}: "),
        (line, ("--track.wandb", "offline"), {"WANDB_MODE": "offline"}, "--track.wandb: W&B logs a folder of drawings"),
        (line, (), {"WORLD_SIZE": "2"}, f"{out}: one drawing is made by one process"),
        (pairs / "val_line", (), {}, f"{out}: --out is the folder for all drawings (or, for a single image,"),
        (line, ("--part", "1/2"), {}, f"{out}: --out is the folder for all drawings (or, for a single image,"),
    ):
        done = cli(*GENERATOR, "--input", source, "--out", out, *more, **env)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not out.exists()


def test_a_folder_with_the_name_of_a_picture_gets_the_drawings(tmp_path: Path, cli: Run, line: Path) -> None:
    (tmp_path / "drawn.png").mkdir()
    done = cli(*GENERATOR, "--input", line, "--out", tmp_path / "drawn.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "drawn.png" / "sketch" / "face.png").is_file()


def test_pictures_by_name_and_by_wildcards(tmp_path: Path, cli: Run, drawing: bytes) -> None:
    """In parts, too; a name with brackets is a name first."""
    for name in ("faces/2", "faces/10", "face", "odd[1]"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        face(1)[0].save(tmp_path / f"{name}.png")
    named = ("--input", "face.png", "faces/*.png", "faces/2.png", "odd[1].png")
    for more in (("--part", "1/2"), ("--part", "2/2")):
        done = cli(*GENERATOR, *named, "--out", "out", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert cli("merge", "out", cwd=tmp_path).returncode == 0
    about = json.loads((tmp_path / "out" / "infer.json").read_text())
    assert about["names"] == ["face", "2", "10", "odd[1]"]
    assert about["input"] == str(tmp_path)
    assert about["files"] == [str(tmp_path / f"{name}.png") for name in ("face", "faces/2", "faces/10", "odd[1]")]
    assert {path.read_bytes() for path in (tmp_path / "out" / "sketch").iterdir()} == {drawing}
    done = cli(*GENERATOR, "--input", "faces/*", "out/sketch/2.png", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2  # of the same name as faces/2.png
    (tmp_path / "faces" / "2.png").unlink()
    done = cli(*GENERATOR, "--input", "faces/*", "out/sketch/2.png", "--out", "out", cwd=tmp_path)
    assert "holds the input out/sketch/2.png, which would be overwritten" in done.stderr


def test_inputs_that_are_unclear_are_sentences(tmp_path: Path, line: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(line, tmp_path / "other" / "face.jpg")
    for words, sentence in (
        ([line, tmp_path / "other"], "other: is a folder; --input takes one folder, or several images"),
        ([line, tmp_path / "other" / "face.jpg"], r"face\.jpg: its drawing would get the name of that of .*face\.png"),
        ([line, tmp_path / "gone.png"], r"gone\.png: there is no such folder or image"),
        ([tmp_path / "*.tif"], r"\*\.tif: there is nothing of such a name"),
        ([], "--input: name shards, a folder of images, or images"),
    ):
        with pytest.raises(UserError, match=sentence):
            sources.open_source(sources.named(words), "val")


def test_broken_inputs_can_be_skipped(tmp_path: Path, cli: Run, line: Path) -> None:
    """Whole and in parts; but if nothing can be drawn, that is a failure."""
    (tmp_path / "broken.png").write_bytes(b"no picture")
    options = (*GENERATOR, "--input", line, tmp_path / "broken.png", "--out")
    refused = cli(*options, tmp_path / "a")
    assert refused.returncode == 2
    assert "all others are drawn; repair or remove these, and draw again, or leave them out with --skip-bad\n" in (
        refused.stderr
    )
    whole = cli(*options, tmp_path / "a", "--skip-bad")
    for part in ("1/2", "2/2"):
        assert cli(*options, tmp_path / "b", "--skip-bad", "--part", part).returncode == 0
    merged = [cli("merge", tmp_path / "b") for _ in range(2)]
    for done, out in ((whole, tmp_path / "a"), *((done, tmp_path / "b") for done in merged)):
        assert done.returncode == 0, done.stderr
        assert f"{out}: left out, because 1 input could not be read:\n  {tmp_path / 'broken.png'}: " in done.stdout
        assert [path.name for path in (out / "sketch").iterdir()] == ["face.png"]
        assert json.loads((out / "infer.json").read_text())["skip_bad"] is True
    line.write_bytes(b"")
    nothing = cli(*options, tmp_path / "a", "--skip-bad")
    assert nothing.returncode == 2
    assert nothing.stderr.endswith("nothing is drawn; repair or remove these, and draw again\n")


def test_without_scores(tmp_path: Path, cli: Run, pairs: Path) -> None:
    """They can be had later, from the files."""
    out = tmp_path / "out"
    done = cli(*GENERATOR, "--input", pairs, "--out", out, "--no-scores")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{out}: drawn; not scored\n")
    assert not (out / "metrics.json").exists()
    assert cli("evaluate", out).returncode == 0
    assert json.loads((out / "metrics.json").read_text())["n"] == 5


@pytest.mark.parametrize(
    ("words", "default"),
    [
        (("pack", "pairs", "--out", "o"), "off"),
        (("infer", "--run", "r", "--input", "i", "--out", "o"), "off"),
        (("merge", "o"), "off"),
        (("evaluate", "o"), "off"),
        (("train", "--data.shards", "s", "--out", "o"), "auto"),
    ],
)
def test_only_training_is_logged_by_w_and_b_unasked(words: tuple[str, ...], default: str) -> None:
    command = parse(list(words)).__self__  # type: ignore[attr-defined]
    track = command.settings.track if words[0] == "train" else command.track
    assert track.wandb == default
