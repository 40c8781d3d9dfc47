"""Documents that are nearly equal to an earlier one: MinHash and locality-sensitive hashing find candidates, the
exact Jaccard similarity of their sets of word 5-grams decides.

A document is dropped if and only if it is a near duplicate of an earlier document that is kept. So the order of the
documents decides, not chance, nor how the work was cut up; and a cluster of thousands costs one comparison for each
of its documents, not one for each pair.

Sources: Broder, "On the resemblance and containment of documents" (1997), for MinHash; Indyk and Motwani (1998) for
the bands; Zeh, "I/O-efficient algorithms" (2002), for time-forward processing, by which a decision travels on disk
to the documents that wait for it.

Plain k permutations in numpy: on long documents rensa 0.5 (its full sketch, RMinHash) takes half the time, on short
ones two to three times as much, and hashing the words takes more than either; its fast sketch (rho) samples positions
and found 1 in 50 of the pairs at a similarity of 0.8.
"""

import tempfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shard.data.external_sort import ExternalSort, RecordFiles, Records
from shard.data.words import Hashes, NgramHashes, WordHashes, mix, ngram_hashes, ngrams_at, word_hashes

THRESHOLD = 0.8
NUM_PERMUTATIONS = 72
SHINGLE_WORDS = 5
LEAST_PROBABILITY = 0.97
NO_BAND = 0  # of a document without words: it is like no other
TextsOf = Callable[[list[int]], Sequence[str]]

_GROUP = 2**16  # shingles of the texts whose minima are taken at once: they stay in the cache
_CHUNK = 256  # documents whose texts are fetched at once
_PREFETCHED = 16  # candidates of a document that are fetched before it is their turn
_SET_BYTES = 2**26  # of the shingle sets in memory,
_SET_OVERHEAD = 256  # and of each, about, besides its hashes
_LAST = 2**64 - 1
_MEMBER = np.dtype([("bucket", "<u8"), ("document", "<u8")])
_LINK = np.dtype([("document", "<u8"), ("bucket", "<u8"), ("next", "<u8")])


@dataclass(frozen=True, slots=True)
class Bands:
    """How a signature is cut: two documents are candidates where all rows of at least one band agree."""

    num_bands: int
    num_rows: int

    def probability(self, jaccard: float) -> float:
        """That two documents of this Jaccard similarity are candidates."""
        return float(1 - (1 - jaccard**self.num_rows) ** self.num_bands)


class NearDuplicate(NamedTuple):
    """A document to drop, the first earlier one that is kept and that it nearly equals, and their similarity."""

    document: int
    kept: int
    jaccard: float


