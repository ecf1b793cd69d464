"""A training step as CUDA graphs: recorded once for each decision, checked against the eager step, then replayed.

See "CUDA Graphs" in PyTorch's notes on CUDA semantics for what a recorded function may do.
"""

import gc
import math
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from dist_sketch.core.ranks import Ranks

M = TypeVar("M", bound=NamedTuple)  # what a step measures: tensors, the first of them equal on all ranks
State = dict[str, list[Tensor]]  # by kind

NO_MEMORY = "the GPU's memory is too small for the graph and its check"

# How far a replayed step may be from the eager one, as a share of what the step changes. As a rule they are equal; but
# a library may choose another algorithm while it is recorded, and Adam's first steps follow the gradient's sign alone.
TOLERANCE = {"fp64": 1e-6, "no": 0.02, "bf16": 0.1}


def why_eager(ranks: Ranks, precision: str, accumulate: int) -> str | None:
    """Why a step cannot be recorded here; None if it can."""
    if ranks.device.type != "cuda":
        return f"CUDA graphs need an NVIDIA GPU, this device is {ranks.device.type!r}"
    if not ranks.in_cuda_graphs:
        return "the ranks do not communicate through NCCL"
    if precision == "fp16":
        return "the scaler of fp16 has a state that the check of a graph does not restore"
    return "train.accumulate splits each batch" if accumulate > 1 else None


class _Graph(NamedTuple):
    replay: Callable[[], None]
    measured: NamedTuple  # each replay overwrites these tensors


class StepGraphs(Generic[M]):
    """Runs a step: it replays the step's graph where that is possible and shown to be right, else it steps eagerly.

    The first step of each decision is made from the same state twice eagerly and once by replaying what was recorded.
    If the replay differs by more than the eager steps allow, or nothing can be recorded, all ranks go on eagerly.

    Args:
        compute: the step, for (train_d, train_g). It uses only tensors whose addresses never change.
        state: gives all tensors that a step changes.
        refusal: why nothing shall be recorded; None: record.
    """

    def __init__(
        self,
        compute: Callable[[bool, bool], M],
        state: Callable[[], State],
        ranks: Ranks,
        precision: str,
        refusal: str | None,
    ):
        self._compute, self._state, self._ranks, self._refusal = compute, state, ranks, refusal
        self._tolerance = TOLERANCE.get(precision, 0.0)
        self._graphs: dict[tuple[bool, bool], _Graph] = {}
        self._place: tuple[torch.cuda.Stream, Any] | None = None  # stream and memory of all graphs
        forget = weakref.WeakMethod(self.forget)  # `ranks` must not keep networks that nobody uses any more
        ranks.at_end(lambda: (method := forget()) and method())

    @property
    def way(self) -> str:
        """How the steps are computed, and why."""
        return f"eager steps: {self._refusal}" if self._refusal else "one CUDA graph for each decision"

    def forget(self) -> None:
        """Forgets the graphs, because tensors that they use were replaced."""
        self._graphs.clear()
        self._place = None  # torch does not record into a pool again whose last graph is gone

    def __call__(self, train_d: bool, train_g: bool) -> M:
        """Makes one step. Later steps do not overwrite what it returns."""
        if self._refusal is not None:
            return self._compute(train_d, train_g)
        if (train_d, train_g) not in self._graphs:
            return self._first(train_d, train_g)
        graph = self._graphs[train_d, train_g]
        graph.replay()
        return _copy(graph.measured)  # type: ignore[return-value]

    def _first(self, train_d: bool, train_g: bool) -> M:
        """Makes one step, and records and checks the graph for the next ones."""
        problem, state = None, self._state()
        try:
            before, after = Snapshot(state, self._ranks.device), Snapshot(state, self._ranks.device)
        except torch.OutOfMemoryError:
            problem = NO_MEMORY
        if self._refused(problem):
            return self._compute(train_d, train_g)
        try:
            made = self._recorded_and_checked(train_d, train_g, before, after)
        except torch.OutOfMemoryError:
            if self._ranks.world_size > 1:
                raise  # the other ranks already wait for this one
            self._refused(NO_MEMORY)
            made = None
        if made is not None:
            return made
        before.restore()
        del before, after
        if self._ranks.device.type == "cuda":
            torch.cuda.empty_cache()  # of the graphs that were forgotten
        return self._compute(train_d, train_g)

    def _recorded_and_checked(self, train_d: bool, train_g: bool, before: "Snapshot", after: "Snapshot") -> M | None:
        """What the step measured, if it was made; None if it has to be made again, eagerly, from the state `before`.

        Each wait for the device goes through `to_host`, which does not wait for ever when another rank is gone.
        """
        reference = _copy(self._compute(train_d, train_g))
        if not self._ranks.to_host(reference[0]).isfinite().all():
            return reference  # this step changes nothing and can prove nothing: the next one is recorded
        after.take()
        before.restore()
        again = _copy(self._compute(train_d, train_g))
        self._ranks.to_host(again[0])
        noise = _distances(again, reference, before, after)
        before.restore()
        graph, problem = self._record(train_d, train_g)
        if self._refused(problem):
            return None
        assert graph is not None
        graph.replay()
        replayed: M = _copy(graph.measured)  # type: ignore[assignment]
        self._ranks.to_host(replayed[0])
        if self._refused(self._difference(_distances(replayed, reference, before, after), noise)):
            return None
        self._graphs[train_d, train_g] = graph
        return replayed

    def _record(self, train_d: bool, train_g: bool) -> tuple[_Graph | None, str | None]:
        """The recorded step, which was not made by that; or None and the reason."""
        device, graph = self._ranks.device, torch.cuda.CUDAGraph()
        if self._place is None:
            self._place = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        stream, pool = self._place
        current = torch.cuda.current_stream(device)
        gc.collect()  # the end of an older graph must not fall into the recording
        try:
            # Other threads, such as the one that pins memory, go on calling CUDA meanwhile: hence "thread_local".
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                measured = self._compute(train_d, train_g)
        except Exception as e:  # CUDA, NCCL and torch raise many types
            torch.cuda.set_stream(current)  # an error in the end of the block leaves the other stream in use
            _end_recording(stream, pool)
            cause = e.__context__ or e  # the end of a recording fails, too, and hides the error in it
            return None, f"the step could not be recorded ({str(cause).splitlines()[0]})"
        return _Graph(graph.replay, measured), None

    def _difference(self, found: dict[str, float], noise: dict[str, float]) -> str | None:
        for kind, distance in found.items():
            most = max(self._tolerance, 4 * noise[kind])
            if not distance <= most:  # also NaN
                return f"a replayed step differs from an eager one: {kind} by {distance:.2g}, allowed are {most:.2g}"
        return None

    def _refused(self, problem: str | None) -> bool:
        """Whether some rank has a problem; then all go on eagerly, and rank 0 says why."""
        problems = [p for p in self._ranks.gather(problem) if p]
        if not problems:
            return False
        self._refusal = problems[0]
        self.forget()
        if self._ranks.is_main:
            print(f"warning: no CUDA graph is used, so training is slower: {self._refusal}")
        return True


