"""A stage of training, pretrain or anneal, of a run: what the trainer is given, and what the manifest keeps of it.

Where several ranks train, `train` is the first one's, and calls the others to `train_along`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shard.console import Reporter
from shard.data import documents
from shard.epochs import check_epochs
from shard.errors import ShardError
from shard.files import read_json
from shard.provenance import flatten
from shard.recipe import Recipe
from shard.resources import check_disk, check_memory
from shard.run import RECIPE, Run
from shard.teach import teacher_of

if TYPE_CHECKING:
    from shard.data.loader import BatchLoader
    from shard.model import ShardLM

SAMPLE_TOKENS = 40
"""Length of the samples that are drawn during training."""


def separator_id(run: Run) -> int:
    """The token between documents, in the run's tokenizer."""
    from shard.tokenizer import SEPARATOR, load_tokenizer

    separator = run.recipe.tokenizer.separator or SEPARATOR
    token_id = load_tokenizer(run.tokenizer_path).token_to_id(separator)
    if token_id is None:
        raise ShardError(f"{run.tokenizer_path} has no token {separator}")
    return token_id


def _open_batches(run: Run, name: str) -> "BatchLoader":
    from shard.data.loader import BatchLoader

    r, settings = run.recipe, getattr(run.recipe, name)
    return BatchLoader(
        run.data,
        settings.mix,
        settings.sequence_length,
        settings.tokens_per_step,
        r.data.mixture_block,
        # Each stage has an order of its own: else the anneal would begin with what pretrain began with.
        seed=r.seed * 2 + (name == "anneal"),
        vocab_size=r.config.vocab_size,
    )


def train(
    run: Run, reporter: Reporter, name: str, until: int | None, start: Path | None, deadline: float | None
) -> dict[str, Any]:
    """Train the stage `name` to its end, to step `until` or to a deadline (time.monotonic()); what was reached."""
    from shard.training import distributed

    with distributed.together.threads():
        return _train(run, reporter, name, until, start, deadline)


