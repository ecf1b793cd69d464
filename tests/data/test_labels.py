import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, write_pairs

from dist_sketch.core.errors import UserError
from dist_sketch.data.manifest import MANIFEST, read_index, read_labels, read_manifest
from dist_sketch.data.pack import holds, pack
from dist_sketch.data.prepare import Pictures
from dist_sketch.data.recipe import load
from dist_sketch.data.shards import Shards
from dist_sketch.data.shards import _members as members
from dist_sketch.data.sources import labels_of

LABELS = {
    "train": {"1": {"style": 2, "by": "Zoë"}, "3": {"style": 0}, "gone": {"style": 1}},
    "val": {"4": {"style": 1, "smile": True, "age": 0.5}},
}


def source(root: Path, labels: Any = LABELS) -> Path:
    write_pairs(root, 3, 1)
    if labels is not None:
        (root / "annotations.json").write_text(json.dumps(labels))
    return root


def do(root: Path, out: Path, **options: Any) -> dict[str, Any]:
    return pack(load(str(root)), out, size=64, workers=1, **options)


def labels_in(folder: Path, split: str = "train") -> dict[str, list[Any]]:
    return read_labels(folder, read_manifest(folder), split)


def test_labels_stand_in_the_samples_and_in_the_manifest(tmp_path: Path, capsys) -> None:
    do(source(tmp_path / "data"), tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert list(read_index(tmp_path / "out", manifest, "train").keys) == ["1", "2", "3"]
    assert labels_in(tmp_path / "out") == {"style": [2, None, 0], "by": ["Zoë", None, None]}
    assert labels_in(tmp_path / "out", "val") == {"style": [1], "smile": [True], "age": [0.5]}
    said = capsys.readouterr().out
    assert "no pairs have the names of 1 entries: train/gone\n" in said
    shards = Shards(tmp_path / "out", "train")
    block = (tmp_path / "out" / "train-000000.tar").read_bytes()[: shards.lengths[0]]
    about = json.loads(dict(members(block))["1.json"])
    assert about["labels"] == {"style": 2, "by": "Zoë"}
    assert shards.read(0, 1).name == "1"
    found = labels_of(tmp_path / "out", "train", ["3", "other", "1"])
    assert found == {"style": [0, None, 2], "by": [None, None, "Zoë"]}


def test_without_labels_the_shards_are_as_before(tmp_path: Path) -> None:
    do(source(tmp_path / "data", None), tmp_path / "out")
    assert "labels" not in (tmp_path / "out" / MANIFEST).read_text()
    assert labels_of(tmp_path / "out", "train", ["1"]) == {}


def test_labels_stay_with_pairs_that_become_validation_pairs(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", 2, 0)
    labels = {"train": {"1": {"style": 1}, "2": {"style": 2}}}
    (tmp_path / "data" / "annotations.json").write_text(json.dumps(labels))
    pack(load(str(tmp_path / "data"), val_fraction=1.0), tmp_path / "out", size=64, workers=1)
    assert labels_in(tmp_path / "out", "val") == {"style": [1, 2]}


def test_a_recipe_and_the_command_name_the_file(tmp_path: Path, cli: Run) -> None:
    source(tmp_path / "data", None)
    (tmp_path / "data" / "more").mkdir()
    (tmp_path / "data" / "more" / "l.json").write_text(json.dumps({"train": {"2": {"style": 5}}}))
    text = 'name = "x"\nlabels = "{}"\n[splits.train]\nline = "train_line"\nsketch = "train_sketch"\n'
    (tmp_path / "r.toml").write_text(text.format("more/l.json"))
    pack(load(str(tmp_path / "r.toml"), tmp_path / "data"), tmp_path / "out", size=64, workers=1)
    assert labels_in(tmp_path / "out") == {"style": [None, 5, None]}
    (tmp_path / "r.toml").write_text(text.format("../l.json"))
    with pytest.raises(UserError, match=r"the path \.\./l\.json must be relative to"):
        load(str(tmp_path / "r.toml"), tmp_path / "data")
    command = ("pack", tmp_path / "data", "--out", tmp_path / "cli", "--size", "64", "--workers", "1", "--labels")
    assert cli(*command, tmp_path / "data" / "more" / "l.json").returncode == 0
    assert labels_in(tmp_path / "cli") == {"style": [None, 5, None]}


def test_shards_with_other_labels_are_kept_with_a_warning(tmp_path: Path, capsys) -> None:
    do(source(tmp_path / "data"), tmp_path / "out")
    capsys.readouterr()
    assert holds(tmp_path / "out", load(str(tmp_path / "data")), Pictures(size=64))
    assert "warning" not in capsys.readouterr().out
    source(tmp_path / "data", {"train": {"1": {"style": 7}}})
    assert holds(tmp_path / "out", load(str(tmp_path / "data")), Pictures(size=64))
    assert "holds other labels than" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1], "is not a table of splits"),
        ({"training": {}}, "'training': a split is one of train, val, test"),
        ({"train": {"1": 3}}, "train.1 = 3: must be of type dict"),
        ({"train": {"1": {"style": {"a": 1}}}}, "train.1.style = .*: must be a number, true, false, or a text"),
        ({"train": {"1": {"style": [1]}}}, "train.1.style = "),
        ({"train": {"1": {"style": "x" * 101}}}, "a text of up to 100 printable characters"),
        ({"train": {"1": {"": 1}}}, "must be a name of 1 to 100 printable characters"),
        ({"train": {"1": {str(i): 1 for i in range(101)}}}, "more than 100 different labels"),
        ({"train": {"\u00e9": {}, "e\u0301": {}}}, "is there twice"),
    ],
)
def test_what_is_no_file_of_labels_is_a_sentence(tmp_path: Path, labels: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        do(source(tmp_path / "data", labels), tmp_path / "out")
    assert "annotations.json" in str(error.value)
    assert not (tmp_path / "out").exists()
