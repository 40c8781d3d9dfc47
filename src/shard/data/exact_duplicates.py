"""Documents whose texts are equal byte for byte, over any number of documents: the first one is kept."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shard.data.external_sort import ExternalSort
from shard.data.words import Hashes

_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("document", "<u8")])


class ExactDuplicate(NamedTuple):
    """A document to drop, and the earlier one that is kept."""

    document: int
    kept: int


def exact_hashes(texts: Sequence[str]) -> Hashes:
    """BLAKE2b of 128 bits of the UTF-8 of each text, as it is: [num_texts, 2]."""
    digests = b"".join(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts
    )
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2)


def find_exact_duplicates(
    batches: Iterable[tuple[NDArray[np.uint64], Hashes]], folder: Path, num_partitions: int = 64
) -> Iterator[ExactDuplicate]:
    """Every document whose hash an earlier one has, ordered by hash. A batch is (numbers of documents [n], their
    exact_hashes [n, 2]); of the documents with one hash, that of the least number is kept.

    Memory does not grow with the number of documents. Disk, below `folder`: 24 bytes for each document.
    """
    with tempfile.TemporaryDirectory(prefix=".exact-duplicates-", suffix=".tmp", dir=folder) as scratch:
        by_hash = ExternalSort(Path(scratch, "hashes"), _RECORD, num_partitions)
        for documents, hashes in batches:
            records = np.empty(len(documents), dtype=_RECORD)
            records["high"], records["low"], records["document"] = hashes[:, 0], hashes[:, 1], documents
            by_hash.append(records)
        for records in by_hash.read():
            is_first = np.ones(len(records), dtype=bool)
            is_first[1:] = (records["high"][1:] != records["high"][:-1]) | (records["low"][1:] != records["low"][:-1])
            kept = records["document"][is_first][np.cumsum(is_first) - 1]
            dropped = records["document"][~is_first]
            yield from map(ExactDuplicate, dropped.tolist(), kept[~is_first].tolist())
