"""Real processes that work together (gloo, CPU): what `ranks` promises.

Each child below runs once, on all ranks; it leaves what it saw in a file, and the tests read that.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Run
from support import forks
from support.ranked import Result, run, start
from torch import nn

from dist_sketch.core import launcher
from dist_sketch.core.errors import PeerLost, SharedError, UserError
from dist_sketch.core.ranks import GONE, TOO_LATE, Ranks, expectations, lost_peer

# ---------------------------------------------------------------- what ranks agree on


def child_agree(ranks: Ranks) -> Result:
    """Every collective, with values that differ between ranks."""
    rank = ranks.rank
    seen: Result = {"rank": rank, "world_size": ranks.world_size, "is_main": ranks.is_main}
    seen["sum"] = ranks.sum(torch.tensor([1.0 + rank, 10.0 * rank], dtype=torch.float64)).tolist()
    seen["gather"] = ranks.gather({"rank": rank, "names": ["é"] * rank})
    seen["gather_to_main"] = ranks.gather_to_main({"rank": rank, "names": ["é"] * rank})
    seen["broadcast"] = ranks.broadcast(f"from {rank}")
    seen["to_host"] = ranks.to_host(torch.tensor([rank, 5]))
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

    ranks.wait()
    return seen


@pytest.fixture(scope="module")
def agreed(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    return run(2, child_agree, tmp_path_factory.mktemp("agree"))


def test_two_processes_find_each_other(agreed: list[Result]) -> None:
    assert [(r["rank"], r["world_size"], r["is_main"]) for r in agreed] == [(0, 2, True), (1, 2, False)]


def test_sum_gather_and_broadcast(agreed: list[Result]) -> None:
    for seen in agreed:
        assert seen["sum"] == [3.0, 10.0]
        assert seen["gather"] == [{"rank": 0, "names": []}, {"rank": 1, "names": ["é"]}]
        assert seen["gather_to_main"] == (seen["gather"] if seen["is_main"] else None)
        assert seen["broadcast"] == "from 0"
        assert seen["to_host"].tolist() == [seen["rank"], 5]


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


def test_one_process_is_the_special_case(alone: Ranks) -> None:
    values = torch.tensor([1.0, 2.0])
    assert alone.sum(values).tolist() == [1, 2]
    assert alone.gather("x") == ["x"]
    assert alone.broadcast("x") == "x"
    assert alone.main_decides(lambda: 5) == 5
    with pytest.raises(UserError, match="no"):
        alone.main_decides(_refuse)
    assert alone.share(5) == range(5)
    assert alone.gather_to_main("x") == ["x"]
    assert alone.to_host(values).tolist() == [1, 2]
    assert alone.to_host(values).data_ptr() != values.data_ptr()
    net = nn.BatchNorm2d(2)
    alone.same_weights(net)
    assert alone.sync_batchnorm(net) is net
    alone.wait()


def child_starts_alike(ranks: Ranks) -> Result:
    """Networks of different weights, which become rank 0's; and a tensor of another rank with strides of its own."""
    torch.manual_seed(ranks.rank)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    net(torch.randn(2, 3, 5, 5))  # other running statistics on each rank
    own = {k: v.clone() for k, v in net.state_dict().items()}
    addresses = [v.data_ptr() for v in net.state_dict().values()]
    ranks.same_weights(net)
    assert addresses == [v.data_ptr() for v in net.state_dict().values()]
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    every_other = torch.full((6,), float(ranks.rank))[::2]
    ranks.broadcast_tensor(every_other, src=1)
    return {"own": own, "now": dict(net.state_dict()), "every other": every_other.tolist()}


def test_all_ranks_start_from_the_weights_and_statistics_of_rank_0(tmp_path: Path) -> None:
    first, second = run(2, child_starts_alike, tmp_path)
    assert not torch.equal(first["own"]["0.weight"], second["own"]["0.weight"])
    for name, value in first["own"].items():
        assert torch.equal(first["now"][name], value)
        assert torch.equal(second["now"][name], value)
    assert first["every other"] == second["every other"] == [1.0, 1.0, 1.0]


def _refuse() -> None:
    raise UserError("no")


# ---------------------------------------------------------------- the expected number of processes


