"""The chunked loss with a teacher against the plain one, and both against formulas in fp64 and finite differences."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from shard.distillation.loss import (
    DenseTargets,
    SparseTargets,
    Targets,
    chunked_distilled_loss,
    plain_distilled_loss,
)
from shard.training import chunks
from shard.training.loss import chunked_loss

V, D, E, K = 50, 12, 9, 6
KINDS = ["dense", "capped", "logits", "few rows", "sampled", "top_k"]


def make(num_tokens: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Hidden states, a table and targets whose logits reach well into the cap's bend."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, D, generator=generator).to(dtype).requires_grad_()
    table = torch.randn(V, D, generator=generator).requires_grad_()
    return hidden, table, torch.randint(V, (num_tokens,), generator=generator)


def teacher_logits(soft: DenseTargets) -> torch.Tensor:
    """The teacher's logits in fp64, over the student's ids."""
    logits = soft.hidden.double() if soft.table is None else soft.hidden.double() @ soft.table.double().T
    logits = logits if soft.cap is None else soft.cap * torch.tanh(logits / soft.cap)
    missing = torch.full((len(logits), max(0, V - logits.size(1))), -1e4, dtype=torch.float64)
    return torch.cat([logits[:, :V], missing], dim=1)


def make_teacher(kind: str, num_tokens: int, seed: int = 1) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, E, generator=generator)
    rows = {"few rows": V - 3, "capped": V + 5}.get(kind, V)
    table = torch.randn(rows, E, generator=generator)
    if kind in ("dense", "few rows"):
        return DenseTargets(hidden, table)
    if kind == "capped":
        return DenseTargets(hidden, table, cap=3.0)
    if kind == "logits":
        return DenseTargets(hidden @ table.T)
    probs, ids = (hidden @ table.T).softmax(dim=-1).topk(K, dim=-1)
    if kind == "top_k":
        return SparseTargets(ids, probs, 1 - probs.sum(dim=-1))
    counts = torch.randint(1, 5, ids.shape, generator=generator).float()
    counts[:, -2:], ids[:, -2:] = 0, 0  # padding, as it comes from the disk
    return SparseTargets(ids, counts / counts.sum(dim=-1, keepdim=True), None, torch.rand(num_tokens))


def fp64_loss(hidden, table, targets, soft, weight, cap, z_loss, temperature, scale):
    """The formulas of the module's docstring in fp64, with gradients by autograd."""
    hidden, table = (x.detach().double().requires_grad_() for x in (hidden, table))
    logits = cap * torch.tanh(hidden @ table.T / cap)
    lse = logits.exp().sum(dim=-1).log()
    nll = (lse - logits[torch.arange(len(targets)), targets]).sum()
    q = (logits / temperature).softmax(dim=-1)
    if isinstance(soft, DenseTargets):
        p = (teacher_logits(soft) / temperature).softmax(dim=-1)
        kl = (torch.special.xlogy(p, p) - p * q.log()).sum()
    else:
        p = torch.zeros_like(q).scatter_add(1, soft.ids, soft.probs.double())
        kl = -(p * q.log()).sum()
        if soft.tail is not None:
            outside = 1 - q.gather(1, soft.ids).sum(dim=-1)
            tail = soft.tail.double()
            kl = kl - (tail * outside.log()).sum() + torch.special.xlogy(tail, tail).sum()
            kl = kl + torch.special.xlogy(p, p).sum()
        else:
            kl = kl - soft.entropy.double().sum()
    total = scale * ((1 - weight) * nll + weight * temperature**2 * kl + z_loss * lse.square().sum())
    return total, nll, lse.square().sum(), kl, torch.autograd.grad(total, (hidden, table))


