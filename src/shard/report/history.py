"""What a run folder tells, read as it stands: a run may have just begun, be training, be finished or have crashed.

Only files are read, and nothing is locked: another process may be writing. A file that is not there yet, or is damaged,
is a part that is missing.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shard.errors import ShardError
from shard.training.metrics import read_jsonl

STAGES = ("pretrain", "anneal")
MOST_HEADER_BYTES = 10**8

Column = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """Values that were recorded at the same n steps. `steps` counts from the beginning of the pretraining, `tokens`
    likewise; `seconds` is the time spent in training; NaN where a value is missing or not finite.
    """

    steps: Column
    tokens: Column
    seconds: Column
    values: dict[str, Column]

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class StageHistory:
    """One stage of training. What a skipped step measured is in its event, not in the curves."""

    name: str
    settings: dict[str, Any]
    offset: int
    """Steps before its first one."""
    every_step: Curves
    heldout: Curves
    """Bits per byte by source, at the steps that were scored."""
    num_skipped: int
    """Of the steps in metrics.jsonl; an overflow of the loss scale is none."""
    events: list[dict[str, Any]]
    """Their steps count from the beginning of the pretraining."""

    @property
    def step(self) -> int:
        """The last step of the stage that was recorded, counted within it."""
        return int(self.every_step.steps[-1]) - self.offset if len(self.every_step) else 0


@dataclass(frozen=True)
class RunHistory:
    """One run."""

    folder: Path
    name: str
    recipe: dict[str, Any]
    manifest: dict[str, Any]
    stages: dict[str, StageHistory]
    documents: dict[str, dict[str, Any]]
    """Of each source, documents.json and tokens.json, or {}."""
    tokens: dict[str, dict[str, Any]]
    evaluation: dict[str, Any]
    benchmark: dict[str, Any]
    num_parameters: int | None
    """Counted in a checkpoint; None before there is one."""

    def entry(self, stage: str) -> dict[str, Any]:
        """What the manifest says of a stage."""
        return _dict(_dict(self.manifest.get("stages")).get(stage))


def read_run(folder: Path) -> RunHistory:
    """Everything that is known of a run. ShardError where the folder is none, or its recipe cannot be read."""
    path = folder / "recipe.toml"
    if not path.is_file():
        raise ShardError(f"{folder} is not a run folder (it has no recipe.toml): start one with `shard run RECIPE`")
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ShardError(f"{path} is damaged ({error}): restore it") from None
    manifest = _read_object(folder / "manifest.json")
    entries = _dict(manifest.get("stages"))
    stages: dict[str, StageHistory] = {}
    branch, before = 0, None
    for name in STAGES:
        if name == "anneal":
            branch = int(_number(_dict(entries.get("anneal")).get("from_step"), 0.0))
            before = stages.get("pretrain")
        stage = _read_stage(folder / name, name, _dict(recipe.get(name)), branch, before)
        if len(stage.every_step) or stage.events:
            stages[name] = stage
    sources = list(_dict(recipe.get("sources")))
    return RunHistory(
        folder=folder,
        name=str(recipe.get("name", folder.name)),
        recipe=recipe,
        manifest=manifest,
        stages=stages,
        documents={name: _read_object(folder / "data" / name / "documents.json") for name in sources},
        tokens={name: _read_object(folder / "data" / name / "tokens.json") for name in sources},
        evaluation=_read_object(folder / "evaluation.json"),
        benchmark=_read_object(folder / "benchmark.json"),
        num_parameters=_count_parameters(folder),
    )


def _count_parameters(folder: Path) -> int | None:
    """From the header of a safetensors file: torch, which would count from the recipe, takes seconds to import."""
    for path in sorted(folder.glob("*/checkpoints/step-*/model.safetensors"), reverse=True):
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(length, MOST_HEADER_BYTES)))
            return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return None


def _read_stage(
    folder: Path, name: str, settings: dict[str, Any], offset: int, before: StageHistory | None
) -> StageHistory:
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if isinstance(line.get("step"), int)]
    timings = [_dict(line.get("timing")) for line in lines]
    seconds = np.cumsum([_number(timing.get("seconds"), 0.0) for timing in timings])
    if before is not None and len(before.every_step):
        seconds = seconds + np.interp(offset, before.every_step.steps, before.every_step.seconds)
    steps = np.array([offset + line["step"] for line in lines], np.float64)
    tokens = np.array([_number(line.get("tokens")) for line in lines], np.float64)
    taken = ["skipped" not in line for line in lines]
    values: dict[str, Column] = {}
    for key in ("loss", "cross_entropy_nats", "grad_norm"):
        values[key] = np.array(
            [_number(line.get(key)) if good else np.nan for line, good in zip(lines, taken, strict=True)], np.float64
        )
    for key in ("lr_muon", "lr_embedding", "lr_norm", "loss_scale"):
        if any(key in line for line in lines):
            values[key] = np.array([_number(line.get(key)) for line in lines], np.float64)
    if any("experts" in line for line in lines):
        values |= _expert_curves([_dict(line.get("experts")) for line in lines])
    for key in ("tokens_per_second", "memory_bytes"):
        values[key] = np.array([_number(timing.get(key)) for timing in timings], np.float64)
    scored = [i for i, line in enumerate(lines) if isinstance(line.get("bits_per_byte"), dict)]
    sources = dict.fromkeys(source for i in scored for source in lines[i]["bits_per_byte"])
    scores = {
        source: np.array([_number(lines[i]["bits_per_byte"].get(source)) for i in scored], np.float64)
        for source in sources
    }
    events = [
        event | {"step": offset + event["step"]}
        for event in read_jsonl(folder / "events.jsonl")
        if isinstance(event.get("step"), int) and isinstance(event.get("event"), str)
    ]
    return StageHistory(
        name=name,
        settings=settings,
        offset=offset,
        every_step=Curves(steps, tokens, seconds, values),
        heldout=Curves(steps[scored], tokens[scored], seconds[scored], scores),
        num_skipped=sum("skipped" in line and line["skipped"] != "overflow" for line in lines),
        events=events,
    )


def _expert_curves(lines: list[dict[str, Any]]) -> dict[str, Column]:
    """Of a mixture of experts, over all layers: the least and the largest load of an expert beside an even one, the
    experts without a token, and the mean entropy of the scores.
    """
    rows = []
    for line in lines:
        loads = [len(layer) * load for layer in line.get("load", []) for load in map(_number, layer)]
        entropy, dead = ([_number(value) for value in line.get(key, [])] for key in ("entropy", "dead"))
        known = loads and entropy and dead
        rows.append([min(loads), max(loads), sum(dead), sum(entropy) / len(entropy)] if known else [np.nan] * 4)
    names = ("expert_least_load", "expert_largest_load", "expert_dead", "expert_entropy")
    return dict(zip(names, np.array(rows, np.float64).T, strict=True))


def _number(value: Any, missing: float = float("nan")) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else missing


def _dict(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object, {} where there is none that can be read."""
    try:
        text = path.read_text(encoding="utf-8")
        return _dict(json.loads(text, parse_constant=lambda _: None))  # NaN and Infinity are no JSON
    except (OSError, ValueError, RecursionError):
        return {}
