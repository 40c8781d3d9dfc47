"""The fast decoder against its plain twin: the same tokens, alone and side by side, and one compilation for all."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from shard.environment import choose_compile
from shard.inference import decoder as decoder_module
from shard.inference import quantize as quantize_module
from shard.inference.decoder import Decoder, join
from shard.inference.generate import continue_prompt, continue_prompts
from shard.inference.kernels import choose_kernels
from shard.inference.quantize import quantize
from shard.inference.sampling import generate_ids
from shard.model import KVCache, ShardLM

PROMPTS = [[3, 1, 4, 1, 5], [9], [(7 * i) % 67 for i in range(30)], [(5 * i) % 67 for i in range(8)]]
"""Shorter than the window of 8, as long, and longer."""


def together(model: ShardLM, prompts: list[list[int]], max_tokens: int, **options: object) -> list[list[int]]:
    texts: list[list[int]] = [[] for _ in prompts]
    for tokens in continue_prompts(Decoder(model), prompts, max_tokens, **options):  # type: ignore[arg-type]
        for row, token in enumerate(tokens):
            if token is not None:
                texts[row].append(token)
    return texts


@pytest.fixture(autouse=True)
def small_doublings(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short text crosses several of them."""
    monkeypatch.setattr(decoder_module, "LEAST_SIZE", 16)
    torch._dynamo.reset()


