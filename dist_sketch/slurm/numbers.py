"""Numbers that SLURM and the user give as text."""

import math
import re

from dist_sketch.core.errors import UserError

MOST_TASKS = 4_000_000  # SLURM's largest index of an array is 4,000,000
MOST_NODES = 100_000
MOST_RANKS = 1024  # on one node


def number(name: str, text: str, least: int = 0, most: int = 2**32) -> int:
    """The number that the setting or variable `name` holds.

    Raises:
        UserError: it is none, or is out of its range.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise UserError(f"{name}={text}: must be a number from {least:,} to {most:,}")
    return int(text)


def seconds(limit: str) -> float:
    """A time limit of SLURM, s: minutes, minutes:s, hours:minutes:s, days-hours[:minutes[:s]]; infinity if none.

    Raises:
        ValueError: it is not a time.
    """
    if limit.upper() in ("", "UNLIMITED", "INFINITE"):
        return math.inf
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", limit, re.ASCII):
        raise ValueError(limit)
    days, _, clock = limit.rpartition("-")
    numbers = [int(number) for number in clock.split(":")]
    if not days and len(numbers) < 3:
        numbers.insert(0, 0)  # no hours
    hours, minutes, rest = numbers + [0] * (3 - len(numbers))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest or math.inf  # to SLURM 0 is no limit
