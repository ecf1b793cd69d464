"""Data sets as people have them: each layout is recognised, and its pairs are those that belong together."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from conftest import Run, face
from PIL import Image

from dist_sketch.core.errors import UserError
from dist_sketch.data.inputs import inputs
from dist_sketch.data.labels import labelled
from dist_sketch.data.manifest import read_manifest
from dist_sketch.data.pack import pack
from dist_sketch.data.recipe import FilePair, load, pairs
from dist_sketch.data.shards import Shards

PICTURE = Image.new("L", (8, 10), 200)


def files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PICTURE.save(root / name)


def aligned(root: Path, folders: Iterable[str], *, turned: bool = False) -> None:
    """A|B pictures of faces, of which the second is in color, in each of the folders."""
    for number, folder in enumerate(folders):
        halves = face(number)
        page = Image.new("RGB", (160, 80))
        for place, half in enumerate(reversed(halves) if turned else halves):
            page.paste(half, (80 * place, 0))
        (root / folder).mkdir(parents=True, exist_ok=True)
        page.save(root / folder / f"{number}.png")


def found(source: Path, **options: str) -> dict[str, dict[str, tuple[str, str | None]]]:
    """Split -> name -> the files of the line and the sketch, relative to the recipe's root; no file has a problem."""
    recipe = load(str(source), **options)  # type: ignore[arg-type]
    listed, problems = pairs(recipe)
    assert problems == []
    result: dict[str, dict[str, tuple[str, str | None]]] = {}
    for pair in labelled(recipe, listed)[0]:
        line, sketch = (None if p is None else p.relative_to(recipe.root).as_posix() for p in (pair.line, pair.sketch))
        assert line
        result.setdefault(pair.split, {})[pair.name] = line, sketch
    return result


def named(first: str, second: str) -> Callable[[Path], None]:
    return lambda root: files(root, *(f"{folder}/{n}.jpg" for folder in (first, second) for n in (2, 10)))


@pytest.mark.parametrize(
    ("first", "second", "split"),
    [
        ("line", "sketch", "train"),
        ("Photos", "Sketches", "train"),
        ("edges/train", "drawings/train", "train"),
        ("test/input", "test/target", "test"),
        ("validation/photo", "validation/sketch", "val"),
        ("train_photo", "train_sketch", "train"),
        ("A", "B", "train"),
        ("A/test", "B/test", "test"),
        ("train/A", "train/B", "train"),
        ("trainA", "trainB", "train"),
        ("valA", "valB", "val"),
    ],
)
def test_two_folders(tmp_path: Path, first: str, second: str, split: str) -> None:
    named(first, second)(tmp_path)
    files(tmp_path, "__MACOSX/line/1.jpg", ".cache/sketch/1.jpg")
    expected = {str(n): (f"{first}/{n}.jpg", f"{second}/{n}.jpg") for n in (2, 10)}
    assert found(tmp_path) == {split: expected}
    assert list(found(tmp_path)[split]) == ["2", "10"]


def test_direction_turns_a_and_b_round(tmp_path: Path) -> None:
    files(tmp_path, "trainA/1_A.png", "trainB/1_B.png", "testA/7_A.png", "testB/7_B.png")
    assert found(tmp_path) == {
        "train": {"1_A": ("trainA/1_A.png", "trainB/1_B.png")},
        "test": {"7_A": ("testA/7_A.png", "testB/7_B.png")},
    }
    assert found(tmp_path, direction="BtoA") == {
        "train": {"1_B": ("trainB/1_B.png", "trainA/1_A.png")},
        "test": {"7_B": ("testB/7_B.png", "testA/7_A.png")},
    }
    named("photo", "sketch")(tmp_path / "named")
    with pytest.raises(UserError, match="--direction BtoA: in the layout named names say which side is which"):
        load(str(tmp_path / "named"), direction="BtoA")


def test_cufs(tmp_path: Path) -> None:
    photos = ("f-005-01", "f1-001-01", "m-008-01", "m1-001-01")
    sketches = ("F2-005-01-sz1", "f1-001-01-sz1", "M2-008-01-sz1", "m1-001-01-sz1")
    files(tmp_path, *(f"photos/{name}.jpg" for name in photos), *(f"sketches/{name}.jpg" for name in sketches))
    expected = {
        photo: (f"photos/{photo}.jpg", f"sketches/{sketch}.jpg") for photo, sketch in zip(photos, sketches, strict=True)
    }
    assert found(tmp_path) == {"train": expected}


