"""The Hugging Face export: a folder that transformers loads as its stock VaultGemmaForCausalLM, without code of ours.

The architectures are the same (see model.py), so the export renames weights and says the shape in other words:

    config.json             the shape                     tokenizer.json          byte for byte ours
    model.safetensors       the weights, renamed          tokenizer_config.json   bos, eos and pad are the separator
    generation_config.json  greedy, stops at the separator

It is written without transformers. What that architecture cannot say is refused, never approximated. A mixture of
experts is no stock architecture: its folder has modeling_shard_moe.py too, which transformers runs only with
trust_remote_code.
"""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shard.config import Config
from shard.errors import ShardError
from shard.files import copy_file, write_json
from shard.inference.load import read_tokenizer, separator_of
from shard.tokenizer import SEPARATOR
from shard.training.tensors import write_tensors

ARCHITECTURE, MODEL_TYPE = "VaultGemmaForCausalLM", "vaultgemma"
MIXTURE_ARCHITECTURE, MIXTURE_TYPE, MIXTURE_FILE = "ShardMoeForCausalLM", "shard_moe", "modeling_shard_moe.py"
"""Of a mixture of experts: the class in the file that lies beside its weights."""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LAYER_TYPES = {"L": "sliding_attention", "G": "full_attention"}

WITHIN_A_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
    "feed_forward.router": "mlp.router",
    "feed_forward": "mlp",  # its bias
    "feed_forward.shared.gate": "mlp.shared.gate_proj",
    "feed_forward.shared.up": "mlp.shared.up_proj",
    "feed_forward.shared.down": "mlp.shared.down_proj",
}
OUTSIDE = {"embedding": "model.embed_tokens", "final_norm": "model.norm"}
"""Ours -> theirs. Both keep matrices as [outputs, inputs], norms as the w of 1 + w, and RoPE in the half-split layout:
no weight changes. The head is the table, in both."""


def their_name(name: str) -> str:
    """The name of one of our weights in transformers, as blocks.3.feed_forward.up -> model.layers.3.mlp.up_proj."""
    stem, _, kind = name.rpartition(".")
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", stem):
        return f"model.layers.{match[1]}.{WITHIN_A_LAYER[match[2]]}.{kind}"
    return f"{OUTSIDE[stem]}.{kind}"


def obstacle(config: Config) -> str | None:
    """Why neither the stock architecture nor our file for a mixture of experts computes what a model of this shape
    computes; None where one does.
    """
    if config.engram is not None:
        return f"no Hugging Face export: {ARCHITECTURE} has no engram"
    if config.hidden_size % config.num_heads:
        return (
            f"no Hugging Face export: {ARCHITECTURE} wants model.hidden_size to be a multiple of model.num_heads, "
            f"not {config.hidden_size} and {config.num_heads}"
        )
    if config.sliding_window == 1 and "L" in config.layer_types:
        # It keeps the last `window - 1` tokens by a slice that for one token keeps all of them.
        return "no Hugging Face export: the cache of transformers is wrong for model.sliding_window = 1"
    return None


def describe_config(config: Config, separator_id: int, dtype: torch.dtype) -> dict[str, Any]:
    """config.json of a model. Its strict classes take no 30 where they want 30.0."""
    architecture: dict[str, Any] = {"architectures": [ARCHITECTURE], "model_type": MODEL_TYPE}
    if config.mixture is not None:
        module = MIXTURE_FILE.removesuffix(".py")
        architecture = {
            "architectures": [MIXTURE_ARCHITECTURE],
            "model_type": MIXTURE_TYPE,
            "auto_map": {
                "AutoConfig": f"{module}.ShardMoeConfig",
                "AutoModelForCausalLM": f"{module}.{MIXTURE_ARCHITECTURE}",
            },
            "moe": asdict(config.mixture),
        }
    return {
        **architecture,
        "dtype": str(dtype).removeprefix("torch."),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "head_dim": config.head_dim,
        "hidden_activation": "silu",
        "max_position_embeddings": config.max_sequence_length,
        "rms_norm_eps": float(config.norm_eps),
        # Scores are divided by the root of this.
        "query_pre_attn_scalar": config.head_dim,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": float(config.logit_cap),
        "layer_types": [LAYER_TYPES[kind] for kind in config.layer_types],
        "sliding_window": config.sliding_window,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config.rope_theta)},
        # Where transformers 4.57 looks for it; there, a missing one would be 10,000 without a word.
        "rope_theta": float(config.rope_theta),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": separator_id,
        "eos_token_id": separator_id,
        "pad_token_id": separator_id,
    }


def describe_tokenizer(config: Config, separator: str = SEPARATOR) -> dict[str, Any]:
    """tokenizer_config.json: nothing is added to a text, and a text that spells the separator is not the separator."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": separator,
        "eos_token": separator,
        "pad_token": separator,
        "add_bos_token": False,
        "add_eos_token": False,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": config.max_sequence_length,
        # What a batch of prompts needs that is to be continued.
        "padding_side": "left",
    }


def describe_generation(separator_id: int) -> dict[str, Any]:
    """generation_config.json: greedy unless asked otherwise, as `shard generate`."""
    return {
        "bos_token_id": separator_id,
        "eos_token_id": separator_id,
        "pad_token_id": separator_id,
        "do_sample": False,
    }


def export_hugging_face(
    weights: dict[str, Tensor], config: Config, tokenizer: Path, folder: Path, dtype: str = "bf16"
) -> dict[str, Any]:
    """Write the export of these weights (names of model.py) and this tokenizer.json into `folder`, in one of DTYPES;
    what was written. The same weights give the same bytes. ShardError where it would not be exact.
    """
    if reason := obstacle(config):
        raise ShardError(reason)
    separator = separator_of(tokenizer)
    separator_id = read_tokenizer(tokenizer, config.vocab_size).token_to_id(separator)
    if separator_id is None:
        raise ShardError(f"{tokenizer} has no token {separator}: a Hugging Face export needs it to end a text")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", describe_config(config, separator_id, DTYPES[dtype]))
    write_json(folder / "tokenizer_config.json", describe_tokenizer(config, separator))
    write_json(folder / "generation_config.json", describe_generation(separator_id))
    copy_file(tokenizer, folder / "tokenizer.json")
    if config.moe is not None:
        copy_file(Path(__file__).with_name(MIXTURE_FILE), folder / MIXTURE_FILE)
    tensors = {their_name(ours): weight.to(DTYPES[dtype]) for ours, weight in weights.items()}
    # transformers asks who wrote a file, and takes this answer.
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    return {"dtype": dtype, "parameters": sum(tensor.numel() for tensor in tensors.values())}
