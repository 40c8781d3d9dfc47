"""Bits per byte of held-out text: what the model would need to store it, comparable over vocabularies.

Documents are scored one by one: nothing of another document stands in the context. A document begins after the
separator; a long one is read in overlapping windows, in which only the tokens not scored yet count. The separator
at the end is not counted, since it stands for no byte.
"""

import lzma
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from shard.model import ShardLM

_BATCH_TOKENS = 8192
_CHUNK_LOGITS = 2**22  # logits held at once
_ROUND_TO = 32  # windows of nearly equal length share a batch


@dataclass(frozen=True)
class Score:
    """Sums over documents: negative log-likelihood in nats, tokens, bytes of text."""

    nll_nats: float
    num_tokens: int
    num_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of the text."""
        return self.nll_nats / math.log(2) / self.num_bytes

    @property
    def cross_entropy_nats(self) -> float:
        """Nats a token."""
        return self.nll_nats / self.num_tokens


@dataclass(frozen=True)
class Heldout:
    """Held-out documents of one source as the model reads them: separator, then tokens."""

    documents: tuple[tuple[int, ...], ...]
    num_bytes: int


def encode_heldout(texts: Iterable[str], tokenizer: Tokenizer, separator_id: int, max_bytes: int | None) -> Heldout:
    """Tokenise documents until `max_bytes` of text are reached (None: all of them)."""
    documents: list[tuple[int, ...]] = []
    num_bytes = 0
    for text in texts:
        size = len(text.encode())
        if max_bytes is not None and num_bytes + size > max_bytes and documents:
            continue  # a smaller one may still fit
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if ids:
            documents.append((separator_id, *ids))
            num_bytes += size
    return Heldout(tuple(documents), num_bytes)


def cut_windows(num_tokens: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    """(start, stop, first scored target) of the windows over `num_tokens` tokens, each token but the first scored once.

    A window reads tokens start..stop-2 and predicts start+1..stop-1; it holds at most `context` inputs.
    """
    windows, scored, start = [], 1, 0
    while scored < num_tokens:
        stop = min(num_tokens, start + context + 1)
        windows.append((start, stop, scored))
        scored = stop
        start = max(0, min(start + stride, num_tokens - context - 1))
    return windows


@torch.no_grad()
def score(model: ShardLM, heldout: Heldout, context: int, stride: int, dtype: torch.dtype) -> Score:
    """Score held-out documents with windows of `context` tokens that advance by `stride`."""
    device = model.embedding.weight.device
    windows = [
        (document[start:stop], first - start - 1)
        for document in heldout.documents
        for start, stop, first in cut_windows(len(document), context, stride)
    ]
    windows.sort(key=lambda window: (len(window[0]), window))
    nll, num_tokens = 0.0, 0
    for batch in batch_windows(windows):
        longest = max(len(ids) for ids, _ in batch)
        rows = torch.zeros(len(batch), longest, dtype=torch.int64)
        counted = torch.zeros(len(batch), longest - 1, dtype=torch.bool)
        for row, (ids, skipped) in enumerate(batch):
            rows[row, : len(ids)] = torch.tensor(ids)
            counted[row, skipped : len(ids) - 1] = True
        rows, counted = rows.to(device), counted.to(device)
        # Padding stands at the end, where causal attention never looks back from.
        hidden_BTD = model.hidden(rows[:, :-1], dtype=dtype)
        chunk = max(1, _CHUNK_LOGITS // model.config.vocab_size)
        for hidden_ND, targets_N in zip(
            hidden_BTD[counted].split(chunk), rows[:, 1:][counted].split(chunk), strict=True
        ):
            nll += float(F.cross_entropy(model.logits(hidden_ND), targets_N, reduction="sum"))
        num_tokens += int(counted.sum())
    return Score(nll, num_tokens, heldout.num_bytes)


def batch_windows(windows: Sequence[tuple[tuple[int, ...], int]]) -> Iterable[list[tuple[tuple[int, ...], int]]]:
    """Cut windows that are sorted by length into batches, in order: of nearly equal length, and bounded in tokens."""
    batch: list[tuple[tuple[int, ...], int]] = []
    for window in windows:
        length = math.ceil(len(window[0]) / _ROUND_TO)
        same_length = not batch or math.ceil(len(batch[0][0]) / _ROUND_TO) == length
        if batch and (not same_length or (len(batch) + 1) * length * _ROUND_TO > _BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def xz_bits_per_byte(texts: Sequence[str]) -> float:
    """What `xz -9e` reaches on the same documents in one file, a newline between them; bits a byte of the documents."""
    data = "\n".join(texts).encode()
    return 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / sum(len(text.encode()) for text in texts)
