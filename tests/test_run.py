"""A run folder: made, found again, never mixed with another recipe; a stage counts as done while its inputs hold."""

import json
from pathlib import Path

import pytest

from shard.data import documents, shards
from shard.errors import ShardError
from shard.files import write_json
from shard.recipe import Recipe
from shard.run import STAGES, Run


@pytest.fixture
def recipe() -> Recipe:
    return Recipe.load("quickstart")


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe) -> Run:
    return Run.open(tmp_path / "run", recipe)


def fill(run: Run) -> None:
    """The files that the inputs of the stages are read from, as the stages write them."""
    for name in run.recipe.sources:
        write_json(run.data / name / documents.LEDGER, {"sha256": {"train.jsonl": "1", "heldout.jsonl": "2"}})
        (run.data / name / "train-00000.bin").write_bytes(bytes(2))
        write_json(run.data / name / shards.LEDGER, tokens("3"))
    write_json(run.tokenizer_path, {"a": "tokenizer"})
    for stage in ("pretrain", "anneal"):
        checkpoint = run.folder / stage / "checkpoints" / "step-00000001"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")


def tokens(sha256: str) -> dict[str, object]:
    """The ledger of one shard of one token."""
    return {"dtype": "<u2", "shards": [{"file": "train-00000.bin", "tokens": 1, "sha256": sha256}]}


def with_settings(run: Run, *overrides: str) -> Run:
    return Run(run.folder, Recipe.load("quickstart", list(overrides)))


def test_a_folder_is_made_with_the_resolved_recipe_and_found_again(tmp_path: Path, recipe: Recipe) -> None:
    folder = tmp_path / "deep" / "run"
    assert Run.open(folder, recipe).recipe == recipe
    assert (folder / "recipe.toml").read_text() == recipe.to_toml()
    assert [path.name for path in folder.iterdir()] == ["recipe.toml"]
    assert Run.open(folder).recipe == recipe
    assert Run.open(folder, recipe).recipe == recipe


def test_an_empty_folder_is_taken(tmp_path: Path, recipe: Recipe) -> None:
    Run.open(tmp_path, recipe)
    assert (tmp_path / "recipe.toml").is_file()


def test_a_folder_of_another_recipe_is_refused_with_the_key_and_both_values(run: Run) -> None:
    other = Recipe.load("quickstart", ["pretrain.lr_muon=0.5"])
    with pytest.raises(ShardError) as raised:
        Run.open(run.folder, other)
    message = str(raised.value)
    assert "pretrain.lr_muon is 0.02 there and 0.5 here" in message
    assert str(run.folder) in message
    assert "--out" in message
    assert Run.open(run.folder).recipe == run.recipe, "the folder is as it was"


def test_many_differences_are_counted_not_listed(run: Run) -> None:
    message = ""
    try:
        Run.open(run.folder, Recipe.load("shard-40m-v1"))
    except ShardError as error:
        message = str(error)
    assert "more" in message
    assert message.count(" there and ") == 3


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ShardError, match="neither empty nor a run folder"):
        Run.open(tmp_path, recipe)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ShardError, match="neither empty nor a run folder"):
        Run.open(tmp_path / "file", recipe)


def test_without_a_recipe_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="shard run RECIPE"):
        Run.open(tmp_path / "typo")
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_adds_up(run: Run) -> None:
    assert run.manifest["stages"] == {}
    run.record("data", status="running", a=1)
    run.record("data", status="done", b=2)
    run.record("pretrain", a=3)
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert manifest["recipe"] == "quickstart"
    assert manifest["stages"] == {"data": {"status": "done", "a": 1, "b": 2}, "pretrain": {"a": 3}}
    assert Run.open(run.folder).manifest == manifest


def test_a_damaged_manifest_is_named(run: Run) -> None:
    (run.folder / "manifest.json").write_text('{"stages": ')
    with pytest.raises(ShardError, match=r"manifest\.json is damaged"):
        run.is_done("data")


def test_a_stage_is_done_when_it_ended_and_not_when_it_failed(run: Run) -> None:
    fill(run)
    with pytest.raises(RuntimeError), run.stage("pretrain"):
        raise RuntimeError
    assert run.manifest["stages"]["pretrain"]["status"] == "interrupted"
    assert not run.is_done("pretrain")
    with run.stage("pretrain"):
        assert not run.is_done("pretrain")
    entry = run.manifest["stages"]["pretrain"]
    assert entry["status"] == "done"
    assert {"started", "ended", "seconds", "inputs"} <= entry.keys()
    assert run.is_done("pretrain")
    assert not run.is_done("anneal")


