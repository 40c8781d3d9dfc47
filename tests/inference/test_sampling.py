"""Generated tokens with and without the cache, and what may be drawn."""

import pytest
import torch

from shard.inference.sampling import choose_token, generate_ids
from shard.model import ShardLM

PROMPT = [3, 1, 4, 1, 5]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Choosing


def test_temperature_zero_takes_the_likeliest():
    logits = torch.randn(50, generator=generator())
    assert choose_token(logits, 0, 1.0, generator()) == int(logits.argmax())


@pytest.mark.parametrize(
    ("top_p", "nucleus"),
    [(0.0, {2}), (0.3, {2}), (0.49, {2}), (0.51, {2, 0}), (0.79, {2, 0}), (0.81, {2, 0, 3}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_draws_from_the_smallest_set_that_holds_it(top_p, nucleus):
    logits = torch.tensor([0.3, 0.05, 0.5, 0.15]).log()
    source = generator()
    assert {choose_token(logits, 1.0, top_p, source) for _ in range(300)} == nucleus


def test_draws_follow_the_probabilities():
    probabilities = torch.tensor([0.1, 0.6, 0.3])
    source, draws = generator(), 4000
    counts = torch.zeros(3)
    for _ in range(draws):
        counts[choose_token(probabilities.log(), 1.0, 1.0, source)] += 1
    torch.testing.assert_close(counts / draws, probabilities, rtol=0, atol=0.03)


def test_temperature_sharpens_and_flattens():
    logits, source = torch.tensor([0.0, 1.0]), generator()
    share = {t: sum(choose_token(logits, t, 1.0, source) for _ in range(1500)) / 1500 for t in (0.25, 4.0)}
    for temperature, got in share.items():
        assert got == pytest.approx(torch.sigmoid(torch.tensor(1 / temperature)).item(), abs=0.05)


# Generating


def test_greedy_with_the_cache_equals_the_plain_loop(tiny_model):
    """60 tokens, far over the edge of the window of 8."""
    cached = list(generate_ids(tiny_model, PROMPT, 60))
    plain = list(generate_ids(tiny_model, PROMPT, 60, use_cache=False))
    assert cached == plain
    assert len(cached) == 60
    assert len(set(cached)) > 5, "a text of few tokens would hide mistakes"


def test_greedy_is_the_published_loop(tiny_model):
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        for _ in range(30):
            logits, _ = tiny_model(ids)
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert list(generate_ids(tiny_model, PROMPT, 30)) == ids[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("prompt_length", [1, 7, 8, 9, 30])
def test_prompts_of_any_length_start_the_cache(tiny_model, prompt_length):
    prompt = [(7 * i) % 67 for i in range(prompt_length)]
    assert list(generate_ids(tiny_model, prompt, 20)) == list(generate_ids(tiny_model, prompt, 20, use_cache=False))


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_same_seed_gives_the_same_tokens(tiny_model, use_cache):
    def draw(seed: int) -> list[int]:
        return list(generate_ids(tiny_model, PROMPT, 30, 1.0, 0.95, seed=seed, use_cache=use_cache))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_drawing_does_not_depend_on_the_cache_or_on_global_state(tiny_model):
    torch.manual_seed(1)
    first = list(generate_ids(tiny_model, PROMPT, 30, 1.0, 1.0, seed=3))
    torch.manual_seed(2)
    assert list(generate_ids(tiny_model, PROMPT, 30, 1.0, 1.0, seed=3, use_cache=False)) == first


@pytest.mark.parametrize("use_cache", [True, False])
def test_stops_before_the_stop_token(tiny_model, use_cache):
    whole = list(generate_ids(tiny_model, PROMPT, 30))
    stop = whole[10]
    assert list(generate_ids(tiny_model, PROMPT, 30, stop_id=stop, use_cache=use_cache)) == whole[: whole.index(stop)]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(("prompt_length", "expected"), [(90, 6), (95, 1), (96, 0)])
def test_ends_where_the_context_ends(tiny_model, use_cache, prompt_length, expected):
    prompt = [i % 67 for i in range(prompt_length)]
    assert len(list(generate_ids(tiny_model, prompt, 50, use_cache=use_cache))) == expected


def test_no_tokens_wanted(tiny_model):
    assert list(generate_ids(tiny_model, PROMPT, 0)) == []


def test_works_in_bf16(tiny_model):
    assert len(list(generate_ids(tiny_model.to(torch.bfloat16), PROMPT, 20))) == 20


def test_tokens_come_one_by_one(tiny_model, monkeypatch):
    """Nothing is computed before it is asked for."""
    calls = []
    hidden = ShardLM.hidden
    monkeypatch.setattr(ShardLM, "hidden", lambda self, *args: calls.append(1) or hidden(self, *args))
    ids = generate_ids(tiny_model, PROMPT, 10)
    next(ids)
    next(ids)
    assert len(calls) == 2
