"""The captured step against the eager one, where there is a GPU."""

import pytest
import torch

from shard.inference.cuda_graph import GraphedStep
from shard.inference.decoder import Decoder
from shard.inference.generate import continue_prompt, continue_prompts
from shard.inference.sampling import generate_ids
from shard.model import ShardLM

PROMPTS = [[3, 1, 4, 1, 5], [9], [(7 * i) % 67 for i in range(30)]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_captured_step_gives_the_same_tokens(tiny_model: ShardLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shard.inference.decoder.LEAST_SIZE", 16)
    model = tiny_model.cuda()
    decoder = Decoder(model, compile=True)
    assert isinstance(decoder._run, GraphedStep)
    alone = [list(generate_ids(model, prompt, 50)) for prompt in PROMPTS]
    for _ in range(2):
        assert [list(continue_prompt(decoder, prompt, 50)) for prompt in PROMPTS] == alone
    rows = list(continue_prompts(decoder, PROMPTS, 50))
    assert [list(text) for text in zip(*rows, strict=True)] == alone
