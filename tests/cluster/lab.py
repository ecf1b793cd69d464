"""The cluster of `slurmlab.sh` for tests: submits jobs, waits for them, disturbs them."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SCRIPT = Path(__file__).with_name("slurmlab.sh")
SCRIPTS = Path(__file__).parents[2] / "slurm"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY")


class Lab:
    """Two running nodes of eight CPUs; jobs are submitted from `folder`, which holds their logs.

    Args:
        prefix: of the nodes' names; no other cluster on this machine may have it.
    """

    def __init__(self, prefix: str):
        assert os.geteuid() == 0, "the cluster needs root"
        assert shutil.which("sbatch"), "the cluster needs the packages named in .ci/run"
        self.home = Path(tempfile.mkdtemp(prefix="slurmlab-"))  # short: a socket's path has 107 characters
        self.folder = self.home / "work"
        self.folder.mkdir()
        self.nodes = [f"{prefix}1", f"{prefix}2"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._env = {**os.environ, "PATH": path, "LAB_PREFIX": prefix, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
        self.verb("up")

    def verb(self, verb: str, *words: object) -> str:
        """Runs slurmlab.sh; returns its output."""
        command = [str(SCRIPT), verb, str(self.home / "lab"), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=self._env, cwd=self.folder, timeout=120)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def __call__(self, *words: object) -> str:
        """Runs a command on the login node; returns its output."""
        return self.verb("exec", *words)

    def submit(self, *words: object) -> int:
        """Runs sbatch; returns the job's id."""
        return int(self("sbatch", "--parsable", *words))

    def submit_all(self, *words: object) -> dict[str, int]:
        """Runs `dist-sketch submit`; returns each job's id by its name."""
        said = self("dist-sketch", "submit", *words)
        return {name: int(job) for name, job in re.findall(r"^(\w+): job (\d+)$", said, re.MULTILINE)}

    def show(self, job: int | str, field: str) -> str:
        """A field of `scontrol show job`."""
        words = self("scontrol", "--oneliner", "show", "job", job).split()
        return next(w.partition("=")[2] for w in words if w.startswith(f"{field}="))

    def state(self, job: int | str) -> str:
        """The state of a job, or of a task of an array (12_3)."""
        return self.show(job, "JobState")

    def wait(self, job: int | str, timeout_s: float = 240) -> str:
        """Waits for the end of a job; returns its last state."""
        self.wait_for(lambda: self.state(job) in ENDED, f"the end of job {job}", job, timeout_s)
        return self.state(job)

    def wait_for(self, holds: Callable[[], bool], what: str, job: int | str, timeout_s: float = 120) -> float:
        """Waits until something holds; returns how long it took, s."""
        started = time.monotonic()
        while not holds():
            assert time.monotonic() - started < timeout_s, f"no {what}\n{self.state(job)}\n{self.log(job)}"
            time.sleep(0.2)
        return time.monotonic() - started

    def log(self, job: int | str) -> str:
        """The log of a job."""
        return "".join(p.read_text() for p in self.folder.glob(f"*-{job}.*"))

    def close(self) -> None:
        """Ends the cluster with all its jobs and removes its files."""
        self.verb("down")
        shutil.rmtree(self.home)
