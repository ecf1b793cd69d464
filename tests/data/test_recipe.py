import os
import unicodedata
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dist_sketch.core.errors import UserError
from dist_sketch.data.inputs import inputs
from dist_sketch.data.recipe import (
    FilePair,
    Problem,
    encode_key,
    load,
    natural,
    pairs,
    passed_over,
    told,
)


def save(path: Path, value: int = 200, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path, **options)
    return path


def source(root: Path, train: list[str], val: list[str] = ()) -> Path:
    for split, names in (("train", train), ("val", val)):
        for name in names:
            save(root / f"{split}_line" / name)
            save(root / f"{split}_sketch" / name)
    return root


# --- pairs ---


def test_pairs_by_name_in_natural_order(tmp_path: Path) -> None:
    source(tmp_path, [f"{i}.png" for i in (10, 2, 1, 9, 100)], ["b.png", "a.png"])
    found, problems = pairs(load(str(tmp_path)))
    assert problems == []
    assert [(p.split, p.name) for p in found] == [("train", n) for n in ("1", "2", "9", "10", "100")] + [
        ("val", "a"),
        ("val", "b"),
    ]
    assert all(p.sketch is not None and p.line.stem == p.sketch.stem == p.name for p in found)


def test_extensions_may_differ_between_the_halves(tmp_path: Path) -> None:
    source(tmp_path, ["1.png"])
    save(tmp_path / "train_line" / "2.JPG", format="JPEG")
    save(tmp_path / "train_sketch" / "2.jpeg")
    found, problems = pairs(load(str(tmp_path)))
    assert problems == []
    assert (found[1].line.name, found[1].sketch.name) == ("2.JPG", "2.jpeg")


def test_odd_names(tmp_path: Path) -> None:
    names = ["a.b.c", "with space", "Zoë Ångström", "人物", "100%", "x%2Ey"]
    source(tmp_path, [f"{n}.png" for n in names])
    found, problems = pairs(load(str(tmp_path)))
    assert problems == []
    assert {p.name for p in found} == set(names)
    assert {p.key for p in found} == {"a%2Eb%2Ec", "with space", "Zoë Ångström", "人物", "100%25", "x%252Ey"}


def test_decomposed_accents_pair_with_composed_ones(tmp_path: Path) -> None:
    save(tmp_path / "train_line" / unicodedata.normalize("NFD", "é.png"))
    save(tmp_path / "train_sketch" / unicodedata.normalize("NFC", "é.png"))
    found, problems = pairs(load(str(tmp_path)))
    assert problems == []
    assert [p.key for p in found] == [unicodedata.normalize("NFC", "é")]


