"""The sample that the tokenizer is trained on: bounded, by weight, recorded, and the same in every run."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from shard.data import tokenizer_sample
from shard.data.documents import DOCUMENTS, DROPPED, LEDGER, ON_HELDOUT, ON_TRAIN
from shard.data.tokenizer_sample import (
    MEMORY_FLOOR,
    distinct_words,
    predict_memory,
    sample_shares,
    train_on_sample,
    training_sizes,
)
from shard.files import write_json

NUM_WORDS = 100_000
SIZES = st.fixed_dictionaries({name: st.integers(0, 10**7) for name in "abc"})
WEIGHTS = st.fixed_dictionaries({name: st.sampled_from([0.0, 0.1, 1.0, 3.5]) for name in "abc"})


def write_source(folder: Path, texts: list[str]) -> None:
    """Two units, with documents on every side: those that are held out or dropped are not for the tokenizer."""
    for number, part in enumerate((texts[: len(texts) // 3], texts[len(texts) // 3 :])):
        others = ["never seen: held out", "never seen: dropped"]
        path = write_parquet(folder / DOCUMENTS / f"{number:05d}.parquet", [others[0], *part, others[1]])
        np.save(path.with_suffix(".npy"), np.array([ON_HELDOUT, *[ON_TRAIN] * len(part), DROPPED], np.uint8))
    listed = {f"{DOCUMENTS}/{number:05d}.{end}": "" for number in range(2) for end in ("parquet", "npy")}
    write_json(folder / LEDGER, {"bytes": {"train": sum(len(text.encode()) for text in texts)}, "sha256": listed})


def words(name: str, count: int) -> list[str]:
    return [f"{name} numéro {i}: the quick brown fox jumps over {i * i} dogs" for i in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_source(tmp_path / "large", words("large", 1000))
    write_source(tmp_path / "small", words("small", 50))
    return tmp_path


def train(folder: Path, *, sample_bytes: int = 20_000, seed: int = 3, small: float = 1.0) -> tuple[dict[str, Any], str]:
    """The record of the sample, and the tokenizer."""
    path = folder / "tokenizer.json"
    shares = sample_shares({"large": 1.0, "small": small}, training_sizes(folder, ["large", "small"]), sample_bytes)
    record, peak = train_on_sample(folder, shares, 290, seed, path)
    assert peak >= 0
    return record, path.read_text(encoding="utf-8")


# The shares


@settings(deadline=None)
@given(WEIGHTS, SIZES, st.integers(1000, 10**8))
def test_shares_fill_the_budget_or_take_all(weights: dict[str, float], sizes: dict[str, int], budget: int) -> None:
    shares = sample_shares(weights, sizes, budget)
    assert set(shares) == set(weights)
    assert all(0 <= share <= 1 + 1e-9 for share in shares.values())
    assert all(shares[name] == 0 for name, weight in weights.items() if weight == 0)
    taken = sum(shares[name] * sizes[name] for name in weights)
    available = sum(sizes[name] for name, weight in weights.items() if weight > 0)
    assert taken == pytest.approx(min(budget, available), abs=3)


def test_shares_by_hand() -> None:
    assert sample_shares({"a": 3, "b": 1}, {"a": 1000, "b": 1000}, 400) == {"a": 0.3, "b": 0.1}


def test_a_small_source_is_read_whole_and_the_others_take_over() -> None:
    shares = sample_shares({"a": 1, "b": 1, "c": 2}, {"a": 100, "b": 10_000, "c": 10_000}, 4000)
    assert shares == pytest.approx({"a": 1.0, "b": 0.13, "c": 0.26})


def test_more_budget_than_text_takes_all_of_it() -> None:
    assert sample_shares({"a": 1, "b": 5}, {"a": 30, "b": 70}, 10**9) == {"a": 1.0, "b": 1.0}


def test_a_source_without_text_or_weight_gives_nothing() -> None:
    assert sample_shares({"a": 1, "b": 1, "c": 0}, {"a": 0, "b": 70, "c": 70}, 35) == {"a": 0.0, "b": 0.5, "c": 0.0}


# The training


def test_the_record_says_what_was_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = tokenizer_sample.train_tokenizer

    def spy(texts: Any, vocab_size: int) -> Tokenizer:
        seen.extend(texts)
        return real(iter(seen), vocab_size)

    monkeypatch.setattr(tokenizer_sample, "train_tokenizer", spy)
    record, tokenizer = train(folder)
    assert record["bytes"] == sum(len(text.encode()) for text in seen)
    assert not any("never seen" in text for text in seen)
    for name in ("large", "small"):
        own = [text for text in seen if text.startswith(name)]
        assert record["sources"][name]["documents"] == len(own) > 0
        assert record["sources"][name]["bytes"] == sum(len(text.encode()) for text in own)
    assert record["sha256"] == hashlib.sha256("".join(text + "\0" for text in seen).encode()).hexdigest()
    assert record["vocab_size"] == 290 == Tokenizer.from_str(tokenizer).get_vocab_size()
    assert Tokenizer.from_str(tokenizer).to_str() == real(seen, 290).to_str()


def test_the_sample_has_about_the_size_asked_for(folder: Path) -> None:
    record, _ = train(folder)
    assert record["bytes"] == pytest.approx(20_000, rel=0.15)
    assert record["sources"]["small"] == {
        "share": 1.0,
        "documents": 50,
        "bytes": sum(len(text.encode()) for text in words("small", 50)),
    }
    assert 0.2 < record["sources"]["large"]["share"] < 0.4


def test_a_source_without_weight_is_not_read(folder: Path) -> None:
    record, tokenizer = train(folder, small=0.0)
    assert record["sources"]["small"] == {"share": 0.0, "documents": 0, "bytes": 0}
    assert "Ġsmall" not in tokenizer


def test_two_trainings_are_equal_and_another_seed_is_not(folder: Path) -> None:
    first = train(folder)
    assert train(folder) == first
    assert train(folder, seed=4)[0]["sha256"] != first[0]["sha256"]


# The memory


def test_distinct_words_of_text_that_is_read_whole() -> None:
    assert distinct_words(["a b c", "b, c d", ""], 11) == 5


def test_distinct_words_grow_in_proportion_where_every_word_is_new() -> None:
    """A million characters are read of the hundred million asked for; the exponent is 1 there."""
    texts = (" ".join(f"w{i:07d}" for i in range(start, start + 1000)) for start in range(0, 10**7, 1000))
    assert distinct_words(texts, 1e8) == pytest.approx(1e8 / 9, rel=0.01)


def test_distinct_words_do_not_grow_where_none_is_new() -> None:
    assert distinct_words(("the same few words again" for _ in range(10**6)), 1e9) == 5


def test_prediction_grows_with_the_share_and_counts_every_source(folder: Path) -> None:
    sizes = training_sizes(folder, ["large", "small"])
    whole = predict_memory(folder, {"large": 1.0, "small": 1.0}, sizes)
    assert whole > predict_memory(folder, {"large": 1.0, "small": 0.0}, sizes) > MEMORY_FLOOR
    assert predict_memory(folder, {"large": 0.0, "small": 0.0}, sizes) == MEMORY_FLOOR


MEASURE = """
import json, sys
from pathlib import Path
from shard.data.tokenizer_sample import predict_memory, train_on_sample, training_sizes
folder = Path(sys.argv[1])
predicted = predict_memory(folder, {"text": 1.0}, training_sizes(folder, ["text"]))
record, peak = train_on_sample(folder, {"text": 1.0}, 2000, 0, folder / "tokenizer.json")
print(json.dumps(record | {"predicted": predicted, "peak": peak}))
"""


def test_no_more_memory_is_taken_than_was_predicted(tmp_path: Path) -> None:
    """In a process of its own, since the peak of this one was reached long ago; and started by a shell, since Linux
    counts the memory of the process that starts another towards the other's peak. New words only are the worst text.
    """
    letters = hashlib.shake_256(b"words").hexdigest(NUM_WORDS * 4).translate(str.maketrans("0123456789", "ghijklmnop"))
    new_words = [letters[i : i + 8] for i in range(0, len(letters), 8)]
    write_source(tmp_path / "text", [" ".join(new_words[i : i + 500]) for i in range(0, len(new_words), 500)])
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    record = json.loads(done.stdout)
    assert record["sources"]["text"]["documents"] == NUM_WORDS / 500
    assert 10_000_000 < record["peak"] <= record["predicted"]
    # The floor alone would pass for a small sample: the part that grows has to hold too.
    assert record["peak"] - 30_000_000 <= record["predicted"] - MEMORY_FLOOR
