"""The decode step's kernels against plain sums, at their limits, and where they do not work."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shard.inference import kernels
from shard.inference.kernels import choose_kernels, decode_attention, int8_product
from shard.inference.quantize import quantize_rows


@pytest.fixture
def built() -> None:
    works, reason = choose_kernels()
    if not works:
        pytest.skip(reason)


def whole_numbers(x: Tensor) -> tuple[Tensor, Tensor]:
    """What the kernel rounds x to: 15-bit whole numbers, and a scale a row."""
    scale = x.abs().amax(dim=-1, keepdim=True) / 32767
    codes = x * (1 / scale)
    return (codes + codes.sign() / 2).trunc(), scale


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("num_rows", [1, 2, 4, 7, 9])
@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (130, 512), (64, 513), (3, 2000)])
def test_the_product_is_the_plain_one_of_the_rounded_inputs(num_rows: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, (codes, scale) = torch.randn(num_rows, shape[1]), quantize_rows(torch.randn(shape))
    got = int8_product(x, codes, scale)
    rounded, x_scale = whole_numbers(x)
    # Sums of whole numbers, which fp64 holds exactly.
    expected = rounded.double() @ codes.double().T * x_scale * scale.double()
    torch.testing.assert_close(got, expected.float(), rtol=1e-6, atol=1e-6)
    exact = x.double() @ codes.double().T * scale.double()
    assert (got - exact).norm() / exact.norm() < 2e-4, (
        "bf16 activations, which torch's kernel has, are ten times as far"
    )


@pytest.mark.usefixtures("built")
def test_the_largest_numbers_do_not_overflow() -> None:
    codes = torch.stack([torch.full((4099,), 127), torch.full((4099,), -127)]).to(torch.int8)
    got = int8_product(torch.full((1, 4099), 3.0), codes, torch.ones(2, dtype=torch.bfloat16))
    torch.testing.assert_close(got, torch.tensor([[1.0, -1.0]]) * 3 * 127 * 4099)


@pytest.mark.usefixtures("built")
def test_zeros_tiny_numbers_infinity_and_nan() -> None:
    """Each row for itself: a number that is none reaches all of its row and no other."""
    x = torch.ones(5, 600)
    x[0], x[1], x[2, 599], x[3, 0] = 0, 1e-40, math.nan, -math.inf
    got = int8_product(x, torch.ones(9, 600, dtype=torch.int8), torch.ones(9, dtype=torch.bfloat16))
    assert not got[0].any() and got[1].abs().max() < 1e-36
    assert got[2].isnan().all() and got[3].isnan().all()
    torch.testing.assert_close(got[4], torch.full((9,), 600.0))


@pytest.mark.usefixtures("built")
def test_a_row_has_the_same_bits_beside_others_and_with_any_number_of_threads() -> None:
    torch.manual_seed(0)
    x, (codes, scale) = torch.randn(6, 2048), quantize_rows(torch.randn(1000, 2048))
    q, k, v = torch.randn(3, 4, 64), torch.randn(3, 4, 40, 64), torch.randn(3, 4, 40, 64)
    seen = torch.tensor([40, 17, 3])
    together, attended = int8_product(x, codes, scale), decode_attention(q, k, v, seen)
    torch.set_num_threads(2)
    try:
        assert torch.equal(int8_product(x, codes, scale), together)
        assert torch.equal(decode_attention(q, k, v, seen), attended)
    finally:
        torch.set_num_threads(1)
    for row in range(6):
        assert torch.equal(int8_product(x[row : row + 1], codes, scale)[0], together[row])
    for row in range(3):
        rows = slice(row, row + 1)
        assert torch.equal(decode_attention(q[rows], k[rows], v[rows], seen[rows])[0], attended[row])


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("head_size", [1, 16, 40, 64])
def test_attention_equals_torchs_and_reads_only_what_is_seen(head_size: int) -> None:
    torch.manual_seed(0)
    seen, slots = torch.tensor([1, 5, 24, 99]), 24
    q = torch.randn(4, 3, head_size)
    k, v = torch.randn(2, 4, 3, slots, head_size)
    is_seen = torch.arange(slots) < seen[:, None]
    expected = F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=is_seen[:, None, None])[:, :, 0]
    k[~is_seen[:, None].expand(-1, 3, -1)] = math.nan
    v[~is_seen[:, None].expand(-1, 3, -1)] = math.nan
    torch.testing.assert_close(decode_attention(q, k, v, seen), expected)


@pytest.mark.usefixtures("built")
def test_nothing_to_add_up_is_zero_and_no_rows_are_none() -> None:
    codes, scale = torch.ones(5, 8, dtype=torch.int8), torch.ones(5, dtype=torch.bfloat16)
    assert torch.equal(int8_product(torch.ones(2, 0), codes[:, :0].contiguous(), scale), torch.zeros(2, 5))
    assert int8_product(torch.ones(0, 8), codes, scale).shape == (0, 5)
    assert int8_product(torch.ones(2, 8), codes[:0], scale[:0]).shape == (2, 0)
    assert decode_attention(torch.ones(0, 3, 8), *torch.ones(2, 0, 3, 6, 8), torch.ones(0).long()).shape == (0, 3, 8)


@pytest.mark.usefixtures("built")
def test_large_scores_do_not_overflow() -> None:
    """exp(10,000) is infinite: the largest score is taken off."""
    q, k = torch.full((1, 1, 64), 50.0), torch.full((1, 1, 3, 64), 50.0)
    k[0, 0, 1] = -50
    v = torch.arange(3.0)[:, None].expand(1, 1, 3, 64).contiguous()
    torch.testing.assert_close(decode_attention(q, k, v, torch.tensor([3])), torch.full((1, 1, 64), 1.0))


@pytest.mark.usefixtures("built")
def test_they_are_whole_operations_of_torch() -> None:
    """Schema, shapes without data, and tracing agree."""
    codes, scale = quantize_rows(torch.randn(5, 8))
    torch.library.opcheck(torch.ops.shard.int8_product.default, (torch.randn(2, 8), codes, scale))
    q, buffers, seen = torch.randn(2, 3, 8), torch.randn(2, 2, 3, 6, 8).unbind(), torch.tensor([4, 6])
    torch.library.opcheck(torch.ops.shard.decode_attention.default, (q, *buffers, seen))


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("kernel", "place", "wrong"),
    [
        (int8_product, 0, torch.ones(2, 7)),
        (int8_product, 0, torch.ones(8)),
        (int8_product, 1, torch.ones(5, 8)),
        (int8_product, 1, torch.ones(8, 5, dtype=torch.int8).T),
        (int8_product, 2, torch.ones(5)),
        (int8_product, 0, torch.ones(2, 0)),
        (int8_product, 2, torch.ones(4, dtype=torch.bfloat16)),
        (decode_attention, 0, torch.ones(2, 3, 9)),
        (decode_attention, 1, torch.ones(2, 3, 6, 8, dtype=torch.bfloat16)),
        (decode_attention, 1, torch.ones(2, 3, 7, 8)[:, :, :6]),
        (decode_attention, 2, torch.ones(2, 3, 5, 8)),
        (decode_attention, 3, torch.ones(3, dtype=torch.int64)),
        (decode_attention, 3, torch.ones(2, dtype=torch.int32)),
    ],
)
def test_other_shapes_and_dtypes_are_refused(kernel: Callable[..., Tensor], place: int, wrong: Tensor) -> None:
    """Not read beyond their end."""
    inputs = [torch.ones(2, 8), torch.ones(5, 8, dtype=torch.int8), torch.ones(5, dtype=torch.bfloat16)]
    if kernel is decode_attention:
        inputs = [torch.ones(2, 3, 8), torch.ones(2, 3, 6, 8), torch.ones(2, 3, 6, 8), torch.tensor([4, 6])]
    kernel(*inputs)
    inputs[place] = wrong
    with pytest.raises(RuntimeError, match=f"{kernel.__name__} takes"):
        kernel(*inputs)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("name", ["int8_product", "decode_attention"])
def test_wrong_results_are_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.library, "register_fake", lambda *_: None)
    assert choose_kernels.__wrapped__()[0]
    right = getattr(kernels, name)
    monkeypatch.setattr(kernels, name, lambda *inputs: right(*inputs) * 1.01)
    works, reason = choose_kernels.__wrapped__()
    assert not works and reason.endswith("for this processor give wrong results")


def test_an_operation_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load_kernels", lambda source: (True, "built by c++"))
    monkeypatch.setattr(torch.library, "register_fake", lambda *_: None)
    monkeypatch.setattr(kernels, "int8_product", lambda *inputs: torch.ops.shard.no_such_product(*inputs))
    works, reason = choose_kernels.__wrapped__()
    assert not works and reason.startswith("kernels built by c++ cannot be run (") and "no_such_product" in reason


def test_without_the_library_its_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load_kernels", lambda source: (False, "no compiler"))
    assert choose_kernels.__wrapped__() == (False, "no compiler")
