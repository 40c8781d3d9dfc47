"""A small mixture of experts from a text to a bundle."""

from pathlib import Path

import pytest
import torch
from moe_run import Outcome, run_mixture

from shard.report.history import read_run
from shard.training.metrics import read_jsonl

MODEL = (
    "model={vocab_size = 300, hidden_size = 32, num_layers = 2, num_heads = 2, head_dim = 16, intermediate_size = 48, "
    "max_sequence_length = 128, sliding_window = 8, "
    "moe = {num_experts = 3, top_k = 1, num_shared = 1, bias_rate = 0.01}}"
)
SETS = [
    *("tokenizer.sample_bytes=100kB", "pretrain.sequence_length=32", "pretrain.tokens_per_step=128"),
    *("anneal.sequence_length=32", "pretrain.warmup_steps=1", "pretrain.compile=off", "pretrain.micro_batch=2"),
    *(
        "pretrain.precision=fp32",
        "pretrain.evaluate_every=4",
        "pretrain.evaluate_bytes=1kB",
        "pretrain.sentinel_every=4",
    ),
    *('pretrain.sample_prompts=["The "]', "pretrain.sample_every=100", "pretrain.keep_last=9", 'release.gguf=["f32"]'),
    "data.evaluation_sets=[]",
]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Outcome:
    folder = tmp_path_factory.mktemp("moe") / "run"
    sources = [f'sources={{text = {{kind = "text", path = "{text_folder}"}}}}']
    mixes = ["pretrain.mix={text = 1.0}", "anneal.mix={text = 1.0}"]
    return run_mixture(folder, "quickstart", [MODEL, *SETS, *sources, *mixes], steps=4, new_tokens=5)


def test_its_bundle_loads_with_the_published_lines(outcome: Outcome) -> None:
    assert outcome.text.startswith("The capital of France is")
    content = torch.load(outcome.folder / "release" / "models" / "model.pt", weights_only=True)
    assert content["cfg"]["moe"]["num_experts"] == 3
    assert content["model"]["blocks.0.feed_forward.gate.weight"].shape == (3, 48, 32)


def test_the_bias_moved_and_is_in_the_checkpoint(outcome: Outcome) -> None:
    content = torch.load(outcome.folder / "release" / "models" / "model.pt", weights_only=True)
    assert any(content["model"][f"blocks.{i}.feed_forward.bias"].any() for i in range(2))


def test_what_the_routers_did_is_recorded(outcome: Outcome) -> None:
    lines = read_jsonl(outcome.folder / "pretrain" / "metrics.jsonl")
    for line in lines:
        experts = line["experts"]
        assert len(experts["load"]) == len(experts["entropy"]) == len(experts["dead"]) == 2
        for load, entropy, dead in zip(experts["load"], experts["entropy"], experts["dead"], strict=True):
            assert sum(load) == pytest.approx(1, abs=1e-4)
            assert 0 < entropy <= 1.0987
            assert dead == load.count(0)


def test_the_report_draws_what_the_routers_did(outcome: Outcome) -> None:
    curves = read_run(outcome.folder).stages["pretrain"].every_step.values
    loads = [line["experts"]["load"] for line in read_jsonl(outcome.folder / "pretrain" / "metrics.jsonl")]
    flat = [[3 * load for layer in step for load in layer] for step in loads]
    assert curves["expert_least_load"].tolist() == pytest.approx([min(step) for step in flat])
    assert curves["expert_largest_load"].tolist() == pytest.approx([max(step) for step in flat])
    assert (curves["expert_entropy"] > 0).all() and (curves["expert_dead"] >= 0).all()


def test_the_sentinel_looks_at_each_expert(outcome: Outcome) -> None:
    looks = [e for e in read_jsonl(outcome.folder / "pretrain" / "events.jsonl") if e["event"] == "sentinel"]
    names = {spectrum["name"] for spectrum in looks[0]["spectra"]}
    assert {f"blocks.1.feed_forward.up.weight[{e}]" for e in range(3)} <= names


def test_gguf_is_refused_in_one_line(outcome: Outcome) -> None:
    assert "no GGUF export: llama.cpp has no architecture with this moe" in outcome.left_out
    assert not (outcome.folder / "release" / "gguf").exists()
