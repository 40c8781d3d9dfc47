"""Greedy continuations in batches against one prompt after the other, without a cache."""

import random

import pytest

from shard.evaluation import greedy
from shard.evaluation.greedy import continue_greedily
from shard.inference.sampling import generate_ids

LENGTHS = [1, 9, 4, 33, 90, 95]


def prompts(lengths: list[int]) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randint(1, 66) for _ in range(length)] for length in lengths]


def plain(model, prompt: list[int], max_tokens: int, stop_id: int | None = None) -> list[int]:
    return list(generate_ids(model, prompt, max_tokens, stop_id=stop_id, use_cache=False))


@pytest.mark.parametrize("rows", [1, 64])
def test_equals_one_by_one(tiny_model, monkeypatch, rows):
    monkeypatch.setattr(greedy, "_BATCH_ROWS", rows)
    some = prompts(LENGTHS)
    got = continue_greedily(tiny_model, some, 10)
    assert got == [plain(tiny_model, prompt, 10) for prompt in some]
    assert [len(new) for new in got] == [min(10, 96 - length) for length in LENGTHS], "to the end of the context"


def test_a_row_stops_alone(tiny_model):
    some = prompts([5, 6, 7, 8, 9, 10])
    free = continue_greedily(tiny_model, some, 10)
    stop_id = free[2][4]
    got = continue_greedily(tiny_model, some, 10, stop_id=stop_id)
    assert got == [plain(tiny_model, prompt, 10, stop_id) for prompt in some]
    assert len(got[2]) <= 4 and any(len(new) == 10 for new in got)


def test_a_row_is_finished_when_its_caller_says_so(tiny_model):
    some = prompts([5, 40, 7])
    free = continue_greedily(tiny_model, some, 12)
    got = continue_greedily(tiny_model, some, 12, is_finished=lambda new: len(new) == 3)
    assert got == [new[:3] for new in free]


def test_batches_hold_similar_lengths():
    batches = greedy._batches([100, 1, 33, 34, 2, 65])
    assert batches == [[1, 4, 2], [3, 5], [0]]
    assert [len(batch) for batch in greedy._batches([5] * 130)] == [64, 64, 2]
    assert greedy._batches([]) == []
