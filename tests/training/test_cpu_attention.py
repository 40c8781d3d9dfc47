"""Our own attention is attention over a window, forward and backward, at every size and with any number of threads."""

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from shard.model import local_attention
from shard.training import cpu_attention as module
from shard.training.cpu_attention import cpu_attention, cpu_attention_works, load_cpu_attention


@pytest.fixture(autouse=True)
def loaded() -> None:
    works, reason = load_cpu_attention()
    if not works:
        pytest.skip(reason)


def draw(*sizes: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v [B, H, T, K]."""
    generator = torch.Generator().manual_seed(sum(sizes))
    q, k, v = ((scale * torch.randn(sizes, generator=generator)).requires_grad_() for _ in range(3))
    return q, k, v


def masked_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, window: int) -> Tensor:
    """The definition, in fp64."""
    q, k, v = (x.double() for x in (q_BHTK, k_BHTK, v_BHTK))
    age = torch.arange(q.size(2))[:, None] - torch.arange(q.size(2))
    scores = (q @ k.mT / math.sqrt(q.size(3))).masked_fill((age < 0) | (age >= window), -math.inf)
    return scores.softmax(dim=-1) @ v


def results(attend: Callable[..., Tensor], inputs: tuple[Tensor, Tensor, Tensor], window: int) -> list[Tensor]:
    """y and the three gradients of a sum of it with random weights."""
    y = attend(*inputs, window)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), inputs)]


def compare(inputs: tuple[Tensor, Tensor, Tensor], window: int, tolerance: float = 2e-6) -> None:
    for got, expected in zip(
        results(cpu_attention, inputs, window), results(masked_attention, inputs, window), strict=True
    ):
        assert got.dtype == torch.float32
        assert (got - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1)


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 95, 96, 97, 200, 10_000])
@pytest.mark.parametrize("num_tokens", [1, 2, 6, 15, 16, 17, 95, 96, 97, 193, 300])
def test_equals_the_definition(num_tokens: int, window: int) -> None:
    """Below, at and beyond the sizes of a tile and of a block."""
    compare(draw(2, 3, num_tokens, 16), window)


@pytest.mark.parametrize("head_size", [16, 32, 48, 64, 128, 256])
def test_equals_the_definition_with_heads_of_any_multiple_of_16(head_size: int) -> None:
    compare(draw(1, 2, 130, head_size), 50)


def test_equals_torchs_over_many_blocks() -> None:
    inputs = draw(1, 2, 1500, 64)
    for window in (256, 1500):
        for got, expected in zip(
            results(cpu_attention, inputs, window), results(local_attention, inputs, window), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [10.0, 100.0, 1000.0])
def test_scores_far_from_zero_are_as_near_to_fp64_as_torchs(scale: float) -> None:
    """The largest of a row is taken off, so that none overflows; those far below it count for nothing."""
    inputs = draw(1, 2, 200, 16, scale=scale)
    exact = results(masked_attention, inputs, 70)
    errors = [
        [float((a - b).norm() / b.norm()) for a, b in zip(results(attend, inputs, 70), exact, strict=True)]
        for attend in (cpu_attention, local_attention)
    ]
    for ours, torchs in zip(*errors, strict=True):
        assert ours <= 3 * torchs + 1e-6


def test_nothing_of_what_a_row_does_not_see_reaches_it() -> None:
    """Bit for bit, forward and backward: numbers beyond the window, or after it, may be anything that is finite."""
    for window in (100, 1000):
        q, k, v = draw(1, 2, 400, 16)
        seen = slice(200, 201)
        y, grads = [], []
        for factor in (1.0, -1e3):
            changed = []
            for x in (k, v):
                x = x.detach().clone()
                x[:, :, 201:] *= factor
                x[:, :, : max(0, 201 - window)] *= factor
                changed.append(x.requires_grad_())
            y.append(cpu_attention(q, *changed, window)[:, :, seen])
            grads.append(torch.autograd.grad(y[-1].square().sum(), (q, *changed)))
        assert torch.equal(*y)
        for a, b in zip(*grads, strict=True):
            assert torch.equal(a, b)
            assert not a[:, :, 201:].any() and not a[:, :, : max(0, 201 - window)].any()


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_number_that_is_none_reaches_the_rows_that_see_it_and_their_gradients(place: int, wrong: float) -> None:
    """The guard of a step looks for it. Rows of the same block may be hurt with them, those of other blocks are not."""
    inputs = draw(1, 1, 300, 16)
    with torch.no_grad():
        inputs[place][0, 0, 100, 3] = wrong
    y, *grads = results(cpu_attention, inputs, 20)
    is_finite = y[0, 0].isfinite().all(dim=1)
    seeing = slice(100, 101) if place == 0 else slice(100, 120)
    if place != 1 or math.isnan(wrong):  # a key that is infinite takes all the weight, or none
        assert not is_finite[seeing].any()
    assert not is_finite[seeing].all()
    assert is_finite[:96].all() and is_finite[192:].all()
    assert not all(grad.isfinite().all() for grad in grads)


def test_the_same_bits_with_any_number_of_threads_and_beside_other_rows() -> None:
    inputs = draw(3, 2, 333, 32)
    together = results(cpu_attention, inputs, 120)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for _ in range(3):
            for got, expected in zip(results(cpu_attention, inputs, 120), together, strict=True):
                assert torch.equal(got, expected)
    finally:
        torch.set_num_threads(num_threads)
    alone = tuple(x[1:2].detach().requires_grad_() for x in inputs)
    assert torch.equal(cpu_attention(*alone, 120), together[0][1:2])


def test_other_sizes_and_dtypes_go_to_the_plain_one() -> None:
    for inputs in (draw(1, 2, 40, 24), tuple(x.bfloat16() for x in draw(1, 2, 40, 32))):
        assert torch.equal(cpu_attention(*inputs, 8), local_attention(*inputs, 8))


def test_it_is_a_whole_operation_of_torch() -> None:
    """Schema, shapes without data, gradients and tracing agree."""
    q, k, v = (x.detach().transpose(1, 2).contiguous().requires_grad_() for x in draw(2, 3, 40, 16))
    torch.library.opcheck(torch.ops.shard.attention.default, (q, k, v, 7))
    with torch.no_grad():
        y, lse = torch.ops.shard.attention(q, k, v, 7)
        torch.library.opcheck(torch.ops.shard.attention_backward.default, (y, q, k, v, y, lse, 7))


def test_traced_by_the_compiler_or_computed_twice_it_gives_the_same_bits() -> None:
    """In one graph, and within torch's checkpoints, which `recompute` is made of."""
    inputs = draw(1, 2, 200, 16)

    def again(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        return checkpoint(cpu_attention, q, k, v, window, use_reentrant=False)

    traced = torch.compile(cpu_attention, backend="aot_eager", fullgraph=True)
    plain, *others = (results(attend, inputs, 64) for attend in (cpu_attention, traced, again))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(other, plain, strict=True))


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (0, torch.ones(1, 20, 2, 32)),
        (1, torch.ones(1, 21, 2, 16)),
        (1, torch.ones(1, 20, 2, 16, dtype=torch.float64)),
        (2, torch.ones(1, 2, 20, 16).transpose(1, 2)),
        (2, torch.ones(1, 20, 16)),
        (3, 0),
    ],
)
def test_other_shapes_and_dtypes_are_refused(place: int, wrong: Tensor | int) -> None:
    """Not read beyond their end."""
    inputs: list[Tensor | int] = [torch.ones(1, 20, 2, 16), torch.ones(1, 20, 2, 16), torch.ones(1, 20, 2, 16), 5]
    y, lse = torch.ops.shard.attention(*inputs)
    torch.ops.shard.attention_backward(y, *inputs[:3], y, lse, 5)
    with pytest.raises(RuntimeError, match="attention_backward takes"):
        torch.ops.shard.attention_backward(y, *inputs[:3], y, lse[:, :, 1:], 5)
    inputs[place] = wrong
    with pytest.raises(RuntimeError, match="attention takes"):
        torch.ops.shard.attention(*inputs)


