"""`dist-sketch sync`: sends to W&B what was logged offline."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dist_sketch.core.errors import UserError
from dist_sketch.core.folders import Lock
from dist_sketch.tracking.wandb_run import FOLDER, Fragment, fragments, logged_in, odd_mode

HEADER_BYTES = 7  # size of a W&B file without entries, which a run leaves that is killed in its first seconds


@dataclass(frozen=True, kw_only=True)
class SyncCommand:
    """Send what was logged offline to W&B (`wandb login` first): all attempts of a run, in order, as one W&B run."""

    folders: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN")]]
    """Folders of training runs, outputs or shards."""

    def run(self) -> int:
        for folder in self.folders:
            sync(folder)
        return 0


def sync(folder: Path) -> None:
    """Sends the fragments in `folder`/wandb that have not been sent, oldest first; stops at the first that fails.

    All attempts of a run have one id, so W&B appends each to those before. If an attempt was killed, the next one
    repeated the steps after its last checkpoint, and these appear twice.

    Raises:
        UserError: no such folder, a process is using it, nobody is logged in, or W&B did not take a fragment.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if not _unsent(folder):
        return
    with Lock(folder) as lock:
        lock.acquire(wait_s=0)  # a run that is still going must not be sent in parts
        _send(folder, _unsent(folder))  # another `sync` may have ended just now


def _unsent(folder: Path) -> list[Fragment]:
    """What is still to be sent; says so if that is nothing."""
    offline = [f for f in fragments(folder) if not f.online]
    found = [f for f in offline if any(file.stat().st_size > HEADER_BYTES for file in f.folder.glob("*.wandb"))]
    todo = [f for f in found if not _is_sent(f)]
    if not todo:
        sent = f"; {len(found)} attempt(s) were sent before" if found else f" (no {FOLDER}/offline-run-*)"
        print(f"{folder}: nothing to send{sent}")
    return todo


def _send(folder: Path, todo: list[Fragment]) -> None:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to another server; it delays the exit if that is silent
    if odd := odd_mode():
        raise UserError(odd)
    if not logged_in():
        raise UserError("W&B knows no account here: `wandb login` (or set WANDB_API_KEY), then start this again")
    variables = {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_SILENT")}
    variables.setdefault("WANDB__GRAPHQL_RETRY_MAX", "3")  # W&B's default keeps trying for hours without a server
    for n, fragment in enumerate(todo, 1):
        print(f"{folder}: {n}/{len(todo)}: run {fragment.run_id}, begun {fragment.began}", flush=True)
        # -P: modules come from the installation alone. The folder may be somebody else's, so W&B must not take from it
        # the address to which it sends the user's key either (./wandb/settings): it works in an empty folder.
        command = [sys.executable, "-P", "-m", "wandb", "sync", str(fragment.folder.resolve())]
        with tempfile.TemporaryDirectory() as empty:
            env = variables | {"WANDB_DIR": empty}
            ended = subprocess.run(command, env=env, cwd=empty, stderr=subprocess.STDOUT)
        if not _is_sent(fragment):
            raise UserError(
                f"{fragment.folder}: W&B did not take it (`wandb sync` ended with code {ended.returncode}, see above); "
                "start this again, or remove that folder"
            )


def _is_sent(fragment: Fragment) -> bool:
    return any(fragment.folder.glob("*.wandb.synced"))
