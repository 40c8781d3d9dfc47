"""The hot path: one step, queued on the device, gradients, verdict and update, with nothing that the host waits for."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shard.errors import ShardError
from shard.model import Routing, ShardLM
from shard.training.decisions import DTYPES, Decisions, halve_micro_batch, is_out_of_memory
from shard.training.guard import StepGuard
from shard.training.loss import Loss, chunked_loss
from shard.training.optimizer import Optimizer
from shard.training.routing import add_router_losses, balance
from shard.training.stage import Stage


@dataclass(frozen=True)
class Launched:
    """A step that is on its way: `outcome` [8] will hold nll, z, loss, norm, skip, both limits and the loss scale; of a
    mixture of experts also what its routers did (see routing.py).
    """

    step: int
    """Counted from 1."""
    begun: float
    """time.monotonic() at its beginning."""
    rates: dict[str, float]
    outcome: Tensor
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
        self.routed_LS: Tensor | None = None
        """Of the last batch: what the routers of a mixture of experts did, see routing.py."""
        if stage.decisions.flex_attention:
            from shard.training.flex import flex_local_attention

            for block in model.blocks:
                block.attention.local_attention = flex_local_attention  # type: ignore[union-attr]
        self._compute = torch.compile(self._loss, dynamic=False) if stage.decisions.compile else self._loss
        self.reset()

    def reset(self) -> None:
        """Optimizer and guard as they are before the first step; the weights stay."""
        settings = self.stage.settings
        self.optimizer = Optimizer(self.model, settings, DTYPES[self.decisions.newton_schulz])
        self.guard = StepGuard(settings.skip_sigma, self.stage.device, self.scaled)

    def _loss(self, inputs_BT: Tensor, targets_BT: Tensor, scale: float | Tensor) -> tuple[Loss, Tensor | None]:
        mixture = self.stage.config.mixture
        routing: list[Routing] | None = None if mixture is None else []
        hidden_BTD = self.model.hidden(inputs_BT, dtype=self.decisions.dtype, routing=routing)
        loss = chunked_loss(
            hidden_BTD.flatten(0, 1),
            self.model.embedding.weight,
            targets_BT.flatten(),
            self.stage.config.logit_cap,
            self.stage.settings.z_loss,
            scale,
        )
        return (loss, None) if mixture is None or routing is None else add_router_losses(loss, routing, mixture, scale)

    def accumulate_gradients(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Gradients of one global batch [rows, T + 1], micro-batch by micro-batch; the sums of nll and z over it.

        Each micro-batch's loss is already a share of the whole batch's mean, so the sum equals the big batch. In fp16
        the gradients carry the guard's loss scale.
        """
        device = self.stage.device
        batch = torch.from_numpy(rows)
        if device.type == "cuda":
            batch = batch.pin_memory()  # a copy from other memory would make the host wait
        batch = batch.to(device, non_blocking=True)
        nll, z = torch.zeros((), device=device), torch.zeros((), device=device)
        share = 1 / self.stage.settings.tokens_per_step
        scale = self.guard.scale * share if self.scaled else share
        self.routed_LS = None
        for micro in batch.split(self.decisions.micro_batch):
            loss, routed_LS = self._compute(micro[:, :-1].contiguous(), micro[:, 1:].contiguous(), scale)
            loss.total.backward()
            nll += loss.nll_sum
            z += loss.z_sum
            if routed_LS is not None:
                self.routed_LS = routed_LS if self.routed_LS is None else self.routed_LS + routed_LS
        return nll, z

    def _gradients(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The same, with a smaller micro-batch where memory runs out."""
        while True:
            try:
                return self.accumulate_gradients(rows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                message = str(error).splitlines()[0][:200]
            # Outside of the handler, since the error holds on to the tensors of the step.
            self.optimizer.clear_gradients()
            if self.stage.device.type == "cuda":
                torch.cuda.empty_cache()
            smaller = halve_micro_batch(self.decisions, len(rows))
            if smaller is None:
                raise ShardError(
                    f"{self.stage.name}: one sequence of {self.stage.settings.sequence_length} tokens does not fit "
                    f"into memory ({message}): choose a smaller model or sequence_length; what was saved is untouched"
                )
            self.decisions = smaller
            self._on_less_memory(smaller, message)

    def launch(self, step: int, rows: NDArray[np.int64]) -> Launched:
        """Queue step number `step` (from 1) on this batch. Its rates are those of the step index before it."""
        begun, settings = time.monotonic(), self.stage.settings
        rates = self.optimizer.set_step(step - 1)
        nll, z = self._gradients(rows)
        norm = self.optimizer.gradient_norm(self.guard.scale if self.scaled else None)
        loss = (nll + settings.z_loss * z) / settings.tokens_per_step
        verdict = self.guard.judge(loss, norm)
        self.optimizer.step(norm, verdict.skip)
        outcome = torch.stack([nll, z, loss, norm, *verdict])
        if self.routed_LS is not None:
            balance(self.model, self.routed_LS, verdict.skip)
            outcome = torch.cat([outcome, self.routed_LS.flatten()])
        if self.stage.device.type != "cuda":
            return Launched(step, begun, rates, outcome)
        host = torch.empty(outcome.shape, pin_memory=True).copy_(outcome, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return Launched(step, begun, rates, host, arrived)
