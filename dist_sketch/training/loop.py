"""A whole training run, from top to bottom: set up, resume, loop over epochs and batches, save, finish."""

import os
from dataclasses import replace
from pathlib import Path

from dist_sketch.core import folders
from dist_sketch.core.config import Config
from dist_sketch.core.config_rules import validate
from dist_sketch.core.hang_watch import record_collectives
from dist_sketch.core.ranks import Ranks
from dist_sketch.core.signals import StopRequest
from dist_sketch.core.words import tell
from dist_sketch.data.loader import Batch
from dist_sketch.data.pixels import to_float
from dist_sketch.tracking.live_page import WritePage
from dist_sketch.training import beginning, setup
from dist_sketch.training.epoch_end import finish_epoch
from dist_sketch.training.memory import enough_memory
from dist_sketch.training.policy import decide
from dist_sketch.training.progress import ProgressBar
from dist_sketch.training.run import Run

STOPPED = os.EX_TEMPFAIL  # exit code after a requested stop; the same command continues the run


def train(
    config: Config,
    out: Path,
    *,
    expect_world_size: int | None = None,
    dry_run: bool = False,
    dry_run_steps: int = 0,
    grow: bool = True,
    stop: StopRequest | None = None,
    page: WritePage | None = None,
) -> int:
    """Trains into the folder `out`, or continues the run that is there.

    Args:
        expect_world_size: refuse to start on another number of processes.
        dry_run: resolve, check and print everything, write nothing.
        dry_run_steps: in a dry run, make so many steps in memory to tell the time that the run will take.
        grow: make the run that is there longer if `config` has more epochs.
        stop: a request that may have been made while this module was imported.
        page: writes the page on which people watch the run; rank 0 calls it now and then.

    Returns:
        The exit code: 0 when the run is finished, `STOPPED` when it was asked to stop before.

    Raises:
        UserError: anything that the user can mend.
    """
    validate(config)
    timeout_s = config.train.rank_timeout_s
    record_collectives(out)
    with Ranks(expect_world_size=expect_world_size, timeout_s=timeout_s) as ranks, enough_memory(config):
        facts = ranks.main_decides(lambda: setup.resolve(config, ranks))
        assert config.data.shards is not None
        # Absolute paths, because the saved configuration may be read from another directory.
        config = replace(config, data=replace(config.data, shards=config.data.shards.resolve()))
        config = replace(config, init_from=beginning.anywhere(config.init_from))
        previous = ranks.main_decides(lambda: setup.previous_attempt(out, config, facts, grow))
        if not previous:
            facts |= ranks.main_decides(lambda: beginning.check(config))
        else:
            facts |= previous["facts"]
            config = replace(config, init_from=previous["init_from"])
            config = config if grow else setup.as_long_as_before(config, facts, previous)
        if ranks.is_main:
            setup.show(config, facts, out, previous)
        if dry_run:
            from dist_sketch.training import forecast

            found = forecast.told(config, facts, out, dry_run_steps, ranks)
            if ranks.is_main:
                setup.show_lines(found)
            return 0
        if previous and setup.finished(previous, config):
            if ranks.is_main:
                steps = previous["status"].get("step")
                print(f"{out}: this run is finished ({steps} steps); nothing to do; longer: --train.epochs N")
            return 0
        lock = folders.Lock(out)  # held until this process ends
        facts["run_id"] = ranks.main_decides(lambda: setup.claim(out, config, facts, lock))
        run = Run(config, out, ranks, facts, stop or StopRequest(), page)
        try:
            code = loop(run)
            run.watch.note("the end")
        except Exception as e:
            run.failed(e)
            raise
        finally:
            run.watch.close()
            run.loader.close()
        run.stop.ignore()  # everything is saved, and the process is about to end
        return code


def loop(run: Run) -> int:
    """Trains until the last epoch is done or a rank is asked to stop. Returns the exit code."""
    state, epochs = run.state, run.config.train.epochs
    read = state.step  # the log has been read up to this step
    run.write_status("running")
    with ProgressBar(run.total_steps, run.config.data.batch_size, state.step, run.ranks.is_main) as progress:
        while state.epoch < epochs:
            for batch in run.batches():
                if batch is None:
                    if state.step > read:
                        run.log.read(state)
                    return stop_here(run, progress)
                train_batch(run, batch)
                end_of_epoch = state.batch == run.loader.steps
                must_stop = False
                if run.log.due(state.step) or end_of_epoch or run.checkpoint_due(end_of_epoch):
                    must_stop, read = run.log.read(state), state.step
                progress.show(state.step, state.epoch, epochs, run.log.latest)
                if end_of_epoch:
                    with run.speed.pause():
                        finish_epoch(run, progress)
                if must_stop:
                    return stop_here(run, progress)
                if run.checkpoint_due(end_of_epoch):
                    with run.speed.pause():
                        run.save()
                elif (interval := run.config.train.check_interval_steps) > 0 and state.step % interval == 0:
                    run.check_weights()
    from dist_sketch.training import closing  # its filters take half a second to import; a start need not wait for that

    drawing_step = closing.choose_noise_removal(run)
    if drawing_step is None:
        return stop_here(run, progress)
    run.write_status("finished", draws=drawing_step)
    run.tracker.close()
    if run.ranks.is_main:
        closing.say_what_is_there(run, drawing_step)
    return 0


def stop_here(run: Run, progress: ProgressBar) -> int:
    """Saves the run at its present step, because it was asked to stop, or cannot go on. Returns the exit code."""
    if not 0 < run.state.step == run.saved_step:  # after the last epoch it is saved, and then holds what draws
        run.save()
    run.raise_trouble()
    run.write_status("stopped")
    if not run.stop.by_keyboard:
        run.tracker.wandb.preempting()
    run.tracker.close(exit_code=STOPPED)
    progress.console.print(f"stopped at step {run.state.step}; the same command goes on from there")
    return STOPPED


def train_batch(run: Run, batch: Batch) -> None:
    """One step on this rank's share of a batch: decide what to train, then train it."""
    state = run.state
    decision = decide(state.policy, run.config.conditional, step=state.step, epoch=state.epoch)
    for message in batch.bad:
        tell(f"warning: left out: {message}")
    line, sketch = to_float(batch.line), to_float(batch.sketch)
    measured = run.step(line, sketch, decision, bad=len(batch.bad), stop=run.asks_to_stop, good=batch.good)
    run.log.add(decision, state.epoch, measured, batch)
    state.step, state.batch = state.step + 1, state.batch + 1