SENTENCE = (
    r"{} process\(es\) work together, {} were expected \(.*\).*ACCELERATE_USE_CPU=true accelerate launch --multi_gpu"
)


def test_another_number_of_processes_is_refused(alone: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SharedError, match=SENTENCE.format(1, 3) + " --num_processes 3"):
        Ranks(expect_world_size=3)
    monkeypatch.setenv("WORLD_SIZE", "2")  # the launcher started two, each of which believes that it is alone
    with pytest.raises(UserError, match=SENTENCE.format(1, 2)):
        Ranks()
    assert Ranks(expect_world_size=1).world_size == 1  # the user's option overrides what the launcher says


PLACE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29501"}
LEFTOVERS = [
    *[({name: "abc"}, f"{name}=abc: is not a number.*unset {name}") for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")],
    ({"WORLD_SIZE": "-2"}, "WORLD_SIZE=-2: is not a number"),
    ({"WORLD_SIZE": "²"}, "WORLD_SIZE=²: is not a number"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: must be 1 to 1000000"),
    ({"RANK": "1000001"}, "RANK=1000001: must be 0 to 1000000"),
    ({"RANK": "9" * 5000}, "RANK=9+: is not a number"),
    ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536: must be 0 to 65535"),
    ({"ACCELERATE_TORCH_DEVICE": "foo"}, "ACCELERATE_TORCH_DEVICE=foo: this machine has no such device"),
    ({"ACCELERATE_TORCH_DEVICE": "cuda:99"}, "ACCELERATE_TORCH_DEVICE=cuda:99: this machine has no such device"),
    ({"SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS=x: is not a number"),
    ({"SLURM_STEP_NUM_NODES": "2(x2)"}, r"SLURM_STEP_NUM_NODES=2\(x2\): is not a number"),
    ({"DIST_SKETCH_RANKS": "x"}, "DIST_SKETCH_RANKS=x: is not a number"),
    ({"LOCAL_WORLD_SIZE": "x"}, "LOCAL_WORLD_SIZE=x: is not a number"),
    ({"LOCAL_RANK": "0"}, "the environment has LOCAL_RANK, but no RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT: .*unset"),
    ({"LOCAL_RANK": ""}, "the environment has an empty LOCAL_RANK, but no RANK, .*unset LOCAL_RANK$"),
    ({**PLACE, "MASTER_ADDR": ""}, "but no MASTER_ADDR: "),
    ({**PLACE, "RANK": "1"}, "RANK=1 with WORLD_SIZE=1: ranks count from 0"),
    ({"WORLD_SIZE": "2"}, SENTENCE.format(1, 2)),
    ({"ACCELERATE_USE_FSDP": "true"}, "ACCELERATE_USE_FSDP=true: the launcher's configuration asks for FSDP, "),
    ({"ACCELERATE_USE_DEEPSPEED": "True"}, "ACCELERATE_USE_DEEPSPEED=True: .* asks for DeepSpeed, .*--multi_gpu"),
    ({"ACCELERATE_USE_MEGATRON_LM": "1"}, "asks for Megatron-LM"),
    ({"ACCELERATE_DYNAMO_BACKEND": "odd"}, r"accelerate cannot start .*: .*ACCELERATE_DYNAMO_BACKEND=odd"),
    ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "x"}, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=x"),
]


@pytest.mark.parametrize(("env", "sentence"), LEFTOVERS, ids=lambda v: " ".join(v) if isinstance(v, dict) else "")
def test_what_a_launcher_has_left_in_the_environment_is_named(
    alone: Ranks, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], sentence: str
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SharedError, match=sentence) as refused:
        Ranks()
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("env", [{}, {"WORLD_SIZE": ""}, {"RANK": "0"}, {"LOCAL_RANK": "0", **PLACE}], ids=" ".join)
def test_leftovers_that_change_nothing_are_let_pass(
    alone: Ranks, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    launcher.check()


CPU_CONFIG = "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nuse_cpu: true\nnum_processes: 2\n"
WAYS = {
    "an option": ("accelerate", "launch", "--cpu", "--num_processes", "2", "-m"),
    "the module": (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "-m"),
    "a configuration": ("accelerate", "launch", "--config_file", "FILE", "-m"),
    "a configuration, behind a shell": ("accelerate", "launch", "--config_file", "FILE", "--no_python", "sh"),
    "a file": (sys.executable, "/packages/accelerate/commands/launch.py", "--cpu", "--num_processes", "2", "-m"),
    "a program": (sys.executable, "/bin/accelerate-launch", "--cpu", "--num_processes", "2", "-m"),
}


def words_of(way: str, folder: Path) -> list[str]:
    (folder / "cpu.yaml").write_text(CPU_CONFIG)
    return [w.replace("FILE", str(folder / "cpu.yaml")) for w in WAYS[way]]


@pytest.mark.parametrize("way", WAYS)
def test_what_a_launcher_was_asked_for_is_in_its_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    above = [["sh", "go", "dist_sketch"], [*words_of(way, tmp_path), "dist_sketch", "train"], ["init"]]
    monkeypatch.setattr(launcher, "_ancestors", lambda: iter(above))
    assert launcher.asked_of_accelerate() == 2


@pytest.mark.parametrize("way", ["the module", "a configuration, behind a shell"])
def test_a_launcher_that_starts_fewer_processes_than_asked_is_found_out(tmp_path: Path, shards: Path, way: str) -> None:
    """With --cpu it starts one, whatever it was told."""
    train = ("dist_sketch", "train", "--dry-run", "--data.shards", str(shards), "--out", str(tmp_path / "run"))
    if "shell" in way:
        (tmp_path / "go").write_text(f'{sys.executable} -m "$@"; exit $?')
        train = (str(tmp_path / "go"), *train)
    command = words_of(way, tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run([*command, *train], capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(said) == 1, done.stderr
    assert re.match("error: " + SENTENCE.format(1, 2), said[0])
    assert "(accelerate launch's --num_processes)" in said[0]


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
    for process in start(2, child_expects_three, tmp_path):
        assert process.returncode == 2, process.stderr[-2000:]
        assert process.stdout.startswith("UserError: 2 process(es) work together, 3 were expected")


def child_has_no_network(ranks: Ranks) -> Result:
    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("[pair.cc:144] no error\nand more")

    torch.distributed.new_group = refused
    Ranks()
    return {}


def test_hosts_that_cannot_reach_each_other_are_told_what_to_set(tmp_path: Path) -> None:
    for process in start(2, child_has_no_network, tmp_path):
        assert process.returncode == 2, process.stderr[-2000:]
        assert "over the network ([pair.cc:144] no error). If no rank has failed, set GLOO_SOCKET" in process.stdout


# ---------------------------------------------------------------- what SLURM says


def expected(monkeypatch: pytest.MonkeyPatch, device: str, **env: str) -> dict[int, list[str]]:
    """For 1 to 16 processes: the sources that do not agree."""
    step = ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_GPUS_ON_NODE", "SLURM_NTASKS")
    for name in ("WORLD_SIZE", "DIST_SKETCH_RANKS", *step):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return {n: [source for source, count in expectations(None, device, n) if count != n] for n in range(1, 17)}


def test_what_slurm_allotted_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    two_nodes = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"}
    on_gpus = expected(monkeypatch, "cuda", WORLD_SIZE="8", **two_nodes)
    assert [n for n, against in on_gpus.items() if not against] == [8]
    # the launcher ran on one node only
    assert expected(monkeypatch, "cuda", WORLD_SIZE="4", **two_nodes)[4] == ["SLURM: 2 node(s) with 4 GPU(s)"]
    # on CPUs a task may start several processes
    on_cpus = expected(monkeypatch, "cpu", WORLD_SIZE="6", **two_nodes)
    assert [n for n, against in on_cpus.items() if not against] == [6]
    # What the node's launcher has started counts, not how many GPUs there are
    by_node = expected(monkeypatch, "cuda", **two_nodes, WORLD_SIZE="4", DIST_SKETCH_RANKS="4")
    assert [n for n, against in by_node.items() if not against] == [4]
    alone = expected(monkeypatch, "cpu", SLURM_STEP_NUM_TASKS="2")  # srun without a launcher: two runs in one folder
    assert alone[1] == ["SLURM: 2 task(s)"]
    # a batch script, or a shell of salloc, is no step
    assert expected(monkeypatch, "cuda", SLURM_NTASKS="8", SLURM_GPUS_ON_NODE="8")[1] == []


def test_slurm_s_word_is_checked_and_the_command_is_named(alone: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    with pytest.raises(SharedError, match=r"2 were expected \(SLURM: 2 task\(s\)\).*--num_machines 2 --machine_rank"):
        Ranks()
    assert Ranks(expect_world_size=1).world_size == 1


# ---------------------------------------------------------------- a rank that is gone


def child_loses_a_peer(ranks: Ranks) -> Result:
    """Rank 1 leaves silently; the others can tell the resulting error from errors of their own."""
    if ranks.rank == 1:
        raise UserError("goodbye")
    try:
        for _ in range(3):
            ranks.sum(torch.zeros(5))
    except Exception as e:
        raise UserError(f"lost: {lost_peer(e)}; {lost_peer(RuntimeError('shape mismatch'))}") from e
    raise AssertionError("nothing was noticed")


@pytest.mark.parametrize("open_group", [False, True])
def test_with_an_open_process_group_an_error_ends_the_process_at_once(open_group: bool, tmp_path: Path) -> None:
    code = f"""
import atexit
import torch.distributed as dist
from dist_sketch.core.ranks import leave
atexit.register(print, "the interpreter's own end")
if {open_group}:
    dist.init_process_group("gloo", init_method="file://{tmp_path}/meeting", rank=0, world_size=1)
print("said before")
leave(3)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 3
    assert done.stdout.splitlines() == ["said before", *([] if open_group else ["the interpreter's own end"])]


def test_a_rank_that_is_gone_is_noticed_by_the_others(tmp_path: Path) -> None:
    first, second = start(2, child_loses_a_peer, tmp_path)
    assert (first.returncode, second.returncode) == (2, 2), first.stderr[-2000:]
    assert first.stdout == f"UserError: lost: {GONE}; None\n"


def child_waits_in_vain(ranks: Ranks) -> Result:
    """Rank 1 hangs; rank 0 tries each operation on objects and CPU tensors, in groups of their own."""
    operations = [
        lambda hasty: hasty.sum(torch.zeros(5)),
        lambda hasty: hasty.gather(1),
        lambda hasty: hasty.gather_to_main(1),
        lambda hasty: hasty.wait(),
        lambda hasty: hasty.broadcast_tensor(torch.zeros(5), src=1),
    ]
    groups = [Ranks(timeout_s=0.3) for _ in operations]
    said = []
    for operation, hasty in zip(operations, groups, strict=True):
        if ranks.is_main:
            with pytest.raises(RuntimeError) as error:
                operation(hasty)
            said.append(lost_peer(error.value))
    ranks.wait()  # the ranks' own time-out is longer
    return {"said": said}


def test_a_rank_that_hangs_is_noticed_and_the_sentence_says_what_to_do(tmp_path: Path) -> None:
    first, _ = run(2, child_waits_in_vain, tmp_path)
    assert first["said"] == [TOO_LATE] * 5


@pytest.mark.parametrize(
    ("number", "code", "last"),
    [(signal.SIGTERM, 75, "stopped before the ranks have met"), (signal.SIGINT, 130, "interrupted")],
)
def test_who_is_awaited_is_told_and_a_stop_is_obeyed_before_the_ranks_meet(
    tmp_path: Path, shards: Path, number: signal.Signals, code: int, last: str
) -> None:
    prints = tmp_path / "out", tmp_path / "err"
    place = forks.places(2)[0]
    train = ("train", "--data.shards", shards, "--data.batch-size", 2, "--out", tmp_path / "run")
    pid = forks.fork(prints, arguments=train, env={**os.environ, "ACCELERATE_USE_CPU": "true", **place})
    waits = f"rank 0 of 2 waits for all ranks at {place['MASTER_ADDR']}:{place['MASTER_PORT']} "
    try:
        forks.wait_until(lambda: waits in prints[1].read_text() or forks.poll(pid) is not None, "the sentence")
        os.kill(pid, number)
        assert forks.wait(pid, 30) == code
    finally:
        forks.kill(pid)
    assert prints[1].read_text().splitlines()[-1] == last


def test_a_rank_that_never_comes_is_given_up_after_the_time_out(tmp_path: Path, shards: Path, cli: Run) -> None:
    place = forks.places(2)[0]
    train = ("train", "--data.shards", shards, "--data.batch-size", 2, "--out", tmp_path / "run")
    done = cli(*train, "--train.rank-timeout-s", 0.5, ACCELERATE_USE_CPU="true", **place)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(said)) == (1, 1), done.stderr
    assert "rank 0 of 2 waits for all ranks at " in said[0]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, cli: Run, pairs: Path) -> tuple[object, ...]:
    """The options of an inference, whose output folder is the last of them."""
    options = ("infer", "--run", "portrait-128", "--input", pairs, "--workers", 0, "--track.wandb", "off", "--out")
    out = tmp_path_factory.mktemp("drawn") / "out"
    assert cli(*options, out).returncode == 0
    return *options, out


@pytest.mark.parametrize("command", ["infer", "evaluate"])
def test_drawing_and_scoring_do_not_wait_for_ever_for_a_rank_that_hangs(
    tmp_path: Path, drawn: tuple[object, ...], command: str
) -> None:
    options, place = (*drawn[:-1], tmp_path / "out"), "inference.infer:_draw:1"
    if command == "evaluate":
        options, place = ("evaluate", drawn[-1], "--track.wandb", "off"), "inference.scoring:read_output:1"
    prints = [(tmp_path / f"{rank}.out", tmp_path / f"{rank}.err") for rank in (0, 1)]
    hang = ("support.hooks", "pauses", tmp_path / "rank1", place)
    env = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    pids = [
        forks.fork(
            prints[rank],
            arguments=(*options, "--rank-timeout-s", 3),
            call=hang if rank else (),
            env={**env, **where},
        )
        for rank, where in enumerate(forks.places(2))
    ]
    try:
        assert forks.wait(pids[0]) == 1
    finally:
        for pid in pids:
            forks.kill(pid)
    assert (tmp_path / "rank1.0").exists()
    assert prints[0][1].read_text() == f"error: {TOO_LATE}\n"


@pytest.mark.parametrize("timeout_s", ["0", "-1", "nan", "inf", "1e300"])
@pytest.mark.parametrize("command", ["infer", "evaluate"])
def test_a_time_out_that_is_none_is_a_sentence(
    drawn: tuple[object, ...], cli: Run, command: str, timeout_s: str
) -> None:
    options = drawn if command == "infer" else ("evaluate", drawn[-1], "--track.wandb", "off")
    refused = cli(*options, f"--rank-timeout-s={timeout_s}")
    said = f"error: --rank-timeout-s {float(timeout_s):g}: must be above 0 and at most 10,000,000\n"
    assert (refused.returncode, refused.stderr) == (2, said)


def test_a_device_that_never_finishes_is_given_up_after_the_time_out(
    alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "timeout_s", 0.05)
    asked: list[int] = []
    with pytest.raises(PeerLost, match=r"has not finished its steps after 0 s: .*raise the time-out") as error:
        alone.until(lambda: bool(asked.append(1)))
    assert len(asked) > 2
    assert lost_peer(error.value) == str(error.value)
    answers = iter([False, False, True])
    alone.until(lambda: next(answers))
    assert list(answers) == []


def child_waits_for_its_device(ranks: Ranks) -> Result:
    """Rank 1 is gone; rank 0's device would wait for it for ever."""
    if ranks.rank == 1:
        raise UserError("goodbye")
    try:
        ranks.until(lambda: False)
    except Exception as e:
        raise UserError(str(lost_peer(e))) from e
    raise AssertionError("nothing was noticed")


def test_a_rank_that_is_gone_is_noticed_while_the_device_waits_for_it(tmp_path: Path) -> None:
    first, _ = start(2, child_waits_for_its_device, tmp_path)
    assert first.stdout == f"UserError: {GONE}\n", first.stderr[-2000:]


def child_ends(ranks: Ranks) -> Result:
    for name in ("first", "second"):
        ranks.at_end(lambda name=name: print(name, torch.distributed.is_initialized()))  # type: ignore[misc]
    return {}


def test_what_needs_the_process_group_is_released_before_it_ends(tmp_path: Path) -> None:
    for process in start(2, child_ends, tmp_path):
        assert process.stdout.splitlines() == ["first True", "second True"], process.stderr
