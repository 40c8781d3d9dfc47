"""What "auto" means on this machine: probed once, written down before step 1, and reused by every later start.

A probe may choose differently after a restart (a busy machine, a new driver), and training would then not repeat.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from shard.environment import choose_compile, choose_precision
from shard.files import read_json, write_json
from shard.training.settings import StageSettings

# Tokens of a micro-batch where the recipe says "auto".
MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 32768, "mps": 8192}


@dataclass(frozen=True)
class Decisions:
    """How a stage computes, and why."""

    precision: str
    """bf16 or fp32."""
    newton_schulz: str
    """Dtype of Muon's orthogonalisation: bf16 where it is fast."""
    compile: bool
    micro_batch: int
    """Sequences computed at once."""
    flex_attention: bool
    reasons: dict[str, str]

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return DTYPES[self.precision]


DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def decide(stage: str, settings: StageSettings, device: torch.device, path: Path) -> Decisions:
    """The decisions of a stage: read from `path` if it holds them, else probed and added to it atomically."""
    known: dict[str, Any] = read_json(path, "delete it: it is made anew") if path.exists() else {}
    # A recipe cannot change under a run, but the kind of device can: what was probed on another one does not hold.
    key = f"{stage} on {device.type}"
    if key not in known:
        known[key] = asdict(_probe(settings, device))
        write_json(path, known)
    return Decisions(**known[key])


def _probe(settings: StageSettings, device: torch.device) -> Decisions:
    precision, reason = choose_precision(device)
    reasons = {"newton_schulz": reason}
    newton_schulz = precision
    if settings.precision != "auto":
        precision, reason = settings.precision, "the recipe says so"
    reasons["precision"] = reason
    if settings.compile == "auto":
        compile_works, reasons["compile"] = choose_compile(device)
    else:
        compile_works, reasons["compile"] = settings.compile == "on", "the recipe says so"
    rows = settings.tokens_per_step // settings.sequence_length
    if settings.micro_batch == "auto":
        wanted = max(1, MICRO_BATCH_TOKENS[device.type] // settings.sequence_length)
        # Equal micro-batches keep the shapes static, so nothing is compiled twice.
        micro_batch = max(n for n in range(1, min(wanted, rows) + 1) if rows % n == 0)
        reasons["micro_batch"] = f"at most {MICRO_BATCH_TOKENS[device.type]} tokens on {device.type}"
    else:
        micro_batch, reasons["micro_batch"] = min(settings.micro_batch, rows), "the recipe says so"
    flex_works = False
    if device.type == "cuda":
        from shard.training.flex import flex_attention_works

        flex_works, reasons["flex_attention"] = flex_attention_works(device, DTYPES[precision])
    return Decisions(precision, newton_schulz, compile_works, micro_batch, flex_works, reasons)
