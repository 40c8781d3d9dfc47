"""Batches: a pure function of the index, cut from the stream as it is."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shard.data.loader import BatchLoader
from shard.data.shards import TokenStream, token_dtype
from shard.errors import ShardError
from shard.files import sha256_of, write_json

LENGTH, ROWS = 8, 6
MIX = {"a": 0.5, "b": 0.3, "c": 0.2}


def write_tokens(folder: Path, start: int, count: int, shard: int = 37) -> None:
    """A source whose tokens are start, start + 1, ...: each says where it stands."""
    folder.mkdir(parents=True)
    tokens = np.arange(start, start + count).astype(token_dtype(60000))
    entries = []
    for i in range(0, count, shard):
        path = folder / f"train-{i // shard:05d}.bin"
        path.write_bytes(tokens[i : i + shard].tobytes())
        entries.append({"file": path.name, "tokens": len(tokens[i : i + shard]), "sha256": sha256_of(path)})
    write_json(folder / "tokens.json", {"dtype": "<u2", "tokens": count, "shards": entries})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, start, count in (("a", 0, 1001), ("b", 20000, 333), ("c", 40000, 81)):
        write_tokens(tmp_path / name, start, count)
    return tmp_path


@pytest.fixture
def loader(folder: Path) -> Iterator[BatchLoader]:
    loader = BatchLoader(folder, MIX, LENGTH, LENGTH * ROWS, block=10, seed=1)
    yield loader
    loader.close()


def test_rows_are_slices_of_the_streams(loader: BatchLoader, folder: Path) -> None:
    streams = {20000 * i: TokenStream.open(folder / name) for i, name in enumerate("abc")}
    for index in range(40):
        batch = loader.batch(index)
        assert batch.shape == (ROWS, LENGTH + 1) and batch.dtype == np.int64
        for row in batch:
            base = int(row[0]) // 20000 * 20000
            start = int(row[0]) - base
            assert start % LENGTH == 0
            assert np.array_equal(row, streams[base].read(start, start + LENGTH + 1))


def test_targets_are_the_inputs_shifted_by_one(loader: BatchLoader) -> None:
    batch = loader.batch(3)
    assert np.array_equal(batch[:, 1:], batch[:, :-1] + 1)


def test_the_last_sequence_has_a_target_for_each_input(tmp_path: Path) -> None:
    """81 tokens are ten sequences of eight and one target more; 80 are nine. (Blocks of one: epochs do not overlap.)"""
    for count, expected in ((80, 9), (81, 10), (82, 10)):
        write_tokens(tmp_path / str(count), 0, count)
        loader = BatchLoader(tmp_path, {str(count): 1}, LENGTH, LENGTH, block=1, seed=0)
        starts = {int(loader.batch(i)[0, 0]) for i in range(expected)}
        loader.close()
        assert starts == {LENGTH * i for i in range(expected)}


def test_the_mix_is_exact_over_blocks(loader: BatchLoader) -> None:
    rows = np.concatenate([loader.batch(i) for i in range(5)])  # 30 rows, three blocks
    assert np.bincount(rows[:, 0] // 20000).tolist() == [15, 9, 6]


def test_a_batch_is_the_same_after_reopening_and_in_any_order(loader: BatchLoader, folder: Path) -> None:
    forward = [loader.batch(i) for i in range(12)]
    other = BatchLoader(folder, MIX, LENGTH, LENGTH * ROWS, block=10, seed=1)
    for i in (11, 0, 5, 5, 3, 10):
        assert np.array_equal(other.batch(i), forward[i])
    other.close()
    assert len({batch.tobytes() for batch in forward}) == 12


def test_the_rows_do_not_depend_on_the_size_of_the_batch(loader: BatchLoader, folder: Path) -> None:
    small = BatchLoader(folder, MIX, LENGTH, LENGTH * 2, block=10, seed=1)
    assert np.array_equal(np.concatenate([small.batch(i) for i in range(3, 6)]), loader.batch(1))
    small.close()


@pytest.mark.parametrize("indices", [range(8), [0, 1, 5, 6, 2, 3, 3, 4, 0], [7, 6, 5], [4, 4, 4]])
def test_reading_ahead_changes_nothing(loader: BatchLoader, indices: list[int]) -> None:
    for index in indices:
        assert np.array_equal(loader.fetch(index), loader.batch(index))


def test_the_next_batch_is_read_ahead(loader: BatchLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    batch = loader.batch
    monkeypatch.setattr(loader, "batch", lambda index: (read.append(index), batch(index))[1])
    for index in (0, 1, 2, 9):
        loader.fetch(index)
    loader.close()
    # Each once, the one that nobody asked for at most; the jump to 9 is read at once.
    assert [i for i in read if i not in (3, 10)] == [0, 1, 2, 9]


def test_an_error_while_reading_ahead_is_raised_when_it_is_asked_for(
    loader: BatchLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = loader.batch

    def fail(index: int) -> object:
        if index == 1:
            raise OSError("the disk is gone")
        return batch(index)

    monkeypatch.setattr(loader, "batch", fail)
    loader.fetch(0)
    with pytest.raises(OSError, match="the disk is gone"):
        loader.fetch(1)


def error_of(folder: Path, mix: dict[str, float], rows: int, block: int = 10) -> str:
    with pytest.raises(ShardError) as caught:
        BatchLoader(folder, mix, LENGTH, LENGTH * rows, block, seed=1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_corpus_smaller_than_one_batch(folder: Path) -> None:
    message = error_of(folder, {"c": 1}, rows=11)
    assert message.startswith("the corpus is smaller than one batch: 81 tokens make 10 sequences of 8")
    assert "add text, or lower tokens_per_step" in message


def test_a_source_smaller_than_one_sequence(folder: Path) -> None:
    write_tokens(folder / "tiny", 0, LENGTH)
    assert error_of(folder, {"a": 1, "tiny": 1}, rows=2).startswith("mix.tiny: the source is smaller than one sequence")


def test_a_weight_that_no_block_can_hold(folder: Path) -> None:
    assert error_of(folder, {"a": 1, "b": 0.001}, rows=2).startswith("mix.b: the weight 0.001")


def test_a_source_without_weight_need_not_be_there(folder: Path) -> None:
    loader = BatchLoader(folder, {"a": 1, "gone": 0}, LENGTH, LENGTH, 10, seed=1)
    assert set(loader.streams) == {"a"}
    loader.close()


def test_a_source_without_shards(folder: Path) -> None:
    (folder / "empty").mkdir()
    assert "run `shard data` again" in error_of(folder, {"empty": 1}, rows=1)


def test_a_token_that_the_vocabulary_lacks(folder: Path) -> None:
    """Said of its source, here: in the model it would be an index out of range."""
    known = BatchLoader(folder, {"a": 1}, LENGTH, LENGTH, 10, seed=1, vocab_size=1001)
    for index in range(250):
        known.batch(index)
    known.close()
    lacking = BatchLoader(folder, {"a": 1}, LENGTH, LENGTH, 10, seed=1, vocab_size=1000)
    with pytest.raises(ShardError, match=r"a is damaged: it holds the token 1000, .* 1000: run `shard verify"):
        for index in range(250):
            lacking.fetch(index)
    lacking.close()
