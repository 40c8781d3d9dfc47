"""The shape of a Shard model: everything that decides its parameters and the function that they compute."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

Primitive = int | float | str | None

# Beyond these a number is a slip of the keyboard, or made to take all memory: the largest models that anybody has
# trained stay below.
LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**16,
    "num_layers": 1000,
    "num_heads": 1024,
    "head_dim": 1024,
    "intermediate_size": 2**18,
    "max_sequence_length": 2**24,
    "sliding_window": 2**24,
    "rope_theta": 1e12,
    "norm_eps": 1e6,
    "logit_cap": 1e6,
}


SCORES = ("sigmoid", "softmax", "softmax_top_k")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The table `moe` of a Config: experts in place of the feed-forward layer, and how their router is trained."""

    num_experts: int
    """Routed experts, of which each token is computed by top_k."""
    top_k: int = 1
    num_shared: int = 0
    """Experts that compute every token, as one feed-forward layer of so many times the width."""
    score: str = "sigmoid"
    """What an expert's output is multiplied with: the sigmoid of the router's logit, its softmax over all experts, or
    its softmax over the chosen ones. The last is 1 for top_k = 1, and the router would learn nothing."""
    bias_rate: float = 0.03
    """Share of what an expert missed of an even load that goes to its bias, which is added to the scores for the choice
    alone; 0: no bias."""
    balance_loss: float = 0.0
    """Weight of the loss that grows with uneven loads (Fedus et al., arXiv 2101.03961)."""
    router_z_loss: float = 0.0
    """Weight of the mean square of the router's log-sum-exp (Zoph et al., arXiv 2202.08906)."""

    def __post_init__(self) -> None:
        for name, least, most in (("num_experts", 2, 1024), ("top_k", 1, 1024), ("num_shared", 0, 64)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ValueError(f"moe.{name} must be a whole number from {least} to {most}, not {value!r:.60}")
        if self.top_k > self.num_experts:
            raise ValueError(f"moe.top_k must be at most num_experts = {self.num_experts}, not {self.top_k}")
        for name in ("bias_rate", "balance_loss", "router_z_loss"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
                raise ValueError(f"moe.{name} must be a number from 0 to 1, not {value!r:.60}")
        if self.score not in SCORES:
            raise ValueError(f"moe.score must be one of {', '.join(SCORES)}, not {self.score!r:.60}")
        if self.score == "softmax_top_k" and self.top_k == 1:
            raise ValueError("moe.score = softmax_top_k is 1 for top_k = 1, so that the router learns nothing")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A decoder-only transformer of the Gemma family without post-norms (the stock VaultGemma architecture).

    `Config(**cfg)` takes a plain dict, and `to_dict()` gives it back: ints, floats, strings, None, or a flat dict
    of those. The defaults are Shard-40m-v1: 54,538,752 parameters.
    """

    vocab_size: int = 8192
    hidden_size: int = 512
    num_layers: int = 12
    num_heads: int = 8
    """Heads of queries, keys and values alike: multi-head attention without grouping."""
    head_dim: int = 64
    intermediate_size: int = 2048
    """Width of the gated feed-forward layer; in a mixture of experts of each expert."""
    max_sequence_length: int = 8192
    sliding_window: int = 1024
    """Tokens that a local layer sees, the current one counted."""
    layer_pattern: str = "LG"
    """L (local) and G (global), repeated over the layers; the last layer is global whatever the pattern says."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    logit_cap: float = 30.0
    """Final logits x become cap * tanh(x / cap)."""
    moe: dict[str, Primitive] | None = None
    """Mixture of experts: the fields of Mixture; None in Shard-40m-v1."""
    engram: dict[str, Primitive] | None = None
    """Hashed n-gram memory; None in Shard-40m-v1, and not implemented in this version."""

    def __post_init__(self) -> None:
        for name, limit in LARGEST.items():
            value = getattr(self, name)
            if isinstance(limit, float):
                if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                    raise ValueError(f"{name} must be a positive number, not {value!r:.60}")
            elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r:.60}")
            if value > limit:
                raise ValueError(f"{name} must be at most {limit}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, since RoPE turns pairs, not {self.head_dim}")
        pattern = self.layer_pattern
        if not isinstance(pattern, str) or not pattern or set(pattern) - {"L", "G"}:
            raise ValueError(f"layer_pattern must be made of the letters L and G, not {pattern!r:.60}")
        if len(pattern) > LARGEST["num_layers"]:
            raise ValueError(f"layer_pattern has {len(pattern)} letters, more than any model has layers")
        if self.engram is not None:
            raise ValueError("engram is not implemented in this version: leave it out")
        if self.moe is not None:
            _ = self.mixture

    @property
    def mixture(self) -> Mixture | None:
        """The mixture of experts; None in a dense model. Raises ValueError for a key or value that it does not take."""
        if self.moe is None:
            return None
        known = [field.name for field in fields(Mixture)]
        if not isinstance(self.moe, dict) or "num_experts" not in self.moe or set(self.moe) - set(known):
            raise ValueError(f"moe must be a table with num_experts, and none but {', '.join(known)}")
        return Mixture(**self.moe)  # type: ignore[arg-type]

    @property
    def layer_types(self) -> str:
        """One letter a layer, L or G, the last one G."""
        repeated = self.layer_pattern * self.num_layers
        return repeated[: self.num_layers - 1] + "G"

    def to_dict(self) -> dict[str, Any]:
        """The keys and values that `Config(**cfg)` takes."""
        return asdict(self)
