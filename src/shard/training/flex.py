"""FlexAttention on CUDA: skips masked blocks inside one kernel, where a probe shows that it works.

Its backward pass gives the same bits each time without the detour that FlashAttention takes for that: on an H100 it
took 0.60 of the time of the latter at 8,192 tokens, 0.55 with a window, 0.88 at 2,048 and the same at 1,024.
On some GPUs its backward pass needs more shared memory than there is, so it is tried, forward and backward, against
the block-local attention of model.py before it is used.
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from shard.model import Attend, local_attention
from shard.training.attention_probe import worst_difference

LEAST_GLOBAL_TOKENS = 2048
"""From here on global layers gain by it."""


def sliding_window_mask(num_tokens: int, window: int, device: torch.device) -> BlockMask:
    """The blocks that causal attention over the last `window` tokens touches."""

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key < window)

    return create_block_mask(visible, None, None, num_tokens, num_tokens, device=str(device))


def make_flex_attention(num_tokens: int, window: int, device: torch.device) -> Attend:
    """The same function as model.local_attention for compiled sequences of `num_tokens`, in local layers with this
    window and in global ones where that pays. It calls that one elsewhere: FlexAttention holds all T x T scores
    outside of torch.compile. The masks are made here, once; within what is compiled each layer would make its own at
    each step.
    """
    windows = [*([window] if window < num_tokens else []), *([num_tokens] if num_tokens >= LEAST_GLOBAL_TOKENS else [])]
    masks = {tokens: sliding_window_mask(num_tokens, tokens, device) for tokens in windows}

    def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, window: int) -> Tensor:
        mask = masks.get(min(window, num_tokens))
        if torch.compiler.is_compiling() and q_BHTK.size(2) == num_tokens and mask is not None:
            return masked_flex_attention(q_BHTK, k_BHTK, v_BHTK, mask)
        return local_attention(q_BHTK, k_BHTK, v_BHTK, window)

    return attend


def masked_flex_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask: BlockMask) -> Tensor:
    """FlexAttention to what the mask shows."""
    result = flex_attention(q_BHTK, k_BHTK, v_BHTK, block_mask=mask)
    assert isinstance(result, Tensor)
    return result


def flex_attention_works(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[bool, str]:
    """Compile it, run it forward and backward, compare: (whether it can be used, the reason)."""
    q, k, v = (torch.randn(1, 2, 512, head_dim, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    try:
        mask = sliding_window_mask(512, 128, device)
        compiled = torch.compile(masked_flex_attention)
        worst = worst_difference(lambda q, k, v: compiled(q, k, v, mask), q, k, v, 128)
    except Exception as error:  # a kernel that does not fit this GPU can fail in many ways
        return False, f"FlexAttention fails on this GPU ({str(error).strip().splitlines()[0][:100]})"
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-3
    return worst <= tolerance, f"FlexAttention differs from block-local attention by {worst:.1e} of the largest value"