def choose_bands(threshold: float = THRESHOLD, num_permutations: int = NUM_PERMUTATIONS) -> Bands:
    """The most rows, so the fewest candidates in vain, with which two documents at the threshold are candidates with
    a probability of at least 0.97. ValueError where so few permutations do not allow it.
    """
    for num_rows in range(num_permutations, 0, -1):
        bands = Bands(num_permutations // num_rows, num_rows)
        if bands.probability(threshold) >= LEAST_PROBABILITY:
            return bands
    raise ValueError(f"{num_permutations} permutations are too few for a threshold of {threshold}")


def shingles(words: WordHashes) -> NgramHashes:
    """The hashes of the 5-grams of each text; of a text of one to four words, the hash of all of them."""
    ngrams = ngram_hashes(words, SHINGLE_WORDS)
    lengths = np.diff(words.offsets)
    counts = np.maximum(lengths - (SHINGLE_WORDS - 1), np.minimum(lengths, 1))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    hashes = np.empty(offsets[-1], dtype=np.uint64)
    is_whole = np.zeros(len(hashes), dtype=bool)
    for length in range(1, SHINGLE_WORDS):
        texts = np.flatnonzero(lengths == length)
        is_whole[offsets[texts]] = True
        hashes[offsets[texts]] = ngrams_at(words, words.offsets[texts], length)
    hashes[~is_whole] = ngrams.hashes
    return NgramHashes(hashes, offsets)


def signatures(words: WordHashes, num_permutations: int = NUM_PERMUTATIONS) -> NDArray[np.uint32]:
    """The MinHash signature of the shingles of each text: [num_texts, num_permutations]. Two texts agree at each
    place with a probability of their Jaccard similarity. All ones for a text without words.

    A permutation is a product with an odd number modulo 2**32: enough, since what it permutes are hashes already.
    """
    ngrams = shingles(words)
    num_texts = len(ngrams.offsets) - 1
    minima = np.full((num_permutations, num_texts), 2**32 - 1, dtype=np.uint32)
    factors = (mix(np.arange(1, num_permutations + 1, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32) | 1
    first = 0
    while first < num_texts:
        last = int(np.searchsorted(ngrams.offsets, ngrams.offsets[first] + _GROUP, "right")) - 1
        last = min(max(last, first + 1), num_texts)
        offsets = ngrams.offsets[first : last + 1]
        hashes = mix(ngrams.hashes[offsets[0] : offsets[-1]])
        values = (hashes >> np.uint64(32)).astype(np.uint32)
        has_words = np.flatnonzero(np.diff(offsets))
        if len(has_words):
            starts = offsets[has_words] - offsets[0]
            product = np.empty_like(values)
            for i, factor in enumerate(factors):
                np.multiply(values, factor, out=product)
                minima[i, first + has_words] = np.minimum.reduceat(product, starts)
        first = last
    return minima.T


def band_hashes(signatures: NDArray[np.uint32], bands: Bands) -> Hashes:
    """The hash of each band of each signature, another one for equal rows of another band: [num_texts, num_bands].
    NO_BAND for a text without words.
    """
    rows = signatures[:, : bands.num_bands * bands.num_rows].reshape(-1, bands.num_bands, bands.num_rows)
    hashes = np.broadcast_to(np.arange(bands.num_bands, dtype=np.uint64), rows.shape[:2])
    for i in range(bands.num_rows):
        hashes = mix(hashes ^ rows[:, :, i]) + np.uint64(i)
    hashes = np.maximum(hashes, np.uint64(1))
    hashes[(signatures == 2**32 - 1).all(axis=1)] = NO_BAND
    return hashes


def find_near_duplicates(
    batches: Iterable[tuple[NDArray[np.uint64], Hashes]],
    texts_of: TextsOf,
    folder: Path,
    *,
    threshold: float = THRESHOLD,
    num_partitions: int = 64,
    block_size: int = 2**14,
) -> Iterator[NearDuplicate]:
    """Every document that is to be dropped, in the order of the documents.

    A batch is (numbers of documents [n], their band_hashes [n, num_bands]); a number comes once, and numbers order
    the documents. `texts_of` gives the texts of some documents: only of candidates, mostly ascending.

    Memory does not grow with the number of documents: that of a sort, of the shared buckets of `block_size`
    documents with what is kept of each, of 256 texts and of 64 MiB of shingle sets. Disk, below `folder`: 16 bytes
    for each band of each document, and at the end up to 24 for each that is shared.
    """
    with tempfile.TemporaryDirectory(prefix=".near-duplicates-", suffix=".tmp", dir=folder) as scratch:
        by_bucket = ExternalSort(Path(scratch, "buckets"), _MEMBER, num_partitions)
        for documents, hashes in batches:
            members = np.empty(hashes.size, dtype=_MEMBER)
            members["bucket"], members["document"] = hashes.ravel(), np.repeat(documents, hashes.shape[1])
            by_bucket.append(members[members["bucket"] != NO_BAND])
        blocks = RecordFiles(Path(scratch, "blocks"), _LINK)
        for members in by_bucket.read():
            links = _link(members)
            blocks.append(links["document"] // np.uint64(block_size), links)
        yield from _decide(blocks, Path(scratch, "kept"), _ShingleSets(texts_of), threshold, block_size)


def _link(members: Records) -> Records:
    """The members of buckets of two and more, each with the next document of its bucket (_LAST: there is none)."""
    shared = np.zeros(len(members) + 1, dtype=bool)  # with the one before
    shared[1:-1] = members["bucket"][1:] == members["bucket"][:-1]
    links = np.empty(len(members), dtype=_LINK)
    links["document"], links["bucket"] = members["document"], members["bucket"]
    links["next"] = np.where(shared[1:], np.append(members["document"][1:], np.uint64(_LAST)), np.uint64(_LAST))
    return links[shared[1:] | shared[:-1]]


def _decide(
    blocks: RecordFiles, folder: Path, sets: "_ShingleSets", threshold: float, block_size: int
) -> Iterator[NearDuplicate]:
    """Decide the documents in order, block by block. The last document of a bucket in a block sends what is kept of
    the bucket to the block of its next document.
    """
    messages = RecordFiles(folder, _MEMBER)
    for block in blocks.numbers():
        (links,) = blocks.take(block)
        kept: defaultdict[int, list[int]] = defaultdict(list)  # of each bucket, ascending
        for message in messages.take(block):
            for bucket, document in message.tolist():
                kept[bucket].append(document)
        links.sort(order=["document", "bucket"])
        documents, starts = np.unique(links["document"], return_index=True)
        buckets = [part.tolist() for part in np.split(links["bucket"], starts[1:])]
        numbered = list(zip(documents.tolist(), buckets, strict=True))
        for i in range(0, len(numbered), _CHUNK):
            chunk = numbered[i : i + _CHUNK]
            sets.load(_wanted(chunk, kept))
            for document, its_buckets in chunk:
                candidates = sorted(set().union(*(kept[bucket] for bucket in its_buckets)))
                found = sets.first_similar(document, candidates, threshold)
                if found:
                    yield found
                else:
                    for bucket in its_buckets:
                        kept[bucket].append(document)
        leaving = links[(links["next"] != _LAST) & (links["next"] // np.uint64(block_size) != block)]
        for _, bucket, following in leaving.tolist():
            message = np.empty(len(kept[bucket]), dtype=_MEMBER)
            message["bucket"], message["document"] = bucket, kept[bucket]
            messages.append(np.full(len(message), following // block_size, dtype=np.uint64), message)


def _wanted(chunk: list[tuple[int, list[int]]], kept: defaultdict[int, list[int]]) -> list[int]:
    """The documents that comparing this chunk will need, or most of them: to be fetched at once."""
    num_members = Counter(bucket for _, buckets in chunk for bucket in buckets)
    wanted: set[int] = set()
    for document, buckets in chunk:
        candidates = sorted(set().union(*(kept.get(bucket, ()) for bucket in buckets)))
        if candidates or any(num_members[bucket] > 1 for bucket in buckets):
            wanted.update([document, *candidates[:_PREFETCHED]])
    return sorted(wanted)


class _ShingleSets:
    """The sets of shingles of documents, those used last in memory."""

    def __init__(self, texts_of: TextsOf) -> None:
        self._texts_of = texts_of
        self._sets: OrderedDict[int, Hashes] = OrderedDict()
        self._num_bytes = 0

    def load(self, documents: list[int]) -> None:
        """Fetch the texts of those documents whose sets are not in memory."""
        missing = [document for document in documents if document not in self._sets]
        for i in range(0, len(missing), _CHUNK):
            batch = missing[i : i + _CHUNK]
            ngrams = shingles(word_hashes(self._texts_of(batch)))
            for document, ours in zip(batch, np.split(ngrams.hashes, ngrams.offsets[1:-1]), strict=True):
                self._sets[document] = np.unique(ours)
                self._num_bytes += self._sets[document].nbytes + _SET_OVERHEAD
            while self._num_bytes > _SET_BYTES and len(self._sets) > 1:
                self._num_bytes -= self._sets.popitem(last=False)[1].nbytes + _SET_OVERHEAD

    def first_similar(self, document: int, candidates: list[int], threshold: float) -> NearDuplicate | None:
        """The first of the candidates whose Jaccard similarity with the document is at least the threshold."""
        for i in range(0, len(candidates), _PREFETCHED):
            self.load([document, *candidates[i : i + _PREFETCHED]])
            for candidate in candidates[i : i + _PREFETCHED]:
                jaccard = _jaccard(self._get(document), self._get(candidate))
                if jaccard >= threshold:
                    return NearDuplicate(document, candidate, jaccard)
        return None

    def _get(self, document: int) -> Hashes:
        self.load([document])
        self._sets.move_to_end(document)
        return self._sets[document]


def _jaccard(a: Hashes, b: Hashes) -> float:
    """The Jaccard similarity of two sets, each sorted and without repetitions."""
    both = np.sort(np.concatenate([a, b]))
    num_common = int(np.count_nonzero(both[1:] == both[:-1]))
    num_all = len(both) - num_common
    return num_common / num_all if num_all else 0.0
