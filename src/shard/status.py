"""`shard status`: where the runs stand, read from their files alone."""

from pathlib import Path
from typing import Any

from shard.files import read_json
from shard.recipe import Recipe
from shard.run import stages_of
from shard.training.metrics import read_jsonl
from shard.units import format_duration


def find_runs(folder: Path) -> list[Path]:
    """`folder` itself if it is a run, else the runs directly below it."""
    if (folder / "recipe.toml").is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob("*/recipe.toml")) if folder.is_dir() else []


def run_status(folder: Path) -> dict[str, Any]:
    """Stage, step, loss and time left of one run."""
    recipe = Recipe.load(str(folder / "recipe.toml"))
    manifest_path = folder / "manifest.json"
    stages = read_json(manifest_path, "restore it")["stages"] if manifest_path.is_file() else {}
    states = {stage: stages.get(stage, {}).get("status", "not started") for stage in stages_of(recipe)}
    current = next((stage for stage in states if states[stage] not in ("done", "imported")), "release")
    status: dict[str, Any] = {"run": str(folder), "stage": current, "status": states[current], "stages": states}
    for stage in ("anneal", "pretrain"):
        if lines := read_jsonl(folder / stage / "metrics.jsonl"):
            settings, last = getattr(recipe, stage), lines[-1]
            recent = [line["timing"]["seconds"] for line in lines[-20:]]
            scored = [line["bits_per_byte"] for line in lines if "bits_per_byte" in line]
            status |= {
                "training_stage": stage,
                "step": last["step"],
                "steps": settings.steps,
                "loss": next((line["loss"] for line in reversed(lines) if "skipped" not in line), None),
                "skipped_steps": sum("skipped" in line for line in lines),
                "seconds_left": round(sorted(recent)[len(recent) // 2] * (settings.steps - last["step"]), 1),
            }
            if scored:
                status["bits_per_byte"] = scored[-1]
            break
    return status


def describe_status(status: dict[str, Any]) -> str:
    """The status of one run in one line."""
    finished = all(state in ("done", "imported") for state in status["stages"].values())
    text = f"{status['run']}: {'finished' if finished else status['stage'] + ' ' + status['status']}"
    if "step" in status:
        loss = "none" if status["loss"] is None else f"{status['loss']:.4f}"
        text += f", {status['training_stage']} step {status['step']:,} of {status['steps']:,}, loss {loss}"
        if status["skipped_steps"]:
            text += f", {status['skipped_steps']} steps skipped"
        if status["step"] < status["steps"]:
            text += f", {format_duration(status['seconds_left'])} left"
    return text
