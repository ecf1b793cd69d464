"""Hooks make a forked process wait or fail at a chosen place of the program; they run before its command does.

A place is MODULE:NAME[.NAME]:COUNT: before the COUNT-th call of a function of dist_sketch.
"""

import importlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dist_sketch.core.errors import UserError


def pauses(prefix: str, *places: str) -> None:
    """At place number N (from 0) the process writes the file PREFIX.N, and waits until the file PREFIX.N.go exists."""

    def pause(file: Path) -> None:
        file.touch()
        while not file.with_name(f"{file.name}.go").exists():
            time.sleep(0.01)

    for n, place in enumerate(places):
        at(place, partial(pause, Path(f"{prefix}.{n}")))


def raises(place: str, kind: str) -> None:
    """The process fails at a place."""

    def fail() -> None:
        raise UserError("this rank's disk is gone; mend it") if kind == "UserError" else ValueError("on purpose")

    at(place, fail)


def at(place: str, act: Callable[[], None]) -> None:
    """Calls `act` when the process comes to a place."""
    module, name, count = place.split(":")
    *owners, name = name.split(".")
    owner = importlib.import_module(f"dist_sketch.{module}")
    for part in owners:
        owner = getattr(owner, part)
    call, called = getattr(owner, name), 0

    def acting(*arguments: Any, **more: Any) -> Any:
        nonlocal called
        called += 1
        if called == int(count):
            act()
        return call(*arguments, **more)

    setattr(owner, name, acting)


def spoils(step: int) -> None:
    """The lines of a training's step number `step` (from 1) are not finite."""
    from dist_sketch.training.step import Step

    call, made = Step.__call__, 0

    def spoilt(self: Step, line: Any, *arguments: Any, **more: Any) -> Any:
        nonlocal made
        made += 1
        return call(self, line * float("nan") if made == int(step) else line, *arguments, **more)

    Step.__call__ = spoilt  # type: ignore[method-assign]
