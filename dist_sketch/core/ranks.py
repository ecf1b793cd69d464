"""All of training's use of accelerate and torch.distributed: which process this is, and what all of them agree on."""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, Self, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn

from dist_sketch.core import launcher
from dist_sketch.core.config_rules import LONGEST_S
from dist_sketch.core.errors import PeerLost, SharedError, UserError, refused_by_system
from dist_sketch.core.signals import STOP_SIGNALS, StopRequest

T = TypeVar("T")

POLL_S = 0.0002  # between two questions to a device; much less than a step takes
LONG_S = 5.0  # when ranks have not met by then, somebody may want to know

GONE = "another rank failed or is gone: its message says why"
TOO_LATE = (
    "another rank has not come within the ranks' time-out: it hangs, or it still works on its part; look at the output "
    "of all ranks, then start the same command again; if the work really takes so long, raise the time-out "
    "(--train.rank-timeout-s, or --rank-timeout-s of infer and evaluate)"
)


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
        UserError: the processes that were launched have not found each other, or cannot; see `launcher.check`. Or the
            time-out is none.
        PeerLost: another rank has not come.
    """

    def __init__(self, *, expect_world_size: int | None = None, timeout_s: float = 1800.0):
        launcher.check()
        _check_device()
        if not 0 < timeout_s <= LONGEST_S:
            raise SharedError(f"--rank-timeout-s {timeout_s:g}: must be above 0 and at most {LONGEST_S:,}")
        launcher_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        # `training.step` does autocast and scaling: accelerate has one scaler for all networks, and no fp16 on CPUs.
        try:
            with _meeting():
                self.accelerator = Accelerator(
                    mixed_precision="no",
                    cpu=torch.backends.mps.is_available(),  # a Mac's GPU has no float64
                    # For device tensors. NCCL ends the process by a signal when its time is over, so that nobody can
                    # write what happened. Its time is longer than ours: `until` notices the same first, and raises an
                    # error.
                    kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=2 * timeout_s))],
                )
        except (ValueError, KeyError, ImportError) as e:
            raise SharedError(
                f"accelerate cannot start with what a launcher has set ({e}): {launcher.settings()}; use a "
                "configuration of launch/, and unset the variables that are leftovers"
            ) from e
        except dist.DistError as e:
            raise PeerLost(f"{lost_peer(e)} ({_meeting_place()}: {str(e).splitlines()[0]})") from e
        self.rank = self.accelerator.process_index
        self.world_size = self.accelerator.num_processes
        self.device: torch.device = self.accelerator.device
        self.is_main = self.rank == 0
        self.timeout_s = timeout_s
        self._host: dist.ProcessGroup | None = None
        self._at_end: list[Callable[[], None]] = []
        self._waited_s = 0.0
        if expect_world_size is not None and expect_world_size < 1:
            raise SharedError(f"--expect-world-size {expect_world_size}: must be 1 or more")
        for source, expected in expectations(expect_world_size, self.device.type, self.world_size):
            if expected != self.world_size:
                raise SharedError(
                    f"{self.world_size} process(es) work together, {expected} were expected ({source}). "
                    f"{_right_command(expected)}; or say what is wanted: --expect-world-size N"
                )
        if launcher_precision not in ("no", "") and self.is_main:
            print(f"note: the launcher's mixed precision ({launcher_precision}) is not used; set --train.precision")
        if self.world_size > 1:
            # For objects and CPU tensors. On NCCL's group a GPU would spin while it waits for rank 0's host.
            self._host = _host_group(timeout_s)

    def group_of(self, values: Tensor) -> dist.ProcessGroup | None:
        """The process group that communicates tensors of this device; None: the default one."""
        return self._host if values.device.type == "cpu" else None

    @property
    def in_cuda_graphs(self) -> bool:
        """Whether a CUDA graph can hold the sums over the ranks: those of NCCL, gloo needs the host."""
        return self.world_size == 1 or dist.get_backend() == "nccl"

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over all ranks, in place; one small all-reduce. The host does not wait for the device."""
        if self.world_size > 1:
            began = time.perf_counter()
            dist.all_reduce(values, group=self.group_of(values))
            self._waited_s += time.perf_counter() - began
        return values

    def take_waited_s(self) -> float:
        """Seconds that this rank's host has waited in `sum` since the last call."""
        waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s

    def broadcast_tensor(self, tensor: Tensor, src: int = 0) -> None:
        """Overwrites `tensor` with rank `src`'s, on its device; same shape and type on all ranks, any strides."""
        if self.world_size == 1:
            return
        with torch.no_grad():
            dense = tensor.contiguous()
            dist.broadcast(dense, src, group=self.group_of(dense))
            tensor.copy_(dense)

    def same_weights(self, module: nn.Module) -> None:
        """Overwrites the parameters and buffers of `module` with rank 0's, so that all ranks start from the same."""
        for tensor in (*module.parameters(), *module.buffers()):
            self.broadcast_tensor(tensor)

    def to_host(self, values: Tensor) -> Tensor:
        """A copy of `values` on the CPU, as soon as the device has computed them; all ranks call it.

        Raises:
            PeerLost: as `until`; also gloo's RuntimeError where `lost_peer` is true.
        """
        if values.device.type == "cpu" or self.world_size == 1:
            return values.to("cpu", copy=True)
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
        computed = torch.cuda.Event()
        computed.record()
        self.until(computed.query)
        return host

    def until(self, done: Callable[[], bool]) -> None:
        """Returns when all ranks have called this and `done()` is true: the work of this rank's device is done.

        A device that waits for another rank's waits for ever. So the hosts meet first: they notice at once when one of
        them is gone. Then they only ask their devices, because waiting for a device itself has no time-out.

        Raises:
            PeerLost: it is not true after the ranks' time-out.
        """
        deadline = time.monotonic() + self.timeout_s
        self.wait()
        while not done():
            if time.monotonic() > deadline:
                raise PeerLost(
                    f"this rank's device has not finished its steps after {self.timeout_s:.0f} s: {TOO_LATE}"
                )
            time.sleep(POLL_S)

    def gather(self, value: T) -> list[T]:
        """Every rank's (picklable) value, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._host)
        return values

    def gather_to_main(self, value: T) -> list[T] | None:
        """Every rank's (picklable) value, in rank order, on rank 0; None on the others, which need no memory for it."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, values, dst=0, group=self._host)
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's (picklable) value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._host)
        return box[0]

    def main_decides(self, function: Callable[[], T]) -> T:
        """Runs `function` on rank 0 only. All ranks get its value, or its error, so that nobody waits in vain."""
        result: Any = None
        error: Exception | None = None
        if self.is_main:
            try:
                result = function()
            except Exception as e:
                error = refused_by_system(e) or e
        message = str(error) if isinstance(error, UserError) else None
        result, failed, message = self.broadcast((result, error is not None, message))
        if error is not None:
            raise error
        if failed:
            raise SharedError(message) if message is not None else PeerLost(GONE)
        return result

    def wait(self) -> None:
        """Returns when all ranks have called it."""
        if self.world_size > 1:
            dist.barrier(group=self._host)

    def share(self, count: int) -> range:
        """This rank's part of the indices 0..count-1: contiguous; each index belongs to exactly one rank."""
        return range(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def sync_batchnorm(self, module: nn.Module) -> nn.Module:
        """`module` with BatchNorm layers that compute statistics over all ranks; torch has none for CPUs."""
        return nn.SyncBatchNorm.convert_sync_batchnorm(module) if self.world_size > 1 else module

    def at_end(self, function: Callable[[], None]) -> None:
        """Calls `function` before the ranks part; never for one process alone.

        For CUDA graphs: as long as one exists that holds an operation of NCCL, NCCL's group cannot end, and waits.
        """
        if self.world_size > 1:
            self._at_end.append(function)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None and dist.is_initialized():  # one process has no group
            for function in self._at_end:
                function()
            self.wait()
            self.accelerator.end_training()


def _check_device() -> None:
    if device := os.environ.get("ACCELERATE_TORCH_DEVICE"):
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as e:
            name = f"ACCELERATE_TORCH_DEVICE={device}"
            raise SharedError(f"{name}: this machine has no such device; unset ACCELERATE_TORCH_DEVICE") from e


def _meeting_place() -> str:
    env = os.environ
    place = f"{env.get('MASTER_ADDR')}:{env.get('MASTER_PORT')} (MASTER_ADDR, MASTER_PORT)"
    return f"rank {env.get('RANK')} of {env.get('WORLD_SIZE')} waits for all ranks at {place}"


@contextmanager
def _meeting() -> Iterator[None]:
    """The ranks look for each other in this block. Signals end this process then, and a long wait is told.

    Python handles no signal before torch comes back, which can take as long as the time-out. Nothing is there yet that
    would have to be saved.
    """
    if not os.environ.get("LOCAL_RANK") or threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, hear = os.pipe()
    os.set_blocking(hear, False)
    before = signal.set_wakeup_fd(hear)
    watch = threading.Thread(target=_watch_meeting, args=(heard,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(hear)  # ends the thread
        watch.join()
        os.close(heard)


def _watch_meeting(heard: int) -> None:
    told = False
    while True:
        if select.select([heard], [], [], LONG_S)[0]:
            number = int.from_bytes(os.read(heard, 1))
            if not number:
                return
        else:
            number = signal.SIGTERM if StopRequest.heard else 0  # before this began
            if not told:
                print(_meeting_place(), file=sys.stderr, flush=True)
                told = True
        if number in (*STOP_SIGNALS, signal.SIGINT):
            interrupted = number == signal.SIGINT
            print("interrupted" if interrupted else "stopped before the ranks have met", file=sys.stderr, flush=True)
            os._exit(130 if interrupted else os.EX_TEMPFAIL)


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


def lost_peer(error: BaseException) -> str | None:
    """What happened, if `error` says that another rank is gone or did not come in time; else None."""
    if isinstance(error, PeerLost):
        return str(error)
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
        return TOO_LATE if "imed out" in str(error) else GONE
    return None


def expectations(wanted: int | None, device: str, actual: int) -> Iterator[tuple[str, int]]:
    """Yields the number of processes that the user, or else the launcher and SLURM, expect; each with its source.

    Args:
        actual: processes that found each other; SLURM's number of tasks is left out if it divides this.
    """
    env = os.environ
    if wanted is not None:
        yield "--expect-world-size", wanted
        return
    yield "the launcher's WORLD_SIZE", launcher.number("WORLD_SIZE")
    if asked := launcher.asked_of_accelerate():
        yield "accelerate launch's --num_processes", asked
    if "DIST_SKETCH_RANKS" in env:  # they were started by `dist-sketch node`
        yield "dist-sketch node", launcher.number("DIST_SKETCH_RANKS")
    elif "SLURM_STEP_NUM_TASKS" in env:  # only set inside srun
        tasks, nodes = launcher.number("SLURM_STEP_NUM_TASKS"), launcher.number("SLURM_STEP_NUM_NODES")
        gpus = env.get("SLURM_GPUS_ON_NODE", "")
        if device == "cuda" and gpus.isdigit():
            yield f"SLURM: {nodes} node(s) with {gpus} GPU(s)", nodes * int(gpus)
        elif actual % tasks:  # a task may be a launcher that starts several processes
            yield f"SLURM: {tasks} task(s)", tasks


def _host_group(timeout_s: float) -> dist.ProcessGroup:
    try:
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    except RuntimeError as e:
        raise UserError(
            f"the ranks do not reach each other over the network ({str(e).splitlines()[0]}). If no rank has failed, "
            "set GLOO_SOCKET_IFNAME to the interface between the nodes, as `ip link` names it (slurm/: interface=NAME)"
        ) from e
    assert isinstance(group, dist.ProcessGroup)  # this rank is one of its members
    return group


def _right_command(count: int) -> str:
    nodes = launcher.number("SLURM_STEP_NUM_NODES")
    if nodes > 1:
        return (
            f"On every node: accelerate launch --multi_gpu --num_machines {nodes} --machine_rank $SLURM_NODEID "
            f"--num_processes {count} --main_process_ip FIRST_NODE --main_process_port 29500 ..."
        )
    return (
        f"On GPUs: accelerate launch --multi_gpu --num_processes {count} ...; "
        f"on CPUs: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {count} ..."
    )
