"""Every bad input that users meet, through the command line: the sentence, the exit code 2, and no traceback."""

import ctypes
import errno
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import SMALL, write_pairs

from dist_sketch.__main__ import COMMANDS, main
from dist_sketch.commands.infer import finish
from dist_sketch.core.errors import refused_by_system

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


SPOILT = [
    (missing_partner, "train_line/2.png: has no partner in train_sketch"),
    (unreadable, "train_line/2.png: is not a readable image"),
    (truncated, "train_line/2.png: is damaged or truncated"),
    (empty_file, "train_sketch/2.png: the file is empty"),
    (decompression_bomb, "train_sketch/2.png: is too large (a decompression bomb?)"),
    (duplicate_stems, "train_line/2.jpg: has the same name as 2.png"),
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
    from dist_sketch.data import verify

    def broken(_: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(verify, "verify", broken)
    monkeypatch.setattr(sys, "argv", ["dist-sketch", "verify", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_who_has_read_enough_may_leave() -> None:
    """As in `dist-sketch train --help | head -1`: no traceback, and the exit code of the command itself."""
    command = [sys.executable, "-m", "dist_sketch", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


# ---------------------------------------------------------------- paths that the system refuses


def long_name(folder: Path) -> Path:
    return folder / ("n" * 300)


def below_a_long_name(folder: Path) -> Path:
    return folder / ("n" * 300) / "below"


def long_path(folder: Path) -> Path:
    return folder.joinpath(*["part"] * 1000)


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("a file")
    return folder / "file" / "below"


def a_file(folder: Path) -> Path:
    (folder / "file").write_text("a file")
    return folder / "file"


def an_empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def a_circle_of_links(folder: Path) -> Path:
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    return folder / "a"


def below_a_circle_of_links(folder: Path) -> Path:
    return a_circle_of_links(folder) / "below"


def not_utf8(folder: Path) -> Path:
    return folder / "sh\udce9"


def a_link_to_nothing(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "nowhere" / "else")
    return folder / "link"


def in_proc(folder: Path) -> Path:
    return Path("/proc/new")


def in_sys(folder: Path) -> Path:
    return Path("/sys/new")


def a_device(folder: Path) -> Path:
    return Path("/dev/null")


def without_rights(folder: Path) -> Path:
    (folder / "closed").mkdir(mode=0)
    return folder / "closed" / "below"


REFUSED = [
    *(long_name, below_a_long_name, long_path, below_a_file, a_file, an_empty_folder, a_circle_of_links),
    *(below_a_circle_of_links, not_utf8, a_link_to_nothing, in_proc, in_sys, a_device, without_rights),
]
EXPORT = Path(__file__).parents[1] / "old_files" / "export"
OLD = EXPORT.parent
WITH_PATHS: list[tuple[object, ...]] = [
    ("synth", "PATH", "--count", 1, "--val", 1, "--size", 64, "--workers", 1),
    ("pack", "PATH", "--out", "OUT"),
    ("pack", "DATA", "--out", "PATH", "--size", 64),
    ("pack", "demo", "--root", "PATH", "--out", "OUT"),
    ("verify", "PATH"),
    ("train", "--data.shards", "PATH", "--out", "OUT"),
    ("train", "--data.shards", OLD / "shards", "--data.batch-size", 2, "--dry-run", "--out", "PATH"),
    ("train", "--config", "PATH", "--out", "OUT"),
    ("checkpoint", "list", "PATH"),
    ("checkpoint", "verify", "PATH"),
    ("checkpoint", "export", "PATH", "--out", "OUT"),
    ("checkpoint", "export", OLD / "run", "--out", "PATH"),
    ("infer", "--run", "PATH", "--input", OLD / "out/line", "--out", "OUT"),
    ("infer", "--run", EXPORT, "--input", "PATH", "--out", "OUT"),
    ("merge", "PATH"),
    ("evaluate", "PATH"),
    ("report", "PATH"),
    ("compare", "PATH", "--out", "OUT"),
    ("compare", OLD / "run", "--out", "PATH"),
    ("experiment", "PATH", "--out", "OUT"),
    ("sync", "PATH"),
    ("logs", "PATH"),
    ("leg", "PATH", "--", "true"),
    ("weights", "--fid-weights", "PATH"),
    ("doctor", "pack", "source=PATH", "out=OUT"),
    ("doctor", "train", "shards=PATH", "out=OUT"),
]


@pytest.mark.parametrize("refused", REFUSED, ids=lambda f: f.__name__)
def test_a_path_that_the_system_refuses_is_a_sentence(
    tmp_path: Path, call: Call, data: Path, refused: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every command that is given a path, in every place of a path."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    wrong = []
    path = str(refused(tmp_path))
    with rights_of_a_user():
        for command in WITH_PATHS:
            known = {"PATH": path, "OUT": str(tmp_path / "out"), "DATA": str(data)}
            words = [
                str(known.get(str(w), w)).replace("=PATH", f"={path}").replace("=OUT", f"={known['OUT']}")
                for w in command
            ]
            code, output, error = call(*words)  # the checks of `doctor` are output
            wrong += [(command, code, error[-500:])] * (code == 1 or (code == 2 and not output + error))
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "run\udce9"),
        ("checkpoint", "export", "run\udce9", "--out", "x"),
        ("train", "--track.name", "\udcff", "--out", "x", "--data.shards", OLD / "shards"),
        ("leg", "run", "--", "echo", "\ud800"),
    ],
    ids=lambda words: words[0],
)
def test_words_that_are_not_utf8_are_named(call: Call, words: tuple[object, ...]) -> None:
    code, _, error = call(*words)
    assert (code, error.count("\n")) == (2, 1)
    assert ": has bytes that are not UTF-8; choose another name\n" in error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            UnicodeEncodeError("utf-8", "x\udce9", 1, 2, "surrogates not allowed"),
            r"x\udce9: has bytes that are not UTF-8",
        ),
        (RuntimeError("Symlink loop from '/a'"), "Symlink loop from '/a'; links there lead to each other"),
        (MemoryError(), "out of memory; free memory, or raise its limit (ulimit -v)"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory\nmore"),
            "can't allocate memory; use a smaller --batch-size, or free memory",
        ),
        (RuntimeError("can't start new thread"), "can't start new thread; free memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "this machine: Cannot allocate memory; free memory"),
        (BlockingIOError(errno.EAGAIN, "not now"), "this machine: not now; end other programs"),
        (
            FileNotFoundError(2, "No usable temporary directory found in ['/a']"),
            "found in ['/a']; set TMPDIR to a folder",
        ),
        (ImportError("no memory", path="/a/_C.cpython-311.so"), "no memory: a library cannot be loaded; free memory"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Exception) else "",
)
def test_what_the_system_refuses_is_a_sentence(error: Exception, sentence: str) -> None:
    assert sentence in str(refused_by_system(error))


@pytest.mark.parametrize(
    "error",
    [
        ImportError("cannot import name", name="dist_sketch.a", path="/a/dist_sketch/a.py"),
        *(ModuleNotFoundError("No module named 'a'"), RuntimeError("a"), OSError("a"), OSError(errno.EPIPE, "a")),
        UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range(128)"),
    ],
    ids=repr,
)
def test_our_own_faults_are_not_called_the_system_s(error: Exception) -> None:
    assert refused_by_system(error) is None


@contextmanager
def rights_of_a_user() -> Iterator[None]:
    """Until the end of the block root, too, needs rights to files and folders (CAP_DAC_OVERRIDE, _READ_SEARCH)."""
    libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    sets[0] &= ~0b110
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(header, sets) == 0


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "rights"),
        (errno.EROFS, "can only be read"),
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.ENAMETOOLONG, "shorter name"),
        (errno.ENOTDIR, "is a file, not a folder"),
        (errno.EIO, "fault"),
        (errno.ESTALE, "another one"),
    ],
)
@pytest.mark.parametrize("name", ["/some/where", b"/some/where"])
def test_what_to_do_depends_on_the_reason(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str, name: str | bytes
) -> None:
    from dist_sketch.data import verify

    def refuse(_: Path) -> None:
        raise OSError(number, os.strerror(number), name)

    monkeypatch.setattr(verify, "verify", refuse)
    code, _, error = call("verify", tmp_path)
    assert (code, len(error.splitlines())) == (2, 1)
    assert error.startswith(f"error: /some/where: {os.strerror(number)}; ")
    assert words in error


