"""Which sequence of which source stands at place n of a stage: a pure function, exact in every block.

A block is `block` sequences. Its number of sequences of each source follows the weights by largest remainder, and
their order within the block is a permutation of its own. A source gives its sequences in an order that is a
permutation of its own in each epoch, so that none is seen twice within an epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shard.data.permutation import Indices, permute
from shard.provenance import fingerprint


def block_counts(weights: Mapping[str, float], block: int) -> dict[str, int]:
    """Sequences of each source in a block: shares of the weights, rounded by largest remainder, summing to `block`."""
    total = sum(weights.values())
    exact = {name: block * weight / total for name, weight in weights.items()}
    counts = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in by_remainder[: block - sum(counts.values())]:
        counts[name] += 1
    return counts


@dataclass(frozen=True)
class Mixture:
    """The order of a stage's sequences. `num_sequences` holds, by source, how many there are; seed names the order."""

    num_sequences: Mapping[str, int]
    weights: Mapping[str, float]
    block: int
    seed: int

    def __post_init__(self) -> None:
        for name, count in block_counts(self.weights, self.block).items():
            if self.weights[name] > 0 and count == 0:
                raise ValueError(
                    f"mix.{name}: the weight {self.weights[name]} is less than one sequence in a block of "
                    f"{self.block}: raise it, or data.mixture_block"
                )
            if count > 0 and self.num_sequences.get(name, 0) < 1:
                raise ValueError(f"mix.{name}: the source is smaller than one sequence: give it more text")

    def _key(self, *parts: int | str) -> int:
        return int(fingerprint(self.seed, *parts), 16)

    def locate(self, places: Indices) -> list[tuple[str, int]]:
        """(source, index of the sequence in it) for each place n of the stage."""
        counts = block_counts(self.weights, self.block)
        names = [name for name, count in counts.items() if count]
        ends = np.cumsum([counts[name] for name in names])
        blocks, slots = np.divmod(places.astype(np.uint64), np.uint64(self.block))
        for block in np.unique(blocks).tolist():
            here = blocks == block
            slots[here] = permute(slots[here], self.block, self._key("block", block))
        which = np.searchsorted(ends, slots.astype(np.int64), side="right")
        sequences = np.zeros(len(places), dtype=np.uint64)
        for i in np.unique(which).tolist():
            name, size = names[i], np.uint64(self.num_sequences[names[i]])
            of_source = which == i
            # How many sequences of this source stand before each one in the stage.
            numbers = blocks[of_source] * np.uint64(counts[name]) + slots[of_source] - np.uint64(ends[i] - counts[name])
            epochs, indices = np.divmod(numbers, size)
            for epoch in np.unique(epochs).tolist():
                in_epoch = epochs == epoch
                indices[in_epoch] = permute(indices[in_epoch], int(size), self._key("epoch", name, epoch))
            sequences[of_source] = indices
        return [(names[i], index) for i, index in zip(which.tolist(), sequences.tolist(), strict=True)]