def _train(
    run: Run, reporter: Reporter, name: str, until: int | None, start: Path | None, deadline: float | None
) -> dict[str, Any]:
    import torch

    from shard.environment import choose_device, environment
    from shard.evaluation.bits_per_byte import encode_heldout, score
    from shard.inference.sampling import complete_prompts
    from shard.tokenizer import load_tokenizer
    from shard.training import distributed
    from shard.training.decisions import decide, save_decisions, without_what_is_lost
    from shard.training.sinks import Origin, Sinks
    from shard.training.stage import Stage
    from shard.training.trainer import Trainer

    r, settings = run.recipe, getattr(run.recipe, name)
    device = choose_device()
    tok = load_tokenizer(run.tokenizer_path)
    separator = separator_id(run)
    ranks = distributed.together
    loader = _open_batches(run, name)
    if ranks.size > loader.num_rows:
        raise ShardError(
            f"{ranks.size} ranks are more than the {loader.num_rows} sequences of a step: start fewer, or raise "
            f"{name}.tokens_per_step"
        )
    check_memory(run, device, ranks.local_size, with_teacher=name == "pretrain")
    teacher = teacher_of(run, loader, device) if name == "pretrain" else None
    check_disk(run, name)
    check_epochs(run)
    heldout = {
        source: encode_heldout(
            documents.read_documents(run.data / source, documents.HELDOUT),
            tok,
            separator,
            settings.evaluate_bytes,
        )
        for source in r.sources
    }
    decisions = decide(name, settings, device, run.decisions_path, r.config)
    decisions, lost = without_what_is_lost(name, decisions, settings, device)
    if lost:
        save_decisions(name, device, run.decisions_path, decisions)
    for line in lost:
        reporter.warn(line)
    if ranks.size > 1:
        reporter.line(f"{name}: {ranks.size} ranks, {torch.get_num_threads()} threads each")
        ranks.broadcast(
            {"folder": str(run.folder.resolve()), "stage": name, "until": until, "decisions": asdict(decisions)}
        )

    def score_heldout(model: "ShardLM") -> dict[str, float]:
        length = settings.sequence_length
        scores = {source: score(model, texts, length, length, decisions.dtype) for source, texts in heldout.items()}
        return {source: round(result.bits_per_byte, 5) for source, result in scores.items()}

    def write_samples(model: "ShardLM") -> list[dict[str, str]]:
        return complete_prompts(model, tok, separator, settings.sample_prompts, SAMPLE_TOKENS)

    entry = run.manifest["stages"]
    branch = entry.get("anneal", {}).get("from_step") if name == "pretrain" else None
    surroundings = environment(device)
    if ranks.size > 1:
        surroundings |= {"ranks": ranks.size, "device": f"{ranks.size} x {surroundings['device']}"}
    origin = Origin(
        run=r.name,
        created=run.manifest["created"],
        stage=name,
        folder=run.folder / name,
        settings=flatten(r.model_dump(mode="json")),
    )
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
        identity=run.identity(name),
        accepts=frozenset(entry.get(name, {}).get("accepts", ())),
        decisions=decisions,
        save_decisions=lambda changed: save_decisions(name, device, run.decisions_path, changed),
        device=device,
        environment={
            key: surroundings[key] for key in ("device", "threads", "versions", "ranks") if key in surroundings
        },
        teacher=teacher,
        start=start,
        sinks=Sinks.named(run.track, origin, reporter.warn),
        pinned=frozenset() if branch is None else frozenset({branch}),
        ranks=ranks,
    )
    with run.stage(name), stage.sinks:
        run.record(name, environment=surroundings, decisions=read_json(run.decisions_path, "delete it"))
        try:
            trainer = Trainer(stage, reporter)
            reached = trainer.train(until, deadline)
        finally:
            loader.close()
            torch.use_deterministic_algorithms(False)
        status = "done" if reached == settings.steps else "stopped" if reached == until else "paused"
        result = {
            "status": status,
            "step": reached,
            "steps": settings.steps,
            "tokens": trainer.tokens,
            "seconds": round(trainer.seconds, 1),
            "skipped_steps": trainer.skipped,
            "rollbacks": [rollback.to_dict() for rollback in trainer.rollbacks],
        }
        run.record(name, result=result, status="running" if status == "done" else status)
    if status == "paused":
        reporter.line(
            f"{name}: paused at step {reached} of {settings.steps}, saved; the same command goes on from there"
        )
    elif status == "stopped":
        reporter.line(
            f"{name}: stopped at step {reached} of {settings.steps}; go on with `shard {name} {run.folder}`"
            + (f", or anneal from here with `shard anneal {run.folder}`" if name == "pretrain" else "")
        )
    return result


def train_along(task: dict[str, Any]) -> None:
    """What the other ranks do of a stage: its steps. `task` is what the first rank says of it; all else, the weights
    too, they have from there.
    """
    import torch

    from shard.environment import choose_device
    from shard.training import distributed
    from shard.training.decisions import Decisions
    from shard.training.stage import Stage
    from shard.training.trainer import Trainer

    folder, name, ranks = Path(task["folder"]), task["stage"], distributed.together
    run = Run(folder, Recipe.load(str(folder / RECIPE)))
    with ranks.threads():
        loader, device = _open_batches(run, name), choose_device()
        stage = Stage(
            name=name,
            config=run.recipe.config,
            settings=getattr(run.recipe, name),
            seed=run.recipe.seed,
            folder=folder / name,
            loader=loader,
            score=lambda model: {},
            sample=lambda model: [],
            fingerprint="",
            identity={},
            decisions=Decisions(**task["decisions"]),
            device=device,
            teacher=teacher_of(run, loader, device) if name == "pretrain" else None,
            ranks=ranks,
        )
        try:
            Trainer(stage, Reporter(quiet=True)).train(task["until"])
        finally:
            loader.close()
            torch.use_deterministic_algorithms(False)