@pytest.fixture(params=["own kernels", "torch's"])
def has_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both where our own can be built, else one."""
    works, reason = choose_kernels()
    if request.param == "own kernels" and not works:
        pytest.skip(reason)
    for module in (decoder_module, quantize_module):
        monkeypatch.setattr(module, "choose_kernels", lambda: (request.param == "own kernels", ""))
    return request.param == "own kernels"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_equals_the_plain_loop(tiny_model: ShardLM, prompt: list[int]) -> None:
    expected = list(generate_ids(tiny_model, prompt, 60, use_cache=False))
    assert list(continue_prompt(Decoder(tiny_model), prompt, 60)) == expected
    assert len(expected) == 60 and len(set(expected)) > 3


def test_logits_equal_those_of_the_plain_cache(tiny_model: ShardLM) -> None:
    """At every step, over the edge of the window, in fp32 and in the precision that rounds."""
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        model = tiny_model.to(dtype)
        with torch.inference_mode():
            cache = KVCache(model, 1, 50)
            decoder = Decoder(model)
            batch, got = decoder.start([PROMPTS[0]], 50)
            expected = model(torch.tensor([PROMPTS[0]]), cache)[0][:, -1]
            for token in range(40):
                assert (got - expected).norm() / expected.norm() < limit
                got = decoder.extend(batch, [token])
                expected = model(torch.tensor([[token]]), cache)[0][:, -1]


def test_int8_logits_equal_those_of_the_plain_cache(tiny_model: ShardLM, has_kernels: bool) -> None:
    """Alone and side by side, where rows see different numbers of slots, past the edge of the window."""
    model = quantize(tiny_model, most_rows=0)  # the products are the plain ones: attention is what is compared
    with torch.inference_mode():
        caches = [KVCache(model, 1, 60) for _ in PROMPTS]
        decoder = Decoder(model)
        assert decoder.has_kernels == has_kernels
        batch, got = decoder.start(PROMPTS, 60)
        expected = [model(torch.tensor([ids]), cache)[0][0, -1] for ids, cache in zip(PROMPTS, caches, strict=True)]
        for token in range(25):
            assert (got - torch.stack(expected)).norm() / got.norm() < 1e-5
            got = decoder.extend(batch, [token] * len(PROMPTS))
            expected = [model(torch.tensor([[token]]), cache)[0][0, -1] for cache in caches]


def test_side_by_side_as_alone(tiny_model: ShardLM) -> None:
    alone = [list(generate_ids(tiny_model, prompt, 50)) for prompt in PROMPTS]
    assert together(tiny_model, PROMPTS, 50) == alone
    assert len({tuple(text) for text in alone}) == len(PROMPTS)


def test_draws_side_by_side_as_alone(tiny_model: ShardLM) -> None:
    options = {"temperature": 1.0, "top_p": 0.9, "seed": 5}
    alone = [list(generate_ids(tiny_model, prompt, 30, **options)) for prompt in PROMPTS]  # type: ignore[arg-type]
    assert together(tiny_model, PROMPTS, 30, **options) == alone


def test_each_row_ends_for_itself(tiny_model: ShardLM) -> None:
    """At its stop token, at the end of the context, or because the caller ends it; the others go on as before."""
    long = [i % 67 for i in range(90)]
    prompts = [*PROMPTS, long]
    whole = [list(generate_ids(tiny_model, prompt, 40)) for prompt in prompts]
    assert [len(text) for text in whole] == [40, 40, 40, 40, 6]
    assert together(tiny_model, prompts, 40) == whole
    stop = whole[0][10]
    cut = [text[: text.index(stop)] if stop in text else text for text in whole]
    assert together(tiny_model, prompts, 40, stop_id=stop) == cut
    assert len(cut[0]) < 40 and len({len(text) for text in cut}) > 2

    ended: set[int] = set()
    texts: list[list[int]] = [[] for _ in PROMPTS]
    for step, tokens in enumerate(continue_prompts(Decoder(tiny_model), PROMPTS, 40, ended=ended)):
        for row, token in enumerate(tokens):
            texts[row] += [] if token is None else [token]
        if step < len(PROMPTS):
            ended.add(step)
    assert texts == [text[: i + 1] for i, text in enumerate(whole[:4])], "and nothing is computed when all have ended"


@pytest.mark.parametrize(("prompt_length", "expected"), [(90, 6), (95, 1), (96, 0)])
def test_ends_where_the_context_ends(tiny_model: ShardLM, prompt_length: int, expected: int) -> None:
    prompt = [i % 67 for i in range(prompt_length)]
    assert len(list(continue_prompt(Decoder(tiny_model), prompt, 50))) == expected


def test_prompts_beyond_the_context_and_empty_ones_are_refused(tiny_model: ShardLM) -> None:
    for prompts in ([[1] * 97], [[1], []]):
        with pytest.raises(ValueError, match="the context is 1 to 96"):
            Decoder(tiny_model).start(prompts, 10)


def test_nothing_is_computed_before_it_is_asked_for(tiny_model: ShardLM, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    extend = Decoder.extend
    monkeypatch.setattr(Decoder, "extend", lambda self, *args: calls.append(1) or extend(self, *args))
    tokens = continue_prompt(Decoder(tiny_model), PROMPTS[0], 10)
    next(tokens)
    assert len(calls) == 0
    next(tokens)
    assert len(calls) == 1
    assert len(list(tokens)) == 8 and len(calls) == 9, "and none after the last"


def test_the_model_stays_usable_and_memory_holds_the_weights_once(tiny_model: ShardLM) -> None:
    ids = torch.tensor([PROMPTS[2]])
    before = tiny_model(ids)[0]
    decoder = Decoder(tiny_model)
    assert torch.equal(tiny_model(ids)[0], before)
    attention = tiny_model.blocks[0].attention
    joined = decoder.layers[0].query_key_value.weight
    for i, part in enumerate((attention.query, attention.key, attention.value)):
        assert part.weight.untyped_storage().data_ptr() == joined.untyped_storage().data_ptr()
        assert torch.equal(joined[32 * i : 32 * (i + 1)], part.weight)


def test_join_is_the_parts_in_turn(tiny_model: ShardLM) -> None:
    x = torch.randn(3, 32)
    for model in (tiny_model, quantize(tiny_model)):
        block = model.blocks[0].feed_forward
        expected = torch.cat([block.gate(x), block.up(x)], dim=-1)
        torch.testing.assert_close(join([block.gate, block.up])(x), expected)


# Compiled


def test_a_compiled_step_serves_every_token_and_every_batch(tiny_model: ShardLM, has_kernels: bool) -> None:
    """Compiled once, or with torch's attention for each doubling of what is read (16, 32, 64); and not again by a
    second batch.
    """
    counter = CompileCounter()
    decoder = Decoder(tiny_model, compile=True, backend=counter)
    for prompt in (PROMPTS[0], [8, 8, 8], PROMPTS[0]):
        tokens = list(continue_prompt(decoder, prompt, 50))
        assert tokens == list(generate_ids(tiny_model, prompt, 50))
        assert counter.frame_count == (1 if has_kernels else 3)


def test_what_was_compiled_for_one_decoder_is_not_run_by_another(tiny_model: ShardLM, has_kernels: bool) -> None:
    """Other weights, shapes and kinds of layers, in turns."""
    torch.manual_seed(1)
    other = ShardLM(replace(tiny_model.config, intermediate_size=40))
    for p in other.parameters():
        torch.nn.init.normal_(p, std=0.2)
    models = [tiny_model, other, quantize(deepcopy(tiny_model), most_rows=0)]
    backend = CompileCounter()  # the same for all: what was compiled by another is never found
    decoders = [Decoder(model, compile=True, backend=backend) for model in models]
    for _ in range(2):
        for model, decoder in zip(models, decoders, strict=True):
            assert list(continue_prompt(decoder, PROMPTS[0], 10)) == list(generate_ids(model, PROMPTS[0], 10))


def test_a_compiled_decoder_takes_batches_of_other_sizes_and_lengths(tiny_model: ShardLM, has_kernels: bool) -> None:
    """What was compiled for one is not run with another; rows end at different steps."""
    counter = CompileCounter()
    decoder = Decoder(tiny_model, compile=True, backend=counter)
    whole = {tuple(prompt): list(generate_ids(tiny_model, prompt, 45)) for prompt in PROMPTS}
    stop = whole[tuple(PROMPTS[0])][5]
    for prompts, max_tokens in (
        (PROMPTS, 20),
        (PROMPTS[1:2], 20),
        (PROMPTS[1:3], 45),
        (PROMPTS, 20),
        (PROMPTS[:1], 45),
    ):
        texts: list[list[int]] = [[] for _ in prompts]
        for tokens in continue_prompts(decoder, prompts, max_tokens, stop_id=stop):
            for row, token in enumerate(tokens):
                texts[row] += [] if token is None else [token]
        for prompt, text in zip(prompts, texts, strict=True):
            expected = whole[tuple(prompt)][:max_tokens]
            assert text == (expected[: expected.index(stop)] if stop in expected else expected)
    # With our own attention once for 4, 1 and 2 rows; with torch's again where a longer buffer is read.
    assert counter.frame_count == 3 if has_kernels else counter.frame_count > 3


def test_a_compiled_step_serves_rows_of_any_length(tiny_model: ShardLM, has_kernels: bool) -> None:
    counter = CompileCounter()
    decoder = Decoder(tiny_model, compile=True, backend=counter)
    for prompts in (PROMPTS, PROMPTS[::-1]):
        alone = [list(generate_ids(tiny_model, prompt, 30)) for prompt in prompts]
        rows = list(continue_prompts(decoder, prompts, 30))
        assert [list(text) for text in zip(*rows, strict=True)] == alone
    assert counter.frame_count == (1 if has_kernels else 2), "torch's attention: 32 slots, then 64, for both"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_compiled_by_inductor_as_eager(tiny_model: ShardLM, has_kernels: bool, precision: str) -> None:
    works, reason = choose_compile(torch.device("cpu"))
    if not works:
        pytest.skip(reason)
    model = {"fp32": tiny_model.float, "bf16": tiny_model.bfloat16, "int8": lambda: quantize(tiny_model)}[precision]()
    eager, compiled = Decoder(model), Decoder(model, compile=True)
    with torch.inference_mode():
        (batch, _), (other, _) = eager.start(PROMPTS, 60), compiled.start(PROMPTS, 60)
        for token in range(30):
            got, expected = compiled.extend(other, [token] * 4), eager.extend(batch, [token] * 4)
            # Fused, what lies between two operations is not rounded to bf16.
            limit = {"fp32": 1e-5, "int8": 1e-3 if has_kernels else 0.02, "bf16": 0.06}[precision]
            assert (got - expected).norm() / expected.norm() < limit
