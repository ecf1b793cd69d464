"""Inference and scores: every input once, the same on any number of ranks, files and figures that agree."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import SMALL, Run, face, write_pairs
from PIL import Image
from support import forks
from support.scores import assert_same_scores
from torch import nn

from dist_sketch.core import folders
from dist_sketch.core.errors import UserError
from dist_sketch.core.folders import Lock
from dist_sketch.core.saved import read_finished_infer
from dist_sketch.data import pack, recipe
from dist_sketch.data.manifest import read_index, read_manifest
from dist_sketch.data.order import order
from dist_sketch.data.shards import Sample
from dist_sketch.inference.infer import _draw, infer, merge
from dist_sketch.inference.options import InferOptions
from dist_sketch.inference.output import finish, make_room
from dist_sketch.model import checkpoint
from dist_sketch.reports import report
from dist_sketch.tracking.tracker import read_metrics

FOLDERS = ("line", "raw", "sketch", "real")
VAL = ["14", "15", "16", "17", "18"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cli: Run, shards: Path) -> Path:
    """A short finished run; read only, also to `infer`."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = cli("train", "--data.shards", shards, *SMALL, "--train.epochs", 2, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, cli: Run, run: Path, shards: Path) -> Path:
    """The validation split drawn and scored; read only."""
    folder = tmp_path_factory.mktemp("drawn") / "out"
    done = cli("infer", "--run", run, "--input", shards, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def pictures(out: Path, *folders: str) -> dict[str, bytes]:
    return {f"{f}/{p.name}": p.read_bytes() for f in folders for p in sorted((out / f).iterdir())}


def digest(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(str(p).encode() + p.read_bytes() for p in files)).hexdigest()


def scores(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())


def test_every_picture_and_every_score(out: Path, run: Path) -> None:
    for folder in FOLDERS:
        assert sorted(p.stem for p in (out / folder).iterdir()) == VAL
    result = scores(out)
    assert result["n"] == 5
    for kind in (result["raw"], result["denoised"], *result["baselines"].values()):
        assert {"ssim", "scoot", "l1", "psnr", "specks", "fid_64", "fid_192", "fid_768", "fid_2048", "kid"} <= set(kind)
        assert all(np.isfinite(v) for k, v in kind.items() if k != "psnr")
    assert set(result["baselines"]) == {"blank", "input", "reference"}
    with Image.open(out / "sketch" / "14.png") as image:
        assert image.size == (64, 64)
        assert np.ptp(np.asarray(image.convert("RGB")), axis=2).max() == 0  # denoised is gray


def test_batch_size_does_not_matter(tmp_path: Path, cli: Run, run: Path, shards: Path, out: Path) -> None:
    done = cli("infer", "--run", run, "--input", shards, "--out", tmp_path / "one", "--batch-size", 1)
    assert done.returncode == 0, done.stderr
    assert pictures(tmp_path / "one", *FOLDERS) == pictures(out, *FOLDERS)
    assert_same_scores(scores(tmp_path / "one"), scores(out))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 3 training and 2 validation pairs."""
    root = tmp_path_factory.mktemp("odd")
    pack.pack(recipe.load(str(write_pairs(root / "pairs", 3, 2))), root / "shards", size=64, shard_count=1, workers=1)
    return root / "shards"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, cli: Run, run: Path, out: Path, odd: Path) -> dict[int, Path]:
    """What one process draws, by the number of inputs; read only."""
    folder = tmp_path_factory.mktemp("alone") / "two"
    done = cli("infer", "--run", run, "--input", odd, "--out", folder)
    assert done.returncode == 0, done.stderr
    return {5: out, 2: folder}


# A loader that read these variables would draw only a part.
FOREIGN = {"WORKER": "1", "NUM_WORKERS": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "7", "SLURM_LOCALID": "3"}


@pytest.mark.parametrize(("n", "ranks"), [(5, 2), (5, 3), (5, 4), (2, 3)])
def test_any_number_of_ranks_draws_and_scores_every_input_once(
    tmp_path: Path, cli_ranks: Run, run: Path, shards: Path, odd: Path, alone: dict[int, Path], n: int, ranks: int
) -> None:
    source = {5: shards, 2: odd}[n]
    options = ("infer", "--run", run, "--input", source, "--out", tmp_path / "o", "--batch-size", 2)
    done = cli_ranks(ranks, *options, **FOREIGN)
    assert done.returncode == 0, done.stderr
    keys = list(read_index(source, read_manifest(source), "val").keys)
    assert json.loads((tmp_path / "o" / "infer.json").read_text())["names"] == keys
    assert pictures(tmp_path / "o", *FOLDERS) == pictures(alone[n], *FOLDERS)
    found = scores(tmp_path / "o")
    assert found["n"] == len(keys) == n
    assert [image["name"] for image in found["images"]] == keys
    assert found["settings"]["missing"] == {}  # FID and KID too
    assert_same_scores(found, scores(alone[n]))


def test_evaluate_gives_the_same_numbers_from_the_files(
    tmp_path: Path, cli: Run, cli_ranks: Run, out: Path, odd: Path
) -> None:
    """On one rank and on three, of which the last has no training sketch but two images of its own."""
    found = []
    for name, start in (("one", cli), ("three", partial(cli_ranks, 3))):
        shutil.copytree(out, tmp_path / name)
        about = json.loads((out / "infer.json").read_text()) | {"reference": str(odd)}
        (tmp_path / name / "infer.json").write_text(json.dumps(about))
        (tmp_path / name / "metrics.json").unlink()
        done = start("evaluate", tmp_path / name)
        assert done.returncode == 0, done.stderr
        found.append(scores(tmp_path / name))
    one, three = found
    assert three["n"] == 5
    assert three["settings"]["reference_n"] == 3
    assert three["baselines"]["reference"]["fid_2048"] > 0
    assert_same_scores(three, one)
    drawn = scores(out)
    for result, source, sketches in ((one, "files", 3), (drawn, "memory", 5)):
        assert result["settings"].pop("source") == source
        assert result["settings"].pop("reference_n") == sketches
        del result["baselines"]["reference"]
    assert_same_scores(one, drawn)


def test_the_papers_mode_is_seeded_by_name_and_leaves_the_run_alone(
    tmp_path: Path, cli: Run, cli_ranks: Run, pairs: Path, run: Path, shards: Path
) -> None:
    # 128 px: at 64 the bottleneck has one value a channel, and no statistics of a single image
    assert cli("pack", pairs, "--out", tmp_path / "shards", "--size", 128).returncode == 0
    options = ("--data.shards", tmp_path / "shards", *SMALL, "--train.epochs", 1, "--checkpoint.interval-steps", 0)
    assert cli("train", *options, "--out", tmp_path / "run").returncode == 0
    before = digest(tmp_path / "run")
    infer = ("infer", "--run", tmp_path / "run", "--input", pairs / "val_line", "--mode", "paper")
    first = cli(*infer, "--out", tmp_path / "a", "--batch-size", 3)
    second = cli_ranks(2, *infer, "--out", tmp_path / "b")
    other = cli(*infer, "--out", tmp_path / "c", "--seed", 1)
    assert (first.returncode, second.returncode, other.returncode) == (0, 0, 0)
    assert pictures(tmp_path / "a", "raw") == pictures(tmp_path / "b", "raw")
    assert pictures(tmp_path / "a", "raw") != pictures(tmp_path / "c", "raw")
    assert digest(tmp_path / "run") == before
    small = cli("infer", "--run", run, "--input", shards, "--out", tmp_path / "d", "--mode", "paper")
    assert small.returncode == 2
    assert "which the norm 'batch' cannot do at 64 px; use --mode running" in small.stderr


def test_a_folder_gives_what_its_shards_give(tmp_path: Path, cli: Run, run: Path, pairs: Path, out: Path) -> None:
    done = cli("infer", "--run", run, "--input", pairs, "--out", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    assert pictures(tmp_path / "o", "raw", "sketch") == pictures(out, "raw", "sketch")


def test_lines_without_sketches_of_any_size(tmp_path: Path, cli: Run, run: Path) -> None:
    lines = tmp_path / "lines"
    lines.mkdir()
    face(1, 200)[0].resize((333, 200)).save(lines / "7.jpg")
    face(2, 100)[0].save(lines / "a b.png")
    options = ("infer", "--run", run, "--input", lines, "--out", tmp_path / "o", "--format", "jpg")
    done = cli(*options, "--output-size", "source")
    assert done.returncode == 0, done.stderr
    assert "no sketches" in done.stdout
    with Image.open(tmp_path / "o" / "sketch" / "7.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (333, 200))
    assert not (tmp_path / "o" / "metrics.json").exists()
    assert cli("report", tmp_path / "o").returncode == 0
    one = cli("infer", "--run", run, "--input", lines / "a b.png", "--out", tmp_path / "p", "--output-size", 100)
    assert one.returncode == 0, one.stderr
    with Image.open(tmp_path / "p" / "sketch" / "a b.png") as image:
        assert image.size == (100, 100)
    scored = cli("evaluate", tmp_path / "o")
    assert scored.returncode == 2
    assert "had no sketches" in scored.stderr


def test_the_reference_is_found_from_any_directory(tmp_path: Path, cli: Run, shards: Path) -> None:
    shutil.copytree(shards, tmp_path / "here" / "shards")
    options = ("train", "--data.shards", "shards", *SMALL, "--train.epochs", 1, "--out", "run")
    assert cli(*options, cwd=tmp_path / "here").returncode == 0
    run = tmp_path / "here" / "run"
    done = cli("infer", "--run", run, "--input", shards, "--out", tmp_path / "o", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert scores(tmp_path / "o")["baselines"]["reference"]["fid_2048"] > 0


def test_denoise_can_be_switched_by_part(tmp_path: Path, cli: Run, run: Path, pairs: Path) -> None:
    off = ("--denoise.gray", "False", "--denoise.filter", "none", "--denoise.shadows", "False")
    assert cli("infer", "--run", run, "--input", pairs / "val_line", "--out", tmp_path / "o", *off).returncode == 0
    raw, sketch = (pictures(tmp_path / "o", f) for f in ("raw", "sketch"))
    assert list(raw.values()) == list(sketch.values())


def test_an_older_checkpoint_on_request(tmp_path: Path, cli: Run, run: Path, pairs: Path, out: Path) -> None:
    done = cli("infer", "--run", run, "--input", pairs / "val_line", "--out", tmp_path / "o", "--step", 2)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "o" / "infer.json").read_text())["step"] == 2
    assert pictures(tmp_path / "o", "raw") != pictures(out, "raw")


def test_an_exported_generator(tmp_path: Path, cli: Run, run: Path, pairs: Path, out: Path) -> None:
    exported = tmp_path / "exported"
    exported.mkdir()
    newest = checkpoint.find(run)
    assert newest is not None
    for file in (newest / "generator.safetensors", run / "config.json", run / "denoise.json"):
        shutil.copy(file, exported)
    done = cli("infer", "--run", exported, "--input", pairs / "val_line", "--out", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    assert pictures(tmp_path / "o", "raw", "sketch") == pictures(out, "raw", "sketch")


def test_an_output_is_replaced_and_other_folders_are_not(tmp_path: Path, cli: Run, run: Path, pairs: Path) -> None:
    options = ("infer", "--run", run, "--out", tmp_path / "o")
    assert cli(*options, "--input", pairs).returncode == 0
    assert cli(*options, "--input", pairs / "val_line" / "14.png").returncode == 0
    assert [p.name for p in (tmp_path / "o" / "sketch").iterdir()] == ["14.png"]
    assert not (tmp_path / "o" / "metrics.json").exists()
    wrong = cli("infer", "--run", run, "--out", pairs, "--input", pairs / "val_line" / "14.png")
    assert wrong.returncode == 2
    assert "which would be overwritten" in wrong.stderr
    again = cli(*options, "--input", tmp_path / "o" / "line")  # an older output's own pictures
    assert again.returncode == 2
    assert "which would be overwritten" in again.stderr
    assert (tmp_path / "o" / "line" / "14.png").is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    other = cli("infer", "--run", run, "--out", tmp_path / "mine", "--input", pairs)
    assert other.returncode == 2
    assert "is not an output folder" in other.stderr


def contents(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def foreign_infer_json(out: Path, mine: Path) -> None:
    (out / "infer.json").write_text('{"model": "mine", "names": ["14"]}')


def foreign_state(out: Path, mine: Path) -> None:
    (out / "infer.json").write_text('{"state": "running", "port": 80}')


def own_picture(out: Path, mine: Path) -> None:
    shutil.copy(out / "raw" / "14.png", out / "raw" / "holiday.png")


def own_folder(out: Path, mine: Path) -> None:
    shutil.copytree(mine, out / "line" / "mine")


def own_notes(out: Path, mine: Path) -> None:
    (out / "sketch" / "notes.txt").write_text("mine")


def linked_folder(out: Path, mine: Path) -> None:
    shutil.rmtree(out / "raw")
    (out / "raw").symlink_to(mine)


def own_parts(out: Path, mine: Path) -> None:
    shutil.copytree(mine, out / "parts")


@pytest.mark.parametrize("more", [(), ("--part", "1/2")], ids=["whole", "part"])
@pytest.mark.parametrize(
    "put",
    [foreign_infer_json, foreign_state, own_picture, own_folder, own_notes, linked_folder, own_parts],
)
def test_pictures_of_others_stay_as_they_are(
    tmp_path: Path,
    cli: Run,
    run: Path,
    pairs: Path,
    out: Path,
    put: Callable[[Path, Path], None],
    more: tuple[str, ...],
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "14.png").write_bytes(b"mine")
    shutil.copytree(out, tmp_path / "o")
    put(tmp_path / "o", mine)
    before = contents(tmp_path)
    ended = cli("infer", "--run", run, "--out", tmp_path / "o", "--input", pairs / "val_line" / "14.png", *more)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {tmp_path / 'o'}")
    assert contents(tmp_path) == before


def impatient() -> None:
    """Hook: waits for no other process."""
    folders.WAIT_S = 0.0


def test_an_output_has_one_writer(tmp_path: Path, run: Path, pairs: Path, out: Path) -> None:
    target, prints = tmp_path / "o", (tmp_path / "stdout", tmp_path / "stderr")
    shutil.copytree(out, target)
    before = contents(target)

    def refused(*command: object) -> str:
        env = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        pid = forks.fork(prints, arguments=command, call=("test_infer", "impatient"), env=env)
        assert forks.wait(pid) == 2, command
        return prints[1].read_text()

    infer, others = (
        ("infer", "--run", run, "--input", pairs, "--out", target),
        (("merge", target), ("evaluate", target)),
    )
    with Lock(target) as lock:
        lock.acquire()
        for command in (infer, (*infer, "--part", "1/2"), *others):
            assert f"error: {target}: process {os.getpid()} on " in refused(*command)
    with Lock(target) as lock:  # a job that draws a part
        lock.acquire(shared=True)
        for command in (infer, *others):
            assert f"error: {target}: process {os.getpid()} on " in refused(*command)
    assert contents(target) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--run", "/nowhere"), "/nowhere: is neither a run nor an exported generator"),
        (("--input", "/nowhere"), "/nowhere: there is no such folder or image"),
        (("--split", "test"), "has no split 'test'; it has train, val"),
        (("--step", "999"), "--step 999"),
        (("--output-size", "0"), "--output-size 0: must be network, source, or a number"),
        (("--batch-size", "0"), "--batch-size 0: must be at least 1"),
        (("--denoise.strength", "-1"), "strength"),
        (("--fid-weights", "/nowhere"), "--fid-weights /nowhere: there is no such file"),
    ],
)
def test_mistakes_get_a_sentence(
    tmp_path: Path, cli: Run, run: Path, shards: Path, options: tuple[str, ...], sentence: str
) -> None:
    wrong = cli("infer", "--run", run, "--input", shards, "--out", tmp_path / "o", *options)
    assert wrong.returncode == 2
    assert sentence in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_damaged_weights_are_named(tmp_path: Path, cli: Run, run: Path, shards: Path) -> None:
    damaged = tmp_path / "run"
    shutil.copytree(run, damaged)
    for folder in (damaged / "checkpoints").iterdir():
        file = folder / "generator.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    wrong = cli("infer", "--run", damaged, "--input", shards, "--out", tmp_path / "o")
    assert wrong.returncode == 2
    assert "has no complete checkpoint" in wrong.stderr
    assert "generator.safetensors: damaged" in wrong.stdout


def test_report_of_a_real_run(cli: Run, tmp_path: Path, out: Path, run: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    done = cli("report", copy)
    assert done.returncode == 0, done.stderr
    page = (copy / "report.html").read_text()
    assert f"{scores(out)['denoised']['ssim']:.3f}" in page
    assert page.count("<svg") >= 2  # the loss curves
    assert len(read_metrics(run)) > 0


def test_parts_make_what_one_job_makes(tmp_path: Path, cli: Run, run: Path, shards: Path, out: Path) -> None:
    target, infer = tmp_path / "parts", ("infer", "--run", run, "--input", shards, "--out", tmp_path / "parts")
    done = cli(*infer, "--part", "2/2")
    assert done.returncode == 0, done.stderr
    for command in (("merge", target), ("evaluate", target)):  # half of it
        done = cli(*command)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "merge" in done.stderr or "not drawn yet: --part 1/2" in done.stderr
    written = pictures(target, *FOLDERS)
    assert {Path(name).stem for name in written} == {"16", "17", "18"}
    assert "nothing to do" in cli(*infer, "--part", "2/2").stdout
    done = cli(*infer, "--part", "1/2", "--batch-size", 1)
    assert done.returncode == 0, done.stderr
    done = cli("merge", target)
    assert done.returncode == 0, done.stderr
    again = cli("merge", target)  # as when the job is started again
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert "nothing to do" in cli(*infer, "--part", "2/2").stdout
    assert pictures(target, *FOLDERS) == pictures(out, *FOLDERS)
    assert json.loads((target / "infer.json").read_text()) == json.loads((out / "infer.json").read_text())
    assert_same_scores(scores(target), scores(out))
    assert sorted(p.name for p in target.iterdir()) == sorted(p.name for p in out.iterdir() if p.name != "report.html")


def test_parts_of_inputs_that_have_changed_are_not_mixed(tmp_path: Path, cli: Run, run: Path, pairs: Path) -> None:
    lines = shutil.copytree(pairs / "val_line", tmp_path / "lines")
    infer = ("infer", "--run", run, "--input", lines, "--out", tmp_path / "o", "--part")
    assert cli(*infer, "1/2").returncode == 0
    (lines / "14.png").rename(lines / "10.png")
    done = cli(*infer, "2/2")
    assert (done.returncode, "holds another inference (its inputs differ)" in done.stderr) == (2, True)


def broken(folder: Path) -> list[str]:
    """Lines 14 to 18, of which four cannot be read, beside one good face; returns the names of the bad ones."""
    (folder / "14.png").write_bytes((folder / "14.png").read_bytes()[:-40])
    for name in ("15", "16", "17"):
        (folder / f"{name}.png").unlink()
    (folder / "15.png").write_bytes(b"no picture")
    (folder / "16.png").symlink_to("nowhere")
    os.mkfifo(folder / "17.png")
    return VAL[:4]


def test_good_inputs_are_drawn_beside_broken_ones(tmp_path: Path, cli: Run, run: Path, pairs: Path, out: Path) -> None:
    lines, target = tmp_path / "lines", tmp_path / "o"
    shutil.copytree(pairs / "val_line", lines)
    infer = ("infer", "--run", run, "--input", lines, "--out", target, "--batch-size", 2)
    assert cli(*infer).returncode == 0
    bad = broken(lines)
    (lines / "sub").mkdir()
    shutil.copy(lines / "18.png", lines / "sub" / "19.png")
    for _ in range(2):  # a second start draws the same, and its broken inputs' older drawings are gone
        done = cli(*infer)
        assert done.returncode == 2
        assert f"{target}: 4 inputs could not be read:" in done.stderr
        assert "Traceback" not in done.stderr
        assert "passed over: .: 1 pictures in sub-folders" in done.stdout
        about = json.loads((target / "infer.json").read_text())
        assert about["names"] == ["18"]
        assert about["passed_over"] == {".": {"pictures in sub-folders": 1}}
        for name, sentence in zip(bad, about["left_out"], strict=True):
            assert sentence.startswith(f"{lines / name}.png: ")
            assert sentence in done.stderr
        assert pictures(target, "raw", "sketch") == {
            k: v for k, v in pictures(out, "raw", "sketch").items() if k.endswith("/18.png")
        }
    assert cli("report", target).returncode == 0
    (lines / "18.png").write_bytes(b"")
    said = cli(*infer).stderr
    assert "5 inputs could not be read" in said
    assert "nothing is drawn; repair or remove these" in said
    assert pictures(target, "raw")  # nothing was drawn, so nothing is removed


def test_good_inputs_are_drawn_beside_those_that_cannot_be_paired(
    tmp_path: Path, cli: Run, run: Path, pairs: Path, out: Path
) -> None:
    """Also by parts, of which each names what is its own."""
    data = tmp_path / "data"
    shutil.copytree(pairs, data)
    shutil.copy(data / "val_line" / "14.png", data / "val_line" / "14.jpg")
    (data / "val_sketch" / "15.png").unlink()
    shutil.copy(data / "val_line" / "16.png", os.fsencode(data / "val_line") + b"/\xff.png")
    infer = ("infer", "--run", run, "--input", data, "--out")
    whole = cli(*infer, tmp_path / "a")
    for part in ("1/2", "2/2"):
        assert cli(*infer, tmp_path / "b", "--part", part).returncode == 0
    for done, target in ((whole, tmp_path / "a"), (cli("merge", tmp_path / "b"), tmp_path / "b")):
        assert done.returncode == 2
        assert f"{target}: 3 inputs could not be read:" in done.stderr
        assert f"{data}/val_line/14.jpg: has the same name as 14.png beside it" in done.stderr
        assert f"{data}/val_line/15.png: has no partner in val_sketch" in done.stderr
        assert "its name is not valid UTF-8" in done.stderr
        assert "all others are drawn" in done.stderr
        assert json.loads((target / "infer.json").read_text())["names"] == ["16", "17", "18"]
        assert scores(target)["n"] == 3
        expected = {k: v for k, v in pictures(out, "raw").items() if Path(k).stem in ("16", "17", "18")}
        assert pictures(target, "raw") == expected


@pytest.mark.parametrize(
    ("size", "options", "drawn"),
    [
        ((1, 1), ("source",), (1, 1)),
        ((80, 80), ("1",), (1, 1)),
        ((1, 3000), ("source", "--format", "jpg"), (1, 3000)),
        ((65_500, 2), ("source", "--format", "jpg"), (65_500, 2)),
        ((70_000, 2), ("source", "--format", "jpg"), None),
        ((70_000, 2), ("source",), None),
        ((70_000, 2), ("network",), (64, 64)),
    ],
)
def test_a_picture_of_odd_size_costs_at_most_itself(
    tmp_path: Path,
    cli: Run,
    run: Path,
    pairs: Path,
    size: tuple[int, int],
    options: tuple[str, ...],
    drawn: tuple[int, int] | None,
) -> None:
    (tmp_path / "lines").mkdir()
    shutil.copy(pairs / "val_line" / "14.png", tmp_path / "lines")
    Image.new("L", size, 255).save(tmp_path / "lines" / "odd.png")
    done = cli("infer", "--run", run, "--input", tmp_path / "lines", "--out", tmp_path / "o", "--output-size", *options)
    found = {p.stem: Image.open(p).size for p in (tmp_path / "o" / "sketch").iterdir()}
    assert "Traceback" not in done.stderr
    if drawn is None:
        assert done.returncode == 2
        assert "odd: its line has 70,000 x 2 px; no drawing of more than 65,500 px a side is written" in done.stderr
        assert found == {"14": (80, 80)}
    else:
        assert done.returncode == 0, done.stderr
        assert found["odd"] == drawn
        assert len(found) == 2


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, lines: torch.Tensor) -> torch.Tensor:
        return lines * self.factor


@pytest.mark.parametrize("mode", ["running", "paper"])
@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -float("inf")])
def test_a_drawing_that_is_not_finite_is_refused(mode: Literal["running", "paper"], factor: float) -> None:
    line = torch.full((1, 4, 4), 200, dtype=torch.uint8)
    draw = partial(_draw, options=InferOptions(mode=mode), precision="no", device=torch.device("cpu"))
    items = [Sample("a", line, None, (4, 4))]
    assert torch.equal(draw(Times(1), items=items), line[None])
    with pytest.raises(UserError, match="its weights are damaged, or too large"):
        draw(Times(factor), items=items)


def test_broken_pairs_leave_no_gap_in_the_scores(
    tmp_path: Path, cli: Run, cli_ranks: Run, run: Path, pairs: Path
) -> None:
    """Also in parts, and on any number of ranks; the scores are those of the good pairs alone."""
    data, good = tmp_path / "data", tmp_path / "good"
    shutil.copytree(pairs, data)
    shutil.copytree(pairs, good)
    (data / "val_sketch" / "15.png").write_bytes(b"")
    for side in ("line", "sketch"):
        (good / f"val_{side}" / "15.png").unlink()
    infer = ("infer", "--run", run, "--input")
    assert cli(*infer, good, "--out", tmp_path / "a").returncode == 0
    assert cli_ranks(2, *infer, data, "--out", tmp_path / "b").returncode == 2
    for part in ("1/2", "2/2"):
        done = cli(*infer, data, "--out", tmp_path / "c", "--part", part)
        assert done.returncode == 0, done.stderr
    for _ in range(2):  # as when the job is started again
        merged = cli("merge", tmp_path / "c")
        assert merged.returncode == 2
        assert "1 input could not be read" in merged.stderr
    expected = pictures(tmp_path / "a", *FOLDERS)
    for name in ("b", "c"):
        assert pictures(tmp_path / name, *FOLDERS) == expected
        found = scores(tmp_path / name)
        assert (found["n"], [image["name"] for image in found["images"]]) == (4, ["14", "16", "17", "18"])
        assert found["denoised"]["ssim"] == pytest.approx(scores(tmp_path / "a")["denoised"]["ssim"])


def test_training_pairs_that_cannot_be_read_are_left_out_of_the_reference(
    tmp_path: Path, cli: Run, cli_ranks: Run, run: Path, shards: Path, out: Path
) -> None:
    data, own, target = tmp_path / "data", tmp_path / "run", tmp_path / "o"
    shutil.copytree(shards, data)
    shutil.copytree(run, own)
    settings = json.loads((own / "config.json").read_text())
    settings["config"]["data"]["shards"] = str(data)
    (own / "config.json").write_text(json.dumps(settings))
    manifest = read_manifest(data)
    train, index = manifest["splits"]["train"], read_index(data, manifest, "train")
    places = order(train["count"], 0, 0, shuffle=True)[:5]
    for place in places[[0, 3]]:
        with open(data / train["shards"][index.shards[place]]["file"], "r+b") as file:
            file.seek(index.offsets[place] + 600)
            file.write(b"damage")
    done = cli_ranks(2, "infer", "--run", own, "--input", data, "--out", target)
    for _ in range(2):
        assert done.returncode == 0, done.stderr
        found = scores(target)
        assert (found["n"], found["settings"]["reference_n"]) == (5, 3)
        assert found["baselines"]["reference"]["fid_2048"] > 0
        assert found["raw"]["ssim"] == pytest.approx(scores(out)["raw"]["ssim"])
        for place, sentence in zip(sorted(places[[0, 3]]), found["settings"]["reference_left_out"], strict=True):
            assert f"sample {index.keys[place]!r} is not what the manifest says" in sentence
            assert sentence in done.stdout
        assert "left out of the other real sketches, because they cannot be read: 2" in done.stdout
        done = cli("evaluate", target)
    assert cli("report", target).returncode == 0


def test_evaluate_has_the_baselines_of_infer_when_inputs_were_left_out(
    tmp_path: Path, cli: Run, run: Path, shards: Path
) -> None:
    data, target = shutil.copytree(shards, tmp_path / "data"), tmp_path / "o"
    manifest = read_manifest(data)
    val, index = manifest["splits"]["val"], read_index(data, manifest, "val")
    with open(data / val["shards"][index.shards[1]]["file"], "r+b") as file:
        file.seek(index.offsets[1] + 600)
        file.write(b"damage")
    done = cli("infer", "--run", run, "--input", data, "--out", target, "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert "train --data.skip-bad N, infer --skip-bad" in done.stderr + done.stdout
    before = scores(target)["baselines"]["reference"]
    assert cli("evaluate", target).returncode == 0
    assert scores(target)["baselines"]["reference"] == pytest.approx(before, rel=1e-4)


def test_an_output_is_not_called_whole_while_its_pictures_are_removed(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    shutil.copytree(out, target := tmp_path / "out")
    about = json.loads((target / "infer.json").read_text()) | {"step": 99}
    for key in ("names", "left_out", "passed_over"):
        about.pop(key)
    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), Lock(target) as lock:
        make_room(target, [tmp_path / "in"], None, about, lock)
    with pytest.raises(UserError, match="it is being drawn: wait for its end"):
        read_finished_infer(target)
    monkeypatch.undo()
    with Lock(target) as lock:
        assert make_room(target, [tmp_path / "in"], None, about, lock)
    assert not (target / "raw").exists()


def test_the_same_inference_again_keeps_what_is_drawn_until_it_is_drawn_anew(out: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    shutil.copytree(out, target)
    about = json.loads((target / "infer.json").read_text())
    about = {key: value for key, value in about.items() if key not in ("names", "left_out", "passed_over")}
    before = pictures(target, *FOLDERS)
    with Lock(target) as lock:
        assert make_room(target, [tmp_path / "in"], None, about, lock)
    assert pictures(target, *FOLDERS) == before
    assert "names" not in json.loads((target / "infer.json").read_text())
    with Lock(target) as lock:  # another network's drawings are not mixed with them
        assert make_room(target, [tmp_path / "in"], None, about | {"step": 1}, lock)
    assert not (target / "raw").exists()


def test_long_names_are_drawn(tmp_path: Path, cli: Run, run: Path) -> None:
    lines = tmp_path / "lines"
    lines.mkdir()
    names = ["n" * 251, "é" * 125]
    for n, name in enumerate(names):
        face(n, 64)[0].save(lines / f"{name}.png")
    done = cli("infer", "--run", run, "--input", lines, "--out", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    assert sorted(p.stem for p in (tmp_path / "o" / "sketch").iterdir()) == sorted(names)


def test_the_end_removes_earlier_pictures_and_nothing_else(tmp_path: Path) -> None:
    """Such as one that somebody has put there while it drew."""
    (tmp_path / "raw").mkdir()
    for name in ("earlier.png", "drawn.png", "unfinished.png", "added.png"):
        (tmp_path / "raw" / name).touch()
    before = {"names": ["earlier"], "before": ["unfinished.png", "drawn.png"]}
    (tmp_path / "infer.json").write_text(json.dumps(before))
    finish(tmp_path, {"input": "in", "split": "val", "names": ["drawn"], "left_out": []}, None)
    assert sorted(p.name for p in (tmp_path / "raw").iterdir()) == ["added.png", "drawn.png"]
    assert "before" not in json.loads((tmp_path / "infer.json").read_text())


def test_names_of_others_are_only_shown(tmp_path: Path, cli: Run, run: Path, shards: Path) -> None:
    """In training, in its validation, and in a part of an inference."""
    data, name = tmp_path / "shards", "\x1b[31mred\nerror: all is lost.tar"
    shutil.copytree(shards, data)
    manifest = json.loads((data / "manifest.json").read_text())
    for split, number in (("train", 1), ("val", 0)):
        manifest["splits"][split]["shards"][number]["file"] = f"{split}{name}"  # it is missing, so its samples are bad
    (data / "manifest.json").write_text(json.dumps(manifest))
    epoch = ("--train.epochs", 1, "--train.validate-interval-epochs", 1, "--data.skip-bad", 50)
    for command in (
        ("train", "--data.shards", data, *SMALL, *epoch, "--out", tmp_path / "run"),
        ("infer", "--run", run, "--input", data, "--out", tmp_path / "o", "--part", "1/1"),
    ):
        done = cli(*command)
        assert done.returncode == 0, done.stderr
        assert r"/val\x1b[31mred\nerror: all is lost.tar: cannot be read" in done.stdout
        assert "\x1b" not in done.stdout
        assert "\nerror" not in done.stdout
        if command[0] == "train":
            assert r"/train\x1b[31mred\nerror: all is lost.tar: cannot be read" in done.stdout


def test_labels_of_shards_are_kept_with_the_drawings(tmp_path: Path, run: Path, pairs: Path) -> None:
    labels = {"val": {"15": {"style": 2}, "18": {"style": 0}}}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    source = replace(recipe.load(str(pairs)), labels=tmp_path / "labels.json")
    size = json.loads((run / "config.json").read_text())["facts"]["size"]
    pack.pack(source, tmp_path / "shards", size=size, workers=1)
    infer(run, tmp_path / "shards", tmp_path / "out", InferOptions(part="1/1", workers=0))
    merge(tmp_path / "out")
    about = read_finished_infer(tmp_path / "out")
    assert dict(zip(about["names"], about["labels"]["style"], strict=True)) == dict.fromkeys(VAL) | {"15": 2, "18": 0}
    page = report.build(tmp_path / "out", "style").read_text(encoding="utf-8")
    assert "Scores by style" in page
