"""The stages of a run, in order: tokenizer, data, pretrain, anneal, evaluate, bench, release.

Each takes a Run, does its work unless it is done already, records it in the manifest, and returns its result. A stage
that needs an earlier one runs it first; training needs an earlier training to be there.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shard.console import Reporter
from shard.data import documents
from shard.epochs import run_epochs, too_many, wanted_tokens
from shard.errors import ShardError, UsageError
from shard.files import read_json, write_json
from shard.resources import check_disk, check_room_for_data
from shard.run import Run, stages_of
from shard.train import separator_id, train
from shard.units import format_count, format_size

Result = dict[str, Any]

# How the card's table of sampled outputs is drawn.
CARD_SAMPLING: dict[str, Any] = {"max_tokens": 60, "temperature": 0.7, "top_p": 0.9, "seed": 0}


def run_all(run: Run, reporter: Reporter, deadline: float | None = None) -> Result:
    """Every stage in turn; what is done already is skipped. Past the `deadline` (time.monotonic()) none begins."""
    results: Result = {}
    if not run.is_done("pretrain"):
        _warn_of_licences(run, reporter)
    for stage in stages_of(run.recipe):
        if deadline is not None and time.monotonic() >= deadline and not run.is_done(stage):
            reporter.line(f"paused before {stage}; the same command goes on from there")
            return {"status": "paused", "run": str(run.folder), "stages": results}
        if stage == "pretrain" and (step := _annealed_early(run)):
            reporter.line(f"pretrain: left at step {step}, from which the anneal began")
        elif stage in ("teach", "pretrain", "anneal"):
            functions: dict[str, Callable[..., Result]] = {"teach": teach, "pretrain": pretrain, "anneal": anneal}
            results[stage] = functions[stage](run, reporter, deadline=deadline)
            if results[stage].get("status") == "paused":
                return {"status": "paused", "run": str(run.folder), "stages": results}
        else:
            results[stage] = FUNCTIONS[stage](run, reporter)
    _write_report(run, reporter)
    return {"status": "done", "run": str(run.folder), "stages": results}


def tokenizer(run: Run, reporter: Reporter) -> Result:
    """Collect the documents, hold some out, train the tokenizer on a sample of the rest."""
    sample_path = run.folder / "tokenizer" / "sample.json"
    if run.is_done("tokenizer"):
        return _skipped(reporter, "tokenizer", read_json(sample_path, "it is missing") if sample_path.exists() else {})
    from shard.adopt import adopt_tokenizer
    from shard.data.tokenizer_sample import predict_memory, sample_shares, train_on_sample, training_sizes
    from shard.environment import total_memory

    r = run.recipe
    check_disk(run, "tokenizer")
    with run.stage("tokenizer"):
        if r.tokenizer.adopt is not None:  # first: a wrong name is said before any document is read
            sample = adopt_tokenizer(r.tokenizer.adopt, r.tokenizer.separator, r.config.vocab_size, run.tokenizer_path)
            reporter.line(f"tokenizer: {sample['vocab_size']} tokens, adopted from {sample['adopted']}")
            _collect(run, reporter)
            write_json(sample_path, sample)
            return sample
        _collect(run, reporter)
        sizes = training_sizes(run.data, r.sources)
        shares = sample_shares(wanted_tokens(r), sizes, r.tokenizer.sample_bytes)
        predicted = predict_memory(run.data, shares, sizes)
        sample_bytes = sum(share * sizes[name] for name, share in shares.items())
        reporter.line(
            f"tokenizer: {r.config.vocab_size} tokens from {format_size(sample_bytes)} of text; "
            f"predicted memory at most {format_size(predicted)}"
        )
        if predicted > 0.9 * total_memory():
            raise ShardError(
                f"training the tokenizer may take {format_size(predicted)} and this machine has "
                f"{format_size(total_memory())}: lower tokenizer.sample_bytes"
            )
        run.tokenizer_path.parent.mkdir(parents=True, exist_ok=True)
        sample, peak = train_on_sample(run.data, shares, r.config.vocab_size, r.seed, run.tokenizer_path)
        run.record("tokenizer", peak_memory_growth_bytes=peak)  # differs from run to run: no part of the sample
        sample["predicted_memory_bytes"] = predicted
        if sample["vocab_size"] < r.config.vocab_size:
            reporter.warn(
                f"the text gives only {sample['vocab_size']} tokens; the other {r.config.vocab_size} - "
                f"{sample['vocab_size']} rows of the model's table stay unused"
            )
        write_json(sample_path, sample)
    return sample


def data(run: Run, reporter: Reporter) -> Result:
    """Tokenise the documents into shards."""
    from shard.data import shards
    from shard.data.tokens import tokenize_sources

    names = list(run.recipe.sources)
    if run.is_done("data"):
        return _skipped(reporter, "data", {n: read_json(run.data / n / shards.LEDGER, "it is missing") for n in names})
    _require(run, reporter, "tokenizer")
    r = run.recipe
    if not all(documents.is_collected(run.data / name) for name in names):
        _collect(run, reporter)  # an imported run brings its tokenizer, not its documents; or some were damaged
    check_disk(run, "data")
    with run.stage("data"):
        reporter.progress(f"data: tokenising {', '.join(names)}")
        ledgers = tokenize_sources(
            {name: run.data / name for name in names},
            run.tokenizer_path,
            r.config.vocab_size,
            separator_id(run),
            r.data.shard_bytes,
            {name: source.shard_tokens for name, source in r.sources.items()},
            run.workers,
            lambda text: reporter.progress(f"data: {text}"),
        )
        reporter.end_progress()
    run.workers.close()
    epochs = run_epochs(run)
    reporter.table(
        "Tokens to train on",
        ["source", "documents", "text", "tokens", "bytes per token", "epochs"],
        [
            [
                n,
                f"{s['documents']:,}",
                format_size(s["bytes"]),
                format_count(s["tokens"]),
                f"{s['bytes_per_token']:.3f}",
                f"{epochs[n]:.3g}",
            ]
            for n, s in ledgers.items()
        ],
    )
    for warning in too_many(epochs):
        reporter.warn(warning)
    return ledgers


def describe_data(run: Run, reporter: Reporter) -> Result:
    """What each source gave and lost: data/stats.html, and the same as numbers."""
    from shard.data_report import data_stats, write_page

    stats = data_stats(run)
    reporter.line(f"data: {write_page(run, stats)}")
    return stats


def teach(run: Run, reporter: Reporter, deadline: float | None = None) -> Result:
    """Keep what a teacher says of every token, where the recipe wants that before pretraining."""
    from shard.teach import teach as write_targets

    if "teach" not in stages_of(run.recipe):
        raise UsageError(
            f'{run.recipe.name} caches no targets of a teacher: write a table [distillation] with targets = "cached"'
        )
    if run.is_done("teach"):
        return _skipped(reporter, "teach", run.manifest["stages"]["teach"].get("result", {}))
    _require(run, reporter, "data")
    check_disk(run, "teach")
    with run.stage("teach"):
        return write_targets(run, reporter, deadline)


def pretrain(run: Run, reporter: Reporter, until: int | None = None, deadline: float | None = None) -> Result:
    """Train from nothing, to the end, to step `until` or to a deadline (time.monotonic())."""
    if until is not None and not 1 <= until <= run.recipe.pretrain.steps:
        raise UsageError(f"--until {until}: pretrain has steps 1 to {run.recipe.pretrain.steps}")
    if run.is_done("pretrain"):
        return _skipped(reporter, "pretrain", run.manifest["stages"]["pretrain"].get("result", {}))
    _require(run, reporter, "data")
    if "teach" in stages_of(run.recipe) and not run.is_done("teach"):
        taught = teach(run, reporter, deadline)
        if taught.get("status") == "paused":
            return taught
    return train(run, reporter, "pretrain", until, start=None, deadline=deadline)


def anneal(run: Run, reporter: Reporter, from_step: int | None = None, deadline: float | None = None) -> Result:
    """Branch from a stable-phase checkpoint of pretrain (the last, or `from_step`) and decay to zero on another mix."""
    from shard.training.checkpoint import checkpoint_path, list_steps

    pretrain_folder = run.folder / "pretrain" / "checkpoints"
    steps = list_steps(pretrain_folder)
    settings = run.recipe.pretrain
    stable = [step for step in steps if step <= settings.steps - settings.decay_steps]
    if not steps:
        raise ShardError(
            f"{run.folder} has no pretrain checkpoint to anneal from: run `shard pretrain {run.folder}` first"
        )
    # An anneal that has begun goes on from where it branched.
    began = run.manifest["stages"].get("anneal", {}).get("from_step") if run.outputs("anneal") else None
    if from_step is None and began is not None:
        from_step = began
    if from_step is None:
        if not stable:
            raise ShardError(
                f"every checkpoint of {pretrain_folder} lies in pretrain's own decay: set pretrain.keep_every, so that "
                "one of the stable phase is kept"
            )
        from_step = stable[-1]
    if from_step not in steps:
        raise ShardError(f"there is no pretrain checkpoint of step {from_step}; there are {', '.join(map(str, steps))}")
    if from_step not in stable:
        raise ShardError(f"step {from_step} lies in pretrain's decay; an anneal starts from one of {stable}")
    if began is not None and began != from_step:
        raise ShardError(
            f"{run.folder / 'anneal'} began from pretrain step {began}, not {from_step}: "
            f"go on with `shard anneal {run.folder} --from-step {began}`, or move that folder away to begin anew"
        )
    if run.is_done("anneal"):
        return _skipped(reporter, "anneal", run.manifest["stages"]["anneal"].get("result", {}))
    _require(run, reporter, "data")
    run.record("anneal", from_step=from_step)
    start = checkpoint_path(pretrain_folder, from_step)
    return train(run, reporter, "anneal", None, start, deadline)


def evaluate(run: Run, reporter: Reporter) -> Result:
    """Score all held-out text, measure the tasks and draw the samples: evaluation.json."""
    import torch

    from shard.environment import choose_device
    from shard.evaluation.mini_suite import can_measure_more, run_suite
    from shard.evaluation.report import evaluate_sources
    from shard.evaluation.tasks.form import Subject
    from shard.inference.load import load_model
    from shard.inference.sampling import complete_prompts

    def measure() -> Result:
        if not all((run.data / name / documents.LEDGER).exists() for name in run.recipe.sources):
            _collect(run, reporter)
        loaded = load_model(run.folder, torch.float32, choose_device())
        settings = run.recipe.evaluate
        scores = evaluate_sources(loaded, run.data, list(run.recipe.sources), settings, reporter)
        heldout = [run.data / name for name in run.recipe.sources]
        subject = Subject(loaded, scores["context"], heldout, run.question_folders)
        tasks = run_suite(subject, settings.tasks, settings.max_items, reporter)
        samples = complete_prompts(
            loaded.model, loaded.tokenizer, loaded.separator_id, run.recipe.release.prompts, **CARD_SAMPLING
        )
        return {
            "checkpoint": str(Path(loaded.origin).relative_to(run.folder)),
            "precision": "fp32",
            **scores,
            "tasks": tasks,
            "sampling": CARD_SAMPLING,
            "samples": samples,
        }

    path = run.folder / "evaluation.json"
    if run.is_done("evaluate") and can_measure_more(read_json(path, "delete it"), run.question_folders):
        run.record("evaluate", status="outdated")
    return _measure(run, reporter, "evaluate", path.name, measure)


def evaluate_with_harness(path: Path, tasks: str, limit: int | None, reporter: Reporter) -> Result:
    """Run tasks of lm-evaluation-harness, separated by commas, on a run, a checkpoint or a bundle."""
    try:
        from shard.evaluation.lm_eval_adapter import evaluate_tasks
    except ImportError as error:
        raise ShardError(f"--tasks needs lm-evaluation-harness ({error}): pip install 'shard-lm[eval]'") from None
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UsageError("--tasks names no task: write --tasks arc_easy,hellaswag")
    return evaluate_tasks(path, names, limit, reporter)


def bench(run: Run, reporter: Reporter) -> Result:
    """Time inference, weigh what int8 costs, and quote the training speed: benchmark.json."""
    from shard.evaluation.int8_loss import measure_int8_loss
    from shard.inference.benchmark import benchmark_run

    def measure() -> Result:
        result = benchmark_run(run.folder, reporter, run.recipe.config.moe is None)
        sources = [name for name in run.recipe.sources if (run.data / name / documents.HELDOUT).exists()]
        return {**result, "int8": measure_int8_loss(run.folder, run.data, sources, run.recipe.evaluate, reporter)}

    return _measure(run, reporter, "bench", "benchmark.json", measure)


def release(run: Run, reporter: Reporter) -> Result:
    """Write the release bundle, with a card filled from the run's own files."""
    from shard.release.bundle import write_bundle
    from shard.release.teachers import check_teacher_licences

    check_teacher_licences(run.recipe)
    _require(run, reporter, "evaluate")
    _require(run, reporter, "bench")
    if run.is_done("release") and (run.folder / "release" / "SHA256SUMS").is_file():
        return _skipped(reporter, "release", {"bundle": str(run.folder / "release")})
    check_disk(run, "release")
    with run.stage("release"):
        result = write_bundle(run)
    for reason in result["left_out"]:
        reporter.warn(f"release: {reason}")
    reporter.line(f"release: {result['bundle']} ({format_size(result['bytes'])})")
    return result


