"""The mixture of experts in transformers, by the file that its folder brings: logits, texts, and the way back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_release import make_model, other

from shard.config import Config
from shard.inference.sampling import generate_ids
from shard.model import ShardLM
from shard.release.hugging_face import export_hugging_face
from shard.release.hugging_face_import import read_config, read_weights

transformers = pytest.importorskip("transformers")

MIXTURES: list[dict[str, Any]] = [
    {"num_experts": 3, "top_k": 1, "num_shared": 1, "score": "sigmoid"},
    {"num_experts": 4, "top_k": 2, "num_shared": 0, "score": "softmax_top_k"},
    {"num_experts": 3, "top_k": 1, "num_shared": 0, "score": "softmax"},
]


def make_mixture(mixture: dict[str, Any]) -> tuple[ShardLM, Config]:
    config = other(moe=mixture)
    torch.manual_seed(1)
    model = make_model(config)
    with torch.no_grad():
        for block in model.blocks:
            layer = block.feed_forward
            for stack in (layer.gate, layer.up, layer.down):
                stack.weight.normal_(std=stack.weight.size(-1) ** -0.5)
            layer.bias.uniform_(-0.1, 0.1)
    return model, config


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
@torch.no_grad()
def test_logits_and_greedy_texts_equal_ours_and_the_weights_come_back(
    mixture: dict[str, Any], tokenizer_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, config = make_mixture(mixture)
    folder = tmp_path / "hf"
    export_hugging_face(model.state_dict(), config, tokenizer_path, folder, "fp32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=True)
    assert type(theirs).__name__ == "ShardMoeForCausalLM" and theirs.dtype == torch.float32
    ids = torch.randint(1, 300, (1, 100), generator=torch.Generator().manual_seed(0))
    assert (theirs(ids).logits - model(ids)[0]).abs().max() < 1e-4
    new = theirs.generate(ids[:, :20], attention_mask=torch.ones(1, 20), max_new_tokens=40, eos_token_id=-1)[0, 20:]
    assert new.tolist() == list(generate_ids(model, ids[0, :20].tolist(), 40))
    assert read_config(folder).mixture == config.mixture
    back = read_weights(folder, read_config(folder))
    assert all(torch.equal(back[name], weight) for name, weight in model.state_dict().items())


def test_transformers_runs_it_only_where_it_is_trusted(tokenizer_path: Path, tmp_path: Path) -> None:
    model, config = make_mixture(MIXTURES[0])
    export_hugging_face(model.state_dict(), config, tokenizer_path, tmp_path, "fp32")
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True, trust_remote_code=False)
