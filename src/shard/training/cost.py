"""What training costs, by arithmetic: parameters, floating-point operations, memory."""

from dataclasses import dataclass

from shard.config import Config


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by role."""

    embedding: int
    matrix: int
    norm: int
    idle: int = 0
    """Of the matrices, those of experts that a token does not choose."""

    @property
    def active(self) -> int:
        """Those that compute one token."""
        return self.total - self.idle

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.matrix + self.norm


def count_parameters(config: Config) -> ParameterCount:
    """Counted from the built model, without memory for its weights."""
    import torch

    from shard.model import ShardLM

    with torch.device("meta"):
        model = ShardLM(config)
    counts = {"embedding": 0, "matrix": 0, "norm": 0}
    roles = model.parameter_roles()
    for name, parameter in model.named_parameters():
        counts[roles[name]] += parameter.numel()
    mixture, idle = config.mixture, 0
    if mixture is not None:
        stacks = sum(p.numel() for p in model.parameters() if p.ndim == 3)
        idle = stacks // mixture.num_experts * (mixture.num_experts - mixture.top_k)
    return ParameterCount(**counts, idle=idle)


def attention_span(config: Config, sequence_length: int) -> int:
    """Sum over the layers of the keys that a query could see: T in a global layer, min(window, T) in a local one.

    Causality is not counted, as is the convention of published utilisation figures.
    """
    local = min(config.sliding_window, sequence_length)
    return sum(local if kind == "L" else sequence_length for kind in config.layer_types)


def flops_per_token(config: Config, sequence_length: int) -> int:
    """Forward and backward: 6 for each weight of a matrix product (the tied table as the head; of experts the chosen
    ones), and attention's 12 * width * span.
    """
    count = count_parameters(config)
    width = config.num_heads * config.head_dim
    return 6 * (count.matrix - count.idle + count.embedding) + 12 * width * attention_span(config, sequence_length)


def state_bytes(config: Config) -> int:
    """fp32 masters, gradients, Muon's one and AdamW's two buffers."""
    count = count_parameters(config)
    return 4 * (3 * count.matrix + 4 * (count.embedding + count.norm))


def checkpoint_bytes(config: Config) -> int:
    """Masters and optimizer state on disk."""
    return state_bytes(config) - 4 * count_parameters(config).total
