"""Loading a model to use it: from a run folder, a checkpoint, or a release bundle. Nothing that is read runs code, and
what a file says of sizes is compared with what it holds before memory is taken.
"""

import json
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.overrides import TorchFunctionMode

from shard.config import Config
from shard.errors import ShardError, UsageError
from shard.inference.plain_pickle import load_plain
from shard.inference.quantize import check_int8, quantize
from shard.model import ShardLM
from shard.tokenizer import SEPARATOR, SPLIT_PATTERN, load_tokenizer
from shard.training.checkpoint import load_checkpoint, newest_checkpoint
from shard.training.decisions import DTYPES

MAX_TOKENIZER_BYTES = 64 * 2**20  # those of 262,144 tokens have 20 to 33 MB

PRECISIONS = (*DTYPES, "int8")
"""What a model can be used in: the dtype of its weights, or int8 weights on a CPU."""

_WEIGHTS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to use, its tokenizer, and where it came from."""

    model: ShardLM
    tokenizer: Tokenizer
    separator_id: int
    origin: str
    tokenizer_path: Path


def empty_model(config: Config) -> ShardLM:
    """The names and shapes of a model's weights, without their memory."""
    with torch.device("meta"), _NoDraws():
        return ShardLM(config)


def build_model(config: Any, weights: Any, origin: str) -> ShardLM:
    """A model of this shape with these weights, in their dtype. ShardError where they do not fit."""
    try:
        model = empty_model(Config(**config))  # until the weights are known to fit
        _compare(model.state_dict(), weights)
        model.load_state_dict(weights, assign=True)
    except (TypeError, ValueError, RuntimeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ShardError(f"{origin} does not hold a Shard model: {reason[:200]}") from None
    return model.eval()


def load_bundle_file(path: Path) -> dict[str, Any]:
    """A .pt file of a bundle, read as plain tensors and primitives. ShardError for anything else."""
    content = load_plain(path)
    if not isinstance(content, dict) or not isinstance(content.get("cfg"), dict) or "model" not in content:
        raise ShardError(f"{path} is not a bundle file: it lacks the keys model and cfg")
    for key in ("model", "optimizer"):
        tensors = content.get(key, {})
        if not isinstance(tensors, dict) or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in tensors.items()
        ):
            raise ShardError(f"{path} is not a bundle file: {key} is not a table of tensors")
    return content


