"""`dist-sketch report` and `compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dist_sketch.commands.infer import finish
from dist_sketch.core.errors import UserError
from dist_sketch.core.saved import read_scores


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Write OUT/report.html: scores, curves and faces on one self-contained page.

    For the folder of a training run: write RUN/index.html, the page that `train` also writes while it goes on, with
    state and time left, curves, and the validation faces over the epochs.
    """

    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """Output folder of `dist-sketch infer`, or folder of a training run."""
    by: str | None = None
    """A label of the pairs, as style (see `pack --labels`): the page shows the mean scores for each of its values."""
    sheet: Path | None = None
    """Also write a picture of a few faces (line, drawn, real) to this .png or .jpg file."""
    faces: tuple[str, ...] = ()
    """Names of the faces in that picture; default: the first four."""

    def run(self) -> int:
        if (self.out / "config.json").is_file() and not (self.out / "infer.json").is_file():
            return self._show_run()
        from dist_sketch.reports import report

        if self.faces and self.sheet is None:
            raise UserError("--faces: names the faces in the picture that --sheet FILE writes; give that too")
        if self.sheet is not None:
            from dist_sketch.reports.sheet import write_sheet

            write_sheet(self.out, list(self.faces), self.sheet)
        page = report.build(self.out, self.by)
        scores = read_scores(self.out)
        if scores is not None:
            finish(self.out, scores)
        print(page)
        if self.sheet is not None:
            print(self.sheet)
        return 0

    def _show_run(self) -> int:
        from dist_sketch.reports import live

        for option, given in (("--by", self.by), ("--sheet", self.sheet), ("--faces", self.faces)):
            if given:
                raise UserError(
                    f"{option}: {self.out} is a training run, and this shows drawings; name an output folder of "
                    "`dist-sketch infer`"
                )
        print(live.build(self.out))
        return 0


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Compare runs and outputs on one page: what differs, curves, scores over seeds, the same faces side by side.

    The others are compared with the first RUN. Runs that differ only in their seed count as one setting. The tables of
    the page are also written beside it as Markdown and CSV.
    """

    paths: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]]
    """Run folders of `train` and output folders of `infer`, also mixed."""
    out: Path = Path("compare.html")
    """The HTML file to write."""
    by: str | None = None
    """A label of the pairs, as style (see `pack --labels`): the page also shows the mean scores for each of its
    values."""
    title: str = ""
    """Title of the page; default: the names of what is compared."""

    def run(self) -> int:
        from dist_sketch.reports.compare import comparison

        for sentence in comparison.write(list(self.paths), self.out, title=self.title, by=self.by):
            print(sentence)
        print(self.out)
        return 0
