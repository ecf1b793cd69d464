"""All of training's use of accelerate and torch.distributed: which process this is, and what all of them agree on."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, NoReturn, Self, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dist_sketch.core.errors import PeerLost, SharedError, UserError

T = TypeVar("T")


class Ranks:
    """This process among its peers. One process is the special case of world size 1.

    Use it as `with Ranks() as ranks:`; at the end of the block all ranks leave the process group together. If one rank
    exits while the group is open, peers that still need it abort (SIGABRT), and a finished job looks failed. After an
    error nobody waits for peers that may never come: see `leave`.

    Args:
        expect_world_size: refuse to start on another number of processes; None: the number in the launcher's and
            SLURM's variables.
        timeout_s: how long a collective operation may wait for a missing rank.

    Raises:
        UserError: the processes that were launched have not found each other.
    """

    def __init__(self, *, expect_world_size: int | None = None, timeout_s: float = 1800.0):
        launcher_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        # `training.step` does autocast and scaling: accelerate has one scaler for all networks, and no fp16 on CPUs.
        self.accelerator = Accelerator(
            mixed_precision="no",
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timedelta(seconds=timeout_s)),
                # Without this DDP rebuilds its buckets after the first backward of each start. With more than two ranks
                # the bucket layout decides the order of summation, so a resumed run would not be bit-equal.
                DistributedDataParallelKwargs(find_unused_parameters=True),
            ],
        )
        self.rank = self.accelerator.process_index
        self.world_size = self.accelerator.num_processes
        self.device: torch.device = self.accelerator.device
        self.is_main = self.rank == 0
        for source, expected in expectations(expect_world_size, self.device.type, self.world_size):
            if expected != self.world_size:
                raise SharedError(
                    f"{self.world_size} process(es) work together, {expected} were expected ({source}). "
                    f"{_right_command(expected)}; or say what is wanted: --expect-world-size N"
                )
        if launcher_precision not in ("no", "") and self.is_main:
            print(f"note: the launcher's mixed precision ({launcher_precision}) is not used; set --train.precision")

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over all ranks, in place; one small all-reduce."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Every rank's (picklable) value, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's (picklable) value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def main_decides(self, function: Callable[[], T]) -> T:
        """Runs `function` on rank 0 only. All ranks get its value, or its error, so that nobody waits in vain."""
        result: Any = None
        error: Exception | None = None
        if self.is_main:
            try:
                result = function()
            except Exception as e:
                error = e
        message = str(error) if isinstance(error, UserError) else None
        result, failed, message = self.broadcast((result, error is not None, message))
        if error is not None:
            raise error
        if failed:
            raise SharedError(message) if message is not None else PeerLost("rank 0 failed: its traceback says why")
        return result

    def wait(self) -> None:
        """Returns when all ranks have called it."""
        self.accelerator.wait_for_everyone()

    def share(self, count: int) -> range:
        """This rank's part of the indices 0..count-1: contiguous; each index belongs to exactly one rank."""
        return range(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def prepare(self, module: nn.Module) -> nn.Module:
        """Moves a network to the device and wraps it in DDP, so that a backward through it averages gradients."""
        wrapped = self.accelerator.prepare_model(module)
        if isinstance(wrapped, DistributedDataParallel):
            # D is evaluated twice before its update; a broadcast in between would change buffers that autograd saved.
            # `training.step` averages the statistics where the ranks need equal ones.
            wrapped.broadcast_buffers = False
        return wrapped

    @staticmethod
    def no_sync(module: nn.Module) -> AbstractContextManager[None]:
        """Inside the block, backward adds to this rank's gradients without averaging them over the ranks."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    def sync_batchnorm(self, module: nn.Module) -> nn.Module:
        """`module` with BatchNorm layers that compute statistics over all ranks; torch has none for CPUs."""
        return nn.SyncBatchNorm.convert_sync_batchnorm(module) if self.world_size > 1 else module

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None and dist.is_initialized():  # one process has no group
            self.wait()
            self.accelerator.end_training()


def leave(code: int) -> NoReturn:
    """Ends this process; after an error at once, without the interpreter's clean-up.

    The process group is then still open. Its threads could abort the clean-up (gloo's sometimes do, so that the exit
    code would be SIGABRT's), or wait in it for ranks that are gone.
    """
    if code and dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def lost_peer(error: BaseException) -> bool:
    """Whether `error` says that another rank is gone, or has not joined a collective operation in time."""
    return isinstance(error, PeerLost | dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def expectations(wanted: int | None, device: str, actual: int) -> Iterator[tuple[str, int]]:
    """Yields the number of processes that the user, or else the launcher and SLURM, expect; each with its source.

    Args:
        actual: processes that found each other; SLURM's number of tasks is left out if it divides this.
    """
    env = os.environ
    if wanted is not None:
        yield "--expect-world-size", wanted
        return
    yield "the launcher's WORLD_SIZE", int(env.get("WORLD_SIZE") or 1)
    if "DIST_SKETCH_RANKS" in env:  # they were started by `dist-sketch node`
        yield "dist-sketch node", int(env["DIST_SKETCH_RANKS"])
    elif "SLURM_STEP_NUM_TASKS" in env:  # only set inside srun
        tasks, nodes = int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_STEP_NUM_NODES") or 1)
        gpus = env.get("SLURM_GPUS_ON_NODE", "")
        if device == "cuda" and gpus.isdigit():
            yield f"SLURM: {nodes} node(s) with {gpus} GPU(s)", nodes * int(gpus)
        elif actual % tasks:  # a task may be a launcher that starts several processes
            yield f"SLURM: {tasks} task(s)", tasks


def _right_command(count: int) -> str:
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES") or 1)
    if nodes > 1:
        return (
            f"On every node: accelerate launch --multi_gpu --num_machines {nodes} --machine_rank $SLURM_NODEID "
            f"--num_processes {count} --main_process_ip FIRST_NODE --main_process_port 29500 ..."
        )
    return (
        f"On GPUs: accelerate launch --multi_gpu --num_processes {count} ...; "
        f"on CPUs: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {count} ..."
    )
