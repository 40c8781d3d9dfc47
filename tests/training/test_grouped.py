"""The products of experts as operators that are not looked into: the plain loop, forward and backward, in any dtype."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_stage import CONFIG, make_stage

from shard.model import ShardLM, looped_linear
from shard.training.grouped import grouped_linear, grouped_outer
from shard.training.step import TrainingStep

ENDS = [[5, 5, 12], [0, 12, 12], [0, 0, 12], [4, 8, 12]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [16, 13], ids=["grouped", "looped"])
@pytest.mark.parametrize("ends", ENDS)
def test_equals_the_plain_loop(dtype: torch.dtype, width: int, ends: list[int]) -> None:
    torch.manual_seed(0)
    x, w, dy = (torch.randn(shape, dtype=dtype) for shape in ((12, width), (3, 24, width), (12, 24)))
    found = []
    for product in (looped_linear, grouped_linear):
        a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = product(a, b, torch.tensor(ends))
        y.backward(dy)
        found.append((y.detach(), a.grad, b.grad))
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("width", [16, 13], ids=["grouped", "looped"])
def test_torch_is_told_the_right_shapes_and_gradients(width: int) -> None:
    x, w, ends = torch.randn(12, width, requires_grad=True), torch.randn(3, 24, width), torch.tensor([4, 4, 12])
    torch.library.opcheck(grouped_linear, (x, w.requires_grad_(), ends))
    torch.library.opcheck(grouped_outer, (torch.randn(12, 24), x.detach(), ends), test_utils="test_faketensor")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_mixture_has_the_gradients_of_the_plain_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """The graphs of torch.compile, with nothing made of them."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    moe = {"num_experts": 3, "top_k": 1, "num_shared": 1, "score": "sigmoid", "bias_rate": 0.01}
    grads = []
    for compiled in (False, True):
        stage = make_stage(data, tmp_path / str(compiled), precision=precision, compiled=compiled)
        stage = replace(stage, config=replace(CONFIG, num_layers=1, moe=moe))
        torch.manual_seed(0)
        model = ShardLM(stage.config)
        for p in model.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.1)  # output matrices of zero would hide a wrong gradient
        TrainingStep(stage, model, lambda *_: None).accumulate_gradients(stage.loader.batch(0))
        grads.append([p.grad for p in model.parameters()])
    torch._dynamo.reset()
    tolerance = 1e-5 if precision == "fp32" else 3e-2
    for ours, theirs in zip(*grads, strict=True):
        assert ours is not None and theirs is not None
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))
