"""`batch(index)`: the tokens of one step, a pure function of the recipe, the seed and the index.

It does not depend on the micro-batch or on what was read before; training never touches the network.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shard.data.mixture import Mixture
from shard.data.shards import TokenStream
from shard.errors import ShardError


class BatchLoader:
    """Batches of one stage. `folder` holds a folder of token shards for each source of `mix`; with `vocab_size`, a
    token beyond it is found here, where the source is known.
    """

    def __init__(
        self,
        folder: Path,
        mix: Mapping[str, float],
        sequence_length: int,
        tokens_per_step: int,
        block: int,
        seed: int,
        *,
        vocab_size: int | None = None,
    ) -> None:
        self.folder, self.vocab_size = folder, vocab_size
        self.sequence_length = sequence_length
        self.num_rows = tokens_per_step // sequence_length
        self.streams = {name: TokenStream.open(folder / name) for name, weight in mix.items() if weight > 0}
        # A sequence needs one token more than it has inputs: the target of the last.
        num_sequences = {name: (stream.num_tokens - 1) // sequence_length for name, stream in self.streams.items()}
        total = sum(num_sequences.values())
        if total < self.num_rows:
            num_tokens = sum(stream.num_tokens for stream in self.streams.values())
            raise ShardError(
                f"the corpus is smaller than one batch: {num_tokens} tokens make {total} sequences of "
                f"{sequence_length}, and a step takes {self.num_rows}: add text, or lower tokens_per_step"
            )
        try:
            self.mixture = Mixture(num_sequences, {n: w for n, w in mix.items() if w > 0}, block, seed)
        except ValueError as error:
            raise ShardError(str(error)) from None
        self._ahead: tuple[int, Future[NDArray[np.int64]]] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")

    def locate(self, index: int) -> list[tuple[str, int]]:
        """(source, index of the sequence in it) of each row of step `index`."""
        first = index * self.num_rows
        return self.mixture.locate(np.arange(first, first + self.num_rows, dtype=np.uint64))

    def batch(self, index: int) -> NDArray[np.int64]:
        """The sequences [num_rows, sequence_length + 1] of step `index`: inputs, and targets one to the right.
        ShardError for a token that the vocabulary lacks.
        """
        length = self.sequence_length
        rows = []
        for name, i in self.locate(index):
            row = self.streams[name].read(i * length, (i + 1) * length + 1)
            if self.vocab_size is not None and row.max() >= self.vocab_size:
                raise ShardError(
                    f"{self.folder / name} is damaged: it holds the token {row.max()}, and the vocabulary has "
                    f"{self.vocab_size}: run `shard verify {self.folder}` to find the file, then `shard data` again"
                )
            rows.append(row)
        return np.stack(rows)

    def fetch(self, index: int) -> NDArray[np.int64]:
        """batch(index), read ahead by one thread when the indices follow one another."""
        ahead, self._ahead = self._ahead, None
        result = ahead[1].result() if ahead is not None and ahead[0] == index else self.batch(index)
        self._ahead = (index + 1, self._thread.submit(self.batch, index + 1))
        return result

    def close(self) -> None:
        """End the reading thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)
