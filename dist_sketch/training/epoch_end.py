"""What follows the last step of an epoch: its means are logged, and now and then the validation pairs are drawn."""

from dist_sketch.tracking import wandb_run
from dist_sketch.tracking.wandb_jobs import SAMPLE_COLUMNS, sample_row
from dist_sketch.training.progress import ProgressBar
from dist_sketch.training.run import Run
from dist_sketch.training.validation import DrawnPair


def finish_epoch(run: Run, progress: ProgressBar) -> None:
    """Logs the epoch's means, scores the validation pairs and draws samples where due; then counts the epoch."""
    state, c = run.state, run.config.train
    done = state.epoch + 1
    about = {"epoch": state.epoch, "images": state.step * run.config.data.batch_size}
    means, scores = state.epoch_means(), dict[str, float]()
    run.tracker.log("epoch", state.step, about | means)

    def due(interval_epochs: int) -> bool:
        return interval_epochs > 0 and (done == c.epochs or done % interval_epochs == 0)

    with run.step.averaged():
        run.watch.note(f"the validation after step {state.step}")
        if due(c.validate_interval_epochs):
            scores = run.validation.scores(run.step.drawing, c.validate_limit, run.watch.still)
            run.tracker.log("val", state.step, about | scores)
            state.note_scores(scores, run.config.checkpoint.choose)
        run.watch.note(f"the samples after step {state.step}")
        if due(c.sample_interval_epochs):
            path = run.out / "samples" / f"step-{state.step:08d}.png"
            pairs: list[DrawnPair] = []  # none if no validation pair can be read; they stay on rank 0
            run.ranks.main_decides(lambda: pairs.extend(run.validation.picture(run.step.drawing, c.sample_count, path)))
            nth, count = (-(-epochs // c.sample_interval_epochs) for epochs in (done, c.epochs))
            if wandb_run.is_shown(nth, count) and pairs and run.tracker.wandb.is_on:
                run.tracker.wandb.picture("samples", state.step, about["images"], path)
                rows = [sample_row(s.name, s.line, drawn, real) for s, drawn, real in pairs[: wandb_run.MOST_ROWS]]
                run.tracker.wandb.table("validation", SAMPLE_COLUMNS, rows, state.step, about["images"])
    progress.epoch_done(state.step, state.epoch, c.epochs, means, scores)
    run.tracker.show()
    state.epoch, state.batch, state.sums, state.counts = done, 0, {}, {}
