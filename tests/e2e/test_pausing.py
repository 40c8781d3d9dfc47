"""A session that ends before the run does: `--max-time`, and a run folder that is carried to another place."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shard.environment import NO_COMPILER
from shard.training.progress import Progress

Shard = Callable[..., Any]


def same_training(run: Path, reference: Path) -> None:
    """Equal checkpoints, byte for byte, and equal metrics without their clocks."""
    for stage in ("pretrain", "anneal"):
        ours, theirs = ((folder / stage).rglob("*.safetensors") for folder in (run, reference))
        ours, theirs = ({p.relative_to(f): p.read_bytes() for p in ps} for ps, f in ((ours, run), (theirs, reference)))
        assert ours and ours == theirs
        lines = [(folder / stage / "metrics.jsonl").read_text().splitlines() for folder in (run, reference)]
        parsed = [[{**json.loads(line), "timing": None} for line in text] for text in lines]
        assert parsed[0] == parsed[1]


def test_a_run_pauses_in_time_and_goes_on_to_the_same_bits(
    shard: Shard, finished_run: Path, tokenized_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start may do two steps, as steps are said to take an hour each but the first two of a process."""
    run = tmp_path / "run"
    shutil.copytree(tokenized_run, run)
    original = Progress.seconds_per_step.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(
        Progress, "seconds_per_step", property(lambda self: 3600.0 if len(self._recent) >= 2 else original(self))
    )
    statuses = []
    for _ in range(10):
        outcome = shard("run", run, "--max-time", "59m", "--json")
        assert outcome.code == 0
        statuses.append(json.loads(outcome.out)["status"])
        if statuses[-1] == "done":
            break
        assert "the same command goes on from there" in outcome.err
        assert json.loads(shard("status", run, "--json").out)[0]["status"] == "paused"
    assert statuses == ["paused", "paused", "done"] or statuses == ["paused", "paused", "paused", "done"]
    same_training(run, finished_run)


def test_no_stage_begins_after_the_time_is_over(shard: Shard, tiny: list[str], tmp_path: Path) -> None:
    outcome = shard("run", *tiny, "--out", tmp_path / "run", "--max-time", "0s", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out) == {"status": "paused", "run": str(tmp_path / "run"), "stages": {}}
    assert not (tmp_path / "run" / "tokenizer").exists()


@pytest.mark.parametrize("text", ["soon", "-5m", "3", ""])
def test_what_is_no_duration_is_refused(shard: Shard, finished_run: Path, text: str) -> None:
    outcome = shard("run", finished_run, f"--max-time={text}")
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("shard: --max-time")


def test_a_run_that_was_moved_goes_on_in_its_new_place(
    shard: Shard, finished_run: Path, tokenized_run: Path, tmp_path: Path
) -> None:
    run, moved = tmp_path / "run", tmp_path / "elsewhere" / "renamed"
    shutil.copytree(tokenized_run, run)
    assert shard("pretrain", run, "--until", "2").code == 0
    moved.parent.mkdir()
    run.rename(moved)
    assert shard("run", moved).code == 0
    same_training(moved, finished_run)
    assert shard("verify", moved).code == 0


def test_a_run_goes_on_without_the_compiler_that_it_began_with(
    shard: Shard, tokenized_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled and with our own attention at first, then carried to a machine that can do neither."""
    run = tmp_path / "run"
    shutil.copytree(tokenized_run, run)
    assert shard("pretrain", run, "--until", "2").code == 0
    path = run / "decisions.json"
    decided = json.loads(path.read_text())
    decided["pretrain on cpu"] |= {"compile": True, "cpu_attention": True}
    path.write_text(json.dumps(decided))
    monkeypatch.setattr("shard.training.decisions.cpp_compiler", lambda: None)
    monkeypatch.setattr("shard.training.cpu_attention.load_cpu_attention", lambda: (False, NO_COMPILER))
    outcome = shard("pretrain", run)
    assert outcome.code == 0
    for instead in ("without torch.compile", "with torch's attention"):
        assert f"! pretrain: {NO_COMPILER}: goes on {instead}, slower and rounding otherwise" in outcome.err
    changed = json.loads(path.read_text())["pretrain on cpu"]
    assert not changed["compile"] and not changed["cpu_attention"]
    assert "goes on" not in shard("verify", run).err
