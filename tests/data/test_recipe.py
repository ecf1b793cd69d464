import os
import pickle
import struct
import unicodedata
import warnings
import zlib
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dist_sketch.core.errors import UserError
from dist_sketch.data.image_files import BadImage, read_image
from dist_sketch.data.recipe import FilePair, Problem, encode_key, inputs, load, natural, pairs

GRAY = np.arange(64 * 48, dtype=np.int64).reshape(48, 64) * 7 % 256


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


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with right checksums and almost no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def refused(path: Path) -> str:
    with pytest.raises(BadImage) as e:
        read_image(path)
    assert str(e.value) == f"{path}: {e.value.why}"
    return e.value.why


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


def test_other_files_are_ignored(tmp_path: Path) -> None:
    source(tmp_path, ["1.png"])
    for name in ("README.txt", ".DS_Store", "Thumbs.db", "._1.png", "noext"):
        (tmp_path / "train_line" / name).write_bytes(b"no image")
    assert [p.name for p in pairs(load(str(tmp_path)))[0]] == ["1"]


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


def test_names_that_leave_their_folder(tmp_path: Path) -> None:
    root = source(tmp_path / "root", ["1.png", "2.png", "3.png", "4.png"])
    outside = save(tmp_path / "secret.png")
    for name, target in (("2.png", outside), ("3.png", root / "train_sketch" / "1.png"), ("4.png", "nowhere")):
        (root / "train_line" / name).unlink()
        (root / "train_line" / name).symlink_to(target)
    save(root / "train_line" / "..\\5.png")
    found, problems = pairs(load(str(root)))
    assert [p.name for p in found] == ["1", "3"]  # a link that stays inside is a file like any other
    assert {p.file: p.why.split(":")[0] for p in problems} == {
        "train_line/2.png": "leaves its folder",
        "train_line/4.png": "is a broken link",
        "train_line/..\\5.png": "its name leaves its folder",
    }
    assert str(outside) in problems[0].why


def test_a_root_that_is_a_link_is_fine(tmp_path: Path) -> None:
    source(tmp_path / "real", ["1.png"])
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert pairs(load(str(tmp_path / "link")))[1] == []


def test_folder_that_links_outside(tmp_path: Path) -> None:
    root = source(tmp_path / "root", ["1.png"])
    (root / "train_line").rename(tmp_path / "elsewhere")
    (root / "train_line").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="the folder train_line leaves the root"):
        pairs(load(str(root)))


def test_name_that_is_not_utf8_and_a_directory(tmp_path: Path) -> None:
    source(tmp_path, ["1.png", "2.png"])
    (tmp_path / "train_line" / "1.png").unlink()
    (tmp_path / "train_line" / "1.png").mkdir()
    open(os.fsencode(tmp_path / "train_line") + b"/\xff.png", "wb").close()
    found, problems = pairs(load(str(tmp_path)))
    assert [p.name for p in found] == ["2"]
    assert problems == [
        Problem("train_line/1.png", "is not a file"),
        Problem("train_line/\\udcff.png", "its name is not valid UTF-8: rename it"),
    ]


@pytest.mark.parametrize("content", [None, "README.txt"])
def test_empty_folder(tmp_path: Path, content: str | None) -> None:
    source(tmp_path, ["1.png"])
    (tmp_path / "train_sketch" / "1.png").unlink()
    if content:
        (tmp_path / "train_sketch" / content).touch()
    with pytest.raises(UserError, match=r"train_sketch: the folder is empty: no file in it ends in \.bmp"):
        pairs(load(str(tmp_path)))


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
        (["photos"], "has no folders train_line and train_sketch"),
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
        (f'name = "x"\ninside = ".."\n{TRAIN}', r"the folder \.\. leaves the root"),
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
    with pytest.raises(UserError, match=f"the folder {folder} leaves the root"):
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
    assert [(p.name, p.split, p.sketch) for p in inputs(root, "val")] == [
        ("9", "val", root / "val_sketch/9.png"),
        ("10", "val", root / "val_sketch/10.png"),
    ]
    assert [(p.name, p.line, p.sketch) for p in inputs(root / "val_line", "val")] == [
        ("9", root / "val_line/9.png", None),
        ("10", root / "val_line/10.png", None),
    ]
    assert inputs(root / "val_line/9.png", "val") == [FilePair("9", "9", "val", root / "val_line/9.png", None)]
    save(tmp_path / "only/val_line/1.png")
    assert [p.sketch for p in inputs(tmp_path / "only", "val")] == [None]


