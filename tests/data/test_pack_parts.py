"""Packing in parts: joined, they are the bytes that one process writes; what is missing or foreign is a sentence."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, write_pairs
from PIL import Image

from dist_sketch.__main__ import main
from dist_sketch.core.errors import UserError
from dist_sketch.core.part import Part
from dist_sketch.data.pack import pack, pack_part
from dist_sketch.data.prepare import Pictures
from dist_sketch.data.recipe import load
from dist_sketch.data.verify import verify

SKIP = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs with labels, bad files, a picture that is in two splits, one that is blank, and odd names."""
    root = write_pairs(tmp_path_factory.mktemp("parts") / "data", 9, 4)
    for name in ("a.b", "人物", "n" * 120):
        for side in ("line", "sketch"):
            (root / f"train_{side}" / f"{name}.png").write_bytes((root / f"train_{side}/1.png").read_bytes())
    for path in ("train_line/2", "val_sketch/11"):
        (root / f"{path}.png").write_bytes(b"")
    (root / "train_sketch/3.png").unlink()
    Image.new("L", (64, 64), 255).save(root / "train_line/5.png")
    for side in ("line", "sketch"):
        (root / f"val_{side}/12.png").write_bytes((root / f"train_{side}/4.png").read_bytes())
    (root / "train_line" / "more.avif").touch()
    labels = {"train": {"1": {"style": 2}, "9": {"by": "Zoë"}}, "val": {"13": {"style": 0}}}
    (root / "annotations.json").write_text(json.dumps(labels))
    return root


def one_process(data: Path, out: Path, **options: Any) -> dict[str, bytes]:
    pack(load(str(data)), out, size=64, workers=1, skip_bad=SKIP, **options)
    return contents(out)


def part(data: Path, out: Path, number: int, total: int, **options: Any) -> bool:
    settings: dict[str, Any] = {"pictures": Pictures(size=64), "workers": 1, "skip_bad": SKIP, **options}
    return pack_part(load(str(data)), out, Part(number, total), **settings)


def merged(data: Path, out: Path, **options: Any) -> dict[str, bytes]:
    return one_process(data, out, merge=True, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("total", "limits"), [(1, {"shard_count": 4}), (3, {"shard_mb": 0.03}), (20, {})])
def test_merged_parts_are_the_bytes_of_one_process(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], total: int, limits: dict[str, Any]
) -> None:
    expected = one_process(data, tmp_path / "one", **limits)
    said = capsys.readouterr().out
    for number in reversed(range(1, total + 1)):  # in any order
        assert part(data, tmp_path / "out", number, total)
    capsys.readouterr()
    assert merged(data, tmp_path / "out", **limits) == expected
    assert capsys.readouterr().out == said  # warnings, too
    assert "is in another split" in said
    manifest = json.loads(expected["manifest.json"])
    assert {kind: names for kind, names in manifest["looks"].items() if kind in ("blank", "again")} == {
        "blank": ["train/5"],
        "again": ["val/12"],
    }
    assert [problem["file"][:12] for problem in manifest["skipped"]] == ["train_line/3", "train_line/2", "val_sketch/1"]
    assert manifest["passed_over"] == {"train_line": {".avif": 1}}
    assert sum(len(split["shards"]) for split in manifest["splits"].values()) > (1 + bool(limits))
    assert verify(tmp_path / "out") == {"train": 10, "val": 3}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.fixture(scope="module")
