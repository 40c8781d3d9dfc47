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
from dataclasses import dataclass
from itertools import pairwise
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
GRAM_RESTARTS = {torch.float32: (), torch.float16: (2,)}
"""The steps after which the Gram matrix is formed anew, in dtypes that allow the iteration on it. Without that, fp16
would lose small singular values; bf16 loses them anyway."""


def stack_elements(device_type: str) -> int:
    """Of a stack that is updated at once: as many as fill a GPU, 128 MiB in fp32; a CPU wants them in its cache."""
    return 2**21 if device_type == "cpu" else 2**25


def orthogonalize(stack_KMN: Tensor, method: str = "polar_express", dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Bring the singular values of each matrix of a stack [K, M, N] to about one; returns the same shape in `dtype`,
    in which all products run. A zero matrix stays zero.
    """
    return newton_schulz(normalize(stack_KMN, method, dtype), method)


def normalize(stack_KMN: Tensor, method: str, dtype: torch.dtype) -> Tensor:
    """Each matrix of a stack with a Frobenius norm of one (or just below it), in `dtype`: what newton_schulz takes."""
    # Polar Express is fitted to singular values up to 1 / 1.01, so that rounding cannot push one beyond 1.
    norm = stack_KMN.norm(dim=(-2, -1), keepdim=True) * (1.01 if method == "polar_express" else 1.0)
    # Brought to the order of one before the cast: a gradient may be too small for fp16.
    return (stack_KMN / norm.clamp(min=1e-7)).to(dtype)


def newton_schulz(x_KMN: Tensor, method: str) -> Tensor:
    """Bring the singular values of matrices of norm one to about one, on their shorter side; of long matrices by
    `iterate_gram`, except in bf16, whose bits are too few for the squares of small singular values.
    """
    tall = x_KMN.size(-2) > x_KMN.size(-1)
    if tall:
        x_KMN = x_KMN.mT
    coefficients = POLAR_EXPRESS if method == "polar_express" else QUINTIC
    if x_KMN.dtype in GRAM_RESTARTS and x_KMN.size(-1) >= GRAM_ASPECT * x_KMN.size(-2):
        x_KMN = iterate_gram(x_KMN, coefficients, GRAM_RESTARTS[x_KMN.dtype])
    else:
        x_KMN = iterate(x_KMN, coefficients)
    return x_KMN.mT if tall else x_KMN


Coefficients = tuple[tuple[float, float, float], ...]


def iterate(x_KMN: Tensor, coefficients: Coefficients) -> Tensor:
    """X <- a X + (b A + c A^2) X with A = X X^T, for each (a, b, c)."""
    for a, b, c in coefficients:
        gram = torch.bmm(x_KMN, x_KMN.mT)
        x_KMN = torch.baddbmm(x_KMN, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x_KMN, beta=a)
    return x_KMN


def iterate_gram(x_KMN: Tensor, coefficients: Coefficients, restarts: tuple[int, ...] = ()) -> Tensor:
    """The same, M <= N, with two products over the longer side in place of two for each step; two more for each of the
    `restarts`, steps after which the Gram matrix is formed anew.

    With P = a I + b A + c A^2 a step is X <- P X, so that the next A is P A P and the result is the product of all
    P with X: all but the first A and that last product is of matrices [M, M], which commute.
    """
    for first, last in pairwise((0, *restarts, len(coefficients))):
        gram = torch.bmm(x_KMN, x_KMN.mT)
        product: Tensor | None = None
        for step, (a, b, c) in enumerate(coefficients[first:last], start=first + 1):
            polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
            product = polynomial if product is None else torch.bmm(polynomial, product)
            if step < last:
                gram = torch.bmm(torch.bmm(polynomial, gram), polynomial)
        if product is not None:
            x_KMN = torch.bmm(product, x_KMN)
    return x_KMN


def direct(
    grads_KMN: Tensor,
    averages_KMN: Tensor,
    found_inf: Tensor | None,
    momentum: float | Tensor,
    nesterov: bool,
    method: str,
    dtype: torch.dtype,
) -> Tensor:
    """Move the averages towards the gradients, in place; the direction U of the update, normalized. `grads_KMN` may be
    overwritten.
    """
    if found_inf is not None:  # each average moves towards itself, and stays
        grads_KMN = torch.where(found_inf.bool(), averages_KMN, grads_KMN)
    averages_KMN.lerp_(grads_KMN, 1 - momentum)
    return normalize(grads_KMN.lerp_(averages_KMN, momentum) if nesterov else averages_KMN, method, dtype)


def move(weights_KMN: Tensor, updates_KMN: Tensor, length: Tensor, decay: Tensor | None, cautious: bool) -> None:
    """W <- W - decay * W - length * O, in place; cautious: no decay where it would oppose the update."""
    updates_KMN = updates_KMN.to(weights_KMN.dtype)
    if decay is not None:
        shrunk_KMN = weights_KMN * (updates_KMN * weights_KMN >= 0) if cautious else weights_KMN
        weights_KMN.sub_(shrunk_KMN * decay)
    weights_KMN.sub_(updates_KMN * length)


@dataclass
class _Stack:
    """Parameters of equal shape that are updated at once, and how."""

    group: int
    """Number of the parameter group."""
    params: list[Tensor]
    momentum: Tensor
    """[K, ...], of which the state of each parameter is a part."""
    direct: Callable[..., Tensor] = direct
    move: Callable[..., None] = move


class Muon(torch.optim.Optimizer):
    """Muon for 2-D weights, and for stacks [E, M, N] of them, each matrix of which is orthogonalised by itself;
    everything else (embedding, norms) belongs to another optimizer.

    `lr` is in units of the "original" scale. `weight_decay` is decoupled and scaled by lr; `cautious` applies it only
    where it does not oppose the update. `dtype` is what the Newton-Schulz products run in. The state of a parameter
    is one momentum buffer of its shape, there from the start, so that a state_dict is complete at step 0.

    `found_inf` has the meaning that torch gives it in its fused optimizers: a scalar tensor that is 1 where this step
    must change nothing, whatever the gradients hold, else 0. It is never read by the host.

    `orthogonalizer` takes the arguments of `newton_schulz`: where several processes train, one that divides the stack.

    `compile` makes one kernel of all that is done to each number before the products, and one of what is done after:
    on a GPU these passes over memory take as long as the products.
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
        orthogonalizer: Callable[[Tensor, str], Tensor] = newton_schulz,
        compile: bool = False,
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
        self._newton_schulz, self.compiled = orthogonalizer, compile
        self._stacks: list[_Stack] = []
        for number, group in enumerate(self.param_groups):
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.ndim not in (2, 3):
                    raise ValueError(f"Muon takes matrices, not a parameter of shape {tuple(p.shape)}")
                shapes[p.shape].append(p)
            for params in shapes.values():
                at_once = max(1, stack_elements(params[0].device.type) // params[0].numel())
                for first in range(0, len(params), at_once):
                    self._add_stack(number, params[first : first + at_once])

    def _add_stack(self, group: int, params: list[Tensor]) -> None:
        stack = _Stack(group, params, torch.stack([torch.zeros_like(p) for p in params]))
        if self.compiled:
            # Kernels of its own for each stack: with common ones, which of them a stack gets, and so its last bits,
            # would depend on what else was compiled before. (torch's overloads lack the argument.)
            stack.direct = torch.compile(direct, dynamic=False, isolate_recompiles=True)  # type: ignore[call-overload]
            stack.move = torch.compile(move, dynamic=False, isolate_recompiles=True)  # type: ignore[call-overload]
        self._stacks.append(stack)
        for p, part in zip(params, stack.momentum, strict=True):
            self.state[p]["momentum"] = part

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does it; the momentum stays a part of its stack."""
        super().load_state_dict(state_dict)
        for stack in self._stacks:
            for p, part in zip(stack.params, stack.momentum, strict=True):
                part.copy_(self.state[p]["momentum"])
                self.state[p]["momentum"] = part

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, one stack of equal shapes at a time."""
        for stack in self._stacks:
            moving = [i for i, p in enumerate(stack.params) if p.grad is not None]
            if len(moving) == len(stack.params):
                self._update(stack, stack.params, stack.momentum)
            elif moving:
                averages = stack.momentum[moving]
                self._update(stack, [stack.params[i] for i in moving], averages)
                stack.momentum[moving] = averages

    def _update(self, stack: _Stack, params: list[Tensor], averages: Tensor) -> None:
        """One step of a stack, or of some of it, as one tensor: a kernel for all, not one for each."""
        group = self.param_groups[stack.group]
        momentum = torch.tensor(group["momentum"]) if self.compiled else group["momentum"]  # a number is a constant
        grads = torch.stack([p.grad for p in params if p.grad is not None])
        directions = stack.direct(
            grads.flatten(0, -3),
            averages.flatten(0, -3),
            self.found_inf,
            momentum,
            group["nesterov"],
            group["method"],
            group["dtype"],
        )
        del grads
        updates = self._newton_schulz(directions, group["method"])
        del directions
        taken = 1.0 if self.found_inf is None else 1 - self.found_inf
        rows, columns = params[0].shape[-2:]
        length = torch.as_tensor(group["lr"] * max(1, rows / columns) ** 0.5 * taken)
        decay = torch.as_tensor(group["lr"] * group["weight_decay"] * taken) if group["weight_decay"] else None
        weights = torch.stack(params)
        stack.move(weights.flatten(0, -3), updates, length, decay, group["cautious"])
        torch._foreach_copy_(params, list(weights.unbind()))
