"""Shard's mixture of experts for transformers: VaultGemma with experts in place of its feed-forward layers.

A release has this file beside its weights; transformers runs it where `trust_remote_code=True` says so.

    y = sum over the chosen experts e of score_e(x) * down_e(silu(gate_e(x)) * up_e(x)), plus shared(x) if there is one

The experts with the largest score + bias are chosen; the router computes in fp32.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.vaultgemma.configuration_vaultgemma import VaultGemmaConfig
from transformers.models.vaultgemma.modeling_vaultgemma import VaultGemmaForCausalLM


class ShardMoeConfig(VaultGemmaConfig):
    """The shape of a VaultGemma, and `moe`: num_experts, top_k, num_shared and score."""

    model_type = "shard_moe"
    base_model_tp_plan: ClassVar[dict] = {}

    moe: dict | None = None


class Experts(nn.Module):
    """One matrix of each expert, as a stack [experts, outputs, inputs]."""

    def __init__(self, num_experts: int, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, num_outputs, num_inputs))


class GatedLinear(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MixtureOfExperts(nn.Module):
    """The layer, expert by expert; the input and the output are [..., hidden_size]."""

    def __init__(self, config: ShardMoeConfig) -> None:
        super().__init__()
        moe = config.moe
        size, width, num_experts = config.hidden_size, config.intermediate_size, moe["num_experts"]
        self.top_k, self.score = moe["top_k"], moe["score"]
        self.router = nn.Linear(size, num_experts, bias=False)
        self.gate_proj = Experts(num_experts, size, width)
        self.up_proj = Experts(num_experts, size, width)
        self.down_proj = Experts(num_experts, width, size)
        if moe["num_shared"]:
            self.shared = GatedLinear(size, moe["num_shared"] * width)
        else:
            self.shared = None
        self.register_buffer("bias", torch.zeros(num_experts))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = hidden_states.flatten(0, -2)
        logits = F.linear(x.float(), self.router.weight.float())
        scores = logits.sigmoid() if self.score == "sigmoid" else logits.softmax(dim=-1)
        chosen = (scores + self.bias.float()).topk(self.top_k, dim=-1).indices
        weights = scores.gather(1, chosen)
        if self.score == "softmax_top_k":
            weights = logits.gather(1, chosen).softmax(dim=-1)
        y = torch.zeros_like(x)
        for e in range(logits.size(1)):
            rows, places = (chosen == e).nonzero(as_tuple=True)
            part = x[rows]
            hidden = F.silu(part @ self.gate_proj.weight[e].T) * (part @ self.up_proj.weight[e].T)
            out = hidden @ self.down_proj.weight[e].T
            y.index_add_(0, rows, out * weights[rows, places, None].to(x.dtype))
        y = y.view_as(hidden_states)
        return y if self.shared is None else y + self.shared(hidden_states)


class ShardMoeForCausalLM(VaultGemmaForCausalLM):
    """VaultGemmaForCausalLM with a mixture of experts in every layer."""

    config_class = ShardMoeConfig
    _can_compile_fullgraph = False

    def __init__(self, config: ShardMoeConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = MixtureOfExperts(config)
        self.post_init()
