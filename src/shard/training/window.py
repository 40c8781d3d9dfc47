"""Sliding-window attention on a CPU in narrow bands, where a masked block would be computed in vain.

A row sees W = window columns, its own the last. S = ceil(W / 4) rows side by side see S + W columns at most, and these
lie one after another, so that the bands of keys and values that belong to the blocks of rows are views of the sequence
which overlap. Every band has the same mask. The first W rows see nothing before them: causal attention.

    forward     rows [W + n S, W + (n + 1) S)       columns [n S, W + (n + 1) S)        first W rows: causal
    backward    columns [n S, (n + 1) S)            rows [n S, W + (n + 1) S)           last W columns: causal

Backward it is the columns that are cut into blocks, so that only the gradients of the rows have to be added up, band by
band; y and the logsumexp of a row hold for any part of its columns (the identity that lets FlashAttention work block
by block: Dao et al., arXiv 2205.14135). T * 5/4 W scores are computed in place of the T * 2W of model.local_attention.
The kernels are torch's own for the CPU; each takes one sequence, since overlapping views of several do not make one.
Shape suffixes: B batch, T tokens, N blocks, S tokens of a block, R = S + W tokens of a band, H heads, K head size.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shard.model import local_attention
from shard.training.attention_probe import worst_difference

SMALLEST_WINDOW = 128
"""Below this the kernels have too little to do in a block."""

BLOCKS = 4
"""Blocks of a window. With 8 less is computed in vain, but torch takes fewer rows at a time: nothing is gained."""

BANDS_AT_ONCE = 8
"""Bands of a call backward: their gradients are small enough to lie in memory that was used before
(with 28 fresh pages took 6 % of the time), and enough to keep some tens of threads busy.
"""


def _mask(is_visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(is_visible.shape, dtype=dtype).masked_fill_(~is_visible, -torch.inf)


def _blocks(x_THK: Tensor, size: int) -> Tensor:
    """[N, H, S, K]: tokens [T, H, K], or of no K, cut into blocks."""
    return x_THK.unflatten(0, (-1, size)).transpose(1, 2)


def _bands(x_THK: Tensor, size: int, window: int) -> Tensor:
    """[N, H, R, K]: what lies from the start of each block on, as views that overlap."""
    return x_THK.unfold(0, size + window, size).movedim(-1, 2)


def _tokens(x_NHSK: Tensor) -> Tensor:
    """[T, H, K]: blocks put together."""
    return x_NHSK.transpose(1, 2).flatten(0, 1)


def _attend(qkv: Sequence[Tensor], mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention of q [N, H, rows, K] to k and v [N, H, columns, K], causal without a mask: the result, and the
    logsumexp of its scores [N, H, rows] in fp32.
    """
    y, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*qkv, 0.0, mask is None, attn_mask=mask)
    return y, lse


def _attend_backward(inputs: Sequence[Tensor], mask: Tensor | None) -> list[Tensor]:
    """The gradients of q, k and v through these scores. `inputs`: d_y, q, k, v, then y and its logsumexp, which may be
    of more columns.
    """
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return list(backward(*inputs, 0.0, mask is None, attn_mask=mask))


@torch.library.custom_op("shard::window_attention", mutates_args=())
def window_attention(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, window: int, size: int) -> tuple[Tensor, Tensor]:
    """(y [B, T, H, K], the logsumexp of its scores [B, T, H] in fp32), where T is W and some blocks of `size`."""
    row, column = torch.arange(size)[:, None], torch.arange(size + window)
    mask = _mask((column > row) & (column <= row + window), q_BTHK.dtype)
    y_BTHK = torch.empty(q_BTHK.shape, dtype=q_BTHK.dtype)
    lse_BTH = torch.empty(q_BTHK.shape[:3])
    for q, k, v, y, lse in zip(q_BTHK, k_BTHK, v_BTHK, y_BTHK, lse_BTH, strict=True):
        first = _attend([_blocks(x[:window], window) for x in (q, k, v)], None)
        rest = _attend([_blocks(q[window:], size), _bands(k, size, window), _bands(v, size, window)], mask)
        y[:window], lse[:window] = map(_tokens, first)
        y[window:], lse[window:] = map(_tokens, rest)
    return y_BTHK, lse_BTH


@window_attention.register_fake
def _(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, window: int, size: int) -> tuple[Tensor, Tensor]:
    return q_BTHK.new_empty(q_BTHK.shape), q_BTHK.new_empty(q_BTHK.shape[:3], dtype=torch.float32)


