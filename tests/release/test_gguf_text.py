"""GGUF files run in llama.cpp: the same greedy text in f32, and how far the smaller files are off."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from llama_server import SHAPES, WINDOWED, make_model, prompts, run, write_tokenizer
from tokenizers import Tokenizer
from torch import Tensor

from shard.inference.sampling import generate_ids
from shard.model import ShardLM
from shard.release.gguf import architecture_of, export_gguf
from shard.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_file)


NEAR_TIE = 1e-3
"""Two right implementations may choose differently where the two likeliest log-probabilities lie closer than this."""


@torch.inference_mode()
def uncapped(model: ShardLM, prompt_ids: list[int], new_ids: list[int]) -> Tensor:
    """Our log-probabilities [T, V] of what follows the prompt, from the logits before the cap."""
    hidden_BTD = model.hidden(torch.tensor([prompt_ids + new_ids]))
    logits_TV = F.linear(hidden_BTD, model.embedding.weight)[0, len(prompt_ids) - 1 : -1]
    return logits_TV.double().log_softmax(-1)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("alternating", 10),
        *((name, 2) for name in list(SHAPES)[1:]),
        *(pytest.param(name, 10, marks=pytest.mark.slow) for name in list(SHAPES)[1:]),
    ],
)
def test_greedy_continuations_in_f32_are_ours(
    name: str, number: int, tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = SHAPES[name]
    assert architecture_of(config) == ("granite_swa" if name in list(SHAPES)[:2] else "llama")
    model = make_model(config, tokenizer)
    path = export_gguf(model.state_dict(), config, tokenizer_file, tmp_path / "m.gguf", "f32", "m")
    near_ties, closest, seen = [], 1.0, set()
    with run(path) as llama:
        for prompt in prompts(number):
            theirs = llama.greedy(prompt, 256)
            ours = list(generate_ids(model, prompt, 256))
            assert len(theirs) == len(ours) == 256
            # Teacher-forced: after a near tie the texts may part, and each goes on to be ours.
            best = uncapped(model, prompt, theirs).topk(2)
            gaps = best.values[:, 0] - best.values[:, 1]
            wrong = (best.indices[:, 0] != torch.tensor(theirs)).nonzero().flatten().tolist()
            assert all(gaps[i] < NEAR_TIE for i in wrong), (len(prompt), [(i, gaps[i].item()) for i in wrong])
            assert theirs == ours or wrong
            near_ties += [gaps[i].item() for i in wrong]
            closest = min(closest, gaps.min().item())
            seen |= set(theirs)
    print(
        f"{name}: {number} x 256 tokens, {len(seen)} different; {len(near_ties)} near ties chosen otherwise {near_ties}"
    )
    print(f"the two likeliest lie {closest:.1e} apart at the least")
    assert len(near_ties) <= 3
    assert len(seen) > 50


@pytest.mark.parametrize("name", ["alternating", "global"])
def test_log_probabilities_are_ours_before_the_cap(
    name: str, tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """In f32 to rounding; in bf16 and q8_0 within what such weights cost."""
    config = SHAPES[name]
    model = make_model(config, tokenizer)
    mean, losses = {}, {}
    for dtype in ("f32", "bf16", "q8_0"):
        path = export_gguf(model.state_dict(), config, tokenizer_file, tmp_path / f"{dtype}.gguf", dtype, "m")
        differences, loss = [], []
        with run(path) as llama:
            for prompt in prompts(2):
                new, theirs = llama.log_probabilities(prompt, 48, config.vocab_size)
                ours = uncapped(model, prompt, new)
                differences.append((theirs - ours).abs().flatten())
                chosen = torch.tensor(new)[:, None]
                loss.append((ours.gather(1, chosen) - theirs.gather(1, chosen)).flatten())
        mean[dtype], losses[dtype] = torch.cat(differences).mean().item(), torch.cat(loss).mean().item()
        largest = torch.cat(differences).max().item()
        print(f"{name} {dtype}: {mean[dtype]:.1e} on average, {largest:.1e} at most; loss {losses[dtype]:+.1e} nats")
    assert mean["f32"] < 2e-5 and abs(losses["f32"]) < 2e-5
    assert mean["bf16"] < 0.02 and abs(losses["bf16"]) < 0.02
    assert mean["q8_0"] < 0.06 and abs(losses["q8_0"]) < 0.06
    assert mean["f32"] < mean["bf16"] < mean["q8_0"]


@pytest.mark.parametrize(
    "wrong", [{"sliding_window": 33}, {"layer_pattern": "LLG"}, {"rope_theta": 5100.0}, {"norm_eps": 1e-2}], ids=str
)
def test_every_part_of_the_shape_matters_in_that_comparison(
    wrong: dict[str, Any], tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = make_model(WINDOWED, tokenizer)
    other = replace(WINDOWED, **wrong)
    path = export_gguf(model.state_dict(), other, tokenizer_file, tmp_path / "m.gguf", "f32", "m")
    with run(path) as llama:
        new, theirs = llama.log_probabilities(prompts(1)[0], 8, WINDOWED.vocab_size)
    assert (theirs - uncapped(model, prompts(1)[0], new)).abs().mean() > 1e-3


def test_the_openai_client_gets_a_streamed_completion(
    tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    openai = pytest.importorskip("openai")
    model = make_model(WINDOWED, tokenizer)
    prompt = tokenizer.encode("The quick brown fox", add_special_tokens=False).ids
    ours = tokenizer.decode(list(generate_ids(model, prompt, 32)))
    with (
        run(export_gguf(model.state_dict(), WINDOWED, tokenizer_file, tmp_path / "m.gguf", "f32", "m")) as llama,
        openai.OpenAI(base_url=f"{llama.address}/v1", api_key="none") as client,
        client.completions.create(
            model="m", prompt="The quick brown fox", max_tokens=32, temperature=0, stream=True
        ) as stream,
    ):
        pieces = [chunk.choices[0].text for chunk in stream if chunk.choices]
    assert len(pieces) > 10, "it comes piece by piece"
    assert "".join(pieces) == ours
