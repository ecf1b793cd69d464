"""Logs of a job's ranks: which rank writes to which file, and which rank failed first."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Run, launch

from dist_sketch.core.errors import UserError
from dist_sketch.slurm import rank_logs

LAUNCHER = """
E1122 21:04:56.909000 81 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: {code}) local_rank: 0
============================================================
Failures:
  <NO_OTHER_FAILURES>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-22_21:04:{second}
  host      : {host}
  rank      : {rank} (local_rank: 0)
  exitcode  : {code} (pid: 85)
  error_file: <N/A>
============================================================
"""
LOST = "error (rank {}): another rank failed or is gone: its message says why\n"
TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 1, in train
ValueError: on purpose
This is a fault of dist_sketch (rank 3), not of your input.
"""


def attempt(number: int, minute: int = 0, job: int = 12) -> str:
    return f"=== job {job} leg {number} on node1, 2026-11-22 21:{minute:02}:00 ===\n"


def write(run: Path, **texts: str) -> Path:
    """Logs by their stem, with _ for -."""
    (run / "logs").mkdir()
    for name, text in texts.items():
        (run / "logs" / f"{name.replace('_', '-')}.log").write_text(text)
    return run


def test_errors_of_the_ranks_come_first(tmp_path: Path) -> None:
    write(
        tmp_path,
        node_00000=attempt(0) + "step 1\n" + LOST.format(0) + LAUNCHER.format(code=1, second=56, host="a", rank=0),
        node_00001=attempt(0) + LAUNCHER.format(code=-9, second=50, host="b", rank=2),
        rank_00001=attempt(0) + LOST.format(1),
        rank_00002=attempt(0) + LOST.format(2),
        rank_00003=attempt(0) + "warning: left out\n" + TRACEBACK + "noise of its end\n",
    )
    failure = rank_logs.first_failure(tmp_path)
    assert failure
    assert not failure.mistake
    assert failure.what == "rank 3: This is a fault of dist_sketch (rank 3), not of your input."
    assert failure.log == "warning: left out\n" + TRACEBACK.rstrip()
    assert rank_logs.describe(tmp_path, lines=2).splitlines()[-3:] == ["", *TRACEBACK.splitlines()[-2:]]


def test_a_killed_rank_reports_no_error(tmp_path: Path) -> None:
    write(
        tmp_path,
        node_00000=attempt(0) + "step 1\n" + LOST.format(0) + LAUNCHER.format(code=1, second=49, host="a", rank=0),
        node_00001=attempt(0) + LAUNCHER.format(code=-9, second=50, host="b", rank=2),
        rank_00002=attempt(0) + "resumed\n",
        rank_00003=attempt(0) + LOST.format(3),
    )
    failure = rank_logs.first_failure(tmp_path)
    assert failure
    assert failure.what == "rank 2 on b was killed by signal 9 at 2026-11-22_21:04:50"
    assert (failure.log, failure.mistake) == ("resumed", False)


def test_an_error_without_a_traceback_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    write(tmp_path, node_00000=attempt(0) + "error: norm = 'batch': too small\n", rank_00001=attempt(0))
    failure = rank_logs.first_failure(tmp_path)
    assert failure
    assert (failure.what, failure.mistake) == ("rank 0: error: norm = 'batch': too small", True)


def test_only_the_newest_attempt_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        node_00000=attempt(0, job=99) + LOST.format(0) + attempt(0, 5) + "step 1\n" + attempt(1, 6) + "step 2\n",
        rank_00001=attempt(0, 5) + "error (rank 1): of an older attempt\n",
    )
    assert rank_logs.newest_attempt(tmp_path) == (("12", "1"), {"node-00000": "step 2\n"})
    assert rank_logs.first_failure(tmp_path) is None
    with open(tmp_path / "logs" / "rank-00001.log", "a") as f:
        f.write(attempt(1, 6) + "error (rank 1): of this one\n")
    failure = rank_logs.first_failure(tmp_path)
    assert failure
    assert failure.what == "rank 1: error (rank 1): of this one"
    assert rank_logs.first_failure(tmp_path, ("12", "1")) == failure
    assert rank_logs.first_failure(tmp_path, ("12", "2")) is None  # an attempt that has written nothing


