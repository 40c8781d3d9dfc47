"""Sliding-window attention on CUDA by FlashAttention's own window, which skips what is out of sight.

torch offers it for sequences of any lengths laid end to end; here all have the same. It computes in half precision.
It is for where FlexAttention (flex.py) cannot be used.
"""

import torch
from torch import Tensor

from shard.model import local_attention
from shard.training.attention_probe import worst_difference


def varlen_local_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, window: int) -> Tensor:
    """The same function as model.local_attention, which it calls where all is in sight, and for fp32."""
    batch, _, num_tokens, _ = q_BHTK.shape
    if num_tokens <= window or q_BHTK.dtype == torch.float32:
        return local_attention(q_BHTK, k_BHTK, v_BHTK, window)
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.arange(0, (batch + 1) * num_tokens, num_tokens, dtype=torch.int32, device=q_BHTK.device)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHTK, k_BHTK, v_BHTK))
    y = varlen_attn(q, k, v, ends, ends, num_tokens, num_tokens, window_size=(window - 1, 0))
    assert isinstance(y, Tensor)
    return y.unflatten(0, (batch, num_tokens)).transpose(1, 2)


def varlen_attention_works(device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """Run it forward and backward, compare: (whether it can be used, the reason)."""
    if dtype == torch.float32:
        return False, "FlashAttention's window needs bf16 or fp16"
    q, k, v = (torch.randn(2, 2, 512, 64, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    try:
        worst = worst_difference(lambda q, k, v: varlen_local_attention(q, k, v, 128), q, k, v, 128)
    except Exception as error:  # a kernel that is not built for this GPU can fail in many ways
        return False, f"FlashAttention's window fails on this GPU ({str(error).strip().splitlines()[0][:100]})"
    return worst <= 2e-2, f"FlashAttention's window differs from block-local attention by {worst:.1e} of the largest"
