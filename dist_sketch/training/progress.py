"""Progress of a training run: bars with speed and time left on a terminal, single lines in a log file."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dist_sketch.core.words import duration
from dist_sketch.metrics.definitions import scores_text


class ProgressBar(Progress):
    """A bar for `steps` steps of `batch_size` images (over all ranks), of which earlier attempts have made `done`.

    A log file gets a line for each epoch instead. A context manager; silent on all ranks but the first.
    """

    def __init__(self, steps: int, batch_size: int, done: int, is_main: bool):
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=(console := _console(is_main)),
            disable=not console.is_terminal,
        )
        self._batch_size, self._steps, self._done, self._began = batch_size, steps, done, time.monotonic()
        self._task = self.add_task("", total=steps, completed=done, rate="", losses="")

    def show(self, step: int, epoch: int, epochs: int, values: dict[str, float]) -> None:
        """Shows on a terminal that `step` steps are done; `values` are the newest losses."""
        losses = f"D {values['loss/d']:.3f} G {values['loss/g']:.3f} L1 {values['loss/g_l1']:.4f}" if values else ""
        speed = self.tasks[0].speed
        rate = f"{speed * self._batch_size:.1f} images/s" if speed else ""
        self.update(self._task, completed=step, description=f"epoch {epoch + 1}/{epochs}", losses=losses, rate=rate)

    def epoch_done(
        self, step: int, epoch: int, epochs: int, means: dict[str, float | None], scores: dict[str, float]
    ) -> None:
        """Writes the line of an epoch: its mean losses, the time, and the scores of its validation, if it had one."""
        losses = " ".join(
            f"{name} {'none finite' if value is None else f'{value:.3f}'}"
            for name, value in (("D", means.get("loss/d")), ("G", means.get("loss/g")))
        )
        took_s = time.monotonic() - self._began
        left_s = took_s / max(1, step - self._done) * (self._steps - step)
        parts = [f"epoch {epoch + 1}/{epochs} step {step}: means {losses}", scores_text(scores)]
        times = f"{duration(took_s)}, {duration(left_s)} left" if step < self._steps else duration(took_s)
        line = "; ".join(part for part in (*parts, times) if part)
        if not self.console.is_terminal:
            self.console.print(line)


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Says what is being done: a bar on a terminal, one line in a log file.

    Yields:
        A function that takes how much of `total` is done.
    """
    console = _console()
    if not console.is_terminal:
        console.print(f"{what} ...")
        yield lambda done: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _console(speaks: bool = True) -> Console:
    return Console(quiet=not speaks, soft_wrap=True, highlight=False)
