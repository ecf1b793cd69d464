import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, write_pairs
from PIL import Image
from webdataset import WebDataset

from dist_sketch.core.errors import UserError
from dist_sketch.data.index import Index
from dist_sketch.data.manifest import MANIFEST, manifest_hash, read_index, read_manifest
from dist_sketch.data.pack import pack
from dist_sketch.data.recipe import load
from dist_sketch.data.shards import Shards
from dist_sketch.data.verify import verify

ODD = ["1", "2", "10", "a.b", "with space", "Zoë", "人物", "n" * 150, "%"]


def draw(path: Path, seed: int, size: tuple[int, int] = (70, 90)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3 if seed % 2 else 1), np.uint8).squeeze())
    coarse.resize(size, Image.Resampling.BILINEAR).save(path)


def source(root: Path, train: list[str], val: list[str] = ()) -> Path:
    for split, names in (("train", train), ("val", val)):
        for i, name in enumerate(names):
            draw(root / f"{split}_line" / f"{name}.png", 2 * i)
            draw(root / f"{split}_sketch" / f"{name}.png", 2 * i + 1, (64, 64))
    return root


def do(root: Path, out: Path, **options: Any) -> dict[str, Any]:
    return pack(load(str(root)), out, **{"size": 64, "workers": 1, **options})


def index_of(folder: Path, split: str = "train") -> Index:
    return read_index(folder, read_manifest(folder), split)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source with odd names and its shards, 4 samples each; read only."""
    folder = tmp_path_factory.mktemp("packed")
    do(source(folder / "data", ODD, ["7", "8"]), folder / "shards", shard_count=4)
    return folder / "data", folder / "shards"


@pytest.fixture
def copy(packed: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the shards that a test may damage."""
    (tmp_path / "copy").mkdir()
    for name, data in contents(packed[1]).items():
        (tmp_path / "copy" / name).write_bytes(data)
    return tmp_path / "copy"


