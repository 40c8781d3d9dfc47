"""Bits per byte of held-out text by position in the context: what the model gains from having read more.

Documents of all sources that are long enough, each read once from its beginning after the separator, and all of the
same length, so that every position is measured on the same documents. Chance is 8 bits a byte, all equally likely.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from tokenizers import Tokenizer

from shard.data import documents
from shard.evaluation.likelihood import score_tokens
from shard.evaluation.tasks.form import Measured, NotMeasured, Subject, Task, hash_items, ratio

MAX_DOCUMENTS = 128
MIN_DOCUMENTS = 8
FIRST_BUCKET = 64  # tokens; each next bucket ends at twice the position


def buckets(length: int) -> list[tuple[int, int]]:
    """[start, stop) of the positions: 0 to 64, 64 to 128, 128 to 256, ..., up to `length`."""
    edges = [0]
    while edges[-1] < length:
        edges.append(min(length, max(FIRST_BUCKET, 2 * edges[-1])))
    return list(pairwise(edges))


def common_length(lengths: Sequence[int], context: int) -> int:
    """The greatest of context, context / 2, ... that enough documents have. Raises NotMeasured where there is none."""
    while context >= FIRST_BUCKET:
        if sum(length >= context for length in lengths) >= MIN_DOCUMENTS:
            return context
        context //= 2
    raise NotMeasured(f"fewer than {MIN_DOCUMENTS} held-out documents have {FIRST_BUCKET} tokens")


def token_bytes(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Bytes of each token: a byte-level vocabulary writes each byte as one character."""
    return [len(tokenizer.id_to_token(i) or "") for i in ids]


def choose_documents(encoded: Sequence[Sequence[Sequence[int]]], length: int, limit: int) -> list[tuple[int, ...]]:
    """The first `length` tokens of documents that have so many: of each source about as many, evenly spaced."""
    long = [[ids for ids in source if len(ids) >= length] for source in encoded]
    chosen: list[tuple[int, ...]] = []
    # From the source with the fewest, so that the others make up for what it lacks.
    for number, source in enumerate(sorted(long, key=len)):
        count = min(len(source), (limit - len(chosen)) // (len(long) - number))
        chosen += [tuple(source[i * len(source) // count][:length]) for i in range(count)]
    return chosen


def measure(subject: Subject, max_items: int | None) -> Measured:
    """Bits per byte of all positions, then of each bucket of them."""
    tokenizer, separator_id = subject.loaded.tokenizer, subject.loaded.separator_id
    encoded = [
        [
            tokenizer.encode(text, add_special_tokens=False).ids
            for text in documents.read_documents(folder, documents.HELDOUT)
        ]
        for folder in subject.heldout
        if (folder / documents.HELDOUT).is_file()
    ]
    length = common_length([len(ids) for source in encoded for ids in source], subject.context)
    chosen = choose_documents(encoded, length, min(MAX_DOCUMENTS, max_items or MAX_DOCUMENTS))
    scored = score_tokens(subject.loaded.model, [((separator_id, *ids), 1) for ids in chosen])
    bits_DT = [(-log_likelihoods / math.log(2)).tolist() for log_likelihoods, _ in scored]
    bytes_DT = [token_bytes(tokenizer, ids) for ids in chosen]
    scores = [
        ratio(
            f"bits per byte, positions {start} to {stop - 1}",
            [sum(row[start:stop]) for row in bits_DT],
            [sum(row[start:stop]) for row in bytes_DT],
            8.0,
        )
        for start, stop in [(0, length), *buckets(length)]
    ]
    return Measured(hash_items([tokenizer.decode(list(ids)) for ids in chosen]), tuple(scores))


TASK = Task("position", 1, measure)
