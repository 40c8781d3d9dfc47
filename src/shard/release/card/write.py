"""README.md of a release, put together: metadata, title, what is not finished, sections.

The numbers come from manifest.json, metrics.jsonl, events.jsonl, evaluation.json, benchmark.json, the ledgers and the
recipe; a part that the run did not measure is said to be missing, never filled in.
"""

from pathlib import Path

from shard.release.card.data import data_section
from shard.release.card.facts import TRAINING, Facts
from shard.release.card.limits import limits_section, proof_section
from shard.release.card.loading import files_section, loading_section
from shard.release.card.metadata import metadata
from shard.release.card.results import benchmark_section, evaluation_section, samples_section
from shard.release.card.teachers import teachers_section
from shard.release.card.training import architecture_section, training_section
from shard.run import Run


def write_card(run: Run, folder: Path) -> None:
    """Write README.md of the bundle in `folder`, whose other files are there already."""
    (folder / "README.md").write_text(render_card(run, folder), encoding="utf-8")


def render_card(run: Run, bundle: Path, repository: str | None = None) -> str:
    """The card of a bundle; with `repository` (ORG/NAME) as it stands on the hub, where hf/ lies at the root."""
    facts = Facts.read(run, bundle, repository)
    sections = [
        f"---\n{metadata(facts)}---\n",
        f"# {facts.title}\n\n{_unfinished(facts)}{run.recipe.description}\n",
        architecture_section(facts),
        training_section(facts),
        teachers_section(facts),
        data_section(facts),
        evaluation_section(facts),
        benchmark_section(facts),
        samples_section(facts),
        files_section(facts),
        loading_section(facts),
        proof_section(facts),
        limits_section(facts),
        _licence(facts),
        _citation(facts),
    ]
    return "\n".join(section for section in sections if section)


def _unfinished(facts: Facts) -> str:
    """A warning at the top of the card of a run that did not go through all of its stages."""
    missing = []
    for stage in (facts.stages[name] for name in TRAINING):
        steps = stage.settings.steps
        if stage.step < steps and not stage.was_imported:
            at = f"stopped at step {stage.step:,} of {steps:,}" if stage.step else f"not run ({steps:,} steps planned)"
            missing.append(f"{stage.name} was {at}")
    for name, values in (("evaluate", facts.evaluation), ("bench", facts.benchmark)):
        if not values:
            missing.append(f"{name} was not run")
    return f"> **This run is not finished:** {'; '.join(missing)}.\n\n" if missing else ""


def _licence(facts: Facts) -> str:
    return (
        f"## Licence\n\nWeights and code: {facts.run.recipe.release.license}. The licences of the training text stand "
        "in the table of sources.\n"
    )


def _citation(facts: Facts) -> str:
    recipe = facts.run.recipe
    return (
        f"## Citation\n\n```bibtex\n@misc{{{recipe.name.replace('.', '-')},\n  title  = {{{facts.title}}},\n"
        f"  author = {{{recipe.release.authors}}},\n  year   = {{{facts.manifest['created'][:4]}}},\n"
        "  note   = {Trained with Shard}\n}\n```\n"
    )
