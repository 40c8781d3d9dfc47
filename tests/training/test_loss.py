"""The chunked loss against the plain one, and both against torch's cross-entropy and autograd."""

import math

import pytest
import torch
import torch.nn.functional as F

from shard.training import chunks
from shard.training.chunks import chunk_tokens
from shard.training.loss import chunked_loss, plain_loss

V, D = 50, 12


def make(num_tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0):
    """Return hidden states, a table and targets whose logits reach well into the cap's bend."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, D, generator=generator).to(dtype).requires_grad_()
    table = torch.randn(V, D, generator=generator).requires_grad_()
    return hidden, table, torch.randint(V, (num_tokens,), generator=generator)


def fp64_loss(hidden, table, targets, cap, z_loss, scale):
    """Return the formulas of the module's docstring in fp64, with gradients by autograd."""
    hidden, table = (x.detach().double().requires_grad_() for x in (hidden, table))
    logits = cap * torch.tanh(hidden @ table.T / cap)
    lse = logits.exp().sum(dim=-1).log()
    nll = lse - logits[torch.arange(len(targets)), targets]
    total = scale * (nll + z_loss * lse**2).sum()
    return total, nll.sum(), lse.square().sum(), torch.autograd.grad(total, (hidden, table))


@pytest.fixture
def seven_rows(monkeypatch):
    """Chunks of seven tokens, which divide few of the lengths below."""
    monkeypatch.setattr(chunks, "chunk_tokens", lambda *_: 7)


