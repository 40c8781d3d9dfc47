"""Sparse targets: what is drawn has the right mean, what is cut off has not, and entries survive packing.

The statistical tests are of means over thousands of draws with a fixed seed, against their own standard error.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from shard.distillation.entries import Entries, join_entries, pad_entries
from shard.distillation.loss import DenseTargets, SparseTargets, Targets, chunked_distilled_loss
from shard.distillation.sparse import (
    count_draws,
    draw_independent,
    draw_systematic,
    entropy,
    sampled_entries,
    top_k_entries,
)

V, SAMPLES, CACHES = 40, 8, 4000


@pytest.fixture(scope="module")
def log_p() -> Tensor:
    """Six distributions: nearly all on one id, spread, and in between."""
    generator = torch.Generator().manual_seed(3)
    sharpness = torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0, 8.0])[:, None]
    return (torch.randn(6, V, generator=generator) * sharpness).log_softmax(dim=-1)


def systematic(log_p: Tensor, generator: torch.Generator) -> Tensor:
    return draw_systematic(log_p, torch.rand(len(log_p), generator=generator, dtype=torch.float64), SAMPLES)


def independent(log_p: Tensor, generator: torch.Generator) -> Tensor:
    return draw_independent(log_p, SAMPLES, generator)


def counts_of(ids: Tensor) -> Tensor:
    """Draws [C, S] as counts [C, V]."""
    return torch.zeros(len(ids), V).scatter_add(1, ids, torch.ones_like(ids, dtype=torch.float32))


def repeat(log_p: Tensor, times: int) -> Tensor:
    return log_p.repeat_interleave(times, dim=0)


@pytest.mark.parametrize("draw", [systematic, independent])
def test_draws_have_the_mean_of_the_distribution(
    log_p: Tensor, draw: Callable[[Tensor, torch.Generator], Tensor]
) -> None:
    ids = draw(repeat(log_p, CACHES), torch.Generator().manual_seed(0))
    assert (ids.diff(dim=1) >= 0).all()
    shares = (counts_of(ids) / SAMPLES).double().unflatten(0, (6, CACHES))
    p = log_p.double().exp()
    error = (p * (1 - p) / SAMPLES / CACHES).sqrt()  # of independent draws; systematic ones have less
    z = (shares.mean(dim=1) - p) / error.clamp(min=1e-6)
    assert z[p > 1e-3].abs().max() < 4.5  # rarer ones came too seldom for that
    assert (shares.mean(dim=1) - p).abs().max() < 0.01


def test_systematic_draws_are_never_more_than_one_off(log_p: Tensor) -> None:
    ids = systematic(repeat(log_p, 500), torch.Generator().manual_seed(0))
    off = counts_of(ids) - SAMPLES * repeat(log_p, 500).exp()
    assert off.abs().max() < 1 + 1e-4


def test_systematic_draws_spread_less_than_independent_ones(log_p: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    variances = [
        (counts_of(draw(repeat(log_p, 1000), generator)).unflatten(0, (6, 1000)).var(dim=1)).sum()
        for draw in (systematic, independent)
    ]
    assert variances[0] < 0.6 * variances[1]


def test_edges_of_the_uniform_number(log_p: Tensor) -> None:
    """0 and the last float below 1 stay within the vocabulary, also where a token has all of the mass."""
    certain = torch.full((2, V), -1e4)
    certain[0, 0] = certain[1, V - 1] = 0.0
    for uniform in (0.0, 1 - 2**-53):
        ids = draw_systematic(certain, torch.full((2,), uniform, dtype=torch.float64), SAMPLES)
        assert ids.tolist() == [[0] * SAMPLES, [V - 1] * SAMPLES]


# Bias, where it matters: of the gradient.


def gradient(soft: Targets) -> Tensor:
    """Of the KL divergence with respect to hidden states [C, D], in fp64, for a student that is not the teacher."""
    generator = torch.Generator().manual_seed(11)
    num = len(soft.hidden) if isinstance(soft, DenseTargets) else len(soft.ids)
    hidden = torch.randn(6, 5, generator=generator).repeat_interleave(num // 6, dim=0).requires_grad_()
    table = torch.randn(V, 5, generator=generator)
    targets = torch.zeros(num, dtype=torch.int64)
    total = chunked_distilled_loss(hidden, table, targets, soft, 1.0, 30.0, 0.0).total
    return torch.autograd.grad(total, hidden)[0].double()


def as_targets(ids: Tensor) -> SparseTargets:
    padded, counts = pad_entries(count_draws(ids, torch.zeros(len(ids))), SAMPLES)
    return SparseTargets(torch.from_numpy(padded), torch.from_numpy(counts) / SAMPLES)


@pytest.mark.parametrize("draw", [systematic, independent])
def test_the_gradient_of_sampled_targets_is_not_biased(
    log_p: Tensor, draw: Callable[[Tensor, torch.Generator], Tensor]
) -> None:
    exact = gradient(DenseTargets(log_p))
    draws = gradient(as_targets(draw(repeat(log_p, CACHES), torch.Generator().manual_seed(1)))).unflatten(
        0, (6, CACHES)
    )
    error = draws.std(dim=1) / CACHES**0.5
    z = (draws.mean(dim=1) - exact) / error.clamp(min=1e-7)
    assert z.abs().max() < 4.5
    assert (error.norm() / exact.norm()) < 0.01, "a bias of a few per cent would show"


def test_the_gradient_of_the_likeliest_ids_is_biased(log_p: Tensor) -> None:
    """As many ids as draws: alone, and with the mass of the tail, which says nothing of its shape."""
    exact = gradient(DenseTargets(log_p))
    probs, ids = log_p.exp().topk(SAMPLES, dim=-1)
    alone = gradient(SparseTargets(ids, probs / probs.sum(dim=-1, keepdim=True)))
    with_tail = gradient(SparseTargets(ids, probs, 1 - probs.sum(dim=-1)))
    for biased in (alone, with_tail):
        assert (biased - exact).norm() / exact.norm() > 0.1, "ten times what chance leaves of the sampled ones"


def test_the_divergence_of_sampled_targets_is_that_of_the_distribution_on_average(log_p: Tensor) -> None:
    hidden, table = torch.randn(6, 5, generator=torch.Generator().manual_seed(4)), torch.randn(V, 5)
    targets = torch.zeros(6, dtype=torch.int64)

    def divergence(soft: Targets, times: int) -> float:
        loss = chunked_distilled_loss(
            hidden.repeat_interleave(times, dim=0), table, targets.repeat(times), soft, 1.0, 30.0, 0.0
        )
        return loss.kl_sum.item() / times

    ids = systematic(repeat(log_p, CACHES), torch.Generator().manual_seed(1))
    soft = as_targets(ids)._replace(entropy=entropy(repeat(log_p, CACHES)))
    assert divergence(soft, CACHES) == pytest.approx(divergence(DenseTargets(log_p), 1), rel=5e-3)


# Packing.


def test_draws_are_counted(log_p: Tensor) -> None:
    ids = torch.tensor([[1, 1, 1, 4], [0, 2, 2, 39], [5, 5, 5, 5]])
    entries = count_draws(ids, torch.tensor([0.5, 1.0, 0.0]))
    assert entries.num.tolist() == [2, 3, 1]
    assert entries.ids.tolist() == [1, 4, 0, 2, 39, 5]
    assert entries.values.tolist() == [3, 1, 1, 2, 1, 4]
    assert entries.values.dtype == np.uint8
    padded, values = pad_entries(entries, 4)
    assert padded.tolist() == [[1, 4, 0, 0], [0, 2, 39, 0], [5, 0, 0, 0]]
    assert values.tolist() == [[3, 1, 0, 0], [1, 2, 1, 0], [4, 0, 0, 0]]


def test_entries_add_up_and_join(log_p: Tensor) -> None:
    uniform = torch.rand(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = sampled_entries(log_p, uniform, 300)
    assert whole.values.dtype == np.uint16
    assert whole.num.dtype == np.uint16
    assert pad_entries(whole, 300)[1].sum(axis=1).tolist() == [300] * 6
    halves = [sampled_entries(log_p[:2], uniform[:2], 300), sampled_entries(log_p[2:], uniform[2:], 300)]
    for a, b in zip(join_entries(halves), whole, strict=True):
        np.testing.assert_array_equal(a, b)


def test_top_k_is_what_torch_says(log_p: Tensor) -> None:
    entries: Entries = top_k_entries(log_p, 5)
    values, ids = log_p.topk(5, dim=-1)
    assert entries.ids.tolist() == ids.flatten().tolist()
    np.testing.assert_allclose(entries.values.astype(np.float32), values.flatten(), rtol=1e-3)
    np.testing.assert_allclose(entries.entropy.astype(np.float32), entropy(log_p), rtol=1e-3)
