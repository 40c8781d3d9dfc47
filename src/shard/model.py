"""The Shard language model, whole: embedding, rotary attention, gated feed-forward, capped logits.

    x_0     = sqrt(D) * E[ids]
    x_i'    = x_i  + Attention_i(norm(x_i))        local layers see a sliding window, global layers all that came before
    x_{i+1} = x_i' + FeedForward_i(norm(x_i'))     down(silu(gate(x)) * up(x))
    logits  = cap * tanh(norm(x_L) @ E^T / cap)    with the same table E (tied)
    norm(x) = x / rms(x) * (1 + w)

It is exactly the stock VaultGemma architecture, so that other tools load a release without code of ours; a mixture of
experts in place of the feed-forward layers (`moe`) has no such twin.
Shape suffixes: B batch, T new tokens, S keys, D hidden size, F feed-forward width, H heads, K head size, V vocabulary,
W window, N blocks of W tokens. In a mixture: N tokens, E experts, C chosen experts of a token, R = N * C rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from shard.config import Config

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Causal attention of q, k, v [B, H, T, K], in which each token sees the last `window` ones, itself counted."""
Angles = tuple[Tensor, Tensor]
"""Cosine and sine of the rotary angles."""

# Matrices start at 1 / sqrt(inputs), or at zero where they write to the stream. The table starts at SELF_LOGIT / width:
# a new model passes each embedding on to the tied head as it is, so that its own token gets this logit at any width and
# the first loss is near log(vocabulary). At width 512 that is 0.005, what tied models of this kind are tuned with.
SELF_LOGIT = 2.56


class Linear(nn.Module):
    """y = x W^T without bias; the weight [outputs, inputs] is cast to the dtype of x.

    Trained weights are fp32 masters while x is bf16: the cast is what makes the product a bf16 one.
    """

    def __init__(self, num_inputs: int, num_outputs: int, zero: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_outputs, num_inputs))
        if not zero:
            nn.init.normal_(self.weight, std=num_inputs**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (1 + w), computed in fp32, returned in the dtype of x."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, 1 + self.weight.float(), self.eps).to(x.dtype)


def rope_angles(positions: Tensor, head_dim: int, theta: float) -> Angles:
    """Cosine and sine [..., K/2] of the rotary angles in fp32, computed anew: no buffer that a cast could round."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.float()[..., None] / theta**exponents
    return angles.cos(), angles.sin()


def rotate(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + K/2}) by its angle (the half-split layout), in fp32; cos and sin [T, 1, K/2]."""
    left, right = x_BTHK.float().chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x_BTHK.dtype)


