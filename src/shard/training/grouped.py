"""The products of a mixture of experts as two operators that torch.compile does not look into.

Its own rule for grouped products knows bf16 only, and their gradients failed where they were compiled on CUDA. Seen
from outside, an operator has a shape and a gradient; within, it is model.expert_linear, whatever the dtype.
Shape suffixes as in model.py: E experts, R rows, I inputs, O outputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shard.model import can_be_grouped, expert_linear


@torch.library.custom_op("shard::grouped_linear", mutates_args=())
def grouped_linear(x_RI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """model.expert_linear, rows [R, O]."""
    return expert_linear(x_RI, weight_EOI, ends_E)


@grouped_linear.register_fake
def _(x_RI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    return x_RI.new_empty(x_RI.size(0), weight_EOI.size(1))


@torch.library.custom_op("shard::grouped_outer", mutates_args=())
def grouped_outer(d_y_RO: Tensor, x_RI: Tensor, ends_E: Tensor) -> Tensor:
    """The gradient [E, O, I] of the matrices: of each expert, the sum of the outer products of its rows."""
    if can_be_grouped(x_RI, d_y_RO.size(1), x_RI.size(1)):
        return F.grouped_mm(d_y_RO.mT, x_RI, offs=ends_E.to(torch.int32))
    stops = ends_E[:-1].cpu()
    parts = zip(d_y_RO.tensor_split(stops), x_RI.tensor_split(stops), strict=True)
    return torch.stack([d_y.mT @ x for d_y, x in parts])


@grouped_outer.register_fake
def _(d_y_RO: Tensor, x_RI: Tensor, ends_E: Tensor) -> Tensor:
    return x_RI.new_empty(ends_E.size(0), d_y_RO.size(1), x_RI.size(1))


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, d_y_RO: Tensor) -> tuple[Tensor, Tensor, None]:
    x_RI, weight_EOI, ends_E = ctx.saved_tensors
    d_y_RO = d_y_RO.contiguous()
    return grouped_linear(d_y_RO, weight_EOI.mT, ends_E), grouped_outer(d_y_RO, x_RI, ends_E), None


grouped_linear.register_autograd(_backward, setup_context=_keep)
