"""Logs of a job's ranks in RUN/logs: writes them, and finds the rank that failed first.

`rank-NNNNN.log` holds the output of a rank other than 0. `node-NNNNN.log` holds the output of a node's launcher and, on
the first node, of rank 0; the job's own log repeats it. Each attempt of the job appends to them, below a line that
names the job and the attempt ("leg").
"""

import errno
import io
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import no_links, open_regular
from dist_sketch.core.hang_watch import read_hang
from dist_sketch.core.saved import attempt_line, read_status
from dist_sketch.core.words import plain

FOLDER_VARIABLE = "DIST_SKETCH_LOGS"
ATTEMPTS = "legs.jsonl"
ATTEMPT_LINE = re.compile(r"^=== job (\S+) leg ([0-9]{1,9}) .*===$", re.MULTILINE)
# How `__main__` reports an error
ERROR_LINE = re.compile(r"^(?:error\b.*|This is a fault of dist_sketch.*)$", re.MULTILINE)
LOST_PEER = "another rank failed or is gone"
# The report of torch's launcher: this title, then a line for each of the fields. A negative exit code is a signal.
ROOT_CAUSE = "Root Cause (first observed failure):"
CAUSE_FIELD = re.compile(r"^[^\w\n]*(time|host|rank|exitcode)[ \t]*:[ \t]*(\S+)", re.MULTILINE)
MOST_BYTES = 2**28  # that are read of a log; only its newest attempt counts
CAUSE_LENGTH = 4000  # most characters of such a report


class Failure(NamedTuple):
    """The rank that failed first."""

    what: str  # one line that names the rank
    log: str  # of this rank, up to its error
    mistake: bool  # of the user, not of the program: a sentence and exit code 2


def redirect() -> None:
    """Sends the output of this process to its own log if it is a rank other than 0 of a SLURM job."""
    folder, rank = os.environ.get(FOLDER_VARIABLE), os.environ.get("RANK", "")
    if not folder or not rank.isdecimal() or not int(rank):
        return
    file = open_log(Path(folder), f"rank-{int(rank):05d}.log")
    if file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def this_attempt() -> tuple[str, str]:
    """SLURM's id of this job, and how often it was started before."""
    return os.environ.get("SLURM_JOB_ID") or "0", os.environ.get("SLURM_RESTART_COUNT") or "0"


def open_log(folder: Path, name: str) -> IO[bytes] | None:
    """Opens a log and writes the line of this attempt; None, after a warning, if it cannot be written."""
    try:
        if folder.is_symlink():
            raise OSError(errno.ELOOP, "its folder is a link; remove it")
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / name, "ab", opener=no_links)  # noqa: SIM115 - open as long as the process lives
        job, number = this_attempt()
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"=== job {job} leg {number} on {socket.gethostname()}, {now} ===\n".encode())
        file.flush()
    except OSError as e:
        print(f"warning: {folder / name}: cannot be written ({e.strerror})", file=sys.stderr)
        return None
    return file


def read_attempts(run: Path) -> list[dict[str, Any]]:
    """How each attempt ended, as `dist-sketch leg` recorded it; skips lines that were cut off while being written."""
    return [a for line in _read(run / "logs" / ATTEMPTS).split("\n") if (a := attempt_line(line))]


def _read(path: Path) -> str:
    """The end of the text of a log; empty if it is missing, or no regular file, which might never end."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - MOST_BYTES))
            return io.TextIOWrapper(io.BufferedReader(file), encoding="utf-8", errors="replace").read()
    except OSError:
        return ""


def newest_attempt(run: Path, job: str = "") -> tuple[tuple[str, str], dict[str, str]]:
    """The job and number of the newest attempt, and its part of each log: file's stem -> text.

    Args:
        job: only attempts of this job; default: of the newest one.
    """
    texts = {p.stem: _read(p) for p in (run / "logs").glob("*-*.log")}
    starts = {name: list(ATTEMPT_LINE.finditer(text)) for name, text in texts.items()}
    lasts = [s[-1] for s in starts.values() if s]
    if not job and lasts:  # by time, not by job id: another cluster counts its jobs from 1 again
        job = max(lasts, key=lambda m: m[0][-23:])[1]
    # Within a job by its own count: the clocks of its nodes may differ.
    leg = max((int(m[2]) for m in lasts if m[1] == job), default=None)
    if leg is None:
        return ("", ""), {}
    return (job, str(leg)), {
        name: texts[name][s[-1].end() :].lstrip("\n")
        for name, s in starts.items()
        if s and (s[-1][1], int(s[-1][2])) == (job, leg)
    }


def first_failure(run: Path, attempt: tuple[str, str] | None = None) -> Failure | None:
    """The rank that failed first in the newest attempt; None if the logs name none, or begin no such attempt.

    The ranks' own errors come first. A launcher sees only the ranks of its node, and most of those fail because another
    rank is gone.
    """
    newest, texts = newest_attempt(run, attempt[0] if attempt else "")
    if attempt and attempt != newest:
        return None
    if "node-00000" in texts:
        texts["rank-00000"] = texts["node-00000"]
    for name in sorted(n for n in texts if n.startswith("rank-")):
        # A rank that only reports a lost peer is not the cause.
        errors = [m for m in ERROR_LINE.finditer(texts[name]) if LOST_PEER not in m[0]]
        if errors:
            last = errors[-1]
            log = texts[name][: last.end()]
            return Failure(f"rank {int(name[5:])}: {last[0]}", log, last[0].startswith("error"))
    causes = [c for n, t in texts.items() if n.startswith("node-") for c in root_causes(t)]
    if not causes:
        return None
    # A rank that was killed by a signal could not report an error itself.
    cause = min(causes, key=lambda c: (int(c["exitcode"]) >= 0, c["time"]))
    code, rank = int(cause["exitcode"]), int(cause["rank"])
    ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    log = texts.get(f"rank-{rank:05d}", "").rstrip()
    return Failure(f"rank {rank} on {cause['host']} {ended} at {cause['time']}", log, False)


def root_causes(log: str) -> list[dict[str, str]]:
    """The fields of each whole report of torch's launcher in a log; those that were cut off are left out."""
    found = []
    for report in log.split(ROOT_CAUSE)[1:]:
        fields = dict(reversed(CAUSE_FIELD.findall(report[:CAUSE_LENGTH])))  # the first of each name
        if len(fields) == 4 and all(re.fullmatch(r"-?\d{1,9}", fields[name]) for name in ("rank", "exitcode")):
            found.append(fields)
    return found


def describe(run: Path, lines: int = 30) -> str:
    """Status, attempts and, if something failed, the rank that failed first with the last lines of its log.

    Raises:
        UserError: there is neither a status nor a log.
        OSError: this user may not read the folder.
    """
    status, attempts = read_status(run), read_attempts(run)
    if not status and not (run / "logs").is_dir():
        raise UserError(f"{run}: has neither status.json nor logs/: is it the folder of a run?")
    for folder in (run, run / "logs"):
        if folder.is_dir():
            os.listdir(folder)  # unlike `glob`, it does not take a folder without rights for an empty one
    state = status.get("state", "not begun")
    report = [f"{run}: {state}"]
    if status:
        report[0] += f" at step {status.get('step')} of {status.get('steps')}, epoch {status.get('epoch')}"
        if status.get("reason"):
            report.append(f"reason: {status['reason']}")
    for a in attempts:
        report.append(f"job {a['job']} leg {a['leg']}: {a['state']} at step {a['step']}: {a['next']}, {a['why']}")
    if status.get("slow"):
        report.append(f"slow: {status['slow']}")
    if hang := read_hang(run):
        report.append(f"it hangs: {hang}" if state == "running" else f"it hung before it ended: {hang}")
    ended_well = state in ("finished", "stopped")
    if ended_well and not (attempts and attempts[-1].get("failed")):
        return plain("\n".join(report))
    failure = first_failure(run)
    if failure:
        log = failure.log.splitlines()
        report += [f"failed first: {failure.what}", "", *log[max(0, len(log) - lines) :]]
    elif not ended_well:
        report.append("no rank reports an error: the run is still running, or was killed together with its node")
    return plain("\n".join(report))
