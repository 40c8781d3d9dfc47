"""Muon: momentum whose update of each hidden matrix is orthogonalised, batched over matrices of equal shape.

    M <- mu * M + (1 - mu) * G          momentum; Nesterov looks ahead: U = mu * M + (1 - mu) * G
    O  = U (U^T U)^(-1/2)               the nearest semi-orthogonal matrix, by Newton-Schulz iteration
    W <- W - lr * scale * O             scale = sqrt(max(1, rows / columns)): each update has the same spectral effect

Sources: Jordan et al., "Muon: an optimizer for hidden layers" (2024), for the method and the quintic; Amsel et al.,
"The Polar Express" (arXiv 2505.16932), for coefficients that are optimal step by step; Zhang, Amsel, Chen and Dao,
"Gram Newton-Schulz" (2026), for the iteration on the smaller side; Chen et al., "Cautious Weight Decay" (arXiv
2510.12402).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# (a, b, c) of X <- a X + (b A + c A^2) X with A = X X^T, one triple a step.
QUINTIC = ((3.4445, -4.7750, 2.0315),) * 5
POLAR_EXPRESS = (
    (8.15655, -22.48329, 15.87877),
    (4.04293, -2.80892, 0.50002),
    (3.89167, -2.77248, 0.50606),
    (3.28575, -2.36813, 0.46449),
    (2.34654, -1.70978, 0.42324),
)
# Singular values of U / ||U||_F below these are not brought to the order of one by five steps: the inverse of the
# product of the first coefficients, times 0.7. At the threshold itself either iteration was measured to give 0.64.
RESTORABLE = {"quintic": 1.4e-3, "polar_express": 0.7e-3}


GRAM_ASPECT = 2
"""From this ratio of the sides on, iterating on the Gram matrix is less work."""


def stack_elements(device_type: str) -> int:
    """Of a stack that is updated at once: as many as fill a GPU, 128 MiB in fp32; a CPU wants them in its cache."""
    return 2**21 if device_type == "cpu" else 2**25


def orthogonalize(stack_KMN: Tensor, method: str = "polar_express", dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Bring the singular values of each matrix of a stack [K, M, N] to about one; returns the same shape in `dtype`.

    All products run in `dtype`, on the shorter side. A zero matrix stays zero. Long matrices are done in fp32 by
    `iterate_gram`; fewer bits than that lose small singular values in the squares.
    """
    polar = method == "polar_express"
    # Polar Express is fitted to singular values up to 1 / 1.01, so that rounding cannot push one beyond 1.
    norm = stack_KMN.norm(dim=(-2, -1), keepdim=True) * (1.01 if polar else 1.0)
    # Brought to the order of one before the cast: a gradient may be too small for fp16.
    x = (stack_KMN / norm.clamp(min=1e-7)).to(dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    is_long = dtype == torch.float32 and x.size(-1) >= GRAM_ASPECT * x.size(-2)
    x = (iterate_gram if is_long else iterate)(x, POLAR_EXPRESS if polar else QUINTIC)
    return x.mT if tall else x


Coefficients = tuple[tuple[float, float, float], ...]


def iterate(x_KMN: Tensor, coefficients: Coefficients) -> Tensor:
    """X <- a X + (b A + c A^2) X with A = X X^T, for each (a, b, c)."""
    for a, b, c in coefficients:
        gram = torch.bmm(x_KMN, x_KMN.mT)
        x_KMN = torch.baddbmm(x_KMN, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x_KMN, beta=a)
    return x_KMN


def iterate_gram(x_KMN: Tensor, coefficients: Coefficients) -> Tensor:
    """The same, M <= N, with two products over the longer side in place of two for each step.

    With P = a I + b A + c A^2 a step is X <- P X, so that the next A is P A P and the result is the product of all
    P with X: all but the first A and that last product is of matrices [M, M], which commute.
    """
    gram = torch.bmm(x_KMN, x_KMN.mT)
    product: Tensor | None = None
    for step, (a, b, c) in enumerate(coefficients, start=1):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        product = polynomial if product is None else torch.bmm(polynomial, product)
        if step < len(coefficients):
            gram = torch.bmm(torch.bmm(polynomial, gram), polynomial)
    return x_KMN if product is None else torch.bmm(product, x_KMN)


class Muon(torch.optim.Optimizer):
    """Muon for 2-D weights, and for stacks [E, M, N] of them, each matrix of which is orthogonalised by itself;
    everything else (embedding, norms) belongs to another optimizer.

    `lr` is in units of the "original" scale. `weight_decay` is decoupled and scaled by lr; `cautious` applies it only
    where it does not oppose the update. `dtype` is what the Newton-Schulz products run in. The state of a parameter
    is one momentum buffer of its shape, there from the start, so that a state_dict is complete at step 0.

    `found_inf` has the meaning that torch gives it in its fused optimizers: a scalar tensor that is 1 where this step
    must change nothing, whatever the gradients hold, else 0. It is never read by the host.

    `orthogonalizer` takes the arguments of `orthogonalize`: where several processes train, one that divides the stack.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        cautious: bool = False,
        method: str = "polar_express",
        dtype: torch.dtype = torch.bfloat16,
        orthogonalizer: Callable[[Tensor, str, torch.dtype], Tensor] = orthogonalize,
    ) -> None:
        if method not in RESTORABLE:
            raise ValueError(f"method must be one of {', '.join(RESTORABLE)}, not {method!r}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "cautious": cautious,
            "method": method,
            "dtype": dtype,
        }
        super().__init__(params, defaults)
        self._orthogonalize = orthogonalizer
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim not in (2, 3):
                    raise ValueError(f"Muon takes matrices, not a parameter of shape {tuple(p.shape)}")
                self.state[p]["momentum"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, one stack of equal shapes at a time."""
        for group in self.param_groups:
            stacks: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    stacks[p.shape].append(p)
            for params in stacks.values():
                at_once = max(1, stack_elements(params[0].device.type) // params[0].numel())
                for first in range(0, len(params), at_once):
                    self._update(params[first : first + at_once], group)

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """One step of a list of equally shaped parameters, as one stack: a kernel for all, not one for each."""
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        grads = torch.stack([p.grad for p in params if p.grad is not None])
        buffers: list[Tensor] = [self.state[p]["momentum"] for p in params]
        averages = torch.stack(buffers)
        taken: Tensor | float = 1.0
        if self.found_inf is not None:
            # The momentum stays where it moves towards itself, and the update below is multiplied by zero.
            grads = torch.where(self.found_inf.bool(), averages, grads)
            taken = 1 - self.found_inf
        averages.lerp_(grads, 1 - momentum)
        torch._foreach_copy_(buffers, list(averages.unbind()))
        directions = grads.lerp_(averages, momentum) if group["nesterov"] else averages
        del grads, averages
        updates = self._orthogonalize(directions.flatten(0, -3), group["method"], group["dtype"]).to(directions.dtype)
        updates = updates.reshape(directions.shape)
        del directions
        if self.found_inf is not None:
            updates = updates * taken
        weights = torch.stack(params)
        if decay:
            shrunk = weights * (updates * weights >= 0) if group["cautious"] else weights
            weights.sub_(shrunk * taken, alpha=lr * decay)
        rows, columns = params[0].shape[-2:]
        weights.add_(updates, alpha=-lr * max(1, rows / columns) ** 0.5)
        torch._foreach_copy_(params, list(weights.unbind()))
