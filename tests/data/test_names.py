"""Which names are a pair, and what file systems and archives do to names."""

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dist_sketch.data.inputs import inputs
from dist_sketch.data.names import matched, short
from dist_sketch.data.recipe import FilePair, load, pairs, passed_over


@pytest.mark.parametrize(
    ("lines", "sketches", "expected"),
    [
        ("1 2 10", "10 2 1", {"1": "1", "2": "2", "10": "10"}),
        ("0001 0010", "1 10", {"0001": "1", "0010": "10"}),
        ("a01b007 x", "a1b7 y", {"a01b007": "a1b7"}),
        ("1 01", "1 001", {"1": "1"}),  # 01 and 001 are both 1, as 1 is
        ("01 001", "1", {}),
        ("photo_1 photo_2", "sketch_1 sketch_2", {"photo_1": "sketch_1", "photo_2": "sketch_2"}),
        ("image0001", "Sketch1", {"image0001": "Sketch1"}),
        ("7_A", "7_B", {"7_A": "7_B"}),
        (
            "f-005-01 m-008-01",
            "F2-005-01-sz1 M2-008-01-sz1",
            {"f-005-01": "F2-005-01-sz1", "m-008-01": "M2-008-01-sz1"},
        ),
        ("f-005-01 f2-005-01", "F2-005-01-sz1", {}),  # either could be meant
        ("n02381460_2 n02391", "n02381460_3 n02392", {}),  # two sets without pairs
        ("1 2", "3 4", {}),
    ],
)
def test_names_of_pairs(lines: str, sketches: str, expected: dict[str, str]) -> None:
    assert matched(lines.split(), sketches.split()) == expected
    assert matched(sketches.split(), lines.split()) == {sketch: line for line, sketch in expected.items()}


names = st.lists(st.text("ab01_-", min_size=1, max_size=5), unique=True)


@given(names, names)
def test_no_name_has_two_partners(lines: list[str], sketches: list[str]) -> None:
    found = matched(lines, sketches)
    assert set(found) <= set(lines)
    assert set(found.values()) <= set(sketches)
    assert len(set(found.values())) == len(found)
    assert all(found[name] == name for name in set(lines) & set(sketches))
    assert matched(lines[::-1], sketches[::-1]) == found  # their order means nothing


def test_short_names_tell_paths_apart() -> None:
    assert short([("a", "1"), ("b", "2")]) == ["1", "2"]
    assert short([("a", "1"), ("b", "1"), ("b", "2")]) == ["a_1", "b_1", "b_2"]
    assert short([("a", "1"), ("a", "1")]) == ["1", None]
    assert short([("a", "e\u0301")]) == ["\xe9"]
    assert short([]) == []


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), 200).save(path, "JPEG" if path.suffix.lower() == ".jpg" else "PNG")


def test_what_macos_windows_and_network_disks_leave(tmp_path: Path) -> None:
    """In folders of pairs, and in a folder of lines that `infer` draws."""
    for name in ("train_line/0001.JPG", "train_line/0002.jpg", "train_sketch/1.png", "train_sketch/2.PNG"):
        save(tmp_path / name)
    for name in (".DS_Store", "Thumbs.db", "._0001.JPG", "__MACOSX/._0001.JPG", "@eaDir/0001.JPG/SYNO.jpg"):
        (tmp_path / "train_line" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train_line" / name).write_bytes(b"no picture")
    recipe = load(str(tmp_path))
    listed, problems = pairs(recipe)
    assert problems == []
    assert [(p.name, p.line.name, p.sketch and p.sketch.name) for p in listed] == [
        ("0001", "0001.JPG", "1.png"),
        ("0002", "0002.jpg", "2.PNG"),
    ]
    assert passed_over(recipe) == {"train_line": {".db": 1, "hidden files": 2}}
    drawn = [one for one in inputs(tmp_path / "train_line", "val") if isinstance(one, FilePair)]
    assert [one.name for one in drawn] == ["0001", "0002"]


@pytest.mark.parametrize("linked", ["", "A", "A/train", "A/train/é.png", "table.csv"])
def test_links_are_followed_in_all_layouts(tmp_path: Path, linked: str) -> None:
    """Also where one side has composed accents and the other decomposed ones."""
    root = tmp_path / "root"
    save(root / "A/train" / unicodedata.normalize("NFC", "é.png"))
    save(root / "B/train" / unicodedata.normalize("NFD", "é.png"))
    (root / "table.csv").write_text("line,sketch\nA/train/é.png,B/train/é.png\n")
    os.rename(root / linked, tmp_path / "elsewhere")
    (root / linked).symlink_to(tmp_path / "elsewhere")
    for source in (root, root / "table.csv"):
        listed, problems = pairs(load(str(source)))
        assert problems == []
        assert [(p.key, p.line.parent, p.sketch and p.sketch.parent) for p in listed] == [
            ("é", root / "A/train", root / "B/train")
        ]