def read_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a model of `vocab_size` tokens. ShardError for a file that is no such tokenizer."""
    if not path.is_file():
        raise ShardError(f"{path} is missing")
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise ShardError(f"{path} is too large for a tokenizer: at most {MAX_TOKENIZER_BYTES} bytes are read")
    try:
        _check_steps(json.loads(path.read_text(encoding="utf-8")))
        tokenizer = load_tokenizer(path)
        largest = max(tokenizer.get_vocab().values(), default=-1)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # tokenizers raises the plain Exception, and for some files panics
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ShardError(f"{path} is not a tokenizer of a Shard model: {reason[:160]}") from None
    if not 0 <= largest < vocab_size:
        raise ShardError(
            f"{path} does not belong to its model: it has the id {largest}, and the model {vocab_size} ids"
        )
    return tokenizer


def separator_of(tokenizer: Path) -> str:
    """The token between documents: what the recipe beside the tokenizer says, else <|endoftext|>."""
    for folder in (tokenizer.parent.parent, tokenizer.parent):
        path = folder / "recipe.toml"
        if path.is_file() and path.stat().st_size < MAX_TOKENIZER_BYTES:
            try:
                said = tomllib.loads(path.read_text(encoding="utf-8")).get("tokenizer", {}).get("separator")
            except (ValueError, AttributeError, RecursionError):
                continue
            return said if isinstance(said, str) else SEPARATOR
    return SEPARATOR


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
        checkpoint = load_checkpoint(path if is_checkpoint else newest_checkpoint(path))
        state: Any = checkpoint.state
        if not isinstance(state, dict) or not isinstance(state.get("config"), dict):
            raise ShardError(f"{checkpoint.path / 'state.json'} is damaged: it lacks the table config")
        model = build_model(state["config"], checkpoint.model, str(checkpoint.path))
        run_folder = path.resolve().parent.parent.parent if is_checkpoint else path
        tokenizer_path, origin = run_folder / "tokenizer" / "tokenizer.json", str(checkpoint.path)
    tokenizer = read_tokenizer(tokenizer_path, model.config.vocab_size)
    separator_id = tokenizer.token_to_id(separator_of(tokenizer_path))
    separator_id = 0 if separator_id is None else separator_id
    return LoadedModel(model.to(device, dtype), tokenizer, separator_id, origin, tokenizer_path)


def load_in_precision(path: Path, name: str, device: torch.device) -> LoadedModel:
    """Load to compute in one of PRECISIONS. UsageError for another name, or where int8 cannot be computed with."""
    if name not in PRECISIONS:
        raise UsageError(f"--dtype {name}: choose one of {', '.join(PRECISIONS)}")
    if name != "int8":
        return load_model(path, DTYPES[name], device)
    check_int8(device)
    loaded = load_model(path, torch.float32, device)
    return replace(loaded, model=quantize(loaded.model))


class _NoDraws(TorchFunctionMode):
    """Leaves out the drawing of weights that are replaced at once: on "meta" its first call imports for seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ == "normal_":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _compare(expected: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> None:
    """Raise ValueError for the first weight that is missing, unknown, or not of the model's shape."""
    for name in [*expected, *weights]:
        if name not in weights or name not in expected:
            raise ValueError(f"the weight {name!r:.80} is {'missing' if name in expected else 'unknown'}")
        weight = weights[name]
        if weight.shape != expected[name].shape or weight.dtype not in _WEIGHTS:
            raise ValueError(
                f"the weight {name} has the shape {tuple(weight.shape)} and the type {weight.dtype}, "
                f"not {tuple(expected[name].shape)} and float"
            )


def is_empty_template(post_processor: Any) -> bool:
    """Whether a tokenizer's post-processor is a template that adds nothing: transformers writes one where none was."""
    kind, single = post_processor.get("type"), post_processor.get("single")
    return kind == "TemplateProcessing" and single == [{"Sequence": {"id": "A", "type_id": 0}}]


_PATTERNS = ({"Regex": SPLIT_PATTERN}, {"Regex": SPLIT_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")})
"""Regular expressions that take time in proportion to the text: ours, and that of Llama 3."""


def _pieces_of(step: Any, key: str) -> list[Any]:
    return [] if step is None else step.get(key, [step])


def _is_short(replace: dict[str, Any]) -> bool:
    """Whether a step replaces one text by another, and does not make the whole much longer."""
    return "String" in replace.get("pattern", {}) and len(replace.get("content", "")) <= 8


def _check_steps(parts: dict[str, Any]) -> None:
    """Of a tokenizer's steps only those are run that Shard writes itself, and those of an adopted one that are as
    harmless: another's pattern may take hours on a line, its padding all memory, its template add ids that the model
    lacks. Raises ValueError.
    """
    if parts["model"]["type"] != "BPE":
        raise ValueError("its model is not BPE")
    for piece in _pieces_of(parts.get("normalizer"), "normalizers"):
        if piece["type"] not in ("NFC", "Replace") or (piece["type"] == "Replace" and not _is_short(piece)):
            raise ValueError("it has a normalizer that Shard does not run")
    for step in ("truncation", "padding"):
        if parts.get(step) is not None:
            raise ValueError(f"it has a {step}")
    for step in ("pre_tokenizer", "decoder", "post_processor"):
        part = parts.get(step) or {"type": "ByteLevel"}
        if step == "post_processor" and is_empty_template(part):
            continue
        for piece in part.get("pretokenizers", part.get("decoders", [part])):
            pattern = piece.get("pattern", {})
            is_split = piece["type"] == "Split" and (pattern in _PATTERNS or "String" in pattern)
            is_decoder = step == "decoder" and (
                piece["type"] in ("ByteFallback", "Fuse") or (piece["type"] == "Replace" and _is_short(piece))
            )
            if not (is_split or is_decoder or piece["type"] in ("ByteLevel", "Digits")):
                raise ValueError(f"its {step} is not one that Shard uses")
