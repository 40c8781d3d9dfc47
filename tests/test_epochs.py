"""How often sources are read: counted over the stages, warned of, and refused beyond what the recipe allows."""

from pathlib import Path

import pytest

from shard.epochs import MANY_EPOCHS, check_epochs, count_epochs, run_epochs, too_many, wanted_tokens
from shard.errors import ShardError
from shard.files import write_json
from shard.recipe import Recipe
from shard.run import Run

STEPS = ["pretrain.steps=10", "anneal.steps=4", "anneal.sequence_length=256", "anneal.tokens_per_step=512"]


@pytest.fixture
def recipe() -> Recipe:
    """10 steps of 1,024 tokens of a and b, then 4 steps of 512 tokens of b alone."""
    sets = [
        *STEPS,
        'sources={a={kind="text",path="a"}, b={kind="text",path="b",max_epochs=7}}',
        "pretrain.sequence_length=256",
        "pretrain.tokens_per_step=1024",
        "pretrain.mix={a=3, b=1}",
        "anneal.mix={b=0.5}",
    ]
    return Recipe.load("quickstart", sets)


def run_of(recipe: Recipe, folder: Path, **tokens: int) -> Run:
    run = Run.open(folder, recipe)
    for name, count in tokens.items():
        shards = [{"file": "train-00000.bin", "tokens": count, "sha256": ""}]
        write_json(run.data / name / "tokens.json", {"dtype": "<u2", "tokens": count, "shards": shards})
    return run


def test_tokens_are_counted_over_both_stages(recipe: Recipe) -> None:
    assert wanted_tokens(recipe) == {"a": 7680, "b": 2560 + 2048}
    assert wanted_tokens(recipe, ["anneal"]) == {"a": 0, "b": 2048}
    assert count_epochs(recipe, {"a": 7680, "b": 1024}) == {"a": 1, "b": 4.5}


def test_many_passes_are_warned_of_and_too_many_refused(recipe: Recipe, tmp_path: Path) -> None:
    with run_of(recipe, tmp_path / "few", a=10**6, b=4608 // 4) as run:
        assert run_epochs(run) == {"a": 0.00768, "b": MANY_EPOCHS}
        assert too_many(run_epochs(run)) == []
        check_epochs(run)
    with run_of(recipe, tmp_path / "many", a=1000, b=1000) as run:
        assert too_many(run_epochs(run)) == ["a will be read 7.7 times", "b will be read 4.6 times"]
        check_epochs(run)  # a has no limit of its own
    with run_of(recipe, tmp_path / "too-many", a=1000, b=500) as run:
        with pytest.raises(ShardError, match=r"^sources\.b would be read 9\.2 times, and its max_epochs is 7: ") as why:
            check_epochs(run)
        assert "\n" not in str(why.value)


def test_what_an_imported_pretraining_read_does_not_count(recipe: Recipe, tmp_path: Path) -> None:
    with run_of(recipe, tmp_path / "run", a=1000, b=500) as run:
        run.record("pretrain", status="imported")
        assert run_epochs(run) == {"a": 0, "b": 2048 / 500}
        check_epochs(run)
