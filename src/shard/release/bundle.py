"""The release bundle: a folder that works without Shard, and that `shard import` turns into a run again.

README.md   the card                      models/model.pt      bf16 weights: keys model, cfg
recipe.toml the resolved recipe           models/pretrain.pt   what the anneal branched from: model, optimizer,
code/       config, model, tokenizer,                          step, tokens, cfg, all in bf16
            muon: as they are in Shard    models/tokenizer.json
gguf/       the model for llama.cpp,      hf/                  the model for transformers, in bf16
            in bf16, q8_0 and f32         SHA256SUMS
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import shard
from shard.config import Config
from shard.errors import ShardError
from shard.files import sha256_of, sync_folder
from shard.release.card import write_card
from shard.release.gguf import export_gguf
from shard.release.hugging_face import export_hugging_face, obstacle
from shard.run import Run
from shard.training.checkpoint import (
    Checkpoint,
    checkpoint_path,
    list_steps,
    load_checkpoint,
    newest_checkpoint,
)

PUBLISHED = ("config.py", "model.py", "tokenizer.py", "muon.py")


def _in_bf16(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they are stored; AdamW's step counters are numbers, not measurements, and stay fp32."""
    return {name: t if name.startswith("adam_step.") else t.to(torch.bfloat16) for name, t in tensors.items()}


def _branch_point(run: Run, final: Checkpoint) -> Checkpoint:
    """The pretrain checkpoint that the anneal branched from; the last one where there was no anneal."""
    folder = run.folder / "pretrain" / "checkpoints"
    steps = list_steps(folder)
    branched = final.state["branched_from"]
    step = branched["step"] if branched else (steps[-1] if steps else None)
    if step is None or step not in steps:
        raise ShardError(f"{folder} lacks the checkpoint of step {step} that the release needs")
    return load_checkpoint(checkpoint_path(folder, step))


def _export_gguf(run: Run, weights: dict[str, Tensor], config: Config, folder: Path) -> None:
    release, name = run.recipe.release, run.recipe.name
    for dtype in release.gguf:
        path = folder / f"{name}-{dtype}.gguf"
        export_gguf(weights, config, run.tokenizer_path, path, dtype, name, release.license)


def write_bundle(run: Run) -> dict[str, Any]:
    """Write `release/` of a run: into a temporary folder first, which then takes its place."""
    final = load_checkpoint(newest_checkpoint(run.folder))
    pretrain = _branch_point(run, final)
    bundle, temporary = run.folder / "release", run.folder / ".release.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "models").mkdir(parents=True)
    (temporary / "code").mkdir()
    cfg = final.state["config"]
    torch.save({"model": _in_bf16(final.model), "cfg": cfg}, temporary / "models" / "model.pt")
    torch.save(
        {
            "model": _in_bf16(pretrain.model),
            "optimizer": _in_bf16(pretrain.optimizer),
            "step": pretrain.step,
            "tokens": int(pretrain.state["tokens"]),
            "cfg": cfg,
        },
        temporary / "models" / "pretrain.pt",
    )
    shutil.copyfile(run.tokenizer_path, temporary / "models" / "tokenizer.json")
    # What was trained is released, even where a format of other tools cannot hold it.
    if not (reason := obstacle(Config(**cfg))):
        export_hugging_face(final.model, Config(**cfg), run.tokenizer_path, temporary / "hf", "bf16")
    left_out = [reason] if reason else []
    try:
        _export_gguf(run, final.model, Config(**cfg), temporary / "gguf")
    except ShardError as error:
        left_out.append(str(error))
    for name in PUBLISHED:
        shutil.copyfile(Path(shard.__file__).parent / name, temporary / "code" / name)
    shutil.copyfile(run.folder / "recipe.toml", temporary / "recipe.toml")
    write_card(run, temporary)
    sums = [
        f"{sha256_of(path)}  {path.relative_to(temporary).as_posix()}\n"
        for path in sorted(temporary.rglob("*"))
        if path.is_file()
    ]
    (temporary / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if bundle.exists():
        shutil.rmtree(bundle)
    temporary.rename(bundle)
    sync_folder(run.folder)
    num_bytes = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    return {"bundle": str(bundle), "bytes": num_bytes, "left_out": left_out}
