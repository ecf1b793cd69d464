"""Reads what the steps measured: feeds the policy, guards the run against bad steps, writes metrics.jsonl.

On GPUs the host reads only every few steps, because each reading waits for the device.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

from dist_sketch.core.config import Config
from dist_sketch.core.errors import SharedError, UserError
from dist_sketch.core.ranks import Ranks
from dist_sketch.core.toml_dataclass import from_dict
from dist_sketch.core.words import tell
from dist_sketch.data.loader import Batch
from dist_sketch.data.pixels import to_float
from dist_sketch.metrics.definitions import METRICS
from dist_sketch.model import checkpoint
from dist_sketch.tracking.speed import Slow, Speed
from dist_sketch.tracking.tracker import Tracker
from dist_sketch.training.measures import MEANS, NORMS, Measured, read
from dist_sketch.training.policy import Decision, PolicyState, observe
from dist_sketch.training.step import Step, learning_rate_factor

# Counts of a `RunState` that each line of the log holds
SKIPPED = ("policy_d", "policy_g", "nonfinite", "overflow_d", "overflow_g", "bad")


@dataclass(kw_only=True)
class RunState:
    """`step` steps are done; the next batch is number `batch` of epoch `epoch`. Its fields are saved by their names."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    policy: PolicyState = field(default_factory=PolicyState)
    sums: dict[str, float] = field(default_factory=dict)  # of this epoch's losses, for their means
    counts: dict[str, int] = field(default_factory=dict)  # of the steps in which these were finite
    reason: str = ""  # of the last decision of the policy
    unlogged: int = 0  # steps since the last line of the log
    locked_d: int = 0  # those of them in which D was locked
    locked_g: int = 0
    policy_d: int = 0  # the same over the whole run
    policy_g: int = 0
    bad: int = 0  # samples that were left out
    nonfinite: int = 0  # steps in which a loss was not finite
    overflow_d: int = 0  # steps in which the losses were finite, but D's gradients were not
    overflow_g: int = 0
    void_in_a_row: int = 0  # bad steps in a row up to now, of any of these three kinds
    best_score: float | None = None  # best score of the validations so far, by `checkpoint.choose`
    best_step: int | None = None  # the step of that validation

    @classmethod
    def restore(cls, place: Any, file: Path, steps_an_epoch: int, step: int) -> Self:
        """A saved state, checked: it decides how long a run goes on.

        Args:
            place: what `asdict` gave when the checkpoint of `step` was saved.
            file: where it was saved, for messages.

        Raises:
            UserError: it is not the state of a run of so many steps an epoch.
        """
        values = dict(place) if isinstance(place, dict) else place
        if isinstance(values, dict) and isinstance(values.get("sums"), dict):
            # Older checkpoints have no counts, and may have a sum that is not finite.
            values["sums"] = {k: v for k, v in values["sums"].items() if v not in (math.inf, -math.inf) and v == v}
            values.setdefault("counts", dict.fromkeys(values["sums"], values.get("batch")))
        if isinstance(values, dict) and "best_kid" in values:  # until November 2026 only KID could choose
            values["best_score"] = values.pop("best_kid")
        if isinstance(values, dict) and "unlogged" not in values:  # they do not say of how many steps these are
            values |= {"locked_d": 0, "locked_g": 0}
        state = from_dict(cls, values, str(file), "place.")
        good = 0 <= state.batch < steps_an_epoch and state.epoch >= 0 and state.unlogged >= 0
        if not good or not state.step == step == state.epoch * steps_an_epoch + state.batch:
            raise UserError(
                f"{file}: place.step = {state.step}, epoch = {state.epoch}, batch = {state.batch}: is no place in a "
                f"run of {steps_an_epoch} steps an epoch at step {step}; remove {file.parent} to go on from the one "
                "before"
            )
        return state

    def note_scores(self, scores: dict[str, float], choose: str) -> None:
        """Remembers this step if no validation had a better score so far.

        Args:
            scores: of a validation.
            choose: the metric that decides, as in `checkpoint.choose`; "last" is none, so nothing is remembered.
        """
        score = scores.get(f"val/{choose}")
        if score is not None:
            sign = next(m.sign for m in METRICS if m.key == choose)
            if self.best_score is None or sign * score > sign * self.best_score:
                self.best_score, self.best_step = score, self.step

    def epoch_means(self) -> dict[str, float | None]:
        """The mean of each loss over this epoch's steps in which it was finite, and the number of these steps."""
        means: dict[str, float | None] = {k: self.sums[k] / n if n else None for k, n in self.counts.items()}
        return means | {k.replace("loss/", "finite_steps/"): n for k, n in self.counts.items()}