def test_manifest(packed: tuple[Path, Path]) -> None:
    manifest = read_manifest(packed[1])
    assert (manifest["format"], manifest["size"], manifest["recipe"]) == (2, 64, "folder")
    assert (manifest["license"], manifest["skipped"]) == ("not stated", [])
    train = manifest["splits"]["train"]
    assert (train["count"], train["has_sketch"]) == (9, True)
    index = index_of(packed[1])
    assert list(index.keys) == ["1", "2", "10", "%25", "Zoë", "a%2Eb", "n" * 150, "with space", "人物"]
    assert [s["file"] for s in train["shards"]] == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert [s["count"] for s in train["shards"]] == [4, 4, 1]
    assert index.shards.tolist() == [0] * 4 + [1] * 4 + [2]
    for shard in train["shards"]:
        data = (packed[1] / shard["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    assert list(index_of(packed[1], "val").keys) == ["7", "8"]
    assert sorted(contents(packed[1])) == [
        "README.md",
        "manifest.json",
        "preview.png",
        *(f"train-00000{i}.tar" for i in range(3)),
        "train-index.safetensors",
        "val-000000.tar",
        "val-index.safetensors",
    ]


def test_each_span_is_a_tar_of_its_sample(packed: tuple[Path, Path]) -> None:
    for key, shard, offset, length, digest in index_of(packed[1]).rows():
        block = (packed[1] / f"train-{shard:06d}.tar").read_bytes()[offset : offset + length]
        assert hashlib.sha256(block).hexdigest() == digest
        with tarfile.open(fileobj=io.BytesIO(block)) as tar:
            assert tar.getnames() == [f"{key}.json", f"{key}.line.png", f"{key}.sketch.png"]
            assert all(len(tar.extractfile(m).read()) == m.size > 0 for m in tar)  # type: ignore[union-attr]


def test_sample_is_the_resized_pair(packed: tuple[Path, Path]) -> None:
    data, shards = packed
    with tarfile.open(shards / "train-000001.tar") as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    assert json.loads(members["a%2Eb.json"]) == {
        "name": "a.b",
        "split": "train",
        "line": {"file": "train_line/a.b.png", "width": 70, "height": 90, "mode": "L"},
        "sketch": {"file": "train_sketch/a.b.png", "width": 64, "height": 64, "mode": "RGB"},
    }
    for side, mode in (("line", "L"), ("sketch", "RGB")):
        stored = Image.open(io.BytesIO(members[f"a%2Eb.{side}.png"]))
        with Image.open(data / f"train_{side}" / "a.b.png") as original:
            expected = original.resize((64, 64), Image.Resampling.BICUBIC)
        assert (stored.format, stored.mode) == ("PNG", mode)
        assert np.array_equal(stored, expected)


def test_stock_webdataset_sees_the_same_pairs(packed: tuple[Path, Path]) -> None:
    for split, names in (("train", ODD), ("val", ["7", "8"])):
        files = sorted(str(p) for p in packed[1].glob(f"{split}-*.tar"))
        samples = list(WebDataset(files, shardshuffle=False).decode("pil"))
        assert [s["__key__"] for s in samples] == list(index_of(packed[1], split).keys)
        assert {s["json"]["name"] for s in samples} == set(names)
        for sample in samples:
            assert sample["line.png"].size == sample["sketch.png"].size == (64, 64)
            for side in ("line", "sketch"):
                with Image.open(packed[0] / sample["json"][side]["file"]) as image:
                    expected = image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
                assert np.array_equal(sample[f"{side}.png"], expected)


def test_two_packings_are_the_same_bytes(tmp_path: Path) -> None:
    one = source(tmp_path / "one", [str(i) for i in range(70)])
    shutil.copytree(one, tmp_path / "two")
    os.utime(tmp_path / "two" / "train_line" / "3.png", (1, 1))
    do(one, tmp_path / "a", shard_mb=0.3)
    do(tmp_path / "two", tmp_path / "b", shard_mb=0.3, workers=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert manifest_hash(tmp_path / "a") == hashlib.sha256((tmp_path / "b/manifest.json").read_bytes()).hexdigest()
    assert verify(tmp_path / "b") == {"train": 70}


def test_the_processes_that_pack_start_without_torch() -> None:
    code = "import sys, dist_sketch.data.prepare; print({'torch', 'webdataset'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_shard_size_by_bytes(tmp_path: Path) -> None:
    root = source(tmp_path / "data", [str(i) for i in range(12)])
    shards = do(root, tmp_path / "out", shard_mb=0.05)["splits"]["train"]["shards"]
    assert len(shards) > 1
    assert all(s["bytes"] <= 50_000 for s in shards)
    tiny = do(root, tmp_path / "tiny", shard_mb=0.001)["splits"]["train"]["shards"]
    assert [s["count"] for s in tiny] == [1] * 12  # a sample always fits
    assert verify(tmp_path / "tiny") == {"train": 12}


def test_val_fraction_and_lines_without_sketches(tmp_path: Path) -> None:
    root = source(tmp_path / "data", [str(i) for i in range(20)])
    manifest = pack(load(str(root), val_fraction=0.3), tmp_path / "a", size=64, workers=1)
    counts = verify(tmp_path / "a")
    assert set(counts) == {"train", "val"}
    assert sum(counts.values()) == 20
    assert manifest["settings"]["val_fraction"] == 0.3
    pack(load(str(root), val_fraction=1), tmp_path / "b", size=64, workers=1)
    assert verify(tmp_path / "b") == {"val": 20}  # a split without pairs is not written
    draw(root / "val_line" / "1.png", 0)
    assert do(root, tmp_path / "c")["splits"]["val"]["has_sketch"] is False
    with tarfile.open(tmp_path / "c" / "val-000000.tar") as tar:
        assert tar.getnames() == ["1.json", "1.line.png"]


# --- refusals ---


def damage(root: Path) -> list[str]:
    """Damages three of four pairs, each in a different way."""
    (root / "train_line" / "2.png").write_bytes((root / "train_line" / "2.png").read_bytes()[:60])
    (root / "train_sketch" / "3.png").write_bytes(b"")
    (root / "train_sketch" / "4.png").unlink()
    return ["train_line/4.png", "train_line/2.png", "train_sketch/3.png"]


def test_bad_files_are_named(tmp_path: Path) -> None:
    root = source(tmp_path / "data", ["1", "2", "3", "4"])
    files = damage(root)
    with pytest.raises(UserError) as e:
        do(root, tmp_path / "out", skip_bad=2)
    first, *lines, last = str(e.value).splitlines()
    assert first == f"{root}: 3 files cannot be used:"
    assert [line.strip().split(": ")[0] for line in lines] == files
    assert "has no partner in train_sketch" in lines[0]
    assert "is damaged or truncated" in lines[1]
    assert "the file is empty" in lines[2]
    assert last == "repair or remove them, or leave out up to N of them with --skip-bad N (now 2)"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]  # no incomplete folder remains


@pytest.mark.parametrize("name", ["a" + "." * 100 + "b", "%" * 240, "a\x01" * 50, "a" + "." * 240])
def test_names_whose_keys_are_longer_than_they_are(tmp_path: Path, name: str) -> None:
    do(source(tmp_path / "data", [name, "1"]), tmp_path / "out")
    assert verify(tmp_path / "out") == {"train": 2}
    shards = Shards(tmp_path / "out", "train")
    assert {shards.read(i, 3).name for i in range(2)} == {name, "1"}
    stock = WebDataset(str(tmp_path / "out/train-000000.tar"), shardshuffle=False)
    assert {sample["__key__"] for sample in stock} == {str(key) for key in shards.keys}


def test_a_terminal_shows_names_and_does_not_obey_them(tmp_path: Path, cli: Run) -> None:
    root = source(tmp_path / "data", ["1", "bad\x1b[31m"])
    (root / "train_line" / "bad\x1b[31m.png").write_bytes(b"")
    (root / "train_line" / "2.\x1b[32mz").touch()
    done = cli("pack", root, "--out", tmp_path / "out", "--size", 64, "--skip-bad", 1)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert r"passed over: train_line: 1 .\x1b[32mz" in done.stdout
    assert r"left out: train_line/bad\x1b[31m.png: the file is empty" in done.stdout


def test_what_is_passed_over_is_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = source(tmp_path / "data", ["1"])
    (root / "train_line" / "2.avif").touch()
    draw(root / "train_line" / "more" / "3.png", 0)
    manifest = do(root, tmp_path / "out")
    assert manifest["passed_over"] == {"train_line": {".avif": 1, "pictures in sub-folders": 1}}
    assert read_manifest(tmp_path / "out") == manifest
    assert "passed over: train_line: 1 .avif, 1 pictures in sub-folders\n" in capsys.readouterr().out
    assert do(source(tmp_path / "plain", ["1"]), tmp_path / "b")["passed_over"] == {}


def test_what_is_no_file_is_left_out_like_a_damaged_one(tmp_path: Path) -> None:
    root = source(tmp_path / "data", ["1", "2", "3", "4", "5"])
    for name in ("2", "3", "4", "5"):
        (root / "train_line" / f"{name}.png").unlink()
    os.mkfifo(root / "train_line" / "2.png")
    (root / "train_line" / "3.png").mkdir()
    (root / "train_line" / "4.png").symlink_to("nowhere")
    (root / "train_line" / "5.png").symlink_to("/dev/zero")
    manifest = do(root, tmp_path / "out", skip_bad=4)
    assert [s["file"] for s in manifest["skipped"]] == [f"train_line/{i}.png" for i in (2, 3, 4, 5)]
    assert list(index_of(tmp_path / "out").keys) == ["1"]


def test_a_shard_that_is_no_file_or_much_longer_is_named(copy: Path) -> None:
    names = [f"train-{i:06d}.tar" for i in range(3)]
    for name in names[:2]:
        (copy / name).unlink()
    os.mkfifo(copy / names[0])
    (copy / names[1]).symlink_to("/dev/zero")
    os.truncate(copy / names[2], 6 * 2**30)
    with pytest.raises(UserError) as e:
        verify(copy)
    for name in names[:2]:
        assert f"{name}: cannot be read (it is not a regular file)" in str(e.value)
    assert f"{names[2]}: has {6 * 2**30} bytes, not " in str(e.value)


def test_skip_bad(tmp_path: Path) -> None:
    root = source(tmp_path / "data", ["1", "2", "3", "4"])
    files = damage(root)
    manifest = do(root, tmp_path / "out", skip_bad=3)
    assert [s["file"] for s in manifest["skipped"]] == files
    assert read_manifest(tmp_path / "out") == manifest
    assert list(index_of(tmp_path / "out").keys) == ["1"]
    assert verify(tmp_path / "out") == {"train": 1}


def test_many_bad_files_are_counted(tmp_path: Path) -> None:
    root = source(tmp_path / "data", [str(i) for i in range(13)])
    for path in (root / "train_line").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"13 files cannot be used:\n  train_line/0\.png(.|\n)*\.\.\. and 3 more\n"):
        do(root, tmp_path / "out")
    with pytest.raises(UserError, match="no pair is left to pack"):
        do(root, tmp_path / "out", skip_bad=13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 100}, "size = 100: must be a multiple of 64 from 64 to 2048"),
        ({"size": 0}, "size = 0: must be"),
        ({"size": 4096}, "size = 4096: must be"),
        ({"shard_mb": 0}, "shard_mb = 0: must be above 0"),
        ({"shard_mb": float("nan")}, "shard_mb = nan: must be above 0"),
        ({"shard_count": -1}, "shard_count = -1: must be 0 or more"),
        ({"skip_bad": -1}, "skip_bad = -1: must be 0 or more"),
        ({"workers": 0}, "--workers 0: must be 1 to 256"),
    ],
)
def test_settings_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        do(source(tmp_path / "data", ["1"]), tmp_path / "out", **options)


