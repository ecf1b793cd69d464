"""The folder that an inference fills: what may lie there, what is removed from it, and what marks it as complete."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_sketch.core import fileio
from dist_sketch.core.errors import UserError
from dist_sketch.core.folders import LOGS, Lock, refuse_file_name, refuse_foreign, refuse_others, tidy
from dist_sketch.core.part import PARTS, Part
from dist_sketch.core.places import Place, place
from dist_sketch.core.saved import read_infer
from dist_sketch.data.sources import labels_of
from dist_sketch.inference import parts

FOLDERS = ("line", "raw", "sketch", "real")


def make_room(out: Path, inputs: Sequence[Place], part: Part | None, about: dict[str, Any], lock: Lock) -> bool:
    """Removes the pictures of an earlier inference, but not other jobs' parts; returns whether there is work left."""
    for path in inputs:
        if isinstance(path, Path) and path.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{out}: holds the input {path}, which would be overwritten; choose another --out")
    if part:
        _look(out, PARTS)
        lock.acquire(shared=True)  # the jobs that draw the other parts work in it, too
        with lock.turn():
            _look(out, PARTS)
            return parts.claim(out, part, about)
    _look(out)
    lock.acquire()
    _look(out)  # another may have drawn there in the meantime
    tidy(out)
    there = read_infer(out)
    # If it is the same inference again, each picture stays until it is drawn anew.
    same = all(there.get(key) == value for key, value in about.items())
    if not same:  # what infer.json says of the pictures does not hold any more, even if this is killed now
        fileio.write_json(out / "infer.json", {"state": "running"})
    for folder in (PARTS,) if same else (*FOLDERS, PARTS):
        shutil.rmtree(out / folder, ignore_errors=True)
    for file in ("metrics.json", "report.html"):
        (out / file).unlink(missing_ok=True)
    # Marks the folder as ours, so that an inference that was killed can be started again.
    before = sorted({file.name for folder in FOLDERS for file in (out / folder).glob("*")})
    fileio.write_json(out / "infer.json", about | {"state": "running", "before": before})
    return True


def lock_for_merge(out: Path, lock: Lock) -> None:
    """Locks a folder of parts, if it is one."""
    if (out / "infer.json").is_file():
        lock.acquire()
        _look(out)


def _look(out: Path, *begun: str) -> None:
    """Refuses a folder that is not an output folder, whose infer.json is not ours, or whose pictures are not all ours.

    Which pictures a finished inference has drawn is known by name, those of an unfinished one only by their kind.

    Args:
        begun: what may be there without an infer.json, if a job was killed before it wrote that.
    """
    refuse_file_name(out, "--out is the folder for all drawings (or, for a single image, a file .png or .jpg)")
    refuse_foreign(out, "an output folder", "infer.json", *begun)
    if not (out / "infer.json").exists():
        refuse_others(out, "an output folder", [LOGS, *begun])
    there, what = read_infer(out), "what an inference has drawn there"
    if there and there != {"state": "running"} and not {"run", "input", "weights_sha256"} <= there.keys():
        raise UserError(f"{out / 'infer.json'}: was not written by dist_sketch; choose another --out")
    for name in (*FOLDERS, PARTS):
        folder = out / name
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise UserError(f"{folder}: is a link or a file where pictures would be written; choose another --out")
    for name in FOLDERS if there else ():
        drawn = [f".{there['format']}"] if "format" in there and name in ("raw", "sketch") else [".png", ".jpg"]
        stems = there.get("names") or [p.stem for p in (out / name).glob("*") if p.is_file()]
        refuse_others(out / name, what, [stem + suffix for stem in stems for suffix in drawn])
    files = [p.name for p in (out / PARTS).glob("*-of-*") if p.suffix in (".pt", ".json")]
    refuse_others(out / PARTS, what, files)


def finish(out: Path, about: dict[str, Any], states: list[Any] | None) -> dict[str, Any] | None:
    """Writes the scores and infer.json, and removes pictures of inputs that were there when it was drawn before.

    Args:
        about: the contents of infer.json.
        states: of the scorers, if the drawings are scored.

    Returns:
        The contents of metrics.json, if the drawings are scored.
    """
    result = None
    if about["left_out"]:
        about["numbers"] = sorted(i for state in states or [] for i, _ in state["names"])
        states = _closed(states or [])
    if states:
        from dist_sketch.inference import scoring  # only where it is needed: it takes a second to import

        result = scoring.finish_scores(out, states, "memory", about)
    # Only those that were there before: a file that was added while it drew is not ours.
    there, names = read_infer(out), set(about["names"])
    earlier = {*there.get("before", []), *(name + end for name in there.get("names", []) for end in (".png", ".jpg"))}
    for file in (out / folder / name for folder in FOLDERS for name in earlier if Path(name).stem not in names):
        file.unlink(missing_ok=True)
    if not about.get("files") and (labels := labels_of(place(about["input"]), about["split"], about["names"])):
        about["labels"] = labels
    fileio.write_json(out / "infer.json", about)  # written last: its "names" mark the output as complete
    return result


def _closed(states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The scorers' states with the gaps closed that inputs leave which cannot be read."""
    numbers = sorted(i for state in states for i, _ in state["names"])
    place = {i: number for number, i in enumerate(numbers)}

    def moved(found: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        return [(place[i], value) for i, value in found]

    return [
        state
        | {"names": moved(state["names"])}
        | {part: {kind: moved(found) for kind, found in state[part].items()} for part in ("rows", "features")}
        for state in states
        if numbers
    ]
