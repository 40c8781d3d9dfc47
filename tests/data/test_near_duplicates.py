"""Near duplicates: estimates as theory has them, planted ones found, and a result that depends on the order of the
documents alone.
"""

import os
import random
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard.data import external_sort, near_duplicates
from shard.data.near_duplicates import (
    NO_BAND,
    Bands,
    NearDuplicate,
    band_hashes,
    choose_bands,
    find_near_duplicates,
    shingles,
    signatures,
)
from shard.data.words import word_hashes

BANDS = choose_bands()


def random_words(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [f"{rng.choice('abcdefgh')}{rng.randrange(5000)}" for _ in range(count)]


def plain_shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 5]) for i in range(max(len(words) - 4, min(1, len(words))))}


def plain_jaccard(a: str, b: str) -> float:
    ours, theirs = plain_shingles(a), plain_shingles(b)
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 0.0


def plain_near_duplicates(texts: Sequence[str], threshold: float) -> list[tuple[int, int, float]]:
    """Each document compared with every one that is kept before it."""
    kept: list[int] = []
    dropped = []
    for i, text in enumerate(texts):
        similar = ((j, plain_jaccard(text, texts[j])) for j in kept)
        first = next(((i, j, jaccard) for j, jaccard in similar if jaccard >= threshold), None)
        if first:
            dropped.append(first)
        else:
            kept.append(i)
    return dropped


def batches(hashes: np.ndarray, size: int = 100) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for i in range(0, len(hashes), size):
        yield np.arange(i, min(i + size, len(hashes)), dtype=np.uint64), hashes[i : i + size]


def find(texts: Sequence[str], folder: Path, **settings: object) -> list[NearDuplicate]:
    hashes = band_hashes(signatures(word_hashes(texts)), BANDS)
    found = find_near_duplicates(
        batches(hashes),
        lambda documents: [texts[i] for i in documents],
        folder,
        **settings,  # type: ignore[arg-type]
    )
    return list(found)


def edited(words: list[str], num_edits: int) -> str:
    """These words, some of them, far from each other, replaced: each takes 5 shingles."""
    words = words.copy()
    for i in range(num_edits):
        words[len(words) * i // num_edits + 6] = f"edit{i}"
    return " ".join(words)


# Signatures and bands


@pytest.mark.parametrize("num_words", [5, 20, 100, 1000])
def test_estimates_of_the_jaccard_similarity(num_words: int) -> None:
    """Over many pairs the share of equal places has the mean and the deviation of k permutations."""
    texts, true = [], []
    for seed in range(150):
        words = random_words(2 * num_words, seed)
        texts += [" ".join(words[: num_words + num_words // 2]), " ".join(words[num_words // 2 :])]
        true.append(plain_jaccard(*texts[-2:]))
    minima = signatures(word_hashes(texts), 200)
    errors = (minima[0::2] == minima[1::2]).mean(axis=1) - np.array(true)
    expected = np.sqrt(np.mean([j * (1 - j) / 200 for j in true]))
    assert abs(errors.mean()) < 4 * expected / np.sqrt(150)
    assert 0.8 * expected < errors.std() < 1.2 * expected


def test_signatures_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(random_words(count, count)) for count in (0, 1, 3, 4, 5, 6, 0, 500, 40)]
    whole = signatures(word_hashes(texts))
    assert np.array_equal(whole, np.concatenate([signatures(word_hashes([text])) for text in texts]))
    monkeypatch.setattr(near_duplicates, "_GROUP", 7)
    assert np.array_equal(whole, signatures(word_hashes(texts)))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=9), min_size=1, max_size=6))
