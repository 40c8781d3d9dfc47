"""Is there room? Disk and memory that a stage will take, compared with what is free, before it begins."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from shard.console import Reporter
from shard.data import documents, shards
from shard.data.inventory import Inventory
from shard.data.price import disk_in_all, price_source
from shard.data.settings import AnySource, HubSource, TeacherSource, TextSource
from shard.data.shards import token_dtype
from shard.data.teacher_text import likely_answer_bytes
from shard.distillation import cache
from shard.errors import ShardError
from shard.run import Run
from shard.training.settings import StageSettings
from shard.units import format_size

if TYPE_CHECKING:
    import torch

LEAST_BYTES_PER_TOKEN = 2.0
"""Text in a token, at least, for any vocabulary worth training on."""

GGUF_BYTES = {"bf16": 2.0, "q8_0": 34 / 32, "f32": 4.0}
"""A weight in a GGUF file."""


def check_disk(run: Run, stage: str) -> None:
    """ShardError where the disk of the run has less room than the stage may take."""
    needed, free = disk_needed(run, stage), shutil.disk_usage(run.folder).free
    if free < needed:
        raise ShardError(
            f"{run.folder} has {format_size(free)} of free disk and {stage} may take {format_size(needed)}: make room, "
            "choose an --out on another disk" + (", or keep fewer checkpoints (keep_every)" if _trains(stage) else "")
        )


def check_room_for_data(run: Run, inventory: Inventory, reporter: Reporter) -> None:
    """Say what reading the sources takes, where there is anything to download; ShardError where the disk of the run has
    less room.
    """
    prices = {
        name: price_source(
            source,
            [(unit.remote.path, unit.remote.size) for unit in inventory.units[name] if unit.remote is not None],
            run.recipe.data,
            is_download=run.mirror is None,
            token_bytes=int(token_dtype(run.recipe.config.vocab_size)[-1]),
        )
        for name, source in run.recipe.sources.items()
        if isinstance(source, HubSource)
    }
    if not prices:
        return
    there = sum(path.stat().st_size for path in run.data.rglob("*") if path.is_file())
    needed = disk_in_all(prices, run.recipe.data, run.workers.count) - there
    free = shutil.disk_usage(run.folder).free
    download = sum(price.download_bytes for price in prices.values())
    reporter.line(
        f"data: {sum(price.files for price in prices.values()):,} files, "
        f"{format_size(download) + ' to download, ' if download else ''}"
        f"about {format_size(sum(price.text_bytes for price in prices.values()))} of text, "
        f"at most about {format_size(max(0, needed))} more on the disk ({format_size(free)} are free)"
    )
    if free < needed:
        raise ShardError(
            f"{run.folder} has {format_size(free)} of free disk, and the data may take {format_size(needed)}: make "
            "room, choose an --out on another disk, or set max_bytes of the largest sources (`shard plan --hub` lists "
            "them)"
        )


def disk_needed(run: Run, stage: str) -> float:
    """Bytes that a stage may add to the disk: an estimate from above, save that a compressed source is not unpacked."""
    from shard.training.cost import checkpoint_bytes, count_parameters

    recipe = run.recipe
    match stage:
        case "tokenizer":
            # Every document is written once as it is read, and again to its side of the split.
            return 2 * sum(map(_source_bytes, recipe.sources.values()))
        case "data":
            ledgers = [run.data / name for name in recipe.sources if (run.data / name / documents.LEDGER).exists()]
            text = sum(documents.read_ledger(folder)["bytes"]["train"] for folder in ledgers)
            # Twice: by unit, and in shards.
            return 2 * text / LEAST_BYTES_PER_TOKEN * int(token_dtype(recipe.config.vocab_size)[-1])
        case "teach":
            assert recipe.distillation is not None
            tokens = sum(shards.read_token_ledger(run.data / name)["tokens"] for name in run.taught())
            there = [path for name in run.taught() for path in (run.data / name / cache.TARGETS).glob("*.safetensors")]
            most = cache.predict_bytes(recipe.distillation, tokens, recipe.config.vocab_size)[1]
            return max(0.0, most - sum(path.stat().st_size for path in there))
        case "pretrain" | "anneal":
            from shard.training.checkpoint import list_steps

            saved = len(list_steps(run.folder / stage / "checkpoints"))
            # One is written before an old one goes.
            return checkpoint_bytes(recipe.config) * max(1, most_checkpoints(getattr(recipe, stage)) + 1 - saved)
        case "release":
            count = count_parameters(recipe.config)
            # The table stands twice in a file of the architecture llama.
            gguf = sum(GGUF_BYTES[dtype] for dtype in recipe.release.gguf) * (count.total + count.embedding)
            # In bf16: the weights, those of hf/, and a checkpoint.
            return 4 * count.total + checkpoint_bytes(recipe.config) / 2 + gguf
        case _:
            return 0


def most_checkpoints(settings: StageSettings) -> int:
    """Checkpoints that a stage keeps at once: the last ones, those of keep_every, where an anneal may branch and did,
    where a rollback would go, and one that a stop left between two of them.
    """
    return settings.keep_last + 4 + (settings.steps // settings.keep_every if settings.keep_every else 0)


def check_memory(run: Run, device: "torch.device", num_ranks: int = 1, with_teacher: bool = False) -> None:
    """ShardError where weights, gradients and optimizer state of each rank on this machine, the copy for a checkpoint
    and, `with_teacher`, the weights of one that is asked at each step exceed the main memory.
    """
    from shard.environment import total_memory
    from shard.training.cost import checkpoint_bytes, state_bytes

    distillation = run.recipe.distillation
    needed, what = checkpoint_bytes(run.recipe.config), "weights, gradients, optimizer state"
    if device.type == "cpu":
        needed += num_ranks * state_bytes(run.recipe.config)
        if with_teacher and distillation is not None and not distillation.is_cached:
            from shard.distillation.causal import teacher_dtype
            from shard.distillation.folder import count_weights

            needed += num_ranks * count_weights(distillation) * teacher_dtype(distillation, device).itemsize
            what += ", the teacher"
    if needed > total_memory():
        raise ShardError(
            f"{what} and a copy for a checkpoint take {format_size(needed)} and this machine has "
            f"{format_size(total_memory())}: choose a smaller model" + (", or fewer ranks" if num_ranks > 1 else "")
        )


def _trains(stage: str) -> bool:
    return stage in ("pretrain", "anneal")


def _source_bytes(source: AnySource) -> int:
    """Text of a source, as far as it is known before it is read; of one on the hub, see `check_room_for_data`."""
    if isinstance(source, HubSource):
        return 0
    if isinstance(source, TeacherSource):
        return likely_answer_bytes(source)
    if not isinstance(source, TextSource):
        return source.max_bytes or 0
    path = Path(source.path)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return size if source.max_bytes is None else min(size, source.max_bytes)
