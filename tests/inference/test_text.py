"""Text that streams whole, and ends before a stop string however that was cut into tokens."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from shard.inference.text import stream_text
from shard.tokenizer import train_tokenizer


@cache
def tokenizer() -> Tokenizer:
    """A byte-level tokenizer of few merges, so that most characters beyond ASCII are several tokens."""
    return train_tokenizer(["the theme of the thesis, naïve café 東京 東京"] * 4, 280)


@given(ids=st.lists(st.integers(0, 279), max_size=30), num_prompt=st.integers(0, 10))
def test_pieces_join_to_the_decoded_ids(ids, num_prompt):
    """For any ids, halves of characters and separators included."""
    ids = [i for i in ids if i < tokenizer().get_vocab_size()]
    pieces = list(stream_text(tokenizer(), ids[:num_prompt], iter(ids[num_prompt:])))
    assert "".join(pieces) == tokenizer().decode(ids)
    assert all(pieces), "an empty piece says nothing"


@given(text=st.text(max_size=20), num_prompt=st.integers(0, 10))
def test_no_piece_holds_half_a_character(text, num_prompt):
    ids = tokenizer().encode(text).ids
    pieces = list(stream_text(tokenizer(), ids[:num_prompt], iter(ids[num_prompt:])))
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_of_several_tokens_waits_for_its_last():
    ids = tokenizer().encode("a🦀b").ids
    assert len(ids) == 6
    assert list(stream_text(tokenizer(), ids[:1], iter(ids[1:]))) == ["a", "🦀", "b"]


def test_a_piece_is_shown_before_the_next_token_is_computed():
    """Else the reader would always be one token behind."""
    asked = []

    def tokens():
        for token in tokenizer().encode("xyz").ids:
            asked.append(token)
            yield token

    pieces = stream_text(tokenizer(), tokenizer().encode("w").ids, tokens())
    assert next(pieces) == "w"
    assert asked == []
    assert next(pieces) == "x"
    assert len(asked) == 1


# Stop strings


def cut(text: str, stops: list[str]) -> str:
    """The plain twin: character by character, the text before the first stop string that is complete."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@given(
    text=st.text(alphabet="ab東", max_size=30),
    stops=st.lists(st.text(alphabet="ab東", min_size=1, max_size=4), max_size=3),
)
def test_a_text_ends_before_its_stop_string(text: str, stops: list[str]) -> None:
    ids = tokenizer().encode(text).ids
    pieces = list(stream_text(tokenizer(), [], iter(ids), stops))
    expected = cut(text, stops)
    assert "".join(pieces) == expected
    for end in range(1, len(pieces) + 1):
        assert expected.startswith("".join(pieces[:end])), "nothing is ever taken back"


@pytest.mark.parametrize("stop", ["e", "the", "he", "them", " of"])
def test_a_stop_string_may_lie_in_a_token_or_span_several(stop: str) -> None:
    text = "a theme of the"
    ids = tokenizer().encode(text).ids
    assert len(ids) < len(text), "some tokens are longer than a letter"
    assert "".join(stream_text(tokenizer(), [], iter(ids), [stop])) == text[: text.index(stop)]


def test_what_may_become_a_stop_string_waits_and_is_shown_if_it_does_not() -> None:
    ids = tokenizer().encode("xyz!xyw").ids
    assert len(ids) == 7
    assert list(stream_text(tokenizer(), [], iter(ids), ["yw"])) == ["x", "yz", "!", "x"]
    assert list(stream_text(tokenizer(), [], iter(ids), ["w?"])) == ["x", "y", "z", "!", "x", "y", "w"]


def test_a_stop_string_in_the_prompt_does_not_stop() -> None:
    prompt, new = tokenizer().encode("q: x\nq").ids, tokenizer().encode(": y\nq: z").ids
    assert "".join(stream_text(tokenizer(), prompt, iter(new), ["q:"])) == "q: x\nq: y\n"


def test_no_token_is_asked_for_beyond_a_stop_string() -> None:
    asked = []

    def tokens():
        for token in tokenizer().encode("xyzw").ids:
            asked.append(token)
            yield token

    assert "".join(stream_text(tokenizer(), [], tokens(), ["y"])) == "x"
    assert len(asked) == 2
