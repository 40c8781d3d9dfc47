"""`shard import BUNDLE`: a run folder from a release bundle, so that an anneal can start where its pretraining ended.

The bundle stores weights and optimizer state in bf16, so the anneal goes on from rounded values: the same kind of
run, not the same bits.
"""

from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from shard.errors import ShardError, UsageError
from shard.files import sha256_of, write_text
from shard.inference.load import build_model, load_bundle_file, read_tokenizer
from shard.model import ShardLM
from shard.recipe import Recipe
from shard.run import Run
from shard.training.checkpoint import rng_state, save_checkpoint
from shard.training.optimizer import Optimizer
from shard.verify import read_sums


def check_sums(bundle: Path) -> None:
    """Compare every file that SHA256SUMS lists. ShardError names what is missing, damaged, or outside the bundle."""
    if not bundle.is_dir():
        raise UsageError(f"{bundle} does not exist: give the folder of a release bundle")
    for name, expected in read_sums(bundle).items():
        path = bundle / name
        if not path.is_file():
            raise ShardError(f"{path} is missing from the bundle")
        if sha256_of(path) != expected:
            raise ShardError(f"{path} is damaged: its SHA-256 is not the one in SHA256SUMS")


def import_bundle(bundle: Path, folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Make `folder` a run whose tokenizer and pretraining come from the bundle. The recipe's model must be the
    bundle's; its anneal, sources and the rest may be others.
    """
    content = load_bundle_file(bundle / "models" / "pretrain.pt")
    config, step, tokens = content["cfg"], content.get("step"), content.get("tokens")
    if not _is_count(step) or not _is_count(tokens) or not isinstance(content.get("optimizer"), dict):
        raise ShardError(f"{bundle / 'models' / 'pretrain.pt'} lacks optimizer, step or tokens")
    model = build_model(config, _in_fp32(content["model"]), str(bundle))
    if model.config != recipe.config:
        theirs, ours = config, recipe.config.to_dict()
        key = next(k for k in ours if ours[k] != theirs.get(k))
        raise ShardError(
            f"the bundle's model is not the recipe's: {key} is {theirs.get(key)!r} there, {ours[key]!r} here"
        )
    if step > recipe.pretrain.steps - recipe.pretrain.decay_steps:
        raise ShardError(
            f"the bundle's pretraining ended at step {step}, beyond the stable phase of the recipe's pretrain: "
            f"--set pretrain.steps={step + recipe.pretrain.decay_steps}"
        )
    optimizer = Optimizer(ShardLM(recipe.config), recipe.pretrain, torch.float32)
    try:
        optimizer.load_state(_in_fp32(content["optimizer"]))
    except (ValueError, AttributeError) as error:
        raise ShardError(f"{bundle / 'models' / 'pretrain.pt'}: {error}") from None
    read_tokenizer(bundle / "models" / "tokenizer.json", model.config.vocab_size)
    tokenizer = (bundle / "models" / "tokenizer.json").read_text(encoding="utf-8")
    result = {"step": step, "tokens": tokens}
    begin_run(folder, recipe, str(bundle), tokenizer, model, optimizer, result)
    return {"run": str(folder), **result}


def begin_run(
    folder: Path,
    recipe: Recipe,
    origin: str,
    tokenizer: str,
    model: ShardLM,
    optimizer: Optimizer,
    result: dict[str, Any],
) -> None:
    """Make `folder` a run that stands at the end of a pretraining done elsewhere: its tokenizer.json, its state, and
    as `result` at least its step and tokens.
    """
    state = {
        "stage": "pretrain",
        "tokens": result["tokens"],
        "seconds": 0.0,
        "fingerprint": "imported",
        "identity": {},
        "environment": {},
        "branched_from": None,
        "rng": rng_state(),
        "config": model.config.to_dict(),
        "guard": None,
        "skipped": [],
        "passed_over": [],
        "rollbacks": [],
    }
    with Run.build(folder, recipe) as run:
        write_text(run.tokenizer_path, tokenizer)
        checkpoints = run.folder / "pretrain" / "checkpoints"
        save_checkpoint(checkpoints, result["step"], model.state_dict(), optimizer.state(), state)
        run.record("tokenizer", status="imported", bundle=origin)
        run.record("pretrain", status="imported", bundle=origin, result=result)
    run.close()


def _in_fp32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in tensors.items()}


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
