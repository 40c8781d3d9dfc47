"""A small model of which nothing is silent."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from shard.config import Config
from shard.model import ShardLM

SHAPE = Config(
    vocab_size=320,
    hidden_size=48,
    num_layers=4,
    num_heads=4,
    head_dim=16,  # not hidden_size / num_heads
    intermediate_size=96,
    max_sequence_length=200,
    sliding_window=8,
    layer_pattern="LG",
    rope_theta=5000.0,
    norm_eps=1e-5,
    logit_cap=20.0,
)
"""No key has the value that transformers would take by itself, but for max_sequence_length."""


def make_model(config: Config, num_tokens: int = SHAPE.vocab_size) -> ShardLM:
    """Random weights everywhere, of a size at which the cap bites; ids from `num_tokens` up are never the likeliest.

    The table is small beside the layers, or a tied model would repeat itself; the last norm makes up for it.
    """
    torch.manual_seed(0)
    model = ShardLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3 if p.ndim == 1 else p.size(1) ** -0.5)
        model.embedding.weight.normal_(std=0.03)
        model.embedding.weight[num_tokens:] = 0
        model.final_norm.weight.add_(14)
    return model


@dataclass(frozen=True)
class Exported:
    """Our model and its tokenizer.json, and the folders written from them."""

    model: ShardLM
    tokenizer: Path
    fp32: Path
    bf16: Path


def other(**changes: object) -> Config:
    """SHAPE with some keys changed."""
    return replace(SHAPE, **changes)  # type: ignore[arg-type]
