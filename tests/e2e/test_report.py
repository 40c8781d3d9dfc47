"""`shard report` and what a run leaves of it, from the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shard.report import page as page_module
from shard.report.history import read_run
from shard.training.cost import count_parameters


def test_a_run_ends_with_its_report(finished_run: Path) -> None:
    page = (finished_run / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and '"label":"quickstart"' in page


def test_the_verb(finished_run: Path, tokenized_run: Path, tmp_path: Path, shard: Callable[..., Any]) -> None:
    out = tmp_path / "two.html"
    done = shard("report", finished_run, tokenized_run, "--out", out)
    assert (done.code, done.out.strip(), done.err) == (0, str(out), "")
    assert '"key":' not in out.read_text() or "environment" in out.read_text(), "the recipes are the same"
    done = shard("report", finished_run, "--out", out, "--json")
    assert json.loads(done.out) == {"report": str(out)}


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path, finished_run: Path, shard: Callable[..., Any]) -> None:
    for arguments in ((tmp_path,), (finished_run, tmp_path / "typo")):
        got = shard("report", *arguments)
        assert got.code == 1 and got.out == ""
        assert got.err.count("\n") == 1 and "is not a run folder" in got.err


def test_a_report_that_cannot_be_written_fails_no_run(
    finished_run: Path, tmp_path: Path, shard: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)

    def fail(*_: object) -> None:
        raise RuntimeError("no page")

    monkeypatch.setattr(page_module, "render_page", fail)
    got = shard("run", run)
    assert got.code == 0
    assert "! the report could not be written (no page): try `shard report" in got.err


def test_the_parameters_are_those_of_the_recipe(finished_run: Path) -> None:
    from shard.recipe import Recipe

    config = Recipe.load(str(finished_run / "recipe.toml")).config
    assert read_run(finished_run).num_parameters == count_parameters(config).total


def test_sinks_lie_beside_the_metrics_and_change_nothing(
    finished_run: Path, tiny: list[str], tmp_path: Path, shard: Callable[..., Any]
) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    assert shard("run", *tiny, "--out", run, "--track", "tensorboard").code == 0
    for stage in ("pretrain", "anneal"):
        assert len(list((run / stage / "tensorboard").glob("events.out.tfevents.*"))) == 1
    weights = "release/models/model.pt"
    assert (run / weights).read_bytes() == (finished_run / weights).read_bytes()
    assert shard("verify", run).code == 0
    got = shard("pretrain", run, "--track", "wandbb")
    assert got.code == 2 and "--track wandbb: there is tensorboard and wandb" in got.err