def fs2k(root: Path) -> None:
    """FS2K as its archive has it: numbers begin anew in each folder, and sketch2 holds PNGs."""
    for split, names in (("train", ((1, 1), (1, 2), (2, 1))), ("test", ((3, 1),))):
        rows = []
        for style, number in names:
            files(root, f"photo/photo{style}/image{number:04d}.jpg")
            files(root, f"sketch/sketch{style}/sketch{number:04d}.{'png' if style == 2 else 'jpg'}")
            name = f"photo{style}/image{number:04d}"
            rows.append({"image_name": name, "skin_patch": [168, 68], "hair": number, "style": style - 1})
        (root / f"anno_{split}.json").write_text(json.dumps(rows, indent=4))


def test_fs2k_with_its_annotations(tmp_path: Path) -> None:
    fs2k(tmp_path / "FS2K")  # in a folder of the archive's name
    assert found(tmp_path) == {
        "train": {
            "photo1_image0001": ("photo/photo1/image0001.jpg", "sketch/sketch1/sketch0001.jpg"),
            "photo1_image0002": ("photo/photo1/image0002.jpg", "sketch/sketch1/sketch0002.jpg"),
            "photo2_image0001": ("photo/photo2/image0001.jpg", "sketch/sketch2/sketch0001.png"),
        },
        "test": {"photo3_image0001": ("photo/photo3/image0001.jpg", "sketch/sketch3/sketch0001.jpg")},
    }
    recipe = load(str(tmp_path))
    assert [pair.labels for pair in pairs(recipe)[0]] == [
        {"hair": 1, "style": 0},
        {"hair": 2, "style": 0},
        {"hair": 1, "style": 1},
        {"hair": 1, "style": 2},
    ]
    assert {p.split for p in pairs(load(str(tmp_path), val_fraction=1.0))[0]} == {"val", "test"}
    (tmp_path / "FS2K/sketch/sketch3/sketch0001.jpg").unlink()
    listed, problems = pairs(recipe)
    assert len(listed) == 3
    assert [(p.file, p.why) for p in problems] == [
        ("anno_test.json, photo3/image0001", "sketch/sketch3/sketch0001: there is no such picture")
    ]


def test_an_image_folder_of_hugging_face(tmp_path: Path) -> None:
    for split, number in (("train", 1), ("validation", 2)):
        files(tmp_path / split, f"lines/{number}.png", f"{number}.png")
        (tmp_path / split / "metadata.csv").write_text(
            f"file_name,conditioning_image_file_name,style\n{number}.png,lines/{number}.png,{number}\n"
        )
    assert found(tmp_path) == {
        "train": {"1": ("train/lines/1.png", "train/1.png")},
        "val": {"2": ("validation/lines/2.png", "validation/2.png")},
    }
    assert [pair.labels for pair in pairs(load(str(tmp_path)))[0]] == [{"style": 1}, {"style": 2}]
    (tmp_path / "train" / "metadata.csv").write_text(
        "file_name,line,split\n1.png,lines/1.png,train\n1.png,lines/1.png,val\n"
    )
    files(tmp_path / "validation", "lines/1.png", "1.png")
    (tmp_path / "validation" / "metadata.csv").write_text("file_name,line\n1.png,lines/1.png\n")
    both = r"train/lines/1\.png and validation/lines/1\.png would both be the val pair 1; rename one"
    with pytest.raises(UserError, match=both):
        pairs(load(str(tmp_path)))
    whole = tmp_path / "whole"
    files(whole, "train/a.png", "train/b.png", "test/a.png", "test/c.png")
    rows = [
        {"file_name": f"{split}/a.png", "target_file_name": f"{split}/{n}.png"}
        for split, n in (("train", "b"), ("test", "c"))
    ]
    (whole / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert found(whole) == {"train": {"a": ("train/a.png", "train/b.png")}, "test": {"a": ("test/a.png", "test/c.png")}}


@pytest.mark.parametrize("turned", [False, True])
def test_the_halves_of_aligned_pictures_are_the_pair(tmp_path: Path, turned: bool) -> None:
    aligned(tmp_path / "data", ("train", "train", "val"), turned=turned)
    recipe = load(str(tmp_path / "data"), direction="BtoA" if turned else None)
    manifest = pack(recipe, tmp_path / "out", size=64, workers=1)
    assert manifest["looks"] == {}
    for split, seeds in (("train", (0, 1)), ("val", (2,))):
        shards = Shards(tmp_path / "out", split)
        for number, seed in enumerate(seeds):
            line, sketch = (image.resize((64, 64), Image.Resampling.BICUBIC) for image in face(seed))
            sample = shards.read(number, 3)
            assert sample.source_size == (80, 80)
            assert sample.sketch is not None
            for tensor, expected in ((sample.line, line), (sample.sketch, sketch)):
                assert tensor.permute(1, 2, 0).numpy().tobytes() == expected.convert("RGB").tobytes()


def test_swapped_halves_are_told_with_the_way_to_turn_them(tmp_path: Path, cli: Run) -> None:
    aligned(tmp_path / "data", ("train", "test"), turned=True)
    command = ("pack", tmp_path / "data", "--out", tmp_path / "out", "--size", 64)
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        f"{tmp_path / 'data'}: layout aligned (train, test; the left half is the line): 1 train, 1 test pairs\n"
    )
    assert "(are the sides swapped, or is it a photo?); --direction turns them round\n" in done.stdout
    other = cli(*command, "--direction", "BtoA", "--keep")
    assert other.returncode == 2
    assert "holds shards packed with direction AtoB; --force replaces them" in other.stderr
    turned = cli(*command, "--direction", "BtoA", "--force")
    assert turned.returncode == 0
    assert "are the sides swapped" not in turned.stdout
    assert read_manifest(tmp_path / "out")["settings"]["direction"] == "BtoA"


