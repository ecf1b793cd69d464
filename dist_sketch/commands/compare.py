"""`dist-sketch compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


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
    title: str = ""
    """Title of the page; default: the names of what is compared."""

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch.reports.compare import comparison

        for sentence in comparison.write(list(self.paths), self.out, title=self.title):
            print(sentence)
        print(self.out)
        return 0
