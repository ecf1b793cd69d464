"""What the tests of GPUs share: networks to compare, on a device that is chosen."""

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from dist_sketch.bench.step import batch
from dist_sketch.core.config import Config
from dist_sketch.core.config_rules import validate
from dist_sketch.core.ranks import Ranks
from dist_sketch.training.policy import BOTH, Decision
from dist_sketch.training.step import Step

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
PRESETS = pytest.mark.parametrize("preset", [None, "portrait"], ids=["paper", "portrait"])
DECISIONS = (BOTH, Decision(False, True, "D locked"), Decision(True, False, "G locked"))


def ranks(device: str) -> Ranks:
    with pytest.MonkeyPatch.context() as patch:
        if device == "cpu":
            patch.setenv("ACCELERATE_USE_CPU", "true")
        else:
            patch.delenv("ACCELERATE_USE_CPU", raising=False)
        AcceleratorState._reset_state(True)  # one process of each kind in turn
        found = Ranks(expect_world_size=1)
    assert found.device.type == device
    return found


def build(config: Config, on: Ranks, precision: str, *, capture: bool = True) -> Step:
    torch.manual_seed(0)
    return Step(validate(config), on, precision, total=100, capture=capture)


def pairs(config: Config, size: int, device: torch.device, first: int = 0) -> tuple[Tensor, Tensor]:
    return batch(config.data.batch_size, size, device, first, config.data.channels)


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten().cpu() for p in net.parameters()])


def all_weights(step: Step) -> Tensor:
    return torch.cat([weights(net) for net in step.modules().values()])
