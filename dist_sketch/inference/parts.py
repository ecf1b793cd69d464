"""An inference in parts, each a job of its own (a SLURM array): OUT/parts/K-of-N.pt, and their union at the end."""

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
        found = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
        part = cls(int(found[1]), int(found[2])) if found else None
        if part is None or not 1 <= part.number <= part.total:
            raise SharedError(f"--part {text}: must be K/N with K from 1 to N, as 2/8")
        return part

    def share(self, count: int) -> range:
        """The indices of 0..count-1 that are this part's: contiguous, each index in exactly one part."""
        return range(count * (self.number - 1) // self.total, count * self.number // self.total)

    def file(self, out: Path) -> Path:
        """Where its names and scores go."""
        return out / PARTS / f"{self.number}-of-{self.total}.pt"


def claim(out: Path, part: Part, about: dict[str, Any]) -> bool:
    """Makes `out` ready for this part beside the others; whether it is still to be drawn.

    Raises:
        UserError: something else lies there, or parts of another inference.
    """
    mark = about | {"state": PARTS, "parts": part.total}
    if (out / "infer.json").is_file():
        there = fileio.read_json(out / "infer.json")
        if "names" in there and all(there.get(k) == v for k, v in about.items()):
            return False  # merged already
        differs = [k for k in mark if there.get(k) != mark[k]]
        if differs:
            raise UserError(
                f"{out}: holds another inference (its {', '.join(differs)} differ); choose another --out, or remove it"
            )
    else:
        refuse_foreign(out, "an output folder", PARTS)
        (out / PARTS).mkdir(parents=True, exist_ok=True)
        fileio.write_json(out / "infer.json", mark)
    return not part.file(out).is_file()


def save(out: Path, part: Part, names: list[str], states: list[Any] | None) -> None:
    """Writes what the union needs of a part that is drawn: its names, and its ranks' `Scorer.state()`."""
    buffer = io.BytesIO()
    kept = None if states is None else [_map(torch.from_numpy, s) for s in states]
    torch.save({"names": names, "states": kept}, buffer)
    fileio.write_atomic(part.file(out), buffer.getvalue())


def load(out: Path) -> tuple[dict[str, Any], list[str], list[Any] | None]:
    """(infer.json's contents, all names in order, all states) of an inference whose parts are all drawn.

    Raises:
        UserError: `out` holds no parts, or some are missing or damaged.
    """
    about = fileio.read_json(out / "infer.json") if (out / "infer.json").is_file() else {}
    if about.get("state") != PARTS:
        raise UserError(f"{out}: holds no parts that wait to be merged (`dist-sketch infer --part K/N --out {out}`)")
    files = [Part(k + 1, about["parts"]).file(out) for k in range(about["parts"])]
    missing = [f.stem.replace("-of-", "/") for f in files if not f.is_file()]
    if missing:
        raise UserError(f"{out}: not drawn yet: --part {', '.join(missing)}")
    names: list[str] = []
    states: list[Any] = []
    for file in files:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            names += content["names"]
            states += [_map(Tensor.numpy, s) for s in content["states"] or []]
        except Exception as e:  # the safe unpickler raises whatever damaged bytes lead it to
            raise UserError(f"{file}: is damaged; remove it, and draw this part again") from e
    return {k: v for k, v in about.items() if k not in ("state", "parts")}, names, states or None


def _map(arrays: Callable[[Any], Any], state: dict[str, Any]) -> dict[str, Any]:
    """A state with `arrays` applied to its arrays: torch's safe unpickler reads tensors alone."""

    def row(values: dict[int, Any] | None) -> dict[int, Any] | None:
        return values and {d: arrays(v) for d, v in values.items()}

    features = {kind: [(i, row(values)) for i, values in rows] for kind, rows in state["features"].items()}
    return state | {"features": features, "blank": row(state["blank"])}
