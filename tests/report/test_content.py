"""What the page is given, from run folders in every state."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from synthetic import MATRICES, SOURCES, event, loss_at, write_run

from shard.errors import ShardError
from shard.report import content as content_module
from shard.report.content import page_content
from shard.report.history import read_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def content_of(*folders: Path) -> dict[str, Any]:
    content = page_content([read_run(folder) for folder in folders])
    json.dumps(content, allow_nan=False)
    return content


def figures(run: dict[str, Any]) -> dict[str, str]:
    return dict(run["figures"])


def test_curves_are_those_of_metrics_jsonl_one_stage_behind_the_other(run: Path) -> None:
    (got,) = content_of(run)["runs"]
    pretrain, anneal = got["stages"]
    assert [pretrain["name"], anneal["name"]] == ["pretrain", "anneal"]
    assert pretrain["every_step"]["step"] == list(range(1, 401))
    assert anneal["every_step"]["step"] == list(range(401, 501))
    assert anneal["every_step"]["tokens"][-1] == 500_000
    assert anneal["every_step"]["seconds"][-1] == pytest.approx(250)
    loss = pretrain["every_step"]["values"]["loss"]["mean"]
    assert loss[99] == pytest.approx(loss_at(100), abs=0.2)
    assert anneal["every_step"]["values"]["lr_muon"]["mean"][50] == pytest.approx(0.01)
    assert pretrain["heldout"]["step"] == list(range(50, 401, 50))
    assert pretrain["heldout"]["values"]["code"]["mean"][0] == pytest.approx(loss_at(50) / 3, rel=1e-4)
    assert figures(got)["tokens"] == "500K"
    assert figures(got)["pretrain"] == "400 of 400 steps"


def test_a_skipped_step_is_a_mark_and_not_a_point(run: Path) -> None:
    (got,) = content_of(run)["runs"]
    assert got["stages"][0]["every_step"]["values"]["loss"]["mean"][149] is None
    marks = [(mark["kind"], mark["step"]) for mark in got["marks"]]
    assert marks == [("skipped", 150), ("skipped", 151), ("skipped", 300), ("rollback", 201), ("restart", 200)]
    assert got["marks"][0]["text"] == "loss spike: loss 99, gradient norm 88"
    assert got["marks"][3]["text"] == "back to step 100 of pretrain, past 3 batches"
    shown = figures(got)
    assert (shown["skipped steps"], shown["rollbacks"], shown["restarts"]) == ("3", "1", "1")


def test_what_a_killed_run_wrote_twice_is_shown_once(run: Path) -> None:
    path = run / "pretrain" / "events.jsonl"
    again = [line for line in path.read_text().splitlines() if '"skipped"' in line or '"sample"' in line]
    path.write_text(path.read_text() + "\n".join(again) + "\n")
    (got,) = content_of(run)["runs"]
    assert sum(mark["kind"] == "skipped" for mark in got["marks"]) == 3
    assert [step for step, _ in got["samples"][0]["texts"]] == [100, 200, 300, 400, 425, 450, 475, 500]
    assert got["samples"][0]["texts"][0][1] == "text of step 100", "the prompt stands apart"


def test_marks_of_a_kind_are_thinned_from_the_first_to_the_last(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "MOST_MARKS", 2)
    (got,) = content_of(run)["runs"]
    assert [mark["step"] for mark in got["marks"] if mark["kind"] == "skipped"] == [150, 300]


@pytest.mark.parametrize("most", [120, 3])
def test_the_sentinel_keeps_the_worst_of_each_column(run: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(content_module.sentinel_maps, "__defaults__", (most,))
    (got,) = content_of(run)["runs"]
    sentinel = got["sentinel"]
    assert sentinel["maps"]["weight"]["rows"] == sentinel["maps"]["momentum"]["rows"] == MATRICES
    lost = sentinel["maps"]["weight"]["lost"]
    looks = len(sentinel["steps"])
    assert looks <= most and all(len(row) == looks for row in lost)
    assert max(lost[2]) == 0.25, "8 of 32 at the last look of the pretraining"
    assert all(value == 0 for i, row in enumerate(lost) if i != 2 for value in row)
    assert sentinel["steps"][0][0] == 50 and sentinel["steps"][-1][1] == 496
    assert sentinel["maps"]["weight"]["ratio"][0] == [0.01] * looks


def test_data_comes_from_the_ledgers(run: Path) -> None:
    (got,) = content_of(run)["runs"]
    prose, code = got["data"]
    assert [row["source"] for row in got["data"]] == list(SOURCES)
    assert (prose["shares"], code["shares"]) == ({"pretrain": 0.75, "anneal": 0.0}, {"pretrain": 0.25, "anneal": 1.0})
    assert prose["epochs"] == {"pretrain": 3.0, "anneal": 0.0}, "0.75 of 400,000 tokens, of 100,000"
    assert (prose["documents"], prose["dropped"], prose["text"]) == (80, {"duplicate": 7}, "1 MB")


def test_two_runs_have_their_differences_and_names_that_tell_them_apart(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", lr_muon=0.03, seed=1)
    content = content_of(run, other)
    assert [r["label"] for r in content["runs"]] == ["run", "other"]
    assert content["differences"] == [
        {"key": "pretrain.lr_muon", "values": ["0.02", "0.03"]},
        {"key": "anneal.lr_muon", "values": ["0.02", "0.03"]},
    ]
    twin = write_run(tmp_path / "deeper" / "run", name="twin")
    assert [r["label"] for r in content_of(run, twin)["runs"]] == ["made-up", "twin"]
    same = write_run(tmp_path / "deeper" / "again" / "run")
    assert [r["label"] for r in content_of(run, same)["runs"]] == [str(run), str(same)]


# States.


def test_a_run_that_has_only_just_begun(run: Path) -> None:
    for name in ("pretrain", "anneal", "data", "evaluation.json", "benchmark.json", "manifest.json"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (got,) = content_of(run)["runs"]
    assert got["stages"] == [] and got["sentinel"] is None and got["figures"] == []
    assert got["data"][0]["tokens"] is None and got["data"][0]["shares"]["pretrain"] == 0.75


def test_a_stage_that_has_started_and_has_no_step_yet(run: Path) -> None:
    (run / "pretrain" / "metrics.jsonl").unlink()
    (run / "pretrain" / "events.jsonl").write_text(json.dumps(event("start", step=0, until=400)) + "\n")
    shutil.rmtree(run / "anneal")
    (got,) = content_of(run)["runs"]
    assert got["stages"][0]["every_step"]["step"] == [] and got["marks"] == []
    assert figures(got)["pretrain"] == "0 of 400 steps"


def test_a_run_that_is_going_on_with_a_half_written_line(run: Path) -> None:
    shutil.rmtree(run / "anneal")
    path = run / "pretrain" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)[:57]
    path.write_text("".join(lines) + lines[0][:25])
    events = run / "pretrain" / "events.jsonl"
    events.write_text(events.read_text() + '{"time": "2026-')
    (got,) = content_of(run)["runs"]
    assert got["stages"][0]["every_step"]["step"][-1] == 57
    assert figures(got)["pretrain"] == "57 of 400 steps"


def test_an_imported_run_has_no_metrics_of_its_pretraining(run: Path) -> None:
    shutil.rmtree(run / "pretrain")
    (got,) = content_of(run)["runs"]
    (anneal,) = got["stages"]
    assert anneal["every_step"]["step"][0] == 401 and anneal["every_step"]["seconds"][-1] == pytest.approx(50)


def test_numbers_that_are_missing_or_damaged_are_gaps(run: Path) -> None:
    path = run / "pretrain" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[3]["loss"] = None
    lines[4] = {"step": 5}
    lines[5]["timing"] = "?"
    lines[6]["bits_per_byte"] = [1]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    (run / "evaluation.json").write_text('{"sources": {"a": {"bits_per_byte": NaN')
    (run / "benchmark.json").write_text('{"x": NaN, "y": 1}')
    (got,) = content_of(run)["runs"]
    assert got["stages"][0]["every_step"]["values"]["loss"]["mean"][3:6:2] == [None, pytest.approx(7.4, abs=0.2)]
    assert got["evaluation"] == {} and got["benchmark"] == {"x": None, "y": 1}


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="is not a run folder"):
        read_run(tmp_path)
    (tmp_path / "recipe.toml").write_text("= x\n")
    with pytest.raises(ShardError, match=r"recipe\.toml is damaged .*: restore it"):
        read_run(tmp_path)