def test_a_stage_that_stopped_early_is_not_done(run: Run) -> None:
    fill(run)
    with run.stage("pretrain"):
        run.record("pretrain", status="stopped")
    assert run.manifest["stages"]["pretrain"]["status"] == "stopped"
    assert not run.is_done("pretrain")


def test_the_seconds_of_a_stage_add_up_over_interruptions(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(run)
    clock = iter([0.0, 10.0, 100.0, 105.0])
    monkeypatch.setattr("shard.run.time.monotonic", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt), run.stage("data"):
        raise KeyboardInterrupt
    with run.stage("data"):
        pass
    assert run.manifest["stages"]["data"]["seconds"] == 15.0


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        ("tokenizer", "model.vocab_size=512"),
        ("tokenizer", "tokenizer.sample_bytes=1MB"),
        ("tokenizer", "sources.problems.seed=1"),
        ("tokenizer", "data.heldout_bytes=1MB"),
        ("tokenizer", "seed=1"),
        ("data", "data.shard_bytes=1MB"),
        ("pretrain", "pretrain.lr_muon=0.1"),
        ("pretrain", "model.num_layers=2"),
        ("pretrain", "seed=1"),
        ("anneal", "anneal.steps=5"),
        ("anneal", "anneal.mix.code=0.9"),
    ],
)
def test_a_stage_is_not_done_when_the_recipe_of_its_inputs_changes(run: Run, stage: str, override: str) -> None:
    fill(run)
    with run.stage(stage):
        pass
    assert run.is_done(stage)
    assert not with_settings(run, override).is_done(stage)


@pytest.mark.parametrize(
    ("stage", "override"),
    [("pretrain", "anneal.steps=5"), ("data", "pretrain.lr_muon=0.1"), ("tokenizer", "pretrain.lr_muon=0.1")],
)
def test_a_stage_stays_done_when_something_else_changes(run: Run, stage: str, override: str) -> None:
    fill(run)
    with run.stage(stage):
        pass
    assert with_settings(run, override).is_done(stage)


@pytest.mark.parametrize("stage", ["data", "pretrain", "anneal"])
def test_a_stage_is_not_done_when_the_tokenizer_changes_or_is_gone(run: Run, stage: str) -> None:
    fill(run)
    with run.stage(stage):
        pass
    write_json(run.tokenizer_path, {"another": "tokenizer"})
    assert not run.is_done(stage)
    run.tokenizer_path.unlink()
    assert not run.is_done(stage)


def test_a_stage_is_not_done_when_its_data_changes_or_is_gone(run: Run) -> None:
    fill(run)
    for stage in ("data", "pretrain"):
        with run.stage(stage):
            pass
    name = next(iter(run.recipe.sources))
    write_json(run.data / name / documents.LEDGER, {"sha256": {"train.jsonl": "other", "heldout.jsonl": "2"}})
    assert not run.is_done("data")
    write_json(run.data / name / shards.LEDGER, tokens("other"))
    assert not run.is_done("pretrain")
    (run.data / name / shards.LEDGER).unlink()
    assert not run.is_done("pretrain")


@pytest.mark.parametrize(
    ("stage", "lost"),
    [
        ("tokenizer", "tokenizer/tokenizer.json"),
        ("data", "data/code/train-00000.bin"),
        ("pretrain", "pretrain/checkpoints"),
        ("anneal", "anneal/checkpoints"),
    ],
)
def test_a_stage_is_not_done_when_its_result_is_lost(run: Run, stage: str, lost: str) -> None:
    """An error that says "run it again", or "move that folder away", has to be true."""
    fill(run)
    with run.stage(stage):
        pass
    assert run.is_done(stage)
    (run.folder / lost).rename(run.folder / "moved away")
    assert not run.is_done(stage)


def test_what_was_imported_is_done(run: Run) -> None:
    run.record("pretrain", status="imported")
    assert run.is_done("pretrain")


def test_the_stages_are_those_of_the_design() -> None:
    assert STAGES == ("tokenizer", "data", "pretrain", "anneal", "evaluate", "bench", "release")
