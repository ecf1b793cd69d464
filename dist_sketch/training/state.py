"""The state of a training run between two steps: position, policy, counters, best validation so far."""

from dataclasses import dataclass, field
from typing import Any

from dist_sketch.training.policy import PolicyState


@dataclass(kw_only=True)
class RunState:
    """`step` steps are done; the next batch is number `batch` of epoch `epoch`. Its fields are saved by their names."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    policy: PolicyState = field(default_factory=PolicyState)
    sums: dict[str, float] = field(default_factory=dict)  # of this epoch's losses, for their means
    reason: str = ""  # of the last decision of the policy
    locked_d: int = 0  # steps in which D was locked, since the last line of the log
    locked_g: int = 0
    policy_d: int = 0  # the same over the whole run
    policy_g: int = 0
    bad: int = 0  # samples that were left out
    nonfinite: int = 0  # steps in which a loss was not finite
    overflow_d: int = 0  # steps in which the losses were finite, but D's gradients were not
    overflow_g: int = 0
    void_in_a_row: int = 0  # newest steps in a row that were not finite in any of these ways
    best_kid: float | None = None  # lowest KID of the validations so far
    best_step: int | None = None  # the step of that validation

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        return {**vars(self), "policy": self.policy.to_dict(), "sums": dict(self.sums)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunState":
        """The inverse of `to_dict`."""
        return cls(**{**values, "policy": PolicyState(**values["policy"])})
