"""GGUF files: what llama.cpp, Ollama and LM Studio load, tokenizer included.

    f32   the weights as they are     bf16  the bits of models/model.pt     q8_0  8 bits and a scale for each 32 weights

A model with local layers is written as `granite_swa`, which windows each layer apart; one whose layers all see
the whole context as `llama`, which every version of llama.cpp knows. Neither caps the final logits: what follows from
that is written into each file (see `limits`).

    ours                                  in the file
    row i, row i + K/2 of a head (RoPE)   rows 2i, 2i + 1 of that head                 attn_q, attn_k
    norm(x) * (1 + w)                     norm(x) * w, stored as 1 + w in f32          *_norm
    sqrt(D) * E[ids]                      granite_swa: embedding_scale = sqrt(D), rounded as the model rounds it
                                          llama: token_embd = sqrt(D) * E, and E again as output.weight
    softmax without a sink                granite_swa: attn_sinks = -10,000, whose exponential is 0
"""

import json
import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shard.config import Config
from shard.errors import ShardError
from shard.files import atomic_open
from shard.inference.load import read_tokenizer
from shard.recipe import Recipe
from shard.run import RECIPE
from shard.tokenizer import SEPARATOR, SPLIT_PATTERN

if TYPE_CHECKING:
    from gguf import GGUFWriter

DTYPES = ("bf16", "q8_0", "f32")

_NO_SINK = -1e4  # finite: an infinite one may become NaN on the way
_Q8_BLOCK = 32

# Ours -> theirs, in each block.
_NAMES = {
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}


def architecture_of(config: Config) -> str:
    """The architecture of llama.cpp that computes a model of this shape over the whole of its context.

    Raises ShardError where there is none.
    """
    for part in ("moe", "engram"):
        if getattr(config, part) is not None:
            raise ShardError(f"no GGUF export: llama.cpp has no architecture with this {part}")
    has_windows = "L" in config.layer_types and config.sliding_window < config.max_sequence_length
    return "granite_swa" if has_windows else "llama"


def limits(config: Config) -> str:
    """What a file does not compute as the model does: it stands in the file and in the card."""
    cap = f"{config.logit_cap:g}"
    return (
        f"The model caps its final logits, {cap} * tanh(x / {cap}); llama.cpp does not in this architecture. Greedy "
        "decoding is the same; sampling, and any log-probability, is that of the logits before the cap."
    )


def export_folder(
    weights: Mapping[str, Tensor], config: Config, tokenizer: Path, folder: Path, dtype: str
) -> dict[str, Any]:
    """Write one file into `folder`, named after the recipe of the run or bundle that the tokenizer belongs to; what
    was written.
    """
    path = tokenizer.parent.parent / RECIPE
    recipe = Recipe.load(str(path)) if path.is_file() else None
    name, license = (recipe.name, recipe.release.license) if recipe else ("model", None)
    file = export_gguf(weights, config, tokenizer, folder / f"{name}-{dtype}.gguf", dtype, name, license)
    return {"dtype": dtype, "architecture": architecture_of(config), "file": file.name}


