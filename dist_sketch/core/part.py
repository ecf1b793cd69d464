"""A share of work that jobs of a SLURM array do, each its own, as `--part K/N` names it."""

import re
from typing import NamedTuple, Self

from dist_sketch.core.errors import SharedError
from dist_sketch.core.saved import MOST_PARTS

PARTS = "parts"  # the folder, in the output's, of what the jobs have made


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

    @property
    def name(self) -> str:
        """The name of its file or folder."""
        return f"{self.number}-of-{self.total}"

    def share(self, count: int) -> range:
        """This part's share of the indices 0..count-1: contiguous; each index belongs to exactly one part."""
        return range(count * (self.number - 1) // self.total, count * self.number // self.total)
