"""`dist-sketch sync RUN...`: sends what runs have logged offline to W&B, the legs of a run in their order."""

import os
import subprocess
import sys
from pathlib import Path

from dist_sketch.core.errors import UserError
from dist_sketch.core.folders import LOCK, Lock
from dist_sketch.tracking.wandb_run import FOLDER, Fragment, fragments, logged_in

HEADER_BYTES = 7  # of W&B's files


def sync(folder: Path) -> None:
    """Sends the fragments in `folder`/wandb that have not been sent, oldest first; stops at the first that fails.

    The legs of a run have one id: W&B appends what comes later. Steps that a killed leg had logged after its last
    checkpoint were done again by the next one, and stand there twice.

    Raises:
        UserError: no such folder, a process is at work in it, nobody is logged in, or W&B did not take it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    found = [f for f in fragments(folder) if not f.online and not _is_empty(f)]
    todo = [f for f in found if not _is_sent(f)]
    if not todo:
        sent = f"; {len(found)} leg(s) were sent before" if found else f" (no {FOLDER}/offline-run-*)"
        print(f"{folder}: nothing to send{sent}")
        return
    if (folder / LOCK).exists():
        Lock(folder).acquire(wait_s=0)  # what is sent counts as a whole
    _check_login()
    for n, fragment in enumerate(todo, 1):
        print(f"{folder}: {n}/{len(todo)}: run {fragment.run_id}, begun {fragment.began}", flush=True)
        _send(fragment, folder)


def _is_empty(fragment: Fragment) -> bool:
    """Of a leg that was killed within its first seconds."""
    return not any(file.stat().st_size > HEADER_BYTES for file in fragment.folder.glob("*.wandb"))


def _is_sent(fragment: Fragment) -> bool:
    return any(fragment.folder.glob("*.wandb.synced"))


def _check_login() -> None:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    if not logged_in(wandb):
        raise UserError("W&B knows no account here: `wandb login` (or set WANDB_API_KEY), then start this again")


def _send(fragment: Fragment, run: Path) -> None:
    command = [sys.executable, "-m", "wandb", "sync", str(fragment.folder.resolve())]
    variables = {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_SILENT")}
    variables.setdefault("WANDB__GRAPHQL_RETRY_MAX", "3")  # else it would try a server that is not there for hours
    process = subprocess.Popen(
        command,
        env=variables | {"WANDB_DIR": str(run.resolve())},
        cwd=run,  # it logs into ./wandb
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print("  " + line, end="", flush=True)
        lines.append(line.strip())
    process.wait()
    if not _is_sent(fragment):
        why = next((line for line in lines if "ERROR" in line), f"`wandb sync` ended with {process.returncode}")
        raise UserError(f"{fragment.folder}: W&B did not take it ({why}); start this again, or remove that folder")
