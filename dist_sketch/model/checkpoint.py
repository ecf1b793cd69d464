"""Checkpoints of a run, written atomically: each is complete or does not exist.

RUN/checkpoints/step-NNNNNNNN/
    generator.safetensors, discriminator.safetensors[, ema.safetensors]
    state.pt        optimizers, scalers, policy, position in the epoch: plain tensors, numbers and strings
    rng.pt          random state of each rank
    best.json       the step with the best score; missing if it is this one, or if `checkpoint.choose` is last
    checkpoint.json step, and size and SHA-256 of each file; written last, before the folder gets its name
"""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Column, Table
from safetensors.torch import save as to_bytes
from torch import nn

from dist_sketch.core import folders
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import sha256, step_in
from dist_sketch.core.ranks import Ranks
from dist_sketch.core.saved import read_best, read_seal
from dist_sketch.core.words import plain, tell
from dist_sketch.model.weights import load_weights

FOLDER, BEST = "checkpoints", "best.json"
BEFORE = "Remove {} to go on from the checkpoint before it"  # of a damaged one


def save(
    run: Path,
    step: int,
    modules: dict[str, nn.Module],
    state: dict[str, Any],
    ranks: Ranks,
    keep: int,
    best: int | None = None,
) -> None:
    """Saves the run as of `step`; called by all ranks, written by rank 0.

    Afterwards only the `keep` newest remain, and that of step `best`, whose weights draw.

    Raises:
        UserError: the disk is full or cannot be written; older checkpoints are untouched.
    """
    on_gpu = ranks.device.type == "cuda"
    own = {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state(ranks.device)} if on_gpu else {})
    rng = ranks.gather_to_main(own)
    ranks.main_decides(lambda: _write(run, step, modules, state, rng, keep, best))


def _write(
    run: Path, step: int, modules: dict[str, nn.Module], state: dict[str, Any], rng: Any, keep: int, best: int | None
) -> None:
    final = folder(run, step)
    try:
        for part in final.parent.glob(".step-*.part"):  # left by a run that was killed while it saved
            shutil.rmtree(part, ignore_errors=True)
        with folders.replaced(final) as new:
            for name, module in modules.items():
                # Standard layout, whatever the memory format: equal weights are equal bytes.
                tensors = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
                _write_file(new / f"{name}.safetensors", to_bytes(tensors))
            _write_file(new / "state.pt", _pickled(state))
            _write_file(new / "rng.pt", _pickled(rng))
            if best not in (None, step):
                _write_file(new / BEST, json.dumps({"step": best}).encode())
            files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(new.iterdir())}
            _write_file(new / "checkpoint.json", json.dumps({"step": step, "files": files}, indent=2).encode())
        folders.sync(final.parent)
    except OSError as e:
        raise UserError(f"{final}: the checkpoint cannot be written ({e.strerror}); free space, then resume") from e
    # Later checkpoints are damaged (else the run would have resumed from one), so they do not count.
    kept = [f for f in folders_of(run) if step_of(f) <= step][:keep]
    for old in folders_of(run):
        if old not in kept and step_of(old) != best:
            going = old.with_name(f".{old.name}.part")  # under its final name a checkpoint must always be complete
            with suppress(OSError):
                os.replace(old, going)
                shutil.rmtree(going)