def test_what_is_passed_over_is_counted_by_kind(tmp_path: Path) -> None:
    source(tmp_path, ["1.png"])
    for name in ("README.txt", ".DS_Store", "notes.TXT", "._1.png", "noext", "2.avif", "a.b.heic"):
        (tmp_path / "train_line" / name).write_bytes(b"no image")
    for name in ("more/2.png", "more/deep/3.JPG", "more/note.txt"):
        (tmp_path / "train_sketch" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train_sketch" / name).write_bytes(b"")
    recipe = load(str(tmp_path))
    assert [p.name for p in pairs(recipe)[0]] == ["1"]
    found = passed_over(recipe)
    assert found == {
        "train_line": {".avif": 1, ".heic": 1, ".txt": 2, "hidden files": 2, "without an extension": 1},
        "train_sketch": {"pictures in sub-folders": 2},
    }
    assert told(found)[1] == "train_sketch: 2 pictures in sub-folders"


def test_folders_of_the_recipe_are_not_passed_over(tmp_path: Path) -> None:
    save(tmp_path / "data/1.png")
    save(tmp_path / "data/sketches/1.png")
    (tmp_path / "r.toml").write_text('name = "x"\n[splits.train]\nline = "."\nsketch = "sketches"\n')
    recipe = load(str(tmp_path / "r.toml"), tmp_path / "data")
    assert (len(pairs(recipe)[0]), passed_over(recipe)) == (1, {})


@pytest.mark.parametrize("extension", [".jfif", ".jpe", ".JPEG", ".pnm"])
def test_all_names_of_a_format_are_read(tmp_path: Path, extension: str) -> None:
    source(tmp_path, ["1.png"])
    for side in ("line", "sketch"):
        save(tmp_path / f"train_{side}" / f"2{extension}", format="PPM" if extension == ".pnm" else "JPEG")
    assert [p.line.name for p in pairs(load(str(tmp_path)))[0]] == ["1.png", f"2{extension}"]


def test_missing_partner(tmp_path: Path) -> None:
    source(tmp_path, ["1.png", "2.png", "3.png"])
    (tmp_path / "train_sketch" / "2.png").unlink()
    (tmp_path / "train_line" / "3.png").unlink()
    found, problems = pairs(load(str(tmp_path)))
    assert [p.name for p in found] == ["1"]
    assert problems == [
        Problem("train_line/2.png", "has no partner in train_sketch: no image there is named 2"),
        Problem("train_sketch/3.png", "has no partner in train_line: no image there is named 3"),
    ]


def test_duplicate_stems_are_one_problem(tmp_path: Path) -> None:
    source(tmp_path, ["1.png", "2.png"])
    save(tmp_path / "train_line" / "1.jpg")
    found, problems = pairs(load(str(tmp_path)))
    assert [p.name for p in found] == ["2"]
    assert problems == [Problem("train_line/1.jpg", "has the same name as 1.png beside it: keep one of them")]


@pytest.mark.parametrize("linked", ["", "train_line", "train_line/1.png"], ids=["root", "folder", "file"])
def test_links_are_followed(tmp_path: Path, linked: str) -> None:
    root = source(tmp_path / "root", ["1.png", "2.png"])
    (root / linked).rename(tmp_path / "elsewhere")
    (root / linked).symlink_to(tmp_path / "elsewhere")
    found, problems = pairs(load(str(root)))
    assert ([p.name for p in found], problems) == (["1", "2"], [])
    assert found[0].line == root / "train_line/1.png"  # the name is the link's


def test_name_that_leaves_its_folder(tmp_path: Path) -> None:
    source(tmp_path, ["1.png"])
    save(tmp_path / "train_line" / "..\\5.png")
    found, problems = pairs(load(str(tmp_path)))
    assert [p.name for p in found] == ["1"]
    assert problems == [Problem("train_line/..\\5.png", "its name leaves its folder: rename it")]


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    source(tmp_path, ["1.png"])
    open(os.fsencode(tmp_path / "train_line") + b"/\xff.png", "wb").close()
    found, problems = pairs(load(str(tmp_path)))
    assert [p.name for p in found] == ["1"]
    assert problems == [Problem("train_line/\\udcff.png", "its name is not valid UTF-8: rename it")]


@pytest.mark.parametrize("content", [None, "README.txt"])
def test_empty_folder(tmp_path: Path, content: str | None) -> None:
    source(tmp_path, ["1.png"])
    (tmp_path / "train_sketch" / "1.png").unlink()
    if content:
        (tmp_path / "train_sketch" / content).touch()
    with pytest.raises(UserError, match=r"train_sketch: the folder is empty: no file in it ends in \.bmp") as e:
        pairs(load(str(tmp_path)))
    assert ("passed over: train_sketch: 1 .txt" in str(e.value)) == (content is not None)


def test_val_fraction_is_stable(tmp_path: Path) -> None:
    source(tmp_path, [f"{i}.png" for i in range(60)])
    split = {p.name: p.split for p in pairs(load(str(tmp_path), val_fraction=0.25))[0]}
    assert 5 <= list(split.values()).count("val") <= 25
    assert split["8"] == "val"  # fixed here, because another hash would move pairs between splits
    assert split["1"] == "train"
    source(tmp_path, [f"{i}.png" for i in range(60, 70)])
    grown = {p.name: p.split for p in pairs(load(str(tmp_path), val_fraction=0.25))[0]}
    assert split.items() <= grown.items()
    more = {p.name: p.split for p in pairs(load(str(tmp_path), val_fraction=0.5))[0]}
    assert {n for n, s in split.items() if s == "val"} < {n for n, s in more.items() if s == "val"}
    assert {p.split for p in pairs(load(str(tmp_path), val_fraction=1.0))[0]} == {"val"}
    assert {p.split for p in pairs(load(str(tmp_path)))[0]} == {"train"}
    # A test split takes other pairs, and leaves the validation split as it is
    three = {p.name: p.split for p in pairs(load(str(tmp_path), val_fraction=0.25, test_fraction=0.3))[0]}
    assert {n for n, s in three.items() if s == "val"} == {n for n, s in grown.items() if s == "val"}
    assert 10 <= list(three.values()).count("test") <= 32
    assert {p.split for p in pairs(load(str(tmp_path), val_fraction=0.25, test_fraction=0.75))[0]} == {"val", "test"}
    with pytest.raises(UserError, match=r"fraction 0\.\d+: must be from 0 to 1, also together with others"):
        load(str(tmp_path), val_fraction=0.5, test_fraction=0.75)


# --- load ---


def test_folder_without_val_sketches(tmp_path: Path) -> None:
    source(tmp_path, ["1.png"])
    save(tmp_path / "val_line" / "7.png")
    found, problems = pairs(load(str(tmp_path)))
    assert problems == []
    assert [(p.split, p.sketch is None) for p in found] == [("train", False), ("val", True)]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["photos"], r"in no known layout; looked for:\n  folders: train_line/ and train_sketch/"),
        (["train_line"], "has train_line but no train_sketch"),
        (["train_line", "train_sketch", "val_sketch"], "has val_sketch but no val_line"),
    ],
)
def test_folders_that_are_no_source(tmp_path: Path, folders: list[str], message: str) -> None:
    for folder in folders:
        save(tmp_path / folder / "1.png")
    with pytest.raises(UserError, match=message):
        load(str(tmp_path))


