"""What is shown while a stage trains: the live line of a terminal, its sparkline, and plain lines elsewhere."""

import io
import random

import pytest
import torch
from rich.console import Console
from tiny_stage import CONFIG, SETTINGS

from shard.console import Reporter
from shard.training.progress import BLOCKS, SPARK_CELLS, Progress, Sparkline, fit
from shard.training.settings import StageSettings


def show(terminal: bool, width: int = 120, steps: int = 5, encoding: str = "utf-8") -> str:
    """What is written of some steps."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    reporter = Reporter()
    reporter.console = Console(file=file, force_terminal=terminal, width=width, soft_wrap=True, highlight=False)
    settings = StageSettings(**SETTINGS)  # type: ignore[arg-type]
    progress = Progress("pretrain", CONFIG, settings, torch.device("cpu"), reporter)
    for step in range(1, steps + 1):
        reporter._shown_at = -1e9  # time enough has passed since the last one
        timing = {"tokens_per_second": 12345.6, "flops_per_second": 3.2e9, "memory_bytes": 1_200_000_000}
        record = {"step": step, "loss": 6.0 - step, "timing": timing}
        if step == 3:
            record["bits_per_byte"] = {"[a]": 1.25, "b": 1.75}
        progress.time_of_step(0.0)
        progress.show(record, 20)
    progress.end()
    file.seek(0)
    return file.read()


def test_a_terminal_has_one_live_line_with_everything() -> None:
    text = show(terminal=True, width=140)
    last = text[text.rindex("pretrain 5/20") :].split("\r")[0]
    for part in ("25%", "loss 1.0000", "1.500 bits/byte", "[a] 1.250, b 1.750", "12,346 tokens/s", "1.2 GB", "left"):
        assert part in last, part
    assert set(BLOCKS) & set(last)
    assert "pretrain 3/20  loss 3.0000  bits per byte: [a] 1.250  b 1.750" in text, "the line that stays"


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100])
def test_a_narrow_terminal_has_the_parts_that_fit_on_one_line(width: int) -> None:
    text = show(terminal=True, width=width)
    last = text[text.rindex("pretrain 5/20") :].split("\r")[0].split("\n")[0].rstrip()
    assert "loss" in last
    assert len(last) <= width
    assert ("left" in last) == (width >= 40)
    assert ("tokens/s" in last) == (width >= 80)


def test_an_encoding_without_blocks_has_none() -> None:
    assert not set(BLOCKS) & set(show(terminal=True, encoding="ascii"))


def test_elsewhere_lines_are_as_they_were() -> None:
    lines = show(terminal=False).splitlines()
    assert lines[2] == "pretrain 3/20  loss 3.0000  bits per byte: [a] 1.250  b 1.750"
    assert lines[0].startswith("pretrain 1/20  loss 5.0000  12,346 tokens/s  3 GFLOP/s  1.2 GB  ")
    assert len(lines) == 5 and not set(BLOCKS) & set("".join(lines))


def test_parts_of_the_highest_rank_go_first() -> None:
    parts = [(0, "pretrain"), (2, "loss"), (1, "left"), (3, "")]
    assert fit(parts, 80) == "pretrain  loss  left"
    assert fit(parts, 15) == "pretrain  left"
    assert fit(parts, 3) == "pretrain"


@pytest.mark.parametrize("count", [0, 1, 2, 5, 31, 32, 33, 100, 1000, 1025])
def test_a_sparkline_of_any_number_of_values_is_short_and_falls(count: int) -> None:
    spark = Sparkline()
    for i in range(count):
        spark.add(10 / (i + 1))
    text = str(spark)
    assert min(count, SPARK_CELLS // 2) <= len(text) <= SPARK_CELLS
    levels = [BLOCKS.index(character) for character in text]
    assert levels == sorted(levels, reverse=True)
    if count > 1:
        assert levels[0] == 7 and levels[-1] == 0


def test_a_sparkline_shows_the_mean_of_each_part() -> None:
    rng = random.Random(0)
    values = [rng.random() + (5 if 256 <= i < 384 else 0) for i in range(512)]
    spark = Sparkline()
    for value in values:
        spark.add(value)
    levels = [BLOCKS.index(character) for character in str(spark)]
    assert len(levels) == 16
    assert all((level == 7) == (8 <= i < 12) for i, level in enumerate(levels))


def test_a_sparkline_of_equal_values_is_flat() -> None:
    spark = Sparkline()
    for _ in range(10):
        spark.add(3.0)
    assert str(spark) == BLOCKS[0] * 10
