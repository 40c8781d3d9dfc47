"""The whole 412M mixture of experts on a CPU in bf16, within 20 GiB: `make test-moe-full`. It takes long, since a step
orthogonalises 192 matrices, however few its tokens are. SHARD_MOE_STEPS is the number of steps (20).
"""

import os
from pathlib import Path

import pytest
from moe_run import run_mixture

from shard.config import Config
from shard.recipe import Recipe
from shard.training.cost import count_parameters

STEPS = int(os.environ.get("SHARD_MOE_STEPS", "20"))
NEW_TOKENS = int(os.environ.get("SHARD_MOE_NEW_TOKENS", "40"))
MOST_BYTES = 20 * 2**30
SETS = [
    *("tokenizer.sample_bytes=100kB", "data.evaluation_sets=[]", "release.gguf=[]", "data.heldout_bytes=1kB"),
    *("pretrain.sequence_length=4", "pretrain.tokens_per_step=4", "anneal.sequence_length=4", "pretrain.micro_batch=1"),
    *("pretrain.precision=bf16", "pretrain.compile=off", "pretrain.warmup_steps=1", "pretrain.keep_last=9"),
    *("pretrain.evaluate_every=1000000", "pretrain.sentinel_every=1000000", "pretrain.sample_every=1000000"),
    "pretrain.sample_prompts=[]",
]


@pytest.mark.slow
def test_trains_resumes_releases_and_generates(tmp_path: Path, text_folder: Path) -> None:
    recipe = Recipe.load("shard-412m-moe")
    assert recipe.config.vocab_size == 262_144
    sources = [f'sources={{text = {{kind = "text", path = "{text_folder}"}}}}']
    mixes = ["pretrain.mix={text = 1.0}", "anneal.mix={text = 1.0}"]
    outcome = run_mixture(tmp_path / "run", "shard-412m-moe", [*SETS, *sources, *mixes], STEPS, NEW_TOKENS, fresh=True)
    print(f"peak of memory: {outcome.peak_bytes / 2**30:.2f} GiB; {outcome.text!r}")
    assert outcome.peak_bytes < MOST_BYTES
    assert outcome.text.startswith("The capital of France is")
    assert 411_500_000 <= count_parameters(Config(**recipe.model)).total <= 412_500_000