FUNCTIONS: dict[str, Callable[[Run, Reporter], Result]] = {
    "tokenizer": tokenizer,
    "data": data,
    "teach": teach,
    "pretrain": pretrain,
    "anneal": anneal,
    "evaluate": evaluate,
    "bench": bench,
    "release": release,
}


def _annealed_early(run: Run) -> int | None:
    """The step at which pretraining was stopped (`--until`), if an anneal has begun from there: it stays so."""
    stages = run.manifest["stages"]
    if stages.get("pretrain", {}).get("status") != "stopped" or not run.outputs("anneal"):
        return None
    step: int = stages["anneal"]["from_step"]
    return step


def _warn_of_licences(run: Run, reporter: Reporter) -> None:
    """What would stop the release is said before the days of training."""
    from shard.release.teachers import check_teacher_licences

    try:
        check_teacher_licences(run.recipe)
    except ShardError as error:
        reporter.warn(f"the release will be refused: {error}")


def _require(run: Run, reporter: Reporter, stage: str) -> None:
    """Run an earlier stage if it is not done."""
    if not run.is_done(stage):
        FUNCTIONS[stage](run, reporter)


def _write_report(run: Run, reporter: Reporter) -> None:
    """report.html. The run is done: what goes wrong here is only said."""
    from shard.report.page import write_report

    try:
        reporter.line(f"report: {write_report([run.folder])}")
    except Exception as error:
        reporter.warn(f"the report could not be written ({error}): try `shard report {run.folder}`")


