"""A run and its teacher: the stage that keeps targets, and what pretraining is given of either kind of teacher."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from shard.console import Reporter
from shard.data.loader import BatchLoader
from shard.distillation.folder import check_licence
from shard.run import Run
from shard.units import format_count, format_size

if TYPE_CHECKING:
    import torch

    from shard.distillation.teacher import Distillation


def teach(run: Run, reporter: Reporter, deadline: float | None = None) -> dict[str, Any]:
    """Keep the teacher's targets of every sequence that pretraining may read: by source what was kept, or
    {"status": "paused"} where the deadline (time.monotonic()) came first.
    """
    from shard.distillation.causal import load_teacher
    from shard.distillation.teach import TargetWriter
    from shard.environment import choose_device, make_deterministic

    r, settings = run.recipe, run.recipe.distillation
    assert settings is not None
    device = choose_device()
    teacher = _record_teacher(run)
    make_deterministic(r.seed)
    writer = TargetWriter(
        lambda: load_teacher(settings, run.tokenizer_path, device),
        settings,
        teacher,
        r.pretrain.sequence_length,
        r.config.vocab_size,
        r.seed,
        device,
    )
    ledgers = {}
    for name in run.taught():

        def say(done: int, total: int, name: str = name) -> None:
            speed = f", {writer.tokens / writer.seconds:,.0f} tokens/s" if writer.seconds else ""
            reporter.progress(f"teach: {name}, {done:,} of {total:,} sequences{speed}")

        ledger = writer.write(run.data / name, say, deadline)
        if ledger is None:
            reporter.end_progress()
            reporter.line("teach: paused, and what is done is kept; the same command goes on from there")
            run.record("teach", status="paused")
            return {"status": "paused"}
        ledgers[name] = {key: ledger[key] for key in ("tokens", "entries", "bytes", "sequences")}
    reporter.end_progress()
    run.record("teach", result=ledgers)
    reporter.table(
        "Targets of the teacher",
        ["source", "tokens", "ids a token", "bytes a token", "size"],
        [
            [
                name,
                format_count(one["tokens"]),
                f"{one['entries'] / one['tokens']:.1f}",
                f"{one['bytes'] / one['tokens']:.1f}",
                format_size(one["bytes"]),
            ]
            for name, one in ledgers.items()
        ],
    )
    return ledgers


def teacher_of(run: Run, loader: BatchLoader, device: "torch.device") -> "Distillation | None":
    """The teacher of pretraining; None where the recipe has none."""
    settings = run.recipe.distillation
    if settings is None:
        return None
    from shard.distillation.teacher import CachedTeacher, Distillation, OnlineTeacher

    if settings.is_cached:
        return Distillation(CachedTeacher(loader), settings, run.recipe.pretrain.steps)
    from shard.distillation.causal import load_teacher

    _record_teacher(run)
    model = load_teacher(settings, run.tokenizer_path, device)
    return Distillation(OnlineTeacher(model), settings, run.recipe.pretrain.steps)


def _record_teacher(run: Run) -> dict[str, Any]:
    """What the manifest and the card keep of a teacher; UsageError where its card names another licence."""
    settings = run.recipe.distillation
    assert settings is not None
    on_card = check_licence(settings)
    teacher = {
        "name": settings.gguf_file or Path(settings.teacher).name,
        "licence": settings.licence,
        "licence_checked": on_card is not None,
        "sha256": run.teacher_sha256(),
    }
    run.annotate(teacher=teacher)
    return teacher
