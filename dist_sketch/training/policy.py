"""Conditional training (section 3.5.1 of the paper): which network trains now, and why.

The policy is a pure function of the all-reduced losses and its own small state: all ranks decide alike, and a resumed
run decides as an uninterrupted one would. `decide` chooses what a step trains; `observe` updates the state afterwards.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from dist_sketch.core.config import ConditionalConfig


class Decision(NamedTuple):
    """What one step trains; at least one network."""

    train_d: bool
    train_g: bool
    reason: str
    rest: bool = False  # one network skips this step because of a timer of steps; not logged as a lock


BOTH = Decision(True, True, "both train")


@dataclass(frozen=True, kw_only=True)
class PolicyState:
    """What the policy remembers. The losses are running means over steps, None before the first observation."""

    loss_d: float | None = None
    loss_g: float | None = None
    loss_g_long: float | None = None
    judged: str = ""  # "d" or "g": the network that is locked because of the losses; "": none
    held_steps: int = 0  # steps since that lock closed
    rest_steps: int = 0  # steps left in which both must train before the next lock
    epoch: int = 0  # of the last observation; the paper's rule uses means over epochs
    epoch_sum: float = 0.0
    epoch_count: int = 0
    epoch_mean: float | None = None  # of loss_d, over the last finished epoch in which D trained


def decide(state: PolicyState, config: ConditionalConfig, *, step: int, epoch: int) -> Decision:
    """What step `step` (counted from 0 over the whole run) of epoch `epoch` trains."""
    if config.mode == "off":
        return BOTH
    if config.mode == "paper":
        return _paper(_rolled(state, epoch), config, epoch)
    if state.judged == "d":
        return Decision(False, True, "D locked: its loss is small while G's grows")
    if state.judged == "g":
        return Decision(True, False, "G locked: it is much the stronger")
    name, by_steps = config.timer_net.upper(), config.timer_unit == "steps" and config.timer > 1
    trains = (step if by_steps else epoch) % config.timer == 0
    if by_steps:
        reason = f"timer: {name} trains once every {config.timer} steps"
    elif trains:
        return BOTH
    else:
        reason = f"{name} locked: timer, it trains once every {config.timer} epochs"
    return Decision(trains or name != "D", trains or name != "G", reason, rest=by_steps)


def _paper(state: PolicyState, config: ConditionalConfig, epoch: int) -> Decision:
    """`epoch % TIMER == 0 and mean loss_D of the last epoch > LOSS_THRESHOLD`, as the authors' code had it.

    Steps in which D is locked do not count, so once the mean is below the threshold D stays locked for ever. That is a
    fault of the paper's rule, kept here on purpose.
    """
    if state.epoch_mean is not None and state.epoch_mean <= config.loss_threshold:
        return Decision(False, True, f"D locked: mean loss D {state.epoch_mean:.4g} <= LOSS_THRESHOLD")
    if epoch % config.timer:
        return Decision(False, True, f"D locked: timer, it trains once every {config.timer} epochs")
    return BOTH


def observe(
    state: PolicyState, config: ConditionalConfig, *, epoch: int, loss_d: float, loss_g: float, decision: Decision
) -> PolicyState:
    """The state after a step of epoch `epoch`.

    The losses are means over all ranks, measured also while a network was locked. If one of them is not finite, both
    are ignored.
    """
    state = _rolled(state, epoch)
    if not (math.isfinite(loss_d) and math.isfinite(loss_g)):
        return state
    state = replace(
        state,
        loss_d=_running(state.loss_d, loss_d, config.short_steps),
        loss_g=_running(state.loss_g, loss_g, config.short_steps),
        loss_g_long=_running(state.loss_g_long, loss_g, config.long_steps),
        epoch_sum=state.epoch_sum + loss_d * decision.train_d,
        epoch_count=state.epoch_count + decision.train_d,
    )
    return _judged(state, config, decision) if config.mode == "on" else state


def _rolled(state: PolicyState, epoch: int) -> PolicyState:
    """`state`, with the mean of the last epoch computed if `epoch` is a new one."""
    if epoch == state.epoch:
        return state
    if state.epoch_count:
        state = replace(state, epoch_mean=state.epoch_sum / state.epoch_count)
    return replace(state, epoch=epoch, epoch_sum=0.0, epoch_count=0)


def _running(mean: float | None, value: float, steps: int) -> float:
    return value if mean is None else mean + (value - mean) / steps


def _judged(state: PolicyState, config: ConditionalConfig, decision: Decision) -> PolicyState:
    """Closes or opens a lock because of the losses; hysteresis and a rest keep it from switching all the time."""
    loss_d, loss_g, loss_g_long = state.loss_d or 0.0, state.loss_g or 0.0, state.loss_g_long or 0.0
    if state.judged:
        held = state.held_steps + 1
        recovered = (
            loss_d > config.loss_threshold * config.hysteresis
            if state.judged == "d"
            else loss_d < config.g_threshold / config.hysteresis
        )
        if recovered or 0 < config.longest_lock_steps <= held:
            return replace(state, judged="", held_steps=0, rest_steps=config.short_steps)
        return replace(state, held_steps=held)
    if state.rest_steps:
        # Only steps that train both count: else the lock could close again before the network has trained.
        return replace(state, rest_steps=state.rest_steps - (decision.train_d and decision.train_g))
    if loss_d < config.loss_threshold and loss_g > loss_g_long * (1 + config.growth):
        return replace(state, judged="d")
    return replace(state, judged="g") if loss_d > config.g_threshold else state
