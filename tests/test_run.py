"""A run folder: made, found again, never mixed with another recipe; a stage counts as done while its inputs hold."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shard.data import documents, shards
from shard.data.workers import Workers
from shard.errors import ShardError, UsageError
from shard.files import sha256_of, temporary_path, write_json
from shard.provenance import fingerprint
from shard.recipe import Recipe
from shard.run import STAGES, Run


@pytest.fixture
def recipe() -> Recipe:
    return Recipe.load("quickstart")


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe) -> Iterator[Run]:
    with Run.open(tmp_path / "run", recipe) as opened:
        yield opened


def fill(run: Run) -> None:
    """The files that the inputs of the stages are read from, as the stages write them."""
    for name in run.recipe.sources:
        write_json(run.data / name / documents.LEDGER, {"sha256": {"heldout.jsonl": "1", "documents/00000.npy": "2"}})
        (run.data / name / "train-00000.bin").write_bytes(bytes(2))
        write_json(run.data / name / shards.LEDGER, tokens("3"))
    write_json(run.tokenizer_path, {"a": "tokenizer"})
    for stage in ("pretrain", "anneal"):
        checkpoint = run.folder / stage / "checkpoints" / "step-00000001"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")


def tokens(sha256: str) -> dict[str, object]:
    """The ledger of one shard of one token."""
    return {"dtype": "<u2", "tokens": 1, "shards": [{"file": "train-00000.bin", "tokens": 1, "sha256": sha256}]}


def with_settings(run: Run, *overrides: str) -> Run:
    return Run(run.folder, Recipe.load("quickstart", list(overrides)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_made_with_the_resolved_recipe_and_found_again(tmp_path: Path, recipe: Recipe) -> None:
    folder = tmp_path / "deep" / "run"
    with Run.open(folder, recipe) as run:
        assert run.recipe == recipe
    assert (folder / "recipe.toml").read_text() == recipe.to_toml()
    assert names(folder) == [".lock", "manifest.json", "recipe.toml"]
    assert run.manifest["recipe_sha256"] == sha256_of(folder / "recipe.toml")
    for again in (None, recipe):
        with Run.open(folder, again) as run:
            assert run.recipe == recipe


def test_an_empty_folder_is_taken(tmp_path: Path, recipe: Recipe) -> None:
    Run.open(tmp_path, recipe).close()
    assert (tmp_path / "recipe.toml").is_file()


def test_a_folder_of_another_recipe_is_refused_with_the_key_and_both_values(run: Run) -> None:
    fill(run)
    run.close()
    other = Recipe.load("quickstart", ["pretrain.lr_muon=0.5"])
    with pytest.raises(ShardError) as raised:
        Run.open(run.folder, other)
    message = str(raised.value)
    assert "pretrain.lr_muon is 0.02 there and 0.5 here" in message
    assert str(run.folder) in message
    assert "--out" in message
    assert message.endswith("--fork NEW")
    with Run.open(run.folder) as again:
        assert again.recipe == run.recipe, "the folder is as it was, and free"


def test_where_nothing_was_made_a_mended_recipe_takes_the_place_of_the_old_one(run: Run) -> None:
    """A mistake that the first stage found does not cost the name of the folder."""
    run.record("tokenizer", status="interrupted")
    run.close()
    mended = Recipe.load("quickstart", ["pretrain.lr_muon=0.5"])
    with Run.open(run.folder, mended) as again:
        assert again.recipe == mended
        assert again.manifest["stages"] == {}
        assert again.manifest["recipe_sha256"] == sha256_of(run.folder / "recipe.toml")
    with Run.open(run.folder) as again:
        assert again.recipe == mended


def test_many_differences_are_counted_not_listed(run: Run) -> None:
    fill(run)
    run.close()
    with pytest.raises(ShardError, match=r"and [0-9]+ more") as raised:
        Run.open(run.folder, Recipe.load("shard-40m-v1"))
    assert str(raised.value).count(" there and ") == 3


# One process at a time.


def test_a_folder_is_held_until_it_is_closed(run: Run) -> None:
    with pytest.raises(ShardError, match="is in use by process"):
        Run.open(run.folder)
    run.close()
    Run.open(run.folder).close()


def test_an_error_in_the_block_frees_the_folder(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(RuntimeError), Run.open(tmp_path, recipe):
        raise RuntimeError
    Run.open(tmp_path).close()


def test_a_damaged_recipe_does_not_hold_the_folder(run: Run) -> None:
    run.close()
    (run.folder / "recipe.toml").write_text("name = ")
    for _ in range(2):
        with pytest.raises(ShardError, match="not valid TOML"):
            Run.open(run.folder)


def test_what_a_killed_process_left_is_removed_at_the_next_start(run: Run) -> None:
    run.close()
    half = [run.folder / "manifest.json", run.data / "code" / "train-00000.bin", run.folder / "release" / "README.md"]
    for path in half[:2]:
        write_json(temporary_path(path), "half")
    write_json(temporary_path(run.folder / "release") / "README.md", "half")
    Run.open(run.folder).close()
    assert not [path for path in run.folder.rglob("*") if path.name.endswith(".tmp")]


def test_nothing_is_removed_from_a_folder_in_use(run: Run) -> None:
    mine = temporary_path(run.folder / "manifest.json")
    mine.write_text("being written")
    with pytest.raises(ShardError, match="in use"):
        Run.open(run.folder)
    assert mine.is_file()


KILLS = """
import os, signal, sys
from pathlib import Path
from shard.recipe import Recipe
from shard.run import Run

