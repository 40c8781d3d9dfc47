"""`shard plan` and `shard doctor`: what a recipe will take, and what this machine can do, before anything starts."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shard.data.price import price
from shard.data.shards import token_dtype
from shard.distillation.cache import predict_bytes
from shard.epochs import MANY_EPOCHS, count_epochs
from shard.recipe import Recipe
from shard.resources import most_checkpoints
from shard.training.cost import checkpoint_bytes, count_parameters, flops_per_token
from shard.training.settings import StageSettings
from shard.units import format_count, format_duration, format_size

if TYPE_CHECKING:
    from shard.model import ShardLM

CHINCHILLA = 20  # tokens a parameter (Hoffmann et al., arXiv 2203.15556)
PROBE_TOKENS = 1024
"""Tokens of a probe of the training speed at most."""
PROBE_SECONDS = 2.0
"""No larger probe is made after one that took so long: a large model on a small machine takes minutes for all."""


def plan(recipe: Recipe, probe: bool = True, with_data: bool = False, mirror: Path | None = None) -> dict[str, Any]:
    """Parameters, tokens against the 20:1 line, FLOPs, memory, disk, and time by a short measured probe; `with_data`
    also what its sources take, for which the hub is asked unless there is a mirror.
    """
    from shard.environment import choose_compile, choose_device, choose_precision, device_name, free_memory
    from shard.model import ShardLM
    from shard.training.decisions import choose_micro_batch
    from shard.training.memory import predict_memory

    config, count = recipe.config, count_parameters(recipe.config)
    device = choose_device()
    stages: dict[str, Any] = {}
    model = ShardLM(config).to(device) if probe else None
    for name in ("pretrain", "anneal"):
        settings: StageSettings = getattr(recipe, name)
        tokens = settings.steps * settings.tokens_per_step
        precision = choose_precision(device)[0] if settings.precision == "auto" else settings.precision
        compiled = settings.compile == "on" or (settings.compile == "auto" and choose_compile(device)[0])
        micro_batch = settings.micro_batch
        if micro_batch == "auto":
            micro_batch, _ = choose_micro_batch(settings, device, config, precision, compiled, free_memory(device))
        stages[name] = {
            "steps": settings.steps,
            "tokens": tokens,
            "flops": tokens * flops_per_token(config, settings.sequence_length),
            "precision": precision,
            "micro_batch": micro_batch,
            "memory_bytes": predict_memory(config, settings, micro_batch, precision, compiled, device.type).peak,
        }
        if model is not None:
            speed = measure_training_speed(model, settings, precision)
            stages[name] |= {"tokens_per_second": round(speed, 1), "seconds": round(tokens / speed)}
    total = sum(stage["tokens"] for stage in stages.values())
    priced: dict[str, Any] = {}
    if with_data:
        token_bytes = int(token_dtype(config.vocab_size)[-1])
        priced["data"] = price(recipe.sources, recipe.data, mirror, token_bytes)
        its_sources = priced["data"]["sources"]
        epochs = count_epochs(recipe, {name: source["tokens"] for name, source in its_sources.items()})
        priced["data"]["sources"] = {name: one | {"epochs": epochs[name]} for name, one in its_sources.items()}
    if recipe.distillation is not None and recipe.distillation.is_cached:
        priced["targets"] = _predict_targets(recipe, priced)
    kept = most_checkpoints(recipe.pretrain) + most_checkpoints(recipe.anneal)
    return {
        "recipe": recipe.name,
        "parameters": count.total,
        "active_parameters": count.active,
        "parameters_by_role": {"embedding": count.embedding, "matrix": count.matrix, "norm": count.norm},
        "tokens": total,
        "tokens_per_parameter": round(total / count.total, 3),
        "chinchilla_tokens": CHINCHILLA * count.total,
        "active_chinchilla_tokens": CHINCHILLA * count.active,
        "flops": sum(stage["flops"] for stage in stages.values()),
        "stages": stages,
        **priced,
        "disk_bytes": {
            "checkpoints": kept * checkpoint_bytes(config),
            "release": 4 * count.total + checkpoint_bytes(config) // 2,
        },
        "device": device_name(device),
    }


def _predict_targets(recipe: Recipe, priced: dict[str, Any]) -> dict[str, Any]:
    """Disk of a teacher's targets: of every token of the sources, where these were looked at, else of as many as
    pretraining reads.
    """
    assert recipe.distillation is not None
    names = [name for name, weight in recipe.pretrain.mix.items() if weight > 0]
    if "data" in priced:
        tokens = sum(priced["data"]["sources"][name]["tokens"] for name in names)
    else:
        tokens = recipe.pretrain.steps * recipe.pretrain.tokens_per_step
    about, most = predict_bytes(recipe.distillation, tokens, recipe.config.vocab_size)
    return {"tokens": tokens, "bytes": round(about), "most_bytes": round(most), "are_counted": "data" in priced}


def describe_plan(result: dict[str, Any]) -> list[str]:
    """A plan as lines of text."""
    disk = result["disk_bytes"]
    rows = {
        "parameters": f"{result['parameters']:,}",
        "tokens": f"{format_count(result['tokens'])}, {result['tokens_per_parameter']:g} a parameter "
        f"(the 20:1 line lies at {format_count(result['chinchilla_tokens'])})",
        **_active_rows(result),
        "FLOPs": f"{result['flops']:.3g}",
        "disk": f"{format_size(disk['checkpoints'])} of checkpoints, {format_size(disk['release'])} for the release",
        "device": result["device"],
    }
    for name, stage in result["stages"].items():
        rows[name] = (
            f"{stage['steps']:,} steps, {format_count(stage['tokens'])} tokens, {stage['precision']}, "
            f"about {format_size(stage['memory_bytes'])} of memory at {stage['micro_batch']} sequences a micro-batch"
        )
        if "seconds" in stage:
            speed = f"{stage['tokens_per_second']:,.0f} tokens/s"
            rows[name] += f", {format_duration(stage['seconds'])} at {speed} (measured for a moment, not compiled)"
    if "data" in result:
        data = result["data"]
        rows["data"] = (
            f"{format_size(data['download_bytes'])} to download, {format_size(data['disk_bytes'])} on disk, "
            f"{format_duration(data['seconds'])} of work at {format_size(data['bytes_per_second'])} a second "
            f"({data['workers']} processes, measured for a moment)"
        )
    if "targets" in result:
        targets = result["targets"]
        rows["teach"] = (
            f"about {format_size(targets['bytes'])} of targets on disk, at most {format_size(targets['most_bytes'])}, "
            f"for {format_count(targets['tokens'])} tokens of "
            + ("the sources" if targets["are_counted"] else "pretrain (a teacher is asked about all of its sources)")
        )
    lines = [f"{name:<11} {text}" for name, text in rows.items()]
    for name, source in result.get("data", {}).get("sources", {}).items():
        lines.append(
            f"  {name:<18} {source['files']:>5} files, {format_size(source['download_bytes'])} to download, about "
            f"{format_count(source['tokens'])} tokens, {source['epochs']:.3g} epochs"
            + (" (!)" if source["epochs"] > MANY_EPOCHS else "")
        )
    return lines


def _active_rows(result: dict[str, Any]) -> dict[str, str]:
    """Of a mixture of experts: what computes one token, and the 20:1 line of that."""
    active, tokens = result["active_parameters"], result["tokens"]
    if active == result["parameters"]:
        return {}
    line = format_count(result["active_chinchilla_tokens"])
    return {
        "active": f"{active:,} for each token; {tokens / active:.4g} tokens for each (its 20:1 line lies at {line})"
    }


def measure_training_speed(model: "ShardLM", settings: StageSettings, precision: str) -> float:
    """Tokens a second of forward and backward on a few tokens, not compiled: what compiling gains comes on top.

    From few tokens to PROBE_TOKENS, as long as PROBE_SECONDS allow it. The speed is scaled by the FLOPs that attention
    adds in sequences that are longer than this.
    """
    import torch

    from shard.training.decisions import DTYPES
    from shard.training.loss import chunked_loss

    config, device = model.config, model.embedding.weight.device

    def seconds_of(rows: int, length: int) -> float:
        ids = torch.randint(0, config.vocab_size, (rows, length + 1), device=device)
        begun = time.perf_counter()
        hidden = model.hidden(ids[:, :-1], dtype=DTYPES[precision])
        targets = ids[:, 1:].flatten()
        loss = chunked_loss(hidden.flatten(0, 1), model.embedding.weight, targets, config.logit_cap, settings.z_loss)
        loss.total.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        model.zero_grad()
        return time.perf_counter() - begun

    num_tokens, seconds = PROBE_TOKENS // 16, 0.0
    while True:
        length = min(settings.sequence_length, num_tokens)
        rows = num_tokens // length
        seconds = seconds_of(rows, length)
        if num_tokens == PROBE_TOKENS or seconds > PROBE_SECONDS:
            break
        num_tokens *= 4
    if seconds <= PROBE_SECONDS:
        seconds = min(seconds, seconds_of(rows, length))  # the first one touched fresh memory
    speed = rows * length / seconds
    return speed * flops_per_token(config, length) / flops_per_token(config, settings.sequence_length)


def doctor() -> dict[str, Any]:
    """What this machine offers and what Shard would choose on it, with the reasons."""
    from shard.environment import (
        choose_compile,
        choose_device,
        choose_precision,
        code_revision,
        device_name,
        total_memory,
        versions,
    )

    device = choose_device()
    precision, precision_reason = choose_precision(device)
    compiles, compile_reason = choose_compile(device)
    return {
        "device": device_name(device),
        "device_type": device.type,
        "precision": precision,
        "precision_reason": precision_reason,
        "compile": compiles,
        "compile_reason": compile_reason,
        "memory_bytes": total_memory(),
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "versions": versions(),
        "code_revision": code_revision(),
    }