def test_shingles_as_the_plain_twin(texts: list[list[str]]) -> None:
    """As many, and equal where those of the twin are."""
    ngrams = shingles(word_hashes([" ".join(words) for words in texts]))
    meaning: dict[int, tuple[str, ...]] = {}
    for i, words in enumerate(texts):
        plain = [tuple(words[j : j + 5]) for j in range(max(len(words) - 4, min(1, len(words))))]
        ours = ngrams.hashes[ngrams.offsets[i] : ngrams.offsets[i + 1]].tolist()
        assert len(ours) == len(plain)
        for hashed, shingle in zip(ours, plain, strict=True):
            assert meaning.setdefault(hashed, shingle) == shingle
    assert len(set(meaning.values())) == len(meaning)


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_bands_find_pairs_at_the_threshold(threshold: float) -> None:
    bands = choose_bands(threshold)
    assert bands.probability(threshold) >= 0.97
    assert Bands(72 // (bands.num_rows + 1), bands.num_rows + 1).probability(threshold) < 0.97
    assert bands.num_bands * bands.num_rows <= 72


def test_default_bands() -> None:
    assert Bands(num_bands=12, num_rows=6) == BANDS
    assert BANDS.probability(0.8) == pytest.approx(0.9740, abs=1e-4)
    assert BANDS.probability(0.2) < 0.001
    with pytest.raises(ValueError, match="3 permutations are too few"):
        choose_bands(0.3, 3)


def test_bands_are_equal_where_all_their_rows_are() -> None:
    rng = np.random.default_rng(3)
    first = rng.integers(0, 2**32, (50, 72), dtype=np.uint32)
    second = np.where(rng.random(first.shape) < 0.8, first, first + np.uint32(1))
    equal = (first == second).reshape(50, 12, 6).all(axis=2)
    assert np.array_equal(band_hashes(first, BANDS) == band_hashes(second, BANDS), equal)
    same = band_hashes(np.full((1, 72), 7, dtype=np.uint32), BANDS)
    assert len(np.unique(same)) == 12  # equal rows of two bands do not meet
    assert (band_hashes(signatures(word_hashes(["...", ""])), BANDS) == NO_BAND).all()


# Finding


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from("abcd"), max_size=14), max_size=25),
    st.sampled_from([0.3, 0.5, 0.8, 1.0]),
    st.sampled_from([1, 2, 3, 100]),
    st.sampled_from([2, 64]),
    st.integers(1, 40),
)
def test_as_the_plain_twin_where_all_are_candidates(
    words: list[list[str]], threshold: float, block_size: int, num_partitions: int, in_memory: int
) -> None:
    texts = [" ".join(part) for part in words]
    step = 1_000_003  # numbers with gaps: sets of them are in no order
    numbers = np.arange(len(texts), dtype=np.uint64) * np.uint64(step)
    hashes = np.full((len(texts), 1), 2**60 + 17, dtype=np.uint64)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_CHUNK", 4)
        patch.setattr(near_duplicates, "_PREFETCHED", 2)
        patch.setattr(near_duplicates, "_SET_BYTES", 8 * in_memory)
        patch.setattr(near_duplicates, "_SET_OVERHEAD", 0)
        found = find_near_duplicates(
            [(numbers[:7], hashes[:7]), (numbers[7:], hashes[7:])],
            lambda documents: [texts[i // step] for i in documents],
            Path(folder),
            threshold=threshold,
            num_partitions=num_partitions,
            block_size=block_size * step,
        )
        plain = plain_near_duplicates(texts, threshold)
        assert list(found) == [(i * step, j * step, jaccard) for i, j, jaccard in plain]
        assert list(Path(folder).iterdir()) == []


def test_planted_near_duplicates_are_found_and_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(5)
    originals, planted, true = [], [], []
    for seed in range(600):
        num_edits = rng.randrange(2, 9)
        jaccard = rng.uniform(0.8, 0.85)
        words = random_words(round(5 * num_edits * (1 + jaccard) / (1 - jaccard)) + 4, seed)
        originals.append(" ".join(words))
        planted.append(edited(words, num_edits))
        true.append(plain_jaccard(originals[-1], planted[-1]))
    clean = [" ".join(random_words(100, seed)) for seed in range(1000, 1500)]
    texts = [*originals, *clean, *planted]
    found = {duplicate.document: duplicate for duplicate in find(texts, tmp_path, block_size=256)}
    wanted = [i for i in range(600) if true[i] >= 0.8]
    assert len(wanted) >= 500
    assert max(true) < 0.86
    assert sum(1100 + i in found for i in wanted) >= 0.95 * len(wanted)
    for document, kept, jaccard in found.values():
        assert kept == document - 1100
        assert jaccard == true[kept] >= 0.8


def test_equal_documents_all_but_the_first_are_dropped(tmp_path: Path) -> None:
    """Each is compared once: so thousands take no time, and their texts are fetched once."""
    text = " ".join(random_words(50, 1))
    fetched: list[int] = []
    sizes: list[int] = []

    def texts_of(documents: list[int]) -> list[str]:
        fetched.extend(documents)
        sizes.append(len(documents))
        return [text.upper() if i % 2 else text for i in documents]

    hashes = np.repeat(band_hashes(signatures(word_hashes([text])), BANDS), 5000, axis=0)
    found = list(find_near_duplicates(batches(hashes), texts_of, tmp_path, block_size=1000))
    assert found == [(i, 0, 1.0) for i in range(1, 5000)]
    assert sorted(fetched) == list(range(5000))
    assert len(sizes) <= 5000 / 200
    assert max(sizes) <= 256


def test_only_a_document_that_is_kept_drops_another(tmp_path: Path) -> None:
    """a ~ b ~ c, but not a ~ c: b is dropped for a, and c stays."""
    words = random_words(54, 1)
    texts = [" ".join(words[:40]), " ".join(words[3:43]), " ".join(words[6:46])]
    assert (
        plain_jaccard(texts[0], texts[1]) == plain_jaccard(texts[1], texts[2]) > 0.8 > plain_jaccard(texts[0], texts[2])
    )
    assert [found[:2] for found in find(texts, tmp_path)] == [(1, 0)]


def test_the_first_of_several_that_are_similar_is_named(tmp_path: Path) -> None:
    """In the order of the numbers, not in that of a set of them, in which 8 comes before 7."""
    words = random_words(54, 1)
    texts = {7: " ".join(words[:40]), 8: " ".join(words[6:46]), 9: " ".join(words[3:43])}
    hashes = np.full((3, 1), 5, dtype=np.uint64)
    numbers = np.array(list(texts), dtype=np.uint64)
    found = find_near_duplicates([(numbers, hashes)], lambda documents: [texts[i] for i in documents], tmp_path)
    assert [duplicate[:2] for duplicate in found] == [(9, 7)]


def test_short_texts(tmp_path: Path) -> None:
    """Of fewer than five words: equal words or nothing. Without words: like no other."""
    texts = [
        "one",
        "ONE!",
        "one two",
        "",
        "...",
        "",
        "two",
        "one two three four",
        "one, two, three; four",
        "one two three",
    ]
    assert find(texts, tmp_path) == [(1, 0, 1.0), (8, 7, 1.0)]


def test_numbers_may_have_gaps(tmp_path: Path) -> None:
    text = " ".join(random_words(30, 3))
    hashes = band_hashes(signatures(word_hashes([text, text])), BANDS)
    numbers = np.array([5, 2**40], dtype=np.uint64)
    assert list(find_near_duplicates([(numbers, hashes)], lambda ids: [text] * len(ids), tmp_path)) == [(2**40, 5, 1.0)]
    assert list(find_near_duplicates([], lambda ids: [], tmp_path)) == []


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_near_duplicates import edited, find, random_words
texts = [edited(random_words(80, i % 40), 1 + i % 3) for i in range(120)]
print(find(texts, Path(sys.argv[2]), num_partitions=int(sys.argv[3]), block_size=int(sys.argv[4])))
"""


def test_the_same_in_every_process_and_however_the_work_is_cut(tmp_path: Path) -> None:
    outputs = set()
    for seed, num_partitions, block_size in (("1", "2", "7"), ("2", "64", "10000")):
        outputs.add(
            subprocess.check_output(
                [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path), num_partitions, block_size],
                env=os.environ | {"PYTHONHASHSEED": seed},
                text=True,
            )
        )
    (output,) = outputs
    assert output.count("NearDuplicate") > 30


def test_memory_does_not_grow_with_the_number_of_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One document in ten equals another, so that buckets are shared and decisions sent on."""
    monkeypatch.setattr(external_sort, "BUFFER_BYTES", 2**17)
    monkeypatch.setattr(external_sort, "PARTITION_BYTES", 2**17)
    monkeypatch.setattr(near_duplicates, "_SET_BYTES", 2**14)

    long = " ".join(map(str, range(100)))

    def peak(num_documents: int) -> int:
        def made() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for first in range(0, num_documents, 1000):
                documents = np.arange(first, first + 1000, dtype=np.uint64)
                content = np.where(
                    documents % np.uint64(10) == 0, documents // np.uint64(20), documents + np.uint64(2**40)
                )
                yield documents, near_duplicates.mix(content[:, None] * np.uint64(12) + np.arange(12, dtype=np.uint64))

        def texts_of(documents: list[int]) -> list[str]:
            return [f"document {i // 20} of the many that there are" + long for i in documents]

        tracemalloc.start()
        found = sum(1 for _ in find_near_duplicates(made(), texts_of, tmp_path, block_size=256))
        assert found == num_documents // 20
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    small, large = peak(2000), peak(16_000)
    assert large < 1.3 * small, (small, large)
