"""Progress of a training run: a bar with speed and time left on a terminal, one line for each epoch in a log file."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressBar(Progress):
    """A bar for `steps` steps of `batch_size` images (over all ranks), of which earlier attempts have made `done`.

    A context manager; silent on all ranks but the first.
    """

    def __init__(self, steps: int, batch_size: int, done: int, is_main: bool):
        console = Console(quiet=not is_main, soft_wrap=True, highlight=False)
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._batch_size, self._epoch = batch_size, -1
        self._task = self.add_task("", total=steps, completed=done, rate="", losses="")

    def show(self, step: int, epoch: int, epochs: int, values: dict[str, float]) -> None:
        """Shows that `step` steps are done; `values` are the newest losses."""
        losses = f"D {values['loss/d']:.3f} G {values['loss/g']:.3f} L1 {values['loss/g_l1']:.4f}" if values else ""
        speed = self.tasks[0].speed
        rate = f"{speed * self._batch_size:.1f} images/s" if speed else ""
        label = f"epoch {epoch + 1}/{epochs}"
        self.update(self._task, completed=step, description=label, losses=losses, rate=rate)
        if epoch != self._epoch and not self.console.is_terminal:
            self.console.print(f"{label} step {step} {losses}")
        self._epoch = epoch
