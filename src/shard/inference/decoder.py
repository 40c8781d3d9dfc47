"""The fast decode step: prompts of different lengths side by side, one token a row and step.

The plain twin is ShardLM with its KVCache. Here matrices that read the same input are one (query, key and value; gate
and up), gains are made once, and how far each row is stands in a tensor while shapes stay as they are, so that one
compiled step, or one captured CUDA graph, serves every token.
Shape suffixes as in model.py: B rows, D hidden size, H heads, K head size, S slots of a buffer, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shard.inference.cuda_graph import GraphedStep
from shard.inference.kernels import choose_kernels, decode_attention
from shard.inference.quantize import Int8Linear, Int8LM
from shard.model import Block, FeedForward, Linear, ShardLM

LEAST_SIZE = 256
"""Slots that a compiled step with torch's attention reads of a buffer at least; then twice as many, compiled anew."""


class Place(NamedTuple):
    """Where one token a row goes, and what it sees."""

    slots: Tensor
    """[B * H]: for each row and head, in a buffer of which all slots stand in one line."""
    mask: Tensor | None
    """[B, 1, 1, S], added to the logits of attention: 0, or minus infinity; None where all is seen, and for our
    own kernel, which counts."""
    seen: Tensor
    """[B]: tokens of each row with the new one. A buffer that has fewer slots is full."""


