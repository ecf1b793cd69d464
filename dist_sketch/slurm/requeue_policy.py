"""Decides what a job does after an attempt to train: it is done, it is requeued, or it stops.

The run's own status decides, never an exit code alone: a launcher ends with 1 even after a clean save.
"""

import json
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import no_links
from dist_sketch.core.saved import read_status
from dist_sketch.slurm import rank_logs
from dist_sketch.slurm.rank_logs import Failure

Decision = Literal["done", "requeue", "stop"]
LOST = "lost"  # what came next after an attempt that left no record
MOST_LAUNCHES = 3  # in a row that may fail: SLURM cannot always use a node at once that has just come back


class AttemptEnd(NamedTuple):
    """How an attempt ended."""

    status: dict[str, Any]  # status.json; {} if there is none
    fresh: bool  # this attempt wrote the status
    code: int  # exit code of the step
    warned: bool  # SLURM had announced the end: time limit, or a job of higher priority
    launched: bool = True  # SLURM started the step on at least one node

    @property
    def failed(self) -> bool:
        """Whether the run neither finished nor saved, although SLURM had not announced the end."""
        if self.fresh:
            state = self.status.get("state")
            return state == "failed" or (state == "running" and not self.warned)
        return not self.warned


def attempt_end(run: Path, *, code: int, before: dict[str, Any], warned: bool) -> AttemptEnd:
    """Reads from the run's folder how an attempt ended that found the status `before`.

    No time tells whether it wrote the status: the clocks of its nodes may be others than this one's.
    """
    status, this = read_status(run), rank_logs.this_attempt()
    fresh = status != before
    return AttemptEnd(status, fresh, code, warned, launched=fresh or rank_logs.newest_attempt(run, this[0])[0] == this)


def decide(
    end: AttemptEnd, before: list[dict[str, Any]], most_requeues: int, failure: Failure | None, *, first: bool = True
) -> tuple[Decision, str]:
    """What to do after an attempt, and why.

    Args:
        before: the records of this job's earlier attempts, in order.
        most_requeues: how often the job may requeue itself. SLURM's own requeues do not count.
        failure: what the ranks' logs say about this attempt.
        first: SLURM has never started this job before. `before` cannot tell: an attempt whose node died left no record.
    """
    state, step = end.status.get("state"), end.status.get("step", 0)
    if state == "finished" and (end.fresh or end.code == 0):
        return "done", f"finished at step {step}"
    reason = failure.what if failure else str(end.status.get("reason", "")) if end.fresh else ""
    reason = reason or ("killed without an error message" if end.launched else "SLURM did not start its step")
    if not end.fresh and not before and first and failure and failure.mistake:
        return "stop", f"it could not begin: {reason}"
    if not end.fresh and end.code == 0:
        return "stop", "its step ended without an error, but has not trained"
    if end.failed and not end.launched:  # not the run's fault
        missed = [b["failed"] and not b.get("launched", True) for b in before[1 - MOST_LAUNCHES :]]
        if missed == [True] * (MOST_LAUNCHES - 1):
            return "stop", f"SLURM did not start its step {MOST_LAUNCHES} times in a row"
    elif end.failed:
        launched = [b for b in before if b.get("launched", True)]
        if launched and launched[-1]["failed"] and step <= launched[-1]["step"]:
            return "stop", f"failed twice, and got no further than step {step}: {reason}"
    requeues = sum(b["next"] == "requeue" for b in before)
    if requeues >= most_requeues:
        return "stop", f"it has used its {requeues} requeue(s) (--requeues)"
    if end.failed:
        return "requeue", f"failed at step {step}, tries again: {reason}"
    if end.fresh and state == "stopped":
        return "requeue", f"saved at step {step}"
    return "requeue", f"ended by SLURM before it could save; last saved step: {step}"


def settle(run: Path, end: AttemptEnd, most_requeues: int) -> tuple[Decision, str]:
    """Decides what comes after an attempt, and records it.

    Raises:
        UserError: the record cannot be written. The job then stops, as it could not count its requeues.
    """
    job, number = rank_logs.this_attempt()
    # Attempts that SLURM ended, or that went with their node, show nothing about the run.
    before = [a for a in rank_logs.read_attempts(run) if a["job"] == job and a["next"] not in ("ended", LOST)]
    decision, why = decide(end, before, most_requeues, rank_logs.first_failure(run, (job, number)), first=number == "0")
    record(run, end, decision, why)
    return decision, why


def record_lost(run: Path) -> None:
    """Writes down that the attempt before this one has ended without a word, if it has left no record of its own.

    Raises:
        UserError: the record cannot be written.
    """
    job, number = rank_logs.this_attempt()
    before = int(number) - 1
    if before < 0 or any((a["job"], a["leg"]) == (job, before) for a in rank_logs.read_attempts(run)):
        return
    end = AttemptEnd(read_status(run), fresh=True, code=-1, warned=False)
    record(run, end, LOST, "ended without a word: its node lost its power, say, or was cut off", number=before)


def record(run: Path, end: AttemptEnd, decision: str, why: str, *, number: int | None = None) -> None:
    """Adds an attempt, this one or the one of `number`, to RUN/logs/legs.jsonl.

    Raises:
        UserError: the file cannot be written, and the run is not done.
    """
    job, this = rank_logs.this_attempt()
    line = {
        "job": job,
        "leg": int(this) if number is None else number,
        "state": end.status.get("state", "not begun") if end.fresh else "not begun",
        "step": end.status.get("step", 0),
        "failed": decision in ("requeue", "stop") and end.failed,
        "warned": end.warned,
        "launched": end.launched,
        "code": end.code,
        "next": decision,
        "why": why,
        "time": round(time.time(), 3),
    }
    file = run / "logs" / rank_logs.ATTEMPTS
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8", opener=no_links) as f:
            f.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as e:
        if decision != "done":
            raise UserError(f"{file}: cannot be written ({e.strerror}); the job stops") from e
