"""The guard of each step: is it taken or skipped? Decided on the device, so that the host never waits for it.

A step is skipped where its loss or its gradient is not finite, or where its loss or the norm of its raw gradient lies
more than `sigma` standard deviations above the mean of the last 128 steps that were taken in this stage (none before
there are 128). A skipped step changes neither weights nor optimizer state.

With fp16 the guard also keeps the loss scale: gradients are multiplied by it, so that small ones do not vanish. It is
halved where the gradient overflows, and doubled after 2,000 steps without an overflow (the rule of torch's GradScaler).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

WINDOW = 128
FIRST_SCALE, LEAST_SCALE, GROWTH_STEPS = 2.0**16, 1.0, 2000


class Verdict(NamedTuple):
    """Of one step, all on the device: scalars in fp32."""

    skip: Tensor
    """1 where the step is not taken, else 0."""
    loss_limit: Tensor
    norm_limit: Tensor
    """Above these a step is skipped; infinite before there are 128 steps."""
    scale: Tensor
    """The loss scale that this step had; 1 but in fp16."""


class StepGuard:
    """Statistics of the steps taken, and the loss scale, as tensors on `device`."""

    def __init__(self, sigma: float, device: torch.device, scaled: bool = False) -> None:
        self.sigma, self.scaled = sigma, scaled
        self.losses = torch.zeros(WINDOW, device=device)
        self.norms = torch.zeros(WINDOW, device=device)
        self.num_taken = torch.zeros((), dtype=torch.int64, device=device)
        self.scale = torch.full((), FIRST_SCALE if scaled else 1.0, device=device)
        self.since_overflow = torch.zeros((), dtype=torch.int64, device=device)
        self._places = torch.arange(WINDOW, device=device)

    @torch.no_grad()
    def judge(self, loss: Tensor, norm: Tensor) -> Verdict:
        """The verdict on a step with this loss and this norm of its (unscaled) gradient; it enters the statistics."""
        full = self.num_taken >= WINDOW
        endless = torch.full_like(loss, torch.inf)
        loss_limit = torch.where(full, self.losses.mean() + self.sigma * self.losses.std(), endless)
        norm_limit = torch.where(full, self.norms.mean() + self.sigma * self.norms.std(), endless)
        finite = loss.isfinite() & norm.isfinite()
        taken = finite & (loss <= loss_limit) & (norm <= norm_limit)
        here = taken & (self._places == self.num_taken % WINDOW)
        self.losses = torch.where(here, loss, self.losses)
        self.norms = torch.where(here, norm, self.norms)
        self.num_taken = self.num_taken + taken
        verdict = Verdict((~taken).float(), loss_limit, norm_limit, self.scale)
        if self.scaled:
            overflow = loss.isfinite() & ~norm.isfinite()
            since = torch.where(overflow, torch.zeros_like(self.since_overflow), self.since_overflow + finite)
            grow = since >= GROWTH_STEPS
            halved = (self.scale / 2).clamp(min=LEAST_SCALE)
            self.scale = torch.where(overflow, halved, torch.where(grow, self.scale * 2, self.scale))
            self.since_overflow = torch.where(grow, torch.zeros_like(since), since)
        return verdict

    def state(self) -> dict[str, Any]:
        """For state.json: numbers that JSON gives back as they were."""
        return {
            "losses": self.losses.tolist(),
            "norms": self.norms.tolist(),
            "num_taken": int(self.num_taken),
            "scale": float(self.scale),
            "since_overflow": int(self.since_overflow),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Back to what state() gave."""
        device = self.losses.device
        self.losses = torch.tensor(state["losses"], dtype=torch.float32, device=device)
        self.norms = torch.tensor(state["norms"], dtype=torch.float32, device=device)
        self.num_taken = torch.tensor(state["num_taken"], device=device)
        self.since_overflow = torch.tensor(state["since_overflow"], device=device)
        if self.scaled:  # another kind of device may have gone on in another precision
            self.scale = torch.tensor(state["scale"], dtype=torch.float32, device=device)


def reason_of_skip(loss: float, norm: float, loss_limit: float, norm_limit: float, scale: float) -> str:
    """Why a step with these numbers was skipped: "loss", "gradient", "loss spike", "gradient spike" or "overflow".

    An overflow is no trouble: it is how the loss scale finds its value.
    """
    if not abs(loss) < float("inf"):
        return "loss"
    if not abs(norm) < float("inf"):
        return "overflow" if scale > LEAST_SCALE else "gradient"
    return "loss spike" if loss > loss_limit else "gradient spike"
