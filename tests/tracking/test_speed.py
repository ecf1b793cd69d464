"""The speed of steps; that a slow rank is named is tested in training/test_told.py and on a cluster."""

import pytest

from dist_sketch.core.ranks import Ranks
from dist_sketch.tracking import speed
from dist_sketch.tracking.speed import Speed


def test_a_validation_is_no_part_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now)
    measured = Speed(Ranks(expect_world_size=1), 0)
    now = 3.0
    with measured.pause():
        now = 100.0
    measured.waited_s = 1.0
    now = 101.0
    found = measured.take(2, batch_size=4)
    assert (found["speed/step_s"], found["speed/data_wait"], found["speed/images_per_s"]) == (2.0, 0.25, 2.0)
