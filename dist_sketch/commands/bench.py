"""`dist-sketch bench [SUBJECT]`."""

import importlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from dist_sketch.bench.options import BenchOptions
from dist_sketch.core import launcher
from dist_sketch.core.errors import SharedError, UserError

Subject = Literal["all", "step", "loader", "infer", "metrics", "scaling", "start"]
SUBJECTS = get_args(Subject)[1:]


@dataclass(frozen=True, kw_only=True)
class BenchCommand:
    """Measure this machine, each figure beside a baseline: the paper's own way, or a limit of the hardware.

    Baseline and ours take turns; the figures are medians over the rounds, with the range in brackets. Run it on an idle
    machine and without a launcher: it starts the processes that it needs.
    """

    subject: tyro.conf.Positional[Annotated[Subject, tyro.conf.arg(metavar="SUBJECT")]] = "all"
    """step, loader, infer, metrics, scaling or start; without it, all of them in turn."""
    json: Path | None = None
    """File to which the figures are written, with the machine and the options."""
    options: Annotated[BenchOptions, tyro.conf.arg(name="")] = field(default_factory=BenchOptions)

    def run(self) -> int:
        options = _check(self.options)
        from dist_sketch.bench.measure import BenchReport

        report = BenchReport(options, self.json)
        report.write()  # fails now, not after the measurements, if the file cannot be written
        report.head()
        for name in SUBJECTS if self.subject == "all" else (self.subject,):
            report.subject = name
            with tempfile.TemporaryDirectory(prefix="dist-sketch-bench-") as folder:
                importlib.import_module(f"dist_sketch.bench.{name}").run(report, Path(folder))
            report.show()
        if self.json is not None:
            print(self.json)
        return 0


def _check(options: BenchOptions) -> BenchOptions:
    if launcher.number("WORLD_SIZE") > 1:
        raise SharedError("bench: starts the processes that it needs; call it without a launcher")
    if options.size % 64 or options.size < 64:
        raise UserError(f"--size {options.size}: must be a multiple of 64")
    least = {"batch_size": 2, "repeats": 1, "loss_steps": 2, "pairs": 2, "images": 4, "index": 4}
    for name, low in (least | {"steps": 0, "workers": 0, "budget_s": 0}).items():
        if getattr(options, name) < low:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least {low}")
    if any(b < 2 for b in options.batch_sizes):
        raise UserError(f"--batch-sizes {' '.join(map(str, options.batch_sizes))}: each must be at least 2")
    if options.pairs < options.batch_size and not options.quick:
        raise UserError(f"--pairs {options.pairs}: must be at least --batch-size ({options.batch_size})")
    if not 64 <= options.source_size <= 2048:
        raise UserError(f"--source-size {options.source_size}: must be from 64 to 2048")
    if options.dims not in (64, 192, 768, 2048):
        raise UserError(f"--dims {options.dims}: must be one of 64, 192, 768, 2048")
    return options.resolved()
