"""Loading a model to use it: from a run folder, a checkpoint, or a release bundle. Nothing that is read runs code."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from shard.config import Config
from shard.errors import ShardError
from shard.model import ShardLM
from shard.tokenizer import SEPARATOR, load_tokenizer
from shard.training.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to use, its tokenizer, and where it came from."""

    model: ShardLM
    tokenizer: Tokenizer
    separator_id: int
    origin: str


def build_model(config: dict[str, Any], weights: dict[str, torch.Tensor], origin: str) -> ShardLM:
    """A model of this shape with these weights. ShardError where they do not fit."""
    try:
        model = ShardLM(Config(**config))
        model.load_state_dict(weights)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShardError(f"{origin} does not hold a Shard model: {str(error).splitlines()[0]}") from None
    return model.eval()


def load_bundle_file(path: Path) -> dict[str, Any]:
    """A .pt file of a bundle, read as plain tensors and primitives. ShardError for anything else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ShardError(f"{path} is missing: give the folder of a release bundle") from None
    except Exception as error:  # torch raises many kinds for a file that is not what it should be
        raise ShardError(f"{path} is damaged or not a plain bundle file: {str(error).splitlines()[0][:160]}") from None
    if not isinstance(content, dict) or not isinstance(content.get("cfg"), dict) or "model" not in content:
        raise ShardError(f"{path} is not a bundle file: it lacks the keys model and cfg")
    return content


def load_model(path: Path, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Load from a run folder, a checkpoint folder of one, or a release bundle."""
    if not path.exists():
        raise ShardError(f"{path} does not exist: give a run folder, a checkpoint or a release bundle")
    if (path / "models" / "model.pt").is_file():
        content = load_bundle_file(path / "models" / "model.pt")
        model = build_model(content["cfg"], content["model"], str(path))
        tokenizer_path, origin = path / "models" / "tokenizer.json", str(path)
    else:
        is_checkpoint = (path / "model.safetensors").is_file()
        checkpoint: Checkpoint = load_checkpoint(path if is_checkpoint else newest_checkpoint(path))
        model = build_model(checkpoint.state["config"], checkpoint.model, str(checkpoint.path))
        run_folder = path.resolve().parents[2] if is_checkpoint else path
        tokenizer_path, origin = run_folder / "tokenizer" / "tokenizer.json", str(checkpoint.path)
    if not tokenizer_path.is_file():
        raise ShardError(f"{tokenizer_path} is missing")
    try:
        tokenizer = load_tokenizer(tokenizer_path)
    except Exception as error:  # tokenizers raises the plain Exception
        raise ShardError(f"{tokenizer_path} is not a tokenizer: {str(error).splitlines()[0][:160]}") from None
    separator_id = tokenizer.token_to_id(SEPARATOR)
    return LoadedModel(model.to(device, dtype), tokenizer, 0 if separator_id is None else separator_id, origin)