def test_a_full_disk_is_a_sentence_though_the_system_does_not_name_the_file(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dist_sketch.data import verify

    def fill(_: Path) -> None:
        with open("/dev/full", "wb", buffering=0) as f:
            f.write(b"more than fits")

    monkeypatch.setattr(verify, "verify", fill)
    code, _, error = call("verify", tmp_path)
    assert (code, "No space left on device; make room" in error) == (2, True)


# ---------------------------------------------------------------- what a launcher has left in the environment


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc: is not a number"),
        ({"RANK": "abc"}, "RANK=abc: is not a number"),
        ({"RANK": "abc", "DIST_SKETCH_LOGS": "/dev/null/logs"}, "RANK=abc: is not a number"),
        ({"LOCAL_RANK": "1"}, "the environment has LOCAL_RANK, but no RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT: "),
        ({"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "8"}, "but no MASTER_ADDR, MASTER_PORT: "),
        ({"RANK": "3", "ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED=true: "),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, dict) else "",
)
def test_leftovers_of_a_launcher_are_a_sentence_and_never_silence(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], sentence: str
) -> None:
    """A rank other than 0 leaves it to rank 0 to say what all find; but here there is no other."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    for command in (
        ("train", "--data.shards", OLD / "shards", "--data.batch-size", 2, "--out", tmp_path / "run"),
        ("infer", "--run", EXPORT, "--input", OLD / "out/line", "--out", tmp_path / "out"),
    ):
        code, _, error = call(*command)
        assert (code, len(error.splitlines())) == (2, 1), error
        assert error.startswith("error: ")
        assert sentence in error
    assert not list(tmp_path.glob("*/*.json"))


@pytest.mark.parametrize("value", ["abc", "[1]", '"a"', '{"a": 5}', "NaN", "[" * 5000, "{"])
def test_a_staged_copy_of_nobody_is_a_sentence(call: Call, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DIST_SKETCH_STAGED", value)
    code, _, error = call("train", "--data.shards", OLD / "shards", "--data.batch-size", 2, "--dry-run", "--out", "x")
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith(f"error: DIST_SKETCH_STAGED={value}: `dist-sketch node --stage` has not set this; unset")


def test_bench_names_a_leftover(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "abc")
    code, _, error = call("bench")
    assert (code, "WORLD_SIZE=abc: is not a number" in error) == (2, True)


@pytest.mark.parametrize("rank", ["1", "x"])
def test_a_leftover_rank_does_not_silence_the_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    assert finish(tmp_path, None) == 0
    assert "drawn; the input has no sketches" in capsys.readouterr().out


# ---------------------------------------------------------------- other systems


WINDOWS = """
import importlib.util, signal, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "fcntl" else find(name, *more)
sys.modules["fcntl"] = None
del signal.SIGUSR2, signal.SIGHUP
"""
MACOS = """
import builtins, ctypes, functools, io, os, types
for name in ("sched_getaffinity", "sched_setaffinity", "memfd_create", "posix_fadvise", "pidfd_open"):
    if hasattr(os, name):
        delattr(os, name)
opened, library = io.open, ctypes.CDLL
def without_proc(file, *more, **others):
    if str(file).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return opened(file, *more, **others)
builtins.open = io.open = without_proc
ctypes.CDLL = lambda name, *more, **others: library(name, *more, **others) if name else types.SimpleNamespace()
import torch
torch.backends.mps.is_available = functools.cache(lambda: True)  # and would be chosen
"""
COMMANDS_IN_TURN = """
import shlex, sys
from dist_sketch.__main__ import main
for command in sys.stdin.read().splitlines():
    sys.argv = ["dist-sketch", *shlex.split(command)]
    try:
        main()
    except SystemExit as e:
        if e.code:
            raise
    print("done:", command)
"""


def elsewhere(system: str, *commands: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs commands in a process from which something of Linux is hidden."""
    child = [sys.executable, "-c", system + COMMANDS_IN_TURN]
    return subprocess.run(child, input="\n".join(commands), capture_output=True, text=True, timeout=600, cwd=cwd)


def test_windows_is_told_where_it_runs(tmp_path: Path) -> None:
    done = elsewhere(WINDOWS, "train --help", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: dist_sketch runs on Linux and macOS; on Windows install it in WSL\n"


def test_all_works_without_what_only_linux_has(tmp_path: Path, data: Path) -> None:
    """As on macOS, on its CPU."""
    commands = (
        "synth drawn --count 2 --val 1 --size 64 --workers 2",
        "pack data --out shards --size 64",
        "verify shards",
        f"train --data.shards shards --out run {' '.join(map(str, SMALL))} --data.batch-size 2 --data.workers 1 "
        "--train.epochs 1",
        "checkpoint export run --out export",
        "infer --run export --input shards --out out --workers 1",
        "infer --run export --input shards --out other",
        "report out",
    )
    done = elsewhere(MACOS, *commands, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("done: ")] == [f"done: {c}" for c in commands]
    assert (tmp_path / "out" / "report.html").is_file()
