"""Nothing of the user's is lost, two commands never share a folder, no stranger's code runs."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
from conftest import Run

from dist_sketch.__main__ import parse
from dist_sketch.core import folders
from dist_sketch.core.config import Config, TrackConfig, from_dict
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import part_of, path_of, write_atomic
from dist_sketch.core.folders import Lock, replaced, tidy
from dist_sketch.data.synthetic import dataset
from dist_sketch.slurm.rank_logs import open_log
from dist_sketch.tracking.tracker import Tracker
from dist_sketch.tracking.wandb_run import WandbRun

# ---------------------------------------------------------------- whose files


def test_tidy_spares_the_living_and_what_is_not_ours(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (run / "export").mkdir(parents=True)
    elsewhere.mkdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    with subprocess.Popen(["sleep", "60"]) as living:
        spared = [run / f".export.{living.pid}.part", run / "export" / f".config.json.{living.pid}.part"]
        spared += [run / ".film.part", run / "film.part", elsewhere / f".file.{dead.pid}.part"]
        removed = [run / f".{name}.{pid}{end}.part" for name, pid, end in (("a", dead.pid, ""), ("b", os.getpid(), ""))]
        removed += [
            run / "export" / ".step-00000002.part",
            run / f".export.{dead.pid}.old.part",
            run / "export" / f".config.json.{dead.pid}.part",
        ]
        for file in spared + removed:
            file.write_text("x")
        (run / "linked").symlink_to(elsewhere)
        tidy(run)
        living.kill()
    assert [f.name for f in spared if not f.exists()] == []
    assert [f.name for f in removed if f.exists()] == []


def link(path: Path, mine: Path) -> None:
    path.symlink_to(mine)


def dangling_link(path: Path, mine: Path) -> None:
    path.symlink_to(mine.with_name("not there"))


def hard_link(path: Path, mine: Path) -> None:
    path.hardlink_to(mine)


def other_text(path: Path, mine: Path) -> None:
    path.write_text("mine")


def pipe(path: Path, mine: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, mine: Path) -> None:
    path.mkdir()


def device(path: Path, mine: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("put", [link, dangling_link, hard_link, other_text, pipe, folder, device])
def test_what_is_in_place_of_the_lock_stays_as_it_is(tmp_path: Path, put: Callable[[Path, Path], None]) -> None:
    mine, run = tmp_path / "mine", tmp_path / "run"
    mine.write_text("mine")
    run.mkdir()
    put(run / ".lock", mine)
    with pytest.raises(UserError, match=r"\.lock: "):
        Lock(run).acquire(wait_s=0)
    assert mine.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "run"]
    if put == other_text:
        assert (run / ".lock").read_text() == "mine"


def log_metrics(run: Path) -> None:
    wandb = WandbRun(run, TrackConfig(wandb="off"), job="train", run_id="id", settings={})
    Tracker(run, wandb, is_main=True).log("train", 1, {"a": 1})


def log_rank(run: Path) -> None:
    open_log(run / "logs", "rank-00001.log")


def status(run: Path) -> None:
    write_atomic(run / "status.json", "{}")


def through_a_part(run: Path) -> None:
    write_atomic(run / "config.json", "{}")


@pytest.mark.parametrize("put", [link, dangling_link, pipe, device])
@pytest.mark.parametrize(
    ("write", "name"),
    [
        (log_metrics, "metrics.jsonl"),
        (log_rank, "logs/rank-00001.log"),
        (log_rank, "logs"),
        (status, "status.json"),
        (through_a_part, ".config.json.PID.part"),
    ],
)
def test_writing_follows_no_link(
    tmp_path: Path, write: Callable[[Path], None], name: str, put: Callable[[Path, Path], None]
) -> None:
    mine, run, name = tmp_path / "mine", tmp_path / "run", name.replace("PID", str(os.getpid()))
    mine.mkdir() if name == "logs" else mine.write_text("mine")
    (run / name).parent.mkdir(parents=True)
    put(run / name, mine)
    with suppress(UserError):
        write(run)
    assert list(mine.iterdir()) == [] if name == "logs" else mine.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "run"]


@pytest.mark.parametrize(
    ("name", "words", "sentence"),
    [
        ("drawn.png", ("infer", "--run", "portrait-128", "--input", "IN", "--out"), "--out is the folder for all draw"),
        (
            "a.b.JPG",
            ("infer", "--run", "portrait-128", "--input", "IN", "--part", "1/2", "--out"),
            "--out is the folder",
        ),
        ("faces.tar", ("pack", "IN", "--out"), "--out is a folder of shards and a manifest"),
        ("faces.zip", ("synth",), "this is the folder for all pairs"),
    ],
)
def test_no_folder_gets_the_name_of_a_file(
    tmp_path: Path, cli: Run, pairs: Path, name: str, words: tuple[str, ...], sentence: str
) -> None:
    """Unless the user has made it."""
    out = tmp_path / name
    done = cli(*(str(pairs) if word == "IN" else word for word in words), out)
    assert done.returncode == 2
    assert f"{out}: {sentence}" in done.stderr
    assert f"choose a name such as {out.with_suffix('')}\n" in done.stderr
    assert not any(tmp_path.iterdir())
    folders.refuse_file_name(tmp_path / "faces-1.5", sentence)
    out.mkdir()
    folders.refuse_file_name(out, sentence)


def test_long_names_can_be_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "ä" * 127, "n" * 250 + ".json"):
        write_atomic(tmp_path / name, "x")
    assert len(list(tmp_path.iterdir())) == 3


# ---------------------------------------------------------------- a folder is replaced


def test_lock_and_unsent_logs_stay_when_a_folder_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "wandb").mkdir(parents=True)
    (out / "wandb/offline").write_text("unsent")
    (out / ".lock").touch()
    (out / "old").touch()
    with replaced(out) as new:
        (new / "new").touch()
    assert sorted(p.name for p in out.iterdir()) == [".lock", "new", "wandb"]
    assert (out / "wandb/offline").read_text() == "unsent"
    assert list(tmp_path.iterdir()) == [out]


def test_what_killed_commands_left_beside_a_folder_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    with subprocess.Popen(["sleep", "60"]) as living:
        left = [tmp_path / f".out.{pid}.part" for pid in (dead.pid, os.getpid())]
        others = (f".out.{living.pid}.part", f".out.{dead.pid}.old.part", f".outer.{dead.pid}.part", ".out.1x.part")
        spared = [tmp_path / name for name in others]
        for folder in (*left, *spared):
            folder.mkdir()
            (folder / "file").touch()
        with replaced(tmp_path / "out"):
            assert not left[0].exists()
            assert not any(left[1].iterdir())
        living.kill()
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "out", *spared])


def test_a_folder_that_another_machine_fills_is_spared(tmp_path: Path) -> None:
    """There its process lives, here the number is nobody's."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    with replaced(tmp_path / "out"):
        theirs = tmp_path / f".out.{dead.pid}.part"
        part_of(tmp_path / "out").rename(theirs)
        with replaced(tmp_path / "out"):
            pass
        assert theirs.is_dir()
        theirs.rename(part_of(tmp_path / "out"))


