"""int8 weights: what they keep of the matrix, the packed kernel against its plain twin, and what is refused."""

import pytest
import torch

from shard.errors import UsageError
from shard.inference import quantize as quantize_module
from shard.inference.decoder import Decoder
from shard.inference.generate import continue_prompt
from shard.inference.kernels import choose_kernels
from shard.inference.quantize import (
    Int8Linear,
    check_int8,
    dequantized_matmul,
    own_matmul,
    packed_matmul,
    quantize,
    quantize_rows,
)
from shard.inference.sampling import generate_ids
from shard.model import KVCache, Linear, ShardLM


def test_codes_are_symmetric_by_output_channel_and_off_by_half_a_step_at_most() -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 64) * torch.logspace(-3, 2, 50)[:, None]
    codes, scale = quantize_rows(weight)
    assert (codes.dtype, scale.dtype, scale.shape) == (torch.int8, torch.bfloat16, (50,))
    assert codes.min() >= -127 and codes.abs().amax(dim=1).min() >= 126, "each channel uses its whole range"
    error = (codes * scale.float()[:, None] - weight).abs() / scale.float()[:, None]
    # The largest of a row may be clamped: its scale is rounded to bf16.
    assert error.max() <= 0.5 + 127 / 256
    assert error.flatten().sort().values[: int(0.98 * weight.numel())].max() <= 0.5


def test_a_row_of_zeros_stays_zero() -> None:
    codes, scale = quantize_rows(torch.zeros(2, 8))
    assert not codes.any() and torch.equal(scale, torch.ones(2, dtype=torch.bfloat16))


@pytest.mark.parametrize("shape", [(1, 64), (5, 64), (2, 3, 64)])
@pytest.mark.parametrize("num_outputs", [1, 7, 64, 130])
def test_the_packed_kernel_equals_its_twin(shape: tuple[int, ...], num_outputs: int) -> None:
    torch.manual_seed(0)
    x, (codes, scale) = torch.randn(shape), quantize_rows(torch.randn(num_outputs, 64))
    got, expected = packed_matmul(x, codes, scale), dequantized_matmul(x, codes, scale)
    assert got.shape == expected.shape == (*shape[:-1], num_outputs) and got.dtype == torch.float32
    assert (got - expected).norm() / expected.norm() < 0.005, "bf16 has 8 bits"
    exact = dequantized_matmul(x.bfloat16().float(), codes, scale)
    assert (got - exact).norm() / exact.norm() < 0.0025, "only the result is rounded besides x"


@pytest.mark.parametrize("shape", [(1, 64), (5, 64), (2, 3, 64)])
def test_our_own_kernel_equals_its_twin(shape: tuple[int, ...]) -> None:
    works, reason = choose_kernels()
    if not works:
        pytest.skip(reason)
    torch.manual_seed(0)
    x, (codes, scale) = torch.randn(shape), quantize_rows(torch.randn(130, 64))
    got, expected = own_matmul(x, codes, scale), dequantized_matmul(x, codes, scale)
    assert got.shape == expected.shape and got.dtype == torch.float32
    assert (got - expected).norm() / expected.norm() < 1e-4, "x has 15 bits"


@pytest.mark.parametrize("works", [True, False])
def test_many_rows_take_the_twin(monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    if works and not choose_kernels()[0]:
        pytest.skip(choose_kernels()[1])
    monkeypatch.setattr(quantize_module, "choose_kernels", lambda: (works, ""))
    codes, scale = quantize_rows(torch.randn(16, 32))
    kernel, rows = (own_matmul, 64) if works else (packed_matmul, 8)
    x = torch.randn(65, 32)
    for linear, most in ((Int8Linear(codes, scale), rows), (Int8Linear(codes, scale, most_rows=3), 3)):
        assert torch.equal(linear(x[: most + 1]), dequantized_matmul(x[: most + 1], codes, scale))
        assert torch.equal(linear(x[:most]), kernel(x[:most], codes, scale))


def test_a_quantised_model_is_near_the_model(tiny_model: ShardLM) -> None:
    ids = torch.randint(0, 67, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tiny_model(ids)[0]
        model = quantize(tiny_model, most_rows=10**9)
        packed = model(ids)[0]
        assert model is tiny_model and not any(isinstance(module, Linear) for module in model.modules())
        assert 1e-4 < (packed - expected).norm() / expected.norm() < 0.05
        for module in model.modules():
            if isinstance(module, Int8Linear):
                module.most_rows = 0
        got = model(ids)[0]
    assert 0 < (packed - got).norm() / got.norm() < 0.02


def test_a_quantised_model_works_wherever_a_model_does(tiny_model: ShardLM) -> None:
    """In the plain loops and in the fast decoder; with both kernels forced to one, token by token."""
    model = quantize(tiny_model, most_rows=0)
    plain = list(generate_ids(model, [3, 1, 4], 40, use_cache=False))
    assert list(generate_ids(model, [3, 1, 4], 40)) == plain
    assert list(continue_prompt(Decoder(model), [3, 1, 4], 40)) == plain
    assert KVCache(model, 1, 5).layers[0].k_BHSK.dtype == torch.float32
    assert model.hidden(torch.tensor([[1]])).dtype == torch.float32


def test_other_devices_are_refused() -> None:
    with pytest.raises(UsageError, match=r"written for the CPU and this device is cuda: choose bf16"):
        check_int8(torch.device("cuda"))


@pytest.mark.parametrize("fault", ["missing", "wrong", "unsupported"])
def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Where our own kernel cannot be built, int8 needs torch's."""
    monkeypatch.setattr(quantize_module, "choose_kernels", lambda: (False, "no compiler"))
    check_int8(torch.device("cpu"))

    def unsupported(*_: object) -> torch.Tensor:
        raise NotImplementedError

    if fault == "missing":
        monkeypatch.delattr(torch, "_weight_int8pack_mm")
    else:
        wrong = unsupported if fault == "unsupported" else lambda x, w, s: torch.zeros(1, 32)
        monkeypatch.setattr(torch, "_weight_int8pack_mm", wrong)
    with pytest.raises(UsageError, match=r"torch\._weight_int8pack_mm, which torch .* lacks here"):
        check_int8(torch.device("cpu"))
