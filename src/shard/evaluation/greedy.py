"""Greedy continuations of many prompts at once, the same as one by one.

Prompts of different length share a batch without padding: reading begins with as many tokens as the shortest has, and a
longer one is then fed its own tokens until it is used up.
"""

from collections.abc import Callable, Sequence

import torch

from shard.model import KVCache, ShardLM

_BATCH_ROWS = 64
_MAX_SPREAD = 32  # tokens that the longest prompt of a batch has more than the shortest


@torch.no_grad()
def continue_greedily(
    model: ShardLM,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    stop_id: int | None = None,
    is_finished: Callable[[list[int]], bool] | None = None,
) -> list[list[int]]:
    """Up to `max_tokens` tokens after each prompt: until `stop_id` (left out), until `is_finished` says so of the new
    tokens, or to the end of the model's context. Prompts are not empty, and leave room for one token.
    """
    continuations: list[list[int]] = [[] for _ in prompts]
    for members in _batches([len(prompt) for prompt in prompts]):
        rows = [list(prompts[i]) for i in members]
        _continue_batch(model, rows, [continuations[i] for i in members], max_tokens, stop_id, is_finished)
    return continuations


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in batches of similar length."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        is_full = batches and len(batches[-1]) == _BATCH_ROWS
        if not batches or is_full or lengths[i] - lengths[batches[-1][0]] > _MAX_SPREAD:
            batches.append([])
        batches[-1].append(i)
    return batches


def _continue_batch(
    model: ShardLM,
    rows: list[list[int]],
    continuations: list[list[int]],
    max_tokens: int,
    stop_id: int | None,
    is_finished: Callable[[list[int]], bool] | None,
) -> None:
    """Fill `continuations`; `rows` grow with them."""
    device = model.embedding.weight.device
    limits = [min(len(row) + max_tokens, model.config.max_sequence_length) for row in rows]
    going = {i for i, row in enumerate(rows) if len(row) < limits[i]}
    num_read = min(map(len, rows))
    cache = KVCache(model, len(rows), max(limits))
    new_BT = torch.tensor([row[:num_read] for row in rows], device=device)
    while going:
        likeliest = model.logits(model.hidden(new_BT, cache)[:, -1:])[:, -1].argmax(dim=-1).tolist()
        for i in sorted(going):
            if num_read < len(rows[i]):
                continue  # the prompt itself says what comes next
            if likeliest[i] == stop_id:
                going.discard(i)
                continue
            rows[i].append(likeliest[i])
            continuations[i].append(likeliest[i])
            if len(rows[i]) == limits[i] or (is_finished is not None and is_finished(continuations[i])):
                going.discard(i)
        num_read += 1
        # A row that has ended is fed anything: no other row sees it.
        new_BT = torch.tensor([[row[num_read - 1] if num_read <= len(row) else 0] for row in rows], device=device)
