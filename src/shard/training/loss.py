"""Cross-entropy of capped logits plus z-loss, straight from hidden states: all logits are never held at once.

    l = cap * tanh(h E^T / cap)        nll = logsumexp(l) - l[target]        z = logsumexp(l)^2
    loss = scale * sum(nll + z_loss * z)

The z-loss is defined on the capped logits. Gradients are computed in the forward pass, chunk by chunk, since they
need only what the chunk already has; dE is accumulated in fp32.
Shape suffixes: N tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_LOGITS = {"cpu": 2**22, "cuda": 2**24, "mps": 2**24}
"""Logits held at once: 16 MiB in fp32 stay in the cache of a CPU, 64 MiB fill a GPU."""
LEAST_CHUNK = {"cpu": 128, "cuda": 512, "mps": 128}
"""Tokens of a chunk at least: each one reads the table twice and its gradient once, and writes the latter."""


class Loss(NamedTuple):
    """Sums over tokens, in fp32: `total` carries the gradient, the other two are for the record."""

    total: Tensor
    nll_sum: Tensor
    z_sum: Tensor


def chunk_tokens(vocab_size: int, device: torch.device | str) -> int:
    """Tokens whose logits are held at once on a device, or on a type of devices."""
    kind = torch.device(device).type
    return max(LEAST_CHUNK[kind], CHUNK_LOGITS[kind] // vocab_size)


def plain_loss(
    hidden_ND: Tensor, table_VD: Tensor, targets_N: Tensor, cap: float, z_loss: float, scale: float = 1.0
) -> Loss:
    """The reference: holds all logits [N, V], differentiated by autograd."""
    logits_NV = F.linear(hidden_ND, table_VD.to(hidden_ND.dtype)).float()
    logits_NV = cap * torch.tanh(logits_NV / cap)
    nll_sum = F.cross_entropy(logits_NV, targets_N, reduction="sum")
    z_sum = logits_NV.logsumexp(dim=-1).square().sum()
    return Loss(scale * (nll_sum + z_loss * z_sum), nll_sum.detach(), z_sum.detach())


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        table_VD: Tensor,
        targets_N: Tensor,
        cap: float,
        z_loss: float,
        scale: float | Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_tokens, vocab_size = hidden_ND.size(0), table_VD.size(0)
        chunk = chunk_tokens(vocab_size, hidden_ND.device)
        weight_VD = table_VD.to(hidden_ND.dtype)
        d_hidden_chunks = []
        d_table_VD = torch.zeros_like(table_VD, dtype=torch.float32)
        nll_sum = hidden_ND.new_zeros((), dtype=torch.float32)
        z_sum = hidden_ND.new_zeros((), dtype=torch.float32)
        for start in range(0, num_tokens, chunk):
            hidden_CD = hidden_ND[start : start + chunk]
            targets_C = targets_N[start : start + chunk]
            unit_CV = torch.tanh(F.linear(hidden_CD, weight_VD).float() / cap)
            logits_CV = cap * unit_CV
            lse_C = logits_CV.logsumexp(dim=-1)
            nll_sum = nll_sum + (lse_C - logits_CV.gather(1, targets_C[:, None]).squeeze(1)).sum()
            z_sum = z_sum + lse_C.square().sum()
            # d lse = p, d(lse^2) = 2 lse p, d l / d x = 1 - tanh^2
            is_target_CV = targets_C[:, None] == torch.arange(vocab_size, device=targets_C.device)
            d_CV = (logits_CV - lse_C[:, None]).exp() * (1 + 2 * z_loss * lse_C[:, None])
            d_CV = torch.where(is_target_CV, d_CV - 1, d_CV) * (1 - unit_CV.square()) * scale
            d_CV = d_CV.to(hidden_ND.dtype)
            d_hidden_chunks.append(d_CV @ weight_VD)
            d_table_VD = d_table_VD + (d_CV.mT @ hidden_CD).float()
        ctx.save_for_backward(torch.cat(d_hidden_chunks), d_table_VD)
        return scale * (nll_sum + z_loss * z_sum), nll_sum, z_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden_ND, d_table_VD = ctx.saved_tensors
        return d_hidden_ND * grads[0].to(d_hidden_ND.dtype), d_table_VD * grads[0], None, None, None, None


def chunked_loss(
    hidden_ND: Tensor, table_VD: Tensor, targets_N: Tensor, cap: float, z_loss: float, scale: float | Tensor = 1.0
) -> Loss:
    """The same as plain_loss in memory of the logits of a chunk.

    `hidden_ND` is in the compute dtype; `table_VD` is the master table, cast once. `scale` is applied before the
    gradients are rounded to the compute dtype: give 1 / tokens of the whole step, times the loss scale of fp16.
    Differentiable once, in `total`.
    """
    total, nll_sum, z_sum = _ChunkedLoss.apply(hidden_ND, table_VD, targets_N, cap, z_loss, scale)  # type: ignore[no-untyped-call]
    return Loss(total, nll_sum.detach(), z_sum.detach())
