"""The arithmetic of cost against tensors counted one by one."""

import pytest
import torch

from shard.config import Config
from shard.model import ShardLM
from shard.training.cost import (
    attention_span,
    checkpoint_bytes,
    count_parameters,
    flops_per_token,
    state_bytes,
)
from shard.training.optimizer import Optimizer
from shard.training.settings import StageSettings


def test_parameters_of_the_reference():
    count = count_parameters(Config())
    assert count.total == 54_538_752
    assert count.embedding == 8192 * 512
    assert count.norm == 25 * 512
    assert count.matrix == 12 * (4 * 512 * 512 + 3 * 512 * 2048)


def test_parameters_equal_those_of_a_built_model(tiny_config, tiny_model):
    count = count_parameters(tiny_config)
    assert count.total == sum(p.numel() for p in tiny_model.parameters())
    assert count.norm == sum(p.numel() for p in tiny_model.parameters() if p.ndim == 1)


@pytest.mark.parametrize(
    ("pattern", "sequence_length", "expected"),
    [
        ("LG", 512, 12 * 512),
        ("LG", 1024, 12 * 1024),
        ("LG", 2048, 6 * 1024 + 6 * 2048),
        ("LG", 8192, 6 * 1024 + 6 * 8192),
        ("LLLLLG", 8192, 10 * 1024 + 2 * 8192),
        ("G", 8192, 12 * 8192),
        ("L", 8192, 11 * 1024 + 8192),
    ],
)
def test_attention_span(pattern, sequence_length, expected):
    assert attention_span(Config(layer_pattern=pattern), sequence_length) == expected


@pytest.mark.parametrize(
    ("pattern", "sequence_length", "millions"),
    [("LG", 1024, 403), ("LG", 2048, 440), ("LLLLLG", 2048, 415), ("LG", 8192, 667), ("LLLLLG", 8192, 491)],
)
def test_flops_equal_the_figures_worked_out_before(pattern, sequence_length, millions):
    """Computed by hand in nanochat's convention: 6 N + 12 d sum(T)."""
    assert flops_per_token(Config(layer_pattern=pattern), sequence_length) / 1e6 == pytest.approx(millions, rel=0.01)


def test_flops_of_a_tiny_model_by_hand(tiny_config):
    weights = 67 * 32 + 4 * (4 * 32 * 32 + 3 * 32 * 48)
    assert flops_per_token(tiny_config, 20) == 6 * weights + 12 * 32 * (8 + 20 + 8 + 20)


def test_bytes_equal_the_tensors_that_exist(tiny_config):
    settings = StageSettings(steps=1, sequence_length=8, tokens_per_step=8, mix={"a": 1.0})
    torch.manual_seed(0)
    model = ShardLM(tiny_config)
    optimizer = Optimizer(model, settings, torch.float32)
    weights = sum(p.nbytes for p in model.parameters())
    buffers = sum(t.nbytes for n, t in optimizer.state().items() if not n.startswith("adam_step"))
    assert state_bytes(tiny_config) == 2 * weights + buffers  # weights and gradients
    assert checkpoint_bytes(tiny_config) == weights + buffers
