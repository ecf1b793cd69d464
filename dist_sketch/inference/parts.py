"""Inference in parts, each drawn by a job of its own (a SLURM array): OUT/parts/K-of-N.pt, joined at the end."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_sketch.core import fileio
from dist_sketch.core.errors import UserError
from dist_sketch.core.folders import refuse_foreign
from dist_sketch.core.part import PARTS, Part
from dist_sketch.core.saved import Name, read_infer
from dist_sketch.core.toml_dataclass import checked


def file_of(out: Path, part: Part) -> Path:
    """The file of a part's names and scores."""
    return out / PARTS / f"{part.name}.pt"


def claim(out: Path, part: Part, about: dict[str, Any]) -> bool:
    """Prepares `out` for this part beside the others; returns whether this part still has to be drawn.

    Raises:
        UserError: something else lies there, or parts of another inference.
    """
    mark = about | {"state": PARTS, "parts": part.total}
    if (out / "infer.json").is_file():
        there = read_infer(out)
        if "names" in there and all(there.get(k) == v for k, v in about.items()):
            return False  # all parts are merged already
        differs = [k for k in mark if there.get(k) != mark[k]]
        if differs:
            raise UserError(f"{out}: holds another inference (its {', '.join(differs)} differ); choose another --out")
    else:
        refuse_foreign(out, "an output folder", PARTS)
        (out / PARTS).mkdir(parents=True, exist_ok=True)
        fileio.write_json(out / "infer.json", mark)
    return not file_of(out, part).is_file()


def save(out: Path, part: Part, names: list[str], states: list[Any] | None) -> None:
    """Saves a finished part: the names of its images, and the `Scorer.state()` of its ranks."""
    buffer = io.BytesIO()
    kept = None if states is None else [_map(torch.from_numpy, s) for s in states]
    torch.save({"names": names, "states": kept}, buffer)
    fileio.write_atomic(file_of(out, part), buffer.getvalue())


def load(out: Path) -> tuple[dict[str, Any], list[str], list[Any] | None]:
    """Loads all parts: the contents of infer.json, the names in order, the states of the scorers.

    Raises:
        UserError: `out` holds no parts, or some are missing or damaged.
    """
    about = read_infer(out)
    if about.get("state") != PARTS or "parts" not in about:
        raise UserError(
            f"{out}: has no parts to merge: the merge is a job of its own, after all parts are drawn (`dist-sketch "
            f"infer --part K/N --out {out}`); `dist-sketch submit infer --array=1-N ...` adds it by itself"
        )
    files = [file_of(out, Part(k + 1, about["parts"])) for k in range(about["parts"])]
    missing = [f.stem.replace("-of-", "/") for f in files if not f.is_file()]
    if missing:
        raise UserError(f"{out}: not drawn yet: --part {', '.join(missing)}")
    names: list[str] = []
    states: list[Any] = []
    for file in files:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            names += checked(list[Name], content["names"], str(file))
            states += [_map(Tensor.numpy, s) for s in content["states"] or []]
        except Exception as e:  # with damaged bytes the safe unpickler may raise anything
            raise UserError(f"{file}: is damaged; remove it, and draw this part again") from e
    return {k: v for k, v in about.items() if k not in ("state", "parts")}, names, states or None


def _map(arrays: Callable[[Any], Any], state: dict[str, Any]) -> dict[str, Any]:
    """A scorer's state with its arrays converted: torch's safe unpickler only reads tensors."""

    def row(values: dict[int, Any] | None) -> dict[int, Any] | None:
        return values and {d: arrays(v) for d, v in values.items()}

    features = {kind: [(i, row(values)) for i, values in rows] for kind, rows in state["features"].items()}
    return state | {"features": features, "blank": row(state["blank"])}