@pytest.fixture
def seven_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of seven tokens, which divide few of the lengths below."""
    monkeypatch.setattr(chunks, "chunk_tokens", lambda *_: 7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("num_tokens", [1, 7, 20])
@pytest.mark.parametrize("compute", [plain_distilled_loss, chunked_distilled_loss])
def test_equals_fp64(
    seven_rows: None, compute: Callable[..., Any], num_tokens: int, weight: float, temperature: float, kind: str
) -> None:
    hidden, table, targets = make(num_tokens)
    soft = make_teacher(kind, num_tokens)
    arguments = (hidden, table, targets, soft, weight, 6.0, 0.01, temperature, 1 / num_tokens)
    got = compute(*arguments)
    grads = torch.autograd.grad(got.total, (hidden, table))
    *sums, expected_grads = fp64_loss(*arguments)
    for value, expected in zip(got, sums, strict=True):
        assert value.item() == pytest.approx(expected.item(), rel=2e-5, abs=2e-5)
    for grad, expected in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_directional_derivative_by_finite_differences(seven_rows: None, kind: str) -> None:
    """Not by autograd: the chunked gradient predicts how the chunked value changes."""
    hidden, table, targets = make(20)
    soft = make_teacher(kind, 20)

    def value(h: Any, t: Any) -> Any:
        return chunked_distilled_loss(h, t, targets, soft, 0.6, 6.0, 0.1, 1.5, 1 / 20).total

    d_hidden, d_table = torch.autograd.grad(value(hidden, table), (hidden, table))
    step = 1e-2
    for seed in range(3):
        torch.manual_seed(seed)
        u, w = torch.randn_like(hidden), torch.randn_like(table)
        ends = [value(hidden + sign * step * u, table + sign * step * w).item() for sign in (1, -1)]
        predicted = ((d_hidden * u).sum() + (d_table * w).sum()).item()
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(predicted, rel=1e-2, abs=1e-3)


def test_without_weight_it_is_the_loss_without_a_teacher(seven_rows: None) -> None:
    hidden, table, targets = make(20)
    soft = make_teacher("dense", 20)
    got = chunked_distilled_loss(hidden, table, targets, soft, 0.0, 30.0, 1e-4, 2.0, 0.05)
    expected = chunked_loss(hidden, table, targets, 30.0, 1e-4, 0.05)
    torch.testing.assert_close(got[:3], tuple(expected))
    for a, b in zip(*(torch.autograd.grad(x.total, (hidden, table)) for x in (got, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_the_divergence_from_itself_is_nothing() -> None:
    """A student that is its own teacher has neither a KL divergence nor a gradient of it."""
    hidden, table, targets = make(15)
    for temperature in (1.0, 3.0):
        soft = DenseTargets(hidden.detach(), table.detach(), cap=6.0)
        got = chunked_distilled_loss(hidden, table, targets, soft, 1.0, 6.0, 0.0, temperature)
        assert abs(got.kl_sum.item()) < 1e-4
        for grad in torch.autograd.grad(got.total, (hidden, table)):
            torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-5)


def test_a_weight_may_be_a_tensor() -> None:
    hidden, table, targets = make(9)
    soft = make_teacher("sampled", 9)
    a, b = (chunked_distilled_loss(hidden, table, targets, soft, w, 6.0, 0.1) for w in (0.3, torch.tensor(0.3)))
    torch.testing.assert_close(a, b)


def test_bf16_is_close_and_keeps_the_dtypes(seven_rows: None) -> None:
    hidden, table, targets = make(40, dtype=torch.bfloat16)
    soft = make_teacher("dense", 40)
    got = chunked_distilled_loss(hidden, table, targets, soft, 0.5, 30.0, 1e-4, 1.0, 1 / 40)
    d_hidden, d_table = torch.autograd.grad(got.total, (hidden, table))
    assert {x.dtype for x in got} == {d_table.dtype} == {torch.float32}
    assert d_hidden.dtype == torch.bfloat16
    *_, (expected_d_hidden, expected_d_table) = fp64_loss(hidden, table, targets, soft, 0.5, 30.0, 1e-4, 1.0, 1 / 40)
    assert (d_hidden.double() - expected_d_hidden).norm() / expected_d_hidden.norm() < 0.02
    assert (d_table.double() - expected_d_table).norm() / expected_d_table.norm() < 0.02


@pytest.mark.parametrize("kind", ["dense", "sampled", "top_k"])
def test_never_holds_all_logits_of_student_or_teacher(
    largest_tensor, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(chunks, "chunk_tokens", lambda *_: 40)
    hidden, table, targets = make(1000)
    soft = make_teacher(kind, 1000)
    largest = {}
    for compute in (plain_distilled_loss, chunked_distilled_loss):
        with largest_tensor() as mode:
            compute(hidden, table, targets, soft, 0.5, 30.0, 1e-4).total.backward()
        largest[compute] = mode.elements
    assert largest[plain_distilled_loss] == 1000 * V
    assert largest[chunked_distilled_loss] <= max(40 * V, 1000 * D)
