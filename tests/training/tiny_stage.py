"""A stage of a tiny model on a few lines of text, its trainer, and the comparison of what two runs leave behind."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from shard.config import Config
from shard.console import Reporter
from shard.data.loader import BatchLoader
from shard.evaluation.bits_per_byte import encode_heldout, score
from shard.files import write_json
from shard.inference.sampling import complete_prompts
from shard.tokenizer import load_tokenizer, train_tokenizer
from shard.training.checkpoint import checkpoint_path, list_steps, load_checkpoint
from shard.training.decisions import Decisions
from shard.training.metrics import read_jsonl
from shard.training.settings import StageSettings
from shard.training.stage import Stage
from shard.training.trainer import Trainer

CONFIG = Config(
    vocab_size=300,
    hidden_size=32,
    num_layers=3,
    num_heads=2,
    head_dim=16,
    intermediate_size=64,
    max_sequence_length=64,
    sliding_window=8,
)
TEXTS = [f"Document {i} says that {i} + {i} = {2 * i}, and {i} * {i} = {i * i}." for i in range(400)]
SETTINGS = {
    "steps": 20,
    "sequence_length": 32,
    "tokens_per_step": 256,
    "mix": {"a": 0.75, "b": 0.25},
    "warmup_steps": 3,
    "decay_steps": 5,
    "checkpoint_every": 10,
    "evaluate_every": 10,
    "sample_every": 20,
    "sample_prompts": ("Document",),
    "sentinel_every": 10,
    "weight_decay": 0.1,
}


def write_stream(folder: Path, ids: np.ndarray) -> None:
    folder.mkdir(parents=True)
    ids.astype("<u2").tofile(folder / "train-00000.bin")
    shard = {"file": "train-00000.bin", "tokens": len(ids), "sha256": ""}
    write_json(folder / "tokens.json", {"dtype": "<u2", "tokens": len(ids), "shards": [shard]})


def write_data(folder: Path) -> None:
    """Token shards of two sources, and a tokenizer, made of a few lines of text."""
    tokenizer = train_tokenizer(TEXTS, CONFIG.vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = [i for text in TEXTS for i in [*tokenizer.encode(text).ids, 0]]
    write_stream(folder / "a", np.array(ids))
    write_stream(folder / "b", np.array(ids[::-1]))


class Listener(Reporter):
    """Keeps what it was told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def make_stage(
    data: Path,
    folder: Path,
    micro_batch: int = 8,
    compiled: bool = False,
    precision: str = "fp32",
    num_layers: int = 3,
    stage: dict[str, object] | None = None,
    **changes: object,
) -> Stage:
    """The tiny stage, with `changes` of its settings and `stage` of its other fields."""
    settings = StageSettings(**{**SETTINGS, **changes})  # type: ignore[arg-type]
    tokenizer = load_tokenizer(data / "tokenizer.json")
    heldout = encode_heldout(TEXTS[:5], tokenizer, 0, None)
    reasons = {"precision": "", "compile": ""}
    fields = {
        "name": "pretrain",
        "config": replace(CONFIG, num_layers=num_layers),
        "settings": settings,
        "seed": 7,
        "folder": folder,
        "loader": BatchLoader(data, settings.mix, settings.sequence_length, settings.tokens_per_step, 16, seed=7),
        "score": lambda model: {"a": score(model, heldout, 32, 32, torch.float32).bits_per_byte},
        "sample": lambda model: complete_prompts(model, tokenizer, 0, settings.sample_prompts, 10),
        "fingerprint": "tiny",
        "identity": {"what": "tiny"},
        "decisions": Decisions(precision, "fp32", compiled, micro_batch, False, reasons),
        "device": torch.device("cpu"),
    }
    return Stage(**{**fields, **(stage or {})})  # type: ignore[arg-type]


def make_trainer(data: Path, folder: Path, **changes: object) -> Trainer:
    """A trainer of the tiny stage; its reporter is a Listener. The arguments are those of make_stage."""
    return Trainer(make_stage(data, folder, **changes), Listener())  # type: ignore[arg-type]


def metrics(folder: Path) -> list[dict[str, object]]:
    """The lines of metrics.jsonl without what a clock decides."""
    return [{k: v for k, v in line.items() if k != "timing"} for line in read_jsonl(folder / "metrics.jsonl")]


def events(folder: Path, kind: str) -> list[dict[str, object]]:
    """What happened, of one kind, without the time."""
    known = read_jsonl(folder / "events.jsonl")
    return [{k: v for k, v in e.items() if k not in ("time", "event")} for e in known if e["event"] == kind]


def assert_same_end(expected: Path, got: Path) -> None:
    """Both stages stand at the same step with the same bits, metrics and checkpoints."""
    steps = list_steps(expected / "checkpoints")
    assert list_steps(got / "checkpoints") == steps
    a, b = (load_checkpoint(checkpoint_path(folder / "checkpoints", steps[-1])) for folder in (expected, got))
    for kind in ("model", "optimizer"):
        ours, theirs = getattr(a, kind), getattr(b, kind)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), f"{kind}: {name}"
    assert {**a.state, "seconds": 0} == {**b.state, "seconds": 0}
    assert metrics(expected) == metrics(got)
