"""`dist-sketch report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dist_sketch.commands.infer import show_scores


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Write OUT/report.html: scores, curves and faces on one self-contained page."""

    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """Output folder of `dist-sketch infer`."""
    sheet: Path | None = None
    """Also write a picture of a few faces (line, drawn, real) to this .png or .jpg file."""
    faces: tuple[str, ...] = ()
    """Names of the faces in that picture; default: the first four."""

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch.reports import report
        from dist_sketch.reports.page import optional_json

        page = report.build(self.out)
        show_scores(optional_json(self.out / "metrics.json"), self.out)
        print(page)
        if self.sheet is not None:
            from dist_sketch.reports.sheet import write_sheet

            write_sheet(self.out, list(self.faces), self.sheet)
            print(self.sheet)
        return 0