def export_gguf(
    weights: Mapping[str, Tensor],
    config: Config,
    tokenizer: Path,
    path: Path,
    dtype: str,
    name: str,
    license: str | None = None,
) -> Path:
    """Write these weights (names of model.py, any float dtype) and this tokenizer.json to `path`, in one of DTYPES.

    The file appears when it is whole; the same weights give the same bytes. Norms are f32 in every file, and in a q8_0
    file so are matrices whose rows do not divide into blocks of 32. ShardError where the model or its tokenizer has no
    such form, or the package `gguf`, an extra, is missing.
    """
    architecture = architecture_of(config)
    if find_spec("gguf") is None:
        raise ShardError(
            "no GGUF export: the package gguf is missing; pip install 'shard-lm[gguf]', then "
            "`shard export RUN --to gguf --out DIR`"
        )
    from gguf import GGUFWriter

    vocabulary = _read_vocabulary(tokenizer, config.vocab_size)
    with atomic_open(path) as file:
        # It opens the same temporary file by its name, which is flushed and renamed when this block ends.
        writer = GGUFWriter(file.name, architecture)
        _add_labels(writer, config, dtype, name, license)
        _add_shape(writer, config, dtype)
        _add_tokenizer(writer, vocabulary, config.vocab_size)
        for tensor_name, tensor in _tensors(weights, config, architecture, dtype):
            _add_tensor(writer, tensor_name, tensor, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def _embedding_scale(config: Config, dtype: str) -> Tensor:
    """sqrt(D), rounded to the dtype that the model of such a file computes in."""
    return torch.tensor(math.sqrt(config.hidden_size), dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)


def _add_shape(writer: "GGUFWriter", config: Config, dtype: str) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_sequence_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if writer.arch == "granite_swa":
        writer.add_embedding_scale(_embedding_scale(config, dtype).item())
        writer.add_attention_scale(config.head_dim**-0.5)
        writer.add_residual_scale(1.0)
        writer.add_logit_scale(1.0)
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([kind == "L" for kind in config.layer_types])


def _add_labels(writer: "GGUFWriter", config: Config, dtype: str, name: str, license: str | None) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    file_types = {"f32": LlamaFileType.ALL_F32, "bf16": LlamaFileType.MOSTLY_BF16, "q8_0": LlamaFileType.MOSTLY_Q8_0}
    writer.add_type("model")
    writer.add_name(name)
    writer.add_description(f"Trained with Shard. {limits(config)}")
    if license is not None:
        writer.add_license(license)
    writer.add_file_type(file_types[dtype])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    # For a program that wants to cap them itself.
    writer.add_float32("shard.logit_cap", config.logit_cap)


def _read_vocabulary(path: Path, vocab_size: int) -> dict[str, Any]:
    """The parts of a tokenizer.json. ShardError unless it cuts text as llama.cpp does under the name qwen2."""
    parts: dict[str, Any] = json.loads(read_tokenizer(path, vocab_size).to_str())
    steps = (parts["pre_tokenizer"] or {}).get("pretokenizers", [])
    kinds = [step["type"] for step in steps]
    if kinds != ["Split", "ByteLevel"] or steps[0]["pattern"] != {"Regex": SPLIT_PATTERN}:
        raise ShardError(f"no GGUF export: {path} cuts text in another way than the one that llama.cpp calls qwen2")
    if SEPARATOR not in (added["content"] for added in parts["added_tokens"]):
        raise ShardError(f"no GGUF export: {path} has no token {SEPARATOR}, which ends a text")
    return parts


def _add_tokenizer(writer: "GGUFWriter", parts: dict[str, Any], vocab_size: int) -> None:
    """Tokens by id, merges, and the separator as beginning, end and padding, which nothing adds to a prompt."""
    from gguf import TokenType

    # The table may have more rows than the text gave tokens.
    tokens = [f"[unused {i}]" for i in range(vocab_size)]
    types = [TokenType.UNUSED] * vocab_size
    for token, i in parts["model"]["vocab"].items():
        tokens[i], types[i] = token, TokenType.NORMAL
    for added in parts["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in parts["model"]["merges"]])
    separator_id = tokens.index(SEPARATOR)
    writer.add_bos_token_id(separator_id)
    writer.add_eos_token_id(separator_id)
    writer.add_pad_token_id(separator_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def _tensors(
    weights: Mapping[str, Tensor], config: Config, architecture: str, dtype: str
) -> Iterator[tuple[str, Tensor]]:
    """Name and content of each tensor of the file, in fp32, or in bf16 for a bf16 file (norms and sinks in fp32)."""
    stored = torch.bfloat16 if dtype == "bf16" else torch.float32
    table_VD = weights["embedding.weight"].to(stored)
    if architecture == "llama":
        yield "token_embd.weight", table_VD * _embedding_scale(config, dtype)
        yield "output.weight", table_VD
    else:
        yield "token_embd.weight", table_VD
    for i in range(config.num_layers):
        for ours, theirs in _NAMES.items():
            weight = weights[f"blocks.{i}.{ours}.weight"].to(stored)
            if theirs.endswith("norm"):
                weight = 1 + weight.float()
            elif theirs in ("attn_q", "attn_k"):
                weight = _interleave(weight, config.num_heads)
            yield f"blk.{i}.{theirs}.weight", weight
        if architecture == "granite_swa":
            yield f"blk.{i}.attn_sinks.weight", torch.full((config.num_heads,), _NO_SINK)
    yield "output_norm.weight", 1 + weights["final_norm.weight"].to(stored).float()


def _interleave(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of Q or K [H * K, D] in the order that turns rows 2i and 2i + 1 of a head by the same angle."""
    return weight.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _add_tensor(writer: "GGUFWriter", name: str, tensor: Tensor, dtype: str) -> None:
    from gguf import GGMLQuantizationType, quantize

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        writer.add_tensor(name, tensor.view(torch.uint8).numpy(), raw_dtype=GGMLQuantizationType.BF16)
    elif dtype == "q8_0" and tensor.ndim == 2 and tensor.size(1) % _Q8_BLOCK == 0:
        quantized = quantize(tensor.numpy(), GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, quantized, raw_dtype=GGMLQuantizationType.Q8_0)
    else:
        writer.add_tensor(name, tensor.numpy())
