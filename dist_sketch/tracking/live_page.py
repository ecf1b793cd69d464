"""The page on which people watch a run: who writes it is handed in, and here it is kept from hurting the run."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dist_sketch.core.words import one_line

# Takes the run's folder, and reads there what it shows; and the run's status, if that of the folder is about to change
WritePage = Callable[[Path, dict[str, Any] | None], object]

SHARE = 0.03  # most of a run's time that the page may cost
FIRST_S = 10.0  # a run's age at which its page is written for the first time; before, there is little to see


class LivePage:
    """Writes the page of a run now and then: so seldom that it hardly costs time, and it never raises.

    Args:
        run: the run's folder.
        write: None: there is no page.
    """

    def __init__(self, run: Path, write: WritePage | None):
        self._run, self._write = run, write
        self._next = time.monotonic() + FIRST_S
        self._written = self._failed = False

    def update(self, status: dict[str, Any] | None = None) -> None:
        """Writes the page if its last writing is long enough ago, or if the run's state changes.

        Args:
            status: what status.json will hold next. So a run that is finished has its page, wherever it is killed.
        """
        must = status is not None and status.get("state") != "running"
        began = time.monotonic()
        if self._write is None or not (must or began >= self._next):
            return
        try:
            self._write(self._run, status)
        except Exception as e:  # a full disk, a file of somebody else in its place, an error of ours: training goes on
            if not self._failed:
                why = str(e) or type(e).__name__
                print(f"warning: the run's page is not written ({one_line(why)}); training goes on")
            self._failed = True
        ended = time.monotonic()
        self._next = ended + ((ended - began) / SHARE if self._written else FIRST_S)
        self._written = True  # the first time takes longer, because it also imports what draws the curves