@torch.library.custom_op("shard::window_attention_backward", mutates_args=())
def window_attention_backward(
    d_y_BTHK: Tensor,
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHK: Tensor,
    y_BTHK: Tensor,
    lse_BTH: Tensor,
    window: int,
    size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, each [B, T, H, K]."""
    row, column = torch.arange(size + window)[:, None], torch.arange(size)
    mask = _mask((column <= row) & (row < column + window), q_BTHK.dtype)
    cut = q_BTHK.size(1) - window
    d_q_BTHK = torch.zeros(q_BTHK.shape)  # fp32, since a row's gradient is a sum over its bands
    d_k_BTHK, d_v_BTHK = (torch.empty(x.shape, dtype=x.dtype) for x in (k_BTHK, v_BTHK))
    inputs, grads = (d_y_BTHK, q_BTHK, k_BTHK, v_BTHK, y_BTHK, lse_BTH), (d_q_BTHK, d_k_BTHK, d_v_BTHK)
    for d_y, q, k, v, y, lse, d_q, d_k, d_v in zip(*inputs, *grads, strict=True):
        d_q_end, d_k_end, d_v_end = _attend_backward([_blocks(x[cut:], window) for x in (d_y, q, k, v, y, lse)], None)
        d_q[cut:] += _tokens(d_q_end)
        d_k[cut:], d_v[cut:] = _tokens(d_k_end), _tokens(d_v_end)
        for start in range(0, cut, BANDS_AT_ONCE * size):
            end = min(start + BANDS_AT_ONCE * size, cut)
            bands = [_bands(x[start : end + window], size, window) for x in (d_y, q, y, lse)]
            blocks = [_blocks(x[start:end], size) for x in (k, v)]
            d_q_NHRK, d_k_NHSK, d_v_NHSK = _attend_backward([*bands[:2], *blocks, *bands[2:]], mask)
            d_k[start:end], d_v[start:end] = _tokens(d_k_NHSK), _tokens(d_v_NHSK)
            for first, d_q_HRK in zip(range(start, end, size), d_q_NHRK, strict=True):
                d_q[first : first + size + window] += d_q_HRK.transpose(0, 1)
    return d_q_BTHK.to(q_BTHK.dtype), d_k_BTHK, d_v_BTHK


@window_attention_backward.register_fake
def _(
    d_y_BTHK: Tensor,
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHK: Tensor,
    y_BTHK: Tensor,
    lse_BTH: Tensor,
    window: int,
    size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    d_q_BTHK, d_k_BTHK, d_v_BTHK = (q_BTHK.new_empty(q_BTHK.shape) for _ in range(3))
    return d_q_BTHK, d_k_BTHK, d_v_BTHK


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q_BTHK, k_BTHK, v_BTHK, *ctx.sizes = inputs
    ctx.save_for_backward(q_BTHK, k_BTHK, v_BTHK, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, d_y_BTHK: Tensor, d_lse_BTH: None) -> tuple[Tensor | None, ...]:
    return *window_attention_backward(d_y_BTHK.contiguous(), *ctx.saved_tensors, *ctx.sizes), None, None


window_attention.register_autograd(_backward, setup_context=_keep)


def flash_window_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, window: int) -> Tensor:
    """The same function as model.local_attention, which it calls where one block holds all or little."""
    num_tokens = q_BHTK.size(2)
    if window < SMALLEST_WINDOW or num_tokens <= window:
        return local_attention(q_BHTK, k_BHTK, v_BHTK, window)
    size = -(-window // BLOCKS)
    q_BTHK, k_BTHK, v_BTHK = (x.transpose(1, 2) for x in (q_BHTK, k_BHTK, v_BHTK))
    if padding := (window - num_tokens) % size:
        # At the end it is never seen: it lies after every real query.
        q_BTHK, k_BTHK, v_BTHK = (F.pad(x, (0, 0, 0, 0, 0, padding)) for x in (q_BTHK, k_BTHK, v_BTHK))
    y_BTHK, _ = window_attention(q_BTHK, k_BTHK, v_BTHK, window, size)
    return y_BTHK[:, :num_tokens].transpose(1, 2)


def flash_window_works(dtype: torch.dtype) -> tuple[bool, str]:
    """Try it, forward and backward, against model.local_attention: (whether it can be used, the reason). The kernels
    are not part of torch's public interface, so a version of torch may lack them.
    """
    window = SMALLEST_WINDOW
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 2 * window + 5, 16, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    try:
        worst = worst_difference(lambda q, k, v: flash_window_attention(q, k, v, window), q, k, v, window)
    except (RuntimeError, AttributeError, TypeError) as error:
        return False, f"torch's CPU attention kernels cannot be used so ({str(error).splitlines()[0][:100]})"
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    return (
        worst <= tolerance,
        f"attention in narrow bands differs from the masked one by {worst:.1e} of the largest value",
    )
