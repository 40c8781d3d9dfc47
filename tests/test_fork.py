"""What a fork keeps of its source, stage by stage, and what it refuses. Nothing is trained: runs are files here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shard.console import Reporter
from shard.data import documents, shards
from shard.errors import ShardError, UsageError
from shard.files import sha256_of, write_json, write_text
from shard.fork import fork
from shard.recipe import Recipe
from shard.run import Run

NEWEST = {"pretrain": 3, "anneal": 2}
DOCUMENTS = [f"documents/0000{i}.{end}" for i in range(2) for end in ("parquet", "json", "npy")] + ["heldout.jsonl"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The folder of a finished run of four pretrain and two anneal steps, of which pretrain holds the first three."""
    recipe = Recipe.load("quickstart", ["pretrain.steps=4", "pretrain.decay_steps=1", "anneal.steps=2"])
    with Run.open(tmp_path / "source", recipe) as run:
        for name in recipe.sources:
            folder = run.data / name
            for file in DOCUMENTS:
                write_text(folder / file, name)
            write_json(folder / documents.LEDGER, {"sha256": {"documents/00000.parquet": name, "heldout.jsonl": "2"}})
            write_json(folder / "listing.json", {"revision": "1", "files": []})
            (folder / "train-00000.bin").write_bytes(bytes(2))
            shard = {"file": "train-00000.bin", "tokens": 1, "sha256": name}
            write_json(folder / shards.LEDGER, {"dtype": "<u2", "tokens": 1, "shards": [shard]})
        write_json(run.tokenizer_path, {"a": "tokenizer"})
        write_json(run.tokenizer_path.with_name("sample.json"), {"vocab_size": 300})
        for stage, newest in NEWEST.items():
            for step in range(1, newest + 1):
                checkpoint = run.folder / stage / "checkpoints" / f"step-{step:08d}"
                write_json(checkpoint / "state.json", {"step": step, "fingerprint": f"{stage} {step}"})
                write_json(checkpoint / "manifest.json", {})
            write_text(run.folder / stage / "metrics.jsonl", '{"step": 1}\n')
            write_text(run.folder / stage / "events.jsonl", '{"event": "start"}\n')
        decided = {"pretrain on cpu": {"precision": "fp32"}, "anneal on cpu": {"precision": "fp32"}}
        write_json(run.decisions_path, decided)
        for file in ("evaluation.json", "benchmark.json", "release/SHA256SUMS"):
            write_json(run.folder / file, {})
        for stage in ("tokenizer", "data", "pretrain", "anneal", "evaluate", "bench", "release"):
            with run.stage(stage):
                pass
        run.record("anneal", from_step=3)
    return run.folder


@pytest.fixture
def branch(source: Path, tmp_path: Path) -> Callable[..., Run]:
    """`branch("pretrain.lr_muon=0.5")`: a fork of the source with these changes, closed."""

    def make(*changes: str, name: str = "fork", of: Path = source) -> Run:
        run = fork(of, tmp_path / name, Recipe.load(str(of / "recipe.toml"), list(changes)), Reporter(quiet=True))
        run.close()
        return run

    return make


