"""`dist-sketch report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dist_sketch.commands.infer import show_scores


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Write OUT/report.html: scores, curves, faces, on one self-contained page."""

    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """Output folder of `dist-sketch infer`."""

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch.core.fileio import read_json
        from dist_sketch.reports import report

        page = report.build(self.out)
        scores = self.out / "metrics.json"
        show_scores(read_json(scores) if scores.is_file() else None, self.out)
        print(page)
        return 0
