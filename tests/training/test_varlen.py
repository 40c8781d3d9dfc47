"""FlashAttention's window gives what block-local attention gives; its kernels themselves need a GPU."""

import pytest
import torch
import torch.nn.attention.varlen as varlen
import torch.nn.functional as F

from shard.model import local_attention
from shard.training.varlen import varlen_attention_works, varlen_local_attention


def plain_varlen(q, k, v, ends_q, ends_k, max_q, max_k, *, window_size):
    """What torch documents: sequences laid end to end [N, H, K], each attending to itself, `left` tokens back."""
    parts = []
    for start, stop in zip(ends_q[:-1].tolist(), ends_q[1:].tolist(), strict=True):
        assert stop - start == max_q == max_k
        age = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
        mask = (age >= -window_size[1]) & (age <= window_size[0])
        part = (x[start:stop].transpose(0, 1) for x in (q, k, v))
        parts.append(F.scaled_dot_product_attention(*part, attn_mask=mask).transpose(0, 1))
    assert torch.equal(ends_q, ends_k)
    return torch.cat(parts)


@pytest.mark.parametrize("num_tokens", [9, 16, 40])
def test_rows_and_window_are_handed_over_rightly(monkeypatch, num_tokens):
    monkeypatch.setattr(varlen, "varlen_attn", plain_varlen)
    torch.manual_seed(num_tokens)
    q, k, v = (torch.randn(2, 3, num_tokens, 16).bfloat16() for _ in range(3))
    got, expected = (attend(q, k, v, 8) for attend in (varlen_local_attention, local_attention))
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


def test_a_window_that_is_off_by_one_is_refused(monkeypatch):
    def longer(*arguments, window_size):
        return plain_varlen(*arguments, window_size=(window_size[0] + 1, window_size[1]))

    for function, expected in ((plain_varlen, True), (longer, False)):
        monkeypatch.setattr(varlen, "varlen_attn", function)
        works, reason = varlen_attention_works(torch.device("cpu"), torch.bfloat16)
        assert works is expected
        assert "differs from block-local attention by" in reason


def test_what_it_cannot_compute_goes_the_plain_way():
    """fp32, and sequences that the window holds."""
    q, k, v = (torch.randn(1, 2, 40, 16) for _ in range(3))
    assert torch.equal(varlen_local_attention(q, k, v, 8), local_attention(q, k, v, 8))
    q, k, v = (x.bfloat16() for x in (q, k, v))
    assert torch.equal(varlen_local_attention(q, k, v, 40), local_attention(q, k, v, 40))
    assert not varlen_attention_works(torch.device("cpu"), torch.float32)[0]


def test_a_probe_that_fails_gives_its_reason(monkeypatch):
    def broken(*arguments, window_size):
        raise RuntimeError("no kernel for this GPU\nand more lines")

    monkeypatch.setattr(varlen, "varlen_attn", broken)
    works, reason = varlen_attention_works(torch.device("cpu"), torch.bfloat16)
    assert not works
    assert reason == "FlashAttention's window fails on this GPU (no kernel for this GPU)"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlashAttention's window runs on CUDA")
def test_probe_on_this_gpu_gives_an_answer():
    works, reason = varlen_attention_works(torch.device("cuda"), torch.bfloat16)
    assert isinstance(works, bool)
    assert reason
