"""Every bad input that users meet, through the command line: the sentence, the exit code 2, and no traceback."""

import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_pairs

from dist_sketch.__main__ import COMMANDS, main

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command line in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dist-sketch", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three good training pairs and one validation pair, to be spoilt."""
    return write_pairs(tmp_path / "data", 3, 1)


def bomb() -> bytes:
    """A PNG of a few bytes whose header claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def missing_partner(data: Path) -> None:
    (data / "train_sketch/2.png").unlink()


def unreadable(data: Path) -> None:
    (data / "train_line/2.png").write_bytes(b"not an image")


def truncated(data: Path) -> None:
    file = data / "train_line/2.png"
    file.write_bytes(file.read_bytes()[:-20])


def empty_file(data: Path) -> None:
    (data / "train_sketch/2.png").write_bytes(b"")


def decompression_bomb(data: Path) -> None:
    (data / "train_sketch/2.png").write_bytes(bomb())


def duplicate_stems(data: Path) -> None:
    shutil.copy(data / "train_line/2.png", data / "train_line/2.jpg")


def leaves_its_folder(data: Path) -> None:
    outside = data.parent / "outside.png"
    shutil.move(data / "train_line/2.png", outside)
    (data / "train_line/2.png").symlink_to(outside)


SPOILT = [
    (missing_partner, "train_line/2.png: has no partner in train_sketch"),
    (unreadable, "train_line/2.png: is not a readable image"),
    (truncated, "train_line/2.png: is damaged or truncated"),
    (empty_file, "train_sketch/2.png: the file is empty"),
    (decompression_bomb, "train_sketch/2.png: is too large (a decompression bomb?)"),
    (duplicate_stems, "train_line/2.jpg: has the same name as 2.png"),
    (leaves_its_folder, "train_line/2.png: leaves its folder"),
]


@pytest.mark.parametrize(("spoil", "sentence"), SPOILT, ids=lambda v: getattr(v, "__name__", ""))
def test_pack_refuses_by_name_and_skips_on_request(
    tmp_path: Path, call: Call, data: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    spoil(data)
    out = tmp_path / "shards"
    code, _, error = call("pack", data, "--out", out, "--size", 64)
    assert (code, sentence in error) == (2, True), error
    assert not out.exists()
    code, output, error = call("pack", data, "--out", out, "--size", 64, "--skip-bad", 1)
    assert code == 0, error
    assert f"left out: {sentence}" in output
    assert "train: 2 samples" in output


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--size", 100), "size"),
        (("--size", 0), "size"),
        (("--root", "/nowhere"), "neither a .toml file nor a name in shards/"),
        (("--val-fraction", 2), "val fraction"),
        (("--skip-bad", -1), "skip"),
        (("--shard-mb", 0), "shard"),
    ],
)
def test_pack_refuses_wrong_settings(
    tmp_path: Path, call: Call, data: Path, options: tuple[object, ...], sentence: str
) -> None:
    code, _, error = call("pack", data, "--out", tmp_path / "shards", *options)
    assert (code, sentence in error) == (2, True), error
    assert not (tmp_path / "shards").exists()


def test_pack_refuses_an_empty_folder_and_an_unknown_source(tmp_path: Path, call: Call, data: Path) -> None:
    for file in (data / "train_line").iterdir():
        file.unlink()
    code, _, error = call("pack", data, "--out", tmp_path / "shards")
    assert (code, "train_line: the folder is empty" in error) == (2, True)
    code, _, error = call("pack", "nowhere", "--out", tmp_path / "shards")
    assert (code, "nowhere" in error) == (2, True)
    assert "demo, fs2k_lines" in error


def test_verify_exits_0_or_2(tmp_path: Path, call: Call, data: Path) -> None:
    assert call("pack", data, "--out", tmp_path / "shards", "--size", 64)[0] == 0
    assert call("verify", tmp_path / "shards")[:1] == (0,)
    tar = tmp_path / "shards/train-000000.tar"
    content = bytearray(tar.read_bytes())
    content[2100] ^= 1
    tar.write_bytes(content)
    code, _, error = call("verify", tmp_path / "shards")
    assert code == 2
    assert "train-000000.tar" in error
    assert call("verify", tmp_path / "nowhere")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("synth", "DIR", "--count", 0), "count"),
        (("synth", "DIR", "--size", 10), "size"),
        (("evaluate", "DIR"), "is not an output folder"),
        (("report", "DIR"), "dist-sketch infer"),
        (("weights", "--fid-weights", "nowhere.pth"), "nowhere.pth: there is no such file"),
        (("dream",), "dream: there is no such command; there are synth, pack, verify"),
        (("verify",), "shards"),
        (("verify", "DIR", "--quickly"), "--quickly"),
        (("train", "--out", "DIR", "--optim.lr-h", "1"), "--optim.lr-g"),
        (("train", "--out", "DIR"), "data.shards is not set"),
    ],
)
def test_wrong_words_get_a_sentence(tmp_path: Path, call: Call, arguments: tuple[object, ...], sentence: str) -> None:
    code, _, error = call(*(tmp_path / "d" if a == "DIR" else a for a in arguments))
    assert (code, sentence.lower() in error.lower()) == (2, True), error


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(call: Call, command: str) -> None:
    code, output, _ = call(command, "--help")
    assert code == 0
    assert f"usage: dist-sketch {command}" in output
    # no option without a word of explanation: rows that only name a type and a default
    assert "(default" in output or "(required)" in output


def test_hyphen_and_underscore_are_the_same(tmp_path: Path, call: Call, data: Path) -> None:
    first = call("pack", data, "--out", tmp_path / "a", "--size", 64, "--shard_count", 2)
    second = call("pack", data, "--out", tmp_path / "b", "--size", 64, "--shard-count", 2)
    assert (first[0], second[0]) == (0, 0)
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


def test_our_own_fault_is_a_traceback_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dist_sketch.data import pack

    def broken(_: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(pack, "verify", broken)
    monkeypatch.setattr(sys, "argv", ["dist-sketch", "verify", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_who_has_read_enough_may_leave() -> None:
    """As in `dist-sketch train --help | head -1`: no traceback, and the exit code that shells give to SIGPIPE."""
    command = [sys.executable, "-m", "dist_sketch", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE
