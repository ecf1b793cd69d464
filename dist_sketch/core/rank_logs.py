"""The log file of each rank and node of a SLURM job."""

import os
import socket
import sys
import time
from pathlib import Path
from typing import IO

LOG_FOLDER_VARIABLE = "DIST_SKETCH_LOGS"  # variable: where the ranks' logs go


def redirect() -> None:
    """From now on what this rank prints goes to its own log, if it is a job's rank other than 0."""
    folder, rank = os.environ.get(LOG_FOLDER_VARIABLE), os.environ.get("RANK", "0")
    if not folder or rank == "0":
        return
    file = open_log(Path(folder), f"rank-{int(rank):05d}.log")
    if file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def this_leg() -> tuple[str, str]:
    """SLURM's number of this job, and how often it was started before."""
    return os.environ.get("SLURM_JOB_ID", "0"), os.environ.get("SLURM_RESTART_COUNT", "0")


def open_log(folder: Path, name: str) -> IO[bytes] | None:
    """A log with the line of a new leg; None where it cannot be written: then the job's own log has to do."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / name, "ab")  # noqa: SIM115 - open as long as the process lives
        job, leg = this_leg()
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"=== job {job} leg {leg} on {socket.gethostname()}, {now} ===\n".encode())
        file.flush()
    except OSError as e:
        print(f"warning: {folder / name}: cannot be written ({e.strerror})", file=sys.stderr)
        return None
    return file