def test_keep_leaves_good_shards_of_these_pairs_alone(cli: Run, tmp_path: Path) -> None:
    faces, out = write_pairs(tmp_path / "faces", 3, 1), tmp_path / "out"
    command = ("pack", faces, "--out", out, "--keep", "--size")
    assert cli(*command, 64).returncode == 0
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir() if p.is_file()}
    again = cli(*command, 64)
    assert (again.returncode, again.stdout) == (0, f"{out}: packed already\n")
    other = cli(*command, 128)
    assert (other.returncode, other.stderr.splitlines()[-1][:50]) == (2, f"error: {out}: holds shards of"[:50])
    write_pairs(faces, 4, 1)
    more = cli(*command, 64)
    assert more.returncode == 2
    assert "holds shards of other pairs or of another size (4 at 64 px, asked for: " in more.stderr
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir() if p.is_file()} == before
    for side in ("line", "sketch"):
        (faces / f"train_{side}" / "1.png").unlink()
    assert "holds other pairs, as train/1, which is not there any more" in cli(*command, 64).stderr
    tar = next(out.glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-600])
    damaged = cli(*command, 64)
    assert damaged.returncode == 2
    assert "--force replaces them" in damaged.stderr
    assert cli(*command, 64, "--force").returncode == 0
    assert cli("verify", out).returncode == 0


