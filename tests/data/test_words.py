"""The words of texts as hashes: compared with a plain twin, and the same in every process."""

# Characters of many scripts are what is tested.
# ruff: noqa: RUF001

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shard.data import words as words_module
from shard.data.words import (
    LONGEST_WORD,
    NUM_CHARACTERS,
    UNSPACED,
    WordHashes,
    ngram_hashes,
    ngrams_at,
    window_hashes,
    word_hashes,
)

LONE = "[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED) + "]"
WORD = re.compile(rf"(?=\w){LONE}|(?:(?!{LONE})\w)+")
BITS = 2**64 - 1
ALPHABETS = (
    "ab AB1_ .,'\n\t-",
    "aé ÀÉß’“—\u00a0İıKſǅ",
    "мИр, Ёж σΣς",
    "中文。日本語カタカナー、x1ไทย 한국어",
    "𝔘𠀀😀 a\ud800",
)
TEXTS = st.lists(st.one_of(st.text(), *(st.text(st.sampled_from(alphabet)) for alphabet in ALPHABETS)), max_size=8)


def plain_words(text: str) -> list[bytes]:
    """The words of one text, by the rules at the top of words.py."""
    text = text.encode("utf-8", "replace").decode()
    letters = ((character, character.lower()) for character in text)
    small = "".join(low if len(low) == 1 and len(low.encode()) == len(high.encode()) else high for high, low in letters)
    words = [word.encode() for word in WORD.findall(small)]
    return [word[i : i + LONGEST_WORD] for word in words for i in range(0, len(word), LONGEST_WORD)]


def plain_mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & BITS
    x = (x ^ x >> 27) * 0x94D049BB133111EB & BITS
    return x ^ x >> 31


def plain_hash(word: bytes) -> int:
    hashed = int.from_bytes(word[:8], "little")
    for i in range(8, len(word), 8):
        hashed = plain_mix(hashed) ^ int.from_bytes(word[i : i + 8], "little")
    return plain_mix(hashed)


def plain_ngram(hashes: list[int]) -> int:
    total = 0
    for hashed in hashes:
        total = (total * 0x9E3779B97F4A7C15 + hashed) & BITS
    return total


def of_each(hashes: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(hashes, offsets[1:-1])] if len(offsets) > 1 else []


@settings(deadline=None, max_examples=400)
@given(TEXTS, st.sampled_from([1, 20, 2**18]))
@example(["a" * 64, "a" * 65, "b" * 200 + " c", "é" * 40], 2**18)
@example(["", "...", "word"], 2**18)
def test_as_the_plain_twin(texts: list[str], chunk_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words_module, "CHUNK_BYTES", chunk_bytes)
        words = word_hashes(texts)
    assert words.hashes.dtype == np.uint64
    assert words.offsets.dtype == np.int64
    assert of_each(words.hashes, words.offsets) == [[plain_hash(word) for word in plain_words(text)] for text in texts]


def test_every_character_is_as_in_the_plain_twin() -> None:
    texts = [f"a{chr(i)}b" for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    texts = texts[: NUM_CHARACTERS + 0x800 : 7] + texts[NUM_CHARACTERS::997] + texts[:0x3000]
    words = word_hashes(texts)
    assert of_each(words.hashes, words.offsets) == [[plain_hash(word) for word in plain_words(text)] for text in texts]
    assert not any(chr(i).isalnum() for i in range(NUM_CHARACTERS, 0x110000))  # else the table is too short


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("The quick, brown fox", "the QUICK brown\tfox!"),
        ("It’s “quoted” — twice…", "it's 'quoted' - twice..."),
        ("Éclair, MÜNCHEN", "éclair münchen"),
        ("ВОЙНА и мир", "Война и Мир"),
        ("中文，没有空格", "中文 没有空格。"),
    ],
)
def test_case_punctuation_and_white_space_make_no_difference(text: str, same: str) -> None:
    words = word_hashes([text, same])
    ours, theirs = of_each(words.hashes, words.offsets)
    assert ours == theirs
    assert ours


def test_unspaced_scripts_give_a_word_a_character() -> None:
    assert np.diff(word_hashes(["中文没有空格", "日本語のテキスト", "한국어 문장"]).offsets).tolist() == [6, 8, 2]


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), max_size=6), st.integers(1, 20))
def test_ngrams_as_the_plain_twin(lengths: list[int], n: int) -> None:
    words = word_hashes([" ".join(f"w{i}x{j}" for j in range(length)) for i, length in enumerate(lengths)])
    ngrams = ngram_hashes(words, n)
    plain = [
        [plain_ngram(part[i : i + n]) for i in range(len(part) - n + 1)]
        for part in of_each(words.hashes, words.offsets)
    ]
    assert of_each(ngrams.hashes, ngrams.offsets) == plain
    everything = words.hashes.tolist()
    windows = [plain_ngram(everything[i : i + n]) for i in range(len(everything) - n + 1)]
    assert window_hashes(words.hashes, n).tolist() == windows
    starts = np.arange(len(windows))
    assert ngrams_at(words, starts, n).tolist() == windows


def test_no_texts() -> None:
    words = word_hashes([])
    assert (words.hashes.size, words.offsets.tolist()) == (0, [0])
    assert ngram_hashes(words, 5).offsets.tolist() == [0]


def test_hashes_are_apart() -> None:
    """Short words that differ in one byte, and runs of them, do not collide, in any half of the hash."""
    words = word_hashes([" ".join(f"{i:x}" for i in range(100_000))])
    for hashes in (words.hashes, ngram_hashes(words, 13).hashes):
        assert len(np.unique(hashes)) == len(hashes)
        for half in (hashes >> np.uint64(32), hashes & np.uint64(2**32 - 1)):
            assert len(half) - len(np.unique(half)) < 10  # 1.2 are expected


GOLDEN = """[2038845530092869647]"""


def test_the_same_in_every_process() -> None:
    """The hashes of a run are compared with those of later runs: they may not change."""
    code = (
        "from shard.data.words import *\n"
        "words = word_hashes(['Hello, World: Größe 中文 ' + 'x' * 70])\n"
        "print(ngram_hashes(words, 7).hashes.tolist())"
    )
    for seed in ("1", "2"):
        output = subprocess.check_output(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, text=True
        )
        assert output.strip() == GOLDEN


def test_word_hashes_are_frozen() -> None:
    with pytest.raises(AttributeError):
        WordHashes(np.zeros(0, np.uint64), np.zeros(1, np.int64)).hashes = None  # type: ignore[misc]
