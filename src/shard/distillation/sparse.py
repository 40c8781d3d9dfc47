"""Sparse targets: a few ids of a teacher's distribution in place of all of it.

Sampled: `samples` ids drawn from p, kept as counts. A count divided by `samples` has the mean p exactly, so that what
is linear in p, as the forward KL's gradient is, has the mean that all of p would give. This is the unbiased form of
Anshumann et al., "Sparse Logit Sampling" (ACL 2025, arXiv 2503.16870), with systematic draws in place of independent
ones: one uniform number u for a token gives the quantiles (u + 0, ..., u + samples - 1) / samples of p. The mean is the
same, and a count lies within 1 of samples * p.

Top-k: the k likeliest ids with their probabilities, and the mass of the rest. What the rest is like is not known: the
gradient is biased.
Shape suffixes: C tokens, V vocabulary, S draws, K targets; M entries of all tokens together.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shard.distillation.entries import Entries


def entropy(log_p_CV: Tensor) -> Tensor:
    """H(p) [C] in nats."""
    return -(log_p_CV.exp() * log_p_CV).sum(dim=-1)


def draw_systematic(log_p_CV: Tensor, uniform_C: Tensor, samples: int) -> Tensor:
    """`samples` ids of each token [C, S], in ascending order: the quantiles (u + s) / samples of p.

    The probabilities are summed as whole multiples of 2^-52: such sums do not depend on their order, while torch has no
    sum of fractions on CUDA that it would call deterministic.
    """
    cumulated_CV = (log_p_CV.double().exp() * 2.0**52).round().long().cumsum(dim=-1)
    steps_S = torch.arange(samples, device=log_p_CV.device, dtype=torch.float64)
    # Rounding keeps the last sum from being 1, and may make a point of it: that is of the last id with any mass.
    total_C1 = cumulated_CV[:, -1:].contiguous()
    points_CS = ((uniform_C[:, None] + steps_S) / samples * total_C1).long()
    ids_CS = torch.searchsorted(cumulated_CV, points_CS, right=True)
    return torch.minimum(ids_CS, torch.searchsorted(cumulated_CV, total_C1))


def draw_independent(log_p_CV: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """The plain twin: independent draws with replacement [C, S], in ascending order; unbiased too, more spread."""
    return torch.multinomial(log_p_CV.exp(), samples, replacement=True, generator=generator).sort(dim=-1).values


def count_draws(ids_CS: Tensor, entropy_C: Tensor) -> Entries:
    """The distinct ids of ascending draws, with how often each came."""
    is_first = np.ones(ids_CS.shape, dtype=bool)
    ids = ids_CS.cpu().numpy()
    is_first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    places = np.flatnonzero(is_first)
    counts = np.diff(places, append=ids.size)
    kind = np.uint8 if ids.shape[1] < 256 else np.uint16
    return Entries(is_first.sum(axis=1).astype(kind), ids.reshape(-1)[places], counts.astype(kind), _half(entropy_C))


def sampled_entries(log_p_CV: Tensor, uniform_C: Tensor, samples: int) -> Entries:
    """Systematic draws from the teacher's log-probabilities, counted. `uniform_C` is one number in [0, 1) a token."""
    return count_draws(draw_systematic(log_p_CV, uniform_C, samples), entropy(log_p_CV))


def top_k_entries(log_p_CV: Tensor, k: int) -> Entries:
    """The `k` likeliest ids of each token with their log-probabilities."""
    values_CK, ids_CK = log_p_CV.topk(k, dim=-1)
    num_C = np.full(len(log_p_CV), k, dtype=np.uint8 if k < 256 else np.uint16)
    return Entries(num_C, ids_CK.cpu().numpy().reshape(-1), _half(values_CK).reshape(-1), _half(entropy(log_p_CV)))


def _half(values: Tensor) -> NDArray[np.float16]:
    return values.to(torch.float16).cpu().numpy()
