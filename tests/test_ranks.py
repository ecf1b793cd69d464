"""Real processes that work together (gloo, CPU): what `ranks` promises, and one step on two ranks against one process.

Each child below runs once, on all ranks; it leaves what it saw in a file, and the tests read that.
"""

import hashlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.elastic.utils.distributed import get_free_port

from dist_sketch import config as cfg
from dist_sketch.conditional import BOTH, Decision
from dist_sketch.config import Config, Data, Generator, Loss, Optim
from dist_sketch.fileio import UserError
from dist_sketch.ranks import Ranks, eval_mode
from dist_sketch.step import NAMES, Step, read

LOCK_D = Decision(False, True, "D locked")
LOCK_G = Decision(True, False, "G locked")
MIXED = (BOTH, LOCK_D, BOTH, LOCK_G, BOTH)
TIMEOUT_S = 240
Result = dict[str, Any]


# ---------------------------------------------------------------- processes


def start(world: int, child: str, out: Path, **env: str) -> list[subprocess.CompletedProcess[str]]:
    """Runs the function `child` of this file on `world` ranks; kills them all when one hangs."""
    code = f"import test_ranks; test_ranks.run_child({child!r}, {str(out)!r})"
    common = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(get_free_port()),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        **env,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error::FutureWarning", "-c", code],
            env={"WORLD_SIZE": str(world), **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    ended = []
    try:
        for process in processes:
            stdout, stderr = process.communicate(timeout=TIMEOUT_S)
            ended.append(subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return ended


def run_child(child: str, out: str) -> None:
    """In a child: calls its function and saves what it returns."""
    torch.set_num_threads(1)
    try:
        ranks = Ranks(timeout_s=120)
        result = globals()[child](ranks)
    except UserError as e:
        print(f"UserError: {e}")
        raise SystemExit(2) from e
    torch.save(result, Path(out) / f"{child}-{ranks.rank}.pt")
    ranks.close()


def run(world: int, child: str, out: Path, **env: str) -> list[Result]:
    """What each rank's `child` returned."""
    ended = start(world, child, out, **env)
    for process in ended:
        assert process.returncode == 0, process.stderr[-4000:]
        assert "FutureWarning" not in process.stderr
    return [torch.load(out / f"{child}-{rank}.pt") for rank in range(world)]


@pytest.fixture(scope="module")
def alone() -> Iterator[Ranks]:
    """One process, on the CPU also where there is a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield Ranks(expect_world_size=1)


# ---------------------------------------------------------------- what ranks agree on


def child_agree(ranks: Ranks) -> Result:
    """Every collective, with values that differ between ranks."""
    rank = ranks.rank
    seen: Result = {"rank": rank, "world_size": ranks.world_size, "is_main": ranks.is_main}
    seen["sum"] = ranks.sum(torch.tensor([1.0 + rank, 10.0 * rank], dtype=torch.float64)).tolist()
    seen["gather"] = ranks.gather({"rank": rank, "names": ["é"] * rank})
    seen["broadcast"] = ranks.broadcast(f"from {rank}")
    ran = []

    def decide() -> str:
        ran.append(rank)
        return f"decided by {rank}"

    seen["decided"], seen["ran"] = ranks.main_decides(decide), ran
    seen["nothing"] = ranks.main_decides(lambda: None)

    def refuse() -> None:
        raise UserError(f"rank {rank} does not like this; do that")

    try:
        ranks.main_decides(refuse)
    except UserError as e:
        seen["refused"] = str(e)
    seen["after the refusal"] = ranks.gather(rank)
    seen["share"] = [list(ranks.share(count)) for count in range(12)]

    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False)).double()
    with torch.no_grad():
        net[1].running_mean.copy_(torch.tensor([1.0, 2.0]) * (rank + 1))
        net[2].running_var.copy_(torch.tensor([5.0, 7.0]) + rank)
        net[1].num_batches_tracked.fill_(3)
    ranks.average_buffers(net)
    ranks.average_buffers(nn.Linear(2, 2))  # nothing to average: no collective either
    seen["averaged"] = [t.tolist() for t in (net[1].running_mean, net[2].running_var, net[1].num_batches_tracked)]
    ranks.wait()
    return seen


@pytest.fixture(scope="module")
def agreed(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    return run(2, "child_agree", tmp_path_factory.mktemp("agree"))


def test_two_processes_find_each_other(agreed: list[Result]) -> None:
    assert [(r["rank"], r["world_size"], r["is_main"]) for r in agreed] == [(0, 2, True), (1, 2, False)]


def test_sum_gather_and_broadcast(agreed: list[Result]) -> None:
    for seen in agreed:
        assert seen["sum"] == [3.0, 10.0]
        assert seen["gather"] == [{"rank": 0, "names": []}, {"rank": 1, "names": ["é"]}]
        assert seen["broadcast"] == "from 0"


def test_the_main_process_decides_for_all(agreed: list[Result]) -> None:
    assert [r["decided"] for r in agreed] == ["decided by 0"] * 2
    assert [r["ran"] for r in agreed] == [[0], []]
    assert [r["nothing"] for r in agreed] == [None, None]


def test_a_user_error_of_the_main_process_reaches_all_and_breaks_nothing(agreed: list[Result]) -> None:
    assert [r["refused"] for r in agreed] == ["rank 0 does not like this; do that"] * 2
    assert [r["after the refusal"] for r in agreed] == [[0, 1]] * 2


def test_shares_are_each_index_once_and_even(agreed: list[Result]) -> None:
    for count in range(12):
        shares = [r["share"][count] for r in agreed]
        assert shares[0] + shares[1] == list(range(count))
        assert abs(len(shares[0]) - len(shares[1])) <= 1


def test_floating_point_buffers_are_averaged(agreed: list[Result]) -> None:
    assert [r["averaged"] for r in agreed] == [[[1.5, 3.0], [5.5, 7.5], 3]] * 2


def test_one_process_is_the_special_case(alone: Ranks) -> None:
    values = torch.tensor([1.0, 2.0])
    assert alone.sum(values).tolist() == [1, 2]
    assert alone.gather("x") == ["x"]
    assert alone.broadcast("x") == "x"
    assert alone.main_decides(lambda: 5) == 5
    with pytest.raises(UserError, match="no"):
        alone.main_decides(_refuse)
    assert alone.share(5) == range(5)
    net = nn.BatchNorm2d(2)
    assert alone.prepare(net) is net
    with alone.no_sync(net):
        alone.average_buffers(net)
    alone.wait()


def _refuse() -> None:
    raise UserError("no")


def test_eval_mode_puts_the_mode_back() -> None:
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(1))
    with eval_mode(net) as inside:
        assert inside is net
        assert not any(m.training for m in net.modules())
    assert all(m.training for m in net.modules())
    with pytest.raises(ZeroDivisionError), eval_mode(net):
        raise ZeroDivisionError
    assert net.training
    net.eval()
    with eval_mode(net):
        pass
    assert not net.training


# ---------------------------------------------------------------- the expected number of processes


SENTENCE = r"{} process\(es\) work together, {} were expected.*ACCELERATE_USE_CPU=true accelerate launch --multi_gpu"


def test_another_number_of_processes_is_refused(alone: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=SENTENCE.format(1, 3) + " --num_processes 3"):
        Ranks(expect_world_size=3)
    monkeypatch.setenv("WORLD_SIZE", "2")  # the launcher started two, each of which believes that it is alone
    with pytest.raises(UserError, match=SENTENCE.format(1, 2)):
        Ranks()
    assert Ranks(expect_world_size=1).world_size == 1  # what the user expects wins over the launcher's word


def test_the_launcher_s_mixed_precision_is_declined_with_a_word(
    alone: Ranks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert Ranks().accelerator.mixed_precision == "no"
    assert "mixed precision (fp16) is not used" in capsys.readouterr().out
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    Ranks()
    assert capsys.readouterr().out == ""


def child_expects_three(ranks: Ranks) -> Result:
    Ranks(expect_world_size=3)
    return {}


def test_every_rank_is_told_about_the_wrong_number(tmp_path: Path) -> None:
    for process in start(2, "child_expects_three", tmp_path):
        assert process.returncode == 2, process.stderr[-2000:]
        assert process.stdout.startswith("UserError: 2 process(es) work together, 3 were expected")


# ---------------------------------------------------------------- the step on two ranks


def settings(
    norm: str,
    *,
    batch_size: int = 2,
    d_backward: str = "separate",
    dropout: float = 0.0,
    ema: float = 0.0,
    lr_d: float = 2e-4,
) -> Config:
    return cfg.validate(
        Config(
            data=Data(batch_size=batch_size),
            optim=Optim(lr_g=2e-4, lr_d=lr_d),
            loss=Loss(d_backward=d_backward),  # type: ignore[arg-type]
            generator=Generator(dropout=dropout, ema=ema),
            norm=norm,  # type: ignore[arg-type]
        )
    )


def build(config: Config, ranks: Ranks, precision: str) -> Step:
    torch.manual_seed(0)
    return Step(config, ranks, precision)


def share(ranks: Ranks, seed: int, size: int, count: int) -> tuple[Tensor, Tensor]:
    """This rank's part of a global batch."""
    draw = torch.Generator().manual_seed(seed)
    pair = torch.rand(2, count, 3, size, size, generator=draw, dtype=torch.float64) * 2 - 1
    mine = list(ranks.share(count))
    return pair[0][mine], pair[1][mine]


def go(step: Step, pair: tuple[Tensor, Tensor], decision: Decision) -> dict[str, float]:
    return read(step(*pair, decision, bad=1, stop=step.ranks.rank == 1))


def statistics(step: Step) -> Tensor:
    return torch.cat([b for net in step.modules().values() for n, b in net.named_buffers() if "running" in n])


def digest(step: Step, names: tuple[str, ...] = ("generator", "discriminator", "ema")) -> str:
    """Hash of the networks' weights."""
    sha = hashlib.sha256()
    for name in names:
        for p in step.modules()[name].parameters():
            sha.update(p.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()


def sample(tensors: list[Tensor]) -> list[Tensor]:
    """Some thousand numbers of each tensor: enough to compare, and small enough for a file."""
    return [t.detach().flatten()[:: max(1, t.numel() // 4000)].clone() for t in tensors]


def gradients_of_a_step(step: Step, pair: tuple[Tensor, Tensor]) -> tuple[dict[str, float], dict[str, list[Tensor]]]:
    """What the step logs, and the reduced gradients that each optimizer is given."""
    seen: dict[str, list[Tensor]] = {}
    handles = []
    for name, optimizer in (("g", step.optimizer_g), ("d", step.optimizer_d)):

        def look(*_: Any, name: str = name, optimizer: torch.optim.Optimizer = optimizer) -> None:
            seen[name] = sample([p.grad for p in optimizer.param_groups[0]["params"]])

        handles.append(optimizer.register_step_pre_hook(look))
    logged = go(step, pair, BOTH)
    for handle in handles:
        handle.remove()
    return logged, seen


def child_invariance(ranks: Ranks) -> Result:
    """The same global batches in float64 through all kinds of locks, and one of them in float32."""
    step = build(settings("instance", ema=0.9), ranks, "fp64")
    assert MIXED[0] == BOTH
    first, gradients = gradients_of_a_step(step, share(ranks, 0, 128, 2))
    logged, digests = [first], [digest(step)]
    for n, decision in enumerate(MIXED[1:], 1):
        logged.append(go(step, share(ranks, n, 128, 2), decision))
        digests.append(digest(step))
    weights = {name: sample(list(net.parameters())) for name, net in step.modules().items()}
    # D held still by its learning rate: Adam's first step turns float32's rounding into whole steps
    single = build(settings("instance", lr_d=1e-12), ranks, "no")
    logged_32, gradients_32 = gradients_of_a_step(single, share(ranks, 0, 128, 2))
    return {
        "logged": logged,
        "digests": digests,
        "weights": weights,
        "gradients": gradients,
        "logged_32": logged_32,
        "gradients_32": gradients_32,
    }


def counting(ddp: nn.Module) -> list[int]:
    """Will hold the bytes of each gradient bucket that is reduced."""
    reduced: list[int] = []

    def hook(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        reduced.append(bucket.buffer().numel() * bucket.buffer().element_size())
        return allreduce_hook(group, bucket)

    ddp.register_comm_hook(None, hook)  # type: ignore[operator]
    return reduced


def traffic(ranks: Ranks, d_backward: str) -> Result:
    """Bytes that each kind of step reduces."""
    step = build(settings("none", batch_size=2, d_backward=d_backward), ranks, "no")
    reduced = {"d": counting(step.ddp_d), "g": counting(step.ddp_g)}
    vectors: list[int] = []
    plain: Callable[..., Any] = ranks.sum

    def counted(values: Tensor) -> Tensor:
        vectors.append(values.numel())
        return plain(values)

    ranks.sum = counted  # type: ignore[method-assign]
    found: Result = {
        "all": {n: 4 * sum(p.numel() for p in net.parameters()) for n, net in zip("gd", (step.g, step.d), strict=True)}
    }
    for name, decision in (("both", BOTH), ("lock_d", LOCK_D), ("lock_g", LOCK_G)):
        go(step, share(ranks, 0, 64, 2), decision)
        found[name] = {n: sum(b) for n, b in reduced.items()} | {"vectors": list(vectors)}
        found[name]["left"] = sum(p.grad is not None for net in (step.g, step.d) for p in net.parameters())
        for counts in (*reduced.values(), vectors):
            counts.clear()
    ranks.sum = plain  # type: ignore[method-assign]
    return found


def nan_on_one_rank(ranks: Ranks) -> Result:
    """BatchNorm, dropout, EMA; then a NaN that rank 1 alone sees, under each lock; then a good step."""
    step = build(settings("batch", batch_size=4, dropout=0.5, ema=0.9), ranks, "no")
    torch.manual_seed(1 + ranks.rank)  # dropout differs between ranks, weights may not
    go(step, share(ranks, 0, 64, 4), BOTH)
    live = ("generator", "discriminator")
    found: Result = {"start": digest(step, live), "own statistics": statistics(step), "skipped": []}
    # the last: a loss of infinity whose gradients (signs) are finite
    for decision, half, value in ((BOTH, 0, "nan"), (LOCK_D, 0, "nan"), (LOCK_G, 1, "nan"), (LOCK_D, 1, "inf")):
        pair = share(ranks, 1, 64, 4)
        if ranks.rank == 1:
            pair[half][0, 0, 5, 5] = float(value)
        logged = go(step, pair, decision)
        found["skipped"].append((logged["nonfinite"], digest(step, live), bool(statistics(step).isfinite().all())))
    found["good"] = (go(step, share(ranks, 2, 64, 4), BOTH)["nonfinite"], digest(step))
    found["moved"] = digest(step, live) != found["start"]
    found["before averaging"] = statistics(step)
    found["broadcast_buffers"] = [ddp.broadcast_buffers for ddp in (step.ddp_g, step.ddp_d)]
    step.average_buffers()
    found["after averaging"] = statistics(step)
    return found


def child_steps(ranks: Ranks) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        return {
            "separate": traffic(ranks, "separate"),
            "joint": traffic(ranks, "joint"),
            "nan": nan_on_one_rank(ranks),
        }


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    return run(2, "child_steps", tmp_path_factory.mktemp("steps"))


@pytest.fixture(scope="module")
def invariance(tmp_path_factory: pytest.TempPathFactory, alone: Ranks) -> tuple[Result, list[Result]]:
    """What one process found, and each of two ranks."""
    return child_invariance(alone), run(2, "child_invariance", tmp_path_factory.mktemp("invariance"))


def relative(a: list[Tensor], b: list[Tensor]) -> float:
    x, y = (torch.cat(tensors).double() for tensors in (a, b))
    return ((x - y).norm() / y.norm()).item()


def test_two_ranks_compute_what_one_process_does_in_float64(invariance: tuple[Result, list[Result]]) -> None:
    one, two = invariance
    for name in ("d", "g"):
        assert relative(two[0]["gradients"][name], one["gradients"][name]) < 1e-10
    for name, tensors in one["weights"].items():
        for a, b in zip(tensors, two[0]["weights"][name], strict=True):
            assert (a - b).abs().max() < 1e-9, name
    for a, b in zip(one["logged"], two[0]["logged"], strict=True):
        for name, value in a.items():
            if name not in ("bad", "stop"):
                # d/real and d/fake are only looked at: their sigmoid is taken in float32
                assert b[name] == pytest.approx(value, rel=1e-6 if name.startswith("d/") else 1e-8), name


def test_ranks_have_the_same_weights_and_log_the_same_after_every_step(
    invariance: tuple[Result, list[Result]],
) -> None:
    first, second = invariance[1]
    assert first["digests"] == second["digests"]
    assert len(set(first["digests"])) == len(MIXED)
    assert first["logged"] == second["logged"]


def test_counts_and_the_stop_flag_are_summed_over_ranks(invariance: tuple[Result, list[Result]]) -> None:
    one, two = invariance
    for logged in two[1]["logged"]:
        assert (logged["pairs"], logged["bad"], logged["stop"], logged["nonfinite"]) == (2, 2, 1, 0)
    assert (one["logged"][0]["bad"], one["logged"][0]["stop"]) == (1, 0)


def test_losses_and_reduced_gradients_of_one_step_in_float32(invariance: tuple[Result, list[Result]]) -> None:
    """Gradients only loosely: a convolution of one pair rounds unlike one of two, and an input of LeakyReLU that
    differs in its last bit about zero gets another slope. In float64 they agree to 1e-10, above."""
    one, two = invariance
    for name in ("loss/d_real", "loss/d_fake", "loss/g", "loss/g_l1", "loss/g_bce", "d/real", "d/fake"):
        assert two[0]["logged_32"][name] == pytest.approx(one["logged_32"][name], rel=1e-5), name
    for name in ("d", "g"):
        assert relative(two[0]["gradients_32"][name], one["gradients_32"][name]) < 0.03, name


@pytest.mark.parametrize("d_backward", ["separate", "joint"])
def test_each_trained_network_s_gradients_are_reduced_once_a_step(steps: list[Result], d_backward: str) -> None:
    vector = [len(NAMES)]
    for seen in (rank[d_backward] for rank in steps):
        d, g = seen["all"]["d"], seen["all"]["g"]
        assert seen["both"] == {"d": d, "g": g, "vectors": vector, "left": 0}
        assert seen["lock_d"] == {"d": 0, "g": g, "vectors": vector, "left": 0}
        assert seen["lock_g"] == {"d": d, "g": 0, "vectors": vector, "left": 0}


def test_a_nan_on_one_rank_is_skipped_by_all_and_the_weights_stay_equal(steps: list[Result]) -> None:
    first, second = (rank["nan"] for rank in steps)
    assert first["start"] == second["start"]
    for rank in (first, second):
        assert {weights for _, weights, _ in rank["skipped"]} == {first["start"]}
        assert all(count > 0 for count, _, _ in rank["skipped"])
        assert rank["good"] == first["good"]  # the average included
        assert rank["good"][0] == 0
        assert rank["moved"]


def test_a_nan_does_not_stay_in_the_running_statistics(steps: list[Result]) -> None:
    for rank in steps:
        assert all(finite for _, _, finite in rank["nan"]["skipped"])
        assert rank["nan"]["after averaging"].isfinite().all()


def test_running_statistics_are_each_rank_s_own_until_they_are_averaged(steps: list[Result]) -> None:
    first, second = (rank["nan"] for rank in steps)
    assert first["broadcast_buffers"] == second["broadcast_buffers"] == [False, False]
    assert not torch.equal(first["own statistics"], second["own statistics"])
    assert torch.equal(first["after averaging"], second["after averaging"])
    mean = (first["before averaging"].double() + second["before averaging"].double()) / 2
    assert torch.allclose(first["after averaging"].double(), mean, rtol=1e-6)