class UnreadStep(NamedTuple):
    """A step whose measurements are still on the device."""

    decision: Decision
    epoch: int
    measured: Measured
    batch: Batch  # this rank's pairs


class StepLog:
    """The host's view of the steps."""

    def __init__(self, config: Config, out: Path, ranks: Ranks, tracker: Tracker, speed: Speed, step: Step):
        self._config, self._out, self._ranks = config, out, ranks
        self._tracker, self._speed, self._total_steps = tracker, speed, step.total
        self._slow: list[Slow] = []  # told last
        self._first_bad, self._bad_place = step.first_bad, ""  # of the newest row of bad steps
        self._overflows_are_faults = step.precision != "fp16"  # whose scale is too large now and then
        self._interval = config.train.sync_interval_steps or (16 if ranks.device.type == "cuda" else 1)
        self._unread: list[UnreadStep] = []
        self.latest: dict[str, float] = {}  # values of the newest step that was read

    def add(self, decision: Decision, epoch: int, measured: Measured, batch: Batch) -> None:
        """Takes a step that was just made; nothing is read yet."""
        self._unread.append(UnreadStep(decision, epoch, measured, batch))

    def due(self, step: int) -> bool:
        """Whether it is time to read the steps, after `step` of them (`train.sync_interval_steps`)."""
        return step % self._interval == 0

    def read(self, state: RunState) -> bool:
        """Reads the steps made since the last call, and updates `state` with them.

        Returns:
            Whether some rank was asked to stop; all ranks get the same answer in the same step.

        Raises:
            UserError: too many unreadable samples, or too many steps in a row that were not finite; on all ranks alike.
            PeerLost: the steps are not finished after the ranks' time-out.
        """
        first, must_stop = state.step - len(self._unread), False
        # The only wait for the device, so that a rank that is gone or hangs is noticed here.
        vectors = self._ranks.to_host(torch.stack([u.measured.reduced for u in self._unread]))
        interval = self._config.track.log_interval_steps
        line_due = state.step // interval > first // interval
        speed = self._speed.take(state.step, self._config.data.batch_size) if line_due else {}
        for i, unread in enumerate(self._unread):
            step, values = first + i, read(vectors[i])
            state.policy = observe(
                state.policy,
                self._config.conditional,
                epoch=unread.epoch,
                loss_d=values["loss/d"],
                loss_g=values["loss/g"],
                decision=unread.decision,
            )
            if values["nonfinite"] or (self._overflows_are_faults and values["overflow_d"] + values["overflow_g"]):
                self._name_what_is_bad(unread, values, step, repeat=not (state.void_in_a_row and self._bad_place))
            self._guard(state, values, step)
            self._log(state, values | speed, unread, step)
            must_stop |= values["stop"] > 0
        self._unread.clear()
        self._name_slow_ranks(state.step)
        return must_stop

    def _name_slow_ranks(self, step: int) -> None:
        """Says for which ranks the others wait, when these are others than before."""
        slow = self._speed.slow
        if [s.rank for s in slow] != [s.rank for s in self._slow]:
            self._slow = slow
            self._tracker.log("slow", step, {"ranks": [s._asdict() for s in slow]})
            tell(f"warning: the ranks wait: {'; '.join(map(str, slow))}" if slow else "no rank is slow any more")

    def _name_what_is_bad(self, unread: UnreadStep, values: dict[str, float], step: int, repeat: bool) -> None:
        """Logs what is not finite in a step: the losses, and on which ranks for which pairs.

        Args:
            repeat: find the place by repeating the step; only for the first of several such steps in a row.
        """
        batch, own_bad, place = unread.batch, bool(unread.measured.own_nonfinite), ""
        if repeat:
            place = self._first_bad(to_float(batch.line), to_float(batch.sketch), unread.decision, batch.good)
        found = self._ranks.gather((batch.keys if own_bad else [], place))
        keys = {str(rank): own for rank, (own, _) in enumerate(found) if own}
        places = {str(rank): own for rank, (_, own) in enumerate(found) if own}
        terms = [name for name in (*MEANS, *NORMS) if not math.isfinite(values[name])]
        line = {"epoch": unread.epoch, "keys": keys, "terms": terms, "first": places}
        self._tracker.log("nonfinite", step + 1, line)
        if repeat:
            told = [f"rank {rank}: {place}" for rank, place in places.items()]
            self._bad_place = f"{', '.join(terms)}; first in {'; '.join(told) or 'a part that was good when repeated'}"
        if self._ranks.is_main:
            where = "; ".join(f"rank {rank}: {', '.join(own)}" for rank, own in keys.items())
            what = "a loss" if keys else "a gradient"
            pairs = f"; pairs: {where}" if where else ""
            first = f": {self._bad_place}" if repeat else ""
            print(f"warning: step {step + 1}: {what} is not finite, the step is skipped{first}{pairs}")

    def _guard(self, state: RunState, values: dict[str, float], step: int) -> None:
        """Counts what went wrong in a step, and stops the run where it was too much."""
        allowed = self._config.data.skip_bad
        state.bad += int(values["bad"])
        if state.bad > allowed:
            raise SharedError(
                f"{state.bad} sample(s) of {self._config.data.shards} are unreadable, {allowed} are "
                "allowed (--data.skip-bad N); `dist-sketch verify` names them"
            )
        nonfinite, overflow = values["nonfinite"] > 0, values["overflow_d"] + values["overflow_g"]
        state.nonfinite += nonfinite
        state.overflow_d += int(values["overflow_d"])
        state.overflow_g += int(values["overflow_g"])
        state.void_in_a_row = (state.void_in_a_row + 1) if nonfinite or overflow else 0
        if not state.void_in_a_row:
            self._bad_place = ""
        if state.void_in_a_row >= self._config.train.nonfinite_limit:
            before = step + 1 - state.void_in_a_row
            good = self._ranks.main_decides(lambda: checkpoint.find(self._out, until=before))
            first = self._bad_place and (
                f"the first time it was {self._bad_place}; metrics.jsonl names the pairs (kind nonfinite); "
            )
            raise SharedError(
                f"step {step + 1}: losses or gradients were not finite {state.void_in_a_row} times in a row; last good "
                f"checkpoint: {good or 'none'}; {first}lower optim.lr_g and optim.lr_d, or use train.precision = 'no'"
            )

    def _log(self, state: RunState, values: dict[str, float], unread: UnreadStep, step: int) -> None:
        """Adds a step to the epoch's sums, and writes a line where one is due."""
        decision, config = unread.decision, self._config
        for name in ("loss/d", "loss/g"):
            finite = math.isfinite(values[name])
            state.sums[name] = state.sums.get(name, 0.0) + (values[name] if finite else 0.0)
            state.counts[name] = state.counts.get(name, 0) + finite
        state.unlogged += 1
        state.locked_d += not decision.train_d
        state.policy_d += not decision.train_d
        state.locked_g += not decision.train_g
        state.policy_g += not decision.train_g
        if decision.reason != state.reason:
            state.reason = decision.reason
            trains = {"train_d": decision.train_d or decision.rest, "train_g": decision.train_g or decision.rest}
            self._tracker.log("lock", step + 1, {"epoch": unread.epoch, **trains, "reason": decision.reason})
        self.latest = values
        interval = config.track.log_interval_steps
        if (step + 1) % interval:
            return
        factor = learning_rate_factor(config.optim.decay, step, self._total_steps)
        logged = {k: v for k, v in values.items() if "/" in k}
        if not config.loss.lambda_ssim:
            del logged["loss/g_ssim"]  # it was not measured
        logged |= {
            "lock/d": state.locked_d / state.unlogged,  # the interval may have changed when the run was continued
            "lock/g": state.locked_g / state.unlogged,
            "lr/g": config.optim.lr_g * factor,
            "lr/d": config.optim.lr_d * factor,
            **{f"skipped/{name}": getattr(state, name) for name in SKIPPED},
        }
        images = (step + 1) * config.data.batch_size
        self._tracker.log(
            "train", step + 1, {"epoch": unread.epoch, "images": images, "lock/reason": decision.reason} | logged
        )
        state.unlogged = state.locked_d = state.locked_g = 0
