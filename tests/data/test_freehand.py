"""Freehand versions: the same ones each time, drawn as people draw, and still the same face."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, write_pairs
from PIL import Image, ImageDraw
from scipy import ndimage

from dist_sketch.core.config import DataConfig
from dist_sketch.core.errors import UserError
from dist_sketch.data import freehand, pack, recipe
from dist_sketch.data.loader import Loader
from dist_sketch.data.manifest import read_manifest
from dist_sketch.data.prepare import Pictures
from dist_sketch.data.shards import Shards
from dist_sketch.data.verify import verify


def head(size: int = 128) -> freehand.Pixels:
    """A few thin curves, uint8 (1, size, size)."""
    image = Image.new("L", (4 * size, 4 * size), 255)
    draw, unit = ImageDraw.Draw(image), size / 64
    width = round(3 * unit)
    for box in ((60, 30, 196, 226), (90, 100, 115, 115), (140, 100, 165, 115), (105, 170, 150, 190)):
        draw.arc([unit * at for at in box], 0, 360, 0, width)
    draw.line([unit * at for at in (128, 110, 118, 150, 132, 152)], 0, width)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))[None]


@pytest.fixture(scope="module")
def drawn() -> freehand.Pixels:
    """Many versions of a head, (N, H, W)."""
    return freehand.versions(head(), 0, 80, "k")[:, 0]


def test_a_version_depends_on_seed_number_and_key_alone(drawn: freehand.Pixels) -> None:
    line = head()
    kept = line.copy()
    again = [freehand.version(line, *which)[0] for which in ((0, 0, "k"), (0, 1, "k"), (1, 0, "k"), (0, 0, "l"))]
    assert np.array_equal(again[0], drawn[0])
    assert np.array_equal(again[1], drawn[1])
    assert len({image.tobytes() for image in again}) == 4
    assert np.array_equal(line, kept)


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 64, 64), (3, 40, 90), (1, 300, 257), (1, 1, 1)])
def test_any_size_and_both_numbers_of_channels(shape: tuple[int, int, int]) -> None:
    line = np.full(shape, 255, np.uint8)
    line[:, shape[1] // 2] = 0
    for number in range(4):
        image = freehand.version(line, 0, number, "k")
        assert image.shape == shape
        assert image.dtype == np.uint8
        assert (image == image[:1]).all()
        assert np.array_equal(freehand.version(line[:1], 0, number, "k")[0], image[0])


def test_the_strokes_lie_near_the_lines_and_most_lines_are_there(drawn: freehand.Pixels) -> None:
    lines = head()[0] < 128
    away = ndimage.distance_transform_edt(~lines)
    covered = []
    for image in drawn:
        paper = np.median(image)
        assert 210 <= paper <= 255
        ink = (paper - image.astype(float)).clip(0)
        strokes = ink > 0.4 * np.quantile(ink, 0.98)
        assert (away[strokes] < 6).mean() > 0.75  # the others are stray strokes, and shadow
        near = ndimage.binary_dilation(strokes, iterations=4)
        covered.append((near & lines).sum() / lines.sum())
    assert min(covered) > 0.3
    assert np.mean(covered) > 0.85


def test_some_are_nearly_clean_and_others_thick_pale_broken_or_on_gray_paper(drawn: freehand.Pixels) -> None:
    line = head()[0]
    paper = np.median(drawn, (1, 2))
    darkest = drawn.min((1, 2))
    inked = (drawn < paper[:, None, None] * 0.7).mean((1, 2)) / (line < 180).mean()
    assert 0.3 < (paper < 253).mean() < 0.7
    assert 0.1 < (darkest > 80).mean() < 0.6
    assert (inked > 2.2).any()
    assert (inked < 0.8).any()
    clean = (darkest < 40) & (paper > 252) & (inked > 0.7) & (inked < 1.8)
    assert 0.03 < clean.mean() < 0.4


def test_a_page_without_lines_gets_no_more_than_stray_strokes() -> None:
    for number in range(20):
        image = freehand.version(np.full((1, 64, 64), 255, np.uint8), 0, number, "k")
        assert (image < 200).mean() < 0.1


def test_half_of_the_lines_of_an_epoch_are_versions_and_nothing_else_changes(shards: Path) -> None:
    opened, plain = Shards(shards, "train"), DataConfig(batch_size=1, workers=0, channels=1, flip=True, shift=True)
    changed = 0
    loaders = [Loader(opened, d, seed=3, rank=0, world_size=1) for d in (plain, replace(plain, freehand=2))]
    for epoch in range(4):
        for clean, batch in zip(*(loader.epoch(epoch) for loader in loaders), strict=True):
            assert clean.keys == batch.keys
            assert torch.equal(clean.sketch, batch.sketch)
            changed += not torch.equal(clean.line, batch.line)
    assert 14 < changed < 38  # of 52


def test_pack_draws_the_first_version_of_each_line(cli: Run, tmp_path: Path) -> None:
    source = write_pairs(tmp_path / "source", 2, 2)
    pack.pack(recipe.load(str(source)), tmp_path / "clean", size=64, workers=1)
    done = cli("pack", source, "--out", tmp_path / "drawn", "--size", 64, "--workers", 1, "--freehand", 7)
    assert done.returncode == 0, done.stderr
    assert "freehand" not in read_manifest(tmp_path / "clean")["settings"]
    assert read_manifest(tmp_path / "drawn")["settings"]["freehand"] == 7
    for split in ("train", "val"):
        clean, drawn = (Shards(tmp_path / name, split) for name in ("clean", "drawn"))
        for i, key in enumerate(clean.keys):
            one, other = clean.read(i, 1), drawn.read(i, 1)
            assert np.array_equal(other.line.numpy(), freehand.version(one.line.numpy(), 7, 0, str(key)))
            assert one.sketch is not None
            assert other.sketch is not None
            assert torch.equal(one.sketch, other.sketch)
    assert verify(tmp_path / "drawn") == {"train": 2, "val": 2}
    assert pack.holds(tmp_path / "drawn", recipe.load(str(source)), Pictures(size=64, freehand=7))
    with pytest.raises(UserError, match=r"drawn: holds shards packed with freehand 7; --force replaces them$"):
        pack.holds(tmp_path / "drawn", recipe.load(str(source)), Pictures(size=64))
    with pytest.raises(UserError, match=r"^freehand = -1: must be 0 or more$"):
        pack.pack(recipe.load(str(source)), tmp_path / "other", freehand=-1)
