"""benchmark.json's figures: their fields, their sense, and what is measured where."""

import math

import pytest
import torch

from shard.inference import benchmark
from shard.inference import quantize as quantize_module
from shard.inference.benchmark import measure_decoder, measure_published_loop, precisions
from shard.inference.decoder import Decoder
from shard.inference.quantize import quantize
from shard.model import ShardLM


@pytest.fixture(autouse=True)
def fewer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "RUNS", 3)
    monkeypatch.setattr(benchmark, "PUBLISHED_RUNS", 2)


def test_every_figure_has_its_spread(tiny_model: ShardLM) -> None:
    result = measure_decoder(Decoder(tiny_model))
    assert (result["prompt_tokens"], result["decode_tokens"]) == (48, 48)
    assert result["footprint_bytes"] == 4 * sum(p.numel() for p in tiny_model.parameters())
    for name in (
        *("decode_tokens_per_second", "time_to_first_token_seconds", "prefill_tokens_per_second"),
        "peak_memory_above_weights_bytes",
    ):
        spread = result[name]
        assert spread["runs"] == 3 and 0 < spread["min"] <= spread["median"] <= spread["max"] < math.inf
    cache = 2 * 4 * 2 * 16 * (2 * 8 + 2 * 56)  # k and v, fp32, 2 heads of 16, two rings of 8, two layers of 48 + 8
    assert cache < result["peak_memory_above_weights_bytes"]["min"] < 50 * cache


def test_int8_has_a_quarter_of_the_footprint_and_its_scales(tiny_model: ShardLM) -> None:
    before = sum(p.numel() for p in tiny_model.parameters())
    result = measure_decoder(Decoder(quantize(tiny_model)))
    assert before < result["footprint_bytes"] < 1.3 * before
    assert result["decode_tokens_per_second"]["min"] > 0


def test_the_published_loop_is_one_number(tiny_model: ShardLM) -> None:
    spread = measure_published_loop(Decoder(tiny_model.bfloat16()))
    assert spread["runs"] == 2 and spread["median"] > 0


def test_what_a_device_is_timed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precisions(torch.device("cpu")) == ("fp32", "bf16", "int8")
    assert precisions(torch.device("cuda")) == ("fp32", "bf16", "fp16")
    monkeypatch.setattr(quantize_module, "choose_kernels", lambda: (False, "no compiler"))
    monkeypatch.delattr(torch, "_weight_int8pack_mm")
    assert precisions(torch.device("cpu")) == ("fp32", "bf16")