def test_inputs_refused(tmp_path: Path) -> None:
    root = source(tmp_path / "data", ["1.png", "2.png"])
    with pytest.raises(UserError, match="has no split val; it has train"):
        inputs(root, "val")
    (root / "train_sketch" / "2.png").unlink()
    with pytest.raises(
        UserError, match=r"1 file cannot be used:\n  train_line/2\.png: has no partner.*\nrepair or remove"
    ):
        inputs(root, "train")
    with pytest.raises(UserError, match="missing: there is no such folder or image"):
        inputs(tmp_path / "missing", "val")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: the folder is empty"):
        inputs(tmp_path / "empty", "val")
    save(tmp_path / "flat/1.png")
    save(tmp_path / "flat/1.jpg")
    with pytest.raises(UserError, match=r"1\.jpg: has the same name as 1\.png"):
        inputs(tmp_path / "flat", "val")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    open(odd, "wb").close()
    with pytest.raises(UserError, match="not valid UTF-8"):
        inputs(Path(odd), "val")


# --- read_image: conversions ---


def check(image: Image.Image, mode: str, expected: np.ndarray, source_mode: str, tolerance: int = 0) -> None:
    assert image.mode == mode
    assert image.info == {"mode": source_mode}
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= tolerance


def test_gray_stays_gray(tmp_path: Path) -> None:
    Image.fromarray(GRAY.astype(np.uint8)).save(tmp_path / "a.png")
    check(read_image(tmp_path / "a.png"), "L", GRAY, "L")