def two_parts(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of both parts of two."""
    out = tmp_path_factory.mktemp("two") / "out"
    for number in (1, 2):
        part(data, out, number, 2)
    return contents(out)


@pytest.fixture
def parts(two_parts: dict[str, bytes], tmp_path: Path) -> Path:
    """A copy of them that a test may damage."""
    for name, content in two_parts.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(content)
    return tmp_path / "out"


def test_a_part_that_is_there_is_not_packed_again(data: Path, parts: Path) -> None:
    before = contents(parts)
    assert not part(data, parts, 1, 2)
    assert contents(parts) == before
    with pytest.raises(UserError, match=r"out/parts/1-of-2: was packed from other pairs, .* --part 1/2"):
        part(data, parts, 1, 2, pictures=Pictures(size=128))
    assert contents(parts) == before
    assert part(data, parts, 1, 2, pictures=Pictures(size=128), force=True)
    with pytest.raises(UserError, match=r"out/parts/1-of-2: was packed from other pairs, with other labels, or into "):
        merged(data, parts)


def cut(parts: Path) -> None:
    file = parts / "parts/2-of-2/samples.tar"
    file.write_bytes(file.read_bytes()[:-512])


def flip(parts: Path) -> None:
    file = parts / "parts/2-of-2/samples.tar"
    content = bytearray(file.read_bytes())
    content[700] ^= 1
    file.write_bytes(content)


def lose(parts: Path) -> None:
    (parts / "parts/2-of-2/samples.tar").unlink()


def rows(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(parts: Path) -> None:
        file = parts / "parts/2-of-2/pairs.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (cut, r"2-of-2/samples\.tar: is too short or too long"),
    "flipped": (flip, r"2-of-2/samples\.tar: the sample .* is damaged"),
    "lost": (lose, r"2-of-2/samples\.tar: cannot be read \(No such file"),
    "no JSON": (lambda parts: (parts / "parts/2-of-2/pairs.json").write_text("{"), r"pairs\.json: is not valid JSON"),
    "no rows": (rows(lambda c: c.pop("pairs")), r"pairs\.json: pairs is missing"),
    "a row less": (rows(lambda c: c["pairs"].pop()), "2-of-2: holds other pairs"),
    "other keys": (rows(lambda c: c["pairs"][0].update(key="x")), "2-of-2: holds other pairs"),
    "a length below 0": (rows(lambda c: c["pairs"][0].update(length=-1)), r"length = -1: must be"),
    "a digest of letters": (rows(lambda c: c["pairs"][0].update(digests=["x"])), r"digests\[0\] = 'x': must be"),
    "an unknown kind": (rows(lambda c: c["pairs"][0].update(kinds=["x"])), r"kinds\[0\] = 'x': must be one of blank"),
    "another plan": (rows(lambda c: c.update(plan="0" * 64)), "was packed from other pairs"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_part_is_a_sentence_and_nothing_is_lost(data: Path, parts: Path, name: str) -> None:
    damage, sentence = DAMAGES[name]
    damage(parts)
    before = contents(parts)
    with pytest.raises(UserError, match=rf"{sentence}.*remove this folder, and pack it again: --part 2/2$"):
        merged(data, parts)
    assert contents(parts) == before
    assert sorted(p.name for p in parts.parent.iterdir()) == ["out"]


def test_missing_and_mixed_parts_are_named(data: Path, parts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none: has no parts to merge; pack them first"):
        merged(data, tmp_path / "none")
    (parts / "parts/2-of-2").rename(tmp_path / "2-of-2")
    with pytest.raises(UserError, match=r"out: not packed yet: --part 2/2$"):
        merged(data, parts)
    (tmp_path / "2-of-2").rename(parts / "parts/2-of-4")
    with pytest.raises(UserError, match=r"out/parts: holds parts of 2 and of 4; remove those"):
        merged(data, parts)


def test_too_many_problems_stop_a_part_and_the_merge(data: Path, parts: Path) -> None:
    with pytest.raises(UserError, match=r"2 files cannot be used:\n.*train_line/3(.|\n)*--skip-bad N \(now 1\)"):
        part(data, parts, 1, 2, skip_bad=1, force=True)
    with pytest.raises(UserError, match=r"3 files cannot be used:\n.*train_line/3(.|\n)*--skip-bad N \(now 2\)"):
        pack(load(str(data)), parts, size=64, skip_bad=2, merge=True)
    assert sorted(p.name for p in (parts / "parts").iterdir()) == ["1-of-2", "2-of-2"]


def test_what_is_not_ours_is_left_alone(data: Path, parts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out: holds parts of a packing: join them with --merge, or remove"):
        one_process(data, parts, force=True)
    for own in ("notes.txt", "parts/notes.txt", "parts/1-of-2/notes.txt"):
        (parts / own).write_text("mine")
        with pytest.raises(UserError, match=rf"{own}: is not part of th.*, and would be lost"):
            merged(data, parts)
        (parts / own).unlink()
    (tmp_path / "else").mkdir()
    (tmp_path / "else/thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="else: exists and is not a folder of shards"):
        part(data, tmp_path / "else", 1, 2)
    merged(data, parts)
    with pytest.raises(UserError, match="out: holds packed shards already"):
        part(data, parts, 1, 2)
    assert verify(parts) == {"train": 10, "val": 3}


def test_from_the_command_line(
    data: Path, tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the tasks of an array and the job after it call it, and again when they are requeued."""
    out = tmp_path / "out"
    command = ("pack", data, "--out", out, "--size", 64, "--skip-bad", SKIP, "--workers", 1, "--keep")

    def here(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["dist-sketch", *map(str, command), *more])
        with pytest.raises(SystemExit) as e:
            main()
        return int(e.value.code or 0)

    part(data, out, 1, 2)
    done = cli(*command, "--part", "2/2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{out}: part 2/2 is packed; --merge joins all parts\n")
    capsys.readouterr()
    assert here("--merge") == 0
    assert f"{out}: train: 10 samples in 1 shard(s)\n" in capsys.readouterr().out
    assert contents(out) == one_process(data, tmp_path / "one")
    capsys.readouterr()
    for again in (("--merge",), ("--part", "2/2")):
        assert here(*again) == 0
        assert capsys.readouterr().out.endswith(f"{out}: packed already\n")
    assert here("--part", "3/2") == 2
    assert capsys.readouterr().err.startswith(
        "error: --part 3/2: must be K/N with K from 1 to N, as 2/8, and N at most "
    )
    assert here("--part", "1/2", "--merge") == 2
    assert capsys.readouterr().err.startswith("error: --part and --merge: the merge is a job of its own")
