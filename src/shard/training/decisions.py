"""What "auto" means on this machine: probed once, written down before step 1, and reused by every later start.

A probe may choose differently after a restart (a busy machine, a new driver), and training would then not repeat.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shard.config import Config
from shard.environment import NO_COMPILER, choose_compile, choose_precision, cpp_compiler, free_memory
from shard.errors import ShardError
from shard.files import read_json, write_json
from shard.training.memory import predict_memory
from shard.training.settings import StageSettings
from shard.units import format_size

# Tokens of a micro-batch where the recipe says "auto".
MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 32768, "mps": 8192}
ROOM = 0.8
"""Share of the free memory that training may take by the prediction, which is good to about 15 %."""


@dataclass(frozen=True)
class Decisions:
    """How a stage computes, and why."""

    precision: str
    """bf16, fp16 (with a loss scale) or fp32."""
    newton_schulz: str
    """Dtype of Muon's orthogonalisation: the fast one."""
    compile: bool
    micro_batch: int
    """Sequences computed at once."""
    flex_attention: bool
    """FlexAttention, on CUDA."""
    reasons: dict[str, str]
    flash_window: bool = False
    """Local layers in narrow bands, on a CPU. What older versions wrote lacks it: such runs go on as begun."""
    varlen_attention: bool = False
    """Local layers by FlashAttention's window, on CUDA where FlexAttention cannot be used."""
    cpu_attention: bool = False
    """All layers by our own kernel, on a CPU. The bands stay decided for a start that finds it gone."""

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return DTYPES[self.precision]


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def decide(
    stage: str, settings: StageSettings, device: torch.device, path: Path, config: Config | None = None
) -> Decisions:
    """The decisions of a stage: read from `path` if it holds them, else probed and added to it atomically. Where the
    model is known, "auto" takes no larger micro-batch than fits.
    """
    known = _read(path)
    key = _key(stage, device)
    if key not in known:
        save_decisions(stage, device, path, _probe(settings, device, config))
        return Decisions(**_read(path)[key])
    try:
        return Decisions(**known[key])
    except TypeError as error:
        raise ShardError(f"{path} is damaged ({error}): delete it, it is made anew") from None


def save_decisions(stage: str, device: torch.device, path: Path, decisions: Decisions) -> None:
    """Write the decisions of a stage down, atomically, beside those of other stages."""
    write_json(path, {**_read(path), _key(stage, device): asdict(decisions)})


def _key(stage: str, device: torch.device) -> str:
    # A recipe cannot change under a run, but the kind of device can: what was probed on another one does not hold.
    return f"{stage} on {device.type}"


def _read(path: Path) -> dict[str, Any]:
    known = read_json(path, "delete it: it is made anew") if path.exists() else {}
    if not isinstance(known, dict):
        raise ShardError(f"{path} is damaged: delete it, it is made anew")
    return known


def fit_micro_batch(micro_batch: int, rows: int) -> int:
    """The largest micro-batch up to this one that divides the rows: equal shapes are compiled once."""
    return max(n for n in range(1, min(micro_batch, rows) + 1) if rows % n == 0)


