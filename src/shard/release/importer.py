"""`shard import BUNDLE`: a run folder from a release bundle, so that an anneal can start where its pretraining ended.

The bundle stores weights and optimizer state in bf16, so the anneal goes on from rounded values: the same kind of
run, not the same bits.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shard.errors import ShardError, UsageError
from shard.files import sha256_of
from shard.inference.load import build_model, load_bundle_file
from shard.model import ShardLM
from shard.recipe import Recipe
from shard.run import Run
from shard.tokenizer import load_tokenizer
from shard.training.checkpoint import rng_state, save_checkpoint
from shard.training.optimizer import Optimizer


def check_sums(bundle: Path) -> None:
    """Compare every file that SHA256SUMS lists. ShardError names what is missing, damaged, or outside the bundle."""
    if not bundle.is_dir():
        raise UsageError(f"{bundle} does not exist: give the folder of a release bundle")
    sums = bundle / "SHA256SUMS"
    if not sums.is_file():
        raise ShardError(f"{bundle} is not a release bundle: it has no SHA256SUMS")
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        path = bundle / name
        if not name or not path.resolve().is_relative_to(bundle.resolve()):
            raise ShardError(f"{sums} lists a path outside the bundle: {name!r}")
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
    if not isinstance(step, int) or not isinstance(tokens, int) or not isinstance(content.get("optimizer"), dict):
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
    load_tokenizer(bundle / "models" / "tokenizer.json")
    if folder.exists() and any(folder.iterdir()):
        raise ShardError(f"{folder} is not empty: choose another --out")
    run = Run.open(folder, recipe)
    run.tokenizer_path.parent.mkdir(parents=True)
    shutil.copyfile(bundle / "models" / "tokenizer.json", run.tokenizer_path)
    state = {
        "stage": "pretrain",
        "tokens": tokens,
        "seconds": 0.0,
        "fingerprint": "imported",
        "branched_from": None,
        "rng": rng_state(),
        "config": config,
    }
    save_checkpoint(folder / "pretrain" / "checkpoints", step, model.state_dict(), optimizer.state(), state)
    run.record("tokenizer", status="imported", bundle=str(bundle))
    run.record("pretrain", status="imported", bundle=str(bundle), result={"step": step, "tokens": tokens})
    return {"run": str(folder), "step": step, "tokens": tokens}


def _in_fp32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in tensors.items()}
