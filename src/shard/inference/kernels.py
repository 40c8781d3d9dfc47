"""The decode step's own kernels for the CPU (kernels/decode.cpp), tried before they are used."""

from functools import cache

import torch
from torch import Tensor

from shard.kernels.build import load_kernels


@cache
def choose_kernels() -> tuple[bool, str]:
    """(whether the kernels work here, the reason), found out by building them, or finding them built, and a trial."""
    works, reason = load_kernels("decode.cpp")
    if not works:
        return False, reason
    try:
        works = _give_right_results()
    except (RuntimeError, AttributeError) as error:
        return False, f"kernels {reason} cannot be run ({(str(error) or repr(error)).splitlines()[0]})"
    return works, reason if works else f"kernels {reason} give wrong results"


def _give_right_results() -> bool:
    """A trial of both, on numbers whose results are known."""
    torch.library.register_fake("shard::int8_product", lambda x, codes, scale: x.new_empty(x.size(0), codes.size(0)))
    torch.library.register_fake("shard::decode_attention", lambda q, k, v, seen: torch.empty_like(q))
    codes, scale = torch.full((3, 600), 127, dtype=torch.int8), torch.ones(3, dtype=torch.bfloat16)
    product = int8_product(torch.ones(5, 600), codes, scale)
    slots = torch.arange(120.0).view(1, 1, 3, 40)
    mean = decode_attention(torch.zeros(1, 1, 40), slots, slots, torch.tensor([2]))
    return torch.allclose(product, torch.tensor(76200.0)) and torch.allclose(mean, torch.arange(20.0, 60.0))


def int8_product(x_BI: Tensor, codes_OI: Tensor, scale_O: Tensor) -> Tensor:
    """x W^T [B, O] in fp32 of W ~ scale * codes, the scale in bf16. x becomes 15-bit whole numbers, a scale a row."""
    return torch.ops.shard.int8_product(x_BI.float().contiguous(), codes_OI, scale_O)


def decode_attention(q_BHK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, seen_B: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v [B, H, K] in fp32, of each row over its first min(seen, S) slots; k, v contiguous."""
    return torch.ops.shard.decode_attention(q_BHK.float().contiguous(), k_BHSK, v_BHSK, seen_B)
