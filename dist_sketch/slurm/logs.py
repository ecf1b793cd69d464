"""Logs of a job's ranks, RUN/logs: each rank's own file, the job's legs, and which rank failed first.

`rank-NNNNN.log` holds what a rank other than 0 prints, `node-NNNNN.log` what a node's launcher and, on the first node,
rank 0 print (that stands in the job's own log, too). All are appended to; a line opens each leg.
"""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import read_json

LEGS = "legs.jsonl"


LEG = re.compile(r"^=== job (\S+) leg (\d+) .*===$", re.MULTILINE)


# What `__main__` prints of an error; a rank that has only lost another one is not where to look.
OWN_WORDS = re.compile(r"^(?:error\b.*|This is a fault of dist_sketch.*)$", re.MULTILINE)


LOST = "another rank failed or is gone"


# The last words of torch's launcher. An exit code below 0 is a signal.
ROOT_CAUSE = re.compile(
    r"Root Cause \(first observed failure\):.*?time\s*:\s*(?P<time>\S+).*?host\s*:\s*(?P<host>\S+)"
    r".*?rank\s*:\s*(?P<rank>\d+).*?exitcode\s*:\s*(?P<code>-?\d+)",
    re.DOTALL,
)


class Failure(NamedTuple):
    """The rank that failed first, as far as the logs tell."""

    rank: int
    what: str  # a line
    words: str  # the last lines of its log
    mistake: bool  # of the user's: a sentence and exit code 2


def read_legs(run: Path) -> list[dict[str, Any]]:
    """The records of how each leg of a job ended (`dist-sketch after`); torn lines are left out."""
    legs = []
    with suppress(OSError):
        for line in (run / "logs" / LEGS).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                legs.append(json.loads(line))
    return legs


def newest_leg(run: Path) -> tuple[tuple[str, str], dict[str, str]]:
    """What the logs say of the newest leg.

    Returns:
        Its job and number, and file's stem -> text, without the logs that do not know that leg.
    """
    texts = {p.stem: p.read_text(encoding="utf-8", errors="replace") for p in (run / "logs").glob("*-*.log")}
    starts = {name: list(LEG.finditer(text)) for name, text in texts.items()}
    # Jobs' ids grow, but may begin again with another cluster: the log that was begun last tells which is the newest.
    last = max((s[-1] for s in starts.values() if s), key=lambda m: m[0][-23:], default=None)
    if last is None:
        return ("", ""), {}
    return (last[1], last[2]), {
        name: texts[name][s[-1].end() :].lstrip("\n")
        for name, s in starts.items()
        if s and s[-1].group(1, 2) == last.group(1, 2)
    }


def first_failure(run: Path, lines: int = 30, leg: tuple[str, str] | None = None) -> Failure | None:
    """The rank that failed first in the newest leg; None if no rank says so, or if that is not the leg (job, number).

    A rank's own words come before a launcher's: a launcher sees the ranks of its own node only, and most of them fail
    because another one is gone.
    """
    newest, texts = newest_leg(run)
    if leg and leg != newest:
        return None
    if "node-00000" in texts:
        texts["rank-00000"] = texts["node-00000"]  # rank 0 and its launcher share a log
    for name in sorted(n for n in texts if n.startswith("rank-")):
        own = [m[0] for m in OWN_WORDS.finditer(texts[name]) if LOST not in m[0]]
        if own:
            rank, last = int(name[5:]), texts[name].find(own[-1]) + len(own[-1])
            return Failure(
                rank, f"rank {rank}: {own[-1]}", tail(texts[name][:last], lines), own[-1].startswith("error")
            )
    causes = [m for n, t in texts.items() if n.startswith("node-") for m in ROOT_CAUSE.finditer(t)]
    causes.sort(key=lambda m: (int(m["code"]) >= 0, m["time"]))  # one that a signal ended had no last words
    if not causes:
        return None
    cause = causes[0]
    code, rank = int(cause["code"]), int(cause["rank"])
    ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    words = texts.get(f"rank-{rank:05d}", "")
    return Failure(rank, f"rank {rank} on {cause['host']} {ended} at {cause['time']}", tail(words, lines), False)


def tail(text: str, lines: int) -> str:
    """The last lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def describe(run: Path, lines: int = 30) -> str:
    """Status, legs and, unless the run is well, the rank that failed first.

    Raises:
        UserError: there is neither a status nor a log.
    """
    status = read_json(run / "status.json") if (run / "status.json").is_file() else {}
    legs = read_legs(run)
    if not status and not (run / "logs").is_dir():
        raise UserError(f"{run}: has neither status.json nor logs/: is it the folder of a run?")
    state = status.get("state", "not begun")
    told = [f"{run}: {state}"]
    if status:
        told[0] += f" at step {status.get('step')} of {status.get('steps')}, epoch {status.get('epoch')}"
        if status.get("reason"):
            told.append(f"reason: {status['reason']}")
    told += [f"job {g['job']} leg {g['leg']}: {g['state']} at step {g['step']}: {g['next']}, {g['why']}" for g in legs]
    failure = None if state in ("finished", "stopped") and not _failed(legs) else first_failure(run, lines)
    if failure:
        told += [f"failed first: {failure.what}", "", failure.words]
    elif state not in ("finished", "stopped"):
        told.append("no rank says why: it runs, or was killed with its node")
    return "\n".join(told)


def _failed(legs: list[dict[str, Any]]) -> bool:
    return bool(legs) and bool(legs[-1].get("failed"))