def test_val_fraction_refused(tmp_path: Path) -> None:
    source(tmp_path, ["1.png"], ["2.png"])
    with pytest.raises(UserError, match=r"val fraction 0\.1: .* has several splits already; omit the option"):
        load(str(tmp_path), val_fraction=0.1)
    assert load(str(tmp_path), val_fraction=0.0).val_fraction == 0
    source(tmp_path / "b", ["1.png"])
    with pytest.raises(UserError, match=r"val fraction 1\.5: must be from 0 to 1"):
        load(str(tmp_path / "b"), val_fraction=1.5)


def test_recipe_demo_and_fs2k_lines(tmp_path: Path) -> None:
    source(tmp_path, ["1.png"], ["2.png"])
    for name in ("demo", "fs2k_lines"):
        recipe = load(name, tmp_path)
        assert (recipe.name, recipe.val_fraction, recipe.root) == (name, 0.0, tmp_path)
        assert recipe.license.startswith("MIT")
        assert [(p.split, p.name) for p in pairs(recipe)[0]] == [("train", "1"), ("val", "2")]


def test_recipe_cgi_psg(tmp_path: Path) -> None:
    inner = source(tmp_path / "CGI-PSG-Training_Set", [f"{i}.jpg" for i in range(1, 41)])
    for root in (tmp_path, inner):
        recipe = load("cgi_psg", root)
        assert (recipe.root, recipe.val_fraction) == (inner, 0.1)
        found, problems = pairs(recipe)
        assert problems == []
        assert len(found) == 40
        assert {p.split for p in found} == {"train", "val"}
    assert {p.split for p in pairs(load("cgi_psg", inner, 0.0))[0]} == {"train"}