def test_a_flat_folder_of_wide_pictures(tmp_path: Path) -> None:
    aligned(tmp_path / "wide", (".", "."))
    (tmp_path / "wide" / "00.png").write_bytes(b"damaged")  # the next one tells how wide they are
    listed = pairs(load(str(tmp_path / "wide"), val_fraction=0.0))[0]
    assert [(p.name, p.line == p.sketch, p.halves) for p in listed if p.name != "00"] == [
        (name, True, ("left", "right")) for name in ("0", "1")
    ]
    files(tmp_path / "plain", "1.png", "2.png")
    with pytest.raises(UserError, match="its pairs lie in no known layout"):
        load(str(tmp_path / "plain"))
    odd = Image.new("L", (161, 80))
    odd.save(tmp_path / "wide" / "00.png")
    with pytest.raises(UserError, match=r"00\.png: has a width of 161 px, so that its halves, line and sketch, would"):
        pack(load(str(tmp_path / "wide")), tmp_path / "out", size=64, workers=1)


def test_two_layouts_or_none_are_a_sentence(tmp_path: Path) -> None:
    aligned(tmp_path, ("train", "val"))
    files(tmp_path, "trainA/1.png", "trainB/1.png")
    with pytest.raises(UserError, match="the pairs may lie as A-B or as aligned; choose with --layout NAME"):
        load(str(tmp_path))
    assert found(tmp_path, layout="A-B") == {"train": {"1": ("trainA/1.png", "trainB/1.png")}}
    assert list(found(tmp_path, layout="aligned")) == ["train", "val"]
    with pytest.raises(
        UserError, match=r"looked for:\n  fs2k: FS2K's anno_train\.json .*\nfor other names write a recipe"
    ):
        load(str(tmp_path), layout="fs2k")
    files(tmp_path / "hub", "README.png")
    (tmp_path / "hub" / "train-00000-of-00001.parquet").touch()
    with pytest.raises(UserError, match="Parquet files are not read: write their pictures into folders first"):
        load(str(tmp_path / "hub"))
    files(tmp_path / "both", "line/1.png", "photo/1.png", "sketch/1.png")
    with pytest.raises(UserError, match="line and photo could both be a side of train: say which in a recipe"):
        load(str(tmp_path / "both"))
    aligned(tmp_path / "twice", ("train", "training"))
    with pytest.raises(UserError, match="train and training could both be train: say which in a recipe"):
        load(str(tmp_path / "twice"))
    for folder in ("valid", "validation"):
        files(tmp_path / "tables" / folder, "1.png", "lines/1.png")
        (tmp_path / "tables" / folder / "metadata.csv").write_text("file_name,line\n1.png,lines/1.png\n")
    with pytest.raises(UserError, match=r"valid.* and valid.* could both be val"):
        load(str(tmp_path / "tables"))
    files(tmp_path / "half", "A/test/1.png", "B/test/1.png", "A/train/1.png")
    with pytest.raises(UserError, match="train has only A/train: its partner is missing"):
        load(str(tmp_path / "half"))