def test_the_attempts_of_a_job_are_ordered_by_their_number(tmp_path: Path) -> None:
    """The clocks of its nodes may differ by more than an attempt takes."""
    write(
        tmp_path,
        rank_00001=attempt(0, 50) + "error (rank 1): of an older attempt\n",
        node_00000=attempt(10, 10) + "step 2\n",
        rank_00002=attempt(9, 55) + "error (rank 2): of an older attempt\n",
    )
    assert rank_logs.newest_attempt(tmp_path) == (("12", "10"), {"node-00000": "step 2\n"})
    assert rank_logs.first_failure(tmp_path) is None


def test_an_attempt_that_is_known_is_found_without_clocks(tmp_path: Path) -> None:
    """Here the node of the earlier job was ahead."""
    write(
        tmp_path,
        rank_00001=attempt(0, 50, job=11) + "error (rank 1): of the earlier job\n",
        node_00000=attempt(0, 10) + "error: of this one\n",
    )
    assert rank_logs.newest_attempt(tmp_path, "12")[0] == ("12", "0")
    failure = rank_logs.first_failure(tmp_path, ("12", "0"))
    assert failure
    assert failure.what == "rank 0: error: of this one"


@pytest.mark.parametrize(("lines", "shown"), [(0, 0), (1, 1), (2, 2), (1000, 5)])
def test_so_many_lines_of_the_log_are_shown(tmp_path: Path, lines: int, shown: int) -> None:
    write(tmp_path, rank_00003=attempt(0) + "a\n" + TRACEBACK)
    head, _, log = rank_logs.describe(tmp_path, lines).partition("\n\n")
    assert "failed first: rank 3: " in head
    assert len(log.splitlines()) == shown
    assert log.splitlines() == ("a\n" + TRACEBACK).splitlines()[5 - shown :]


def test_a_negative_number_of_lines_is_refused(tmp_path: Path, cli: Run) -> None:
    done = cli("logs", write(tmp_path), "--lines", "-5")
    assert (done.returncode, done.stderr) == (2, "error: --lines -5: must be 0 or more\n")


@pytest.mark.parametrize("name", [".", "logs"])
def test_a_folder_without_rights_is_not_taken_for_an_empty_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as root, whom no rights stop: so here the system refuses by a stand-in."""
    write(tmp_path, node_00000=attempt(0) + "error: of this one\n")
    refused = os.path.normpath(tmp_path / name)

    def refuse(path: str | Path = ".") -> None:
        if os.fspath(path) == refused:
            raise PermissionError(13, "Permission denied", refused)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(PermissionError):
        rank_logs.describe(tmp_path)


def test_describe(cli: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is it the folder of a run"):
        rank_logs.describe(tmp_path)
    assert cli("logs", tmp_path).returncode == 2
    status = {"state": "failed", "step": 3, "steps": 9, "epoch": 1, "reason": "another rank failed"}
    (tmp_path / "status.json").write_text(json.dumps(status))
    assert rank_logs.describe(tmp_path).endswith("the run is still running, or was killed together with its node")
    write(tmp_path, node_00000=attempt(0), rank_00003=attempt(0) + TRACEBACK)
    done = cli("logs", tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{tmp_path}: failed at step 3 of 9, epoch 1\nreason: another rank failed\n")
    assert "failed first: rank 3: This is a fault of dist_sketch (rank 3)" in done.stdout
    assert "ValueError: on purpose" in done.stdout
    (tmp_path / "status.json").write_text(json.dumps({**status, "state": "finished"}))
    assert "ValueError" not in cli("logs", tmp_path).stdout


def test_incomplete_records_are_skipped(tmp_path: Path) -> None:
    assert rank_logs.read_attempts(tmp_path) == []
    write(tmp_path)
    good = {"job": "1", "leg": 0, "state": "stopped", "step": 3, "next": "requeue", "why": "saved\u2028here"}
    whole = json.dumps(good, ensure_ascii=False)
    lines = [whole, '{"job":', "[1]", '{"job": "1"}', json.dumps(good | {"leg": 1}), '{"jo']
    (tmp_path / "logs" / "legs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert rank_logs.read_attempts(tmp_path) == [good, good | {"leg": 1}]


@pytest.mark.parametrize("rank", ["0", "5", None])
def test_all_ranks_but_the_first_write_to_their_own_files(rank: str | None, tmp_path: Path) -> None:
    code = "from dist_sketch.slurm import rank_logs; rank_logs.redirect(); import os, sys"
    code += "; print('out'); print('err', file=sys.stderr)"
    code += "; sys.stdout.flush(); os.system('echo of a child')"
    env = {k: v for k, v in os.environ.items() if k != "RANK"} | ({"RANK": rank} if rank else {})
    env |= {"DIST_SKETCH_LOGS": str(tmp_path / "logs"), "SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "3"}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    if rank == "5":
        assert (done.stdout, done.stderr) == ("", "")
        lines = (tmp_path / "logs" / "rank-00005.log").read_text().splitlines()
        assert sorted(lines[1:4]) == ["err", "of a child", "out"]
        assert lines[4].startswith("=== job 12 leg 3 on ")  # appended
        assert len(lines) == 8
    else:
        assert (done.stdout, done.stderr) == ("out\nof a child\n", "err\n")
        assert not (tmp_path / "logs").exists()


def test_a_log_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("not a folder")
    env = {**os.environ, "DIST_SKETCH_LOGS": str(tmp_path / "logs"), "RANK": "1"}
    code = "from dist_sketch.slurm import rank_logs; rank_logs.redirect(); print('out')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == "out\n"
    assert "cannot be written" in done.stderr


def test_the_report_of_torch_s_launcher_is_understood(tmp_path: Path) -> None:
    """Torch may change it. And the command line redirects a rank's output before it does anything else."""
    done = launch(2, "train", "--out", tmp_path / "run", DIST_SKETCH_LOGS=str(tmp_path / "logs"))
    assert done.returncode != 0
    assert "error: data.shards is not set" in done.stderr
    causes = rank_logs.root_causes(done.stderr)
    assert len(causes) == 1
    assert causes[0]["exitcode"] == "2"
    assert (tmp_path / "logs" / "rank-00001.log").read_text().startswith("=== job 0 leg 0 on ")


