"""Sliding-window attention on a CPU as two causal attentions, so that no masked block is computed.

Cut the sequence into blocks of W = window tokens. Row r of a block sees the columns c <= r of its own block: causal
attention. Of the block before it sees the columns c > r: with the order of rows and columns turned round, causal too.

    own      (y_1, l_1) = causal(q_n, k_n, v_n)                        l = logsumexp of the scores
    before   (y_2, l_2) = causal(turned q_n, k_(n-1), v_(n-1))
    l = logaddexp(l_1, l_2)        y = exp(l_1 - l) y_1 + exp(l_2 - l) y_2

Given the merged y and l, the backward pass of either part is that of its kernel, and the gradients add up (the
same identity that lets FlashAttention work block by block: Dao et al., arXiv 2205.14135). The kernels are torch's own
for the CPU, which skip what causality hides: T * W scores in place of the T * 2W of model.local_attention.
Shape suffixes: B batch, N blocks, W window, R = W - 1 rows that see the block before, H heads, K head size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shard.model import local_attention
from shard.training.attention_probe import worst_difference

SMALLEST_WINDOW = 256
"""Below this the kernels have too little to do in a block."""


def _causal(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention of blocks [M, W, H, K]: the result, and the logsumexp of its scores [M, W, H] in fp32."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    y, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
    return y.transpose(1, 2), lse.transpose(1, 2)


def _causal_backward(d_y: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor) -> list[Tensor]:
    """Gradients of q, k and v [M, W, H, K] through the scores of one part, where `y` and `lse` may be of more parts."""
    d_y, q, k, v, y, lse = (x.transpose(1, 2) for x in (d_y, q, k, v, y, lse))
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(d_y, q, k, v, y, lse, 0.0, True)
    return [grad.transpose(1, 2) for grad in grads]


def _turned_rows(x_BNW: Tensor) -> Tensor:
    """Of every block but the first, the rows that see the block before, last one first: [B * (N - 1), R, ...]."""
    return x_BNW[:, 1:, :-1].flatten(0, 1).flip(1)


def _turned_columns(x_BNW: Tensor) -> Tensor:
    """Of every block but the last, what the next one may see, last one first: [B * (N - 1), R, ...]."""
    return x_BNW[:, :-1, 1:].flatten(0, 1).flip(1)


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BNWHK: Tensor, k_BNWHK: Tensor, v_BNWHK: Tensor) -> Tensor:
        batch = q_BNWHK.size(0)
        own_y, own_lse = _causal(*(x.flatten(0, 1) for x in (q_BNWHK, k_BNWHK, v_BNWHK)))
        own_y, own_lse = (x.unflatten(0, (batch, -1)) for x in (own_y, own_lse))
        y, lse = _causal(_turned_rows(q_BNWHK), _turned_columns(k_BNWHK), _turned_columns(v_BNWHK))
        # Where there is nothing before, a logsumexp of minus infinity is a weight of zero.
        before_y = F.pad(y.flip(1).unflatten(0, (batch, -1)), (0, 0, 0, 0, 0, 1, 1, 0))
        before_lse = F.pad(lse.flip(1).unflatten(0, (batch, -1)), (0, 0, 0, 1, 1, 0), value=-torch.inf)
        lse_BNWH = torch.logaddexp(own_lse, before_lse)
        parts = ((own_y, own_lse), (before_y, before_lse))
        own, before = (y * (lse - lse_BNWH).exp()[..., None].to(y.dtype) for y, lse in parts)
        y_BNWHK = own + before
        ctx.save_for_backward(q_BNWHK, k_BNWHK, v_BNWHK, y_BNWHK, lse_BNWH)
        return y_BNWHK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, k, v, y, lse = ctx.saved_tensors
        (d_y,) = grads
        own = _causal_backward(*(x.flatten(0, 1) for x in (d_y, q, k, v, y, lse)))
        columns = (_turned_columns(k), _turned_columns(v))
        before = _causal_backward(_turned_rows(d_y), _turned_rows(q), *columns, _turned_rows(y), _turned_rows(lse))
        own, before = ([x.unflatten(0, (q.size(0), -1)) for x in part] for part in (own, [x.flip(1) for x in before]))
        rows, columns_of = (0, 0, 0, 0, 0, 1, 1, 0), (0, 0, 0, 0, 1, 0, 0, 1)
        return tuple(a + F.pad(b, pad) for a, b, pad in zip(own, before, (rows, columns_of, columns_of), strict=True))


def flash_window_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, window: int) -> Tensor:
    """The same function as model.local_attention, which it calls where one block holds all or little."""
    num_tokens = q_BHTK.size(2)
    if window < SMALLEST_WINDOW or num_tokens <= window:
        return local_attention(q_BHTK, k_BHTK, v_BHTK, window)
    # Padding at the end is never seen: it lies after every real query.
    padded = (F.pad(x, (0, 0, 0, -num_tokens % window)) for x in (q_BHTK, k_BHTK, v_BHTK))
    blocks = (x.transpose(1, 2).unflatten(1, (-1, window)) for x in padded)
    y_BNWHK: Tensor = _WindowAttention.apply(*blocks)  # type: ignore[no-untyped-call]
    return y_BNWHK.flatten(1, 2)[:, :num_tokens].transpose(1, 2)


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
    return worst <= tolerance, f"two causal attentions differ from the masked one by {worst:.1e} of the largest value"
