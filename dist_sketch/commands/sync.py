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
from dist_sketch.tracking.wandb_file import DAMAGED, HEADER_BYTES, keep_whole_records, media, whole_bytes
from dist_sketch.tracking.wandb_run import FOLDER, Fragment, fragments, logged_in, odd_mode


class NotTakenError(UserError):
    """W&B takes nothing now, so that there is no use in going on."""


@dataclass(frozen=True, kw_only=True)
class SyncCommand:
    """Send what was logged offline to W&B (`wandb login` first): all attempts of a run, in order, as one W&B run.

    An attempt whose file is damaged, and a folder that cannot be sent, do not keep back the others. Exit code 2 if
    anything is missing in W&B.
    """

    folders: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN")]]
    """Folders of training runs, outputs or shards."""
    timeout_s: float = 240.0
    """How long W&B may take for one attempt."""

    def run(self) -> int:
        problems: list[str] = []
        for folder in self.folders:
            try:
                problems += sync(folder, self.timeout_s)
            except UserError as e:
                problems.append(str(e))
                if isinstance(e, NotTakenError):
                    break
        if problems:
            raise UserError("\n".join(problems))
        return 0


def sync(folder: Path, timeout_s: float) -> list[str]:
    """Sends the fragments in `folder`/wandb that have not been sent, oldest first; of a damaged one what is whole.

    All attempts of a run have one id, so W&B appends each to those before. If an attempt was killed, the next one
    repeated the steps after its last checkpoint, and these appear twice.

    Returns:
        What is missing in W&B because of damage, or because pictures or tables are gone.

    Raises:
        NotTakenError: nobody is logged in, or W&B did not take a fragment.
        UserError: no such folder, or a process is using it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if _unsent(folder):
        with Lock(folder) as lock:
            lock.acquire(wait_s=0)  # a run that is still going must not be sent in parts
            lost = _send(folder, _unsent(folder), timeout_s)  # another `sync` may have ended just now
    else:
        lost = []
        sent = sum(_is_sent(file) for _, file in _files(folder))
        more = f"; {sent} attempt(s) were sent before" if sent else f" (no {FOLDER}/offline-run-*)"
        print(f"{folder}: nothing to send{more}")
    return lost + [damage for _, file in _files(folder) if (damage := _damage(file))]


def _files(folder: Path) -> list[tuple[Fragment, Path]]:
    """The offline fragments that hold anything, and their files."""
    offline = [(f, file) for f in fragments(folder) if not f.online for file in f.folder.glob("*.wandb")]
    return [(f, file) for f, file in offline if file.lstat().st_size > HEADER_BYTES]


def _unsent(folder: Path) -> list[tuple[Fragment, Path]]:
    """Those of them that W&B can read and does not have yet."""
    return [(f, file) for f, file in _files(folder) if not _is_sent(file) and whole_bytes(file) > HEADER_BYTES]


def _is_sent(file: Path) -> bool:
    return file.with_name(f"{file.name}.synced").exists()


def _damage(file: Path) -> str:
    """What of a fragment W&B cannot get, and why; "" if nothing."""
    if (before := file.with_name(file.name + DAMAGED)).exists():
        return (
            f"{before}: was cut short or damaged; W&B has what is before the damage; if that will do, remove this file"
        )
    if not _is_sent(file) and whole_bytes(file) <= HEADER_BYTES:
        return f"{file}: W&B can read nothing of it, so it was left out; if that will do, remove {file.parent}"
    return ""


def _send(folder: Path, todo: list[tuple[Fragment, Path]], timeout_s: float) -> list[str]:
    """Sends fragments; returns a sentence for each of which pictures or tables are gone."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to another server; it delays the exit if that is silent
    if odd := odd_mode():
        raise NotTakenError(odd)
    if not logged_in():
        raise NotTakenError("W&B knows no account here: `wandb login` (or set WANDB_API_KEY), then start this again")
    variables = {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_SILENT")}
    variables.setdefault("WANDB__GRAPHQL_RETRY_MAX", "3")  # W&B's default keeps trying for hours without a server
    lost = []
    for n, (fragment, file) in enumerate(todo, 1):
        keep_whole_records(file)
        names = sorted(media(file))
        gone = [name for name in names if not (fragment.folder / "files" / name).is_file()]
        what = f"run {fragment.run_id}, begun {fragment.began}, with {len(names) - len(gone)} pictures and tables"
        print(f"{folder}: {n}/{len(todo)}: {what}", flush=True)
        if gone:
            lost.append(f"{fragment.folder}: {len(gone)} of {len(names)} pictures and tables are gone, as {gone[0]}")
        # -P: modules come from the installation alone. The folder may be somebody else's, so W&B must not take from it
        # the address to which it sends the user's key either (./wandb/settings): it works in an empty folder.
        command = [sys.executable, "-P", "-m", "wandb", "sync", str(file.parent.resolve() / file.name)]
        why, retry = "see above", "start this again"
        with tempfile.TemporaryDirectory() as empty:
            env = variables | {"WANDB_DIR": empty}
            try:
                subprocess.run(command, env=env, cwd=empty, stderr=subprocess.STDOUT, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                why = f"no end within {timeout_s:g} s"
                retry += ", with a longer --timeout-s if its server answers"
        if not _is_sent(file):
            raise NotTakenError(f"{fragment.folder}: W&B did not take it ({why}); {retry}, or remove that folder")
    return lost
