"""Predicted memory against tensors counted one by one, and against a process that trains."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shard.config import Config
from shard.model import ShardLM
from shard.training.decisions import choose_micro_batch
from shard.training.loss import chunked_loss
from shard.training.memory import activation_bytes, layer_bytes, predict_memory
from shard.training.settings import StageSettings

CONFIG = Config(vocab_size=256, hidden_size=64, num_layers=1, num_heads=2, head_dim=16, intermediate_size=96)
ROOT = Path(__file__).parents[2]


def settings(**changes: object) -> StageSettings:
    values = {"steps": 1, "sequence_length": 64, "tokens_per_step": 64 * 48, "mix": {"a": 1.0}}
    return StageSettings(**(values | changes))  # type: ignore[arg-type]


def kept_bytes(num_layers: int, dtype: torch.dtype) -> int:
    """Storages that autograd keeps of a forward pass of 4 x 32 tokens, without parameters and their casts."""
    model = ShardLM(replace(CONFIG, num_layers=num_layers))
    shapes = {p.shape for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in shapes and tensor.shape[::-1] not in shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.randint(256, (4, 32))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.hidden(ids, dtype=dtype)
        chunked_loss(hidden.flatten(0, 1), model.embedding.weight, ids.flatten(), 30.0, 0.0)
    return sum(kept.values())


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_layer_keeps_what_autograd_saves(precision: str, dtype: torch.dtype) -> None:
    """What one more layer adds, but for the few numbers that norms and attention keep of a row."""
    added = kept_bytes(3, dtype) - kept_bytes(2, dtype)
    assert added == pytest.approx(4 * 32 * layer_bytes(CONFIG, precision, compiled=False), rel=0.03)


def test_what_takes_less_is_predicted_to_take_less() -> None:
    config = replace(CONFIG, num_layers=12)
    plain = activation_bytes(config, 1000, "fp32", False, recompute=False)
    assert activation_bytes(config, 1000, "fp32", False, recompute=True) < 0.4 * plain
    assert activation_bytes(config, 1000, "bf16", False, recompute=False) < plain
    assert activation_bytes(config, 1000, "fp32", True, recompute=False) < plain
    assert activation_bytes(config, 2000, "fp32", False, recompute=False) > 1.8 * plain


def test_gradients_of_earlier_micro_batches_count() -> None:
    one, two = (predict_memory(CONFIG, settings(), n, "fp32", False, "cuda") for n in (48, 24))
    assert one.gradients == 0
    assert two.gradients == 4 * sum(p.numel() for p in ShardLM(CONFIG).parameters())


def test_a_micro_batch_is_chosen_that_fits() -> None:
    """It divides the step, and leaves a fifth of what is free."""
    chosen = {}
    for free in (10**12, 2 * 10**9, 5 * 10**8, 1):
        micro_batch, reason = choose_micro_batch(settings(), torch.device("cpu"), CONFIG, "fp32", False, free)
        needed = predict_memory(CONFIG, settings(), micro_batch, "fp32", False, "cpu").peak
        assert 48 % micro_batch == 0
        assert micro_batch == 1 or needed <= 0.8 * free
        assert "free" in reason
        chosen[free] = micro_batch
    assert chosen[10**12] == 48
    assert chosen[1] == 1
    assert sorted(chosen.values(), reverse=True) == list(chosen.values())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_the_prediction_holds_for_a_process_that_trains() -> None:
    """Within 15 %: the short version of `make bench-memory`."""
    command = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "--eager", "--sizes", "3M"]
    environment = os.environ | {"SHARD_DEVICE": "cpu", "PYTHONPATH": str(ROOT / "src")}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    result = json.JSONDecoder().raw_decode(output)[0]["3M"]
    assert result["process"] < 0.6 * result["measured"], "training has to be what is measured"
    assert result["predicted"] == pytest.approx(result["measured"], rel=0.15)