def halve_micro_batch(decisions: Decisions, rows: int) -> Decisions | None:
    """After running out of memory: about half the micro-batch, of equal parts of the `rows` of a step. None at one."""
    if decisions.micro_batch == 1:
        return None
    micro_batch = fit_micro_batch(decisions.micro_batch // 2, rows)
    reason = f"{decisions.micro_batch} sequences did not fit into memory"
    return replace(decisions, micro_batch=micro_batch, reasons={**decisions.reasons, "micro_batch": reason})


def without_what_is_lost(
    stage: str, decisions: Decisions, settings: StageSettings, device: torch.device
) -> tuple[Decisions, list[str]]:
    """What was decided, less what needs a compiler that this machine does not have (any more), and a line for each.
    Raises ShardError where the recipe asks for it.
    """
    lost = []
    if decisions.compile and device.type == "cpu" and cpp_compiler() is None:
        if settings.compile == "on":
            raise ShardError(f'{stage}.compile is "on", but {NO_COMPILER}')
        decisions = replace(decisions, compile=False, reasons={**decisions.reasons, "compile": NO_COMPILER})
        lost.append(f"{stage}: {NO_COMPILER}: goes on without torch.compile, slower and rounding otherwise")
    if decisions.cpu_attention:
        from shard.training.cpu_attention import load_cpu_attention

        works, reason = load_cpu_attention()
        if not works:
            reasons = {**decisions.reasons, "cpu_attention": reason}
            decisions = replace(decisions, cpu_attention=False, reasons=reasons)
            lost.append(f"{stage}: {reason}: goes on with torch's attention, slower and rounding otherwise")
    return decisions, lost


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch means that memory ran out: CUDA has a class for it, the CPU and MPS only words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def choose_micro_batch(
    settings: StageSettings,
    device: torch.device,
    config: Config | None,
    precision: str,
    compiled: bool,
    free_bytes: int,
) -> tuple[int, str]:
    """(sequences of a micro-batch, the reason): equal parts of a step, of at most MICRO_BATCH_TOKENS, and of those the
    most whose predicted memory leaves a fifth of what is free. More than these tokens gain no speed, and no timing is
    made of it: a busy machine would make two runs of one recipe differ.
    """
    rows, most = settings.tokens_per_step // settings.sequence_length, MICRO_BATCH_TOKENS[device.type]
    # Equal micro-batches keep the shapes static, so nothing is compiled twice.
    wanted = max(1, most // settings.sequence_length)
    fitting = [n for n in range(min(wanted, rows), 0, -1) if rows % n == 0]
    if config is None:
        return fitting[0], f"at most {most} tokens on {device.type}"
    for micro_batch in fitting:
        needed = predict_memory(config, settings, micro_batch, precision, compiled, device.type).peak
        if needed <= ROOM * free_bytes:
            break
    reason = f"at most {most} tokens on {device.type}; about {format_size(needed)} of {format_size(free_bytes)} free"
    return micro_batch, reason


def _probe(settings: StageSettings, device: torch.device, config: Config | None) -> Decisions:
    precision, reason = choose_precision(device)
    newton_schulz, reasons = precision, {"newton_schulz": reason}
    if device.type == "cuda":  # no scale is needed: what is orthogonalised is normalized first
        newton_schulz, reasons["newton_schulz"] = "fp16", "as fast as bf16, and nearer to fp32"
    if settings.precision != "auto":
        precision, reason = settings.precision, "the recipe says so"
    reasons["precision"] = reason
    if settings.compile == "auto":
        compile_works, reasons["compile"] = choose_compile(device)
    else:
        compile_works, reasons["compile"] = settings.compile == "on", "the recipe says so"
    if settings.micro_batch == "auto":
        micro_batch, reasons["micro_batch"] = choose_micro_batch(
            settings, device, config, precision, compile_works, free_memory(device)
        )
    else:
        rows = settings.tokens_per_step // settings.sequence_length
        micro_batch, reasons["micro_batch"] = min(settings.micro_batch, rows), "the recipe says so"
    head_dim = 64 if config is None else config.head_dim
    varlen_works = flex_works = False
    if device.type == "cuda" and compile_works:
        from shard.training.flex import flex_attention_works

        flex_works, reasons["flex_attention"] = flex_attention_works(device, DTYPES[precision], head_dim)
    if device.type == "cuda" and not flex_works:
        from shard.training.varlen import varlen_attention_works

        varlen_works, reasons["varlen_attention"] = varlen_attention_works(device, DTYPES[precision])
    flash_works = False
    cpu_attention_is_used = False
    if device.type == "cpu":
        from shard.training.cpu_attention import cpu_attention_works
        from shard.training.window import flash_window_works

        flash_works, reasons["flash_window"] = flash_window_works(DTYPES[precision])
        cpu_attention_is_used, reasons["cpu_attention"] = cpu_attention_works(DTYPES[precision], head_dim)
    return Decisions(
        precision,
        newton_schulz,
        compile_works,
        micro_batch,
        flex_works,
        reasons,
        flash_works,
        varlen_works,
        cpu_attention_is_used,
    )
