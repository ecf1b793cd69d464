"""What a job does after an attempt, by its run's status and its earlier attempts."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

from dist_sketch.core.errors import UserError
from dist_sketch.core.saved import read_status
from dist_sketch.slurm.rank_logs import Failure, open_log, read_attempts
from dist_sketch.slurm.requeue_policy import AttemptEnd, attempt_end, decide, record, record_lost, settle


def status(state: str, step: int = 8, **more: Any) -> dict[str, Any]:
    return {"state": state, "step": step, "steps": 20, **more}


def earlier(step: int, failed: bool = True, word: str = "requeue", launched: bool = True) -> dict[str, Any]:
    return {"job": "7", "step": step, "failed": failed, "next": word, "launched": launched}


def missed(step: int = 8, *, warned: bool = False) -> AttemptEnd:
    """An attempt whose step SLURM did not start."""
    return AttemptEnd(status("running", step), False, 1, warned, launched=False)


FAILED = status("failed", reason="ValueError: on purpose")
ONCE = "requeue failed at step 8, tries again:"
TWICE = "stop failed twice, and got no further than step 8:"
LATE = "requeue ended by SLURM before it could save;"
SILENT = "killed without an error message"
NO_STEP = "SLURM did not start its step"
MISS = earlier(8, launched=False)
SENTENCE = Failure("rank 2: error (rank 2): no such folder", "", True)
TRACEBACK = Failure("rank 2: This is a fault of dist_sketch (rank 2), not of your input.", "", False)


@pytest.mark.parametrize(
    ("end", "before", "failure", "expected"),
    [
        # finished, with any exit code of the launcher; an old status counts only if nothing went wrong
        (AttemptEnd(status("finished"), True, 0, False), [], None, "done finished at step 8"),
        (AttemptEnd(status("finished"), True, 1, True), [], None, "done finished at step 8"),
        (AttemptEnd(status("finished"), False, 0, False), [], None, "done finished at step 8"),
        (AttemptEnd(status("finished"), False, 1, False), [], None, f"{ONCE} {SILENT}"),
        (AttemptEnd(status("finished"), False, 1, False), [], SENTENCE, f"stop it could not begin: {SENTENCE.what}"),
        # saved: the launcher's exit code is 1
        (AttemptEnd(status("stopped"), True, 1, True), [], None, "requeue saved at step 8"),
        (AttemptEnd(status("stopped"), True, 75, False), [earlier(8)], None, "requeue saved at step 8"),
        # ended by SLURM before it could save
        (AttemptEnd(status("running"), True, 137, True), [], None, f"{LATE} last saved step: 8"),
        (AttemptEnd(status("stopped"), False, 1, True), [earlier(8)], None, f"{LATE} last saved step: 8"),
        (AttemptEnd({}, False, 1, True), [], None, f"{LATE} last saved step: 0"),
        # failed: tries again, then stops
        (AttemptEnd(FAILED, True, 1, False), [], None, f"{ONCE} ValueError: on purpose"),
        (AttemptEnd(FAILED, True, 1, False), [earlier(7)], None, f"{ONCE} ValueError: on purpose"),
        (AttemptEnd(FAILED, True, 1, False), [earlier(8)], None, f"{TWICE} ValueError: on purpose"),
        (AttemptEnd(FAILED, True, 1, False), [earlier(9)], TRACEBACK, f"{TWICE} {TRACEBACK.what}"),
        (AttemptEnd(FAILED, True, 1, False), [earlier(8), earlier(8, False)], None, f"{ONCE} ValueError: on purpose"),
        (AttemptEnd(FAILED, True, 1, True), [earlier(8)], None, f"{TWICE} ValueError: on purpose"),
        (AttemptEnd(status("running"), True, 137, False), [], None, f"{ONCE} {SILENT}"),
        (AttemptEnd(status("running"), True, 137, False), [earlier(8)], None, f"{TWICE} {SILENT}"),
        # killed before it wrote a status: the old one says nothing about this attempt
        (AttemptEnd(status("stopped"), False, 1, False), [earlier(8, False)], None, f"{ONCE} {SILENT}"),
        (AttemptEnd(status("stopped"), False, 1, False), [earlier(8)], None, f"{TWICE} {SILENT}"),
        (AttemptEnd({}, False, 1, False), [], None, f"requeue failed at step 0, tries again: {SILENT}"),
        # not started by SLURM: not the run's fault, but a node that cannot start it three times never will
        (missed(), [], None, f"{ONCE} {NO_STEP}"),
        (missed(), [earlier(8)], None, f"{ONCE} {NO_STEP}"),
        (missed(), [earlier(8), MISS], None, f"{ONCE} {NO_STEP}"),
        (missed(), [MISS, earlier(8), MISS], None, f"{ONCE} {NO_STEP}"),
        (missed(), [earlier(8), MISS, MISS], None, "stop SLURM did not start its step 3 times in a row"),
        (missed(warned=True), [earlier(8)], None, f"{LATE} last saved step: 8"),
        (missed(warned=True), [MISS, MISS], None, f"{LATE} last saved step: 8"),  # preempted again and again
        (missed(), [MISS, earlier(8, False, launched=False)], None, f"{ONCE} {NO_STEP}"),
        (AttemptEnd(FAILED, True, 1, False), [earlier(8), MISS], None, f"{TWICE} ValueError: on purpose"),
        (AttemptEnd(FAILED, True, 1, False), [MISS], None, f"{ONCE} ValueError: on purpose"),
        # a user's mistake in the first attempt will not go away; later the node may be the cause
        (AttemptEnd({}, False, 1, False), [], SENTENCE, f"stop it could not begin: {SENTENCE.what}"),
        (AttemptEnd({}, False, 0, False), [], None, "stop its step ended without an error, but has not trained"),
        (AttemptEnd({}, False, 1, False), [], TRACEBACK, f"requeue failed at step 0, tries again: {TRACEBACK.what}"),
        (AttemptEnd(status("stopped"), False, 1, False), [earlier(8, False)], SENTENCE, f"{ONCE} {SENTENCE.what}"),
    ],
)
def test_decide(end: AttemptEnd, before: list[dict[str, Any]], failure: Failure | None, expected: str) -> None:
    assert " ".join(decide(end, before, 20, failure)) == expected


def test_a_mistake_after_a_lost_node_may_be_the_node_s() -> None:
    """The lost attempt left no record, but SLURM has counted it."""
    assert decide(AttemptEnd({}, False, 1, False), [], 20, SENTENCE, first=False)[0] == "requeue"


def test_requeues_have_a_budget() -> None:
    saved = AttemptEnd(status("stopped"), True, 1, True)
    before = [earlier(1, False), earlier(2, False), earlier(3, False, "done")]
    assert decide(saved, before, 3, None)[0] == "requeue"
    assert decide(saved, before, 2, None) == ("stop", "it has used its 2 requeue(s) (--requeues)")
    assert decide(saved, [], 0, None)[0] == "stop"


def test_the_attempts_of_a_job(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()

    def attempt(
        number: int,
        state: str,
        step: int,
        *,
        warned: bool = False,
        most: int = 20,
        job: str = "7",
        wrote: bool = True,
        began_on_a_node: bool = True,
    ) -> str:
        (run / "status.json").write_text(json.dumps(status(state, step)))
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
        if began_on_a_node:
            (file := open_log(run / "logs", "node-00000.log")) and file.close()
        before = {} if wrote else read_status(run)
        return " ".join(settle(run, attempt_end(run, code=1, before=before, warned=warned), most))

    assert attempt(0, "stopped", 5, warned=True) == "requeue saved at step 5"
    assert attempt(1, "failed", 6) == "requeue failed at step 6, tries again: killed without an error message"
    asked = attempt(2, "stopped", 6, wrote=False, began_on_a_node=False)
    assert asked == f"requeue failed at step 6, tries again: {NO_STEP}"
    assert (
        attempt(3, "stopped", 5, wrote=False)
        == "stop failed twice, and got no further than step 5: killed without an error message"
    )
    # Another job with the same run counts its own attempts.
    assert attempt(0, "failed", 6, job="8") == "requeue failed at step 6, tries again: killed without an error message"
    assert attempt(1, "stopped", 7, most=1, job="8") == "stop it has used its 1 requeue(s) (--requeues)"
    assert attempt(2, "finished", 9, job="8") == "done finished at step 9"
    recorded = [(a["job"], a["leg"], a["state"], a["step"], a["next"]) for a in read_attempts(run)]
    assert recorded == [
        ("7", 0, "stopped", 5, "requeue"),
        ("7", 1, "failed", 6, "requeue"),
        ("7", 2, "not begun", 6, "requeue"),
        ("7", 3, "not begun", 5, "stop"),
        ("8", 0, "failed", 6, "requeue"),
        ("8", 1, "stopped", 7, "stop"),
        ("8", 2, "finished", 9, "done"),
    ]
    assert "job 8 leg 1: stopped at step 7: stop, it has used its 1 requeue(s)" in cli("logs", run).stdout


@pytest.mark.parametrize("behind_s", [600, 0, -600])
@pytest.mark.parametrize(("state", "word"), [("stopped", "requeue saved"), ("finished", "done finished")])
def test_no_clock_tells_whether_an_attempt_has_written(tmp_path: Path, state: str, word: str, behind_s: int) -> None:
    """The clock of the node that writes the status may differ from that of the node that reads it."""
    old = {**status("running", 4), "time": time.time()}
    (tmp_path / "status.json").write_text(json.dumps({**status(state), "time": time.time() - behind_s}))
    end = attempt_end(tmp_path, code=1, before=old, warned=False)
    assert (" ".join(settle(tmp_path, end, 20)), end.failed) == (f"{word} at step 8", False)
    unchanged = attempt_end(tmp_path, code=1, before=read_status(tmp_path), warned=False)
    assert (unchanged.fresh, unchanged.failed) == (False, True)


def test_an_attempt_that_slurm_ended_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tmp_path / "status.json").write_text(json.dumps(FAILED))
    end = attempt_end(tmp_path, code=1, before={}, warned=False)
    assert settle(tmp_path, end, 20)[0] == "requeue"
    record(tmp_path, end, "ended", "by SLURM")
    assert settle(tmp_path, end, 20)[0] == "stop"
    assert [(a["next"], a["failed"]) for a in read_attempts(tmp_path)] == [
        ("requeue", True),
        ("ended", False),
        ("stop", True),
    ]


def test_a_job_stops_if_it_cannot_count_its_attempts(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("not a folder")
    with pytest.raises(UserError, match=r"legs\.jsonl: cannot be written"):
        settle(tmp_path, attempt_end(tmp_path, code=1, before={}, warned=False), 20)
    (tmp_path / "status.json").write_text(json.dumps(status("finished")))
    assert settle(tmp_path, attempt_end(tmp_path, code=1, before={}, warned=False), 20) == (
        "done",
        "finished at step 8",
    )


def test_an_attempt_has_failed_if_its_run_says_so_or_slurm_did_not_announce_its_end() -> None:
    assert AttemptEnd(status("failed"), True, 1, True).failed
    assert not AttemptEnd(status("running"), True, 137, True).failed
    assert not AttemptEnd(status("stopped"), True, 1, False).failed


def test_an_attempt_that_went_with_its_node_is_written_down_by_the_next(
    tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tmp_path / "status.json").write_text(json.dumps(status("running", 6)))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    record_lost(tmp_path)
    assert read_attempts(tmp_path) == []
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for _ in range(2):
        record_lost(tmp_path)
    (lost,) = read_attempts(tmp_path)
    assert (lost["job"], lost["leg"], lost["step"], lost["next"], lost["failed"]) == ("7", 0, 6, "lost", False)
    assert "job 7 leg 0: running at step 6: lost, ended without a word" in cli("logs", tmp_path).stdout
    # It shows nothing about the run, and uses up no requeue.
    assert settle(tmp_path, AttemptEnd(status("failed", 6), True, 1, False), 1)[0] == "requeue"
    record_lost(tmp_path)
    assert [a["leg"] for a in read_attempts(tmp_path)] == [0, 1]
