"""Long curves in few points: against a plain twin, and with nothing hidden."""

import math

import numpy as np
import pytest

from shard.report.history import Curves
from shard.report.thin import thin


def curves_of(values: np.ndarray) -> Curves:
    steps = np.arange(1.0, len(values) + 1)
    return Curves(steps, steps * 1000, steps / 2, {"x": values})


@pytest.mark.parametrize(("count", "most"), [(0, 10), (1, 10), (10, 10), (11, 10), (999, 100), (1000, 7), (5, 1)])
def test_equals_the_plain_twin(count: int, most: int) -> None:
    rng = np.random.default_rng(count)
    values = rng.normal(size=count)
    values[rng.random(count) < 0.3] = np.nan
    got = thin(curves_of(values), most)
    size = max(1, math.ceil(count / most))
    parts = [values[i : i + size] for i in range(0, count, size)]
    assert len(got.steps) == len(parts) <= most
    for i, part in enumerate(parts):
        known = [value for value in part.tolist() if not math.isnan(value)]
        curve = got.values["x"]
        if not known:
            assert all(math.isnan(column[i]) for column in (curve.mean, curve.low, curve.high))
            continue
        assert curve.mean[i] == pytest.approx(sum(known) / len(known))
        assert (curve.low[i], curve.high[i]) == (min(known), max(known))
        assert i * size + 1 <= got.steps[i] <= i * size + len(part)
        assert got.tokens[i] == got.steps[i] * 1000


def test_a_single_peak_in_a_long_run_is_kept() -> None:
    values = np.full(100_000, 3.0)
    values[77_777] = 42.0
    got = thin(curves_of(values), 2000)
    assert len(got.steps) == 2000 and got.bucket == 50
    assert got.values["x"].high.max() == 42.0
    assert abs(got.steps[int(got.values["x"].high.argmax())] - 77_778) <= 50


def test_short_runs_keep_every_step() -> None:
    values = np.array([1.0, np.nan, 3.0])
    got = thin(curves_of(values), 2000)
    assert got.bucket == 1
    for column in (got.values["x"].mean, got.values["x"].low, got.values["x"].high):
        np.testing.assert_array_equal(column, values)
