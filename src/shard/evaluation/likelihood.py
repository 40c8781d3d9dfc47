"""How likely a model finds a given continuation: what multiple choice, passkeys and lm-eval are scored by.

Sequences are sorted by length and share batches; continuations of one long context share its keys and values.
"""

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from shard.evaluation.bits_per_byte import batch_windows
from shard.model import KVCache, ShardLM

SHARED_TOKENS = 256  # of a context from which on it is read once for all its continuations
_CHUNK_LOGITS = 2**22  # logits held at once


@dataclass(frozen=True)
class Request:
    """A continuation to score after a context, in tokens; neither may be empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Likelihood:
    """What the model makes of a continuation."""

    log_likelihood: float
    """In nats, summed over its tokens."""
    is_greedy: bool
    """Whether each of its tokens is the likeliest after those before it: whether greedy decoding gives it."""


def encode_request(tokenizer: Tokenizer, context: str, continuation: str, separator_id: int) -> Request:
    """Tokenise the two as one text, cut where the context alone ends; white space at the end of the context belongs to
    the continuation. An empty context is the separator. That is how lm-evaluation-harness does it.
    """
    stripped = context.rstrip()
    context, continuation = stripped, context[len(stripped) :] + continuation
    if not context:
        return Request((separator_id,), tuple(_encode(tokenizer, continuation)))
    whole, num_context = _encode(tokenizer, context + continuation), len(_encode(tokenizer, context))
    return Request(tuple(whole[:num_context]), tuple(whole[num_context:]))


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def log_likelihoods(model: ShardLM, requests: Sequence[Request]) -> list[Likelihood]:
    """Score every request, in order. Of a context that is too long the end is read.

    Raises ValueError for an empty part, and for a continuation that is longer than the model's context.
    """
    limit = model.config.max_sequence_length
    by_context: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, request in enumerate(requests):
        if not request.context or not 0 < len(request.continuation) <= limit:
            raise ValueError(f"{len(request.context)} and {len(request.continuation)} tokens, the limit is {limit}")
        by_context[request.context].append(i)
    results: dict[int, Likelihood] = {}
    alone: list[int] = []
    for context, members in by_context.items():
        longest = max(len(requests[i].continuation) for i in members)
        if len(members) > 1 and SHARED_TOKENS <= len(context) <= limit + 1 - longest:
            shared = _score_shared(model, context, [requests[i].continuation for i in members])
            results |= zip(members, shared, strict=True)
        else:
            alone += members
    windows = [_window(requests[i], limit) for i in alone]
    for i, (log_likelihoods_T, is_likeliest_T) in zip(alone, score_tokens(model, windows), strict=True):
        results[i] = Likelihood(float(log_likelihoods_T.sum()), bool(is_likeliest_T.all()))
    return [results[i] for i in range(len(requests))]


def _window(request: Request, limit: int) -> tuple[tuple[int, ...], int]:
    ids = (request.context + request.continuation)[-(limit + 1) :]
    return ids, len(ids) - len(request.continuation)


@torch.no_grad()
def score_tokens(model: ShardLM, windows: Sequence[tuple[tuple[int, ...], int]]) -> list[tuple[Tensor, Tensor]]:
    """Of each window (tokens, first): the log-likelihoods in nats [T] of tokens[first:] in fp64, and whether each was
    the likeliest [T]. `first` is at least 1; a window holds at most one token more than the context.
    """
    device = model.embedding.weight.device
    order = sorted(range(len(windows)), key=lambda i: len(windows[i][0]))
    results: dict[int, tuple[Tensor, Tensor]] = {}
    done = 0
    for batch in batch_windows([windows[i] for i in order]):
        members = order[done : done + len(batch)]
        done += len(batch)
        rows_BT = torch.zeros(len(batch), max(len(ids) for ids, _ in batch), dtype=torch.int64)
        counted_BT = torch.zeros(rows_BT.size(0), rows_BT.size(1) - 1, dtype=torch.bool)
        for row, (ids, first) in enumerate(batch):
            rows_BT[row, : len(ids)] = torch.tensor(ids)
            counted_BT[row, first - 1 : len(ids) - 1] = True
        rows_BT, counted_BT = rows_BT.to(device), counted_BT.to(device)
        # Padding stands at the end, where causal attention never looks back from.
        hidden_BTD = model.hidden(rows_BT[:, :-1])
        scores = _score_hidden(model, hidden_BTD[counted_BT], rows_BT[:, 1:][counted_BT])
        sizes = [len(ids) - first for ids, first in batch]
        results |= zip(members, zip(*(x.split(sizes) for x in scores), strict=True), strict=True)
    return [results[i] for i in range(len(windows))]


@torch.no_grad()
def _score_shared(model: ShardLM, context: Sequence[int], continuations: Sequence[tuple[int, ...]]) -> list[Likelihood]:
    """The same for several continuations of one context, which is read once."""
    device = model.embedding.weight.device
    cache = KVCache(model, 1, len(context) + max(map(len, continuations)))
    last_BTD = model.hidden(torch.tensor([context], device=device), cache)[:, -1:]
    results = []
    for continuation in continuations:
        ids_BT = torch.tensor([continuation], device=device)
        hidden_BTD = last_BTD
        if len(continuation) > 1:
            rest_BTD = model.hidden(ids_BT[:, :-1], copy.deepcopy(cache))
            hidden_BTD = torch.cat([last_BTD, rest_BTD], dim=1)
        scores_T, is_likeliest_T = _score_hidden(model, hidden_BTD[0], ids_BT[0])
        results.append(Likelihood(float(scores_T.sum()), bool(is_likeliest_T.all())))
    return results


def _score_hidden(model: ShardLM, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihood [N] and whether it is the likeliest [N] of each target, on the CPU."""
    chunk = max(1, _CHUNK_LOGITS // model.config.vocab_size)
    scores, likeliest = [], []
    for hidden, targets in zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True):
        logits_NV = model.logits(hidden)
        scores.append((logits_NV.gather(1, targets[:, None])[:, 0] - logits_NV.logsumexp(dim=1)).double().cpu())
        likeliest.append((logits_NV.argmax(dim=1) == targets).cpu())
    return torch.cat(scores), torch.cat(likeliest)
