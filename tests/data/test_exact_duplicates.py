"""Exact duplicates, and the sort on disk that finds them: complete, the first one kept, in bounded memory."""

import hashlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard.data import external_sort
from shard.data.exact_duplicates import exact_hashes, find_exact_duplicates
from shard.data.external_sort import ExternalSort, RecordFiles

RECORD = np.dtype([("a", "<u8"), ("b", "<u8")])


def in_batches(hashes: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for i in range(0, len(hashes), size):
        yield np.arange(i, min(i + size, len(hashes)), dtype=np.uint64), hashes[i : i + size]


@settings(deadline=None)
@given(st.lists(st.text(max_size=2), max_size=20))
def test_hashes_are_those_of_blake2b(texts: list[str]) -> None:
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    assert exact_hashes(texts).astype("<u8").tobytes() == digests


def test_a_lone_surrogate_is_a_text_of_its_own() -> None:
    assert len(np.unique(exact_hashes(["\ud800", "\ud801", "?"]), axis=0)) == 3


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(["a", "b", "A", "a ", "", "c"]), max_size=30), st.sampled_from([2, 64]))
def test_as_the_plain_twin(texts: list[str], num_partitions: int) -> None:
    plain = [(i, texts.index(text)) for i, text in enumerate(texts) if texts.index(text) < i]
    with TemporaryDirectory() as folder:
        found = list(find_exact_duplicates(in_batches(exact_hashes(texts), 4), Path(folder), num_partitions))
        assert list(Path(folder).iterdir()) == []
    assert sorted(found) == plain


def test_the_order_does_not_depend_on_the_partitions_nor_on_the_batches(tmp_path: Path) -> None:
    texts = [str(i % 700) for i in range(2000)]
    hashes = exact_hashes(texts)
    documents = np.arange(2000, dtype=np.uint64)
    found = list(find_exact_duplicates(in_batches(hashes, 64), tmp_path, 2))
    assert sorted(found) == [(i, i % 700) for i in range(700, 2000)]
    assert found == list(find_exact_duplicates(in_batches(hashes, 999), tmp_path, 256))
    assert found == list(find_exact_duplicates([(documents[::-1], hashes[::-1])], tmp_path))


def test_both_halves_of_the_hash_count(tmp_path: Path) -> None:
    hashes = np.array([[1, 1], [1, 2], [2, 1], [1, 1]], dtype=np.uint64)
    assert list(find_exact_duplicates(in_batches(hashes, 4), tmp_path)) == [(3, 0)]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1) | st.integers(0, 3), st.integers(0, 9)), max_size=60),
    st.sampled_from([2, 4, 64]),
    st.sampled_from([16, 100, 2**20]),
)
def test_sort_as_the_plain_twin(rows: list[tuple[int, int]], num_partitions: int, most_bytes: int) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(external_sort, "PARTITION_BYTES", most_bytes)
        patch.setattr(external_sort, "BUFFER_BYTES", 256)
        by_key = ExternalSort(Path(folder, "sort"), RECORD, num_partitions)
        for i in range(0, len(rows), 7):
            by_key.append(np.array(rows[i : i + 7], dtype=RECORD))
        pieces = [piece.tolist() for piece in by_key.read()]
        assert not [path for path in Path(folder).rglob("*") if path.is_file()]
    assert [row for piece in pieces for row in piece] == sorted(rows)
    firsts = [{a for a, _ in piece} for piece in pieces]
    assert sum(map(len, firsts)) == len(set().union(*firsts))
    for piece, first in zip(pieces, firsts, strict=True):
        assert len(first) == 1 or 16 * len(piece) <= most_bytes


def test_record_files_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_sort, "BUFFER_BYTES", 4096)
    rng = np.random.default_rng(1)
    records = rng.integers(0, 2**64, 4000, dtype=np.uint64).view(RECORD)
    numbers = rng.integers(0, 5, 2000, dtype=np.uint64)
    files = RecordFiles(tmp_path / "files", RECORD)
    for i in range(0, 2000, 300):
        files.append(numbers[i : i + 300], records[i : i + 300])
    assert files.numbers() == [0, 1, 2, 3, 4]
    for number in files.numbers():
        assert np.array_equal(np.concatenate(list(files.take(number, 17))), records[numbers == number])
        assert [len(piece) for piece in files.take(number)] == [0]


@pytest.mark.parametrize("num_partitions", [0, 1, 3, 48])
def test_partitions_are_a_power_of_two(tmp_path: Path, num_partitions: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        ExternalSort(tmp_path / "sort", RECORD, num_partitions)


def test_memory_does_not_grow_with_the_number_of_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_sort, "BUFFER_BYTES", 2**18)
    monkeypatch.setattr(external_sort, "PARTITION_BYTES", 2**18)

    def peak(num_documents: int) -> int:
        def made() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            rng = np.random.default_rng(1)
            for first in range(0, num_documents, 2000):
                hashes = rng.integers(0, 2**64, (2000, 2), dtype=np.uint64)
                yield np.arange(first, first + 2000, dtype=np.uint64), hashes

        tracemalloc.start()
        assert not list(find_exact_duplicates(made(), tmp_path))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    small, large = peak(50_000), peak(400_000)
    assert large < 1.3 * small, (small, large)
