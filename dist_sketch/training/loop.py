"""A training run: build everything, then the loop, readable from top to bottom."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dist_sketch.core import config as cfg
from dist_sketch.core import fileio, folders
from dist_sketch.core.config import Config
from dist_sketch.core.errors import SharedError, UserError
from dist_sketch.core.ranks import Ranks, lost_peer
from dist_sketch.core.signals import SCHEDULER_SIGNALS, StopRequest
from dist_sketch.data.loader import Batch, Loader
from dist_sketch.data.pixels import to_float
from dist_sketch.data.shards import Shards
from dist_sketch.model import checkpoint, pretrained
from dist_sketch.model.weights import load_weights
from dist_sketch.tracking import wandb_run
from dist_sketch.tracking.tracker import Speed, Tracker
from dist_sketch.training import policy, setup
from dist_sketch.training import step as stepping
from dist_sketch.training.progress import ProgressBar
from dist_sketch.training.state import RunState
from dist_sketch.training.validation import Validation

STOPPED = os.EX_TEMPFAIL  # exit code of a run that was asked to stop: start it again and it goes on


def train(
    config: Config,
    out: Path,
    *,
    expect_world_size: int | None = None,
    dry_run: bool = False,
    stop: StopRequest | None = None,
) -> int:
    """Trains into the folder `out`, or goes on with the run that lies there.

    Args:
        expect_world_size: refuse to start on another number of processes.
        dry_run: resolve, check and print everything, write nothing.
        stop: a request that may have been made while this module was imported.

    Returns:
        The exit code: 0 when the run is finished, `STOPPED` when it was asked to stop before.

    Raises:
        UserError: anything that the user can mend.
    """
    cfg.validate(config)
    with Ranks(expect_world_size=expect_world_size, timeout_s=config.train.rank_timeout_s) as ranks:
        return _train(config, out, ranks, stop or StopRequest(), dry_run=dry_run)


def _train(config: Config, out: Path, ranks: Ranks, stop: StopRequest, *, dry_run: bool) -> int:
    facts = ranks.main_decides(lambda: setup.resolve(config, ranks))
    assert config.data.shards is not None
    # Whoever reads the run's configuration later may stand in another directory.
    config = replace(config, data=replace(config.data, shards=config.data.shards.resolve()))
    previous = ranks.main_decides(lambda: setup.previous_leg(out, config, facts))
    if previous:
        facts["device"] = setup.devices(previous["device"], facts["device"])
    if ranks.is_main:
        setup.show(config, facts, out, previous)
    if dry_run:
        return 0
    if previous and previous["status"].get("state") == "finished" and previous["epochs"] >= config.train.epochs:
        if ranks.is_main:
            print(f"{out}: this run is finished ({previous['status']['step']} steps); nothing to do")
        return 0
    lock = folders.Lock(out)

    def claim() -> str:
        lock.acquire()
        folders.tidy(out)
        setup.previous_leg(out, config, facts)  # again: another process may have begun a run there meanwhile
        return setup.run_id(out)

    facts["run_id"] = ranks.main_decides(claim)
    run = Run(config, out, ranks, facts, stop)
    try:
        code = run.train()
    except Exception as e:
        run.failed(e)
        raise
    StopRequest.ignore(*Run.SIGNALS)
    return code


class Unread(NamedTuple):
    """A step that the host has not read yet."""

    decision: policy.Decision
    epoch: int
    measured: stepping.Measured
    keys: list[str]  # of this rank's pairs


class Run:
    """One leg of a run: from its start, or its newest checkpoint, to its end or a request to stop."""

    SIGNALS = (*SCHEDULER_SIGNALS, signal.SIGINT)

    def __init__(self, config: Config, out: Path, ranks: Ranks, facts: dict[str, Any], stop: StopRequest):
        assert config.data.shards is not None
        self.config, self.out, self.ranks, self.facts, self.stop = config, out, ranks, facts, stop
        stop.listen(*self.SIGNALS, orphaned=signal.SIGTERM)
        torch.manual_seed(config.train.seed)  # the same weights on every rank
        self.step = stepping.Step(config, ranks, facts["precision"], facts["steps"])
        torch.manual_seed(config.train.seed + 1 + ranks.rank)  # dropout of its own on each rank
        self.place = self._resume()
        settings = {"config": cfg.to_dict(config), "facts": facts}
        ranks.main_decides(lambda: fileio.write_json(out / "config.json", settings))
        shards = Shards(config.data.shards, "train")
        self.loader = Loader(
            shards,
            config.data,
            seed=config.train.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            pin=ranks.device.type == "cuda",
        )
        c = config.train
        fid = None if not c.validate_fid else 2048 if config.checkpoint.choose == "kid" else 64
        self.validation = Validation(shards, config.data.channels, ranks, config.data.skip_bad, fid)
        self.tracker = Tracker(
            out,
            config.track,
            job="train",
            run_id=facts["run_id"],
            step=self.place.step,
            settings={**settings["config"], "facts": facts},
            is_main=ranks.is_main,
            uses=[wandb_run.dataset(config.data.shards, facts["manifest_sha256"])],
        )
        self.sync_steps = config.train.sync_interval_steps or (16 if ranks.device.type == "cuda" else 1)
        self.unread: list[Unread] = []
        self.latest: dict[str, float] = {}
        self.speed = Speed(ranks, self.place.step)

    def _resume(self) -> RunState:
        folder = self.ranks.main_decides(lambda: checkpoint.find(self.out))
        if folder is None:
            return RunState()
        state = checkpoint.load(folder, self.step.modules(), self.ranks)
        self.step.load_state_dict(state["step"])
        if len(state["statistics"]) == self.ranks.world_size:  # else all go on from their mean
            self.step.set_statistics(state["statistics"][self.ranks.rank])
        if self.ranks.is_main:
            print(f"resumed from {folder}")
        place = RunState.from_dict(state["place"])
        best = place.best_step
        if best is not None and self.ranks.main_decides(lambda: checkpoint.verify(checkpoint.folder(self.out, best))):
            place.best_kid = place.best_step = None  # it is gone: no bar for those to come
        return place

    def train(self) -> int:
        """The loop. Returns the exit code."""
        place, config = self.place, self.config
        self._status("running")
        with ProgressBar(self.facts["steps"], config.data.batch_size, place.step, self.ranks.is_main) as progress:
            while place.epoch < config.train.epochs:
                for batch in self._timed(self.loader.epoch(place.epoch, place.batch)):
                    asked_to_stop = self._train_batch(batch)
                    progress.update(place.step, place.epoch, config.train.epochs, self.latest)
                    end_of_epoch = place.batch == self.loader.steps
                    if end_of_epoch:
                        self._finish_epoch()
                    if asked_to_stop or self._checkpoint_due(end_of_epoch):
                        self._save()
                    if asked_to_stop:
                        self._status("stopped")
                        self.tracker.close(exit_code=STOPPED)
                        progress.say(f"stopped at step {place.step}; the same command goes on from there")
                        return STOPPED
        draws = self._calibrate()
        self._status("finished", draws=draws)
        self.tracker.close()
        return 0

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """`batches`, with the time that they are waited for."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.speed.waited_s += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def _train_batch(self, batch: Batch) -> bool:
        """One step; True when some rank was asked to stop and all ranks know it."""
        place, device = self.place, self.ranks.device
        decision = policy.decide(place.policy, self.config.conditional, step=place.step, epoch=place.epoch)
        for sentence in batch.bad:
            print(f"warning: left out: {sentence}")
        line, sketch = (to_float(i.to(device, non_blocking=True)) for i in (batch.line, batch.sketch))
        measured = self.step(line, sketch, decision, bad=len(batch.bad), stop=self.stop.asked, blank=batch.blank)
        self.unread.append(Unread(decision, place.epoch, measured, batch.keys))
        place.step, place.batch = place.step + 1, place.batch + 1
        last = place.batch == self.loader.steps
        if last or place.step % self.sync_steps == 0 or self._checkpoint_due(last):
            return self._read()
        return False

    def _read(self) -> bool:
        """Reads the steps since the last reading: policy, log, guards."""
        place, asked_to_stop = self.place, False
        first = place.step - len(self.unread)
        vectors = torch.stack([u.measured.reduced for u in self.unread]).cpu()  # one wait for the device
        interval = self.config.track.log_interval_steps
        due = place.step // interval > first // interval  # a line of the log
        speed = self.speed.take(place.step, self.config.data.batch_size) if due else {}
        for i, unread in enumerate(self.unread):
            values = stepping.read(vectors[i])
            place.policy = policy.observe(
                place.policy,
                self.config.conditional,
                epoch=unread.epoch,
                loss_d=values["loss/d"],
                loss_g=values["loss/g"],
                decision=unread.decision,
            )
            if values["nonfinite"]:
                self._write_down(unread, first + i)
            self._guard(values, first + i)
            self._log(values | speed, unread.decision, unread.epoch, first + i)
            asked_to_stop |= values["stop"] > 0
        self.unread.clear()
        return asked_to_stop

    def _write_down(self, unread: Unread, step: int) -> None:
        """Names the pairs of a step whose losses were not finite: of the ranks that saw it."""
        found = self.ranks.gather(unread.keys if bool(unread.measured.own_nonfinite) else [])
        keys = {str(rank): own for rank, own in enumerate(found) if own}
        self.tracker.log("nonfinite", step + 1, {"epoch": unread.epoch, "keys": keys})
        if self.ranks.is_main:
            where = "; ".join(f"rank {rank}: {', '.join(own)}" for rank, own in keys.items())
            print(f"warning: step {step + 1}: a loss is not finite, the step is skipped ({where})")

    def _guard(self, values: dict[str, float], step: int) -> None:
        place = self.place
        place.bad += int(values["bad"])
        if place.bad > self.config.data.skip_bad:
            raise SharedError(
                f"{place.bad} sample(s) of {self.config.data.shards} are unreadable, {self.config.data.skip_bad} are "
                "allowed (--data.skip-bad N); `dist-sketch verify` names them"
            )
        nonfinite, overflow = values["nonfinite"] > 0, values["overflow_d"] + values["overflow_g"]
        place.nonfinite += nonfinite
        place.overflow_d += int(values["overflow_d"])
        place.overflow_g += int(values["overflow_g"])
        place.void_in_a_row = (place.void_in_a_row + 1) if nonfinite or overflow else 0
        if place.void_in_a_row >= self.config.train.nonfinite_limit:
            before = step + 1 - place.void_in_a_row
            good = self.ranks.main_decides(lambda: checkpoint.find(self.out, until=before))
            raise SharedError(
                f"step {step + 1}: losses or gradients were not finite {place.void_in_a_row} times in a row; "
                f"last good checkpoint: {good or 'none'}; metrics.jsonl names the pairs (kind nonfinite); lower "
                "optim.lr_g and optim.lr_d, or use train.precision = 'no'"
            )

    def _log(self, values: dict[str, float], decision: policy.Decision, epoch: int, step: int) -> None:
        place, batch_size = self.place, self.config.data.batch_size
        for name in ("loss/d", "loss/g"):
            place.sums[name] = place.sums.get(name, 0.0) + values[name]
        place.locked_d += not decision.train_d
        place.policy_d += not decision.train_d
        place.locked_g += not decision.train_g
        place.policy_g += not decision.train_g
        if decision.reason != place.reason:
            place.reason = decision.reason
            trains = {"train_d": decision.train_d or decision.rest, "train_g": decision.train_g or decision.rest}
            self.tracker.log("lock", step + 1, {"epoch": epoch, **trains, "reason": decision.reason})
        self.latest = values
        interval = self.config.track.log_interval_steps
        if (step + 1) % interval:
            return
        factor = stepping.learning_rate_factor(self.config.optim.decay, step, self.facts["steps"])
        logged = {k: v for k, v in values.items() if "/" in k}
        if not self.config.loss.lambda_ssim:
            del logged["loss/g_ssim"]  # not measured
        logged |= {
            "lock/d": place.locked_d / interval,
            "lock/g": place.locked_g / interval,
            "lr/g": self.config.optim.lr_g * factor,
            "lr/d": self.config.optim.lr_d * factor,
            "skipped/policy_d": place.policy_d,
            "skipped/policy_g": place.policy_g,
            "skipped/nonfinite": place.nonfinite,
            "skipped/overflow_d": place.overflow_d,
            "skipped/overflow_g": place.overflow_g,
            "skipped/bad": place.bad,
        }
        about = {"epoch": epoch, "images": (step + 1) * batch_size, "lock/reason": decision.reason}
        self.tracker.log("train", step + 1, about | logged)
        place.locked_d = place.locked_g = 0

    def _finish_epoch(self) -> None:
        """Epoch means, validation and pictures; then the place moves to the next epoch."""
        place, c = self.place, self.config.train
        epoch, done = place.epoch, place.epoch + 1
        means = {k: v / self.loader.steps for k, v in place.sums.items()}
        about = {"epoch": epoch, "images": place.step * self.config.data.batch_size}
        self.tracker.log("epoch", place.step, about | means)

        def due(interval_epochs: int) -> bool:
            return interval_epochs > 0 and (done == c.epochs or done % interval_epochs == 0)

        with self.step.averaged():
            if due(c.validate_interval_epochs):
                scores = self.validation.scores(self.step.drawing, c.validate_limit)
                self.tracker.log("val", place.step, about | scores)
                if "val/kid" in scores and (place.best_kid is None or scores["val/kid"] < place.best_kid):
                    place.best_kid, place.best_step = scores["val/kid"], place.step
            if due(c.sample_interval_epochs):
                path = self.out / "samples" / f"step-{place.step:08d}.png"
                self.ranks.main_decides(lambda: self.validation.picture(self.step.drawing, c.sample_count, path))
                shown = wandb_run.is_shown(
                    -(-done // c.sample_interval_epochs), -(-c.epochs // c.sample_interval_epochs)
                )
                if shown and path.is_file():  # not if no validation sample can be read
                    self.tracker.wandb.picture("samples", place.step, about["images"], path)
        place.epoch, place.batch, place.sums = done, 0, {}

    def _checkpoint_due(self, end_of_epoch: bool) -> bool:
        interval = self.config.checkpoint.interval_steps
        finished = self.place.step == self.facts["steps"]
        best = self.place.best_step == self.place.step
        return finished or best or (self.place.step % interval == 0 if interval else end_of_epoch)

    def _save(self) -> None:
        with self.step.averaged() as own:
            state: dict[str, Any] = {"step": self.step.state_dict(), "place": self.place.to_dict()}
            state["statistics"] = self.ranks.gather(own.cpu())
            keep = self.config.checkpoint.keep
            modules = self.step.modules()
            checkpoint.save(self.out, self.place.step, modules, state, self.ranks, keep, self.place.best_step)
        self._status("running")

    def _calibrate(self) -> int:
        """Chooses the noise removal on training pairs, for the weights that draw; returns their step."""
        from dist_sketch.training import closing  # its filters take half a second that a start need not wait

        def choose() -> int:
            drawing, with_kid = self.step.drawing, self.config.train.validate_fid
            folder, step = pretrained.find_weights(self.out)
            if step != self.place.step:
                load_weights(pretrained.weights_file(folder), drawing)
            denoise = closing.choose(self.out, self.validation, drawing, self.ranks.device, with_kid)
            closing.after_training(self.tracker.wandb, self.out, self.validation, drawing, denoise)
            return step

        with self.step.averaged():
            return self.ranks.main_decides(choose)

    def failed(self, error: Exception) -> None:
        """Leaves the reason in `status.json`."""
        try:
            lost = "another rank failed or is gone: its message says why"
            self._status("failed", reason=lost if lost_peer(error) else f"{type(error).__name__}: {error}")
        except UserError:
            return  # a full disk: the error itself is on its way to the terminal
        self.tracker.close(exit_code=1)

    def _status(self, state: str, **more: Any) -> None:
        place = self.place
        self.tracker.status(
            state=state,
            **more,
            step=place.step,
            steps=self.facts["steps"],
            epoch=place.epoch,
            epochs=self.config.train.epochs,
            run_id=self.facts["run_id"],
        )
