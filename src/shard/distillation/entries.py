"""Entries: the sparse targets of tokens that follow one another, as they lie on the disk; read without torch.

Shape suffixes: C tokens; M entries of all tokens together.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Entries(NamedTuple):
    """Targets of some tokens one after the other: `num` ids of each [C], then all ids and their values [M].

    Values are counts of draws, or log-probabilities in nats; `entropy` [C] is the teacher's own, in nats.
    """

    num: NDArray[Any]
    ids: NDArray[Any]
    values: NDArray[Any]
    entropy: NDArray[np.float16]


def join_entries(parts: list[Entries]) -> Entries:
    """Entries of tokens that follow one another."""
    return Entries(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def pad_entries(entries: Entries, width: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """ids and values [C, width] of every token; beyond its own, id 0 with the value 0."""
    num_C: NDArray[np.int64] = entries.num.astype(np.int64)
    rows = np.repeat(np.arange(len(num_C)), num_C)
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(num_C) - num_C, num_C)
    ids, values = np.zeros((len(num_C), width), np.int64), np.zeros((len(num_C), width), np.float32)
    ids[rows, columns], values[rows, columns] = entries.ids, entries.values
    return ids, values
