"""`--fork NEW`: a branch that goes on training for real, from the command line, beside a source that stays as it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shard.files import sha256_of

Shard = Callable[..., Any]


def content(folder: Path) -> dict[str, str]:
    """Every file and its hash, but for the lock, which says who came last."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def metrics(run: Path, stage: str = "pretrain") -> list[dict[str, Any]]:
    """Of each step what does not depend on the clock."""
    lines = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "timing"} for line in lines]


def weights(run: Path, stage: str, step: int) -> str:
    return sha256_of(run / stage / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


@pytest.fixture
def half(shard: Shard, tokenized_run: Path, tmp_path: Path) -> Path:
    """A run that was stopped at step 2 of 4."""
    run = Path(shutil.copytree(tokenized_run, tmp_path / "half"))
    assert shard("pretrain", run, "--until", 2).code == 0
    return run


def test_a_fork_trains_on_under_other_settings(shard: Shard, half: Path, finished_run: Path, tmp_path: Path) -> None:
    before, new = content(half), tmp_path / "new"
    outcome = shard("pretrain", half, "--set", "pretrain.lr_muon=0.005", "--fork", new, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["step"] == 4
    assert "pretrain.lr_muon is 0.02 there and 0.005 here" in outcome.err
    assert "continues after step 2" in outcome.err
    assert content(half) == before, "byte for byte"

    whole, forked = metrics(finished_run), metrics(new)
    assert forked[:2] == whole[:2]
    assert [line["step"] for line in forked] == [1, 2, 3, 4]
    assert forked[2]["loss"] == whole[2]["loss"], "the same weights on the same batch"
    assert forked[2]["lr_muon"] == pytest.approx(whole[2]["lr_muon"] / 4)
    assert forked[3]["loss"] != whole[3]["loss"], "the third step went elsewhere"
    assert "done already" in shard("pretrain", new).err
    assert shard("run", new).code == 0
    assert len(metrics(new, "anneal")) == 3


def test_an_exact_branch_repeats_the_source_bit_for_bit(
    shard: Shard, half: Path, finished_run: Path, tmp_path: Path
) -> None:
    assert shard("pretrain", half, "--fork", tmp_path / "new").code == 0
    assert weights(tmp_path / "new", "pretrain", 4) == weights(finished_run, "pretrain", 4)
    assert metrics(tmp_path / "new") == metrics(finished_run)


def test_another_anneal_from_the_same_pretraining(shard: Shard, finished_run: Path, tmp_path: Path) -> None:
    before, new = content(finished_run), tmp_path / "new"
    outcome = shard("anneal", finished_run, "--set", "anneal.lr_muon=0.005", "--fork", new, "--from-step", 4)
    assert outcome.code == 0, outcome.err
    assert weights(new, "pretrain", 4) == weights(finished_run, "pretrain", 4)
    assert weights(new, "anneal", 3) != weights(finished_run, "anneal", 3)
    assert content(finished_run) == before


def test_a_fork_by_recipe_name_takes_its_source_from_out(
    shard: Shard, tiny: list[str], finished_run: Path, tmp_path: Path
) -> None:
    changed = [*tiny, "--set", 'release.prompts=["x"]', "--out", finished_run, "--fork", tmp_path / "new"]
    outcome = shard("run", *changed)
    assert outcome.code == 0, outcome.err
    assert "pretrain: done already" in outcome.err
    assert "anneal: done already" in outcome.err
    assert [sample["prompt"] for sample in json.loads((tmp_path / "new/evaluation.json").read_text())["samples"]] == [
        "x"
    ]


def test_other_text_is_trained_on_with_the_kept_tokenizer(
    shard: Shard, half: Path, text_folder: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(text_folder, tmp_path / "other"))
    (other / "00.txt").write_text("quite another text " * 300)
    outcome = shard("pretrain", half, "--data", other, "--fork", tmp_path / "new")
    assert outcome.code == 0, outcome.err
    assert "the data is made anew" in outcome.err
    assert sha256_of(tmp_path / "new/tokenizer/tokenizer.json") == sha256_of(half / "tokenizer/tokenizer.json")
    assert len(metrics(tmp_path / "new")) == 4


def test_without_fork_the_same_change_is_refused_and_fork_is_offered(shard: Shard, half: Path) -> None:
    outcome = shard("pretrain", half, "--set", "pretrain.lr_muon=0.005")
    assert outcome.code == 2
    assert "--fork NEW" in outcome.err


def test_refusals_are_one_line_and_make_nothing(shard: Shard, half: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    for code, words, arguments in (
        (2, "do not fit", [half, "--set", "model.num_layers=3", "--fork", new]),
        (2, "--out goes with a recipe name", [half, "--out", new, "--fork", new]),
        (1, "is not empty", [half, "--fork", half]),
        (1, "is not a run folder", ["quickstart", "--out", tmp_path / "typo", "--fork", new]),
    ):
        outcome = shard("pretrain", *arguments)
        assert outcome.code == code, outcome.err
        assert words in outcome.err
        assert outcome.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["half"]
