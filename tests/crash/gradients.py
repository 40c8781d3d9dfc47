"""Run by test_repeat.py: {"fp32 eager": SHA-256 of all gradients, ...} of one batch, for each way to compute it."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from shard.environment import make_deterministic, set_process_defaults

set_process_defaults()

import torch  # noqa: E402

from shard.config import Config  # noqa: E402
from shard.model import ShardLM  # noqa: E402
from shard.training.chunks import chunk_pass  # noqa: E402
from shard.training.loss import Loss, chunked_loss  # noqa: E402

# Large enough that the kernels share their work among the threads, small enough to be compiled in half a minute.
BATCH, LENGTH = 4, 256
CONFIG = Config(
    vocab_size=1024,
    hidden_size=128,
    num_layers=4,
    num_heads=4,
    head_dim=32,
    intermediate_size=512,
    max_sequence_length=LENGTH,
    sliding_window=64,
    layer_pattern="LG",
)


def gradients(dtype: torch.dtype, compiled: bool) -> str:
    """As training/trainer.py computes them: the hash of all of them, in the order of the parameters."""
    make_deterministic(5)
    model = ShardLM(CONFIG)
    for parameter in model.parameters():  # gains and outputs that begin at zero would hide most of the model
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)

    def compile(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, dynamic=False) if compiled else function

    hidden_of, run = compile(lambda inputs_BT: model.hidden(inputs_BT, dtype=dtype).flatten(0, 1)), compile(chunk_pass)

    def compute(inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> Loss:
        scale, cap = 1 / targets_BT.numel(), CONFIG.logit_cap
        return chunked_loss(hidden_of(inputs_BT), model.embedding.weight, targets_BT.flatten(), cap, 1e-4, scale, run)

    tokens = torch.randint(0, CONFIG.vocab_size, (BATCH, LENGTH + 1))
    for _ in range(2):  # twice: the sums of the second go on from those of the first, as over micro-batches
        compute(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()).total.backward()
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), f"{name} has no gradient: the test would not see it"
        digest.update(parameter.grad.numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    ways = {"fp32": torch.float32, "bf16": torch.bfloat16}
    hashes = {
        f"{name} {'compiled' if compiled else 'eager'}": gradients(dtype, compiled)
        for name, dtype in ways.items()
        for compiled in (False, True)
    }
    print(json.dumps(hashes | {"threads": torch.get_num_threads()}))
