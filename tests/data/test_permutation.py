"""A permutation is a bijection, the same on every machine, and another one for another key."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard.data.permutation import permute

KEYS = st.integers(0, 2**64 - 1)


def whole(size: int, key: int) -> list[int]:
    return permute(np.arange(size, dtype=np.uint64), size, key).tolist()


@pytest.mark.parametrize("size", [*range(1, 201), 255, 256, 257, 1000, 4095, 4096, 4097, 65537, 100_003])
def test_every_number_appears_once(size: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size, dtype=np.uint64), size, size)), np.arange(size))


@settings(deadline=None)
@given(st.integers(1, 3000), KEYS)
def test_every_number_appears_once_under_any_key(size: int, key: int) -> None:
    assert sorted(whole(size, key)) == list(range(size))


@settings(deadline=None)
@given(st.integers(1, 2**62), KEYS, st.data())
def test_large_sizes_stay_inside_and_apart(size: int, key: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=50))
    permuted = permute(np.array(indices, dtype=np.uint64), size, key).tolist()
    assert len(set(permuted)) == len(indices)
    assert all(0 <= number < size for number in permuted)


@settings(deadline=None)
@given(st.integers(1, 500), KEYS, st.data())
def test_one_by_one_is_as_all_at_once(size: int, key: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    assert permute(np.array([index], dtype=np.uint64), size, key).tolist() == [whole(size, key)[index]]


@pytest.mark.parametrize(
    ("size", "key", "expected"),
    [
        (1, 0, [0]),
        (2, 1, [1, 0]),
        (10, 0, [7, 5, 1, 8, 6, 3, 4, 0]),
        (10, 1, [3, 9, 4, 0, 7, 8, 1, 2]),
        (16, 7, [15, 12, 9, 8, 14, 4, 3, 5]),
        (1000, 12345, [507, 166, 771, 938, 560, 807, 275, 668]),
        (
            1099511627776,
            18446744073709551615,
            [
                482647565895,
                786548061725,
                730717823327,
                868177557183,
                482522491955,
                955821428065,
                225418899467,
                581658521000,
            ],
        ),
    ],
)
def test_golden_values(size: int, key: int, expected: list[int]) -> None:
    """A run that was begun must find the same order for ever: these may not change."""
    indices = np.arange(len(expected), dtype=np.uint64)
    assert permute(indices, size, key).tolist() == expected


def test_keys_give_different_orders() -> None:
    assert len({tuple(whole(50, key)) for key in range(300)}) == 300


def test_looks_random() -> None:
    """Over many keys each number is as likely at each place (chi-square, 81 degrees of freedom)."""
    counts = np.zeros((10, 10))
    for key in range(3000):
        counts[np.arange(10), whole(10, key)] += 1
    assert ((counts - 300) ** 2 / 300).sum() < 140


def test_leaves_its_argument_alone_and_takes_none() -> None:
    indices = np.arange(5, dtype=np.uint64)
    permute(indices, 5, 1)
    assert indices.tolist() == [0, 1, 2, 3, 4]
    assert permute(np.array([], dtype=np.uint64), 5, 1).size == 0


@pytest.mark.parametrize(("indices", "size"), [([5], 5), ([0, 9], 3), ([2**63], 10), ([0], 0), ([], 0), ([], -1)])
def test_indices_outside_are_refused(indices: list[int], size: int) -> None:
    with pytest.raises(ValueError, match=rf"indices must lie in 0\.\.{size - 1}"):
        permute(np.array(indices, dtype=np.uint64), size, 1)


def test_negative_indices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"indices must lie in 0\.\.4"):
        permute(np.array([-1]), 5, 1)