recipe = Recipe.load("quickstart")

def open_(folder):
    Run.open(folder, recipe).close()

def build(folder):
    with Run.build(folder, recipe) as new:
        new.tokenizer_path.parent.mkdir()  # fails where something was left
        new.tokenizer_path.write_text("{}")
        new.record("tokenizer", status="imported")
    new.close()

def kill_at(number):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event == "open" or event.startswith("os."):
            touches = any(str(here) in str(argument) for argument in arguments)
            seen += touches
            if touches and seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

make, here = {"open": open_, "build": build}[sys.argv[1]], Path(sys.argv[2])
number, killed = 0, True
while killed:
    number += 1
    folder = here / str(number) / "run"
    if (child := os.fork()) == 0:
        kill_at(number)
        make(folder)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    killed = status != 0
    whole = (folder / "recipe.toml").exists()
    if sys.argv[1] == "open" or not whole:
        make(folder)
    else:
        assert (folder / "tokenizer/tokenizer.json").exists(), "build gives all or nothing"
    with Run.open(folder) as run:
        assert run.recipe == recipe
    assert not list(here.rglob("*.tmp")), list(here.rglob("*.tmp"))
print(number - 1)
"""
"""Kills a child at each of its steps that touch the disk, and does the same once more each time."""


@pytest.mark.parametrize("how", ["open", "build"])
def test_a_kill_at_any_step_of_making_a_run_leaves_what_the_next_try_accepts(tmp_path: Path, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLS, how, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8, "it was killed at many steps"


# A run that is built before it takes its name.


def test_a_built_run_appears_whole_and_open(tmp_path: Path, recipe: Recipe) -> None:
    folder = tmp_path / "deep" / "run"
    with Run.build(folder, recipe) as new:
        assert not folder.exists()
        write_json(new.tokenizer_path, {})
    assert names(tmp_path / "deep") == ["run"]
    assert names(folder) == [".lock", "manifest.json", "recipe.toml", "tokenizer"]
    assert new.folder == folder
    assert new.manifest["recipe_sha256"] == sha256_of(folder / "recipe.toml")
    with pytest.raises(ShardError, match="in use"):
        Run.open(folder)
    new.close()
    Run.open(folder, recipe).close()


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(RuntimeError), Run.build(tmp_path / "run", recipe):
        raise RuntimeError
    assert names(tmp_path) == []


def test_two_builds_of_one_folder(tmp_path: Path, recipe: Recipe) -> None:
    with Run.build(tmp_path / "run", recipe) as first:
        with pytest.raises(ShardError, match="in use"), Run.build(tmp_path / "run", recipe):
            pass
        write_json(first.tokenizer_path, {})
    first.close()
    assert first.tokenizer_path.is_file()


def test_a_build_takes_an_empty_folder_and_refuses_any_other(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("empty", "full", "current"):
        (tmp_path / name).mkdir()
    with Run.build(tmp_path / "empty", recipe) as new:
        pass
    new.close()
    (tmp_path / "full" / "file").write_text("x")
    monkeypatch.chdir(tmp_path / "current")
    for folder in (tmp_path / "full", tmp_path / "full" / "file", Path()):
        with pytest.raises(ShardError, match="is not empty, or is the current folder"), Run.build(folder, recipe):
            pass
    assert names(tmp_path) == ["current", "empty", "full"]
    assert names(tmp_path / "full") == ["file"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('{kind = "hub", repository = "a/b"}', "a/b is none of .*: say which files, and which columns"),
        ('{kind = "hub", repository = "a/b", columns = ["text"]}', "a/b is none of .*: say which files"),
        ('{kind = "hub", repository = "a/b", files = "*"}', "a/b is none of .*: say which files, and which columns"),
        ('{kind = "hub", repository = "allenai/ai2_arc", template = "no column"}', "has no {column} in it"),
        (
            '{kind = "hub", repository = "a/b", files = "*", columns = ["a"], template = "{b}"}',
            "one of columns, template and kind",
        ),
    ],
)
def test_a_recipe_that_cannot_be_read_makes_no_folder(tmp_path: Path, source: str, message: str) -> None:
    hub = Recipe.load("quickstart", [f"sources.code={source}"])
    with pytest.raises(ShardError, match=message):
        Run.open(tmp_path / "run", hub)
    with pytest.raises(ShardError, match=message), Run.build(tmp_path / "run", hub):
        pass
    assert names(tmp_path) == []


def test_a_recipe_of_known_repositories_makes_its_folder(tmp_path: Path) -> None:
    """Nothing is asked of the network before a stage needs it."""
    recipe = Recipe.load("shard-40m-v1")
    with Run.open(tmp_path / "run", recipe) as run:
        assert run.recipe == recipe


# Where documents are read from, and who reads them.


def test_a_mirror_is_remembered_and_the_number_of_workers_is_not(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mirror" / "datasets").mkdir(parents=True)
    assert run.mirror is None and run.workers == Workers.auto()
    run.read_with(tmp_path / "run" / ".." / "mirror", 3, None)
    assert run.workers == Workers(count=3)
    run.read_with(None, None, "local")
    assert run.workers == Workers(count=Workers.auto().count, ray_address="local")
    run.close()
    with Run.open(run.folder) as again:
        assert again.mirror == tmp_path / "mirror"
        assert again.workers == Workers.auto()
        again.read_with(None, None, None)
        assert again.mirror == tmp_path / "mirror"


def test_a_mirror_that_is_none_is_a_mistake_and_frees_the_folder(run: Run, tmp_path: Path) -> None:
    before = run.manifest
    with pytest.raises(UsageError, match="it has no folder datasets"):
        run.read_with(tmp_path, None, None)
    with Run.open(run.folder) as again:
        assert again.manifest == before and again.mirror is None


def test_what_reads_the_documents_is_no_input_of_a_stage(run: Run, tmp_path: Path) -> None:
    fill(run)
    for stage in STAGES[:2]:
        with run.stage(stage):
            pass
    (tmp_path / "datasets").mkdir()
    run.read_with(tmp_path, 7, "local")
    assert [run.is_done(stage) for stage in STAGES[:2]] == [True, True]


# Folders that are no runs.


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ShardError, match="neither empty nor a run folder"):
        Run.open(tmp_path, recipe)
    assert names(tmp_path) == ["thesis.txt"]


def test_a_foreign_folder_is_not_ours_because_of_a_lock(tmp_path: Path, recipe: Recipe) -> None:
    for name in (".lock", ".thesis.tmp"):
        (tmp_path / name).write_text("")
    with pytest.raises(ShardError, match="neither empty nor a run folder"):
        Run.open(tmp_path, recipe)
    assert names(tmp_path) == [".lock", ".thesis.tmp"]
    (tmp_path / ".thesis.tmp").rename(tmp_path / ".recipe.toml.tmp")
    Run.open(tmp_path, recipe).close()
    assert names(tmp_path) == [".lock", "manifest.json", "recipe.toml"]


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
    run.annotate(forked_from="x")
    assert run.manifest == manifest | {"forked_from": "x"}


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
        ("tokenizer", "pretrain.steps=5"),
        ("pretrain", "seed=1"),
        ("pretrain", "pretrain.checkpoint_every=7"),
        ("pretrain", "data.mixture_block=7"),
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
    [
        ("pretrain", "anneal.steps=5"),
        ("pretrain", "pretrain.keep_last=9"),
        ("pretrain", "pretrain.keep_every=9"),
        ("pretrain", "pretrain.sample_every=9"),
        ("pretrain", 'pretrain.sample_prompts=["x"]'),
        ("pretrain", "pretrain.sentinel_every=9"),
        ("data", "pretrain.lr_muon=0.1"),
        ("tokenizer", "pretrain.lr_muon=0.1"),
        ("tokenizer", "model.num_layers=2"),
    ],
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
    write_json(run.data / name / documents.LEDGER, {"sha256": {"heldout.jsonl": "1", "documents/00000.npy": "other"}})
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


def test_an_identity_is_flat_json_by_readable_keys(run: Run) -> None:
    fill(run)
    for stage in STAGES:
        identity = run.identity(stage)
        assert json.loads(json.dumps(identity)) == identity
        assert not [key for key, value in identity.items() if isinstance(value, dict)]
        assert run.inputs(stage) == fingerprint(identity)
    identity = run.identity("pretrain")
    assert identity["seed"] == 0
    assert identity["model.hidden_size"] == run.recipe.config.hidden_size
    assert identity["pretrain.lr_muon"] == 0.02
    assert identity["tokenizer (sha256)"] == sha256_of(run.tokenizer_path)
    assert identity["data.code (sha256)"] == fingerprint(["3"])
    assert {key.split(".")[0] for key in identity} == {"seed", "model", "pretrain", "data", "tokenizer (sha256)"}


def test_the_order_of_a_mix_decides_the_order_of_training(run: Run) -> None:
    fill(run)
    turned = dict(reversed(run.recipe.pretrain.mix.items()))
    other = run.recipe.model_copy(update={"pretrain": run.recipe.pretrain.model_copy(update={"mix": turned})})
    assert other == run.recipe
    assert Run(run.folder, other).inputs("pretrain") != run.inputs("pretrain")


def test_a_stage_depends_on_the_sources_that_it_reads_and_on_no_other(run: Run) -> None:
    fill(run)
    unread = with_settings(run, "pretrain.mix.code=0.0")
    before = unread.inputs("pretrain"), unread.inputs("anneal")
    write_json(run.data / "code" / shards.LEDGER, tokens("other"))
    assert unread.inputs("pretrain") == before[0]
    assert unread.inputs("anneal") != before[1]


def test_what_was_imported_is_done(run: Run) -> None:
    run.record("pretrain", status="imported")
    assert run.is_done("pretrain")


def test_the_stages_are_those_of_the_design() -> None:
    assert STAGES == ("tokenizer", "data", "pretrain", "anneal", "evaluate", "bench", "release")