def test_recipe_needs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="demo: a recipe needs --root DIR"):
        load("demo")
    with pytest.raises(UserError, match="--root is not a folder"):
        load("demo", tmp_path / "missing")
    with pytest.raises(
        UserError, match=r"nowhere: neither a \.toml file nor a name .*cgi_psg, demo.*not a folder either"
    ):
        load("nowhere")
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="it is a folder: give it without --root"):
        load("mine", tmp_path)
    with pytest.raises(UserError, match=r"train_line: cannot be read \(No such file or directory\); is the root right"):
        pairs(load("demo", tmp_path))


def test_a_folder_named_like_a_recipe_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source(tmp_path / "demo" / "data", ["1.png"], ["2.png"])
    assert load("demo", Path("demo/data")).name == "demo"


TRAIN = '[splits.train]\nline = "a"\nsketch = "b"\n'


def test_own_recipe(tmp_path: Path) -> None:
    save(tmp_path / "data/a/1.png")
    save(tmp_path / "data/b/1.png")
    (tmp_path / "data/a/1.jpg").touch()
    (tmp_path / "mine.toml").write_text(f'name = "mine"\nextensions = [".png"]\n{TRAIN}')
    recipe = load(str(tmp_path / "mine.toml"), tmp_path / "data")
    assert pairs(recipe) == (
        [FilePair("1", "1", "train", tmp_path / "data/a/1.png", tmp_path / "data/b/1.png")],
        [],
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'nam = "x"\n{TRAIN}', "there is no setting nam; did you mean name"),
        ('name = "x"\n[splits.train]\nlines = "a"\n', r"there is no setting splits\.train\.lines; did you mean line"),
        (f'name = "x"\n{TRAIN}[splits.valid]\nline = "c"\n', r"splits\.valid: a split is one of train, val, test"),
        (TRAIN, "needs a name and at least one table"),
        ('name = "x"\n', "needs a name and at least one table"),
        ('name = "x"\n[splits.train]\nline = "a"\n', r"splits\.train: needs line and sketch"),
        ('name = "x"\n[splits.val]\nsketch = "a"\n', r"splits\.val: needs line and sketch"),
        (f'name = "x"\nval_fraction = 2.0\n{TRAIN}', "val fraction 2: must be from 0 to 1"),
        (
            f'name = "x"\nval_fraction = 0.1\n{TRAIN}[splits.val]\nline = "c"\n',
            r"val_fraction = 0\.1: is allowed only with",
        ),
        (f'name = "x"\nextensions = ["JPG"]\n{TRAIN}', "extensions = .*must be lower-case endings"),
        (f'name = "x"\ninside = ".."\n{TRAIN}', r"the path \.\. must be relative to"),
        (f'name = "x"\ninside = "a\\u0000b"\n{TRAIN}', r"the path 'a\\x00b' has a character that no name can have"),
    ],
)
def test_malformed_recipes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=message):
        load(str(tmp_path / "r.toml"), tmp_path / "data")


@pytest.mark.parametrize("folder", ["../b", "/etc"])
def test_recipe_folder_outside_the_root(tmp_path: Path, folder: str) -> None:
    (tmp_path / "data").mkdir()
    save(tmp_path / "b" / "1.png")
    (tmp_path / "r.toml").write_text(f'name = "x"\n[splits.train]\nline = "{folder}"\nsketch = "b"\n')
    with pytest.raises(UserError, match=f"the path {folder} must be relative to"):
        pairs(load(str(tmp_path / "r.toml"), tmp_path / "data"))


# --- keys ---

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(lambda s: unicodedata.normalize("NFC", s))


@given(names, names)
def test_keys_are_unique_and_can_be_decoded(a: str, b: str) -> None:
    key = encode_key(a)
    assert unquote(key) == a
    assert not set(key) & set("./\0\n\r")
    assert (encode_key(b) == key) == (a == b)