@pytest.mark.parametrize("num_tokens", [1, 6, 7, 8, 14, 20])
@pytest.mark.parametrize("cap", [4.0, 30.0])
@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.3])
@pytest.mark.parametrize("compute", [plain_loss, chunked_loss])
def test_equals_fp64(seven_rows, compute, num_tokens, cap, z_loss):
    hidden, table, targets = make(num_tokens)
    scale = 1 / num_tokens
    got = compute(hidden, table, targets, cap, z_loss, scale)
    d_hidden, d_table = torch.autograd.grad(got.total, (hidden, table))
    total, nll_sum, z_sum, (expected_d_hidden, expected_d_table) = fp64_loss(hidden, table, targets, cap, z_loss, scale)
    assert got.total.item() == pytest.approx(total.item(), rel=1e-6)
    assert got.nll_sum.item() == pytest.approx(nll_sum.item(), rel=1e-6)
    assert got.z_sum.item() == pytest.approx(z_sum.item(), rel=1e-6)
    torch.testing.assert_close(d_hidden.double(), expected_d_hidden, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(d_table.double(), expected_d_table, rtol=1e-5, atol=1e-6)


def test_chunked_equals_plain_in_fp32(seven_rows):
    hidden, table, targets = make(40)
    grads = []
    for compute in (plain_loss, chunked_loss):
        result = compute(hidden, table, targets, 30.0, 1e-4, 1 / 40)
        grads.append((result.total, *torch.autograd.grad(result.total, (hidden, table))))
    for plain, chunked in zip(*grads, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-6, atol=1e-6)


def test_equals_torch_cross_entropy_without_cap_and_z_loss(seven_rows):
    hidden, table, targets = make(23)
    expected = F.cross_entropy(hidden @ table.T, targets, reduction="sum")
    expected_grads = torch.autograd.grad(expected, (hidden, table))
    got = chunked_loss(hidden, table, targets, cap=1e5, z_loss=0.0)
    got_grads = torch.autograd.grad(got.total, (hidden, table))
    torch.testing.assert_close(got.total, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.nll_sum, expected.detach(), rtol=1e-5, atol=1e-5)
    for a, b in zip(got_grads, expected_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)  # tanh(x / 1e5) * 1e5 in fp32 has few digits


def test_bf16_is_close_and_keeps_the_dtypes(seven_rows):
    """bf16 products: logits rounded to 8 bits, so values to about 1 % and gradients to about 2 %."""
    hidden, table, targets = make(40, torch.bfloat16)
    got = chunked_loss(hidden, table, targets, 30.0, 1e-4, 1 / 40)
    d_hidden, d_table = torch.autograd.grad(got.total, (hidden, table))
    assert got.total.dtype == got.nll_sum.dtype == got.z_sum.dtype == d_table.dtype == torch.float32
    assert d_hidden.dtype == torch.bfloat16
    total, _, _, (expected_d_hidden, expected_d_table) = fp64_loss(hidden, table, targets, 30.0, 1e-4, 1 / 40)
    assert got.total.item() == pytest.approx(total.item(), rel=1e-2)
    assert (d_hidden.double() - expected_d_hidden).norm() / expected_d_hidden.norm() < 0.02
    assert (d_table.double() - expected_d_table).norm() / expected_d_table.norm() < 0.02


def test_bf16_gradient_does_not_vanish_at_a_small_scale(seven_rows):
    """`scale` is applied before rounding, so one token among a million keeps its gradient's digits."""
    hidden, table, targets = make(9, torch.bfloat16)
    d_table = {}
    for scale in (1.0, 2.0**-20):
        total = chunked_loss(hidden, table, targets, 30.0, 0.0, scale).total
        d_table[scale] = torch.autograd.grad(total, table)[0]
    torch.testing.assert_close(d_table[2.0**-20] * 2.0**20, d_table[1.0], rtol=1e-5, atol=1e-6)


def test_table_gradient_is_summed_in_fp32(monkeypatch):
    """A thousand equal tokens in chunks of one: a sum in bf16 would stop growing after 256 of them."""
    monkeypatch.setattr(chunks, "chunk_tokens", lambda *_: 1)
    hidden, table, targets = make(1, torch.bfloat16)
    one = torch.autograd.grad(chunked_loss(hidden, table, targets, 30.0, 0.0).total, table)[0]
    many_hidden = hidden.detach().expand(1000, D).clone().requires_grad_()
    many = torch.autograd.grad(chunked_loss(many_hidden, table, targets.expand(1000), 30.0, 0.0).total, table)[0]
    torch.testing.assert_close(many, 1000 * one, rtol=1e-4, atol=1e-4)


def test_scale_and_incoming_gradient_multiply():
    hidden, table, targets = make(9)
    base = torch.autograd.grad(chunked_loss(hidden, table, targets, 30.0, 0.1).total, (hidden, table))
    scaled = chunked_loss(hidden, table, targets, 30.0, 0.1, scale=0.25)
    grads = torch.autograd.grad(8 * scaled.total, (hidden, table))
    for a, b in zip(grads, base, strict=True):
        torch.testing.assert_close(a, 2 * b)
    assert scaled.nll_sum == chunked_loss(hidden, table, targets, 30.0, 0.1).nll_sum, "scale is not for the record"


def test_directional_derivative_by_finite_differences(seven_rows):
    """Not by autograd: the chunked gradient predicts how the chunked value changes."""
    hidden, table, targets = make(20)
    total = chunked_loss(hidden, table, targets, 6.0, 0.1, 1 / 20).total
    d_hidden, d_table = torch.autograd.grad(total, (hidden, table))
    step = 1e-2
    for seed in range(3):
        torch.manual_seed(seed)
        u, w = torch.randn_like(hidden), torch.randn_like(table)
        ends = [
            chunked_loss(hidden + sign * step * u, table + sign * step * w, targets, 6.0, 0.1, 1 / 20).total.item()
            for sign in (1, -1)
        ]
        predicted = ((d_hidden * u).sum() + (d_table * w).sum()).item()
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(predicted, rel=1e-2, abs=1e-3)


def test_only_the_total_carries_a_gradient():
    hidden, table, targets = make(5)
    result = chunked_loss(hidden, table, targets, 30.0, 1e-4)
    assert result.total.requires_grad
    assert not result.nll_sum.requires_grad
    assert not result.z_sum.requires_grad


def test_a_uniform_model_has_log_v():
    hidden, table = torch.zeros(6, D), torch.randn(V, D)
    result = chunked_loss(hidden, table, torch.arange(6), 30.0, 0.5)
    assert result.nll_sum.item() == pytest.approx(6 * math.log(V), rel=1e-6)
    assert result.z_sum.item() == pytest.approx(6 * math.log(V) ** 2, rel=1e-6)
    assert result.total.item() == pytest.approx(6 * (math.log(V) + 0.5 * math.log(V) ** 2), rel=1e-6)


def test_never_holds_all_logits(largest_tensor, monkeypatch):
    monkeypatch.setattr(chunks, "chunk_tokens", lambda *_: 40)
    hidden, table, targets = make(1000)
    largest = {}
    for compute in (plain_loss, chunked_loss):
        with largest_tensor() as mode:
            compute(hidden, table, targets, 30.0, 1e-4).total.backward()
        largest[compute] = mode.elements
    assert largest[plain_loss] == 1000 * V
    assert largest[chunked_loss] <= max(40 * V, 1000 * D)


def test_262_144_tokens_of_vocabulary_hold_the_logits_of_a_chunk(largest_tensor):
    """All logits would be three times these; D = 4, since it is their number that counts."""
    vocab_size, num_tokens = 262_144, 384
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, 4, requires_grad=True)
    table = (0.1 * torch.randn(vocab_size, 4)).requires_grad_()
    targets = torch.randint(vocab_size, (num_tokens,))
    with largest_tensor() as mode:
        loss = chunked_loss(hidden, table, targets, 30.0, 1e-4, 1 / num_tokens)
        loss.total.backward()
    assert mode.elements == 128 * vocab_size
    assert loss.nll_sum.item() / num_tokens == pytest.approx(math.log(vocab_size), rel=0.02)


def test_a_chunk_of_a_large_vocabulary_is_worth_reading_the_table_for():
    """On a CPU: 512 tokens of 8,192 logits, as the golden losses were made with; never fewer than 128."""
    assert chunk_tokens(8192, "cpu") == 512
    assert chunk_tokens(262_144, torch.device("cpu")) == 128
    assert chunk_tokens(262_144, "cuda") == 512
