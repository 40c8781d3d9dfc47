"""How often the text of each source is read: repeating a small one too often is learning it by heart."""

from collections.abc import Iterable, Mapping

from shard.data import shards
from shard.errors import ShardError
from shard.recipe import Recipe
from shard.run import Run

MANY_EPOCHS = 4.0
"""Passes over a source beyond which repeating it is worth a warning (Muennighoff et al., arXiv 2305.16264)."""
STAGES = ("pretrain", "anneal")


def wanted_tokens(recipe: Recipe, stages: Iterable[str] = STAGES) -> dict[str, float]:
    """Tokens of each source that the stages together train on."""
    wanted = dict.fromkeys(recipe.sources, 0.0)
    for name in stages:
        stage = getattr(recipe, name)
        for source, weight in stage.mix.items():
            wanted[source] += weight / sum(stage.mix.values()) * stage.steps * stage.tokens_per_step
    return wanted


def count_epochs(recipe: Recipe, tokens: Mapping[str, int], stages: Iterable[str] = STAGES) -> dict[str, float]:
    """Passes over each source, which has so many tokens, in all stages together."""
    return {name: wanted / max(1, tokens[name]) for name, wanted in wanted_tokens(recipe, stages).items()}


def run_epochs(run: Run) -> dict[str, float]:
    """Passes over each source of a run whose data are made, in the stages that it trains itself."""
    stages = [name for name in STAGES if run.manifest["stages"].get(name, {}).get("status") != "imported"]
    tokens = {name: shards.read_token_ledger(run.data / name)["tokens"] for name in run.recipe.sources}
    return count_epochs(run.recipe, tokens, stages)


def too_many(epochs: Mapping[str, float]) -> list[str]:
    """A warning for each source that is read more often than is known to be of use."""
    return [f"{name} will be read {count:.1f} times" for name, count in epochs.items() if count > MANY_EPOCHS]


def check_epochs(run: Run) -> None:
    """ShardError where a source would be read more often than its max_epochs."""
    for name, count in run_epochs(run).items():
        limit = run.recipe.sources[name].max_epochs
        if limit is not None and count > limit:
            raise ShardError(
                f"sources.{name} would be read {count:.1f} times, and its max_epochs is {limit:g}: train fewer steps, "
                "lower its weight in the mix, give it more text, or raise max_epochs"
            )
