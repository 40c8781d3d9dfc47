"""A stage of training, pretrain or anneal, of a run: what the trainer is given, and what the manifest keeps of it."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shard.console import Reporter
from shard.data import documents
from shard.errors import ShardError
from shard.files import read_json
from shard.run import Run
from shard.units import format_size

if TYPE_CHECKING:
    import torch

    from shard.model import ShardLM
    from shard.training.settings import StageSettings

SAMPLE_TOKENS = 40
"""Length of the samples that are drawn during training."""


def separator_id(run: Run) -> int:
    """The token between documents, in the run's tokenizer."""
    from shard.tokenizer import SEPARATOR, load_tokenizer

    token_id = load_tokenizer(run.tokenizer_path).token_to_id(SEPARATOR)
    if token_id is None:
        raise ShardError(f"{run.tokenizer_path} has no token {SEPARATOR}")
    return token_id


def train(run: Run, reporter: Reporter, name: str, until: int | None, start_from: Path | None) -> dict[str, Any]:
    """Train the stage `name` to its end, or to step `until`; returns what was reached."""
    import torch

    from shard.data.loader import BatchLoader
    from shard.environment import choose_device, environment
    from shard.evaluation.bits_per_byte import encode_heldout, score
    from shard.inference.sampling import complete_prompts
    from shard.tokenizer import load_tokenizer
    from shard.training.checkpoint import load_checkpoint
    from shard.training.decisions import decide
    from shard.training.trainer import Stage, Trainer

    r, settings = run.recipe, getattr(run.recipe, name)
    device = choose_device()
    tok = load_tokenizer(run.tokenizer_path)
    separator = separator_id(run)
    loader = BatchLoader(
        run.data,
        settings.mix,
        settings.sequence_length,
        settings.tokens_per_step,
        r.data.mixture_block,
        # Each stage has an order of its own: else the anneal would begin with what pretrain began with.
        seed=r.seed * 2 + (name == "anneal"),
    )
    _check_resources(run, settings, device)
    for source, epochs in loader.mixture.epochs(settings.steps * loader.num_rows).items():
        if epochs > 4:
            reporter.warn(f"{name}: {source} will be read {epochs:.1f} times")
    heldout = {
        source: encode_heldout(
            documents.read_documents(run.data / source, documents.HELDOUT),
            tok,
            separator,
            settings.evaluate_bytes,
        )
        for source in r.sources
    }
    decisions = decide(name, settings, device, run.decisions_path)

    def score_heldout(model: "ShardLM") -> dict[str, float]:
        length = settings.sequence_length
        scores = {source: score(model, texts, length, length, decisions.dtype) for source, texts in heldout.items()}
        return {source: round(result.bits_per_byte, 5) for source, result in scores.items()}

    def write_samples(model: "ShardLM") -> list[dict[str, str]]:
        return complete_prompts(model, tok, separator, settings.sample_prompts, SAMPLE_TOKENS)

    stage = Stage(
        name=name,
        config=r.config,
        settings=settings,
        seed=r.seed,
        folder=run.folder / name,
        loader=loader,
        score=score_heldout,
        sample=write_samples,
        fingerprint=run.inputs(name),
        decisions=decisions,
        device=device,
    )
    with run.stage(name):
        run.record(name, environment=environment(device), decisions=read_json(run.decisions_path, "delete it"))
        start = load_checkpoint(start_from) if start_from is not None else None
        trainer = Trainer(stage, reporter, start)
        try:
            reached = trainer.train(until)
        finally:
            loader.close()
            torch.use_deterministic_algorithms(False)
        result = {
            "step": reached,
            "steps": settings.steps,
            "tokens": trainer.tokens,
            "seconds": round(trainer.seconds, 1),
        }
        run.record(name, result=result, status="running" if reached == settings.steps else "stopped")
    if reached < settings.steps:
        reporter.line(
            f"{name}: stopped at step {reached} of {settings.steps}; go on with `shard {name} {run.folder}`"
            + (f", or anneal from here with `shard anneal {run.folder}`" if name == "pretrain" else "")
        )
    return result


def _check_resources(run: Run, settings: "StageSettings", device: "torch.device") -> None:
    """Before a stage: memory for the weights and the optimizer, disk for the checkpoints that it keeps and one more."""
    from shard.environment import total_memory
    from shard.training.cost import checkpoint_bytes, state_bytes

    if device.type == "cpu" and state_bytes(run.recipe.config) > total_memory():
        raise ShardError(
            f"weights, gradients and optimizer state take {format_size(state_bytes(run.recipe.config))} and this "
            f"machine has {format_size(total_memory())}: choose a smaller model"
        )
    kept = settings.keep_last + 2 + (settings.steps // settings.keep_every if settings.keep_every else 0)
    needed, free = checkpoint_bytes(run.recipe.config) * kept, shutil.disk_usage(run.folder).free
    if free < needed:
        raise ShardError(
            f"{run.folder} has {format_size(free)} of free disk and checkpoints may take {format_size(needed)}: "
            "make room, choose an --out on another disk, or keep fewer (keep_every)"
        )