def test_fit_and_invert_make_the_pictures_and_are_kept(cli: Run, tmp_path: Path) -> None:
    data = source(tmp_path / "data", ["1"])  # the line has 70 x 90 px, its sketch 64 x 64
    assert not {"fit", "invert"} & do(data, tmp_path / "plain")["settings"].keys()
    made = cli("pack", data, "--out", tmp_path / "out", "--size", 64, "--fit", "pad", "--invert")
    assert made.returncode == 0, made.stderr
    settings = read_manifest(tmp_path / "out")["settings"]
    assert (settings["fit"], settings["invert"], settings["resize"]) == ("pad", True, "bicubic, antialiased")
    assert verify(tmp_path / "out") == {"train": 1}
    shards = Shards(tmp_path / "out", "train")
    sample = shards.read(0, 1)
    assert (shards.fit, sample.source_size) == ("pad", (70, 90))
    assert sample.sketch is not None
    for side, packed_picture in (("line", sample.line), ("sketch", sample.sketch)):
        image = Image.open(data / f"train_{side}" / "1.png").convert("L").resize((50, 64), Image.Resampling.BICUBIC)
        expected = 255 - np.asarray(image).astype(int) if side == "line" else np.asarray(image).astype(int)
        assert np.abs(packed_picture[0, :, 7:57].numpy() - expected).max() <= 1
        assert all(np.ptp(packed_picture[0, :, part].numpy()) == 0 for part in (slice(7), slice(57, None)))
    again = ("pack", data, "--out", tmp_path / "out", "--size", 64, "--keep", "--fit", "pad")
    other = cli(*again)
    assert other.returncode == 2
    assert "holds shards packed with invert True; --force replaces them" in other.stderr
    assert cli(*again, "--invert").stdout == f"{tmp_path / 'out'}: packed already\n"


