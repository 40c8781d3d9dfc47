"""The mix of sources: exact in every block, nothing twice within an epoch, a pure function of the place."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shard.data.mixture import Mixture, block_counts

WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.001, 1000), min_size=1)
BLOCKS = st.integers(1, 300)


def places(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.uint64)


@pytest.fixture
def mixture() -> Mixture:
    return Mixture({"a": 11, "b": 5, "c": 300}, {"a": 0.5, "b": 0.2, "c": 0.3}, block=20, seed=4)


@settings(deadline=None)
@given(WEIGHTS, BLOCKS)
def test_counts_sum_to_the_block_and_are_right_to_one(weights: dict[str, float], block: int) -> None:
    counts = block_counts(weights, block)
    total = sum(weights.values())
    assert sum(counts.values()) == block
    for name, weight in weights.items():
        assert abs(counts[name] - block * weight / total) < 1


@pytest.mark.parametrize(
    ("weights", "block", "expected"),
    [
        ({"a": 0.7, "b": 0.2, "c": 0.1}, 10, {"a": 7, "b": 2, "c": 1}),
        ({"a": 1, "b": 1, "c": 1}, 10, {"a": 4, "b": 3, "c": 3}),
        ({"c": 1, "b": 1, "a": 1}, 10, {"a": 4, "b": 3, "c": 3}),
        ({"a": 45, "b": 35, "c": 20}, 3, {"a": 1, "b": 1, "c": 1}),
        ({"a": 1, "b": 0}, 7, {"a": 7, "b": 0}),
    ],
)
def test_counts_by_hand(weights: dict[str, float], block: int, expected: dict[str, int]) -> None:
    assert block_counts(weights, block) == expected


@settings(max_examples=50, deadline=None)
@given(WEIGHTS, st.integers(6, 40), st.integers(0, 10**6), st.integers(0, 50))
def test_every_block_has_its_exact_counts(weights: dict[str, float], block: int, seed: int, number: int) -> None:
    counts = block_counts(weights, block)
    assume(min(counts.values()) > 0)
    mixture = Mixture(dict.fromkeys(weights, 17), weights, block, seed)
    located = mixture.locate(places(number * block, (number + 1) * block))
    assert Counter(name for name, _ in located) == counts


def test_no_sequence_is_seen_twice_within_an_epoch(mixture: Mixture) -> None:
    located = mixture.locate(places(0, 20 * 55))  # 550 of a, 220 of b, 330 of c
    for name, size in mixture.num_sequences.items():
        indices = [index for source, index in located if source == name]
        assert set(indices) <= set(range(size))
        seen = Counter(indices)
        assert max(seen.values()) - min(seen.get(i, 0) for i in range(size)) <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(2, 8))
def test_every_epoch_of_a_source_is_a_permutation(seed: int, size: int, block: int) -> None:
    """Within a block the order is shuffled, so whole blocks that hold whole epochs are looked at."""
    located = Mixture({"a": size}, {"a": 1.0}, block, seed).locate(places(0, 2 * size * block))
    assert Counter(index for _, index in located) == dict.fromkeys(range(size), 2 * block)


def test_epochs_and_blocks_have_orders_of_their_own() -> None:
    mixture = Mixture({"a": 20, "b": 20}, {"a": 1, "b": 1}, block=40, seed=0)
    blocks = [mixture.locate(places(40 * i, 40 * (i + 1))) for i in range(6)]
    assert len({tuple(name for name, _ in block) for block in blocks}) == 6
    assert len({tuple(index for name, index in block if name == "a") for block in blocks}) == 6
    first = blocks[0]
    assert [i for name, i in first if name == "a"] != [i for name, i in first if name == "b"]


def test_seeds_give_different_orders() -> None:
    orders = {tuple(Mixture({"a": 50}, {"a": 1}, 50, seed).locate(places(0, 50))) for seed in range(20)}
    assert len(orders) == 20


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(60)), st.integers(1, 60))
def test_a_place_is_the_same_in_any_order_and_grouping(order: list[int], cut: int) -> None:
    mixture = Mixture({"a": 11, "b": 5}, {"a": 2, "b": 1}, block=13, seed=9)
    straight = mixture.locate(places(0, 60))
    shuffled = np.array(order, dtype=np.uint64)
    again = mixture.locate(shuffled[:cut]) + mixture.locate(shuffled[cut:])
    assert again == [straight[place] for place in order]


def test_golden_places(mixture: Mixture) -> None:
    """A run that was begun must find the same order for ever: these may not change."""
    assert mixture.locate(places(0, 6)) == [("c", 125), ("a", 4), ("a", 0), ("c", 295), ("a", 7), ("c", 188)]
    assert mixture.locate(places(10**12, 10**12 + 3)) == [("c", 128), ("a", 4), ("b", 0)]


def test_a_source_without_weight_is_never_read() -> None:
    mixture = Mixture({"a": 5}, {"a": 1, "b": 0}, block=10, seed=0)
    assert {name for name, _ in mixture.locate(places(0, 40))} == {"a"}


def test_a_weight_below_one_sequence_in_a_block_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"mix\.b: the weight 0\.001 .* block of 100: raise it, or data\.mixture_block"
    ):
        Mixture({"a": 5, "b": 5}, {"a": 1, "b": 0.001}, block=100, seed=0)
    Mixture({"a": 5, "b": 5}, {"a": 1, "b": 0.001}, block=2000, seed=0)


@pytest.mark.parametrize("num_sequences", [{"a": 5}, {"a": 5, "b": 0}, {"a": 5, "b": -1}])
def test_a_source_below_one_sequence_is_refused(num_sequences: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"mix\.b: the source is smaller than one sequence"):
        Mixture(num_sequences, {"a": 1, "b": 1}, block=10, seed=0)
