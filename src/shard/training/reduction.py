"""One sum over all ranks a step: the gradients, the loss, and what a rank has to tell the others, in one flat tensor.

The gradients of the parameters are views of that tensor, so that nothing is copied. A wrapper that sums a gradient as
soon as the backward pass has it (DistributedDataParallel) would win nothing here: the compiled backward pass is one
call that returns all gradients together, and of several micro-batches only the last could be overlapped.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from shard.training.distributed import Ranks


class Wish(NamedTuple):
    """What a rank asks for with a step."""

    signal_number: int | None = None
    """It was asked to stop by this signal."""
    pause: bool = False
    """Time is over after this step."""


@dataclass(frozen=True)
class Agreed:
    """What all ranks know when they read the outcome of a step, and do at the same place."""

    signal_number: int | None = None
    pause: bool = False
    micro_batch: int | None = None
    """The smallest one that any rank had to take; None for a rank that is alone."""

    @classmethod
    def read(cls, told: Sequence[float]) -> "Agreed":
        """From the sums of what each told; nothing from a rank that is alone."""
        if not told:
            return cls()
        interrupted, terminated, pause, *micro_batches = told
        number = signal.SIGTERM if terminated else signal.SIGINT if interrupted else None
        return cls(number, bool(pause), int(min(micro_batches)))


class Reduction:
    """The flat tensor, as long as a stage lasts."""

    def __init__(self, parameters: Sequence[Tensor], ranks: Ranks) -> None:
        self._parameters, self._ranks = parameters, ranks
        sizes = [p.numel() for p in parameters]
        self.num_told = 3 + ranks.size
        """interrupted, terminated, pause, and a place for each rank's micro-batch"""
        self._flat = torch.zeros(sum(sizes) + 3 + self.num_told, device=parameters[0].device)
        *views, self._tail = self._flat.split([*sizes, 3 + self.num_told])  # behind nll, z and KL
        self._views = [view.view_as(p) for view, p in zip(views, parameters, strict=True)]

    def begin(self) -> None:
        """Gradients of zero."""
        self._flat.zero_()
        for p, view in zip(self._parameters, self._views, strict=True):
            p.grad = view

    def sum(
        self, nll: Tensor, z: Tensor, kl: Tensor, wish: Wish, micro_batch: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sum the gradients in place; the sums of nll, z and KL, and what was told (for Agreed.read), on the device."""
        told = torch.zeros(self.num_told)
        told[0] = wish.signal_number == signal.SIGINT
        told[1] = wish.signal_number == signal.SIGTERM
        told[2] = wish.pause
        told[3 + self._ranks.index] = micro_batch
        if self._tail.device.type == "cuda":
            told = told.pin_memory()  # a copy from other memory would make the host wait
        self._tail[:3].copy_(torch.stack([nll, z, kl]))
        self._tail[3:].copy_(told, non_blocking=True)
        self._ranks.sum(self._flat)
        tail = self._tail.clone()  # what is read later must not be what the next step sums
        return tail[0], tail[1], tail[2], tail[3:]