class Decoder:
    """A model made ready to decode. It shares its weights with the model, which stays usable.

    `compile` makes a step one compiled function, for which the model must stay as it is: its layers are not looked at
    again. On CUDA the eager step is captured as a graph instead.
    """

    def __init__(self, model: ShardLM, compile: bool = False, backend: str = "inductor") -> None:
        self.model = model
        self.layers = [_Layer.of(cast(Block, block)) for block in model.blocks]
        self.final_gain = 1 + model.final_norm.weight.detach().float()
        self.is_static = compile
        self.device = self.final_gain.device
        wants_kernels = self.device.type == "cpu" and (compile or isinstance(model, Int8LM))
        self.has_kernels = wants_kernels and choose_kernels()[0]
        # Rounded to the dtype of x, as in the model.
        dtype = model.final_norm.weight.dtype
        self.embedding_factor = float(torch.tensor(math.sqrt(model.config.hidden_size), dtype=dtype))
        self._run: Callable[[Tensor, Batch], Tensor] = self.step
        if compile and self.device.type == "cuda":
            self._run = GraphedStep(self.step)
        elif compile:
            # The model stays what it is, so that nothing of it has to be looked at again before each step; but what was
            # compiled for one decoder must not be found by another.
            options = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
            self._run = torch.compile(  # type: ignore[call-overload]  # its overloads lack the last argument
                self.step, dynamic=False, backend=backend, options=options, isolate_recompiles=True
            )

    def start(self, prompts: Sequence[Sequence[int]], max_length: int) -> "tuple[Batch, Tensor]":
        """Read the prompts: the batch, which holds up to `max_length` tokens a row, and the logits [B, V] of what
        follows each. Raises ValueError for an empty prompt, or beyond the model's context.
        """
        lengths = [len(prompt) for prompt in prompts]
        if min(lengths) < 1 or max(max_length, *lengths) > self.model.config.max_sequence_length:
            context = self.model.config.max_sequence_length
            raise ValueError(f"prompts of {min(lengths)} to {max_length} tokens, but the context is 1 to {context}")
        batch = Batch(self, lengths, max(max_length, *lengths))
        # Padding stands at the end, where causal attention never looks back from.
        ids_BT = torch.zeros(len(prompts), max(lengths), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids_BT[row, : len(prompt)] = torch.tensor(prompt)
        ids_BT = ids_BT.to(self.device)
        angles = self.model.angles(torch.arange(ids_BT.size(1), device=self.device))
        hidden_BTD = self.model.hidden_at(angles, ids_BT, batch)  # type: ignore[arg-type]
        last_BD = hidden_BTD[batch.rows_B, batch.lengths_B - 1]
        return batch, self.model.logits(last_BD[:, None])[:, 0]

    def extend(self, batch: "Batch", ids: Sequence[int]) -> Tensor:
        """Add one token to each row; the logits [B, V] of the next ones, valid until the next call."""
        batch.advance()
        return self._run(torch.tensor(ids, device=self.device), batch)

    def step(self, ids_B: Tensor, batch: "Batch") -> Tensor:
        """What `extend` computes: the same operations for every token. Rows that have ended stay where they are."""
        config = self.model.config
        cos, sin = self.model.angles(batch.lengths_B)
        cos_B1K, sin_B1K = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        places = batch.locate()
        x_BD = self.model.embedding(ids_B) * self.embedding_factor
        for layer, buffer in zip(self.layers, batch.layers, strict=True):
            x_BD = layer.run(x_BD, cos_B1K, sin_B1K, buffer, places[buffer.size])
        batch.lengths_B.add_(batch.active_B)
        normed_BD = F.rms_norm(x_BD.float(), self.final_gain.shape, self.final_gain, config.norm_eps).to(x_BD.dtype)
        return self.model.logits(normed_BD[:, None])[:, 0]


@dataclass(frozen=True)
class _Layer:
    """What one layer multiplies with."""

    attention_gain: Tensor
    query_key_value: nn.Module
    output: nn.Module
    feed_forward_gain: Tensor
    feed_forward: Callable[[Tensor], Tensor]
    head_dim: int
    eps: float

    @classmethod
    def of(cls, block: Block) -> "_Layer":
        attention, feed_forward = block.attention, block.feed_forward
        return cls(
            1 + block.attention_norm.weight.detach().float(),
            join([attention.query, attention.key, attention.value]),
            attention.output,
            1 + block.feed_forward_norm.weight.detach().float(),
            _JoinedFeedForward(feed_forward) if isinstance(feed_forward, FeedForward) else feed_forward,
            attention.head_dim,
            block.attention_norm.eps,
        )

    def run(self, x_BD: Tensor, cos_B1K: Tensor, sin_B1K: Tensor, buffer: "Buffer", place: Place) -> Tensor:
        normed_BD = F.rms_norm(x_BD.float(), self.attention_gain.shape, self.attention_gain, self.eps).to(x_BD.dtype)
        qkv_BHK = self.query_key_value(normed_BD).unflatten(-1, (-1, self.head_dim))
        num_heads = qkv_BHK.size(1) // 3
        qk_BHK = qkv_BHK[:, : 2 * num_heads].float()
        # model.rotate, written as x * cos + (x turned by half) * sin with the sign in the sine.
        turned_BHK = qk_BHK.roll(self.head_dim // 2, -1)
        qk_BHK = torch.addcmul(qk_BHK * cos_B1K, turned_BHK, sin_B1K)
        q_BHK, k_BHK, v_BHK = qk_BHK[:, :num_heads], qk_BHK[:, num_heads:], qkv_BHK[:, 2 * num_heads :]
        y_BHK = buffer.attend(q_BHK, k_BHK, v_BHK, place)
        x_BD = x_BD + self.output(y_BHK.flatten(1).to(x_BD.dtype))
        normed_BD = F.rms_norm(x_BD.float(), self.attention_gain.shape, self.feed_forward_gain, self.eps).to(x_BD.dtype)
        return x_BD + self.feed_forward(normed_BD)


class _JoinedFeedForward:
    """A dense feed-forward layer whose gate and up are one matrix."""

    def __init__(self, layer: FeedForward) -> None:
        self.gate_up, self.down = join([layer.gate, layer.up]), layer.down

    def __call__(self, x_BD: Tensor) -> Tensor:
        gate_BF, up_BF = self.gate_up(x_BD).chunk(2, dim=-1)
        return cast(Tensor, self.down(F.silu(gate_BF) * up_BF))


def join(parts: Sequence[nn.Module]) -> nn.Module:
    """One matrix of several that read the same input; the parts become views of it, so that memory holds them once."""
    sizes = [part.weight.size(0) for part in parts]  # type: ignore[operator]
    whole = torch.cat([part.weight.detach() for part in parts])  # type: ignore[operator]
    for part, piece in zip(parts, whole.split(sizes), strict=True):
        part.weight.data = piece
    if isinstance(parts[0], Int8Linear):
        return Int8Linear(whole, torch.cat([part.scale for part in parts]), parts[0].most_rows)  # type: ignore[misc]
    with torch.device("meta"):
        joined = Linear(whole.size(1), whole.size(0), zero=True)
    joined.weight = nn.Parameter(whole, requires_grad=False)
    return joined


class Buffer:
    """Keys and values [B, H, S, K] of one layer: position p of a row lies in slot p mod S.

    To the model, which reads the prompts, it is a LayerCache that has seen nothing.
    """

    num_seen = 0

    def __init__(self, batch: "Batch", shape_BHSK: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        self.batch = batch
        self.size = shape_BHSK[2]
        # Zeros for torch's kernel, which multiplies what the mask hides by 0; our own does not read it.
        make = torch.empty if batch.has_kernels else torch.zeros
        self.k_BHSK = make(shape_BHSK, dtype=dtype, device=batch.lengths_B.device)
        self.v_BHSK = make(shape_BHSK, dtype=dtype, device=batch.lengths_B.device)

    def extend(self, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keep what each row of the prompts still sees: of one longer than the buffer its end."""
        for new_BHTK, buffer_BHSK in ((k_BHTK, self.k_BHSK), (v_BHTK, self.v_BHSK)):
            num_tokens = new_BHTK.size(2)
            if num_tokens <= self.size:
                buffer_BHSK[:, :, :num_tokens] = new_BHTK
                continue
            last_B1 = self.batch.lengths_B[:, None] - 1
            positions_BS = last_B1 - (last_B1 - torch.arange(self.size, device=last_B1.device)) % self.size
            index_BHSK = positions_BS.clamp(min=0)[:, None, :, None].expand_as(buffer_BHSK)
            buffer_BHSK.copy_(new_BHTK.gather(2, index_BHSK))
        return k_BHTK, v_BHTK, None

    def attend(self, q_BHK: Tensor, k_BHK: Tensor, v_BHK: Tensor, place: Place) -> Tensor:
        """Add one token a row, and attend from it to what the row still sees: [B, H, K] in the buffer's dtype."""
        self.k_BHSK.flatten(0, 2).index_copy_(0, place.slots, k_BHK.flatten(0, 1).to(self.k_BHSK.dtype))
        self.v_BHSK.flatten(0, 2).index_copy_(0, place.slots, v_BHK.flatten(0, 1).to(self.k_BHSK.dtype))
        if self.batch.has_kernels:
            return decode_attention(q_BHK, self.k_BHSK, self.v_BHSK, place.seen)
        num_read = min(self.size, self.batch.num_read)
        k_BHSK, v_BHSK = self.k_BHSK[:, :, :num_read], self.v_BHSK[:, :, :num_read]
        q_BH1K = q_BHK[:, :, None].to(k_BHSK.dtype)
        return F.scaled_dot_product_attention(q_BH1K, k_BHSK, v_BHSK, attn_mask=place.mask)[:, :, 0]


class Batch:
    """Rows of text that are continued together: their lengths, and the buffers of every layer."""

    def __init__(self, decoder: Decoder, lengths: list[int], max_length: int) -> None:
        config, device = decoder.model.config, decoder.device
        # Attention over a bf16 cache took 7 to 10 times as long as over an fp32 one on a CPU without bf16 products.
        dtype = torch.float32 if device.type == "cpu" else decoder.model.final_norm.weight.dtype
        self.longest = max(lengths)
        self.is_static, self.has_kernels = decoder.is_static, decoder.has_kernels
        self.num_read = 0
        self.lengths_B = torch.tensor(lengths, device=device)
        """Tokens held of each row: the position of its next one."""
        self.active_B = torch.ones_like(self.lengths_B)
        """1 for a row that goes on, 0 for one that has ended."""
        self.rows_B = torch.arange(len(lengths), device=device)
        self._lines_BH = torch.arange(len(lengths) * config.num_heads, device=device)
        if self.is_static:
            # Memory that is never touched costs nothing, and with one size there is one compilation.
            max_length = config.max_sequence_length if self.has_kernels else _doubled(max_length)
        self.layers = []
        for kind in config.layer_types:
            size = min(max_length, config.sliding_window) if kind == "L" else max_length
            self.layers.append(Buffer(self, (len(lengths), config.num_heads, size, config.head_dim), dtype))

    def advance(self) -> None:
        """Make room for one more token in the longest row: on the host, before the step."""
        self.longest += 1
        self.num_read = _doubled(self.longest) if self.is_static else self.longest

    def locate(self) -> dict[int, Place]:
        """The places of the new tokens in a buffer of each size. Slot s holds the newest position p <= n with
        p mod S = s: it lies (n - s) mod S tokens back, and is there if the text is that long. No buffer is larger
        than its layer's window, so that all of it is in sight.
        """
        places = {}
        n_B1, seen_B = self.lengths_B[:, None], self.lengths_B + 1
        for size in {buffer.size for buffer in self.layers}:
            mask_B11S = None
            if not self.has_kernels and (self.is_static or len(self.rows_B) > 1):
                slots_S = torch.arange(min(size, self.num_read), device=n_B1.device)
                is_hidden_BS = (n_B1 - slots_S) % size > n_B1
                dtype = self.layers[0].k_BHSK.dtype
                mask_B11S = torch.zeros_like(is_hidden_BS, dtype=dtype).masked_fill(is_hidden_BS, -math.inf)
                mask_B11S = mask_B11S[:, None, None]
            num_heads = len(self._lines_BH) // len(self.rows_B)
            slots_BH = self._lines_BH * size + (self.lengths_B % size).repeat_interleave(num_heads)
            places[size] = Place(slots_BH, mask_B11S, seen_B)
        return places


def _doubled(length: int) -> int:
    return max(LEAST_SIZE, 1 << (length - 1).bit_length())
