import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import write_json
from dist_sketch.reports.sheet import GAP, HEADER, write_sheet

SIZE = 64
TONES = {"line": 250, "sketch": 120, "real": 60}
NAMES = ["a", "b", "c.d"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Three faces of one tone a folder, which is one level darker from face to face."""
    for folder, tone in TONES.items():
        (tmp_path / folder).mkdir()
        for i, name in enumerate(NAMES):
            Image.new("L", (SIZE, SIZE), tone - i).save(tmp_path / folder / f"{name}.png")
    write_json(tmp_path / "infer.json", {"names": NAMES, "format": "png", "size": SIZE})
    return tmp_path


def tones(sheet: np.ndarray, row: int, place: int) -> list[int]:
    """The tones in the middle of line, drawn and real."""
    top, left = HEADER + row * (SIZE + GAP), place * (3 * SIZE + GAP)
    return [int(sheet[top + SIZE // 2, left + column * SIZE + SIZE // 2, 0]) for column in range(3)]


def test_faces_stand_in_the_order_in_which_they_are_named(out: Path) -> None:
    write_sheet(out, ["c.d", "a", "b"], out / "sheet.png")
    sheet = np.array(Image.open(out / "sheet.png"))
    assert sheet.shape == (HEADER + 2 * SIZE + GAP, 2 * 3 * SIZE + GAP, 3)
    assert [tones(sheet, 0, 0), tones(sheet, 0, 1), tones(sheet, 1, 0)] == [
        [248, 118, 58],
        [250, 120, 60],
        [249, 119, 59],
    ]
    assert (sheet[HEADER + SIZE :, 3 * SIZE + GAP :] == 255).all()  # there is no fourth face
    for left in range(0, 3 * SIZE, SIZE):  # the labels
        assert sheet[:HEADER, left : left + SIZE].min() < 100


def test_the_first_faces_are_the_default_and_large_drawings_are_reduced(out: Path) -> None:
    Image.new("L", (2 * SIZE, 3 * SIZE), 33).save(out / "sketch" / "a.png")
    write_sheet(out, [], out / "sheet.jpg")
    sheet = np.array(Image.open(out / "sheet.jpg"))
    assert tones(sheet, 0, 0) == pytest.approx([250, 33, 60], abs=2)


def test_what_cannot_be_written_is_a_sentence(out: Path) -> None:
    with pytest.raises(UserError, match="has no face x; its faces are a, b"):
        write_sheet(out, ["a", "x"], out / "sheet.png")
    with pytest.raises(UserError, match=r"sheet\.gif: a sheet is a \.png or \.jpg file"):
        write_sheet(out, ["a"], out / "sheet.gif")
    (out / "sketch" / "b.png").unlink()
    with pytest.raises(UserError, match=r"b\.png"):
        write_sheet(out, ["b"], out / "sheet.png")
    with pytest.raises(UserError, match="no drawings with real sketches"):
        write_sheet(out / "line", ["a"], out / "sheet.png")
    assert not (out / "sheet.png").exists()


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.JPEG"])
def test_only_a_sheet_is_replaced(out: Path, name: str) -> None:
    Image.new("RGB", (9, 9), "red").save(out / name)
    photo = (out / name).read_bytes()
    with pytest.raises(UserError, match=rf"{name}: was not written by this command, and would be lost"):
        write_sheet(out, ["a"], out / name)
    assert (out / name).read_bytes() == photo
    (out / name).unlink()
    write_sheet(out, ["a"], out / name)
    before = (out / name).read_bytes()
    write_sheet(out, ["a", "b"], out / name)
    assert (out / name).read_bytes() != before


@pytest.mark.parametrize("kind", ["pipe", "link", "dead link", "folder"])
def test_what_is_no_file_is_not_replaced(out: Path, kind: str) -> None:
    sheet, other = out / "sheet.png", out / "other.png"
    if kind == "pipe":
        os.mkfifo(sheet)
    elif kind == "folder":
        sheet.mkdir()
    else:
        sheet.symlink_to(other)
    if kind == "link":
        write_sheet(out, ["a"], other)
    before = os.lstat(sheet)
    with pytest.raises(UserError, match=r"sheet\.png: is not a regular file, and is not replaced"):
        write_sheet(out, ["a"], sheet)
    assert os.lstat(sheet).st_ino == before.st_ino
