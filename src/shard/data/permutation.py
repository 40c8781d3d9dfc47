"""A pseudo-random permutation of 0..n-1 that is computed, not stored: any element in O(1) memory.

A Feistel network permutes the smallest square domain that holds n; a value that falls outside 0..n-1 is sent through
again until it falls inside (cycle walking: at most 4 rounds on average, since the domain is less than 4 n).
Source for the idea: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002).
"""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.uint64]

_ROUNDS = 6


def _mix(x: Indices) -> Indices:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(indices: Indices, size: int, key: int) -> Indices:
    """Where the permutation of 0..size-1 named by `key` (below 2^64) sends each index."""
    if size < 1 or (indices.size and (int(indices.max()) >= size or int(indices.min()) < 0)):
        raise ValueError(f"indices must lie in 0..{size - 1}")
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        keys = _mix(np.uint64(key) + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        result = indices.astype(np.uint64)
        outside = np.ones(result.shape, dtype=bool)
        while outside.any():
            left, right = result[outside] >> half, result[outside] & mask
            for round_key in keys:
                left, right = right, left ^ (_mix(right ^ round_key) & mask)
            result[outside] = (left << half) | right
            outside = result >= np.uint64(size)
    return result
