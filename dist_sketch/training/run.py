"""All parts of a training run on this rank, built new or restored from its newest checkpoint."""

import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dist_sketch.core import fileio
from dist_sketch.core.config import Config, TrackConfig, to_dict
from dist_sketch.core.errors import SharedError, UserError
from dist_sketch.core.hang_watch import HangWatch
from dist_sketch.core.ranks import Ranks, lost_peer
from dist_sketch.core.saved import read_status
from dist_sketch.core.signals import STOP_SIGNALS, StopRequest
from dist_sketch.data.batches import training_batches
from dist_sketch.data.loader import Batch, NoBatch
from dist_sketch.data.selection import chosen
from dist_sketch.data.shards import Shards
from dist_sketch.data.store import Access
from dist_sketch.model import checkpoint
from dist_sketch.tracking.live_page import WritePage
from dist_sketch.tracking.speed import Speed
from dist_sketch.tracking.tracker import Tracker, drop_later_lines
from dist_sketch.tracking.wandb_run import WandbRun, dataset
from dist_sketch.training import beginning, equal_weights
from dist_sketch.training.step import Step
from dist_sketch.training.step_log import RunState, StepLog
from dist_sketch.training.validation import Validation

PATIENCE_S = 5.0  # how long to wait for a batch after a request to stop


