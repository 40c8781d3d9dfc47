"""The card's pictures: well-formed SVG with a line for every value, and none where there is nothing to show."""

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from synthetic import MATRICES, write_run

from shard.report.pictures import write_pictures
from shard.report.svg import Line, format_tick, line_chart, ticks

NAMES = ["loss.svg", "learning_rate.svg", "bits_per_byte.svg", "sentinel.svg"]
SVG = "{http://www.w3.org/2000/svg}"


def by_class(path: Path, name: str) -> list[ET.Element]:
    return [e for e in ET.parse(path).iter() if name in e.get("class", "").split()]


def texts(path: Path) -> list[str]:
    return [e.text or "" for e in ET.parse(path).iter(f"{SVG}text")]


def test_all_four(tmp_path: Path) -> None:
    written = write_pictures(write_run(tmp_path / "run"), tmp_path / "pictures")
    assert [path.name for path in written] == NAMES
    loss, rates, scores, sentinel = written
    assert len(by_class(loss, "line")) == 2, "one for each stage"
    assert "anneal" in texts(loss)
    assert {"hidden matrices (Muon)", "token table (AdamW), norms (AdamW)"} <= set(texts(rates))
    assert {"prose", "code"} <= set(texts(scores)) and len(by_class(scores, "line")) == 4
    assert texts(sentinel).count("1.attention.query") == 1
    shades = by_class(sentinel, "cell")
    assert shades and sum(shade.get("d", "").count("z") for shade in shades) == 16, "one matrix, at every look"
    assert len([name for name in texts(sentinel) if "attention" in name]) == len(MATRICES)
    for path in written:
        assert "prefers-color-scheme:dark" in path.read_text()
        assert not [e for e in ET.parse(path).iter() if e.tag in (f"{SVG}script", f"{SVG}image", f"{SVG}foreignObject")]


def test_of_a_run_that_has_just_begun_there_are_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    shutil.rmtree(run / "pretrain")
    shutil.rmtree(run / "anneal")
    assert write_pictures(run, tmp_path / "pictures") == []


def test_of_a_run_without_looks_and_scores_there_are_two(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for stage in ("pretrain", "anneal"):
        (run / stage / "events.jsonl").unlink()
        path = run / stage / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line | {"bits_per_byte": None}) + "\n" for line in lines))
    assert [path.name for path in write_pictures(run, tmp_path / "pictures")] == NAMES[:2]


def test_a_long_run_gives_small_files(tmp_path: Path) -> None:
    written = write_pictures(write_run(tmp_path / "run", steps=20_000, anneal=2_000), tmp_path / "pictures")
    assert all(path.stat().st_size < 150_000 for path in written)


def test_names_are_escaped(tmp_path: Path) -> None:
    written = write_pictures(write_run(tmp_path / "run", source="<b>&"), tmp_path / "pictures")
    assert "<b>&" in texts(written[2])


def test_points_stand_where_their_values_are() -> None:
    line = Line("x", 0, np.array([0.0, 5.0, 10.0]), np.array([0.0, np.nan, 1.0]))
    root = ET.fromstring(line_chart("t", [line], "steps", zero=True))
    (path,) = [e for e in root.iter() if e.get("class", "").startswith("line")]
    assert path.get("d", "").count("M") == 2, "a gap begins a new piece"
    dots = [(float(e.get("cx", 0)), float(e.get("cy", 0))) for e in root.iter() if e.get("class", "").startswith("dot")]
    assert dots[0] == (64.0, 300.0) and dots[1][0] == 740.0 and 52 <= dots[1][1] < 70


def test_a_fall_at_the_beginning_is_cut_off_and_said_to_be() -> None:
    steps = np.arange(1.0, 1001)
    falls = line_chart("Loss", [Line("x", 0, steps, 3 + 6 * np.exp(-steps / 5))], "steps")
    assert "Loss (first values cut off)" in falls
    assert "cut off" not in line_chart("Loss", [Line("x", 0, steps, 9 - steps / 200)], "steps")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.3, 3.1), (0.0, 48_220.0), (1e-5, 3e-4), (5.0, 5.0)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    assert all(len(format_tick(value)) <= 8 for value in found)
