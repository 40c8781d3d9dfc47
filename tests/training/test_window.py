"""Attention in narrow bands is attention over a window, forward and backward."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from shard.model import local_attention
from shard.training import window as window_module
from shard.training.window import flash_window_attention, flash_window_works


@pytest.fixture
def any_window(monkeypatch):
    """Windows of a few tokens, too."""
    monkeypatch.setattr(window_module, "SMALLEST_WINDOW", 2)


def compare(batch: int, num_tokens: int, window: int, dtype: torch.dtype, tolerance: float, attend) -> None:
    torch.manual_seed(num_tokens)
    inputs = [torch.randn(batch, 3, num_tokens, 16).to(dtype).requires_grad_() for _ in range(3)]
    weights = torch.randn(batch, 3, num_tokens, 16).to(dtype)
    got, expected = attend(*inputs, window), local_attention(*inputs, window)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    grads = [torch.autograd.grad((y * weights).sum(), inputs) for y in (got, expected)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 15, 16, 17, 40, 131])
@pytest.mark.parametrize("window", [2, 3, 8])
def test_equals_local_attention(any_window, num_tokens, window):
    compare(2, num_tokens, window, torch.float32, 1e-5, flash_window_attention)


def test_equals_local_attention_at_a_real_window():
    compare(1, 1100, 256, torch.float32, 1e-5, flash_window_attention)


def test_equals_local_attention_over_many_blocks():
    compare(2, 1500, 256, torch.float32, 1e-5, flash_window_attention)


def test_what_the_compiler_is_told_of_the_operators_holds():
    """Shapes, strides and gradients, by torch's own check of operators."""
    for layout in (lambda x: x, lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)):
        q, k, v = (layout(torch.randn(2, 17, 3, 16)).requires_grad_() for _ in range(3))
        torch.library.opcheck(window_module.window_attention, (q, k, v, 8, 3))


def test_is_close_in_bf16():
    compare(1, 700, 256, torch.bfloat16, 3e-2, flash_window_attention)


def test_scores_far_from_zero_do_not_overflow(any_window):
    """No score is exponentiated alone, but its difference to the logsumexp of the row."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = ((100 * torch.randn(1, 2, 20, 16, generator=generator)).requires_grad_() for _ in range(3))
    got, expected = flash_window_attention(q, k, v, 4), local_attention(q, k, v, 4)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    for a, b in zip(*(torch.autograd.grad(y.sum(), (q, k, v)) for y in (got, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=0.1)  # sums of terms of up to 1e5 that cancel


def test_small_windows_take_the_masked_way(monkeypatch):
    """The kernels gain nothing on small blocks."""

    def refuse(*args):
        raise AssertionError("called")

    monkeypatch.setattr(window_module, "window_attention", refuse)
    q, k, v = (torch.randn(1, 2, 300, 16) for _ in range(3))
    assert torch.equal(flash_window_attention(q, k, v, 64), local_attention(q, k, v, 64))
    assert torch.equal(flash_window_attention(q, k, v, 300), local_attention(q, k, v, 300))
    with pytest.raises(AssertionError, match="called"):
        flash_window_attention(q, k, v, 256)


def test_the_same_bits_every_time():
    torch.use_deterministic_algorithms(True)
    compare(1, 600, 256, torch.float32, 1e-5, flash_window_attention)
    q, k, v = (torch.randn(1, 2, 600, 16, requires_grad=True) for _ in range(3))
    results = [torch.autograd.grad(flash_window_attention(q, k, v, 256).square().sum(), (q, k, v)) for _ in range(3)]
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


def test_traced_by_the_compiler_or_computed_twice_it_gives_the_same_bits():
    """In one graph, and within torch's checkpoints, which `recompute` is made of."""
    q, k, v = (torch.randn(1, 2, 700, 16, requires_grad=True) for _ in range(3))

    def attend(q, k, v):
        return flash_window_attention(q, k, v, 256)

    def again(q, k, v):
        return checkpoint(attend, q, k, v, use_reentrant=False)

    traced = torch.compile(attend, backend="aot_eager", fullgraph=True)
    results = []
    for function in (attend, traced, again):
        y = function(q, k, v)
        results.append([y, *torch.autograd.grad(y.square().sum(), (q, k, v))])
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_agrees(dtype):
    works, reason = flash_window_works(dtype)
    assert works, reason
    assert "differs from the masked one by" in reason


def test_a_probe_that_computes_something_else_is_refused(monkeypatch):
    real = window_module.flash_window_attention
    monkeypatch.setattr(window_module, "flash_window_attention", lambda q, k, v, window: real(q, k, v, window - 1))
    monkeypatch.setattr(window_module, "SMALLEST_WINDOW", 200)
    assert not flash_window_works(torch.float32)[0]


def test_a_torch_without_the_kernels_gives_its_reason(monkeypatch):
    def missing(*args):
        raise AttributeError("'_OpNamespace' 'aten' object has no attribute")

    monkeypatch.setattr(window_module, "_attend", missing)
    works, reason = flash_window_works(torch.float32)
    assert not works
    assert "cannot be used so ('_OpNamespace' 'aten' object" in reason
