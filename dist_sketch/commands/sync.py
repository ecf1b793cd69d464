"""`dist-sketch sync`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dist_sketch.tracking.sync import sync


@dataclass(frozen=True, kw_only=True)
class SyncCommand:
    """Send what was logged offline to W&B (`wandb login` first): each run's legs in order, as one W&B run."""

    folders: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN")]]
    """Folders of training runs, outputs or shards."""

    def run(self) -> int:
        """Runs the command."""
        for folder in self.folders:
            sync(folder)
        return 0
