"""Log-likelihoods of continuations against a computation with nothing clever in it: one sequence, all logits."""

import pytest
import torch

from shard.evaluation import likelihood
from shard.evaluation.likelihood import Request, encode_request, log_likelihoods, score_tokens
from shard.tokenizer import train_tokenizer

LENGTHS = [(1, 1), (5, 3), (30, 1), (31, 2), (2, 40), (60, 20), (90, 6), (1, 1)]


def tokens(count: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(1, 67, (count,), generator=generator).tolist())


def requests(lengths: list[tuple[int, int]]) -> list[Request]:
    return [Request(tokens(a, i), tokens(b, 100 + i)) for i, (a, b) in enumerate(lengths)]


@torch.no_grad()
def plain(model, request: Request) -> tuple[float, bool]:
    """The twin: the whole sequence alone, cut from the left to what the model can read."""
    ids = (request.context + request.continuation)[-(model.config.max_sequence_length + 1) :]
    logits = model(torch.tensor([ids[:-1]]))[0][0].double()
    total, is_greedy = 0.0, True
    for place in range(len(ids) - len(request.continuation), len(ids)):
        row = torch.log_softmax(logits[place - 1], dim=0)
        total += row[ids[place]].item()
        is_greedy = is_greedy and int(row.argmax()) == ids[place]
    return total, is_greedy


def check(model, some: list[Request]) -> None:
    got = log_likelihoods(model, some)
    for one, request in zip(got, some, strict=True):
        expected, is_greedy = plain(model, request)
        assert one.log_likelihood == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert one.is_greedy == is_greedy


def test_equals_the_plain_twin(tiny_model):
    check(tiny_model, requests(LENGTHS))


def test_a_greedy_continuation_is_told_from_others(tiny_model):
    ids = list(tokens(7, 3))
    with torch.no_grad():
        for _ in range(4):
            ids.append(int(tiny_model(torch.tensor([ids]))[0][0, -1].argmax()))
    right = Request(tuple(ids[:7]), tuple(ids[7:]))
    wrong = Request(right.context, (*right.continuation[:3], (right.continuation[3] + 1) % 67))
    assert [found.is_greedy for found in log_likelihoods(tiny_model, [wrong, right])] == [False, True]


@pytest.mark.parametrize("num_context", [20, 90])
def test_continuations_of_one_context_share_it(tiny_model, monkeypatch, num_context):
    """Also beyond the window of the local layers, and mixed with others; what does not fit goes the other way."""
    context = tokens(num_context, 5)
    some = [Request(context, tokens(n, 50 + n)) for n in (1, 4, 2, 7)] + requests(LENGTHS)
    monkeypatch.setattr(likelihood, "SHARED_TOKENS", 10)
    shared = []
    monkeypatch.setattr(
        likelihood, "_score_shared", lambda *a, original=likelihood._score_shared: shared.append(a[1]) or original(*a)
    )
    check(tiny_model, some)
    assert shared == [context]
    shared.clear()
    check(tiny_model, [Request(context, tokens(1, 9)), Request(context, tokens(98 - num_context, 10))])
    assert shared == [], "97 inputs, and the context of the model is 96"


def test_the_end_of_a_long_context_is_read(tiny_model):
    long = [Request(tokens(200, 1), tokens(3, 2)), Request(tokens(50, 1), tokens(96, 2))]
    check(tiny_model, long)
    last = Request(long[0].context[-94:], long[0].continuation)
    assert log_likelihoods(tiny_model, [last])[0] == log_likelihoods(tiny_model, long[:1])[0]


def test_what_cannot_be_scored_is_refused(tiny_model):
    for request in (Request((), (1,)), Request((1,), ()), Request((1,), tokens(97, 1))):
        with pytest.raises(ValueError, match="limit is 96"):
            log_likelihoods(tiny_model, [request])
    assert log_likelihoods(tiny_model, []) == []


def test_tokens_of_windows_in_their_order(tiny_model):
    windows = [(tokens(n, n), first) for n, first in ((40, 1), (3, 2), (97, 90), (2, 1))]
    for (ids, first), (scores, is_likeliest) in zip(windows, score_tokens(tiny_model, windows), strict=True):
        assert scores.shape == is_likeliest.shape == (len(ids) - first,)
        assert scores.sum().item() == pytest.approx(plain(tiny_model, Request(ids[:first], ids[first:]))[0], rel=1e-5)


def test_logits_in_several_chunks(tiny_model, monkeypatch):
    monkeypatch.setattr(likelihood, "_CHUNK_LOGITS", 67 * 3)
    check(tiny_model, requests(LENGTHS))


def test_text_is_cut_where_the_context_ends():
    tokenizer = train_tokenizer(["the answer is yes or no, one of them " * 9], 300)

    def texts(context: str, continuation: str) -> tuple[str, str]:
        request = encode_request(tokenizer, context, continuation, separator_id=0)
        assert request.context
        return tokenizer.decode(list(request.context)), tokenizer.decode(list(request.continuation))

    assert texts("the answer is", " yes") == ("the answer is", " yes")
    assert texts("the answer is ", "yes") == ("the answer is", " yes"), "a space belongs to the word after it"
    assert encode_request(tokenizer, "the answer", " is", 0) == encode_request(tokenizer, "the answer ", "is", 0)
    assert encode_request(tokenizer, "", "yes", 0).context == (0,)
    assert encode_request(tokenizer, " ", "yes", 0).context == (0,)
    assert encode_request(tokenizer, "a<|endoftext|>", "b", 0).context.count(0) == 0