def test_gray_stored_as_rgb(tmp_path: Path) -> None:
    rgb = np.repeat(GRAY.astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    check(read_image(tmp_path / "a.png"), "L", GRAY, "RGB")
    rgb[3, 4, 2] ^= 1
    Image.fromarray(rgb).save(tmp_path / "b.png")
    check(read_image(tmp_path / "b.png"), "RGB", rgb, "RGB")


def test_palette(tmp_path: Path) -> None:
    indices = np.array([[0, 1], [2, 1]], dtype=np.uint8)
    colors = np.array([[255, 0, 0], [0, 128, 0], [1, 2, 3]])
    image = Image.fromarray(indices, "L")
    image.putpalette(colors.astype(np.uint8).tobytes())
    image.save(tmp_path / "a.png")
    check(read_image(tmp_path / "a.png"), "RGB", colors[indices], "P")
    image.save(tmp_path / "b.png", transparency=1)
    colors[1] = 255
    check(read_image(tmp_path / "b.png"), "RGB", colors[indices], "P")
    image.save(tmp_path / "c.png", transparency=bytes([255, 0, 255]))
    check(read_image(tmp_path / "c.png"), "RGB", colors[indices], "P")


def test_gray_palette(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "L")
    image.putpalette([250, 250, 250, 9, 9, 9])
    image.save(tmp_path / "a.gif")
    check(read_image(tmp_path / "a.gif"), "L", np.array([[250, 9]]), "P")


def test_cmyk(tmp_path: Path) -> None:
    ink = np.zeros((8, 24, 4), np.uint8)
    ink[:, 8:16, 0] = 255  # cyan
    ink[:, 16:, 3] = 255  # black
    expected = np.repeat(np.array([[255, 255, 255], [0, 255, 255], [0, 0, 0]]), 8, axis=0)[None].repeat(8, axis=0)
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.tif")
    check(read_image(tmp_path / "a.tif"), "RGB", expected, "CMYK")
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.jpg", quality=95)
    check(read_image(tmp_path / "a.jpg"), "RGB", expected, "CMYK", tolerance=12)


@pytest.mark.parametrize(("mode", "color"), [("RGBA", (255, 0, 0)), ("LA", (0,))])
def test_alpha_on_white(tmp_path: Path, mode: str, color: tuple[int, ...]) -> None:
    pixels = np.zeros((1, 3, len(color) + 1), np.uint8)
    pixels[..., : len(color)] = color
    pixels[0, :, -1] = (255, 0, 51)  # opaque, clear, one fifth
    Image.fromarray(pixels, mode).save(tmp_path / "a.png")
    expected = np.array([[color, [255] * len(color), [255 - (255 - c) // 5 for c in color]]])
    check(read_image(tmp_path / "a.png"), mode.rstrip("A"), expected.squeeze(-1) if mode == "LA" else expected, mode)


def test_transparent_gray_level(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 90]], np.uint8)).save(tmp_path / "a.png", transparency=0)
    check(read_image(tmp_path / "a.png"), "L", np.array([[255, 90]]), "L")


def test_exif_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    Image.fromarray(GRAY.astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    check(read_image(tmp_path / "a.png"), "L", np.rot90(GRAY, -1), "L")


def test_16_bit(tmp_path: Path) -> None:
    Image.fromarray((GRAY * 257).astype(np.uint16)).save(tmp_path / "a.png")
    check(read_image(tmp_path / "a.png"), "L", GRAY, "I;16")
    Image.fromarray((GRAY * 257).astype(np.uint16)).save(tmp_path / "a.tif")
    check(read_image(tmp_path / "a.tif"), "L", GRAY, "I;16")
    Image.fromarray((GRAY * 257).astype(np.int32)).save(tmp_path / "b.tif")
    check(read_image(tmp_path / "b.tif"), "L", GRAY, "I")


@pytest.mark.parametrize("scale", [1 / 255, 1, 257])
def test_float(tmp_path: Path, scale: float) -> None:
    Image.fromarray((GRAY * scale).astype(np.float32)).save(tmp_path / "a.tif")
    check(read_image(tmp_path / "a.tif"), "L", GRAY, "F")


@pytest.mark.parametrize("level", [-1.0, 70000.0, float("nan")])
def test_levels_without_a_scale(tmp_path: Path, level: float) -> None:
    Image.fromarray(np.array([[0, level]], np.float32)).save(tmp_path / "a.tif")
    assert "is damaged or truncated (gray levels from" in refused(tmp_path / "a.tif")


def test_1_bit(tmp_path: Path) -> None:
    bits = GRAY > 100
    Image.fromarray(bits).save(tmp_path / "a.png")
    check(read_image(tmp_path / "a.png"), "L", bits * 255, "1")


# --- read_image: refusals ---


def test_missing_and_empty(tmp_path: Path) -> None:
    assert refused(tmp_path / "a.png") == "cannot be read (No such file or directory)"
    assert refused(tmp_path) == "cannot be read (Is a directory)"
    (tmp_path / "a.png").touch()
    assert refused(tmp_path / "a.png") == "the file is empty (0 bytes)"


@pytest.mark.parametrize("content", [b"no image at all", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert refused(tmp_path / "a.jpg").startswith("is not a readable image (BMP, GIF, JPEG")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "gif"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    data = path.read_bytes()
    ends = [3] if suffix == "gif" else [1, 2, 4, 12, 16, 20]  # a GIF's last two bytes hold no data
    for cut in (*ends, 100, len(data) // 2):
        path.write_bytes(data[:-cut])
        why = refused(path)
        assert why.startswith(("is damaged or truncated (", "is not a readable image")), (cut, why)


def test_flipped_bit(tmp_path: Path) -> None:
    ramp = np.add.outer(np.arange(300), np.arange(300)) // 7 % 256
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[80] ^= 4  # Pillow alone decodes this to other pixels without an error
    (tmp_path / "a.png").write_bytes(data)
    assert refused(tmp_path / "a.png").startswith("is damaged or truncated (")


@pytest.mark.parametrize("size", [(60_000, 60_000), (10_001, 10_000)])
def test_bomb_is_refused_by_its_header(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def load(self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    (tmp_path / "a.png").write_bytes(png_header(*size))
    assert refused(tmp_path / "a.png") == (
        "is too large (a decompression bomb?): more than 100,000,000 pixels; make it smaller"
    )
    assert len(recwarn) == 0


def test_no_warning_leaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").size == (8, 8)


def test_bad_image_survives_pickling(tmp_path: Path) -> None:
    error = pickle.loads(pickle.dumps(BadImage(tmp_path, "why")))
    assert str(error) == f"{tmp_path}: why"