def _skipped(reporter: Reporter, stage: str, result: Result) -> Result:
    reporter.line(f"{stage}: done already")
    return result


def _collect(run: Run, reporter: Reporter) -> None:
    reporter.progress(f"data: reading {', '.join(run.recipe.sources)}")
    ledgers = documents.collect_documents(
        run.recipe.sources,
        run.recipe.data,
        run.recipe.seed,
        run.data,
        run.workers,
        run.mirror,
        before=lambda inventory: check_room_for_data(run, inventory, reporter),
        progress=lambda text: reporter.progress(f"data: {text}"),
    )
    reporter.end_progress()
    rows = []
    for name, ledger in ledgers.items():
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in ledger.dropped.items()) or "none"
        rows.append(
            [
                name,
                f"{ledger.documents_read:,}",
                dropped,
                format_size(ledger.bytes["train"]),
                format_size(ledger.bytes["heldout"]),
            ]
        )
    reporter.table("Documents", ["source", "read", "dropped", "to train on", "held out"], rows)


def _measure(run: Run, reporter: Reporter, stage: str, file: str, measure: Callable[[], Result]) -> Result:
    path = run.folder / file
    if run.is_done(stage) and path.exists():
        return _skipped(reporter, stage, read_json(path, f"run `shard {stage} {run.folder}`"))
    with run.stage(stage):
        result = measure()
        write_json(path, result)
    return result