def test_heads_of_other_sizes_are_refused_by_the_kernel() -> None:
    with pytest.raises(RuntimeError, match="a multiple of 16 numbers"):
        torch.ops.shard.attention(*(torch.ones(1, 20, 2, 24) for _ in range(3)), 5)


def test_lowest_scores_and_windows_of_any_length() -> None:
    q, k, v = (torch.full((1, 1, 1, 16), value) for value in (1e16, -1e16, 3.0))
    assert torch.equal(cpu_attention(q, k, v, 2**63 - 1), v)


def test_it_refuses_to_be_differentiated_twice() -> None:
    q, k, v = draw(1, 1, 20, 16)
    (d_q,) = torch.autograd.grad(cpu_attention(q, k, v, 5).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        d_q.sum().backward()


OUT_OF_MEMORY = """
import resource, torch
from shard.training.cpu_attention import load_cpu_attention
from shard.training.decisions import is_out_of_memory
assert load_cpu_attention()[0]
q = torch.zeros(1, 200_000, 1, 64)  # 51 MB
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
try:
    torch.ops.shard.attention(q, q, q, 1)
except RuntimeError as error:
    print(is_out_of_memory(error), error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a process within so much memory")
@pytest.mark.parametrize(("room", "lacking"), [(20_000_000, "the result of a kernel"), (80_000_000, "attention")])
def test_too_little_memory_is_said_so_that_training_takes_less(room: int, lacking: str) -> None:
    """For the result, and for what is needed on the way to it."""
    program = OUT_OF_MEMORY.replace("ROOM", str(room))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("True ") and f"not enough memory for {lacking}\n" in done.stdout, done.stderr


@pytest.mark.parametrize("wrong", ["window", "NaN"])
def test_the_probe_agrees_and_notices_another_result(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    works, reason = load_cpu_attention.__wrapped__()
    assert works and "differs from the masked one by" in reason

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        if wrong == "window":
            return cpu_attention(q, k, v, window - 1)
        k.register_hook(lambda grad: grad * math.nan)
        return cpu_attention(q, k, v, window)

    monkeypatch.setattr(module, "cpu_attention", attend)
    assert not load_cpu_attention.__wrapped__()[0]


def test_it_is_not_used_where_it_was_not_measured_or_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert cpu_attention_works(torch.float32, 64) == (
        False,
        "our own attention is for AVX2, and this processor has AVX512",
    )
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert cpu_attention_works(torch.float32, 64) == load_cpu_attention()
    assert cpu_attention_works(torch.bfloat16, 64) == (False, "our own attention is for fp32")
    assert cpu_attention_works(torch.float32, 24) == (
        False,
        "our own attention is for heads of a multiple of 16 numbers",
    )
    monkeypatch.setattr(module, "load_kernels", lambda source: (False, "no compiler"))
    assert load_cpu_attention.__wrapped__() == (False, "no compiler")
    monkeypatch.setattr(module, "load_kernels", lambda source: (True, ""))

    def fails(*inputs: Tensor | int) -> Tensor:
        raise AttributeError("no object 'attention'")

    monkeypatch.setattr(module, "cpu_attention", fails)
    assert load_cpu_attention.__wrapped__() == (False, "our own attention cannot be run (no object 'attention')")