@given(st.lists(st.integers(0, 10**6)))
def test_natural_order_counts(numbers: list[int]) -> None:
    assert sorted(map(str, numbers), key=natural) == list(map(str, sorted(numbers)))


# --- inputs ---


def test_inputs(tmp_path: Path) -> None:
    root = source(tmp_path / "data", ["1.png"], ["10.png", "9.png"])
    assert [(p.name, p.split, p.sketch) for p in inputs(root, "val") if isinstance(p, FilePair)] == [
        ("9", "val", root / "val_sketch/9.png"),
        ("10", "val", root / "val_sketch/10.png"),
    ]
    assert [(p.name, p.line, p.sketch) for p in inputs(root / "val_line", "val") if isinstance(p, FilePair)] == [
        ("9", root / "val_line/9.png", None),
        ("10", root / "val_line/10.png", None),
    ]
    assert inputs(root / "val_line/9.png", "val") == [FilePair("9", "9", "val", root / "val_line/9.png", None)]
    save(tmp_path / "only/val_line/1.png")
    assert inputs(tmp_path / "only", "val") == [FilePair("1", "1", "val", tmp_path / "only/val_line/1.png", None)]


def test_inputs_that_cannot_be_used_stand_behind_the_others(tmp_path: Path) -> None:
    root = source(tmp_path / "data", ["1.png", "2.png", "3.png"])
    (root / "train_sketch" / "2.png").unlink()
    save(root / "train_line" / "3.jpg")
    open(os.fsdecode(os.fsencode(root) + b"/train_line/\xff.png"), "wb").close()
    first, *others = inputs(root, "train")
    assert isinstance(first, FilePair)
    assert first.name == "1"
    assert {p.file: p.why.split(":")[0] for p in others if isinstance(p, Problem)} == {
        "train_line/2.png": "has no partner in train_sketch",
        "train_line/3.jpg": "has the same name as 3.png beside it",
        r"train_line/\udcff.png": "its name is not valid UTF-8",
    }


@pytest.mark.parametrize("side", ["line", "sketch"])
def test_a_folder_that_no_system_has_is_a_sentence(tmp_path: Path, side: str) -> None:
    folders = {"line": "a", "sketch": "b", side: "a\\u0000b"}
    for folder in ("a", "b"):
        save(tmp_path / folder / "1.png")
    text = "".join(f'{key} = "{value}"\n' for key, value in folders.items())
    (tmp_path / "r.toml").write_text(f'name = "x"\n[splits.train]\n{text}')
    with pytest.raises(UserError, match="has a character that no name can have"):
        pairs(load(str(tmp_path / "r.toml"), tmp_path))


def test_inputs_refused(tmp_path: Path) -> None:
    root = source(tmp_path / "data", ["1.png", "2.png"])
    with pytest.raises(UserError, match="has no split val; it has train"):
        inputs(root, "val")
    for name in ("1", "2"):
        (root / "train_sketch" / f"{name}.png").rename(root / "train_sketch" / f"x{name}.png")
    with pytest.raises(
        UserError, match=r"4 files cannot be used:\n  train_line/1\.png: has no partner(.*\n)*repair or remove"
    ):
        inputs(root, "train")
    with pytest.raises(UserError, match="missing: there is no such folder or image"):
        inputs(tmp_path / "missing", "val")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: the folder is empty"):
        inputs(tmp_path / "empty", "val")
    save(tmp_path / "flat/1.png")
    save(tmp_path / "flat/1.jpg")
    with pytest.raises(UserError, match=r"1\.jpg: has the same name as 1\.png"):  # and nothing else is there
        inputs(tmp_path / "flat", "val")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    open(odd, "wb").close()
    with pytest.raises(UserError, match="not valid UTF-8"):
        inputs(Path(odd), "val")