def test_synth_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / "train_line").mkdir()
    (tmp_path / f"train_line/.1.jpg.{dead.pid}.part").touch()
    (tmp_path / "train_line/.mine").touch()
    dataset.write(tmp_path, count=1, val=0, size=64, workers=1)
    assert sorted(p.name for p in (tmp_path / "train_line").iterdir()) == [".mine", "1.jpg"]


def emptied(new: Path) -> None:
    for file in new.iterdir():
        file.unlink()
    new.rmdir()


def made_anew(new: Path) -> None:
    emptied(new)
    new.mkdir()


@pytest.mark.parametrize("disturb", [emptied, made_anew])
def test_what_another_has_removed_replaces_nothing(tmp_path: Path, disturb: Callable[[Path], None]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()

    def replace() -> None:
        with replaced(tmp_path / "out") as new:
            (new / "weights").touch()
            disturb(new)

    with pytest.raises(UserError, match="was removed by another process"):
        replace()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_last_look_counts(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def look() -> None:
        if out.exists():
            raise UserError("somebody else has begun here")

    def replace() -> None:
        with replaced(out, look):
            out.mkdir()
            (out / "theirs").touch()

    with pytest.raises(UserError, match="somebody else"):
        replace()
    assert [p.name for p in out.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [out]


# ---------------------------------------------------------------- one command at a time


@contextmanager
def held(folder: Path, **how: bool) -> Iterator[None]:
    """Another process holds the lock of a folder."""
    code = (
        "import sys; from pathlib import Path; from dist_sketch.core.folders import Lock\n"
        f"lock = Lock(Path({str(folder)!r})); lock.acquire(**{how!r}); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        yield


@pytest.mark.parametrize("theirs", [False, True])
@pytest.mark.parametrize("ours", [False, True])
def test_one_at_a_time_or_those_that_share(tmp_path: Path, theirs: bool, ours: bool) -> None:
    with held(tmp_path, shared=theirs), Lock(tmp_path) as lock:
        with nullcontext() if theirs and ours else pytest.raises(UserError, match="is at work in it"):
            lock.acquire(wait_s=0, shared=ours)
            with lock.turn():
                pass
    with Lock(tmp_path) as lock:  # it has ended
        lock.acquire(wait_s=5)


def test_a_folder_that_another_uses_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace() -> None:
        with replaced(tmp_path / "out") as new:
            (new / "new").touch()

    monkeypatch.setattr(folders, "WAIT_S", 0.0)
    with held(tmp_path / "out"):
        with pytest.raises(UserError, match="is at work in it"):
            replace()
        assert [p.name for p in (tmp_path / "out").iterdir()] == [".lock"]


# ---------------------------------------------------------------- the home folder


def test_the_home_folder_is_meant_wherever_a_path_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert path_of("~/x") == tmp_path / "x"
    assert path_of("a~/x") == Path("a~/x")
    assert path_of("~nobody-here/x") == Path("~nobody-here/x")
    config = from_dict(Config, {"data": {"shards": "~/shards"}}, "file.toml")
    assert config.data.shards == tmp_path / "shards"
    (tmp_path / "mine.toml").write_text("[data]\nbatch_size = 3")
    for words in (["--out=~/run", "--config=~/mine.toml"], ["--out", "~/run", "--config", "~/mine.toml"]):
        command = parse(["train", *words]).__self__  # type: ignore[attr-defined]
        assert (command.out, command.settings.data.batch_size) == (tmp_path / "run", 3)
    assert parse(["synth", "~/pairs"]).__self__.folder == tmp_path / "pairs"  # type: ignore[attr-defined]
    assert not list(tmp_path.glob("~*"))


# ---------------------------------------------------------------- strangers' code

NAMES = ("wandb/__main__", "wandb/__init__", "secrets", "html", "queue", "json", "typing", "pickle", "multiprocessing")
PRESET = """
title = "One"
[rows.a]
label = "a"
[parts.one]
title = "One"
form = "table"
rows = ["a"]
"""
STEP = {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "here"}


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A folder with modules that write `ran` when they are imported, and an offline attempt that W&B has not got."""
    found = tmp_path / "strange"
    (found / "wandb/offline-run-20260101_000000-abc").mkdir(parents=True)
    (found / "wandb/offline-run-20260101_000000-abc/run-abc.wandb").write_bytes(b":W&B\xe1\xbe\0 and more")
    (found / "wandb/settings").write_text("[default]\nbase_url = http://127.0.0.1:1/stranger\n")
    for name in NAMES:
        mark = f"open({str(tmp_path / 'ran')!r}, 'a').write({name + chr(10)!r})\n"
        (found / f"{name}.py").write_text(mark)
    (found / "one.toml").write_text(PRESET)
    return found


@pytest.mark.parametrize("command", ["synth", "sync", "node", "experiment"])
def test_no_module_of_the_current_folder_runs(tmp_path: Path, strange: Path, shards: Path, command: str) -> None:
    words = {
        "synth": ("synth", "pairs", "--count", "2", "--val", "0", "--size", "64", "--workers", "2"),
        "sync": ("sync", "."),
        "node": ("node", "--procs", "1", "--", "--version"),
        "experiment": ("experiment", "one.toml", "--data", shards, "--out", "exp", "--data.batch-size", "1000"),
    }[command]
    wandb = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB__GRAPHQL_RETRY_MAX": "0"}
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | wandb | {"ACCELERATE_USE_CPU": "true"}
    env |= STEP | {"SLURM_JOB_ID": str(os.getpid())} if command == "node" else {}
    program = Path(sys.executable).with_name("dist-sketch")
    done = subprocess.run([program, *words], cwd=strange, env=env, capture_output=True, text=True, timeout=120)
    says = {
        "synth": "2 training and 0 validation pairs",
        "sync": "W&B can read nothing of it, so it was left out",
        "node": "they meet at here",
        "experiment": "batch_size",
    }[command]
    assert says in done.stdout + done.stderr
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()
    assert "stranger" not in done.stdout + done.stderr  # nor is the key sent where the folder says


@pytest.mark.parametrize("text", ["", "proce", "process ", "process 12", "process 12 o", "process 12 on a host"])
def test_a_lock_that_is_left_is_taken_even_if_it_was_cut(tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").write_text(text)
    with Lock(tmp_path / "run") as lock:
        lock.acquire(wait_s=0)
        assert (tmp_path / "run/.lock").read_text().startswith(f"process {os.getpid()} on ")
    assert part_of(tmp_path / "run").name == f".run.{os.getpid()}.part"