def _write_file(path: Path, data: bytes) -> None:
    """Writes bytes, because safetensors and torch report a full disk with error types of their own."""
    path.write_bytes(data)
    folders.sync(path)


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def folders_of(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, newest first; none if the run has saved nothing yet.

    Raises:
        UserError: they are out of sight, as on a disk that is not there. To train anew would then lose the run.
    """
    home = run / FOLDER
    try:
        found = [home / name for name in os.listdir(home) if step_in(name) is not None]
        return sorted((p for p in found if p.is_dir()), key=step_of, reverse=True)
    except OSError as e:
        if isinstance(e, FileNotFoundError) and not home.is_symlink():
            return []
        why = (
            f"links to {os.readlink(home)}, which is not there"
            if home.is_symlink()
            else f"cannot be read ({e.strerror})"
        )
        raise UserError(f"{home}: {why}; is its disk there, and may this user read it?") from e


def verify(folder: Path) -> list[str]:
    """What is wrong with a checkpoint; an empty list for a good one."""
    seal = folder / "checkpoint.json"
    try:
        files = {folder / n: (v["bytes"], v["sha256"]) for n, v in read_seal(folder)["files"].items()}
    except UserError as e:
        return [str(e)]
    problems = []
    for path, expected in files.items():
        try:
            if path.exists() and not path.is_file():  # a pipe would never end
                problems.append(f"{path}: is not a file")
            elif path.stat().st_size != expected[0] or sha256(path) != expected[1]:
                problems.append(f"{path}: damaged (size or hash)")
        except FileNotFoundError:
            problems.append(f"{path}: missing")
        except OSError as e:
            problems.append(f"{path}: cannot be read ({e.strerror})")
    return problems or ([] if files else [f"{seal}: damaged (does not list the files)"])


def find(run: Path, say: Callable[[str], None] = tell, *, until: int | None = None) -> Path | None:
    """The newest complete checkpoint (up to step `until`), or None.

    Damaged ones are reported through `say` and passed over.
    """
    for folder in folders_of(run):
        if until is not None and step_of(folder) > until:
            continue
        problems = verify(folder)
        if not problems:
            return folder
        say(f"passed over: {'; '.join(problems)}")
    return None


def folder(run: Path, step: int) -> Path:
    """The folder of the checkpoint of a step, whether it exists or not."""
    return run / FOLDER / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(folder.name.removeprefix("step-"))


def chosen(run: Path, say: Callable[[str], None] = tell) -> Path | None:
    """The checkpoint whose weights draw: the best according to the newest complete one, else the newest; or None."""
    newest = find(run, say)
    step = read_best(newest) if newest else None
    if step is None:
        return newest
    best = folder(run, step)
    if problems := verify(best):
        say(f"passed over the best one: {'; '.join(problems)}")
        return newest
    return best


class CheckpointInfo(NamedTuple):
    """A checkpoint on the disk."""

    folder: Path
    bytes: int
    files: int
    written: datetime
    problems: list[str]  # empty: it is complete


def entries(run: Path, step: int | None = None) -> list[CheckpointInfo]:
    """A run's checkpoints (or only that of `step`), newest first, all their files compared with their hashes.

    Raises:
        UserError: there is none.
    """
    folders = folders_of(run)
    if not folders:
        raise UserError(f"{run}: has no checkpoints; is it the folder of a run?")
    chosen = [f for f in folders if step in (None, step_of(f))]
    if not chosen:
        steps = ", ".join(str(step_of(f)) for f in reversed(folders))
        raise UserError(f"--step {step}: there is no such checkpoint; there are {steps}")
    found = []
    for folder in chosen:
        problems = verify(folder)
        with suppress(FileNotFoundError):  # the run continues, and has removed it in the meantime
            sizes = [p.stat().st_size for p in folder.iterdir()]
            seal = folder / "checkpoint.json"
            written = datetime.fromtimestamp(int((seal if seal.is_file() else folder).stat().st_mtime))
            found.append(CheckpointInfo(folder, sum(sizes), len(sizes), written, problems))
    return [e for e in found if e.folder.is_dir()]


def check(run: Path, step: int | None = None, say: Callable[[str], None] = tell) -> None:
    """Reports through `say` which of a run's checkpoints (or only that of `step`) are good.

    Raises:
        UserError: some are damaged, or there is none; it names the files and the newest complete checkpoint.
    """
    found = entries(run, step)
    damaged = [e for e in found if e.problems]
    for e in found:
        if not e.problems:
            say(f"{e.folder}: good ({e.files} files, {decimal(e.bytes)})")
    if damaged:
        newest = find(run, lambda _: None)
        lines = [f"{len(damaged)} of {len(found)} checkpoint(s) damaged:"]
        lines += [f"  {problem}" for e in damaged for problem in e.problems]
        raise UserError("\n".join([*lines, f"newest complete checkpoint: {newest or 'none'}"]))


def table(found: list[CheckpointInfo]) -> Table:
    """The checkpoints as a table; marks the newest complete one, and the one that draws if that is another."""
    result = Table(*(Column(name, no_wrap=True) for name in ("step", "size", "files", "written")), "state")
    now, newest = datetime.now().replace(microsecond=0), next((e for e in found if not e.problems), None)
    best = read_best(newest.folder) if newest else None
    for e in found:
        state = "; ".join(p.replace(f"{e.folder}{os.sep}", "") for p in e.problems) or "complete"
        state += ", draws" * (step_of(e.folder) == best and not e.problems)
        when = f"{e.written:%Y-%m-%d %H:%M} ({max(now - e.written, timedelta())} ago)"
        cells = (str(step_of(e.folder)), decimal(e.bytes), str(e.files), when, state + ", newest" * (e is newest))
        style = "bold" if e is newest else "red" if e.problems else None
        result.add_row(*(escape(plain(cell)) for cell in cells), style=style)
    return result


def load(folder: Path, modules: dict[str, nn.Module], ranks: Ranks) -> dict[str, Any]:
    """Restores the networks and this rank's random state; returns the `state` that `save` was given.

    If the number of ranks has changed, their random streams cannot be continued: they are seeded from the step, with a
    warning.

    Raises:
        UserError: a file is damaged, or has contents that a checkpoint never has; what is in `state` the caller checks.
    """
    for name, module in modules.items():
        try:
            load_weights(folder / f"{name}.safetensors", module)
        except UserError as e:
            raise UserError(f"{e}. {BEFORE.format(folder)}") from e
    state: dict[str, Any] = _unpickled(folder / "state.pt")
    rng = _unpickled(folder / "rng.pt")
    with believed(folder / "rng.pt"):
        own = rng[ranks.rank] if len(rng) == ranks.world_size else None
        if own is not None:
            torch.set_rng_state(own["cpu"])
        if own is not None and ranks.device.type == "cuda" and "cuda" in own:
            torch.cuda.set_rng_state(own["cuda"], ranks.device)
    if own is None:
        torch.manual_seed(hash((step_of(folder), ranks.rank)))
        if ranks.is_main:
            print(f"warning: saved on {len(rng)} rank(s), resumed on {ranks.world_size}: dropout draws other numbers")
    return state


@contextmanager
def believed(path: Path) -> Iterator[None]:
    """In this block the contents of a checkpoint's file are taken as they are; what does not fit is a sentence.

    Raises:
        UserError: `path` has contents that a checkpoint never has.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as e:
        raise UserError(
            f"{path}: has contents that a checkpoint never has ({type(e).__name__}: {str(e)[:200]}). "
            f"{BEFORE.format(path.parent)}"
        ) from e


def _unpickled(path: Path) -> Any:
    try:
        content = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as e:  # pickle, zipfile and torch raise many types
        raise UserError(
            f"{path}: damaged, or holds more than plain values; nothing of it was run. Remove {path.parent} to go on "
            "from the checkpoint before it"
        ) from e