def local_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, window: int) -> Tensor:
    """Causal attention over the last `window` tokens, the current one counted, at a cost of O(T * window).

    Queries are cut into blocks of W = window tokens; all keys that a block may see lie in the block itself and the
    one before it, so that one mask [W, 2W] serves every block and no T x T mask exists. The first block has nothing
    before it: it is plain causal attention.
    """
    num_tokens = q_BHTK.size(2)
    if num_tokens <= window:
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
    # Padding at the end is never seen: it lies after every real query.
    q, k, v = (F.pad(x, (0, 0, 0, -num_tokens % window)) for x in (q_BHTK, k_BHTK, v_BHTK))
    head_q, head_k, head_v = (x[:, :, :window] for x in (q, k, v))
    first = F.scaled_dot_product_attention(head_q, head_k, head_v, is_causal=True)

    q_BHNWK, k_BHNWK, v_BHNWK = (x.unflatten(2, (-1, window)) for x in (q, k, v))
    pair_k, pair_v = (torch.cat([x[:, :, :-1], x[:, :, 1:]], dim=3).flatten(1, 2) for x in (k_BHNWK, v_BHNWK))
    age = torch.arange(window, 2 * window, device=q.device)[:, None] - torch.arange(2 * window, device=q.device)
    mask_W2W = (age >= 0) & (age < window)
    rest = F.scaled_dot_product_attention(q_BHNWK[:, :, 1:].flatten(1, 2), pair_k, pair_v, attn_mask=mask_W2W)
    rest_BHTK = rest.unflatten(1, (q.size(1), -1)).flatten(2, 3)
    return torch.cat([first, rest_BHTK], dim=2)[:, :, :num_tokens]


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions; `window` is None in a global layer."""

    def __init__(self, config: Config, window: int | None) -> None:
        super().__init__()
        width = config.num_heads * config.head_dim
        self.head_dim = config.head_dim
        self.window = window
        self.attend: Attend = local_attention
        self.query = Linear(config.hidden_size, width)
        self.key = Linear(config.hidden_size, width)
        self.value = Linear(config.hidden_size, width)
        self.output = Linear(width, config.hidden_size, zero=True)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache | None) -> Tensor:
        q, k, v = (project(x_BTD).unflatten(-1, (-1, self.head_dim)) for project in (self.query, self.key, self.value))
        # Turned as they come out of the products: turned as [B, H, T, K] they would lie so, the kernel would lay its
        # result out like them, and the product that follows would have to copy it.
        q, k, v = (x.transpose(1, 2) for x in (rotate(q, cos, sin), rotate(k, cos, sin), v))
        if cache is not None and cache.num_seen > 0:
            k, v, mask_TS = cache.extend(k, v)
            y_BHTK = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_TS)
        else:
            if cache is not None:
                cache.extend(k, v)
            y_BHTK = self.attend(q, k, v, self.window or q.size(2))
        return self.output(y_BHTK.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """The gated feed-forward layer down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate = Linear(hidden_size, width)
        self.up = Linear(hidden_size, width)
        self.down = Linear(width, hidden_size, zero=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


def looped_linear(x_RI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """Rows [R, O], each multiplied with its own expert's matrix: expert e has the rows from ends[e - 1] to ends[e]."""
    parts = x_RI.tensor_split(ends_E[:-1].cpu())
    return torch.cat([F.linear(part, weight_OI) for part, weight_OI in zip(parts, weight_EOI, strict=True)])


def grouped_linear(x_RI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """The same as one grouped product, with shapes that do not depend on the loads. It wants rows of whole 16 bytes,
    and on a GPU bf16.
    """
    return F.grouped_mm(x_RI, weight_EOI.mT, offs=ends_E.to(torch.int32))


def can_be_grouped(x: Tensor, *widths: int) -> bool:
    """Whether torch has a grouped product of rows of these widths, as `x` is."""
    is_aligned = all(width * x.element_size() % 16 == 0 for width in widths)
    return is_aligned and (x.dtype == torch.bfloat16 or x.device.type == "cpu")


def expert_linear(x_RI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """The grouped product where it is possible, else the plain loop."""
    product = grouped_linear if can_be_grouped(x_RI, *weight_EOI.shape[1:]) else looped_linear
    return product(x_RI, weight_EOI, ends_E)


class ExpertLinear(nn.Module):
    """The matrices of E experts as one stack [E, outputs, inputs]; otherwise as Linear."""

    def __init__(self, num_experts: int, num_inputs: int, num_outputs: int, zero: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_experts, num_outputs, num_inputs))
        if not zero:
            nn.init.normal_(self.weight, std=num_inputs**-0.5)
        self.product: Callable[[Tensor, Tensor, Tensor], Tensor] = expert_linear

    def forward(self, x_RI: Tensor, ends_E: Tensor) -> Tensor:
        return self.product(x_RI, self.weight.to(x_RI.dtype), ends_E)


class Routing(NamedTuple):
    """What a router decided, for the losses and the bias that balance it."""

    logits: Tensor
    """[N, E] in fp32, with their gradient."""
    scores: Tensor
    """[N, E]."""
    load: Tensor
    """[E]: choices that fell on each expert."""


class MixtureOfExperts(nn.Module):
    """sum over the chosen experts e of score_e(x) * FeedForward_e(x), plus a feed-forward layer for all tokens.

    A token chooses the experts with the largest score + bias; the bias balances the loads (Wang et al., arXiv
    2408.15664) and has no part in the output. The router computes in fp32.
    """

    bias: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        mixture = config.mixture
        assert mixture is not None
        size, width = config.hidden_size, config.intermediate_size
        self.top_k, self.score = mixture.top_k, mixture.score
        self.router = Linear(size, mixture.num_experts)
        self.gate = ExpertLinear(mixture.num_experts, size, width)
        self.up = ExpertLinear(mixture.num_experts, size, width)
        self.down = ExpertLinear(mixture.num_experts, width, size, zero=True)
        self.shared = FeedForward(size, mixture.num_shared * width) if mixture.num_shared else None
        self.register_buffer("bias", torch.zeros(mixture.num_experts))

    def route(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Routing]:
        """The chosen experts [N, C], their weights [N, C] in fp32, and what there is to balance."""
        logits_NE = F.linear(x_ND.float(), self.router.weight.float())
        scores_NE = logits_NE.sigmoid() if self.score == "sigmoid" else logits_NE.softmax(dim=-1)
        chosen_NC = (scores_NE.detach() + self.bias.float()).topk(self.top_k, dim=-1).indices
        weights_NC = scores_NE.gather(1, chosen_NC)
        if self.score == "softmax_top_k":
            weights_NC = logits_NE.gather(1, chosen_NC).softmax(dim=-1)
        experts_E = torch.arange(logits_NE.size(1), device=x_ND.device)
        load_E = (chosen_NC[..., None] == experts_E).sum(dim=(0, 1))
        return chosen_NC, weights_NC, Routing(logits_NE, scores_NE, load_E)

    def forward(self, x_BTD: Tensor, routing: list[Routing] | None = None) -> Tensor:
        x_ND = x_BTD.flatten(0, -2)
        chosen_NC, weights_NC, routed = self.route(x_ND)
        if routing is not None:
            routing.append(routed)
        order_R = chosen_NC.flatten().argsort(stable=True)  # rows of one expert side by side
        rows_RD = x_ND[order_R // self.top_k]
        ends_E = routed.load.cumsum(0)
        hidden_RF = F.silu(self.gate(rows_RD, ends_E)) * self.up(rows_RD, ends_E)
        y_RD = self.down(hidden_RF, ends_E)[order_R.argsort()]
        y_NCD = y_RD.unflatten(0, (-1, self.top_k)) * weights_NC[..., None].to(y_RD.dtype)
        y_BTD = y_NCD.sum(dim=1).view_as(x_BTD)
        return y_BTD if self.shared is None else y_BTD + self.shared(x_BTD)


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on the normed stream and added back to it."""

    def __init__(self, config: Config, window: int | None) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config, window)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.feed_forward: FeedForward | MixtureOfExperts
        if config.moe is None:
            self.feed_forward = FeedForward(config.hidden_size, config.intermediate_size)
        else:
            self.feed_forward = MixtureOfExperts(config)

    def forward(
        self,
        x_BTD: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: LayerCache | None = None,
        routing: list[Routing] | None = None,
    ) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos, sin, cache)
        normed_BTD = self.feed_forward_norm(x_BTD)
        if routing is None:
            return x_BTD + self.feed_forward(normed_BTD)
        return x_BTD + self.feed_forward(normed_BTD, routing)


class ShardLM(nn.Module):
    """A Shard model: `model(ids[B, T]) -> (capped logits[B, T, V] in fp32, None)`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        windows = [config.sliding_window if kind == "L" else None for kind in config.layer_types]
        self.blocks = nn.ModuleList(Block(config, window) for window in windows)
        self.final_norm = RMSNorm(config.hidden_size, config.norm_eps)
        nn.init.normal_(self.embedding.weight, std=SELF_LOGIT / config.hidden_size)

    def hidden(
        self,
        ids_BT: Tensor,
        cache: KVCache | None = None,
        dtype: torch.dtype | None = None,
        routing: list[Routing] | None = None,
    ) -> Tensor:
        """The normed hidden states [B, T, D] that the logits are read from.

        `dtype` is what to compute in (default: that of the weights). With a cache, `ids` continue what it holds. The
        routers of a mixture of experts add to `routing` what they decided, one entry a layer.
        Raises ValueError beyond max_sequence_length, where the model was never trained.
        """
        start = 0 if cache is None else cache.num_seen
        end = start + ids_BT.size(1)
        if end > self.config.max_sequence_length:
            raise ValueError(f"{end} tokens, but the model's context is {self.config.max_sequence_length}")
        angles = self.angles(torch.arange(start, end, device=ids_BT.device))
        return self.hidden_at(angles, ids_BT, cache, dtype, routing)

    def angles(self, positions_T: Tensor) -> Angles:
        """RoPE's cosine and sine [T, 1, K/2] of tokens at these positions, the same for all heads."""
        return rope_angles(positions_T[:, None], self.config.head_dim, self.config.rope_theta)

    def hidden_at(
        self,
        angles: Angles,
        ids_BT: Tensor,
        cache: KVCache | None = None,
        dtype: torch.dtype | None = None,
        routing: list[Routing] | None = None,
    ) -> Tensor:
        """As `hidden`, of tokens at the positions that `angles` were made of."""
        cos, sin = angles
        x_BTD = self.embedding(ids_BT).to(dtype or self.final_norm.weight.dtype)
        # The factor is rounded to the dtype of x, as in the Gemma family.
        x_BTD = x_BTD * torch.tensor(math.sqrt(self.config.hidden_size), dtype=x_BTD.dtype)
        for i, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, cos, sin, None if cache is None else cache.layers[i], routing)
        return self.final_norm(x_BTD)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Capped logits [B, T, V] in fp32."""
        cap = self.config.logit_cap
        return cap * torch.tanh(F.linear(hidden_BTD, self.embedding.weight.to(hidden_BTD.dtype)).float() / cap)

    def forward(self, ids_BT: Tensor, cache: KVCache | None = None) -> tuple[Tensor, None]:
        return self.logits(self.hidden(ids_BT, cache)), None

    def parameter_roles(self) -> dict[str, str]:
        """What each parameter is, by name: "embedding", "norm", or "matrix" (the hidden 2-D weights, or stacks of
        them).
        """
        kinds = {nn.Embedding: "embedding", RMSNorm: "norm", Linear: "matrix", ExpertLinear: "matrix"}
        return {
            f"{prefix}.{name}": kinds[type(module)]
            for prefix, module in self.named_modules()
            for name, _ in module.named_parameters(recurse=False)
        }


ToyLM = ShardLM  # the name under which the first release was published


class LayerCache:
    """Keys and values of one layer for the tokens seen so far, in a buffer of fixed size.

    A global layer keeps `max_length` tokens. A local layer keeps the last `window` tokens in a ring: position p lies
    in slot p mod window. Order does not matter to attention, since keys carry their position by RoPE.
    """

    def __init__(self, shape_BHSK: tuple[int, int, int, int], window: int | None, like: Tensor) -> None:
        self.window = window
        self.num_seen = 0
        self.k_BHSK = like.new_zeros(shape_BHSK)
        self.v_BHSK = like.new_zeros(shape_BHSK)

    def extend(self, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add T tokens; returns the keys, the values and the mask [T, S] that their queries need (None: see all)."""
        size, num_new, start = self.k_BHSK.size(2), k_BHTK.size(2), self.num_seen
        end = start + num_new
        if end > size and size != self.window:
            raise ValueError(f"the cache holds {size} tokens, not {end}")
        held = min(start, size)
        positions = torch.arange(start, end, device=k_BHTK.device)
        seen_k, seen_v, mask = k_BHTK, v_BHTK, None
        if num_new > 1 and start > 0:
            # New tokens may push old ones out of the ring that the first of them still see: look before writing.
            slots = torch.arange(held, device=positions.device)
            old = slots + (start - 1 - slots) // size * size
            seen_k = torch.cat([self.k_BHSK[:, :, :held], k_BHTK], dim=2)
            seen_v = torch.cat([self.v_BHSK[:, :, :held], v_BHTK], dim=2)
            age = positions[:, None] - torch.cat([old, positions])
            mask = (age >= 0) & (age < (self.window or end))
        keep = min(num_new, size)
        self.k_BHSK[:, :, positions[-keep:] % size] = k_BHTK[:, :, -keep:]
        self.v_BHSK[:, :, positions[-keep:] % size] = v_BHTK[:, :, -keep:]
        self.num_seen = end
        if num_new == 1:
            held = min(end, size)
            return self.k_BHSK[:, :, :held], self.v_BHSK[:, :, :held], None
        return seen_k, seen_v, mask


class KVCache:
    """The keys and values of every layer: a rolling window in local layers, everything in global ones."""

    def __init__(self, model: ShardLM, batch_size: int, max_length: int) -> None:
        config, like = model.config, model.final_norm.weight
        self.layers = []
        for kind in config.layer_types:
            window = config.sliding_window if kind == "L" else None
            size = min(max_length, window or max_length)
            shape = (batch_size, config.num_heads, size, config.head_dim)
            self.layers.append(LayerCache(shape, window, like.detach()))

    @property
    def num_seen(self) -> int:
        """Tokens held so far: the position of the next one."""
        return self.layers[0].num_seen
