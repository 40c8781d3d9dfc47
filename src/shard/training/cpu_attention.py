"""Attention by our own kernel for the CPU (kernels/attention.cpp): no masked block is computed, in local layers nor in
global ones, and the scores never leave a core's own caches.

It is written for vectors of 256 bits. Measured on an AMD EPYC with AVX2, fp32, forward and backward, it takes two
thirds of the time of torch's kernel at 1,024 tokens, and of the bands of window.py with a window of 1,024. Where
torch's kernels have wider vectors, or those of another kind of processor, nothing was measured: it is not chosen.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from shard.kernels.build import load_kernels
from shard.model import local_attention
from shard.training.attention_probe import worst_difference

HEAD_MULTIPLE = 16
"""Numbers of a head come in so many."""


@cache
def load_cpu_attention() -> tuple[bool, str]:
    """(whether the kernel is loaded, and gives what model.local_attention gives, forward and backward, the reason)."""
    loaded, reason = load_kernels("attention.cpp")
    if not loaded:
        return False, reason
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 261, HEAD_MULTIPLE, generator=generator).requires_grad_() for _ in range(3))
    try:
        _register()
        worst = worst_difference(lambda q, k, v: cpu_attention(q, k, v, 128), q, k, v, 128)
    except (RuntimeError, AttributeError) as error:
        return False, f"our own attention cannot be run ({(str(error) or repr(error)).splitlines()[0][:100]})"
    return worst <= 1e-4, f"our own attention differs from the masked one by {worst:.1e} of the largest value"


@cache
def _register() -> None:
    """What torch has to know of the kernels besides their code."""
    torch.library.register_fake("shard::attention", _attention_shapes)
    torch.library.register_fake("shard::attention_backward", _gradient_shapes)
    torch.library.register_autograd("shard::attention", _backward, setup_context=_keep)
    torch.library.register_autograd("shard::attention_backward", _refuse)


def _attention_shapes(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, window: int) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, _ = q_BTHK.shape
    return torch.empty_like(q_BTHK), q_BTHK.new_empty(batch, heads, tokens)


def _gradient_shapes(
    d_y_BTHK: Tensor, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, y_BTHK: Tensor, lse_BHT: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q_BTHK), torch.empty_like(q_BTHK), torch.empty_like(q_BTHK)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q_BTHK, k_BTHK, v_BTHK, ctx.window = inputs
    ctx.save_for_backward(q_BTHK, k_BTHK, v_BTHK, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, d_y_BTHK: Tensor, d_lse_BHT: None) -> tuple[Tensor | None, ...]:
    backward = torch.ops.shard.attention_backward
    return *backward(d_y_BTHK.contiguous(), *ctx.saved_tensors, ctx.window), None


def _refuse(ctx: Any, *grads: Tensor | None) -> None:
    raise RuntimeError("our own attention cannot be differentiated twice")


def cpu_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, window: int) -> Tensor:
    """The same function as model.local_attention, which it calls for heads of other sizes and in other dtypes."""
    if q_BHTK.dtype != torch.float32 or q_BHTK.size(3) % HEAD_MULTIPLE:
        return local_attention(q_BHTK, k_BHTK, v_BHTK, window)
    q_BTHK, k_BTHK, v_BTHK = (x.transpose(1, 2).contiguous() for x in (q_BHTK, k_BHTK, v_BHTK))
    y_BTHK, _ = torch.ops.shard.attention(q_BTHK, k_BTHK, v_BTHK, window)
    return y_BTHK.transpose(1, 2)


def cpu_attention_works(dtype: torch.dtype, head_dim: int) -> tuple[bool, str]:
    """(Whether it is to be used, the reason.)"""
    vectors = torch.backends.cpu.get_cpu_capability()
    if dtype != torch.float32:
        return False, "our own attention is for fp32"
    if head_dim % HEAD_MULTIPLE:
        return False, f"our own attention is for heads of a multiple of {HEAD_MULTIPLE} numbers"
    if vectors != "AVX2":
        return False, f"our own attention is for AVX2, and this processor has {vectors}"
    return load_cpu_attention()