def test_reports_that_were_cut_off_cost_no_time() -> None:
    whole = LAUNCHER.format(code=-9, second=1, host="n1", rank=3)
    cut = f"{rank_logs.ROOT_CAUSE}\n[0]:\n  time      : 2026-11-22\n  host      : n1\n  rank      : {'x' * 60}\n"

    def seconds(blocks: int) -> float:
        text, began = cut * blocks + whole, time.process_time()
        assert [(c["host"], c["rank"], c["exitcode"]) for c in rank_logs.root_causes(text)] == [("n1", "3", "-9")]
        return time.process_time() - began

    few, many = (min(seconds(n) for _ in range(3)) for n in (2000, 8000))
    assert many < 10 * few  # 16 if it were quadratic


@pytest.mark.parametrize("filling", ["\n", "\n- ", " ", "x", "rank\n", "rank :\n", "=", "\r", "[0]:"])
def test_reports_that_hold_anything_cost_no_time(filling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_logs, "CAUSE_LENGTH", 10**9)

    def seconds(length: int) -> float:
        text, began = rank_logs.ROOT_CAUSE + filling * (length // len(filling)), time.process_time()
        assert rank_logs.root_causes(text) == []
        return time.process_time() - began

    few, many = (min(seconds(n) for _ in range(3)) for n in (5_000, 40_000))
    assert many < 24 * few + 0.01  # 64 times if it were quadratic


@pytest.mark.parametrize("name", ["rank-00001.log", "legs.jsonl"])
def test_a_pipe_among_the_logs_does_not_stop_the_others(name: str, tmp_path: Path) -> None:
    write(tmp_path, node_00000=attempt(0) + "error: of rank 0\n")
    os.mkfifo(tmp_path / "logs" / name)
    code = "import sys; from pathlib import Path; from dist_sketch.slurm import rank_logs"
    code += "; print(rank_logs.describe(Path(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=20, check=True
    )
    assert "failed first: rank 0: error: of rank 0" in done.stdout


def test_a_terminal_does_not_obey_a_log(tmp_path: Path) -> None:
    write(tmp_path, node_00000=attempt(0), rank_00003=attempt(0) + "\x1b]0;title\x07\nerror (rank 3): no \x1b[2Jface\n")
    text = rank_logs.describe(tmp_path)
    assert "\x1b" not in text
    assert r"error (rank 3): no \x1b[2Jface" in text


def test_of_a_log_without_an_end_the_newest_attempt_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_sketch.slurm.rank_logs.MOST_BYTES", 1000)
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "rank-00001.log"
    log.touch()
    os.truncate(log, 10**12)
    with log.open("ab") as f:
        f.write(b"\n=== job 7 leg 0 on node, 2026-01-01 00:00:00 ===\nerror: it failed\n")
    assert rank_logs.newest_attempt(tmp_path) == (("7", "0"), {"rank-00001": "error: it failed\n"})
