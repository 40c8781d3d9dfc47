"""Generating text: greedy, or by temperature and top-p; with a KV cache, or by the plain loop that recomputes all."""

from collections.abc import Iterable, Iterator

import torch
from tokenizers import Tokenizer
from torch import Tensor

from shard.model import KVCache, ShardLM


def choose_token(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One token: the likeliest at temperature 0, else drawn from the smallest set with probability top_p or more."""
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities_V, order_V = torch.softmax(logits_V.float().cpu() / temperature, dim=-1).sort(
        descending=True, stable=True
    )
    # A token stays while those before it hold less than top_p; the first always does.
    before_V = probabilities_V.cumsum(dim=-1) - probabilities_V
    probabilities_V[1:] *= before_V[1:] < top_p
    return int(order_V[torch.multinomial(probabilities_V, 1, generator=generator)])


@torch.inference_mode()
def generate_ids(
    model: ShardLM,
    prompt_ids: list[int],
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_id: int | None = None,
    use_cache: bool = True,
) -> Iterator[int]:
    """Yield up to `max_tokens` tokens that continue the prompt, until `stop_id` (which is not yielded) or the end of
    the model's context. Without the cache every step recomputes all tokens: the reference, word for word the
    published loop.
    """
    device = model.embedding.weight.device
    generator = torch.Generator().manual_seed(seed)
    max_tokens = min(max_tokens, model.config.max_sequence_length - len(prompt_ids))
    ids_BT = torch.tensor([prompt_ids], device=device)
    cache = KVCache(model, 1, len(prompt_ids) + max_tokens) if use_cache else None
    new_BT = ids_BT
    for _ in range(max_tokens):
        if cache is None:
            logits_V = model(ids_BT)[0][0, -1]
        else:
            hidden_BTD = model.hidden(new_BT, cache)
            logits_V = model.logits(hidden_BTD[:, -1:])[0, -1]
        token = choose_token(logits_V, temperature, top_p, generator)
        if token == stop_id:
            return
        yield token
        new_BT = torch.tensor([[token]], device=device)
        if cache is None:
            ids_BT = torch.cat([ids_BT, new_BT], dim=1)


def complete_prompts(
    model: ShardLM,
    tokenizer: Tokenizer,
    separator_id: int,
    prompts: Iterable[str],
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[dict[str, str]]:
    """{"prompt", "text"} of each prompt that leaves room in the context; an empty one starts from the separator."""
    samples = []
    for prompt in prompts:
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids or [separator_id]
        if len(ids) < model.config.max_sequence_length:
            new = generate_ids(model, ids, max_tokens, temperature, top_p, seed, stop_id=separator_id)
            samples.append({"prompt": prompt, "text": tokenizer.decode([*ids, *new])})
    return samples
