"""The form of a task, and the statistics beside each number."""

import math

import numpy as np
import pytest

from shard.evaluation.tasks.form import (
    Measured,
    NotMeasured,
    Score,
    Task,
    check_fits,
    draw,
    hash_items,
    mean,
    ratio,
    run_task,
    share,
)


def test_a_share_with_its_binomial_error():
    hits = [True] * 30 + [False] * 70
    assert share("acc", hits, 0.25) == Score("acc", 0.3, pytest.approx(math.sqrt(0.3 * 0.7 / 100)), 0.25, 100)
    draws = np.random.default_rng(0).random((20000, 100)) < 0.3
    assert share("acc", hits, 0.25).standard_error == pytest.approx(draws.mean(axis=1).std(), rel=0.03)
    assert share("acc", [False] * 5, 0.25).standard_error == 0.0


def test_a_mean_with_its_error():
    values = [1.0, 4.0, 2.0, 9.0]
    assert mean("rank", values, 5.5) == Score("rank", 4.0, pytest.approx(np.std(values, ddof=1) / 2), 5.5, 4)
    assert mean("rank", [3.0], 5.5).standard_error == 0.0


def test_a_ratio_and_its_bootstrap():
    rng = np.random.default_rng(1)
    bottom = rng.integers(50, 100, 200).astype(float)
    top = bottom * rng.normal(2.0, 0.5, 200)
    got = ratio("bits", top, bottom, 8.0)
    assert got.value == pytest.approx(top.sum() / bottom.sum())
    residuals = top - got.value * bottom
    expected = math.sqrt((residuals**2).mean() / 200) / bottom.mean()  # the delta method
    assert got.standard_error == pytest.approx(expected, rel=0.1)
    assert ratio("bits", top, bottom, 8.0) == got, "the seed is fixed"


def test_numbers_are_drawn_from_the_key_alone():
    assert [draw("a", 0, 999), draw("b", 0, 999)] == [draw("a", 0, 999), draw("b", 0, 999)]
    assert {draw(f"key {i}", 3, 7) for i in range(200)} == {3, 4, 5, 6, 7}
    # 8 bytes of BLAKE2b, little-endian: what any other implementation would draw.
    assert draw("passkey 0 0", 10000, 99999) == 91727


def test_a_hash_depends_on_every_item_and_their_order():
    assert hash_items([{"b": 1, "a": "é"}]) == hash_items([{"a": "é", "b": 1}])
    assert len({hash_items(items) for items in ([1, 2], [2, 1], ["1", 2], [1])}) == 4


def test_what_is_written_of_a_task(subject):
    done = Task("t", 3, lambda _, limit: Measured("abc", (Score("acc", 1 / 3, 0.1234567, 0.25, limit or 9),)))
    assert run_task(done, subject, None) == {
        "version": 3,
        "sha256": "abc",
        "results": [{"metric": "acc", "value": 0.33333, "standard_error": 0.12346, "chance": 0.25, "items": 9}],
    }
    assert run_task(done, subject, 4)["results"][0]["items"] == 4
    too_long = Task("t", 1, lambda subject, _: check_fits(601, subject))
    reason = "its longest item takes 601 tokens, the context is 600"
    assert run_task(too_long, subject, None) == {"version": 1, "not_measured": reason}
    check_fits(600, subject)
    with pytest.raises(NotMeasured):
        check_fits(601, subject)
