"""Compares the scores of two inferences."""

from typing import Any

import pytest


def assert_same_scores(mine: Any, theirs: Any, place: str = "metrics.json") -> None:
    """Every figure to 1e-6 relative, everything else exactly."""
    if isinstance(theirs, dict | list):
        assert type(mine) is type(theirs), place
        assert len(mine) == len(theirs), place
        for key in theirs if isinstance(theirs, dict) else range(len(theirs)):
            assert_same_scores(mine[key], theirs[key], f"{place}: {key}")
    else:
        assert mine == (pytest.approx(theirs, rel=1e-6, abs=1e-12) if isinstance(theirs, float) else theirs), place
