"""`shard import FOLDER` of a Hugging Face export: its weights, to the bit, in a run that can be evaluated or annealed.

Such a folder holds no optimizer state and no count of steps: both start afresh. It may come from a stranger: no pickle
is read, and sizes in headers are compared before memory is taken.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shard.config import LARGEST, Config
from shard.errors import ShardError, UsageError
from shard.inference.load import build_model, empty_model, is_empty_template, read_tokenizer
from shard.recipe import Recipe
from shard.release.hugging_face import (
    ARCHITECTURE,
    LAYER_TYPES,
    MIXTURE_ARCHITECTURE,
    MIXTURE_TYPE,
    MODEL_TYPE,
    their_name,
)
from shard.release.importer import begin_run
from shard.run import RECIPE
from shard.tokenizer import SEPARATOR
from shard.training.optimizer import Optimizer

MAX_CONFIG_BYTES = 2**20

_FLOATS = ("F32", "BF16", "F16")

_DEFAULTS = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}
"""What transformers takes where config.json says nothing."""

_FIXED = {
    "hidden_activation": "silu",
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "tie_word_embeddings": True,
}
"""What every Shard model has."""

_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "logit_cap": "final_logit_softcapping",
}
"""Our key -> theirs, where the value is the same."""


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder is one of transformers. A release bundle has its own inside, in hf/, and as a repository of the
    hub at its root: it is a bundle all the same, which brings more.
    """
    return (folder / "config.json").is_file() and not (folder / "models" / "pretrain.pt").is_file()


