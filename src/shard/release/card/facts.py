"""What a card is made of: the files that the run wrote, read once, and where its own files lie."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shard.run import Run
from shard.training.cost import flops_per_token
from shard.training.metrics import read_jsonl
from shard.training.settings import StageSettings

TRAINING = ("pretrain", "anneal")


@dataclass(frozen=True)
class StageFacts:
    """One stage of training: its settings, its entry in manifest.json, metrics.jsonl and events.jsonl."""

    name: str
    settings: StageSettings
    entry: Mapping[str, Any]
    lines: list[dict[str, Any]]
    events: list[dict[str, Any]]

    @property
    def step(self) -> int:
        """The last step that was trained."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def tokens(self) -> int:
        """Tokens that were trained on in this run."""
        return len(self.lines) * self.settings.tokens_per_step

    @property
    def seconds(self) -> float:
        """Seconds of all its steps."""
        return float(sum(line["timing"]["seconds"] for line in self.lines))

    @property
    def was_imported(self) -> bool:
        """Whether it was done elsewhere."""
        return self.entry.get("status") == "imported"


@dataclass(frozen=True)
class Facts:
    """The files of a run, and of the bundle that the card is for."""

    run: Run
    bundle: Path
    manifest: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    benchmark: Mapping[str, Any]
    stages: Mapping[str, StageFacts]
    repository: str | None = None
    """The repository on the hub where the card will stand: there the files of hf/ lie at the root."""

    @classmethod
    def read(cls, run: Run, bundle: Path, repository: str | None = None) -> "Facts":
        """The facts of a run as they stand; a file that is not there is empty."""
        manifest = run.manifest
        stages = {
            name: StageFacts(
                name,
                getattr(run.recipe, name),
                manifest["stages"].get(name, {}),
                read_jsonl(run.folder / name / "metrics.jsonl"),
                read_jsonl(run.folder / name / "events.jsonl"),
            )
            for name in TRAINING
        }
        evaluation, benchmark = read_table(run.folder / "evaluation.json"), read_table(run.folder / "benchmark.json")
        return cls(run, bundle, manifest, evaluation, benchmark, stages, repository)

    @property
    def title(self) -> str:
        """The model's name."""
        return self.run.recipe.release.title or self.run.recipe.name

    @property
    def has_hugging_face(self) -> bool:
        """Whether the bundle has the model for transformers."""
        return (self.bundle / "hf").is_dir()

    @property
    def tokens(self) -> int:
        """Tokens that all stages of this run trained on."""
        return sum(stage.tokens for stage in self.stages.values())

    def flops(self, stage: StageFacts) -> int:
        """Floating-point operations of a stage, by arithmetic: see training/cost.py."""
        return stage.tokens * flops_per_token(self.run.recipe.config, stage.settings.sequence_length)

    def tasks(self) -> dict[str, list[dict[str, Any]]]:
        """The results of each task that was measured, the headline first."""
        tasks: Mapping[str, Any] = self.evaluation.get("tasks") or {}
        return {name: task["results"] for name, task in tasks.items() if task.get("results")}


def read_table(path: Path) -> dict[str, Any]:
    """A JSON file of the run; empty where it is not there."""
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return table