def test_existing_out(tmp_path: Path) -> None:
    root = source(tmp_path / "data", ["1", "2"])
    (tmp_path / "out").mkdir()
    do(root, tmp_path / "out")  # an empty folder may be used
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match="out: holds packed shards already; remove it or choose another --out"):
        do(root, tmp_path / "out", size=128)
    assert contents(tmp_path / "out") == before
    assert do(root, tmp_path / "out", size=128, force=True)["size"] == 128
    assert verify(tmp_path / "out") == {"train": 2}
    with pytest.raises(UserError, match="data: exists and is not a folder of shards"):
        do(root, root, force=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: exists and is not a folder of shards"):
        do(root, tmp_path / "file", force=True)
    with pytest.raises(UserError, match=r"below: cannot be written \(Not a directory\)"):
        do(root, tmp_path / "file" / "below")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "file", "out"]


def own_notes(out: Path) -> None:
    (out / "notes.txt").write_text("mine")


def own_folder(out: Path) -> None:
    (out / "thesis").mkdir()
    (out / "thesis/chapter1.tex").write_text("mine")


def own_tar(out: Path) -> None:
    (out / "train-000099.tar").write_bytes(b"mine")


def hidden_file(out: Path) -> None:
    (out / ".env").write_text("mine")


def own_manifest(out: Path) -> None:
    (out / MANIFEST).write_text('{"name": "A web app", "icons": []}')


def manifest_of_another_format(out: Path) -> None:
    (out / MANIFEST).write_text('{"format": 99, "splits": {}}')


@pytest.mark.parametrize("add", [own_notes, own_folder, own_tar, hidden_file, own_manifest, manifest_of_another_format])
def test_force_removes_only_what_pack_has_written(tmp_path: Path, add: Callable[[Path], None]) -> None:
    root, out = source(tmp_path / "data", ["1", "2"]), tmp_path / "out"
    do(root, out)
    add(out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=str(out)):
        do(root, out, force=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and root not in p.parents} == before


def test_force_keeps_logs_that_are_not_sent(tmp_path: Path) -> None:
    root, out = source(tmp_path / "data", ["1", "2"]), tmp_path / "out"
    do(root, out)
    (out / "wandb").mkdir()
    (out / "wandb/offline").write_text("unsent")
    do(root, out, size=128, force=True)
    assert (out / "wandb/offline").read_text() == "unsent"
    assert verify(out) == {"train": 2}


