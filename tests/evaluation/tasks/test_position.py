"""Bits per byte by position: the buckets, the documents, and that all buckets together are the text."""

import dataclasses
import json
import math

import pytest
import torch

from shard.data import documents
from shard.evaluation.bits_per_byte import encode_heldout, score
from shard.evaluation.tasks import passkey, position
from shard.evaluation.tasks.form import NotMeasured
from shard.evaluation.tasks.position import buckets, choose_documents, common_length, measure, token_bytes


def write(folder, texts) -> None:
    folder.mkdir()
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (folder / documents.HELDOUT).write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def with_text(subject, tmp_path):
    """Nine documents of two sources, some with characters of several bytes."""
    write(tmp_path / "a", [f"{i}: né {passkey.FILLER * 12}" for i in range(5)] + ["short"])
    write(tmp_path / "b", [f"{i}. \U0001f600 {passkey.FILLER * 9}" for i in range(4)])
    return dataclasses.replace(subject, context=256, heldout=[tmp_path / "a", tmp_path / "b", tmp_path / "none"])


def test_buckets_double():
    assert buckets(512) == [(0, 64), (64, 128), (128, 256), (256, 512)]
    assert buckets(64) == [(0, 64)]
    assert buckets(300) == [(0, 64), (64, 128), (128, 256), (256, 300)]


def test_the_length_that_enough_documents_have():
    assert common_length([600] * 8, 512) == 512
    assert common_length([600] * 7 + [300] * 5, 512) == 256
    assert common_length([64] * 8, 8192) == 64
    for lengths in ([63] * 50, [600] * 7, []):
        with pytest.raises(NotMeasured, match="fewer than 8 held-out documents have 64 tokens"):
            common_length(lengths, 512)
    with pytest.raises(NotMeasured):
        common_length([600] * 9, 60)


def test_documents_of_every_source():
    sources = [[range(100 * s + i, 100 * s + i + 4) for i in range(n)] for s, n in ((1, 3), (2, 90), (3, 0))]
    chosen = choose_documents(sources, 3, 40)
    assert [sum(row[0] // 100 == s for row in chosen) for s in (1, 2)] == [3, 37]
    assert all(len(row) == 3 for row in chosen)
    starts = [row[0] - 200 for row in chosen if row[0] >= 200]
    assert starts == sorted(set(starts)) and starts[-1] > 85, "evenly spaced"
    assert choose_documents([[(1, 2)], [(3, 4, 5)]], 3, 9) == [(3, 4, 5)]


def test_every_byte_of_a_token_counts(tokenizer):
    for text in ("plain text", "né \U0001f600 \t\n", "中文<|endoftext|>"):
        assert sum(token_bytes(tokenizer, tokenizer.encode(text).ids)) == len(text.encode())


def test_the_buckets_together_are_the_text(with_text):
    """All positions, against the scoring of held-out text, which knows no positions."""
    measured = measure(with_text, None)
    whole, *parts = measured.scores
    assert [score.metric for score in parts] == [
        f"bits per byte, positions {a} to {b - 1}" for a, b in ((0, 64), (64, 128), (128, 256))
    ]
    assert all(score.items == 9 and score.chance == 8.0 and score.standard_error > 0 for score in measured.scores)
    model, tokenizer = with_text.loaded.model, with_text.loaded.tokenizer
    texts = [text for folder in with_text.heldout[:2] for text in documents.read_documents(folder, documents.HELDOUT)]
    cut = [tokenizer.decode(tokenizer.encode(text).ids[:256]) for text in texts if text != "short"]
    expected = score(model, encode_heldout(cut, tokenizer, 0, None), 256, 256, torch.float32)
    assert expected.num_tokens == 9 * 256
    assert whole.value == pytest.approx(expected.bits_per_byte, rel=1e-5)
    assert min(part.value for part in parts) <= whole.value <= max(part.value for part in parts)


def test_each_position_alone(with_text, monkeypatch):
    """Where the token at position t costs t bits, a bucket holds the mean of its positions, by bytes."""
    monkeypatch.setattr(
        position,
        "score_tokens",
        lambda model, windows: [(-torch.arange(256.0).double() * math.log(2), None)] * len(windows),
    )
    monkeypatch.setattr(position, "token_bytes", lambda tokenizer, ids: [1] * len(ids))
    values = [score.value for score in measure(with_text, None).scores]
    assert values == pytest.approx([127.5, 31.5, 95.5, 191.5])


def test_fewer_documents_where_asked(with_text):
    assert measure(with_text, 4).scores[0].items == 4
    with pytest.raises(NotMeasured):
        measure(dataclasses.replace(with_text, heldout=[]), None)
