"""Tables of pairs: what they may hold, and what is wrong with others."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, write_pairs
from hypothesis import given
from hypothesis import strategies as st

from dist_sketch.core.errors import UserError
from dist_sketch.data.inputs import inputs
from dist_sketch.data.manifest import read_labels, read_manifest
from dist_sketch.data.recipe import FilePair, load, pairs, passed_over


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training pairs and one validation pair: train_line/1.png ...; tests may add files beside the folders."""
    return write_pairs(tmp_path_factory.mktemp("tables"), 2, 1)


def table(data: Path, text: str, name: str = "pairs.csv") -> Path:
    (data / name).write_text(text, encoding="utf-8")
    return data / name


def rows(path: Path) -> list[tuple[Any, ...]]:
    listed, problems = pairs(load(str(path)))
    assert problems == []
    return [(p.split, p.name, p.line.parent.name, p.sketch and p.sketch.parent.name, p.labels) for p in listed]


LINE, SKETCH = "train_line", "train_sketch"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "line,sketch,style\ntrain_line/1.png,train_sketch/1.png,2\ntrain_line/2.png,train_sketch/2.png,\n"),
        (
            "b.csv",
            "\ufeffSketch;Line;style\r\ntrain_sketch/1.png;train_line/1.png;2\r\ntrain_sketch/2.png;train_line/2.png;\r\n",
        ),
        ("c.tsv", "photo\ttarget_path\tstyle\ntrain_line/1\ttrain_sketch/1\t2\ntrain_line/2\ttrain_sketch/2\t\n"),
        (
            "d.jsonl",
            '{"line_file_name": "train_line/1.png", "file_name": "train_sketch/1.png", "style": 2}\n\n'
            '{"line_file_name": "train_line/2.png", "file_name": "train_sketch/2.png"}\n',
        ),
        (
            "e.json",
            '[{"input_image": "train_line/1.png", "output_image": "train_sketch/1.png", "style": 2},\n'
            '{"input_image": "train_line/2.png", "output_image": "train_sketch/2.png", "style": null}]',
        ),
    ],
)
def test_forms_of_tables(data: Path, name: str, text: str) -> None:
    assert rows(table(data, text, name)) == [
        ("train", "1", LINE, SKETCH, {"style": 2}),
        ("train", "2", LINE, SKETCH, {}),
    ]


def test_columns_become_labels_of_one_kind(data: Path) -> None:
    path = table(
        data,
        "line,sketch,split,number,real,yes,name,zero,source,caption\n"
        "train_line/1.png,train_sketch/1.png,training,1,1,TRUE,Zoë,007,web,short\n"
        f"train_line/2.png,train_sketch/2.png,,-2,2.5,false,3,1,,{'long ' * 30}\n"
        "val_line/3.png,val_sketch/3.png,Validation,3,,,,,,\n",
    )
    found = rows(path)
    assert [row[:2] for row in found] == [("train", "1"), ("train", "2"), ("val", "3")]
    assert [row[4] for row in found] == [
        {"number": 1, "real": 1.0, "yes": True, "name": "Zoë", "zero": "007", "source": "web"},
        {"number": -2, "real": 2.5, "yes": False, "name": "3", "zero": "1"},
        {"number": 3},
    ]
    assert passed_over(load(str(path))) == {"pairs.csv": {"columns that cannot be labels (caption)": 1}}
    with pytest.raises(UserError, match=r"val fraction.*: .*pairs\.csv has several splits already"):
        pairs(load(str(path), val_fraction=0.5))


