import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt

from dist_sketch.core.errors import UserError
from dist_sketch.data.synthetic import dataset as synth
from dist_sketch.data.synthetic import person, portrait


def _pixels(index: int, size: int = 128, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    line, sketch = synth.draw(seed, index, size)
    return np.asarray(line), np.asarray(sketch)


def _hashes(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_draw_is_a_pure_function_of_seed_and_index() -> None:
    (line, sketch), (again_line, again_sketch) = _pixels(5), _pixels(5)
    assert np.array_equal(line, again_line)
    assert np.array_equal(sketch, again_sketch)
    for other in (_pixels(6), _pixels(5, seed=4)):
        assert np.mean(line != other[0]) > 0.05
        assert np.mean(np.abs(sketch.astype(int) - other[1]) > 16) > 0.05


@pytest.mark.parametrize("size", [64, 100, 256, 520])
def test_size_and_mode(size: int) -> None:
    for image in synth.draw(0, 1, size):
        assert (image.mode, image.size) == ("L", (size, size))


def test_both_sizes_show_the_same_face() -> None:
    small, large = synth.draw(3, 2, 64)[1], synth.draw(3, 2, 256)[1].resize((64, 64), Image.Resampling.BOX)
    assert np.corrcoef(np.ravel(small), np.ravel(large))[0, 1] > 0.9


@pytest.mark.parametrize("index", range(8))
def test_line_is_ink_on_white_and_sketch_has_tones(index: int) -> None:
    line, sketch = _pixels(index, 256)
    assert np.median(line) == 255
    assert 0.015 < np.mean(line < 128) < 0.2
    assert np.mean((line > 60) & (line < 245)) < 0.12  # strokes, not shading
    assert line.min() < 60
    assert 215 < np.median(sketch[:40, :20]) < 252  # the paper
    assert np.mean((sketch > 90) & (sketch < 210)) > 0.1
    assert sketch.min() < 90


def test_every_kind_is_drawn_as_a_portrait() -> None:
    faces = [person.person(np.random.default_rng(i)) for i in range(300)]
    for field, kinds in (("hair", person.HAIR), ("beard", person.BEARD), ("collar", person.COLLAR)):
        assert {getattr(f, field) for f in faces} == {name for name, *_ in kinds}
        for name, *_ in kinds:
            face = next(f for f in faces if getattr(f, field) == name)
            layers = portrait.portrait(face, np.random.default_rng(0))
            line = np.asarray(synth.render_line(layers, 64, np.random.default_rng(0)))
            sketch = np.asarray(synth.render_sketch(layers, 64, face.paper, np.random.default_rng(0)))
            assert np.mean(line < 160) > 0.02, name
            assert sketch[16:48, 16:48].mean() < sketch[:8, :8].mean() - 10, name


def test_both_sides_are_the_same_face() -> None:
    pairs = [_pixels(i) for i in range(6)]

    def hits(line: np.ndarray, sketch: np.ndarray) -> float:
        """Share of the line's ink that lies within 1.5 px of a dark pixel of the sketch."""
        return float(np.mean(distance_transform_edt(sketch > 150)[line < 128] <= 1.5))

    own = [hits(*p) for p in pairs]
    for i, (line, _) in enumerate(pairs):
        assert own[i] > 0.75
        assert own[i] > 0.05 + max(hits(line, sketch) for j, (_, sketch) in enumerate(pairs) if j != i)


def test_write_names_splits_and_same_bytes_again(tmp_path: Path) -> None:
    synth.write(tmp_path, count=3, val=2, size=64, seed=9, workers=2)
    first = _hashes(tmp_path)
    (tmp_path / "val_line/4.jpg").unlink()
    synth.write(tmp_path, count=3, val=2, size=64, seed=9, workers=1)
    names = {f"train_{side}/{n}.jpg" for side in ("line", "sketch") for n in (1, 2, 3)}
    names |= {f"val_{side}/{n}.jpg" for side in ("line", "sketch") for n in (4, 5)}
    assert set(first) == names
    assert first == _hashes(tmp_path)
    with Image.open(tmp_path / "val_line/5.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
        drawn = np.asarray(synth.draw(9, 5, 64)[0], int)
        assert np.abs(np.asarray(image.convert("L"), int) - drawn).mean() < 4


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"count": 0}, "count"),
        ({"val": -1}, "val"),
        ({"size": 63}, "size"),
        ({"size": 2049}, "size"),
        ({"seed": -1}, "seed"),
        ({"workers": 0}, "workers"),
    ],
)
def test_bad_numbers_are_refused(tmp_path: Path, wrong: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=f"--{says}"):
        synth.write(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_a_file_or_a_folder_with_other_pairs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        synth.write(tmp_path / "file", count=1, val=0)
    other = tmp_path / "train_sketch" / "7.jpg"
    other.parent.mkdir()
    other.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"already holds 1 .*7\.jpg.*another folder"):
        synth.write(tmp_path, count=6, val=1, size=64)
    assert _hashes(tmp_path).keys() == {"file", "train_sketch/7.jpg"}


def own_picture(file: Path, mine: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(file)


def other_seed(file: Path, mine: Path) -> None:
    synth.draw(7, int(file.stem), 64)[0].convert("RGB").save(file, quality=95)


def no_picture(file: Path, mine: Path) -> None:
    file.write_bytes(b"mine")


def link(file: Path, mine: Path) -> None:
    file.symlink_to(mine)


def folder(file: Path, mine: Path) -> None:
    file.mkdir()


@pytest.mark.parametrize("put", [own_picture, other_seed, no_picture, link, folder])
def test_pictures_of_others_stay_as_they_are(tmp_path: Path, put: Callable[[Path, Path], None]) -> None:
    root, mine = tmp_path / "root", tmp_path / "mine.jpg"
    mine.write_bytes(b"mine")
    file = root / "train_sketch" / "2.jpg"
    file.parent.mkdir(parents=True)
    put(file, mine)
    before = _hashes(tmp_path)
    with pytest.raises(UserError, match=rf"^{file}: is another picture than this call would write"):
        synth.write(root, count=3, val=1, size=64, workers=1)
    assert _hashes(tmp_path) == before


def test_what_lies_behind_is_hidden() -> None:
    bar = np.stack([person.S, np.full(person.N, 0.5)], -1)  # across the page, behind a square on its right half
    behind = person.Layer(None, person.both(bar, press=1.0))
    square = person.Layer(np.array([(0.5, 0.2), (0.9, 0.2), (0.9, 0.8), (0.5, 0.8)]))
    line = np.asarray(synth.render_line([behind, square], 128, np.random.default_rng(0)))
    sketch = np.asarray(synth.render_sketch([behind, square], 128, 0.95, np.random.default_rng(0)))
    for page in (line, sketch):
        assert page[56:72, 20:40].min() < 190
        assert page[56:72, 70:110].min() > 225
