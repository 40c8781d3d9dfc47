"""`shard export`: a trained model in the format of other tools, in a folder of its own."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shard.config import Config
from shard.errors import ShardError, UsageError
from shard.files import copy_file, sync_folder, temporary_path
from shard.inference.load import load_model
from shard.release import gguf, hugging_face
from shard.run import RECIPE

Exporter = Callable[[dict[str, Tensor], Config, Path, Path, str], dict[str, Any]]
"""(weights, their config, tokenizer.json, an empty folder to write into, name of a dtype) -> what was written."""

FORMATS: dict[str, tuple[Exporter, tuple[str, ...]]] = {
    "hf": (hugging_face.export_hugging_face, tuple(hugging_face.DTYPES)),
    "gguf": (gguf.export_folder, gguf.DTYPES),
}
"""Format -> its exporter, and the dtypes that it has, the first of which is the default."""


def export_model(model: Path, format_: str, out: Path, dtype: str | None = None) -> dict[str, Any]:
    """Write the model of a run, a checkpoint or a bundle to the new folder `out`, whole or not at all."""
    if format_ not in FORMATS:
        raise UsageError(f"--to {format_}: choose one of {', '.join(FORMATS)}")
    exporter, dtypes = FORMATS[format_]
    if dtype is not None and dtype not in dtypes:
        raise UsageError(f"--dtype {dtype}: {format_} has {', '.join(dtypes)}")
    final = out.resolve()
    if final == Path.cwd() or (final.exists() and (not final.is_dir() or any(final.iterdir()))):
        raise ShardError(f"{out} is not empty, or is the current folder: give the name of a new one")
    loaded = load_model(model, torch.float32, torch.device("cpu"))
    temporary = temporary_path(final)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        result = exporter(
            loaded.model.state_dict(), loaded.model.config, loaded.tokenizer_path, temporary, dtype or dtypes[0]
        )
        recipe = loaded.tokenizer_path.parent.parent / RECIPE  # of the run or of the bundle
        if recipe.is_file():
            copy_file(recipe, temporary / RECIPE)
        temporary.rename(final)  # over an empty folder, too
        sync_folder(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    num_bytes = sum(path.stat().st_size for path in final.rglob("*") if path.is_file())
    return {"export": str(out), "from": loaded.origin, "format": format_, **result, "bytes": num_bytes}
