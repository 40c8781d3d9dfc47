"""Cross-entropy of capped logits plus z-loss, from hidden states.

    l = cap * tanh(h E^T / cap)        nll = logsumexp(l) - l[target]        z = logsumexp(l)^2
    loss = scale * sum(nll + z_loss * z)

The z-loss is defined on the capped logits.
Shape suffixes: N tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from shard.training.chunks import ChunkPass, chunk_pass, sum_over_chunks


class Loss(NamedTuple):
    """Sums over tokens, in fp32: `total` carries the gradient, the other two are for the record."""

    total: Tensor
    nll_sum: Tensor
    z_sum: Tensor


def plain_loss(
    hidden_ND: Tensor, table_VD: Tensor, targets_N: Tensor, cap: float, z_loss: float, scale: float = 1.0
) -> Loss:
    """The reference: holds all logits [N, V], differentiated by autograd."""
    logits_NV = F.linear(hidden_ND, table_VD.to(hidden_ND.dtype)).float()
    logits_NV = cap * torch.tanh(logits_NV / cap)
    nll_sum = F.cross_entropy(logits_NV, targets_N, reduction="sum")
    z_sum = logits_NV.logsumexp(dim=-1).square().sum()
    return Loss(scale * (nll_sum + z_loss * z_sum), nll_sum.detach(), z_sum.detach())


def hard_gradient(
    logits_CV: Tensor, targets_C: Tensor, z_loss: float, weight: float | Tensor = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d (weight * nll + z_loss * z) / d l [C, V], the logsumexp [C], and the sums of nll and z over these tokens."""
    lse_C = logits_CV.logsumexp(dim=-1)
    nll = (lse_C - logits_CV.gather(1, targets_C[:, None]).squeeze(1)).sum()
    # d lse = p, d(lse^2) = 2 lse p
    is_target_CV = targets_C[:, None] == torch.arange(logits_CV.size(1), device=targets_C.device)
    d_CV = (logits_CV - lse_C[:, None]).exp() * (weight + 2 * z_loss * lse_C[:, None])
    return torch.where(is_target_CV, d_CV - weight, d_CV), lse_C, nll, lse_C.square().sum()


class CrossEntropy(NamedTuple):
    """nll + z_loss * z of each token, whose targets are ids [C]; the sums are nll and z."""

    z_loss: float

    def gradient(self, logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        d_CV, _, nll, z = hard_gradient(logits_CV, targets_C, self.z_loss)
        return d_CV, (nll, z)

    def total(self, sums: tuple[Tensor, ...]) -> Tensor:
        nll, z = sums
        return nll + self.z_loss * z


def chunked_loss(
    hidden_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    cap: float,
    z_loss: float,
    scale: float | Tensor = 1.0,
    run: ChunkPass = chunk_pass,
) -> Loss:
    """The same as plain_loss in the memory of a chunk; `scale` and `run` as in sum_over_chunks."""
    total, (nll, z) = sum_over_chunks(
        CrossEntropy(z_loss), hidden_ND, table_VD, lambda start, stop: targets_N[start:stop], cap, scale, run
    )
    return Loss(total, nll, z)
