"""Continuing prompts with the fast decoder: several side by side, each as it would be alone."""

from collections.abc import Iterator, Sequence

import torch

from shard.inference.decoder import Decoder
from shard.inference.sampling import choose_token


@torch.inference_mode()
def continue_prompts(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_id: int | None = None,
    ended: set[int] | None = None,
) -> Iterator[list[int | None]]:
    """Yield at each step the next token of every row: None from where a row has ended, by `stop_id` (which is not
    yielded), after `max_tokens`, at the end of the model's context, or because its number was put into `ended`.
    Each row draws with the seed for itself. Nothing is computed before it is asked for.
    """
    context = decoder.model.config.max_sequence_length
    room = [min(max_tokens, context - len(prompt)) for prompt in prompts]
    ended = set() if ended is None else ended
    ended.update(row for row, tokens in enumerate(room) if tokens < 1)
    if len(ended) == len(prompts):
        return
    generators = [torch.Generator().manual_seed(seed) for _ in prompts]
    max_length = max(len(prompt) + tokens for prompt, tokens in zip(prompts, room, strict=True))
    batch, logits_BV = decoder.start(prompts, max_length)
    for step in range(max(room)):
        # One transfer for all rows; draws need each row's own generator.
        likeliest = logits_BV.argmax(dim=-1).tolist() if temperature == 0 else None
        tokens: list[int | None] = [None] * len(prompts)
        for row in range(len(prompts)):
            if row in ended:
                continue
            token = likeliest[row] if likeliest else choose_token(logits_BV[row], temperature, top_p, generators[row])
            if token == stop_id or step >= room[row]:
                ended.add(row)
            else:
                tokens[row] = token
        if len(ended) == len(prompts):
            return
        yield tokens
        ended.update(row for row, tokens_left in enumerate(room) if step + 1 >= tokens_left)
        if len(ended) == len(prompts):
            return
        if len(prompts) > 1:
            batch.active_B.copy_(torch.tensor([row not in ended for row in range(len(prompts))]))
        logits_BV = decoder.extend(batch, [token or 0 for token in tokens])


def continue_prompt(
    decoder: Decoder,
    prompt: Sequence[int],
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_id: int | None = None,
) -> Iterator[int]:
    """As `continue_prompts`, of one: its tokens. The plain twin is `sampling.generate_ids`."""
    for (token,) in continue_prompts(decoder, [prompt], max_tokens, temperature, top_p, seed, stop_id):
        assert token is not None
        yield token
