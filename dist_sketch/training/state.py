"""Where a training run stands, between two steps: counters, policy, epoch, the best validation so far."""

from dataclasses import dataclass, field
from typing import Any

from dist_sketch.training.policy import PolicyState


@dataclass(kw_only=True)
class RunState:
    """Where the run stands: `step` updates are done; the next batch is `batch` of `epoch`."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    policy: PolicyState = field(default_factory=PolicyState)
    sums: dict[str, float] = field(default_factory=dict)  # of this epoch, for its means
    reason: str = ""  # of the last decision
    locked_d: int = 0  # steps since the last line of the log
    locked_g: int = 0
    policy_d: int = 0  # steps that D was locked, of the whole run
    policy_g: int = 0
    bad: int = 0
    nonfinite: int = 0  # steps in which a loss was not finite
    overflow_d: int = 0  # steps in which D's gradients alone were not
    overflow_g: int = 0
    void_in_a_row: int = 0  # of all these
    best_kid: float | None = None  # of the validations so far; the step that had it
    best_step: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        return {**vars(self), "policy": self.policy.to_dict(), "sums": dict(self.sums)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunState":
        """The inverse of `to_dict`."""
        return cls(**{**values, "policy": PolicyState(**values["policy"])})
