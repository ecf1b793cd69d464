"""Numbers that SLURM and the user give as text."""

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
