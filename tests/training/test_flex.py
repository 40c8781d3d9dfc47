"""FlexAttention computes the same function as block-local attention; its kernels themselves need a GPU."""

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from shard.model import ShardLM, local_attention
from shard.training import flex
from shard.training.flex import flex_attention_works, make_flex_attention, masked_flex_attention, sliding_window_mask


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 16, 40, 130, 300])
def test_equals_local_attention_uncompiled(num_tokens):
    torch.manual_seed(num_tokens)
    q, k, v = (torch.randn(2, 3, num_tokens, 16) for _ in range(3))
    mask = sliding_window_mask(num_tokens, 8, torch.device("cpu"))
    torch.testing.assert_close(masked_flex_attention(q, k, v, mask), local_attention(q, k, v, 8), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("error:flex_attention called without torch.compile")
def test_outside_of_compile_the_scores_are_never_held():
    """An evaluation that is not compiled takes the block-local way."""
    q, k, v = (torch.randn(1, 2, 40, 16) for _ in range(3))
    attend = make_flex_attention(40, 8, torch.device("cpu"))
    assert torch.equal(attend(q, k, v, 8), local_attention(q, k, v, 8))


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [(512, {}), (1024, {512: 512}), (2048, {512: 512, 2048: 2048}), (4096, {512: 512, 4096: 4096})],
)
def test_which_layers_take_it(monkeypatch, num_tokens, expected):
    """Local ones that do not see all, and global ones from 2,048 tokens on."""
    seen = {}
    monkeypatch.setattr(flex, "sliding_window_mask", lambda num_tokens, window, device: window)
    monkeypatch.setattr(flex, "masked_flex_attention", lambda q, k, v, mask: seen.update({window: mask}))
    monkeypatch.setattr(flex, "local_attention", lambda q, k, v, window: None)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    attend = make_flex_attention(num_tokens, 512, torch.device("cpu"))
    q = torch.zeros(1, 1, num_tokens, 16)
    for window in (512, num_tokens):
        attend(q, q, q, window)
    assert seen == expected
    seen.clear()
    shorter = q[:, :, 1:]
    attend(shorter, shorter, shorter, 512)
    assert not seen


@pytest.mark.parametrize("recompute", [False, True])
def test_a_whole_model_that_is_traced_has_the_same_gradients(monkeypatch, tiny_config, recompute):
    """Forward and backward as torch.compile traces them, without the kernels, which torch keeps from a CPU."""
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "LEAST_GLOBAL_TOKENS", 40)
    attend = make_flex_attention(40, tiny_config.sliding_window, torch.device("cpu"))
    hidden, gradients = [], []
    for kernel in (local_attention, attend):
        torch.manual_seed(0)
        model = ShardLM(tiny_config)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.1)
        for block in model.blocks:
            block.attention.attend = kernel
            if recompute:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        angles, ids = model.angles(torch.arange(40)), torch.arange(80).view(2, 40) % 67
        run = model.hidden_at if kernel is local_attention else torch.compile(model.hidden_at, backend="aot_eager")
        hidden.append(run(angles, ids))
        hidden[-1].square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(hidden[1], hidden[0], rtol=1e-4, atol=1e-5)
    for got, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_blocks_out_of_sight_are_left_out():
    """2048 tokens in blocks of 128 with a window of 256: a block of queries touches at most three of keys."""
    mask = sliding_window_mask(2048, 256, torch.device("cpu"))
    touched = mask.to_dense()[0, 0].sum(dim=-1)
    assert touched.tolist() == [1, 2] + [3] * 14


def test_a_probe_that_fails_gives_its_reason(monkeypatch):
    def broken(*args):
        raise RuntimeError("out of shared memory\nand more lines")

    monkeypatch.setattr(torch, "compile", lambda function: broken)
    works, reason = flex_attention_works(torch.device("cpu"), torch.float32, 64)
    assert not works
    assert reason == "FlexAttention fails on this GPU (out of shared memory)"


def test_a_probe_that_computes_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: lambda q, k, v, mask: local_attention(q, k, v, 127))
    works, reason = flex_attention_works(torch.device("cpu"), torch.float32, 64)
    assert not works
    assert "differs from block-local attention" in reason


def test_a_probe_that_agrees_is_used(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: lambda q, k, v, mask: local_attention(q, k, v, 128))
    assert flex_attention_works(torch.device("cpu"), torch.float32, 64)[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention's kernels run on CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_probe_on_this_gpu_gives_an_answer(dtype, head_dim):
    works, reason = flex_attention_works(torch.device("cuda"), dtype, head_dim)
    assert isinstance(works, bool)
    assert reason
