"""Gradients averaged over real processes (gloo, CPU) by one all-reduce of one buffer."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.ranked import Result, run
from torch import Tensor, nn

from dist_sketch.core.gradients import FlatGradients
from dist_sketch.core.ranks import Ranks


def network() -> nn.Module:
    """Sizes that no alignment divides, channels_last, and a weight of one number."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 1, 1))
    return net.to(memory_format=torch.channels_last)


def backward(net: nn.Module, seed: int, factor: float = 1.0) -> None:
    """Gives `net` the gradients of a batch that only `seed` decides."""
    net.zero_grad()
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    (net(x.to(next(net.parameters()).dtype)).square().mean() * factor).backward()


def gradients(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def child_averages(ranks: Ranks) -> Result:
    """Three averages; the last with NaN on one rank."""
    net = network()
    flat = FlatGradients(net.parameters(), ranks)
    assert flat.flat is not None
    found: Result = {"nbytes": flat.nbytes, "mine": [], "mean": [], "addresses": set(), "layouts": []}
    reduced = []
    whole = dist.all_reduce
    dist.all_reduce = lambda tensor, *a, **k: (reduced.append(tensor.nbytes), whole(tensor, *a, **k))[1]
    for turn in range(2):
        backward(net, seed=10 * turn + ranks.rank)
        found["mine"].append(gradients(net))
        flat.average()
        found["mean"].append(gradients(net))
        found["addresses"] |= {(flat.flat.data_ptr(), *(p.grad.data_ptr() for p in net.parameters()))}
    found["layouts"] = [(p.stride(), p.grad.stride(), p.grad.data_ptr() % 16) for p in net.parameters()]
    found["reduced"] = list(reduced)
    backward(net, seed=5, factor=float("nan") if ranks.rank == ranks.world_size - 1 else 1.0)
    flat.average()
    found["nan"] = [bool(g.isnan().any()) for g in gradients(net)]
    return found


@pytest.fixture(scope="module", params=[2, 4])
def averaged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    return run(request.param, child_averages, tmp_path_factory.mktemp("averages"))


def test_each_rank_gets_the_mean_bit_equal(averaged: list[Result]) -> None:
    for turn in range(2):
        means = [rank["mean"][turn] for rank in averaged]
        for i, mean in enumerate(means[0]):
            assert all(torch.equal(mean, other[i]) for other in means[1:])
            wanted = torch.stack([rank["mine"][turn][i] for rank in averaged]).double().mean(0)
            torch.testing.assert_close(mean.double(), wanted, rtol=1e-5, atol=1e-7)
            assert not torch.equal(mean, averaged[0]["mine"][turn][i])


def test_it_is_one_all_reduce_from_one_address(averaged: list[Result]) -> None:
    for rank in averaged:
        assert rank["reduced"] == [rank["nbytes"]] * 2
        assert len(rank["addresses"]) == 1
        assert all(parameter == gradient and not odd for parameter, gradient, odd in rank["layouts"])
    assert averaged[0]["layouts"][0][0] == (27, 1, 9, 3)  # channels_last indeed


def test_nan_of_one_rank_reaches_all(averaged: list[Result]) -> None:
    assert [rank["nan"] for rank in averaged] == [[True] * 6] * len(averaged)


def child_lacks_a_gradient(ranks: Ranks) -> Result:
    net = network()
    flat = FlatGradients(net.parameters(), ranks)
    backward(net, seed=0)
    next(net.parameters()).grad = None
    with pytest.raises(AssertionError, match="a gradient of every parameter"):
        flat.average()
    return {}


def test_a_missing_gradient_is_refused_on_the_spot(tmp_path: Path) -> None:
    run(2, child_lacks_a_gradient, tmp_path)


def child_averages_nothing(ranks: Ranks) -> Result:
    net = network()
    flat = FlatGradients(net.parameters(), ranks)
    backward(net, seed=0)
    before = [p.grad for p in net.parameters()]
    flat.average()
    same = all(p.grad is b for p, b in zip(net.parameters(), before, strict=True))
    return {"group": dist.is_initialized(), "same": same, "buffer": flat.flat, "nbytes": flat.nbytes}


def test_one_process_averages_nothing_even_in_a_launcher_s_group(tmp_path: Path) -> None:
    assert run(1, child_averages_nothing, tmp_path) == [{"group": True, "same": True, "buffer": None, "nbytes": 0}]


def test_one_process_without_a_group_averages_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    found = child_averages_nothing(Ranks(expect_world_size=1))
    assert found == {"group": False, "same": True, "buffer": None, "nbytes": 0}
