"""Inference in parts, each drawn by a job of its own (a SLURM array): OUT/parts/K-of-N.pt, joined at the end."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from dist_sketch.core import fileio
from dist_sketch.core.errors import SharedError, UserError
from dist_sketch.core.folders import refuse_foreign
from dist_sketch.core.saved import MOST_PARTS, Name, read_infer
from dist_sketch.core.toml_dataclass import checked

PARTS = "parts"


class Part(NamedTuple):
    """Part `number` (from 1) of `total`."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "K/N".

        Raises:
            UserError: it is not that.
        """
        found = re.fullmatch(r"(\d{1,7})/(\d{1,7})", text, re.ASCII)
        part = cls(int(found[1]), int(found[2])) if found else None
        if part is None or not 1 <= part.number <= part.total <= MOST_PARTS:
            raise SharedError(f"--part {text}: must be K/N with K from 1 to N, as 2/8, and N at most {MOST_PARTS:,}")
        return part

    def share(self, count: int) -> range:
        """This part's share of the indices 0..count-1: contiguous; each index belongs to exactly one part."""
        return range(count * (self.number - 1) // self.total, count * self.number // self.total)

    def file(self, out: Path) -> Path:
        """The file of this part's names and scores."""
        return out / PARTS / f"{self.number}-of-{self.total}.pt"


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
    return not part.file(out).is_file()


def save(out: Path, part: Part, names: list[str], states: list[Any] | None) -> None:
    """Saves a finished part: the names of its images, and the `Scorer.state()` of its ranks."""
    buffer = io.BytesIO()
    kept = None if states is None else [_map(torch.from_numpy, s) for s in states]
    torch.save({"names": names, "states": kept}, buffer)
    fileio.write_atomic(part.file(out), buffer.getvalue())


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
    files = [Part(k + 1, about["parts"]).file(out) for k in range(about["parts"])]
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
