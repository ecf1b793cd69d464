"""One training step: D's turn, then G's. Owns both networks' learners and G's moving average.

    fake = G(line)
    D's turn:  loss_D = BCE(D(line, sketch), 1) + BCE(D(line, fake), 0);  update D
    G's turn:  loss_G = scale * (BCE(D(line, fake), 1) + lambda * L1(fake, sketch) [+ lambda_ssim * (1 - SSIM)])
               update G

A locked network is only evaluated, without gradients, so that its loss is still measured.

With `train.accumulate` a rank splits its share of the batch into micro-batches: each turn goes through all of them
before its update, and averages the gradients over the ranks once. G then draws again in its own turn, because keeping
all graphs from D's turn would use the memory that accumulation saves.

On GPUs the kernels of a step take less time than the host needs to start them, so `graphs` records the whole step once
for each decision and replays it. Therefore `_compute` reads only tensors whose addresses and shapes never change, and
asks the device for nothing.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dist_sketch.core.config import Config
from dist_sketch.core.precision import exact_float32
from dist_sketch.core.ranks import Ranks
from dist_sketch.model import losses, networks
from dist_sketch.training import first_bad
from dist_sketch.training.graphs import Snapshot, State, StepGraphs, why_eager
from dist_sketch.training.learner import Learner, nonfinite
from dist_sketch.training.measures import NAMES, Measured, Measures
from dist_sketch.training.policy import Decision

REAL, FAKE = 1.0, 0.0  # the targets of D


class Inputs:
    """What a step reads. `fill` overwrites the values; the tensors stay the same."""

    def __init__(self, line: Tensor, dtype: torch.dtype, layout: torch.memory_format):
        self.line, self.sketch = (torch.empty_like(line, dtype=dtype, memory_format=layout) for _ in range(2))
        self.good = torch.ones(len(line), dtype=dtype, device=line.device)  # 1 for a pair, 0 for a stand-in
        self.counts = torch.zeros(2, dtype=torch.float64, device=line.device)  # samples left out; asked to stop

    def fill(self, line: Tensor, sketch: Tensor, good: Tensor | None, bad: int, stop: bool) -> None:
        """Takes over a batch."""
        self.line.copy_(line)
        self.sketch.copy_(sketch)
        self.good.fill_(1) if good is None else self.good.copy_(good)
        self.counts[0].fill_(bad)
        self.counts[1].fill_(stop)


class MicroBatch(NamedTuple):
    """The pairs of one forward and backward pass."""

    line: Tensor
    sketch: Tensor
    weight: Tensor  # of each pair in the mean over the rank's share of the batch: (B,)


class Step:
    """Both networks and everything that changes them.

    Args:
        precision: "no", "bf16", "fp16" or "fp64", as `resolve_precision` returns it.
        total: number of steps of the whole run, for the decay of the learning rates.
        capture: record the step as CUDA graphs where that is possible.
        layout: of images in memory.
    """

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        precision: str,
        total: int = 0,
        *,
        capture: bool = True,
        layout: torch.memory_format = torch.channels_last,
    ):
        assert total or not config.optim.decay
        self.config, self.ranks, self.total, self._layout = config, ranks, total, layout
        self.precision = precision
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        exact_float32()
        self.g, self.d = self._build(networks.generator(config)), self._build(networks.discriminator(config))
        groups = self._groups()
        self.learner_g = Learner(self.g, ranks, precision, config.optim.lr_g, config.optim, groups)
        self.learner_d = Learner(self.d, ranks, precision, config.optim.lr_d, config.optim)
        self.ema = copy.deepcopy(self.g).requires_grad_(False) if config.generator.ema else None
        self.steps = self.updates_g = 0
        self.share = config.data.batch_size // ranks.world_size
        # A batch's statistics must not mix real and drawn sketches. Other norms see each sketch alone.
        self._one_pass = config.loss.d_backward == "joint" and config.norm != "batch"
        kinds = ("running_mean", "running_var")
        self.statistics = [b for m in self.modules().values() for n, b in m.named_buffers() if n.endswith(kinds)]
        self._inputs: Inputs | None = None
        self._ema_rate = torch.zeros((), dtype=self.dtype, device=ranks.device)
        weights = (1.0, config.loss.lambda_l1, config.loss.lambda_ssim)[: 3 if config.loss.lambda_ssim else 2]
        self._loss_weights = (config.loss.scale * torch.tensor(weights, dtype=self.dtype)).to(ranks.device)[:, None]
        size = self.share // config.train.accumulate
        self._targets = torch.tensor([REAL] * size + [FAKE] * size, dtype=self.dtype).to(ranks.device)
        refusal = why_eager(ranks, precision, config.train.accumulate) if capture else "as asked for"
        self._graphs = StepGraphs(self._compute, self._state, ranks, precision, refusal)

    @property
    def way(self) -> str:
        """How the steps are computed, and why; a sentence."""
        return self._graphs.way

    def _build(self, net: nn.Module) -> nn.Module:
        if self.config.train.sync_batchnorm:
            net = self.ranks.sync_batchnorm(net)
        return net.to(self.ranks.device, self.dtype).to(memory_format=self._layout)

    def _groups(self) -> list[tuple[list[nn.Parameter], float]] | None:
        """The generator's parameters, and the share of the learning rate with which each part learns."""
        share, named = self.config.optim.inner, dict(self.g.named_parameters())
        outer = [named.pop(name) for name in list(named) if name.startswith("enhancer.")]
        return [(outer, 1.0), (list(named.values()), share)] if outer and share != 1 else None

    @property
    def drawing(self) -> nn.Module:
        """The generator that draws: the moving average if there is one."""
        return self.g if self.ema is None else self.ema

    def __call__(
        self, line: Tensor, sketch: Tensor, decision: Decision, *, bad: int, stop: bool, good: Tensor | None = None
    ) -> Measured:
        """One step on this rank's share of the global batch.

        Args:
            line: (B, C, H, W) in [-1, 1], on the device; `sketch` likewise. B is always the whole share of the rank.
            bad: number of samples of this batch that could not be read.
            stop: whether this process was asked to stop.
            good: False for pairs that only stand in for one that could not be read: bool (B,). They are drawn and
                judged, but count in no loss; the loss is still divided by the whole share. None: all are good.
        """
        assert len(line) == self.share
        factor = learning_rate_factor(self.config.optim.decay, self.steps, self.total)
        self.learner_g.set_rate(self.config.optim.lr_g * factor)
        self.learner_d.set_rate(self.config.optim.lr_d * factor)
        if decision.train_g:
            self.updates_g += 1
            # Warm-up: otherwise the random initial weights would stay in the average for long.
            decay = min(self.config.generator.ema, (1 + self.updates_g) / (10 + self.updates_g))
            self._ema_rate.fill_(1 - decay)
        if self._inputs is None or self._inputs.line.shape != line.shape:
            self._inputs = Inputs(line, self.dtype, self._layout)
            self._graphs.forget()  # they read the ones before
        self._inputs.fill(line, sketch, good, bad, stop)
        measured = self._graphs(decision.train_d, decision.train_g)
        self.steps += 1
        return measured

    def first_bad(self, line: Tensor, sketch: Tensor, decision: Decision, good: Tensor | None) -> str:
        """Repeats a step without its consequences, and names the first value in it that is not finite.

        All ranks call it together, each with its own pairs, as `__call__`. Dropout is drawn anew, and on GPUs some
        steps may have been made since, so the repeated step can be good: then the answer is empty.
        """
        assert self._inputs is not None
        self._inputs.fill(line, sketch, good, 0, False)
        before, learners = Snapshot(self._state(), self.ranks.device), (self.learner_g, self.learner_d)
        scales = [learner.scaler.state_dict() for learner in learners]
        with first_bad.watched({"generator": self.g, "discriminator": self.d}) as first:
            self._compute(decision.train_d, decision.train_g)
        before.restore()
        for learner, scale in zip(learners, scales, strict=True):
            learner.scaler.load_state_dict(scale)
        return first.place

    def _compute(self, train_d: bool, train_g: bool) -> Measured:
        """The step on `_inputs`. A CUDA graph can hold it: nothing here depends on a value that the device computes."""
        assert self._inputs is not None
        inputs, measures = self._inputs, Measures()
        statistics = torch.cat(self.statistics) if self.statistics else None
        self.learner_g.refresh()
        self.learner_d.refresh()
        batches = self._split(inputs)
        fake = self._draw(batches[0], train_g) if len(batches) == 1 else None  # used in both turns
        self._turn_d(batches, fake, train_d, measures)
        self._turn_g(batches, fake, train_d, train_g, measures)
        if train_g and self.ema is not None:
            self._average(self.ema, batches)
        measured = self._reduce(measures, inputs)
        if statistics is not None:  # NaN must not enter the running statistics
            now = torch.cat(self.statistics)
            skipped = measured.reduced[NAMES.index("nonfinite")] > 0
            self.set_statistics(torch.where(skipped | ~now.isfinite(), statistics, now))
        return measured

    def _split(self, inputs: Inputs) -> list[MicroBatch]:
        size = self.share // self.config.train.accumulate
        pieces = (x.split(size) for x in (inputs.line, inputs.sketch, inputs.good / self.share))
        return [MicroBatch(*piece) for piece in zip(*pieces, strict=True)]

    def _draw(self, batch: MicroBatch, train: bool) -> Tensor:
        """G's sketch of a micro-batch; with `train` it can be differentiated."""
        with torch.set_grad_enabled(train):
            return self.learner_g(batch.line)

    def _turn_d(self, batches: list[MicroBatch], fake: Tensor | None, train: bool, measures: Measures) -> None:
        """Trains D, or measures a locked one."""
        self.learner_d.freeze(not train)
        self.learner_d.forget_gradients()
        for batch in batches:
            if not train:
                # The fake term of a locked D is measured in G's turn, where D is evaluated anyway.
                with torch.no_grad():
                    self._loss_d(batch, {"real": batch.sketch}, measures)
                continue
            real, drawn = batch.sketch, (self._draw(batch, False) if fake is None else fake.detach())
            if self._one_pass:
                self.learner_d.backward(self._loss_d(batch, {"real": real, "fake": drawn}, measures))
            elif self.config.loss.d_backward == "joint":
                loss_real = self._loss_d(batch, {"real": real}, measures)
                self.learner_d.backward(loss_real + self._loss_d(batch, {"fake": drawn}, measures))
            else:  # frees the real term's graph before the fake term's is built
                self.learner_d.backward(self._loss_d(batch, {"real": real}, measures))
                self.learner_d.backward(self._loss_d(batch, {"fake": drawn}, measures))
        if train:
            measures.norms["norm/d"] = self.learner_d.update()
            self.learner_d.refresh()

    def _loss_d(self, batch: MicroBatch, sketches: dict[str, Tensor], measures: Measures) -> Tensor:
        """D's loss on one or both halves, "real" and "fake", judged in one pass."""
        if len(sketches) == 2:
            line, sketch, target = torch.cat((batch.line, batch.line)), torch.cat([*sketches.values()]), self._targets
            logits = self.learner_d(line, sketch)
            values = losses.bce(logits, target[:, None, None, None]).view(2, -1)
        else:
            ((half, sketch),) = sketches.items()
            logits = self.learner_d(batch.line, sketch)
            values = losses.bce(logits, REAL if half == "real" else FAKE)[None]
        self._note_d(list(sketches), values, logits, measures)
        return (values * batch.weight).sum()

    @staticmethod
    def _note_d(halves: list[str], values: Tensor, logits: Tensor, measures: Measures) -> None:
        """Notes D's losses (halves, B), and the mean probabilities that it gives to its patches."""
        probabilities = losses.each_mean(logits.detach().float().sigmoid()).view_as(values)
        for half, loss, probability in zip(halves, values, probabilities, strict=True):
            measures.add(f"loss/d_{half}", loss)
            measures.add(f"d/{half}", probability)

    def _turn_g(
        self, batches: list[MicroBatch], fake: Tensor | None, train_d: bool, train_g: bool, measures: Measures
    ) -> None:
        """Trains G, or measures a locked one."""
        self.learner_d.freeze(True)  # else G's backward would also compute D's gradients
        self.learner_g.forget_gradients()
        for batch in batches:
            drawn = self._draw(batch, train_g) if fake is None else fake
            with torch.set_grad_enabled(train_g):
                logits = self.learner_d(batch.line, drawn)
                loss = self._loss_g(batch, drawn, logits, measures)
            if train_g:
                self.learner_g.backward(loss)
            if not train_d:
                self._note_d(["fake"], losses.bce(logits.detach(), FAKE)[None], logits, measures)
        if train_g:
            measures.norms["norm/g"] = self.learner_g.update()

    def _loss_g(self, batch: MicroBatch, drawn: Tensor, logits: Tensor, measures: Measures) -> Tensor:
        """scale * (BCE(D(line, fake), 1) + lambda * L1(fake, sketch) + lambda_ssim * (1 - SSIM(fake, sketch))).

        The paper has no SSIM term (lambda_ssim 0); Zhao et al. (2017) proposed it in addition to L1.
        """
        terms = {"loss/g_bce": losses.bce(logits, REAL), "loss/g_l1": losses.l1(drawn, batch.sketch)}
        if self.config.loss.lambda_ssim:
            terms["loss/g_ssim"] = 1 - losses.ssim(drawn, batch.sketch)
        values = torch.stack(list(terms.values()))  # (terms, B)
        whole = (values * self._loss_weights).sum(0)
        for name, value in zip(terms, values, strict=True):
            measures.add(name, value)
        measures.add("loss/g", whole)
        return (whole * batch.weight).sum()

    @torch.no_grad()
    def _average(self, ema: nn.Module, batches: list[MicroBatch]) -> None:
        """Updates G's moving average and, by a forward pass, the average's own BatchNorm statistics.

        The live network's statistics do not fit the averaged weights: the pages would be tinted.
        """
        averages: list[Tensor] = list(ema.parameters())
        live: list[Tensor] = list(self.g.parameters())
        towards = torch._foreach_sub(live, averages)
        torch._foreach_mul_(towards, self._ema_rate)
        torch._foreach_add_(averages, towards)
        if self.config.norm != "batch":
            return
        ema.train()
        ema.training = False  # `Generator` itself uses this flag only to choose random or fixed noise
        for module in ema.modules():
            if isinstance(module, nn.Dropout2d):
                module.eval()  # no dropout: it would use up random numbers, so that an average would change the run
        for batch in batches:
            with self.learner_g.autocast():
                ema(batch.line)

    def _reduce(self, measures: Measures, inputs: Inputs) -> Measured:
        zero = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        found = {n: v[0] if len(v) == 1 else torch.cat(v) for n, v in measures.pairs.items()}
        sums = (torch.stack(list(found.values())).double() * inputs.good).sum(1)
        own_nonfinite = nonfinite(sums)
        norms = {n: v.double() / self.ranks.world_size for n, v in measures.norms.items()}  # equal on all ranks
        values = dict(zip(found, sums, strict=True)) | norms
        values |= {"pairs": inputs.good.double().sum(), "nonfinite": own_nonfinite.double()}
        values |= {"bad": inputs.counts[0], "stop": inputs.counts[1]}
        return Measured(self.ranks.sum(torch.stack([values.get(n, zero) for n in NAMES])), own_nonfinite)

    def _state(self) -> State:
        """All tensors that a step changes, by kind."""
        learners = {"G": self.learner_g, "D": self.learner_d}
        found = {f"{name}'s {kind}": t for name, learner in learners.items() for kind, t in learner.state().items()}
        return found if self.ema is None else found | {"the average": [*self.ema.parameters(), *self.ema.buffers()]}

    def modules(self) -> dict[str, nn.Module]:
        """The networks by the name under which they are saved."""
        named: dict[str, nn.Module] = {"generator": self.g, "discriminator": self.d}
        return named if self.ema is None else named | {"ema": self.ema}

    @contextmanager
    def averaged(self) -> Iterator[Tensor]:
        """Inside the block the running statistics are the mean over the ranks; yields this rank's own, shape (N,).

        For evaluating and saving. Afterwards each rank has its own again, so that neither changes the training.
        """
        own = torch.cat([torch.empty(0, device=self.ranks.device), *self.statistics])
        if len(own) and self.ranks.world_size > 1:
            mean = self.ranks.sum(self.ranks.to_host(own).double()) / self.ranks.world_size
            self.set_statistics(mean.to(own.device))
        try:
            yield own
        finally:
            self.set_statistics(own)

    @torch.no_grad()
    def set_statistics(self, values: Tensor) -> None:
        """Sets this rank's running statistics to `values`, shape (N,), as `averaged` yields them."""
        if self.statistics:
            torch._foreach_copy_(self.statistics, values.to(self.dtype).split([b.numel() for b in self.statistics]))

    def state_dict(self) -> dict[str, Any]:
        """Optimizers, scalers and counters; the networks are saved separately."""
        own: dict[str, Any] = {"steps": self.steps, "updates_g": self.updates_g}
        for net, learner in (("g", self.learner_g), ("d", self.learner_d)):
            own |= {f"optimizer_{net}": learner.optimizer.state_dict(), f"scaler_{net}": learner.scaler.state_dict()}
        return own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for net, learner in (("g", self.learner_g), ("d", self.learner_d)):
            learner.load_optimizer(state[f"optimizer_{net}"])
            learner.scaler.load_state_dict(state[f"scaler_{net}"])
        self.steps, self.updates_g = state["steps"], state["updates_g"]
        self._graphs.forget()  # they hold the moments that were there before


def learning_rate_factor(decay: float, step: int, total: int) -> float:
    """The factor of the learning rates in step `step` (from 0) of a run of `total` steps.

    It is 1, then falls linearly to 0 over the last fraction `decay` (0 to 1) of the run.
    """
    return min(1.0, max(0, total - step) / (decay * total)) if decay else 1.0