def read_config(folder: Path) -> Config:
    """The shape that config.json describes. ShardError for a model that is no Shard model, with the key."""
    path = folder / "config.json"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it has more than {MAX_CONFIG_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ShardError(f"{path} cannot be read: {error}") from None
    is_mixture = content.get("model_type") == MIXTURE_TYPE
    kind, architecture = (MIXTURE_TYPE, MIXTURE_ARCHITECTURE) if is_mixture else (MODEL_TYPE, ARCHITECTURE)
    if content.get("model_type") != kind or content.get("architectures", [architecture]) != [architecture]:
        found = content.get("architectures") or content.get("model_type")
        raise ShardError(f"{path}: only a {ARCHITECTURE} can be imported, not {found!r:.100}")
    content = _DEFAULTS | content
    for key, value in _FIXED.items():
        _expect(path, key, content[key], value)
    for key in (*_KEYS.values(), "layer_types", "sliding_window"):
        if key not in content:
            raise ShardError(f"{path} lacks the key {key}")
    _expect(path, "num_key_value_heads", content.get("num_key_value_heads"), content["num_attention_heads"])
    _expect(path, "query_pre_attn_scalar", content.get("query_pre_attn_scalar"), content["head_dim"])
    shape: dict[str, Any] = {ours: content[theirs] for ours, theirs in _KEYS.items()}
    shape["rope_theta"] = _rope_theta(path, content)
    shape["layer_pattern"] = _pattern(path, content["layer_types"], content["num_hidden_layers"])
    if content["sliding_window"] is not None or "L" in shape["layer_pattern"]:
        shape["sliding_window"] = content["sliding_window"]
    if is_mixture:
        shape["moe"] = content.get("moe") or {}
    try:
        return Config(**shape)
    except (TypeError, ValueError) as error:
        raise ShardError(f"{path} does not describe a Shard model: {error}") from None


def _expect(path: Path, key: str, value: Any, wanted: Any) -> None:
    if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
        raise ShardError(f"{path}: {key} is {value!r:.60}, and a Shard model has {wanted!r:.60} there")


def _rope_theta(path: Path, content: dict[str, Any]) -> Any:
    """Theta of plain rotary angles: in a table since transformers 5, a key of its own before."""
    table = content.get("rope_parameters")
    if table is None:
        _expect(path, "rope_scaling", content.get("rope_scaling"), None)
        table = {"rope_theta": content.get("rope_theta", 10_000.0)}
    plain = isinstance(table, dict) and table.keys() <= {"rope_type", "rope_theta"} and "rope_theta" in table
    if not plain or table.get("rope_type", "default") != "default":
        raise ShardError(f"{path}: rope_parameters is {table!r:.100}, and a Shard model has plain angles")
    return table["rope_theta"]


def _pattern(path: Path, layer_types: Any, num_layers: Any) -> str:
    """The shortest pattern that repeats to these layers."""
    letters = {theirs: ours for ours, theirs in LAYER_TYPES.items()}
    if not isinstance(layer_types, list) or not layer_types or not all(str(kind) in letters for kind in layer_types):
        raise ShardError(f"{path}: layer_types is {layer_types!r:.100}, and not of {', '.join(letters)}")
    _expect(path, "num_hidden_layers", num_layers, len(layer_types))
    if len(layer_types) > LARGEST["num_layers"]:
        raise ShardError(f"{path}: layer_types has {len(layer_types)} entries, more than any model has layers")
    kinds = "".join(letters[str(kind)] for kind in layer_types)
    if kinds[-1] != "G":
        raise ShardError(f"{path}: the last layer is a local one, and a Shard model ends with a global one")
    free = kinds[:-1]  # the last layer is global whatever the pattern says
    return next(kinds[:n] for n in range(1, len(kinds) + 1) if (kinds[:n] * len(kinds)).startswith(free))


def read_weights(folder: Path, config: Config) -> dict[str, Tensor]:
    """The weights under our names, in their dtype. ShardError names the first one that is missing, unknown or not of
    the model's shape; until then only the header has been read.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        split = (folder / "model.safetensors.index.json").is_file()
        hint = "it is split: save it again with max_shard_size" if split else "other formats of weights are not read"
        raise ShardError(f"{path} is missing: {hint}")
    expected = empty_model(config).state_dict()
    ours = {their_name(name): name for name in expected}
    shapes = {their_name(name): list(weight.shape) for name, weight in expected.items()}
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name in [*shapes, *sorted(names - shapes.keys())]:
                if name not in names:
                    raise ShardError(f"{path} lacks the weight {name}")
                if name not in shapes:
                    raise ShardError(f"{path} has the weight {name!r:.100}, and a Shard model of this shape has none")
                view = file.get_slice(name)
                if view.get_shape() != shapes[name] or view.get_dtype() not in _FLOATS:
                    found = f"{tuple(view.get_shape())} {view.get_dtype()}"
                    raise ShardError(f"{path}: {name} is {found:.100}, not {tuple(shapes[name])} of floats")
            return {ours[name]: file.get_tensor(name) for name in shapes}
    except (OSError, ValueError, SafetensorError) as error:
        raise ShardError(f"{path} cannot be read: {error}") from None


def recipe_for(folder: Path, recipe: str | None, sets: list[str] | None, data: Path | None) -> Recipe:
    """The recipe of the run: the named one, else that in the folder or beside it, each with the folder's own model."""
    config = read_config(folder)
    beside = [path for path in (folder / RECIPE, folder.resolve().parent / RECIPE) if path.is_file()]
    if recipe is None and not beside:
        raise UsageError(
            f"{folder} has no {RECIPE}: name a recipe whose sources and stages the run shall have, as in "
            "--recipe quickstart --data PATH (its model will be the folder's)"
        )
    values = {key: value for key, value in config.to_dict().items() if value is not None}
    shape = ", ".join(f"{key} = {_toml_of(value)}" for key, value in values.items())
    return Recipe.load(recipe or str(beside[0]), [f"model={{{shape}}}", *(sets or [])], data)


def _toml_of(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {json.dumps(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)


def import_hugging_face(source: Path, folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Make `folder` a run whose tokenizer and weights are those of the Hugging Face folder `source`, at step 0 of its
    pretraining, with a fresh optimizer state.
    """
    config = read_config(source)
    if recipe.config != config:
        raise UsageError(f"--set model: the shape of the model is that of {source / 'config.json'}")
    weights = {name: weight.float() for name, weight in read_weights(source, config).items()}
    model = build_model(config.to_dict(), weights, str(source))
    path = source / "tokenizer.json"
    separator = recipe.tokenizer.separator or SEPARATOR
    if read_tokenizer(path, config.vocab_size).token_to_id(separator) is None:
        raise ShardError(f"{path} has no token {separator}")
    tokenizer = path.read_text(encoding="utf-8")
    parts = json.loads(tokenizer)
    if parts.get("post_processor") and is_empty_template(parts["post_processor"]):
        tokenizer = json.dumps(parts | {"post_processor": None}, indent=2, ensure_ascii=False)
    result = {"step": 0, "tokens": 0, "optimizer": "fresh"}
    begin_run(folder, recipe, str(source), tokenizer, model, Optimizer(model, recipe.pretrain, torch.float32), result)
    return {"run": str(folder), **result}
