"""The passkey test: texts of exactly the length, the key where it should be, and what a perfect reader scores."""

import dataclasses
import math

import pytest

from shard.evaluation.likelihood import Likelihood
from shard.evaluation.tasks import passkey
from shard.evaluation.tasks.form import NotMeasured
from shard.evaluation.tasks.passkey import DIGITS, LENGTHS, NUM_KEYS, QUESTION, build_requests, make_items, measure


def test_the_items_are_frozen():
    items = make_items()
    assert len({item.key for item in items}) == len(items) == 20
    for item in items:
        keys = {item.key, *item.others}
        assert len(keys) == NUM_KEYS and all(len(key) == DIGITS and key.isdigit() for key in keys)
    assert sorted(item.depth for item in items) == pytest.approx([(i + 0.5) / 20 for i in range(20)])
    assert items[0].key == "91727"


@pytest.mark.parametrize("length", LENGTHS)
def test_a_text_has_exactly_the_length(tokenizer, length):
    for item in make_items():
        first, *others = build_requests(item, length, tokenizer)
        assert len(first.context) + len(first.continuation) == length
        assert {other.context for other in others} == {first.context}
        assert {len(other.continuation) for other in others} == {len(first.continuation)}
        text = tokenizer.decode(list(first.context))
        assert text.count(item.sentence) == 1 and text.endswith(QUESTION)
        assert text.count(item.key) == 2 and not any(other in text for other in item.others)
        assert tokenizer.decode(list(first.continuation)) == f" {item.key}"
        depth = text.index(item.sentence) / (len(text) - len(item.sentence) - len(QUESTION))
        assert abs(depth - item.depth) < len(passkey.FILLER) / len(text) + 0.02
        # The parts join as the tokenizer would cut the whole; the first word may be cut.
        again = tokenizer.encode(text, add_special_tokens=False).ids
        assert again[-len(first.context) + 5 :] == list(first.context[5:])


def test_a_reader_and_a_guesser(monkeypatch, subject):
    def read(model, requests):
        return [Likelihood(-float(i), i == 0) for i in range(len(requests))]

    monkeypatch.setattr(passkey, "log_likelihoods", read)
    exact, rank = measure(subject, None).scores
    assert (exact.metric, exact.value, exact.items) == ("exact match, 512 tokens", 1.0, 20)
    assert (rank.metric, rank.value, rank.standard_error) == ("mean rank of 10, 512 tokens", 1.0, 0.0)
    monkeypatch.setattr(passkey, "log_likelihoods", lambda model, requests: [Likelihood(-1.0, False)] * 10)
    exact, rank = measure(subject, None).scores
    assert exact.value == 0.0 and exact.chance == pytest.approx(1e-5)
    assert rank.value == rank.chance == 5.5, "ties share their places"
    monkeypatch.setattr(passkey, "log_likelihoods", lambda m, r: read(m, r)[::-1])
    assert measure(subject, None).scores[1].value == 10.0


def test_a_model_that_knows_nothing(subject):
    exact, rank = measure(subject, 3).scores
    assert exact.items == rank.items == 3 and exact.value == 0.0 and 1 <= rank.value <= 10
    assert math.isfinite(rank.standard_error)


def test_lengths_within_the_context(subject, monkeypatch):
    monkeypatch.setattr(passkey, "log_likelihoods", lambda model, requests: [Likelihood(-1.0, False)] * 10)
    scores = measure(dataclasses.replace(subject, context=2047), 1).scores
    assert [score.metric for score in scores[::2]] == ["exact match, 512 tokens", "exact match, 1024 tokens"]
    with pytest.raises(NotMeasured, match="the context is 511"):
        measure(dataclasses.replace(subject, context=511), None)
    with pytest.raises(NotMeasured, match="does not fit into 60 tokens"):
        build_requests(make_items()[0], 60, subject.loaded.tokenizer)
