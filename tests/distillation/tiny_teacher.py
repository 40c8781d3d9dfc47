"""A tiny teacher that transformers loads, made on the spot."""

from pathlib import Path
from typing import Any

import pytest
import torch

VOCAB = 300


def save_teacher(folder: Path, vocab_size: int = VOCAB, seed: int = 0, **changes: Any) -> Any:
    """A little Llama with random weights, saved as transformers does; the model."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "initializer_range": 0.4,
    }
    config = transformers.LlamaConfig(vocab_size=vocab_size, **{**shape, **changes})
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model
