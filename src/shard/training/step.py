"""The hot path: one step, queued on the device, gradients, verdict and update, with nothing that the host waits for."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from shard.errors import ShardError
from shard.model import Angles, Attend, ExpertLinear, Routing, ShardLM, local_attention
from shard.training.chunks import chunk_pass
from shard.training.decisions import DTYPES, Decisions, fit_micro_batch, halve_micro_batch, is_out_of_memory
from shard.training.guard import StepGuard
from shard.training.loss import Loss, chunked_loss
from shard.training.optimizer import Optimizer
from shard.training.reduction import Reduction, Wish
from shard.training.routing import add_router_losses, balance
from shard.training.stage import Stage, TeacherLoss


@dataclass(frozen=True)
class Launched:
    """A step that is on its way: `outcome` [9] will hold nll, z, KL, loss, norm, skip, both limits, the loss scale;
    where several ranks train, also what they told each other (reduction.Agreed); of a mixture of experts also what its
    routers did (see routing.py).
    """

    step: int
    """Counted from 1."""
    begun: float
    """time.monotonic() at its beginning."""
    rates: dict[str, float]
    outcome: Tensor
    teacher_weight: float = 0.0
    """The teacher's share of the loss."""
    arrived: Any = None
    """A CUDA event after the copy of `outcome`; None where that copy needs no waiting."""

    def wait(self) -> list[float]:
        """The outcome, when it is there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.outcome.tolist()


class TrainingStep:
    """The model with its optimizer and its guard. `on_less_memory(decisions, message)` is told when memory ran out
    and the micro-batch was made smaller.
    """

    def __init__(self, stage: Stage, model: ShardLM, on_less_memory: Callable[[Decisions, str], None]) -> None:
        self.stage, self.model, self.decisions = stage, model, stage.decisions
        self._on_less_memory = on_less_memory
        self.scaled = stage.decisions.precision == "fp16"
        self.wish = Wish()
        """What this rank tells the others with the next step."""
        ranks = stage.ranks
        self._reduction = Reduction(list(model.parameters()), ranks) if ranks.size > 1 else None
        self.num_told = 0 if self._reduction is None else self._reduction.num_told
        """How many numbers of an outcome are what ranks told each other."""
        self.routed_LS: Tensor | None = None
        """Of the last batch: what the routers of a mixture of experts did, see routing.py."""
        # Made here once: within what is compiled, each layer would compute the angles again for every number of every
        # head. On a GPU that took a quarter of a micro-batch.
        self._angles = model.angles(torch.arange(stage.settings.sequence_length, device=stage.device))
        self._choose_kernels()
        self._compute_hidden, self._chunk_pass = self._hidden, chunk_pass
        if stage.decisions.compile:
            self._compute_hidden = torch.compile(self._hidden, dynamic=False)
            self._chunk_pass = torch.compile(chunk_pass, dynamic=False)
        self.reset()

    def _choose_kernels(self) -> None:
        """Attention by what was decided, and layers that are computed again where the recipe asks for it."""
        attend: Attend = local_attention
        if self.decisions.varlen_attention:
            from shard.training.varlen import varlen_local_attention as attend
        elif self.decisions.flex_attention:
            from shard.training.flex import make_flex_attention

            window = self.stage.config.sliding_window
            attend = make_flex_attention(self.stage.settings.sequence_length, window, self.stage.device)
        elif self.decisions.cpu_attention:
            from shard.training.cpu_attention import cpu_attention, load_cpu_attention

            works, reason = load_cpu_attention()
            if not works:
                raise ShardError(
                    f"{self.stage.name}: {platform.node()} cannot use the attention that was decided on ({reason}): "
                    'install a C++ compiler there, or set "cpu_attention" to false in decisions.json'
                )
            attend = cpu_attention
        elif self.decisions.flash_window:
            from shard.training.window import flash_window_attention as attend
        if self.decisions.compile and self.stage.config.mixture is not None:
            from shard.training.grouped import grouped_linear

            for module in self.model.modules():
                if isinstance(module, ExpertLinear):
                    module.product = grouped_linear
        for block in self.model.blocks:
            block.attention.attend = attend  # type: ignore[union-attr]
            if self.stage.settings.recompute == "layer":
                # Nothing in a layer is random, so there is no state of a generator to keep.
                again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
                block.forward = again

    def reset(self) -> None:
        """Optimizer and guard as they are before the first step; the weights stay."""
        settings, device = self.stage.settings, self.stage.device
        # On a CPU Muon is a hundredth of a step, and compiling takes longer there.
        compile_muon = self.decisions.compile and device.type == "cuda"
        dtype = DTYPES[self.decisions.newton_schulz]
        self.optimizer = Optimizer(self.model, settings, dtype, self.stage.ranks, compile_muon)
        self.guard = StepGuard(settings.skip_sigma, device, self.scaled)

    def tensors(self) -> list[Tensor]:
        """All weights and the whole optimizer state."""
        return [*self.model.state_dict().values(), *self.optimizer.state().values()]

    def _hidden(self, inputs_BT: Tensor, angles: Angles) -> tuple[Tensor, list[Routing] | None]:
        """Hidden states [B * T, D], and of a mixture of experts what its routers decided."""
        routing: list[Routing] | None = None if self.stage.config.mixture is None else []
        hidden_BTD = self.model.hidden_at(angles, inputs_BT, dtype=self.decisions.dtype, routing=routing)
        return hidden_BTD.flatten(0, 1), routing

    def _loss(
        self,
        inputs_BT: Tensor,
        targets_BT: Tensor,
        scale: float | Tensor,
        soft: Any = None,
        weight: Tensor | None = None,
    ) -> tuple[Loss | TeacherLoss, Tensor | None]:
        """The loss, and of a mixture of experts what its routers did."""
        config, teacher = self.stage.config, self.stage.teacher
        hidden_ND, routing = self._compute_hidden(inputs_BT, self._angles)
        table_VD, targets_N = self.model.embedding.weight, targets_BT.flatten()
        more = (config.logit_cap, self.stage.settings.z_loss, scale, self._chunk_pass)
        loss: Loss | TeacherLoss
        if teacher is not None and weight is not None:
            loss = teacher.loss(hidden_ND, table_VD, targets_N, soft, weight, *more)
        else:
            loss = chunked_loss(hidden_ND, table_VD, targets_N, *more)
        if config.mixture is None or routing is None:
            return loss, None
        return add_router_losses(loss, routing, config.mixture, scale)

    def accumulate_gradients(
        self, rows: NDArray[np.int64], index: int = 0, first: int = 0, teacher_weight: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of one global batch [rows, T + 1], or of this rank's rows of it, micro-batch by micro-batch; the
        sums of nll, z and KL over them.

        Each micro-batch's loss is already a share of the whole batch's mean, so the sum equals the big batch. In fp16
        the gradients carry the guard's loss scale. A teacher of weight 0 is not asked; `index` is the batch's
        number, `first` that of the first of these rows in it.
        """
        device = self.stage.device
        batch = torch.from_numpy(rows)
        if device.type == "cuda":
            batch = batch.pin_memory()  # a copy from other memory would make the host wait
        batch = batch.to(device, non_blocking=True)
        nll, z, kl = (torch.zeros((), device=device) for _ in range(3))
        share = 1 / self.stage.settings.tokens_per_step
        scale = self.guard.scale * share if self.scaled else share
        self.routed_LS = None
        for micro in batch.split(self._micro_batch(len(rows))):
            inputs, targets = micro[:, :-1].contiguous(), micro[:, 1:].contiguous()
            if self.stage.teacher is not None and teacher_weight > 0:
                soft = self.stage.teacher.targets(index, first, inputs)
                weight = torch.full((), teacher_weight, device=device)  # as a number, each one would be compiled
                loss, routed_LS = self._loss(inputs, targets, scale, soft, weight)
            else:
                loss, routed_LS = self._loss(inputs, targets, scale)
            loss.total.backward()
            if isinstance(loss, TeacherLoss):
                kl += loss.kl_sum
            nll += loss.nll_sum
            z += loss.z_sum
            if routed_LS is not None:
                self.routed_LS = routed_LS if self.routed_LS is None else self.routed_LS + routed_LS
            first += len(micro)
        return nll, z, kl

    def _gradients(self, rows: NDArray[np.int64], index: int, teacher_weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """The same of this rank's rows, with a smaller micro-batch where memory runs out."""
        first, mine = self.stage.ranks.rows(rows)
        while True:
            if self._reduction is not None:
                self._reduction.begin()
            try:
                return self.accumulate_gradients(mine, index, first, teacher_weight)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                message = str(error).splitlines()[0][:200]
            # Outside of the handler, since the error holds on to the tensors of the step.
            self.optimizer.clear_gradients()
            if self.stage.device.type == "cuda":
                torch.cuda.empty_cache()
            smaller = halve_micro_batch(replace(self.decisions, micro_batch=self._micro_batch(len(mine))), len(mine))
            if smaller is None:
                raise ShardError(
                    f"{self.stage.name}: one sequence of {self.stage.settings.sequence_length} tokens does not fit "
                    f"into memory ({message}): choose a smaller model or sequence_length; what was saved is untouched"
                )
            self.decisions = smaller
            self._on_less_memory(smaller, message)

    def _micro_batch(self, rows: int) -> int:
        """As decided; of the rows of one rank of several, what divides them."""
        decided = self.decisions.micro_batch
        return decided if self._reduction is None else fit_micro_batch(decided, rows)

    def launch(self, step: int, rows: NDArray[np.int64], index: int = 0) -> Launched:
        """Queue step number `step` (from 1) on this batch, number `index`. Its rates are those of the step index
        before it.
        """
        begun, settings, teacher = time.monotonic(), self.stage.settings, self.stage.teacher
        rates = self.optimizer.set_step(step - 1)
        share = 0.0 if teacher is None else teacher.weight(step - 1)
        nll, z, kl = self._gradients(rows, index, share)
        told: Tensor | tuple[()] = ()
        if self._reduction is not None:
            nll, z, kl, told = self._reduction.sum(nll, z, kl, self.wish, self.decisions.micro_batch)
        norm = self.optimizer.gradient_norm(self.guard.scale if self.scaled else None)
        objective = nll
        if teacher is not None and share > 0:
            objective = (1 - share) * nll + share * teacher.kl_scale * kl
        loss = (objective + settings.z_loss * z) / settings.tokens_per_step
        verdict = self.guard.judge(loss, norm)
        self.optimizer.step(norm, verdict.skip)
        outcome = torch.stack([nll, z, kl, loss, norm, *verdict, *told])
        if self.routed_LS is not None:
            if self.stage.ranks.size > 1:
                self.stage.ranks.sum(self.routed_LS)
            balance(self.model, self.routed_LS, verdict.skip)
            outcome = torch.cat([outcome, self.routed_LS.flatten()])
        if self.stage.device.type != "cuda":
            return Launched(step, begun, rates, outcome, share)
        host = torch.empty(outcome.shape, pin_memory=True).copy_(outcome, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return Launched(step, begun, rates, host, share, arrived)
