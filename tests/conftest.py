"""A tiny model that every test may use: seeded, and with no path that is silent."""

import signal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shard.config import Config
from shard.model import ShardLM

torch.set_num_threads(1)  # sums in the same order on every machine
# A shell starts what it puts into the background with SIGINT ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any result of any operation had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.fixture
def largest_tensor() -> type[LargestTensor]:
    """`with largest_tensor() as mode`: `mode.elements` is what the largest result had."""
    return LargestTensor


@pytest.fixture
def tiny_config() -> Config:
    """Four layers, local and global in turn, with a window shorter than the sequences of the tests."""
    return Config(
        vocab_size=67,
        hidden_size=32,
        num_layers=4,
        num_heads=2,
        head_dim=16,
        intermediate_size=48,
        max_sequence_length=96,
        sliding_window=8,
        layer_pattern="LG",
    )


@pytest.fixture
def tiny_model(tiny_config: Config) -> ShardLM:
    """A model whose zero-initialised parts (output matrices, gains) are random, so that a mistake in them shows."""
    torch.manual_seed(7)
    model = ShardLM(tiny_config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.normal_(std=0.3)
            elif not p.any():
                p.normal_(std=0.4)
        model.embedding.weight.normal_(std=0.1)  # small beside the layers: a tied model repeats itself else
    return model.eval()