def content(folder: Path) -> dict[str, str]:
    """Every file and its hash, but for the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def entry(run: Run, stage: str) -> dict[str, Any]:
    stages: dict[str, dict[str, Any]] = run.manifest["stages"]
    return stages.get(stage, {})


def done(run: Run) -> list[str]:
    return [stage for stage in ("tokenizer", "data", "pretrain", "anneal", "evaluate") if run.is_done(stage)]


def test_an_exact_branch_keeps_all_training_and_measures_anew(branch: Callable[..., Run], source: Path) -> None:
    before = content(source)
    run = branch()
    assert done(run) == ["tokenizer", "data", "pretrain", "anneal"]
    kept = content(run.folder)
    lost = {"evaluation.json", "benchmark.json", "release/SHA256SUMS"}
    assert before.keys() - kept.keys() == lost
    assert {name for name in kept if kept[name] != before[name]} == {"manifest.json"}
    assert run.manifest["forked_from"] == {"run": str(source), "differences": []}
    assert entry(run, "tokenizer") == {"status": "imported", "forked_from": str(source)}
    for stage in ("data", "pretrain", "anneal"):
        assert entry(run, stage) == Run(source, run.recipe).manifest["stages"][stage]
    assert content(source) == before


def test_large_files_are_linked_and_files_that_grow_are_copied(branch: Callable[..., Run], source: Path) -> None:
    run = branch()
    for name in content(run.folder):
        is_linked = (run.folder / name).samefile(source / name)
        assert is_linked == (name.startswith("data/") or "checkpoints" in name), name
    with (run.folder / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write("more")
    assert (source / "pretrain" / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_data_that_is_made_anew_in_a_fork_leaves_the_source_as_it_is(branch: Callable[..., Run], source: Path) -> None:
    """Files of both are one: each is replaced, none is changed in place."""
    before, run = content(source), branch()
    for path in (run.data / "code").rglob("*"):
        if path.is_file():
            write_text(path, "anew")
    assert content(source) == before


def test_leftovers_and_downloads_stay_behind(branch: Callable[..., Run], source: Path) -> None:
    for name in ("code/.x.tmp", "code/documents/.00001.parquet.tmp", "code/raw/x.parquet", "code/tokens/00000.bin"):
        write_text(source / "data" / name, "x")
    kept = {name for name in content(branch().folder) if name.startswith("data/code/")}
    expected = [*DOCUMENTS, "documents.json", "listing.json", "tokens.json", "train-00000.bin"]
    assert kept == {f"data/code/{name}" for name in expected}


@pytest.mark.parametrize("change", ["seed=5", "pretrain.lr_muon=0.5"])
def test_a_fork_reads_from_the_mirror_of_its_source(
    branch: Callable[..., Run], source: Path, tmp_path: Path, change: str
) -> None:
    assert branch(change, name="a").mirror is None
    with Run.open(source) as run:
        run.annotate(mirror=str(tmp_path / "mirror"))
    assert branch(change, name="b").mirror == tmp_path / "mirror"


def test_a_changed_pretraining_goes_on_and_the_anneal_is_left(branch: Callable[..., Run], source: Path) -> None:
    run = branch("pretrain.lr_muon=0.5")
    assert done(run) == ["tokenizer", "data"]
    expected = {
        "status": "forked",
        "forked_from": str(source),
        "step": 3,
        "accepts": ["pretrain 1", "pretrain 2", "pretrain 3"],
    }
    assert entry(run, "pretrain") == expected
    assert len(run.outputs("pretrain")) == 1
    assert not (run.folder / "anneal").exists()
    assert not entry(run, "anneal")
    assert run.manifest["forked_from"]["differences"] == ["pretrain.lr_muon is 0.02 there and 0.5 here"]
    with run.stage("pretrain"):
        pass
    assert entry(run, "pretrain")["accepts"] == expected["accepts"], "it holds for the whole of the stage"


def test_a_changed_anneal_leaves_pretraining_as_it_stands(branch: Callable[..., Run]) -> None:
    run = branch("anneal.lr_muon=0.5")
    assert done(run) == ["tokenizer", "data", "pretrain"]
    assert not (run.folder / "anneal").exists()
    assert "accepts" not in entry(run, "pretrain")


@pytest.mark.parametrize("change", ["pretrain.keep_last=9", 'release.prompts=["x"]', "evaluate.context=64"])
def test_what_changes_no_training_keeps_it(branch: Callable[..., Run], change: str) -> None:
    assert done(branch(change)) == ["tokenizer", "data", "pretrain", "anneal"]


@pytest.mark.parametrize("change", ["seed=5", "sources.problems.seed=5", "data.heldout_bytes=9kB"])
def test_changed_data_is_made_anew_with_the_kept_tokenizer(
    branch: Callable[..., Run], source: Path, change: str
) -> None:
    run = branch(change)
    assert done(run) == ["tokenizer"]
    assert not run.data.exists()
    assert not entry(run, "data")
    assert sha256_of(run.tokenizer_path) == sha256_of(source / "tokenizer/tokenizer.json")
    assert entry(run, "pretrain")["status"] == "forked"
    assert not (run.folder / "anneal").exists()


def test_decisions_are_kept_while_what_they_depend_on_is_the_same(branch: Callable[..., Run]) -> None:
    def decided(name: str, *changes: str) -> set[str]:
        return set(json.loads(branch(*changes, name=name).decisions_path.read_text()))

    assert decided("a", "pretrain.lr_muon=0.5") == {"pretrain on cpu", "anneal on cpu"}
    assert decided("b", "pretrain.micro_batch=1") == {"anneal on cpu"}
    assert decided("c", "pretrain.precision=bf16", "anneal.compile=off") == set()


def test_a_fork_of_a_fork_accepts_what_the_first_one_did(branch: Callable[..., Run]) -> None:
    first = branch("pretrain.lr_muon=0.5", name="first")
    same = branch(name="same", of=first.folder)
    assert entry(same, "pretrain") == entry(first, "pretrain")
    other = branch("pretrain.lr_muon=0.6", name="other", of=first.folder)
    assert entry(other, "pretrain")["accepts"] == ["pretrain 1", "pretrain 2", "pretrain 3"]


def test_an_imported_pretraining_stays_imported_until_its_settings_change(
    branch: Callable[..., Run], source: Path
) -> None:
    with Run.open(source) as run:
        manifest = run.manifest
        manifest["stages"] = {
            "tokenizer": {"status": "imported"},
            "pretrain": {"status": "imported", "bundle": "b", "result": {"step": 3}},
        }
        write_json(source / "manifest.json", manifest)
    new_data = branch("sources.problems.seed=5", "anneal.lr_muon=0.5", name="a")
    assert entry(new_data, "pretrain") == manifest["stages"]["pretrain"]
    assert entry(branch("pretrain.lr_muon=0.5", name="b"), "pretrain")["status"] == "forked"


def test_a_run_that_has_only_begun_gives_what_it_has(branch: Callable[..., Run], tmp_path: Path) -> None:
    recipe = Recipe.load("quickstart")
    Run.open(tmp_path / "new", recipe).close()
    empty = branch(name="a", of=tmp_path / "new")
    assert done(empty) == []
    assert list(empty.manifest["stages"]) == []
    with Run.open(tmp_path / "new") as run:
        write_json(run.tokenizer_path, {})
    tokenized = branch("pretrain.lr_muon=0.5", name="b", of=tmp_path / "new")
    assert done(tokenized) == ["tokenizer"]
    assert list(tokenized.manifest["stages"]) == ["tokenizer"]


def test_a_checkpoint_that_was_being_replaced_comes_along(branch: Callable[..., Run], source: Path) -> None:
    checkpoints = source / "pretrain" / "checkpoints"
    (checkpoints / "step-00000003").rename(checkpoints / ".tmp-replaced-step-00000003")
    assert entry(branch("pretrain.lr_muon=0.5"), "pretrain")["step"] == 3


def test_another_model_is_refused_by_its_key(branch: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.num_layers is \d+ there and 9 here.*do not fit; start a new run"):
        branch("model.num_layers=9")
    assert not (tmp_path / "fork").exists()


def test_fewer_steps_than_there_are_already_are_refused(branch: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"stands at step 3 of pretrain, beyond pretrain\.steps = 2"):
        branch("pretrain.steps=2")
    assert [path.name for path in tmp_path.iterdir()] == ["source"], "nothing half-made is left"
    assert done(branch("pretrain.steps=3")) == ["tokenizer", "data"]


def test_settings_that_nothing_will_be_trained_with_are_warned_of(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe.load(str(source / "recipe.toml"), ["pretrain.steps=3"])
    fork(source, tmp_path / "fork", recipe, Reporter()).close()
    assert "pretrain stands at its last step 3" in capsys.readouterr().err


def test_a_source_in_use_and_one_that_is_no_run_are_refused(
    branch: Callable[..., Run], source: Path, tmp_path: Path
) -> None:
    with Run.open(source), pytest.raises(ShardError, match="in use"):
        branch()
    with pytest.raises(ShardError, match="is not a run folder"):
        fork(tmp_path / "typo", tmp_path / "fork", Recipe.load("quickstart"), Reporter(quiet=True))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_target_that_is_taken_is_refused_and_left_alone(branch: Callable[..., Run], source: Path) -> None:
    before = content(source)
    with pytest.raises(ShardError, match="is not empty"):
        branch(name="source")
    assert content(source) == before


def test_the_source_is_free_again_and_the_fork_is_held(source: Path, tmp_path: Path) -> None:
    with fork(source, tmp_path / "fork", Recipe.load(str(source / "recipe.toml")), Reporter(quiet=True)):
        Run.open(source).close()
        with pytest.raises(ShardError, match="in use"):
            Run.open(tmp_path / "fork")
    Run.open(tmp_path / "fork").close()
