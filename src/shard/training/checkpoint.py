"""Checkpoints: a folder that is complete and verified, or not there at all.

    checkpoints/step-00001000/model.safetensors      the fp32 masters
                              optimizer.safetensors  every tensor of the optimizer's state
                              state.json             step, tokens, RNG states, fingerprints, decisions
                              manifest.json          SHA-256 of the three, written last

It is written under a temporary name, flushed to disk and renamed. No pickle.
"""

import base64
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shard.errors import ShardError
from shard.files import sha256_of, sync_folder

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, read back."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps of its stage that were done."""
        return int(self.state["step"])


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def list_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending."""
    if not folder.is_dir():
        return []
    matches = (re.fullmatch(r"step-(\d{8,})", path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def save_checkpoint(
    folder: Path, step: int, model: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any]
) -> Path:
    """Write `folder/step-<step>`; it replaces one of the same step."""
    final = checkpoint_path(folder, step)
    temporary = folder / f".tmp-{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file({n: t.detach().contiguous().cpu() for n, t in model.items()}, temporary / FILES[0])
        save_file({n: t.detach().contiguous().cpu() for n, t in optimizer.items()}, temporary / FILES[1])
        (temporary / FILES[2]).write_text(json.dumps(state | {"step": step}, indent=2) + "\n", encoding="utf-8")
        manifest = {name: sha256_of(temporary / name) for name in FILES}
        (temporary / "manifest.json").write_text(json.dumps({"sha256": manifest}, indent=2) + "\n", encoding="utf-8")
        for name in (*FILES, "manifest.json"):
            with (temporary / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # on a full disk, half a checkpoint must not keep it full
        raise
    # Of an existing checkpoint of this step there is a whole one at any moment, under this name or the other.
    replaced = folder / f".tmp-replaced-{final.name}"
    if final.exists():
        final.rename(replaced)
    temporary.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)
    sync_folder(folder)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint. ShardError names the file that is missing or damaged."""
    manifest = path / "manifest.json"
    try:
        expected = json.loads(manifest.read_text(encoding="utf-8"))["sha256"]
        if not isinstance(expected, dict):
            raise ValueError("no sha256 table")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{manifest} is missing or damaged: {error}") from None
    for name in FILES:
        if not (path / name).is_file():
            raise ShardError(f"{path / name} is missing")
        if sha256_of(path / name) != expected.get(name):
            raise ShardError(f"{path / name} is damaged: its SHA-256 is not the one in the manifest")
    try:
        state = json.loads((path / FILES[2]).read_text(encoding="utf-8"))
        return Checkpoint(path, load_file(path / FILES[0]), load_file(path / FILES[1]), state)
    except (OSError, ValueError, SafetensorError) as error:
        raise ShardError(f"{path} cannot be read: {error}") from None


def load_newest(folder: Path, warn: Any) -> Checkpoint | None:
    """The newest checkpoint that is whole; each damaged one is named through `warn(text)`. None if there is none."""
    for step in reversed(list_steps(folder)):
        try:
            return load_checkpoint(checkpoint_path(folder, step))
        except ShardError as error:
            warn(f"{error}: going back to an older checkpoint")
    return None


def newest_checkpoint(run_folder: Path) -> Path:
    """The checkpoint that a run stands at: the last of anneal, else the last of pretrain. ShardError if none."""
    for stage in ("anneal", "pretrain"):
        folder = run_folder / stage / "checkpoints"
        if steps := list_steps(folder):
            return checkpoint_path(folder, steps[-1])
    raise ShardError(f"{run_folder} holds no checkpoint yet: train it with `shard run {run_folder}`")


def prune(folder: Path, keep_last: int, keep_every: int | None, pinned: set[int]) -> None:
    """Delete all but the last `keep_last`, the multiples of `keep_every`, and the pinned ones."""
    steps = list_steps(folder)
    for step in steps[:-keep_last]:
        if step not in pinned and not (keep_every and step % keep_every == 0):
            shutil.rmtree(checkpoint_path(folder, step), ignore_errors=True)


def rng_state() -> dict[str, str]:
    """The states of torch's generators, as text."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: base64.b64encode(bytes(state.tolist())).decode() for name, state in states.items()}


def set_rng_state(states: dict[str, str]) -> None:
    """Put torch's generators back to what rng_state() gave."""
    for name, text in states.items():
        state = torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
        if name == "cpu":
            torch.set_rng_state(state)
        elif torch.cuda.is_available():
            torch.cuda.set_rng_state(state)
