"""A run that branches from another one, with a changed recipe, and keeps of it what still holds.

The tokenizer is always kept. Documents and token shards are kept while what they are made from is unchanged.
Pretraining goes on from where it stands, under the changed settings; the anneal is kept where nothing before it or in
it changed. Evaluation, benchmark and release are made anew. Large files get a second name (a hard link), not a copy.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shard.console import Reporter
from shard.data import documents
from shard.distillation import cache
from shard.errors import UsageError
from shard.files import copy_file, link_or_copy, read_json, sync_folder, write_json
from shard.provenance import describe_difference, differences, flatten
from shard.recipe import Recipe
from shard.run import RECIPE, Run, training_settings

_DECIDING = ("precision", "compile", "micro_batch", "sequence_length", "tokens_per_step")
"""Keys of a training stage that its entries of decisions.json depend on."""


def open_run(
    target: str, out: Path | None, sets: list[str] | None, data: Path | None, fork_to: Path | None, reporter: Reporter
) -> Run:
    """The run that a verb works on: an existing folder by its path, one made from a recipe, or with `fork_to` one that
    branches from either.
    """
    folder = Path(target)
    if (folder / RECIPE).is_file():
        if out or ((sets or data) and fork_to is None):
            raise UsageError(
                f"{folder} is a run folder and has its recipe: --set and --data go with a recipe name, or with "
                "--fork NEW, which branches from this run; --out goes with a recipe name"
            )
        if fork_to is None:
            return Run.open(folder)
        return fork(folder, fork_to, Recipe.load(str(folder / RECIPE), sets, data), reporter)
    recipe = Recipe.load(target, sets, data)
    folder = out or Path("runs") / recipe.name
    return Run.open(folder, recipe) if fork_to is None else fork(folder, fork_to, recipe, reporter)


def fork(source: Path, target: Path, recipe: Recipe, reporter: Reporter) -> Run:
    """Make `target` a run of `recipe` that goes on from where `source` stands; it is open. ShardError where `source`
    is no run or in use, or `target` is taken; UsageError where the recipe does not fit what there is.
    """
    with Run.open(source) as old:
        there, here = flatten({"model": old.recipe.config.to_dict()}), flatten({"model": recipe.config.to_dict()})
        if there != here:
            raise UsageError(
                f"{source} has another model ({describe_difference(there, here)}): its weights do not fit; "
                "start a new run with another --out"
            )
        with Run.build(target, recipe) as new:
            changes = differences(*(flatten(r.model_dump(mode="json")) for r in (old.recipe, recipe)))
            new.annotate(forked_from={"run": str(source), "differences": changes})
            if old.mirror is not None:
                new.annotate(mirror=str(old.mirror))
            if old.tokenizer_path.is_file():
                _keep(old, new, reporter)
    reporter.line(f"{target}: branches from {source}" + (f"; {', '.join(changes)}" if changes else ""))
    return new


def _keep(old: Run, new: Run, reporter: Reporter) -> None:
    """Bring over what still holds, each stage with its entry in the manifest. Without a tokenizer nothing would."""
    new.record("tokenizer", status="imported", forked_from=str(old.folder))
    for path in (old.tokenizer_path, old.tokenizer_path.with_name("sample.json")):
        if path.is_file():
            copy_file(path, new.tokenizer_path.with_name(path.name))
    same_data = _data_of(old.recipe) == _data_of(new.recipe)
    if same_data:
        for name in old.recipe.sources:
            for folder in (Path(name), Path(name, documents.DOCUMENTS), Path(name, cache.TARGETS)):
                _link(old.data / folder, new.data / folder, _data_files(old.data / folder))
        _copy_entry(old, new, "data")
        _copy_entry(old, new, "teach")
    elif _entry(old, "data"):
        reporter.warn(
            "the data is made anew, since its sources or settings changed: pretraining may have seen what is held out"
        )
    _keep_decisions(old, new)
    stands = _keep_pretrain(old, new, same_data, reporter)
    if stands and same_data and _same_settings(old, new, "anneal") and _keep_training(old, new, "anneal"):
        _copy_entry(old, new, "anneal")


def _keep_pretrain(old: Run, new: Run, same_data: bool, reporter: Reporter) -> bool:
    """Bring over the checkpoints; whether pretraining stands as it did, and needs not go on under other settings."""
    from shard.training.checkpoint import checkpoint_path, read_state

    is_imported = _entry(old, "pretrain").get("status") == "imported"
    if _same_settings(old, new, "pretrain") and (same_data or is_imported):
        steps = _keep_training(old, new, "pretrain")
        if steps:
            _copy_entry(old, new, "pretrain")
        return bool(steps)
    settings, before = new.recipe.pretrain, old.recipe.pretrain
    # What has begun to decay cannot go on at the full rate: other settings start from the stable phase.
    steps = _keep_training(old, new, "pretrain", last=before.steps - before.decay_steps)
    if not steps:
        return False
    if steps[-1] > settings.steps:
        raise UsageError(
            f"{old.folder} stands at step {steps[-1]} of pretrain, beyond pretrain.steps = {settings.steps}: "
            f"--set pretrain.steps={steps[-1]} or more"
        )
    if steps[-1] == settings.steps:
        reporter.warn(
            f"pretrain stands at its last step {settings.steps}, so that the changed settings train nothing: "
            "raise pretrain.steps, or start a new run"
        )
    # All, not the newest: a damaged one is passed over, and the source may be a fork that has trained little since.
    checkpoints = (checkpoint_path(old.folder / "pretrain" / "checkpoints", step) for step in steps)
    accepts = sorted({read_state(path)["fingerprint"] for path in checkpoints})
    new.record("pretrain", status="forked", forked_from=str(old.folder), step=steps[-1], accepts=accepts)
    return False


def _keep_training(old: Run, new: Run, stage: str, last: int | None = None) -> list[int]:
    """Bring over checkpoints (up to step `last`) and journals of a training stage; the steps of the checkpoints."""
    from shard.training.checkpoint import checkpoint_path, clear_leftovers, list_steps

    checkpoints = old.folder / stage / "checkpoints"
    clear_leftovers(checkpoints)
    steps = [step for step in list_steps(checkpoints) if last is None or step <= last]
    for step in steps:
        path = checkpoint_path(checkpoints, step)
        _link(path, new.folder / path.relative_to(old.folder), path.iterdir())
    for journal in (old.folder / stage).glob("*.jsonl") if steps else ():
        copy_file(journal, new.folder / stage / journal.name)  # a copy: lines are appended to it
    return steps


def _keep_decisions(old: Run, new: Run) -> None:
    """What was probed for a stage holds while the recipe says the same of what was probed."""
    if not old.decisions_path.is_file():
        return
    decided: dict[str, Any] = read_json(old.decisions_path, "delete it: it is made anew")
    tables = [{s: getattr(run.recipe, s).model_dump() for s in ("pretrain", "anneal")} for run in (old, new)]
    same = {s for s in tables[0] if all(tables[0][s][key] == tables[1][s][key] for key in _DECIDING)}
    write_json(new.decisions_path, {key: value for key, value in decided.items() if key.split(" on ")[0] in same})


def _link(source: Path, target: Path, files: Iterable[Path]) -> None:
    for path in files:
        link_or_copy(path, target / path.name)
    if target.is_dir():
        sync_folder(target)


def _data_files(folder: Path) -> list[Path]:
    """The files of one source, or of its documents."""
    found = folder.iterdir() if folder.is_dir() else ()
    return [path for path in found if path.is_file() and not path.name.startswith(".")]


def _data_of(recipe: Recipe) -> Any:
    """What decides documents and shards, beside the tokenizer: of two equal documents the first source keeps one."""
    return recipe.seed, list(recipe.sources.items()), recipe.data


def _same_settings(old: Run, new: Run, stage: str) -> bool:
    return training_settings(old.recipe, stage) == training_settings(new.recipe, stage)


def _entry(run: Run, stage: str) -> dict[str, Any]:
    entry: dict[str, Any] = run.manifest["stages"].get(stage, {})
    return entry


def _copy_entry(old: Run, new: Run, stage: str) -> None:
    if entry := _entry(old, stage):
        new.record(stage, **entry)
