"""Muon against torch's own, against plain loops, and against singular values taken exactly."""

import math

import pytest
import torch
import torch._dynamo

from shard.muon import (
    GRAM_RESTARTS,
    POLAR_EXPRESS,
    QUINTIC,
    RESTORABLE,
    Muon,
    iterate,
    iterate_gram,
    newton_schulz,
    normalize,
    orthogonalize,
)

SHAPES = [(24, 8), (8, 24), (16, 16)]


def random_parameters(shapes, seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_grads(params, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = scale * torch.randn(p.shape, generator=generator)


def with_singular_values(rows: int, columns: int, values: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(rows, len(values), generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, len(values), generator=generator, dtype=torch.float64))[0]
    return (left * values.double() @ right.T).float()


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_equals_torch_muon(nesterov, weight_decay):
    """Both run Newton-Schulz in bf16, in products of another order: the distance travelled agrees to about 1 %."""
    shapes = SHAPES + SHAPES  # two of each, so that stacks are stacks
    ours, theirs, start = random_parameters(shapes), random_parameters(shapes), random_parameters(shapes)
    settings = {"lr": 0.05, "momentum": 0.9, "nesterov": nesterov, "weight_decay": weight_decay}
    our_muon = Muon(ours, **settings, method="quintic", dtype=torch.bfloat16)
    their_muon = torch.optim.Muon(theirs, **settings, ns_coefficients=QUINTIC[0], ns_steps=len(QUINTIC))
    for step in range(6):
        for params in (ours, theirs):
            give_grads(params, seed=step)
        our_muon.step()
        their_muon.step()
    for a, b, origin in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() / (b - origin).norm() < 0.02
        momentum = our_muon.state[a]["momentum"]
        torch.testing.assert_close(momentum, their_muon.state[b]["momentum_buffer"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["quintic", "polar_express"])
@pytest.mark.parametrize("shape", SHAPES)
def test_update_equals_the_formula_in_fp32(method, shape):
    """One parameter, momentum and Nesterov written out, the iteration as a plain loop in fp64."""
    (p,) = random_parameters([shape])
    muon = Muon([p], lr=0.1, momentum=0.8, nesterov=True, method=method, dtype=torch.float32)
    weight, momentum = p.detach().double().clone(), torch.zeros(shape, dtype=torch.float64)
    for step in range(4):
        give_grads([p], seed=step)
        g = p.grad.double()
        muon.step()
        momentum = 0.8 * momentum + 0.2 * g
        x = 0.8 * momentum + 0.2 * g
        x = x / x.norm() / (1.01 if method == "polar_express" else 1)
        for a, b, c in POLAR_EXPRESS if method == "polar_express" else QUINTIC:
            x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
        weight = weight - 0.1 * math.sqrt(max(1, shape[0] / shape[1])) * x
        torch.testing.assert_close(p.detach().double(), weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["quintic", "polar_express"])
def test_a_stack_equals_its_matrices_one_by_one(shape, method):
    torch.manual_seed(0)
    stack = torch.randn(5, *shape) * torch.logspace(-3, 3, 5)[:, None, None]
    together = orthogonalize(stack, method, torch.float32)
    assert together.shape == stack.shape
    for i in range(5):
        torch.testing.assert_close(together[i], orthogonalize(stack[i : i + 1], method, torch.float32)[0])


SPECTRA = {
    "flat": torch.ones(64),
    "one large": torch.cat([torch.ones(1), torch.full((63,), 1e-3)]),
    "three orders": torch.logspace(0, -3, 64),
    "six orders": torch.logspace(0, -6, 64),
    "low rank": torch.cat([torch.ones(8), torch.zeros(56)]),
}


@pytest.mark.parametrize("coefficients", [QUINTIC, POLAR_EXPRESS])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_iteration_on_the_gram_matrix_is_the_plain_one(spectrum, coefficients):
    """In fp64 the same function; in fp32 and fp16 nearer to it than the plain iteration in bf16, by far."""
    x = with_singular_values(64, 256, SPECTRA[spectrum]).double()[None]
    x = x / x.norm() / 1.01
    plain, fast = iterate(x, coefficients), iterate_gram(x, coefficients)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-8)
    torch.testing.assert_close(iterate_gram(x, coefficients, (2,)), plain, rtol=0, atol=1e-8)

    def error(y: torch.Tensor) -> float:
        return float((y.double() - plain).norm() / plain.norm())

    of_bf16 = error(iterate(x.bfloat16(), coefficients))
    for dtype, most in ((torch.float32, 5e-3), (torch.float16, 0.1)):
        found = error(iterate_gram(x.to(dtype), coefficients, GRAM_RESTARTS[dtype]))
        assert found < most
        assert found < of_bf16 / 3


@pytest.mark.parametrize("dtype", GRAM_RESTARTS)
def test_long_matrices_are_done_on_the_gram_matrix(dtype):
    for shape in ((2, 16, 32), (2, 32, 16)):
        x = normalize(torch.randn(shape), "polar_express", dtype)
        wide = x if shape[1] < shape[2] else x.mT
        expected = iterate_gram(wide, POLAR_EXPRESS, GRAM_RESTARTS[dtype])
        assert torch.equal(newton_schulz(x, "polar_express"), expected if wide is x else expected.mT)
    assert torch.equal(newton_schulz(x[:, :16], "polar_express"), iterate(x[:, :16], POLAR_EXPRESS))


@pytest.mark.parametrize("shape", [(64, 20), (20, 64), (20, 20)])
@pytest.mark.parametrize(("method", "low", "high"), [("quintic", 0.6, 1.25), ("polar_express", 0.65, 1.25)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_brings_singular_values_to_about_one(shape, method, low, high, dtype):
    """Of a spectrum over three orders of magnitude, the smallest just within what the sentinel calls restorable."""
    values = torch.logspace(0, math.log10(1.5 * RESTORABLE[method]), 20)
    values = values / values.norm()
    values = values.clamp(min=1.2 * RESTORABLE[method])
    matrix = with_singular_values(*shape, values)
    got = torch.linalg.svdvals(orthogonalize(matrix[None], method, dtype)[0].float())
    assert got.min() > (low - 0.1 if dtype == torch.bfloat16 else low)  # bf16 loses some of the smallest
    assert got.max() < high


@pytest.mark.parametrize("method", ["quintic", "polar_express"])
def test_leaves_what_is_below_the_sentinel_threshold_behind(method):
    """The number that the sentinel flags by is where the iteration really fails, not a guess."""
    values = torch.ones(10)
    values[-1] = 0.3 * RESTORABLE[method] * math.sqrt(9)
    got = torch.linalg.svdvals(orthogonalize(with_singular_values(10, 10, values)[None], method, torch.float32)[0])
    assert got[-1] < 0.4
    assert got[-2] > 0.65


def test_keeps_singular_vectors():
    matrix = with_singular_values(12, 6, torch.logspace(0, -1, 6))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalize(matrix[None], "polar_express", torch.float32)[0] @ vh.T
    assert (inner - inner.diag().diag()).abs().max() < 1e-4
    assert inner.diag().min() > 0.65


@pytest.mark.parametrize("method", ["quintic", "polar_express"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_zero_matrix_stays_zero(method, dtype):
    assert torch.equal(orthogonalize(torch.zeros(2, 8, 4), method, dtype), torch.zeros(2, 8, 4, dtype=dtype))
    (p,) = random_parameters([(8, 4)])
    before = p.detach().clone()
    muon = Muon([p], lr=0.1, method=method, dtype=dtype)
    p.grad = torch.zeros(8, 4)
    muon.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("shape", SHAPES)
def test_cautious_decay_equals_a_plain_loop(shape):
    """A weight decays only where the update does not grow it (update * w >= 0); the loop is over single weights."""
    lr, decay = 0.1, 0.5
    (p,), (undecayed,) = random_parameters([shape]), random_parameters([shape])
    common = {"lr": lr, "momentum": 0.9, "dtype": torch.float32}
    muon, plain = Muon([p], weight_decay=decay, cautious=True, **common), Muon([undecayed], **common)
    give_grads([p], seed=0)
    give_grads([undecayed], seed=0)
    before = p.detach().clone()
    muon.step()
    plain.step()
    after, plain_after = p.detach(), undecayed.detach()
    step = before - plain_after  # what the update takes away
    num_decayed = 0
    for i in range(shape[0]):
        for j in range(shape[1]):
            w = float(before[i, j])
            decays = float(step[i, j]) * w >= 0
            num_decayed += decays
            expected = w - (lr * decay * w if decays else 0.0) - float(step[i, j])
            assert float(after[i, j]) == pytest.approx(expected, abs=1e-6)
            if not decays:
                assert after[i, j] == plain_after[i, j], "decay worked against the update"
    assert 0 < num_decayed < p.numel(), "both cases must occur"


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_step_does_not_depend_on_the_scale_of_the_gradient(scale):
    """So a clipped gradient moves a matrix as far as one that is not."""
    a, b = random_parameters(SHAPES), random_parameters(SHAPES)
    for params, factor in ((a, 1.0), (b, scale)):
        muon = Muon(params, lr=0.1, dtype=torch.float32)
        for step in range(3):
            give_grads(params, step, factor)
            muon.step()
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_a_parameter_without_a_gradient_does_not_move():
    a, b = random_parameters([(6, 4), (6, 4)])
    before = b.detach().clone()
    muon = Muon([a, b], lr=0.1, weight_decay=0.1)
    a.grad = torch.ones(6, 4)
    muon.step()
    assert torch.equal(b, before)
    assert not muon.state[b]["momentum"].any()


def test_state_is_complete_at_step_zero():
    params = random_parameters(SHAPES)
    muon = Muon(params)
    assert [muon.state[p]["momentum"].shape for p in params] == [p.shape for p in params]
    assert len(muon.state_dict()["state"]) == len(SHAPES)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 5), ()])
def test_only_matrices_are_taken(shape):
    with pytest.raises(ValueError, match="takes matrices"):
        Muon([torch.nn.Parameter(torch.zeros(shape))])


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"quintic, polar_express.*'svd'"):
        Muon(random_parameters(SHAPES), method="svd")


@pytest.mark.parametrize("cautious", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("bad", [1.0, 1e30, float("nan"), float("inf")])
def test_a_step_that_is_skipped_changes_no_bit(cautious, nesterov, bad):
    """Whatever the gradients hold."""
    params = random_parameters(SHAPES)
    muon = Muon(params, lr=0.1, weight_decay=0.3, cautious=cautious, nesterov=nesterov)
    give_grads(params, seed=0)
    muon.step()
    before = [(p.detach().clone(), muon.state[p]["momentum"].clone()) for p in params]
    give_grads(params, seed=1)
    for p in params:
        p.grad[::2] *= bad
    muon.found_inf = torch.ones(())
    muon.step()
    for p, (weight, momentum) in zip(params, before, strict=True):
        assert torch.equal(p, weight)
        assert torch.equal(muon.state[p]["momentum"], momentum)
    muon.found_inf = torch.zeros(())
    muon.step()  # the flag alone decides
    assert bad != 1.0 or not torch.equal(params[0], before[0][0])


@pytest.mark.parametrize("cautious", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("nesterov", [True, False])
def test_a_step_that_is_not_skipped_is_the_plain_one_to_the_bit(cautious, decay, nesterov):
    guarded, plain = random_parameters(SHAPES), random_parameters(SHAPES)
    for params, found_inf in ((guarded, torch.zeros(())), (plain, None)):
        muon = Muon(params, lr=0.1, weight_decay=decay, cautious=cautious, nesterov=nesterov)
        muon.found_inf = found_inf
        for step in range(3):
            give_grads(params, step)
            muon.step()
    for p, q in zip(guarded, plain, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["quintic", "polar_express"])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e7])
def test_fp16_orthogonalises_gradients_beyond_its_range(shape, method, size):
    """A gradient of 1e-9 is zero in fp16, one of 1e7 infinite: both are brought to the order of one before the cast."""
    torch.manual_seed(3)
    # Singular values of one order, so that a wrong one is the fault of the range alone.
    matrix = with_singular_values(*shape, torch.linspace(1, 2, min(shape)))
    got = orthogonalize(size * matrix[None], method, torch.float16)
    assert got.dtype == torch.float16
    values = torch.linalg.svdvals(got[0].float())
    assert values.min() > 0.6
    assert values.max() < 1.25


@pytest.mark.parametrize("cautious", [True, False])
def test_compiled_it_is_the_plain_one(cautious):
    """Tall, wide, square, and stacks of experts; a rate and a momentum that change are no reason to compile again, and
    a step that is skipped changes no bit.
    """
    shapes = [*SHAPES, *SHAPES, (3, 8, 24)]
    compiled, plain = random_parameters(shapes), random_parameters(shapes)
    common = {"weight_decay": 0.3, "cautious": cautious, "dtype": torch.float32}
    fast, slow = Muon(compiled, compile=True, **common), Muon(plain, **common)
    torch._dynamo.utils.counters.clear()
    graphs = []
    for step in range(4):
        for muon, params in ((fast, compiled), (slow, plain)):
            muon.param_groups[0] |= {"lr": 0.1 / (step + 1), "momentum": 0.8 + 0.02 * step}
            muon.found_inf = torch.zeros(())
            give_grads(params, step)
            muon.step()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] == graphs[-1]
    for p, q in zip(compiled, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fast.state[p]["momentum"], slow.state[q]["momentum"], rtol=1e-5, atol=1e-6)
    before = [(p.detach().clone(), fast.state[p]["momentum"].clone()) for p in compiled]
    fast.found_inf = torch.ones(())
    for p in compiled:
        p.grad.fill_(float("nan"))
    fast.step()
    for p, (weight, momentum) in zip(compiled, before, strict=True):
        assert torch.equal(p, weight)
        assert torch.equal(fast.state[p]["momentum"], momentum)


def test_a_loaded_state_goes_on():
    """As torch saves and loads it; some parameters have no gradient for a while."""
    first, second = random_parameters(SHAPES + SHAPES), random_parameters(SHAPES + SHAPES)
    one, other = Muon(first, lr=0.1), Muon(second, lr=0.7)
    for step in range(4):
        if step == 2:
            other.load_state_dict(one.state_dict())
            for p, q in zip(first, second, strict=True):
                q.data.copy_(p.data)
        give_grads(first, step)
        first[step].grad = None
        one.step()
        if step >= 2:
            give_grads(second, step)
            second[step].grad = None
            other.step()
    for p, q in zip(first, second, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(one.state[p]["momentum"], other.state[q]["momentum"])
