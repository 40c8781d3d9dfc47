"""Run folders made of nothing but the files that a report reads, for runs of any length and any trouble."""

import json
import math
import random
from pathlib import Path
from typing import Any

MATRICES = [f"blocks.{i}.attention.{name}.weight" for i in range(3) for name in ("query", "value")]
SOURCES = ("prose", "code")
TOKENS_PER_STEP = 1000

RECIPE = """\
name = "{name}"
description = "Made up."
seed = 0
[model]
hidden_size = 32
[sources.prose]
kind = "text"
path = "/nowhere"
[sources.code]
kind = "text"
path = "/nowhere"
[pretrain]
steps = {steps}
tokens_per_step = 1000
lr_muon = {lr_muon}
mix = {{prose = 3.0, code = 1.0}}
[anneal]
steps = {anneal}
tokens_per_step = 1000
lr_muon = {lr_muon}
mix = {{code = 1.0}}
"""


def loss_at(step: int) -> float:
    """The loss of a step without its noise."""
    return 3 + 5 * math.exp(-step / 50)


def write_run(
    folder: Path,
    name: str = "made-up",
    steps: int = 400,
    anneal: int = 100,
    lr_muon: float = 0.02,
    skipped: tuple[int, ...] = (150, 151, 300),
    seed: int = 0,
    source: str = "prose",
) -> Path:
    """A finished run with a restart, a rollback and skipped steps. `source` is another name for its first source."""
    folder.mkdir(parents=True)
    recipe = RECIPE.format(name=name, steps=steps, anneal=anneal, lr_muon=lr_muon)
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    entries: dict[str, Any] = {stage: {"status": "done"} for stage in ("tokenizer", "data", "pretrain", "anneal")}
    entries["pretrain"]["environment"] = {"device": "CPU", "threads": 2, "versions": {"torch": "2.13.0"}}
    entries["anneal"]["from_step"] = steps
    write(folder / "manifest.json", {"recipe": name, "created": "2026-11-25T00:00:00Z", "stages": entries})
    rng = random.Random(seed)
    for stage, count, offset in (("pretrain", steps, 0), ("anneal", anneal, steps)):
        lines, happened = [], [event("start", step=0, until=count)]
        for step in range(1, count + 1):
            record: dict[str, Any] = {
                "step": step,
                "tokens": (offset + step) * TOKENS_PER_STEP,
                "loss": loss_at(offset + step) + rng.gauss(0, 0.02),
                "cross_entropy_nats": loss_at(offset + step),
                "grad_norm": 0.5 + rng.random() / 10,
                "lr_muon": lr_muon * (1 if stage == "pretrain" else 1 - (step - 1) / count),
                "lr_embedding": 0.03,
                "lr_norm": 0.03,
            }
            if stage == "pretrain" and step in skipped:
                record |= {"skipped": "loss spike", "loss": 99.0, "grad_norm": 88.0}
                happened.append(
                    event("skipped", step=step, reason="loss spike", batch=step - 1, loss=99.0, grad_norm=88.0)
                )
            if step % max(1, count // 8) == 0:
                record["bits_per_byte"] = {source: loss_at(offset + step) / 2, "code": loss_at(offset + step) / 3}
                happened.append(event("sentinel", step=step, spectra=spectra(step, count)))
            if step % max(1, count // 4) == 0:
                happened.append(event("sample", step=step, prompt="The ", text=f"The text of step {step}"))
            record["timing"] = {"seconds": 0.5, "tokens_per_second": 2000 + rng.random(), "memory_bytes": 10**9 + step}
            lines.append(json.dumps(record))
        if stage == "pretrain":
            happened.append(event("start", step=count // 2, until=count))
            happened.append(event("rollback", step=count // 2 + 1, checkpoint=count // 4, passed_over=[1, 2, 3]))
        (folder / stage).mkdir()
        (folder / stage / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / stage / "events.jsonl").write_text("\n".join(map(json.dumps, happened)) + "\n", encoding="utf-8")
    for i, of in enumerate(SOURCES):
        ledger = {
            "license": "MIT",
            "documents_read": 100 + i,
            "dropped": {"duplicate": 7},
            "documents": {"train": 80, "heldout": 13},
            "bytes": {"train": 10**6, "heldout": 10**4},
        }
        write(folder / "data" / of / "documents.json", ledger)
        write(folder / "data" / of / "tokens.json", {"tokens": 100_000, "bytes_per_token": 4.0})
    scores = {of: {"bits_per_byte": 1.25, "cross_entropy_nats": 2.5, "documents": 13} for of in SOURCES}
    samples = [{"prompt": "a b", "text": "a b and so on"}]
    result = {"metric": "exact match", "value": 0.125, "standard_error": 0.0625, "chance": 0.01, "items": 28}
    tasks = {
        "arc_easy_cloze": {"version": 1, "not_measured": "files not at hand"},
        "arithmetic": {"version": 1, "results": [result, {**result, "metric": "of 1 digit"}]},
    }
    evaluation = {"precision": "fp32", "context": 64, "sources": scores, "tasks": tasks, "samples": samples}
    write(folder / "evaluation.json", evaluation)
    spread = {"median": 50.0, "min": 40.0, "max": 60.5, "runs": 5}
    write(folder / "benchmark.json", {"device": "CPU", "inference": {"fp32": {"decode_tokens_per_second": spread}}})
    return folder


def spectra(step: int, count: int) -> list[dict[str, Any]]:
    """A look in which one matrix loses more and more."""
    return [
        {
            "name": name,
            "what": what,
            "smallest": 0.01,
            "largest": 1.0,
            "stable_rank": 8.0,
            "num_values": 32,
            "num_lost": round(8 * step / count) if (i, what) == (2, "weight") else 0,
            "ratio": 0.01,
        }
        for i, name in enumerate(MATRICES)
        for what in ("weight", "momentum")
    ]


def event(kind: str, **values: Any) -> dict[str, Any]:
    return {"time": "2026-11-25T10:00:00Z", "event": kind, **values}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
