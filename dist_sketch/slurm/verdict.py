"""What a SLURM job does when its step has ended: done, once more, or stop.

The answer comes from the run's own status, never from an exit code alone: a launcher ends with 1 after a clean save.
"""

import json
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import read_json
from dist_sketch.core.rank_logs import this_leg
from dist_sketch.slurm import logs

Next = Literal["done", "requeue", "stop"]


LAUNCHES = 3  # times in a row that SLURM may fail to start the step: a node that just came back may need another try


class AttemptEnd(NamedTuple):
    """How a leg ended."""

    status: dict[str, Any]  # status.json; {} if there is none
    fresh: bool  # this leg wrote it
    code: int  # the step's exit code
    warned: bool  # SLURM had announced the leg's end
    launched: bool = True  # the step began, on one node at least


def decide(
    leg: AttemptEnd,
    before: list[dict[str, Any]],
    most_requeues: int,
    failure: logs.Failure | None,
    *,
    first: bool = True,
) -> tuple[Next, str]:
    """What to do after a leg, and why.

    Args:
        before: the records of this job's earlier legs, in order.
        failure: what the ranks' logs say of this leg.
        first: SLURM has never started this job before; of a leg whose node was lost there is no record.
    """
    state, step = leg.status.get("state"), leg.status.get("step", 0)
    if state == "finished" and (leg.fresh or leg.code == 0):
        return "done", f"finished at step {step}"
    reason = failure.what if failure else str(leg.status.get("reason", "")) if leg.fresh else ""
    reason = reason or ("killed without a word" if leg.launched else "SLURM did not start its step")
    if not leg.fresh and not before and first and failure and failure.mistake:
        return "stop", f"it could not begin: {reason}"
    if not leg.fresh and leg.code == 0:
        return "stop", "it ended as if all were well, but has not trained"
    if failed(leg) and not leg.launched:  # says nothing of what the run can do
        missed = [b["failed"] and not b.get("launched", True) for b in before[1 - LAUNCHES :]]
        if missed == [True] * (LAUNCHES - 1):
            return "stop", f"SLURM did not start its step {LAUNCHES} times in a row"
    elif failed(leg):
        ran = [b for b in before if b.get("launched", True)]
        if ran and ran[-1]["failed"] and step <= ran[-1]["step"]:
            return "stop", f"failed twice, and came no further than step {step}: {reason}"
    requeues = sum(b["next"] == "requeue" for b in before)
    if requeues >= most_requeues:
        return "stop", f"{requeues} requeues are spent (--requeues)"
    if failed(leg):
        return "requeue", f"failed at step {step}, once more: {reason}"
    if leg.fresh and state == "stopped":
        return "requeue", f"saved at step {step}"
    return "requeue", f"ended by SLURM before it could save; step {step} is saved"


def failed(leg: AttemptEnd) -> bool:
    """Whether a leg ended as it should not have: neither finished, nor saved, nor ended by SLURM with a warning."""
    if leg.fresh:
        return leg.status.get("state") == "failed" or (leg.status.get("state") == "running" and not leg.warned)
    return not leg.warned


def look(run: Path, *, code: int, since: float, warned: bool) -> AttemptEnd:
    """How a leg has ended, as far as the run's status says."""
    file = run / "status.json"
    status = read_json(file) if file.is_file() else {}
    fresh = status.get("time", 0.0) >= since
    return AttemptEnd(status, fresh, code, warned, launched=fresh or logs.newest_leg(run)[0] == this_leg())


def settle(run: Path, *, code: int, since: float, warned: bool, most_requeues: int) -> tuple[Next, str]:
    """Decides on what a run's status, its ranks' logs and the job's earlier legs say; keeps RUN/logs/legs.jsonl.

    Args:
        code: exit code of the step.
        since: when the leg began, s since 1970: a status that is older says nothing of it.
        warned: SLURM had announced the leg's end (its time limit, a job of higher priority).
        most_requeues: that a job asks for before it stops; those that SLURM decides by itself do not count.

    Raises:
        UserError: the record cannot be written: what cannot be counted must not go on for ever.
    """
    leg = look(run, code=code, since=since, warned=warned)
    job, number = this_leg()
    # Legs that SLURM ended say nothing of what the run can do
    before = [b for b in logs.read_legs(run) if b["job"] == job and b["next"] != "ended"]
    failure = logs.first_failure(run, leg=(job, number))
    word, why = decide(leg, before, most_requeues, failure, first=number == "0")
    record(run, leg, word, why, failed=word != "done" and failed(leg))
    return word, why


def record(run: Path, leg: AttemptEnd, word: str, why: str, *, failed: bool = False) -> None:
    """Adds a leg to RUN/logs/legs.jsonl.

    Raises:
        UserError: it cannot be written, and the run is not done.
    """
    job, number = this_leg()
    line = {
        "job": job,
        "leg": int(number),
        "state": leg.status.get("state", "not begun") if leg.fresh else "not begun",
        "step": leg.status.get("step", 0),
        "failed": failed,
        "warned": leg.warned,
        "launched": leg.launched,
        "code": leg.code,
        "next": word,
        "why": why,
        "time": round(time.time(), 3),
    }
    legs = run / "logs" / logs.LEGS
    try:
        legs.parent.mkdir(parents=True, exist_ok=True)
        with open(legs, "a", encoding="utf-8") as f:
            f.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as e:
        if word != "done":
            raise UserError(f"{legs}: cannot be written ({e.strerror}); the job stops") from e