def test_the_first_folder_is_the_split(data: Path) -> None:
    files = [data / part / f"{side}.png" for part in ("train", "valid") for side in ("line", "sketch")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    text = "line,sketch\n./train/line.png,./train/sketch.png\n./valid/line.png,valid/sketch.png\n"
    assert [row[0] for row in rows(table(data, text))] == ["train", "val"]


def test_names_are_as_long_as_they_must_be(data: Path) -> None:
    both = "line,sketch\ntrain_line/1.png,train_sketch/1.png\ntrain_sketch/1.png,train_line/1.png\n"
    assert [row[1] for row in rows(table(data, both))] == ["train_line_1", "train_sketch_1"]
    share = [p.split for p in pairs(load(str(data / "pairs.csv"), None, 0.5))[0]]
    one = table(data, "line,sketch\ntrain_line/1.png,train_sketch/1.png\n")
    assert [p.split for p in pairs(load(str(one), None, 0.5))[0]] == share[:1]  # also when its name gets shorter


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no rows; its rows need a line and a sketch"),
        ("line,sketch\n", "has no rows"),
        ("drawing\ntrain_line/1.png\n", "of its columns drawing, none or several could be a side"),
        ("photo,edge,sketch\na,b,c\n", "of its columns photo, edge, sketch, none or several could be a side"),
        ("line,sketch\na.png\n", "row 2 has not as many cells as the first row"),
        ('line,sketch\n"a.png,b\n', "is not a table"),
        (
            "line,sketch\n../a.png,train_sketch/1.png\n",
            r"row 2: the path \.\./a\.png must be relative to .*, and not leave it",
        ),
        (
            "line,sketch\n/etc/a.png,train_sketch/1.png\n",
            r"row 2: the path /etc/a\.png must be relative to .*, and not leave it",
        ),
        ("line,sketch\n,train_sketch/1.png\n", "row 2: line: must be the path of a picture"),
        ("line,sketch,split\ntrain_line/1.png,train_sketch/1.png,extra\n", "split 'extra': must be train, val or test"),
        (
            f"line,sketch,{','.join(map(str, range(101)))}\na.png,b.png{',1' * 101}\n",
            "has 101 columns of labels, and 100 can be kept",
        ),
        (
            "line,sketch,split\ntrain_line/1.png,,test\ntrain_line/2.png,train_sketch/2.png,test\n",
            "some test pairs have a sketch and others none",
        ),
    ],
)
def test_what_is_no_table_of_pairs_is_a_sentence(data: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        pairs(load(str(table(data, text))))
    assert "pairs.csv" in str(error.value)


@pytest.mark.parametrize("text", ["[1]", '{"line": 1, "sketch": "b"}', '{"line": ', "\xff"])
def test_what_is_no_json_table_is_a_sentence(data: Path, text: str) -> None:
    (data / "pairs.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"pairs\.jsonl(: is not a table|, row 1: line: must be the path)"):
        pairs(load(str(data / "pairs.jsonl")))


def test_a_bad_line_of_json_lines_is_named(data: Path) -> None:
    good = '{"line": "train_line/1.png", "sketch": "train_sketch/1.png", "note": "two\u2028lines"}\n'
    (data / "pairs.jsonl").write_text(good)
    assert [row[1] for row in rows(data / "pairs.jsonl")] == ["1"]
    (data / "pairs.jsonl").write_text(good + '{"line": }\n')
    with pytest.raises(UserError, match=r"pairs\.jsonl: is not a table \(row 2: "):
        pairs(load(str(data / "pairs.jsonl")))


def test_rows_without_pictures_are_problems(data: Path) -> None:
    path = table(
        data,
        "line,sketch\ntrain_line/1.png,train_sketch/9.png\ntrain_line/1.png,\ntrain_line/2.png,train_sketch/2.png\n"
        "train_line/2.png,train_sketch/2.png\ntrain_line/2.jpg,train_sketch/2.png\n",
    )
    listed, problems = pairs(load(str(path)))
    assert [p.name for p in listed] == ["2"]
    assert [(p.file, p.why) for p in problems] == [
        ("pairs.csv, row 2", "train_sketch/9.png: there is no such picture"),
        ("pairs.csv, row 3", "has no sketch: training needs both"),
        ("pairs.csv, row 6", "train_line/2.jpg: there is no such picture"),
        ("pairs.csv, row 5", "train_line/2.png: is there twice in train"),
    ]


def test_a_table_is_packed_with_its_labels(data: Path, tmp_path: Path, cli: Run) -> None:
    text = "line,sketch,split,style\ntrain_line/1.png,train_sketch/1.png,train,a\nval_line/3.png,,val,b\n"
    path = table(data, text, "packed.csv")
    done = cli("pack", path, "--out", tmp_path / "out", "--size", 64)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{data}: layout table (packed.csv): 1 train, 1 val pairs; labels: style\n")
    manifest = read_manifest(tmp_path / "out")
    assert [read_labels(tmp_path / "out", manifest, split) for split in manifest["splits"]] == [
        {"style": ["a"]},
        {"style": ["b"]},
    ]
    assert manifest["splits"]["val"]["has_sketch"] is False


def test_infer_takes_the_rows_of_a_split(data: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").symlink_to(data)
    rows = [
        {"line": f"pictures/{split}_line/{n}.png", "sketch": f"pictures/{split}_sketch/{n}.png", "split": split}
        for split, n in (("train", 1), ("val", 3))
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for source in (tmp_path, tmp_path / "metadata.jsonl"):
        (pair,) = inputs(source, "val")
        assert isinstance(pair, FilePair)
        assert (pair.name, pair.line) == ("3", tmp_path / "pictures/val_line/3.png")
    with pytest.raises(UserError, match=r"has no split test; it has train, val \(choose with --split\)"):
        inputs(tmp_path, "test")


CELL = st.sampled_from(["train_line/1.png", "train_sketch/1.png", "..", "a\0b", "1", "-0.5e3", "true", "1_0", "", "é"])
COLUMN = st.sampled_from(["line", "sketch", "split", "file_name", "image", "style", "", "x" * 200]) | st.text(
    max_size=3
)
ROW = st.dictionaries(COLUMN, CELL | st.integers() | st.floats() | st.lists(st.none()), max_size=4)
TEXT = (
    st.lists(ROW, max_size=3).map(json.dumps)
    | st.lists(ROW, max_size=3).map(lambda found: "\n".join(map(json.dumps, found)))
    | st.lists(st.lists(CELL | COLUMN, max_size=4), max_size=3).map(lambda found: "\n".join(map(",".join, found)))
    | st.text(max_size=30)
)


@given(TEXT, st.sampled_from([".csv", ".tsv", ".jsonl", ".json"]))
def test_whatever_stands_in_a_table_gives_pairs_or_a_sentence(data: Path, text: str, suffix: str) -> None:
    (data / f"any{suffix}").write_text(text, encoding="utf-8", errors="replace")
    with suppress(UserError):
        listed, _ = pairs(load(str(data / f"any{suffix}")))
        assert len({(p.split, p.key) for p in listed}) == len(listed)
        assert all(p.line.is_file() for p in listed)