def test_our_own_layout_comes_before_all_others(tmp_path: Path) -> None:
    files(tmp_path, "train_line/1.png", "train_sketch/1.png", "A/2.png", "B/2.png", "photo/3.png", "sketch/3.png")
    (tmp_path / "metadata.csv").write_text("line,sketch\nA/2.png,B/2.png\n")
    recipe = load(str(tmp_path))
    assert (recipe.name, recipe.layout) == ("folder", "folders")
    assert found(tmp_path) == {"train": {"1": ("train_line/1.png", "train_sketch/1.png")}}


def test_a_recipe_states_a_layout(tmp_path: Path) -> None:
    aligned(tmp_path / "data", ("pages", "pages"))
    recipe = tmp_path / "r.toml"
    recipe.write_text('name = "x"\ndirection = "BtoA"\n[splits.train]\nboth = "pages"\n')
    listed = pairs(load(str(recipe), tmp_path / "data"))[0]
    assert [(p.name, p.halves) for p in listed] == [("0", ("right", "left")), ("1", ("right", "left"))]
    assert pairs(load(str(recipe), tmp_path / "data", direction="AtoB"))[0][0].halves == ("left", "right")
    named("A", "B")(tmp_path / "two")
    recipe.write_text('name = "x"\nlicense = "CC0"\nlayout = "A-B"\n')
    loaded = load(str(recipe), tmp_path / "two")
    assert (loaded.license, [p.name for p in pairs(loaded)[0]]) == ("CC0", ["2", "10"])
    for text, words in (
        ('layout = "A-B"\n[splits.train]\nboth = "A"', "has a layout and splits, of which one is enough"),
        ('[splits.train]\nboth = "A"\nline = "B"', "needs line and sketch, or both, or table: only one of these"),
        ('direction = "BtoA"\n[splits.train]\nline = "A"\nsketch = "B"', "direction: its line and sketch folders say"),
        ('layout = "pairs"', "layout = 'pairs': must be one of"),
    ):
        recipe.write_text(f'name = "x"\n{text}\n')
        with pytest.raises(UserError, match=words):
            load(str(recipe), tmp_path / "two")


def test_infer_reads_the_same_layouts(tmp_path: Path) -> None:
    aligned(tmp_path / "a", ("train", "val"))
    (pair,) = inputs(tmp_path / "a", "val")
    assert isinstance(pair, FilePair)
    assert (pair.name, pair.halves) == ("1", ("left", "right"))
    fs2k(tmp_path / "fs2k")
    (pair,) = inputs(tmp_path / "fs2k", "test")
    assert isinstance(pair, FilePair)
    assert pair.name == "photo3_image0001"
    for source in ("a", "fs2k"):
        with pytest.raises(UserError, match=r"has no split \w+; it has train, (val|test) \(choose with --split\)"):
            inputs(tmp_path / source, "test" if source == "a" else "val")
    assert inputs(tmp_path / "a" / "train", "val")[0].halves is None  # type: ignore[union-attr]


def test_a_dry_run_prints_the_first_pairs_and_writes_nothing(tmp_path: Path, cli: Run) -> None:
    names = [f"{n:02d}" for n in range(12)]
    files(tmp_path, *(f"d/photo/{n}.jpg" for n in names), *(f"d/sketch/{int(n)}.png" for n in names), "d/photo/odd.jpg")
    done = cli("pack", "d", "--out", "o", "--dry-run", "--skip-bad", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "d: layout named (photo, sketch): 12 train pairs",
        "the names of 10 pairs differ, as in: line photo/00.jpg, sketch sketch/0.png",
        *(f"train {n}: line photo/{n}.jpg, sketch sketch/{int(n)}.png" for n in names[:10]),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]
    refused = cli("pack", "d", "--out", "o", "--dry-run", cwd=tmp_path)
    assert refused.returncode == 2
    assert "d: 1 file cannot be used:\n  photo/odd.jpg: has no partner in sketch" in refused.stderr