def test_killed_packing_leaves_no_shards(tmp_path: Path) -> None:
    root = source(tmp_path / "data", [str(i) for i in range(60)])
    code = (
        "import sys, time; from pathlib import Path; from dist_sketch.data import pack, prepare, recipe\n"
        "read = prepare.read_image\n"
        "prepare.read_image = lambda *file: (time.sleep(0.1), read(*file))[1]\n"
        "pack.pack(recipe.load(sys.argv[1]), Path(sys.argv[2]), size=64, shard_count=1, workers=1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, root, tmp_path / "out"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(".out.*.part/*.tar"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    do(root, tmp_path / "out")
    assert verify(tmp_path / "out") == {"train": 60}


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    root = source(tmp_path / "data", ["1"])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"out: cannot be written \(No space left on device\)"):
        do(root, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


# --- verify, read_manifest ---


def test_verify_accepts(packed: tuple[Path, Path]) -> None:
    assert verify(packed[1]) == {"train": 9, "val": 2}


def failing(folder: Path) -> list[str]:
    with pytest.raises(UserError) as e:
        verify(folder)
    first, *lines, last = str(e.value).splitlines()
    assert (first, last) == (f"{folder}: the shards differ from the manifest:", "copy or pack them again")
    return [line.strip() for line in lines]


def test_verify_flipped_byte(copy: Path) -> None:
    data = bytearray((copy / "train-000001.tar").read_bytes())
    data[index_of(copy).offsets[5] + 2000] ^= 1
    (copy / "train-000001.tar").write_bytes(data)
    assert failing(copy) == ["train-000001.tar: key a%2Eb: its bytes have another SHA-256"]


def test_verify_flipped_byte_behind_the_samples(copy: Path) -> None:
    data = bytearray((copy / "val-000000.tar").read_bytes())
    data[-1] ^= 1
    (copy / "val-000000.tar").write_bytes(data)
    assert failing(copy) == ["val-000000.tar: has another SHA-256, outside its samples"]


def test_verify_truncated_missing_and_extra(copy: Path) -> None:
    data = (copy / "train-000000.tar").read_bytes()
    cut = int(index_of(copy).offsets[2])  # between two samples, where tar itself notices nothing
    (copy / "train-000000.tar").write_bytes(data[:cut])
    (copy / "train-000001.tar").unlink()
    (copy / "train-000009.tar").write_bytes(data)
    assert failing(copy) == [
        f"train-000000.tar: has {cut} bytes, not {len(data)}",
        "train-000000.tar: key 10: its bytes end too early",
        "train-000000.tar: key %25: its bytes end too early",
        "train-000001.tar: is missing",
        "train-000009.tar: is not in the manifest",
    ]


def test_verify_lists_ten(tmp_path: Path) -> None:
    do(source(tmp_path / "data", [str(i) for i in range(14)]), tmp_path / "out", shard_count=1)
    for path in (tmp_path / "out").glob("*.tar"):
        path.unlink()
    lines = failing(tmp_path / "out")
    assert lines[0] == "train-000000.tar: is missing"
    assert (len(lines), lines[-1]) == (11, "... and 4 more")


def test_read_manifest_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: there is no such folder; make it with: dist-sketch pack"):
        read_manifest(tmp_path / "none")
    with pytest.raises(UserError, match=r"manifest\.json: is missing: .* is not a folder of packed shards"):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read"):
        manifest_hash(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=3), "has format 3, but this version reads 2: pack the images again"),
        (lambda m: m.pop("format"), "is damaged"),
        (lambda m: m.pop("splits"), "is damaged"),
        (lambda m: m.update(splits=[1]), "is damaged"),
        (lambda m: m["splits"]["train"]["index"].pop("file"), "is damaged"),
        (lambda m: m["splits"]["train"]["index"].update(sha256="xyz"), "is damaged"),
        (lambda m: m["splits"]["train"]["shards"][0].update(file="../train-000000.tar"), "is damaged"),
        (lambda m: m["splits"]["train"]["shards"][0].update(count=3), "is damaged"),
    ],
)
def test_read_manifest_damaged(copy: Path, change: Any, message: str) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"manifest\.json: .*{message}"):
        read_manifest(copy)


@pytest.mark.parametrize("text", ["[]", "null", "{", '"x"'])
def test_read_manifest_that_is_none(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: .*is (damaged|not valid JSON)"):
        read_manifest(copy)