class Run:
    """One attempt at a run: from its start, or its newest checkpoint, to its end or a request to stop."""

    def __init__(
        self,
        config: Config,
        out: Path,
        ranks: Ranks,
        facts: dict[str, Any],
        stop: StopRequest,
        page: WritePage | None = None,
    ):
        assert config.data.shards is not None
        self.config, self.out, self.ranks, self.facts, self.stop = config, out, ranks, facts, stop
        self.trouble = ""  # why this rank cannot go on for long; a sentence
        self.total_steps: int = facts["steps"]
        self.saved_step = 0  # the step of the newest checkpoint
        self.watch = HangWatch(out, ranks.rank, ranks.world_size, config.train.hang_dump_s)
        self.equal_at = 0  # the last step at which all ranks are known to have had equal weights
        stop.listen(*STOP_SIGNALS, signal.SIGINT, orphaned=signal.SIGTERM)
        torch.manual_seed(config.train.seed)  # the same weights on every rank
        self.step = Step(config, ranks, facts["precision"], self.total_steps)
        torch.manual_seed(config.train.seed + 1 + ranks.rank)  # each rank draws its own dropout
        self.state = self._resume()
        settings = {"config": to_dict(config), "facts": facts}
        ranks.main_decides(lambda: fileio.write_json(out / "config.json", settings))
        shards = chosen(Shards(config.data.shards, "train", Access.of(config.data)), config.data.where)
        self.loader = training_batches(
            shards, config.data, ranks, config.train.seed, self._waits_for_batch, self._in_trouble
        )
        c = config.train
        fid = None if not c.validate_fid else 2048 if config.checkpoint.choose == "kid" else 64
        self.validation = Validation(shards, config.data.channels, ranks, config.data.skip_bad, fid, config.data.where)
        if ranks.is_main:
            drop_later_lines(out, self.state.step)
        log = WandbRun(
            out,
            config.track if ranks.is_main else TrackConfig(wandb="off"),
            job="train",
            run_id=facts["run_id"],
            settings={**settings["config"], "facts": facts},
            uses=[dataset(config.data.shards, facts["manifest_sha256"])],
        )
        self.tracker = Tracker(out, log, is_main=ranks.is_main, page=page)
        self.watch.alarm = partial(log.alert, f"{out.name} makes no progress")
        self.speed = Speed(ranks, self.state.step)
        self.log = StepLog(config, out, ranks, self.tracker, self.speed, self.step)
        if ranks.is_main and ranks.device.type == "cuda":
            print(f"how the steps run: {self.step.way}")

    def _resume(self) -> RunState:
        """Loads the newest complete checkpoint, or without one the networks that the run begins with, if any."""
        folder = self.ranks.main_decides(self._newest)
        if folder is None:
            self.facts |= beginning.begin(self.config, self.step.modules(), self.ranks)
            return RunState()
        self.saved_step = self.equal_at = checkpoint.step_of(folder)
        saved = checkpoint.load(folder, self.step.modules(), self.ranks)
        with checkpoint.believed(folder / "state.pt"):
            place = saved["place"]
            self.step.load_state_dict(saved["step"])
            if len(saved["statistics"]) == self.ranks.world_size:  # else all ranks continue with the mean
                self.step.set_statistics(saved["statistics"][self.ranks.rank])
        if self.ranks.is_main:
            print(f"resumed from {folder}")
        state = RunState.restore(place, folder / "state.pt", self.facts["steps_an_epoch"], self.saved_step)
        best = state.best_step
        if best is not None and self.ranks.main_decides(lambda: checkpoint.verify(checkpoint.folder(self.out, best))):
            state.best_score = state.best_step = None  # the best weights are lost: the next validation counts as best
        return state

    def _newest(self) -> Path | None:
        """The newest complete checkpoint; None for a run that has none yet, or only damaged ones.

        Raises:
            UserError: the run has saved itself, and its checkpoints are gone.
        """
        status = read_status(self.out)
        # Until November 2026 no step was noted as saved; that of a failed run may not have been.
        step = status.get("saved", 0 if status.get("state") == "failed" else status.get("step", 0))
        if step and not checkpoint.folders_of(self.out):
            raise UserError(
                f"{self.out / checkpoint.FOLDER}: has no checkpoints, but the run was saved at step {step}; are they "
                "on a disk that is not there? To begin anew, name another --out, or remove this run's folder"
            )
        return checkpoint.find(self.out)

    def batches(self) -> Iterator[Batch | None]:
        """This rank's remaining batches of the current epoch, on its device; `speed` counts the time of waiting.

        The last one is None if no other comes to this process, which has no peers.
        """
        batches = self.loader.epoch(self.state.epoch, self.state.batch)
        while True:
            self.watch.note(f"the batch of step {self.state.step + 1}")
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except NoBatch as e:
                if self.ranks.world_size > 1:
                    raise  # the others wait for this rank in the middle of a step, and nothing can be saved there
                if not self.stop.asked:
                    self._in_trouble(e)
                yield None
                return
            self.speed.waited_s += time.perf_counter() - began
            self.watch.note(f"step {self.state.step + 1}")
            yield batch

    def _waits_for_batch(self, waited_s: float) -> None:
        """Obeys a request to stop while no batch comes: a scheduler kills those that do not, half a minute later."""
        if self.stop.asked and waited_s >= PATIENCE_S:
            raise NoBatch(
                f"{self.config.data.shards}: asked to stop, and no batch has come for {waited_s:.0f} s; does the disk "
                "answer? The same command goes on from the newest checkpoint"
            )

    def _in_trouble(self, error: UserError) -> None:
        """From now on this rank asks all to stop, so that nothing is lost."""
        self.trouble = str(error)

    @property
    def asks_to_stop(self) -> bool:
        """Whether this rank was asked to stop, or cannot go on."""
        return self.stop.asked or bool(self.trouble)

    def raise_trouble(self) -> None:
        """Raises the trouble of any rank as an error, on all ranks alike; to be called when the run is saved."""
        found = enumerate(self.ranks.gather(self.trouble))
        if told := [f"rank {rank}: {trouble}" if rank else trouble for rank, trouble in found if trouble]:
            raise SharedError(f"{'; '.join(told)}; it goes on from step {self.state.step}")

    def checkpoint_due(self, end_of_epoch: bool) -> bool:
        """Whether the run shall be saved after the step that was just made."""
        step, interval = self.state.step, self.config.checkpoint.interval_steps
        if step in (self.total_steps, self.state.best_step):
            return True
        return step % interval == 0 if interval else end_of_epoch

    def check_weights(self) -> None:
        """Compares the networks over the ranks; a difference ends the run on all of them."""
        if self.config.train.check_interval_steps >= 0:
            equal_weights.check(self.step.modules(), self.ranks, self.state.step, self.equal_at)
            self.equal_at = self.state.step

    def save(self) -> None:
        """Writes a checkpoint of the current step."""
        self.check_weights()
        self.watch.note(f"the checkpoint of step {self.state.step}")
        with self.step.averaged() as own_statistics:
            saved: dict[str, Any] = {"step": self.step.state_dict(), "place": asdict(self.state)}
            saved["statistics"] = self.ranks.gather_to_main(self.ranks.to_host(own_statistics))
            keep, best = self.config.checkpoint.keep, self.state.best_step
            checkpoint.save(self.out, self.state.step, self.step.modules(), saved, self.ranks, keep, best)
            self.saved_step = self.state.step
        self.write_status("running")

    def write_status(self, state: str, **more: Any) -> None:
        """Writes `status.json`."""
        self.tracker.status(
            state=state,
            **more,
            **({"slow": "; ".join(map(str, self.speed.slow))} if self.speed.slow else {}),
            way=self.step.way,
            step=self.state.step,
            saved=self.saved_step,
            best=self.state.best_step,
            steps=self.total_steps,
            epoch=self.state.epoch,
            epochs=self.config.train.epochs,
            run_id=self.facts["run_id"],
        )

    def failed(self, error: Exception) -> None:
        """Writes the reason into `status.json`, and tells it to the user through W&B."""
        reason = lost_peer(error) or f"{type(error).__name__}: {error}"
        try:
            self.write_status("failed", reason=reason)
        except UserError:
            return  # the disk is full; the first error is about to be printed anyway
        self.tracker.wandb.alert(f"{self.out.name} failed", reason)
        self.tracker.close(exit_code=1)
