"""Progress of a training run: a bar with speed and time left on a terminal, one line for each epoch in a log file."""

from rich import progress as rich_progress
from rich.console import Console


class ProgressBar:
    """A context manager; silent on all ranks but the first.

    Args:
        steps: number of steps of the whole run.
        batch_size: images per step over all ranks.
        done: steps that were done before this attempt.
    """

    def __init__(self, steps: int, batch_size: int, done: int, is_main: bool):
        self._console = Console(quiet=not is_main, soft_wrap=True)
        self._batch_size, self._epoch = batch_size, -1
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn("{task.fields[rate]}"),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.fields[losses]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=done, rate="", losses="")

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, step: int, epoch: int, epochs: int, values: dict[str, float]) -> None:
        """Shows that `step` steps are done; `values` are the newest losses."""
        losses = f"D {values['loss/d']:.3f} G {values['loss/g']:.3f} L1 {values['loss/g_l1']:.4f}" if values else ""
        speed = self._bar.tasks[0].speed
        rate = f"{speed * self._batch_size:.1f} images/s" if speed else ""
        label = f"epoch {epoch + 1}/{epochs}"
        self._bar.update(self._task, completed=step, description=label, losses=losses, rate=rate)
        if epoch != self._epoch and not self._console.is_terminal:
            self._console.print(f"{label} step {step} {losses}")
        self._epoch = epoch

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, highlight=False, markup=False)