class Snapshot:
    """A copy of the state of a step and of the device's random numbers."""

    def __init__(self, state: State, device: torch.device):
        self.state, self._device = {kind: tensors for kind, tensors in state.items() if tensors}, device
        self.copies = {kind: [t.detach().clone() for t in tensors] for kind, tensors in self.state.items()}
        self.random = self._generator().get_state()

    def _generator(self) -> torch.Generator:
        if self._device.type == "cuda":
            return torch.cuda.default_generators[self._device.index or 0]
        return torch.default_generator

    def same_random(self) -> bool:
        """Whether as many random numbers have been drawn now as then."""
        return torch.equal(self._generator().get_state(), self.random)

    @torch.no_grad()
    def take(self) -> None:
        """Overwrites the copy with the present state."""
        for kind, tensors in self.state.items():
            torch._foreach_copy_(self.copies[kind], tensors)
        self.random = self._generator().get_state()

    @torch.no_grad()
    def restore(self) -> None:
        """Overwrites the present state with the copy."""
        for kind, tensors in self.state.items():
            torch._foreach_copy_(tensors, self.copies[kind])
        self._generator().set_state(self.random)


@torch.no_grad()
def _distances(measured: M, reference: M, before: Snapshot, after: Snapshot) -> dict[str, float]:
    """How far the present state and `measured` are from those after the reference step, as shares of that step."""
    found = {"what it measures": _share(measured[0] - reference[0], reference[0])}
    for kind, now in after.state.items():
        each = zip(now, before.copies[kind], after.copies[kind], strict=True)
        norms = [((a.double() - c.double()).norm(), (c.double() - b.double()).norm()) for a, b, c in each]
        found[kind] = _share(*(torch.stack(n) for n in zip(*norms, strict=True)))
    found["random numbers"] = 0.0 if after.same_random() else math.inf
    return found


def _share(difference: Tensor, whole: Tensor) -> float:
    """The norm of `difference` as a share of that of `whole`; 0 if both are 0."""
    a, b = difference.norm().item(), whole.norm().item()
    return a / b if b else 0.0 if a == 0 else math.inf


def _copy(measured: M) -> M:
    return type(measured)(*(t.clone() for t in measured))


def _end_recording(stream: torch.cuda.Stream, pool: Any) -> None:
    """Mends what a recording that failed leaves behind.

    torch's allocator before 2.13 goes on sending memory to the graph's pool, and its generator of random numbers thinks
    that it is still recorded, until an empty graph is.
    """
    with suppress(RuntimeError):  # newer versions have ended it themselves
        torch._C._cuda_endAllocateToPool(stream.device.index, pool)
        torch._C._cuda_releasePool(stream.device.index, pool)
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
        torch.zeros(1, device=stream.device)
