"""The tokenizer: deterministic, exact for every Unicode string, and cut as Qwen2 cuts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers

from shard.tokenizer import SEPARATOR, load_tokenizer, train_tokenizer

TEXTS = [
    "The cat sat on the mat, and the cat's mat wasn't the dog's. <|endoftext|> They'll say: it's the cat's!",
    "def area(radius):\n    return 3.14159 * radius ** 2\n\n\nprint(area(12345))\n",
    "Der Fuchs läuft über die Straße; le renard court où il veut. Русский текст, 日本語の文章。",
] * 3

HARD = [
    "",
    " ",
    "a\r\nb\r\n\r\nc\n \n\t\n",
    "tab\tand\x0bodd\x0c\x1cspaces\x85of\xa0every\u2003kind\u3000 ",
    "NUL \0 and \x7f and \ufeff",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 é e\u0301 ﬁ Å \u212b",
    "שלום עולם مرحبا بالعالم \u202eabc\u202c",
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|><|endoftext|> <|endoftext",
    "\ufffd",
    "\U0010ffff\ue000\u200b",
    "1234567890 ٣٤٥ Ⅷ ½ ²",
    "DON'T don't I'LL i'\u017f",
]

# As published: transformers, models/qwen2/tokenization_qwen2.py, PRETOKENIZE_REGEX.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 400)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """What the pre-tokenizer cuts a text into."""
    return [text[start:stop] for _, (start, stop) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def test_two_trainings_are_equal(tokenizer: Tokenizer) -> None:
    assert train_tokenizer(iter(TEXTS), 400).to_str() == tokenizer.to_str()


def test_another_process_with_one_thread_trains_the_same(tokenizer: Tokenizer) -> None:
    program = (
        "import json, sys; from shard.tokenizer import train_tokenizer; "
        "sys.stdout.write(json.dumps(train_tokenizer(json.load(sys.stdin), 400).to_str()))"
    )
    alone = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "5"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(TEXTS),
        env=os.environ | alone,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == tokenizer.to_str()


def test_the_order_of_the_vocabulary(tokenizer: Tokenizer) -> None:
    """The separator, the 256 bytes, then the merges; no other token is special."""
    assert tokenizer.token_to_id(SEPARATOR) == 0
    assert {tokenizer.id_to_token(i) for i in range(1, 257)} == set(pre_tokenizers.ByteLevel.alphabet())
    assert list(tokenizer.get_added_tokens_decoder()) == [0]
    assert tokenizer.get_added_tokens_decoder()[0].special
    assert sorted(tokenizer.get_vocab().values()) == list(range(400))


def test_fewer_tokens_come_out_of_little_text() -> None:
    assert train_tokenizer(["ab ab"], 400).get_vocab_size() == 258


@pytest.mark.parametrize("vocab_size", [0, 256, -1])
def test_a_vocabulary_without_room_for_the_bytes_is_refused(vocab_size: int) -> None:
    with pytest.raises(ValueError, match=r"vocab_size must be at least 257 .*, not -?\d+"):
        train_tokenizer(TEXTS, vocab_size)


def test_the_smallest_vocabulary_is_the_bytes() -> None:
    tokenizer = train_tokenizer(TEXTS, 257)
    assert len(tokenizer.encode("é<|endoftext|>").ids) == 2 + len(SEPARATOR)


@pytest.mark.parametrize("text", HARD, ids=ascii)
def test_hard_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert 0 not in ids


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back_and_is_never_the_separator(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert 0 not in ids


def test_nothing_is_added_to_a_prompt(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("").ids == []
    assert tokenizer.post_processor is None
    assert tokenizer.normalizer is None
    assert tokenizer.encode("a").ids == tokenizer.encode("a", add_special_tokens=False).ids


def test_the_separator_decodes_to_its_name(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([0], skip_special_tokens=False) == SEPARATOR
    assert tokenizer.decode([0]) == ""


def test_composed_and_decomposed_text_stay_different(tokenizer: Tokenizer) -> None:
    composed, decomposed = tokenizer.encode("\u00e9").ids, tokenizer.encode("e\u0301").ids
    assert composed != decomposed
    assert tokenizer.decode(decomposed) == "e\u0301"


def test_digits_are_one_by_one() -> None:
    tokenizer = train_tokenizer(["2024 2024 2024 " * 50], 400)
    assert tokenizer.encode("2024", add_special_tokens=False).tokens == ["2", "0", "2", "4"]
    assert not [token for token in tokenizer.get_vocab() if len(token) > 1 and any(c.isdigit() for c in token)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello world", ["Hello", " world"]),
        ("it's IT'S we'll", ["it", "'s", " IT", "'S", " we", "'ll"]),
        ("a  b   c", ["a", " ", " b", "  ", " c"]),
        ("x=12.5", ["x", "=", "1", "2", ".", "5"]),
        (" 42", [" ", "4", "2"]),
        ("end.\n\n  next", ["end", ".\n\n", " ", " next"]),
        ("(yes) \t\n no", ["(yes", ")", " \t\n", " no"]),
        ("日本語。", ["日本語", "。"]),
        ("\tname\t<b", ["\tname", "\t", "<b"]),
    ],
)
def test_cuts_worked_out_by_hand(tokenizer: Tokenizer, text: str, expected: list[str]) -> None:
    assert pieces(tokenizer, text) == expected


@settings(deadline=None)
@given(st.text(st.sampled_from("aS's1٣ \n\r\t\xa0.,<_é\u0301日🙂"), max_size=30))
def test_cuts_are_those_of_the_published_pattern(tokenizer: Tokenizer, text: str) -> None:
    """Matches the pattern as Qwen2's authors wrote it; the pieces leave nothing out."""
    published = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="removed", invert=True)
    assert pieces(tokenizer, text) == [piece for piece, _ in published.pre_tokenize_str(text)]
    assert "".join(pieces(tokenizer, text)) == text


def test_a_saved_tokenizer_loads_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    for loaded in (load_tokenizer(path), load_tokenizer(str(path))):
        assert loaded.to_str() == tokenizer.to_str()
        for text in [*TEXTS, *HARD]:
            assert loaded.encode(text).ids == tokenizer.encode(text).ids
            assert 0 not in loaded.encode(text).ids
