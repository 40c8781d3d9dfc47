"""Bits per byte against a computation with nothing clever in it: one document, one window, all logits."""

import lzma
import math
import shutil
import subprocess
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from shard.evaluation.bits_per_byte import (
    Heldout,
    Score,
    cut_windows,
    encode_heldout,
    score,
    xz_bits_per_byte,
)
from shard.tokenizer import train_tokenizer

LENGTHS = [2, 5, 33, 31, 90, 2, 64]


def documents(lengths: list[int], seed: int = 0) -> tuple[tuple[int, ...], ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple((0, *torch.randint(1, 67, (n - 1,), generator=generator).tolist()) for n in lengths)


@torch.no_grad()
def plain_nll(model, document: tuple[int, ...], start: int = 0, first: int = 1) -> float:
    """Return the nats of document[first:], each token predicted from all those since `start`."""
    ids = torch.tensor([document])
    logits = model(ids[:, start:-1])[0][0, first - start - 1 :]
    return F.cross_entropy(logits.double(), ids[0, first:], reduction="sum").item()


def test_equals_full_logits_of_each_document_alone(tiny_model):
    heldout = Heldout(documents(LENGTHS), num_bytes=1000)
    got = score(tiny_model, heldout, context=96, stride=48, dtype=torch.float32)
    expected = sum(plain_nll(tiny_model, document) for document in heldout.documents)
    assert got.nll_nats == pytest.approx(expected, rel=1e-5)
    assert got.num_tokens == sum(LENGTHS) - len(LENGTHS), "the separator that begins a document is not counted"
    assert got.num_bytes == 1000
    assert got.bits_per_byte == pytest.approx(expected / math.log(2) / 1000, rel=1e-5)
    assert got.cross_entropy_nats == pytest.approx(expected / got.num_tokens, rel=1e-5)


@pytest.mark.parametrize(("context", "stride"), [(20, 10), (20, 20), (20, 7), (96, 96)])
def test_long_documents_are_read_in_windows(tiny_model, context, stride):
    """Each window alone, with the tokens it scores, written out for one document."""
    (document,) = documents([90])
    got = score(tiny_model, Heldout((document,), 90), context, stride, torch.float32)
    expected, scored, start = 0.0, 1, 0
    while scored < 90:
        stop = min(90, start + context + 1)
        expected += plain_nll(tiny_model, document[:stop], start, scored)
        scored, start = stop, min(start + stride, 90 - context - 1)
    assert got.nll_nats == pytest.approx(expected, rel=1e-5)
    assert got.num_tokens == 89


def test_documents_do_not_see_one_another(tiny_model):
    """Whatever shares a batch, two documents cost what they cost alone."""
    for pair in ([30, 32], [90, 10], [33, 33]):
        both = documents(pair)
        together = score(tiny_model, Heldout(both, 1), 96, 96, torch.float32)
        alone = [score(tiny_model, Heldout((d,), 1), 96, 96, torch.float32) for d in both]
        assert together.nll_nats == pytest.approx(sum(s.nll_nats for s in alone), rel=1e-6)
        assert together.num_tokens == sum(s.num_tokens for s in alone)


def test_order_of_documents_does_not_matter(tiny_model):
    some = documents(LENGTHS)
    forward = score(tiny_model, Heldout(some, 1), 20, 10, torch.float32)
    assert score(tiny_model, Heldout(some[::-1], 1), 20, 10, torch.float32) == forward


def test_more_documents_than_a_batch_holds(tiny_model, monkeypatch):
    heldout = Heldout(documents([20] * 30), 1)
    expected = score(tiny_model, heldout, 96, 96, torch.float32)
    monkeypatch.setattr("shard.evaluation.bits_per_byte._BATCH_TOKENS", 64)
    got = score(tiny_model, heldout, 96, 96, torch.float32)
    assert got.num_tokens == expected.num_tokens == 30 * 19
    assert got.nll_nats == pytest.approx(expected.nll_nats, rel=1e-6)


def test_bf16_is_close(tiny_model):
    heldout = Heldout(documents(LENGTHS), 1)
    exact = score(tiny_model, heldout, 96, 96, torch.float32)
    rounded = score(tiny_model, heldout, 96, 96, torch.bfloat16)
    assert rounded.nll_nats != exact.nll_nats
    assert rounded.nll_nats == pytest.approx(exact.nll_nats, rel=0.02)


def test_a_uniform_model_needs_log2_v_bits_a_token(tiny_model):
    with torch.no_grad():
        tiny_model.embedding.weight.zero_()
    heldout = Heldout(documents(LENGTHS), num_bytes=321)
    got = score(tiny_model, heldout, 20, 10, torch.float32)
    assert got.bits_per_byte == pytest.approx(math.log2(67) * (sum(LENGTHS) - len(LENGTHS)) / 321, rel=1e-6)


@given(data=st.data(), num_tokens=st.integers(0, 400), context=st.integers(1, 60))
def test_every_token_but_the_first_is_scored_exactly_once(data, num_tokens, context):
    stride = data.draw(st.integers(1, context))
    counts: Counter[int] = Counter()
    for start, stop, first in cut_windows(num_tokens, context, stride):
        assert 0 <= start < first < stop <= num_tokens
        assert stop - 1 - start <= context, "more inputs than the context"
        counts.update(range(first, stop))
    assert counts == Counter(range(1, num_tokens))


@given(num_tokens=st.integers(62, 400), context=st.integers(2, 60))
def test_half_strides_leave_at_least_half_a_context(num_tokens, context):
    stride = context // 2
    for start, _, first in cut_windows(num_tokens, context, stride)[1:]:
        assert first - start >= context - stride, "a token is predicted from less than it could see"


def test_heldout_text_as_the_model_reads_it():
    texts = ["first text, with é", "", "second text", "x" * 50, "third"]
    tokenizer = train_tokenizer(texts * 3, 300)
    everything = encode_heldout(texts, tokenizer, separator_id=0, max_bytes=None)
    assert everything.num_bytes == sum(len(text.encode()) for text in texts)
    assert [tokenizer.decode(list(d[1:])) for d in everything.documents] == [text for text in texts if text]
    assert all(d[0] == 0 for d in everything.documents)
    some = encode_heldout(texts, tokenizer, separator_id=0, max_bytes=40)
    kept = ["first text, with é", "second text", "third"]
    assert [tokenizer.decode(list(d[1:])) for d in some.documents] == kept
    assert some.num_bytes == sum(len(text.encode()) for text in kept) <= 40
    assert encode_heldout(texts, tokenizer, 0, max_bytes=1).documents == everything.documents[:1], "never nothing"


def test_literal_separator_text_is_ordinary_text():
    tokenizer = train_tokenizer(["some text " * 9], 260)
    (document,) = encode_heldout(["a<|endoftext|>b"], tokenizer, 0, None).documents
    assert document.count(0) == 1


def test_score_in_known_numbers():
    known = Score(nll_nats=8 * math.log(2), num_tokens=4, num_bytes=16)
    assert known.bits_per_byte == pytest.approx(0.5)
    assert known.cross_entropy_nats == pytest.approx(2 * math.log(2))


def test_xz_is_what_the_program_xz_makes(tmp_path):
    texts = [f"Line {i} of é text, {i * i}.\n" * 4 for i in range(200)]
    data = "\n".join(texts).encode()
    size = len(lzma.compress(data, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME))
    num_bytes = len("".join(texts).encode())
    assert xz_bits_per_byte(texts) == 8 * size / num_bytes
    if shutil.which("xz"):
        packed = subprocess.run(["xz", "-9e", "-T1", "-c"], input=data, capture_output=True, check=True).stdout
        assert abs(len(packed) - size) <= 16, "headers may differ by some bytes between versions of xz"
