"""Ctrl-C, which reaches a command and the processes that work for it: one plain line, and nothing half-written."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import write_pairs
from support import forks
from support.jobs import children

BARS = ("drawing", "packing", "scoring", "verifying")


class Command(NamedTuple):
    """A command, and how to see that it is at work."""

    arguments: tuple[object, ...]
    works: Callable[[int], bool]  # gets its process id


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() and p.stat().st_size < 10**9 else None
        for p in sorted(folder.rglob("*"))
        if p.name != ".lock"
    }


def has_workers(pid: int) -> bool:
    """They still import: the first of their libraries is there."""
    maps = (Path(f"/proc/{child}/maps") for child in children(pid))
    return any("multiarray" in file.read_text() for file in maps if file.exists())


def has_open(pid: int, file: Path) -> bool:
    return file in [p.readlink() for p in Path(f"/proc/{pid}/fd").iterdir() if p.is_symlink()]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("source"), 66, 1, size=64)


def synth(home: Path, *_: Path) -> Command:
    return Command(("synth", home / "new", "--count", 500, "--workers", 2), has_workers)


def synth_later(home: Path, *_: Path) -> Command:
    return Command(synth(home).arguments, lambda _: any(home.glob("new/*/*.jpg")))


def pack(home: Path, source: Path, shards: Path) -> Command:
    """Into a folder that holds shards already."""
    shutil.copytree(shards, home / "old")
    words = ("pack", source, "--out", home / "old", "--force", "--size", 2048, "--workers", 2)
    return Command(words, has_workers)


def pack_later(home: Path, source: Path, shards: Path) -> Command:
    return Command(pack(home, source, shards).arguments, lambda _: any(home.glob(".old.*.part/*.tar")))


def verify(home: Path, source: Path, shards: Path) -> Command:
    """Of a shard that takes hours."""
    shutil.copytree(shards, home / "long")
    manifest = json.loads((home / "long/manifest.json").read_text())
    first = manifest["splits"]["train"]["shards"][0]
    first["bytes"] = 10**12
    (home / "long/manifest.json").write_text(json.dumps(manifest))
    os.truncate(home / "long" / first["file"], 10**12)
    return Command(("verify", home / "long"), lambda pid: has_open(pid, home / "long" / first["file"]))


def infer(home: Path, source: Path, shards: Path) -> Command:
    words = ("infer", "--run", "portrait-128", "--input", source / "train_line", "--out", home / "out")
    return Command((*words, "--batch-size", 1, "--workers", 2), lambda _: any(home.glob("out/sketch/*.png")))


def evaluate(home: Path, source: Path, shards: Path) -> Command:
    """Of as many pictures as the other commands have."""
    names = sorted(p.stem for p in (source / "train_line").iterdir())
    about = {"names": names, "run": "r", "input": "i", "weights_sha256": "", "format": "png", "size": 64}
    for folder in ("line", "raw", "sketch", "real"):
        shutil.copytree(source / "train_line", home / "out" / folder)
    (home / "out/infer.json").write_text(json.dumps(about | {"reference": None}))
    return Command(("evaluate", home / "out"), lambda _: (home / "out/.lock").exists())


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[Command], int]]:
    pids: list[int] = []

    def start(command: Command) -> int:
        prints = tmp_path / "printed.out", tmp_path / "printed.err"
        pids.append(forks.fork(prints, arguments=command.arguments, env=os.environ))
        forks.wait_until(lambda: command.works(pids[0]) or forks.poll(pids[0]) is not None, "its work")
        return pids[0]

    yield start
    for pid in pids:
        forks.kill(pid)


@pytest.mark.parametrize("kind", [synth_later, pack_later])
def test_impatience_ends_it_as_well(
    tmp_path: Path, source: Path, shards: Path, kind: Callable[..., Command], started: Callable[[Command], int]
) -> None:
    """A second Ctrl-C, while the command waits for its processes."""
    home = tmp_path / "home"
    home.mkdir()
    pid = started(kind(home, source, shards))
    workers = children(pid)
    os.killpg(pid, signal.SIGINT)
    time.sleep(0.1)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGINT)
    assert forks.wait(pid, 60) in (130, -signal.SIGINT)
    assert "Traceback" not in (tmp_path / "printed.err").read_text()
    forks.wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), "their end")


@pytest.mark.parametrize("kind", [synth, synth_later, pack, pack_later, verify, infer, evaluate])
def test_one_line_and_nothing_half_written(
    tmp_path: Path, source: Path, shards: Path, kind: Callable[..., Command], started: Callable[[Command], int]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    command = kind(home, source, shards)
    before = contents(home)
    pid = started(command)
    os.killpg(pid, signal.SIGINT)
    assert forks.wait(pid, 60) == 130
    said = (tmp_path / "printed.err").read_text().splitlines()
    assert "\n".join(line for line in said if line and not line.startswith(BARS)) == "interrupted"
    now = contents(home)
    assert [name for name in now if ".part" in name] == []
    assert {name: now.get(name) for name in before} == before
    assert set(now) - set(before) == set() or kind in (synth, synth_later, infer)
