"""How far a kernel for local layers is from the block-local attention of model.py: what its probe asks."""

from collections.abc import Callable

import torch
from torch import Tensor

from shard.model import local_attention


def worst_difference(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, window: int
) -> float:
    """The largest difference of the result and of the three gradients, each as a share of its largest value."""
    inputs = (q_BHTK, k_BHTK, v_BHTK)
    got, expected = attend(*inputs), local_attention(*inputs, window)
    grads = (torch.autograd.grad(y.float().square().sum(), inputs) for y in (got, expected))
    pairs = [(got, expected), *zip(*grads, strict=True)]
    shares = [((a - b).abs().max() / b.abs().max()).detach().float() for a, b in pairs]
    return float(torch.stack(shares).max())  # NaN where one is: Python's own max may pass it over
