"""What a job does next, from its run's status and its earlier legs."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

from dist_sketch.core.errors import UserError
from dist_sketch.core.rank_logs import open_log
from dist_sketch.slurm import logs, verdict
from dist_sketch.slurm.verdict import AttemptEnd, decide, settle


def status(state: str, step: int = 8, **more: Any) -> dict[str, Any]:
    return {"state": state, "step": step, "steps": 20, **more}


def record(step: int, failed: bool = True, word: str = "requeue", launched: bool = True) -> dict[str, Any]:
    return {"job": "7", "step": step, "failed": failed, "next": word, "launched": launched}


def missed(step: int = 8, *, warned: bool = False) -> AttemptEnd:
    """A leg whose step SLURM did not start."""
    return AttemptEnd(status("running", step), False, 1, warned, launched=False)


FAILED = status("failed", reason="ValueError: on purpose")
ONCE = "requeue failed at step 8, once more:"
TWICE = "stop failed twice, and came no further than step 8:"
LATE = "requeue ended by SLURM before it could save;"
SILENT = "killed without a word"
NO_STEP = "SLURM did not start its step"
MISS = record(8, launched=False)
SENTENCE = logs.Failure(2, "rank 2: error (rank 2): no such folder", "", True)
TRACEBACK = logs.Failure(2, "rank 2: This is a fault of dist_sketch (rank 2), not of your input.", "", False)


@pytest.mark.parametrize(
    ("leg", "before", "failure", "expected"),
    [
        # finished, whatever the launcher's exit code; an old word of it counts only where nothing went wrong
        (AttemptEnd(status("finished"), True, 0, False), [], None, "done finished at step 8"),
        (AttemptEnd(status("finished"), True, 1, True), [], None, "done finished at step 8"),
        (AttemptEnd(status("finished"), False, 0, False), [], None, "done finished at step 8"),
        (AttemptEnd(status("finished"), False, 1, False), [], None, f"{ONCE} {SILENT}"),
        (AttemptEnd(status("finished"), False, 1, False), [], SENTENCE, f"stop it could not begin: {SENTENCE.what}"),
        # saved: a launcher's exit code is 1 then
        (AttemptEnd(status("stopped"), True, 1, True), [], None, "requeue saved at step 8"),
        (AttemptEnd(status("stopped"), True, 75, False), [record(8)], None, "requeue saved at step 8"),
        # ended by SLURM before it could save
        (AttemptEnd(status("running"), True, 137, True), [], None, f"{LATE} step 8 is saved"),
        (AttemptEnd(status("stopped"), False, 1, True), [record(8)], None, f"{LATE} step 8 is saved"),
        (AttemptEnd({}, False, 1, True), [], None, f"{LATE} step 0 is saved"),
        # failed: once more, then no more
        (AttemptEnd(FAILED, True, 1, False), [], None, f"{ONCE} ValueError: on purpose"),
        (AttemptEnd(FAILED, True, 1, False), [record(7)], None, f"{ONCE} ValueError: on purpose"),
        (AttemptEnd(FAILED, True, 1, False), [record(8)], None, f"{TWICE} ValueError: on purpose"),
        (AttemptEnd(FAILED, True, 1, False), [record(9)], TRACEBACK, f"{TWICE} {TRACEBACK.what}"),
        (AttemptEnd(FAILED, True, 1, False), [record(8), record(8, False)], None, f"{ONCE} ValueError: on purpose"),
        (AttemptEnd(FAILED, True, 1, True), [record(8)], None, f"{TWICE} ValueError: on purpose"),
        (AttemptEnd(status("running"), True, 137, False), [], None, f"{ONCE} {SILENT}"),
        (AttemptEnd(status("running"), True, 137, False), [record(8)], None, f"{TWICE} {SILENT}"),
        # killed before it wrote a word: the old status says nothing of this leg
        (AttemptEnd(status("stopped"), False, 1, False), [record(8, False)], None, f"{ONCE} {SILENT}"),
        (AttemptEnd(status("stopped"), False, 1, False), [record(8)], None, f"{TWICE} {SILENT}"),
        (AttemptEnd({}, False, 1, False), [], None, f"requeue failed at step 0, once more: {SILENT}"),
        # SLURM did not start it: says nothing of the run; but a node that cannot start it will not learn to
        (missed(), [], None, f"{ONCE} {NO_STEP}"),
        (missed(), [record(8)], None, f"{ONCE} {NO_STEP}"),
        (missed(), [record(8), MISS], None, f"{ONCE} {NO_STEP}"),
        (missed(), [MISS, record(8), MISS], None, f"{ONCE} {NO_STEP}"),
        (missed(), [record(8), MISS, MISS], None, "stop SLURM did not start its step 3 times in a row"),
        (missed(warned=True), [record(8)], None, f"{LATE} step 8 is saved"),
        (missed(warned=True), [MISS, MISS], None, f"{LATE} step 8 is saved"),  # preempted again and again
        (missed(), [MISS, record(8, False, launched=False)], None, f"{ONCE} {NO_STEP}"),
        (AttemptEnd(FAILED, True, 1, False), [record(8), MISS], None, f"{TWICE} ValueError: on purpose"),
        (AttemptEnd(FAILED, True, 1, False), [MISS], None, f"{ONCE} ValueError: on purpose"),
        # a mistake of the user's at the very beginning stays one; later it may be the node's
        (AttemptEnd({}, False, 1, False), [], SENTENCE, f"stop it could not begin: {SENTENCE.what}"),
        (AttemptEnd({}, False, 0, False), [], None, "stop it ended as if all were well, but has not trained"),
        (AttemptEnd({}, False, 1, False), [], TRACEBACK, f"requeue failed at step 0, once more: {TRACEBACK.what}"),
        (AttemptEnd(status("stopped"), False, 1, False), [record(8, False)], SENTENCE, f"{ONCE} {SENTENCE.what}"),
    ],
)
def test_decide(leg: AttemptEnd, before: list[dict[str, Any]], failure: logs.Failure | None, expected: str) -> None:
    assert " ".join(decide(leg, before, 20, failure)) == expected


def test_a_mistake_after_a_lost_node_may_be_the_node_s() -> None:
    """Of the leg that was lost there is no record; SLURM has counted it."""
    assert decide(AttemptEnd({}, False, 1, False), [], 20, SENTENCE, first=False)[0] == "requeue"


def test_requeues_have_a_budget() -> None:
    saved = AttemptEnd(status("stopped"), True, 1, True)
    before = [record(1, False), record(2, False), record(3, False, "done")]
    assert decide(saved, before, 3, None)[0] == "requeue"
    assert decide(saved, before, 2, None) == ("stop", "2 requeues are spent (--requeues)")
    assert decide(saved, [], 0, None)[0] == "stop"


def test_a_job_s_legs(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, began = tmp_path / "run", time.time()
    run.mkdir()

    def leg(
        number: int,
        state: str,
        step: int,
        *,
        warned: bool = False,
        most: int = 20,
        job: str = "7",
        ago: float = -1,
        began_on_a_node: bool = True,
    ) -> str:
        (run / "status.json").write_text(json.dumps({**status(state, step), "time": began - ago}))
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
        if began_on_a_node:
            (file := open_log(run / "logs", "node-00000.log")) and file.close()
        return " ".join(settle(run, code=1, since=began, warned=warned, most_requeues=most))

    assert leg(0, "stopped", 5, warned=True) == "requeue saved at step 5"
    assert leg(1, "failed", 6) == "requeue failed at step 6, once more: killed without a word"
    asked = leg(2, "stopped", 6, ago=9, began_on_a_node=False)
    assert asked == f"requeue failed at step 6, once more: {NO_STEP}"
    assert leg(3, "stopped", 5, ago=9) == "stop failed twice, and came no further than step 5: killed without a word"
    # Another job with the same run has chances of its own.
    assert leg(0, "failed", 6, job="8") == "requeue failed at step 6, once more: killed without a word"
    assert leg(1, "stopped", 7, most=1, job="8") == "stop 1 requeues are spent (--requeues)"
    assert leg(2, "finished", 9, job="8") == "done finished at step 9"
    told = [(g["job"], g["leg"], g["state"], g["step"], g["next"]) for g in logs.read_legs(run)]
    assert told == [
        ("7", 0, "stopped", 5, "requeue"),
        ("7", 1, "failed", 6, "requeue"),
        ("7", 2, "not begun", 6, "requeue"),
        ("7", 3, "not begun", 5, "stop"),
        ("8", 0, "failed", 6, "requeue"),
        ("8", 1, "stopped", 7, "stop"),
        ("8", 2, "finished", 9, "done"),
    ]
    assert "job 8 leg 1: stopped at step 7: stop, 1 requeues are spent" in cli("logs", run).stdout


def test_a_leg_that_slurm_ended_is_no_new_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tmp_path / "status.json").write_text(json.dumps({**FAILED, "time": time.time()}))
    assert settle(tmp_path, code=1, since=0, warned=False, most_requeues=20)[0] == "requeue"
    verdict.record(tmp_path, verdict.look(tmp_path, code=143, since=0, warned=False), "ended", "by SLURM")
    assert settle(tmp_path, code=1, since=0, warned=False, most_requeues=20)[0] == "stop"
    assert [leg["next"] for leg in logs.read_legs(tmp_path)] == ["requeue", "ended", "stop"]


def test_what_cannot_be_counted_stops(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("not a folder")
    with pytest.raises(UserError, match=r"legs\.jsonl: cannot be written"):
        settle(tmp_path, code=1, since=0, warned=False, most_requeues=20)
    (tmp_path / "status.json").write_text(json.dumps({**status("finished"), "time": 1}))
    assert settle(tmp_path, code=1, since=0, warned=False, most_requeues=20) == ("done", "finished at step 8")


def test_failed_is_what_slurm_did_not_announce() -> None:
    assert verdict.failed(AttemptEnd(status("failed"), True, 1, True))
    assert not verdict.failed(AttemptEnd(status("running"), True, 137, True))
    assert not verdict.failed(AttemptEnd(status("stopped"), True, 1, False))
