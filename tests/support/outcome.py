"""Compares what a disturbed run has written with what the undisturbed run has written."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dist_sketch.model import checkpoint


class Outcome(NamedTuple):
    """All that a run has written, except times and process ids."""

    status: tuple[str, int]
    files: set[str]
    content: dict[str, Any]  # of the files that are equal in equal runs
    metrics: list[dict[str, Any]]  # every line


def outcome(run: Path) -> Outcome:
    status = json.loads((run / "status.json").read_text())
    files = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    same = [f for f in files if Path(f).suffix in (".safetensors", ".png", ".pt") or f == "denoise.json"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in r.items() if k != "time" and not k.startswith("speed/")} for r in lines]
    return Outcome((status["state"], status["step"]), files, {f: content(run / f) for f in same}, metrics)


def content(file: Path) -> Any:
    """The bytes of a file; of a pickled one the values, because its bytes also depend on which objects are shared."""
    return _plain(torch.load(file, weights_only=True)) if file.suffix == ".pt" else file.read_bytes()


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def differences(run: Path, reference: Outcome) -> list[str]:
    """How a finished run differs from the undisturbed one; older checkpoints may be of other steps."""
    found = outcome(run)
    result = [f"{n}: differs" for n in ("status", "metrics") if getattr(found, n) != getattr(reference, n)]
    newest = f"checkpoints/step-{reference.status[1]:08d}/"
    older = {f for f in found.files | reference.files if re.match(r"checkpoints/step-\d{8}/", f)}
    older = {f for f in older if not f.startswith(newest)}
    result += [f"{f}: missing" for f in sorted(reference.files - found.files - older)]
    result += [f"{f}: not in the undisturbed run" for f in sorted(found.files - reference.files - older)]
    both = found.content.keys() & reference.content.keys()
    result += [f"{f}: other content" for f in sorted(both) if found.content[f] != reference.content[f]]
    return result + half_files(run)


def half_files(run: Path) -> list[str]:
    """Files that are incomplete although they have their final names; there must never be any."""
    found = [p for folder in checkpoint.folders_of(run) for p in checkpoint.verify(folder)]
    for path in (p for p in run.glob("*.json") if not p.name.startswith(".")):
        try:
            json.loads(path.read_text())
        except ValueError as e:
            found.append(f"{path}: {e}")
    return found
