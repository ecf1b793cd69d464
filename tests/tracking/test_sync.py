"""`sync` when something is wrong: damaged files, a server that hangs, a folder that leads the user's key elsewhere.

W&B's client and process are real, and speak HTTP with a local server; what is sent was logged without a training.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from PIL import Image
from support.forks import wait_until
from support.jobs import children
from support.wandb_server import KEY, Server

from dist_sketch.core.config import TrackConfig
from dist_sketch.tracking.wandb_file import BLOCK, CHUNK, HEADER_BYTES, keep_whole_records, media, whole_bytes
from dist_sketch.tracking.wandb_run import WandbRun, fragments

STEPS = 150  # of each attempt; more than one block of its file


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two offline attempts of one run. Read only."""
    folder = tmp_path_factory.mktemp("attempts") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_DATA_DIR", str(folder))
        for first in (1, 1 + STEPS):
            track = TrackConfig(wandb="offline", timeout_s=120)
            with WandbRun(folder, track, job="train", run_id="abcd1234", settings={}) as log:
                for step in range(first, first + STEPS):
                    log.log({"loss/d": step / 10, "images": 4 * step}, step)
    assert len(fragments(folder)) == 2
    return folder


@pytest.fixture
def run(attempts: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    shutil.copytree(attempts, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def file_of(run: Path, attempt: int) -> Path:
    (file,) = fragments(run)[attempt].folder.glob("*.wandb")
    return file


def steps(server: Server) -> list[int]:
    """The steps that the server has, in the order in which they came."""
    return [line["_step"] for kept in server.runs.values() for line in kept.history]


# ---------------------------------------------------------------- damaged files


def cut_short(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def cut_in_its_last_record(whole: bytes) -> bytes:
    return whole[:-1]


def cut_in_the_head_of_a_chunk(whole: bytes) -> bytes:
    return whole[: BLOCK + 3]


def a_flipped_bit(whole: bytes) -> bytes:
    middle = len(whole) // 2
    return whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]


def zeros_at_its_end(whole: bytes) -> bytes:
    return cut_short(whole) + bytes(len(whole) - len(whole) // 2)


def cut_in_its_first_record(whole: bytes) -> bytes:
    return whole[: HEADER_BYTES + 20]


def cut_after_its_first_record(whole: bytes) -> bytes:
    _, length, _ = CHUNK.unpack_from(whole, HEADER_BYTES)
    return whole[: HEADER_BYTES + CHUNK.size + length]


def another_beginning(whole: bytes) -> bytes:
    return b"#" + whole[1:]


def a_text(whole: bytes) -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\n"


PARTLY = [cut_short, cut_in_its_last_record, cut_in_the_head_of_a_chunk, a_flipped_bit, zeros_at_its_end]
NOTHING = [cut_in_its_first_record, cut_after_its_first_record, another_beginning, a_text]


def test_a_whole_file_is_whole(attempts: Path, tmp_path: Path) -> None:
    for attempt in (0, 1):
        whole = file_of(attempts, attempt).read_bytes()
        assert whole_bytes(file_of(attempts, attempt)) == len(whole) > BLOCK
        (tmp_path / "a.wandb").write_bytes(whole)
        keep_whole_records(tmp_path / "a.wandb")
        assert [p.name for p in tmp_path.iterdir()] == ["a.wandb"]
    for nothing in (b"", whole[:3], whole[:HEADER_BYTES]):
        (tmp_path / "a.wandb").write_bytes(nothing)
        assert whole_bytes(tmp_path / "a.wandb") <= HEADER_BYTES


@pytest.mark.parametrize("spoil", PARTLY, ids=lambda f: f.__name__)
def test_the_whole_records_of_a_damaged_file_are_kept(
    attempts: Path, tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    whole, file = file_of(attempts, 0).read_bytes(), tmp_path / "a.wandb"
    file.write_bytes(spoil(whole))
    keep_whole_records(file)
    kept = file.read_bytes()
    assert whole.startswith(kept)
    assert len(whole) // 3 < len(kept) < len(whole)
    assert whole_bytes(file) == len(kept)
    assert (tmp_path / "a.wandb.damaged").read_bytes() == spoil(whole)  # nothing is lost


@pytest.mark.parametrize("spoil", PARTLY[:1] + PARTLY[3:4], ids=lambda f: f.__name__)
def test_a_damaged_attempt_is_sent_as_far_as_it_goes_and_so_are_the_others(
    run: Path, cli: Run, spoil: Callable[[bytes], bytes]
) -> None:
    file = file_of(run, 0)
    file.write_bytes(spoil(file.read_bytes()))
    with Server() as server:
        sent = cli("sync", run, **server.env)
        arrived = steps(server)
        assert arrived == sorted(set(arrived))
        assert STEPS // 3 < len([s for s in arrived if s <= STEPS]) < STEPS
        assert set(arrived) >= set(range(STEPS + 1, 2 * STEPS + 1))
        assert [kept.exit_code for kept in server.runs.values()] == [0]  # that of the later attempt
        assert sent.returncode == 2
        assert sent.stderr.startswith(f"error: {file}.damaged: was cut short or damaged; ")
        again = cli("sync", run, **server.env)  # says it again, and sends nothing again
        assert (again.returncode, again.stderr) == (2, sent.stderr)
        assert again.stdout == f"{run}: nothing to send; 2 attempt(s) were sent before\n"
        assert steps(server) == arrived
        Path(f"{file}.damaged").unlink()  # as the message says
        assert cli("sync", run, **server.env).returncode == 0


def test_pictures_that_are_gone_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Run) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, sketch = tmp_path / "run", np.zeros((8, 8, 3), np.uint8)
    with WandbRun(run, TrackConfig(wandb="offline", timeout_s=120), job="train", run_id="abcd", settings={}) as log:
        for step in (1, 2):
            Image.fromarray(sketch + step).save(tmp_path / "samples.png")
            log.picture("samples", step, step, tmp_path / "samples.png")
            log.table("pairs", ("name", "drawn"), [["1", sketch]])
    (fragment,) = fragments(run)
    found = sorted(media(file_of(run, 0)))
    assert [name for name in found if (fragment.folder / "files" / name).is_file()] == found
    assert len(found) == 4
    picture = next(fragment.folder.rglob("samples_2_*.png"))
    picture.unlink()
    with Server() as server:
        sent = cli("sync", run, **server.env)
        assert len(server.runs) == 1
    assert "with 3 pictures and tables" in sent.stdout
    assert sent.returncode == 2
    name = picture.relative_to(fragment.folder / "files")
    assert sent.stderr == f"error: {fragment.folder}: 1 of 4 pictures and tables are gone, as {name}\n"


def a_pipe(file: Path) -> None:
    os.mkfifo(file)


def a_folder(file: Path) -> None:
    file.mkdir()


def a_link_to_nothing(file: Path) -> None:
    file.symlink_to("gone.wandb")


def an_endless_file(file: Path) -> None:
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize("spoil", [*NOTHING, a_folder, a_link_to_nothing, an_endless_file], ids=lambda f: f.__name__)
def test_an_attempt_that_nobody_can_read_is_named_and_left_alone(
    run: Path, cli: Run, spoil: Callable[..., Any]
) -> None:
    file = file_of(run, 0)
    if spoil in NOTHING:
        file.write_bytes(spoil(file.read_bytes()))
    else:
        file.unlink()
        spoil(file)
    Path(f"{file_of(run, 1)}.synced").touch()  # the other one is in W&B
    before = sorted(file.parent.iterdir())
    with Server() as server:
        sent = cli("sync", run, **server.env)
        assert server.operations == []
    assert (sent.returncode, sent.stdout) == (2, f"{run}: nothing to send; 1 attempt(s) were sent before\n")
    assert sent.stderr == (
        f"error: {file}: W&B can read nothing of it, so it was left out; if that will do, remove {file.parent}\n"
    )
    assert sorted(file.parent.iterdir()) == before


def test_a_pipe_in_place_of_a_file_is_not_opened(run: Path, cli: Run) -> None:
    for attempt in (0, 1):
        file = file_of(run, attempt)
        file.unlink()
        a_pipe(file)
    done = cli("sync", run)
    assert (done.returncode, done.stdout) == (0, f"{run}: nothing to send (no wandb/offline-run-*)\n")


def test_a_folder_that_cannot_be_sent_does_not_keep_back_the_next(run: Path, tmp_path: Path, cli: Run) -> None:
    with Server() as server:
        sent = cli("sync", tmp_path / "none", run, **server.env)
        assert (sent.returncode, sent.stderr) == (2, f"error: {tmp_path}/none: there is no such folder\n")
        assert len(steps(server)) == 2 * STEPS


# ---------------------------------------------------------------- a server that hangs


def test_a_server_that_hangs_is_given_up(run: Path, cli: Run) -> None:
    class Hanging(Server):
        """Takes the run, then answers nothing more."""

        def _answer(self, request: Any) -> None:
            if request.path.endswith("/file_stream"):
                self.mood = "hangs"
            super()._answer(request)

    with Hanging() as server:
        given_up = cli("sync", run, "--timeout-s", 3, **server.env)
    assert given_up.returncode == 2
    assert given_up.stdout.count("begun") == 1
    assert given_up.stderr == (
        f"error: {fragments(run)[0].folder}: W&B did not take it (no end within 3 s); start this again, with a longer "
        "--timeout-s if its server answers, or remove that folder\n"
    )
    cores = [p for p in children(1) if b"wandb-core" in Path(f"/proc/{p}/cmdline").read_bytes()]
    mine = [p for p in cores if server.url.encode() in Path(f"/proc/{p}/environ").read_bytes()]
    wait_until(lambda: not any(Path(f"/proc/{p}/cwd").exists() for p in mine), "the end of W&B's process")
    with Server() as server:
        assert cli("sync", run, **server.env).returncode == 0
        assert len(steps(server)) == 2 * STEPS


# ---------------------------------------------------------------- somebody else's folders


@pytest.mark.parametrize("theirs", ["current/wandb", "current/.wandb", "run/wandb"])
@pytest.mark.parametrize("command", ["sync", "pack"])
def test_the_key_goes_to_the_users_server_alone(
    attempts: Path, shards: Path, pairs: Path, tmp_path: Path, cli: Run, command: str, theirs: str
) -> None:
    """Whatever server a file names that lies in a folder that may be somebody else's."""
    home, current, run = tmp_path / "home", tmp_path / "current", tmp_path / "run"
    shutil.copytree(attempts if command == "sync" else shards, run, symlinks=True)
    for folder in (home / ".config/wandb", current, tmp_path / theirs):
        folder.mkdir(parents=True, exist_ok=True)
    packing = ("pack", pairs, "--out", run, "--size", 64, "--workers", 1, "--track.wandb", "online", "--force")
    with Server() as users, Server() as other:
        (home / ".config/wandb/settings").write_text(f"[default]\nbase_url = {users.url}\n")
        (tmp_path / theirs / "settings").write_text(f"[default]\nbase_url = {other.url}\nentity = somebody\n")
        env = {"HOME": str(home), "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}
        done = cli(*(("sync", run) if command == "sync" else packing), cwd=current, **env)
        assert done.returncode == 0, done
        assert other.operations == []
        assert [kept.about["jobType"] for kept in users.runs.values()] == ["train" if command == "sync" else "pack"]


def test_a_dot_wandb_folder_does_not_get_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / ".wandb").mkdir()
    WandbRun(tmp_path, TrackConfig(wandb="offline", timeout_s=120), job="train", run_id="a", settings={}).finish()
    assert len(fragments(tmp_path)) == 1
