"""Checkpoints: a folder that is complete and verified, or not there at all.

    checkpoints/step-00001000/model.safetensors      the fp32 masters
                              optimizer.safetensors  every tensor of the optimizer's state
                              state.json             step, tokens, RNG states, fingerprints, guard, passed-over batches
                              manifest.json          SHA-256 of the three, written last

It is written under a temporary name, flushed to disk and renamed. No pickle.
"""

import base64
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from shard.errors import ShardError
from shard.files import sha256_of, sync_folder
from shard.training.tensors import write_tensors

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
MANIFEST = "manifest.json"
LARGEST_JSON = 2**26
"""Bytes of a state.json or manifest.json, at most: a stranger's file is measured before it is read."""

_TEMPORARY, _REPLACED = ".tmp-", ".tmp-replaced-"


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
    folder: Path, step: int, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Write `folder/step-<step>`; it replaces one of the same step. OSError where there is no room."""
    final = checkpoint_path(folder, step)
    temporary, replaced = folder / f"{_TEMPORARY}{final.name}", folder / f"{_REPLACED}{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        hashes = {
            FILES[0]: write_tensors(temporary / FILES[0], model),
            FILES[1]: write_tensors(temporary / FILES[1], optimizer),
            FILES[2]: _write_json(temporary / FILES[2], {**state, "step": step}),
        }
        _write_json(temporary / MANIFEST, {"sha256": hashes})
        sync_folder(temporary)
        # Of an existing checkpoint of this step there is a whole one at any moment, under this name or the other.
        if final.exists():
            final.rename(replaced)
        temporary.rename(final)
        sync_folder(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # on a full disk, half a checkpoint must not keep it full
        clear_leftovers(folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def _write_json(path: Path, value: Any) -> str:
    """Write a JSON file, flush it to disk; its SHA-256."""
    content = (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def clear_leftovers(folder: Path) -> None:
    """What a process that was killed left half-done: a checkpoint that was to be replaced comes back."""
    for path in list(folder.glob(f"{_TEMPORARY}*")):
        final = folder / path.name.removeprefix(_REPLACED)
        if path.name.startswith(_REPLACED) and not final.exists():
            path.rename(final)
        else:
            shutil.rmtree(path, ignore_errors=True)


def read_state(path: Path) -> dict[str, Any]:
    """The state.json of a checkpoint. ShardError where it is not one."""
    state = _read_json(path / FILES[2])
    if not isinstance(state.get("step"), int) or (
        path.name.startswith("step-") and path.name != f"step-{state['step']:08d}"
    ):
        raise ShardError(f"{path / FILES[2]} is not of this checkpoint: its step is {state.get('step')!r}")
    return state


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ShardError(f"{path} is missing or damaged: {error}") from None
    return value


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint. ShardError names the file that is missing or damaged."""
    expected = _read_json(path / MANIFEST).get("sha256")
    if not isinstance(expected, dict):
        raise ShardError(f"{path / MANIFEST} is damaged: it has no table sha256")
    for name in FILES:
        if not (path / name).is_file():
            raise ShardError(f"{path / name} is missing")
        if sha256_of(path / name) != expected.get(name):
            raise ShardError(f"{path / name} is damaged: its SHA-256 is not the one in the manifest")
    try:
        return Checkpoint(path, load_file(path / FILES[0]), load_file(path / FILES[1]), read_state(path))
    except (OSError, ValueError, SafetensorError) as error:
        raise ShardError(f"{path} cannot be read: {error}") from None


def load_newest(
    folder: Path, warn: Callable[[str], None], among: Callable[[int], bool] = lambda step: True
) -> Checkpoint | None:
    """The newest checkpoint that is whole, of those whose step is `among` the wanted; each damaged one is named
    through `warn(text)`. None if there is none.
    """
    if folder.is_dir():
        clear_leftovers(folder)
    for step in filter(among, reversed(list_steps(folder))):
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


def prune(folder: Path, kept: Collection[int]) -> None:
    """Delete the checkpoints whose step is not among `kept`; the newest stays in any case."""
    delete(folder, [step for step in list_steps(folder)[:-1] if step not in kept])


def delete(folder: Path, steps: Collection[int]) -> None:
    """Delete checkpoints. Each is renamed first: a half-deleted one must not look like a damaged one."""
    for step in steps:
        path = checkpoint_path(folder, step)
        doomed = folder / f"{_TEMPORARY}pruned-{path.name}"
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


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
