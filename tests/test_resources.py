"""Room on the disk and in memory is compared with what a stage may take, before it begins."""

import io
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from shard import resources
from shard.console import Reporter
from shard.data.hub import RemoteFile
from shard.data.inventory import Inventory
from shard.data.units import Unit
from shard.data.workers import Workers
from shard.errors import ShardError
from shard.files import write_json
from shard.recipe import Recipe
from shard.resources import check_disk, check_memory, check_room_for_data, disk_needed, most_checkpoints
from shard.run import Run
from shard.training.cost import checkpoint_bytes, state_bytes
from shard.units import format_size

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(b"x" * 30_000)
    (tmp_path / "text" / "b.txt").write_bytes(b"y" * 20_000)
    run = Run.open(tmp_path / "run", Recipe.load("quickstart", ["pretrain.keep_every=100"], tmp_path / "text"))
    write_json(run.data / "text" / "documents.json", {"bytes": {"train": 40_000, "heldout": 4_000}, "sha256": {}})
    return run


@pytest.mark.parametrize("stage", ["tokenizer", "data", "pretrain", "anneal", "release"])
def test_a_stage_that_does_not_fit_on_the_disk_is_refused_before_it_begins(
    run: Run, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    needed = disk_needed(run, stage)
    assert needed > 0
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: Usage(0, 0, needed))
    check_disk(run, stage)
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: Usage(0, 0, needed - 1))
    with pytest.raises(ShardError) as raised:
        check_disk(run, stage)
    assert str(raised.value).startswith(f"{run.folder} has ") and f"{stage} may take" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_needed_follows_what_there_is(run: Run) -> None:
    one = checkpoint_bytes(run.recipe.config)
    assert disk_needed(run, "tokenizer") == 2 * 50_000
    assert disk_needed(run, "data") == 2 * 40_000 / 2 * 2  # uint16, two bytes of text a token at least, twice
    assert most_checkpoints(run.recipe.pretrain) == 2 + 4 + 680 // 100
    assert disk_needed(run, "pretrain") == (most_checkpoints(run.recipe.pretrain) + 1) * one
    for step in (100, 200):
        (run.folder / "pretrain" / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    assert disk_needed(run, "pretrain") == (most_checkpoints(run.recipe.pretrain) - 1) * one
    assert disk_needed(run, "evaluate") == 0


def test_datasets_that_do_not_fit_on_the_disk_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where there is anything to download, it is said how much; what is there already is not needed again."""
    sources = 'sources={web={kind="hub",repository="someone/some",files="*.parquet",columns=["text"]}}'
    mixes = ["pretrain.mix={web=1}", "anneal.mix={web=1}"]
    run = Run.open(tmp_path / "run", Recipe.load("quickstart", [sources, *mixes]))
    run.workers = Workers(count=2)
    remote = [RemoteFile("a.parquet", 10**6), RemoteFile("b.parquet", 4 * 10**6)]
    common = {"source_name": "web", "source": run.recipe.sources["web"], "folder": str(run.data / "web")}
    units = [
        Unit(**common, number=i, name=file.path, remote=file, settings=run.recipe.data, seed=0)
        for i, file in enumerate(remote)
    ]
    text = 2.6 * 5e6
    needed = round(text / 2.6 + 2 * text / 3.5 * 2) + 2 * 4 * 10**6
    (run.data / "web").mkdir(parents=True)
    (run.data / "web" / "part").write_bytes(bytes(1000))
    console = io.StringIO()
    reporter = Reporter()
    reporter.console.file = console
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: Usage(0, 0, needed - 1000))
    check_room_for_data(run, Inventory(units={"web": units}), reporter)
    assert console.getvalue().startswith("data: 2 files, 5 MB to download, about 13 MB of text, ")
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: Usage(0, 0, needed - 1001))
    with pytest.raises(ShardError, match=r"the data may take .*: make room, .*max_bytes") as raised:
        check_room_for_data(run, Inventory(units={"web": units}), reporter)
    assert "\n" not in str(raised.value)
    run.close()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_model_that_does_not_fit_into_memory_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """On a GPU only the copy for a checkpoint lies in main memory."""
    config = run.recipe.config
    needed = checkpoint_bytes(config) + (state_bytes(config) if device == "cpu" else 0)
    monkeypatch.setattr("shard.environment.total_memory", lambda: needed)
    check_memory(run, torch.device(device))
    monkeypatch.setattr("shard.environment.total_memory", lambda: needed - 1)
    with pytest.raises(ShardError, match=format_size(needed)):
        check_memory(run, torch.device(device))
