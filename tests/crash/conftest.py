"""What the crash tests share: a text, a tiny recipe, and one run of it that nothing disturbed."""

import os
import random

import pytest
from crashing import Life, write_text_folder

RECIPE = {
    "model": "{vocab_size = 300, hidden_size = 32, num_layers = 2, num_heads = 2, head_dim = 16, "
    "intermediate_size = 64, max_sequence_length = 128, sliding_window = 8}",
    "tokenizer.sample_bytes": "200kB",
    "data.heldout_bytes": "4kB",
    "data.shard_bytes": "64kB",
    "pretrain.steps": "12",
    "pretrain.sequence_length": "32",
    "pretrain.tokens_per_step": "128",
    "pretrain.warmup_steps": "1",
    "pretrain.micro_batch": "2",
    "pretrain.compile": "off",
    "pretrain.precision": "fp32",
    "pretrain.checkpoint_every": "1",
    "pretrain.keep_last": "3",
    "pretrain.evaluate_every": "4",
    "pretrain.evaluate_bytes": "1kB",
    "pretrain.sample_every": "6",
    "pretrain.sample_prompts": '["The "]',
    "pretrain.sentinel_every": "5",
    "anneal.steps": "8",
    "anneal.sequence_length": "32",
    "evaluate.max_items": "11",
    "release.prompts": '["a b"]',
}
"""A run of two seconds, most of them benchmarks, after three seconds of imports: 20 steps, 20 checkpoints."""


@pytest.fixture(scope="session")
def sets() -> list[str]:
    """What makes a recipe tiny."""
    return [word for key, value in RECIPE.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="session")
def recipe(sets: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of the tiny recipe: put them after a verb, with an --out."""
    text = write_text_folder(tmp_path_factory.mktemp("text"), num_files=160)
    return ["quickstart", "--data", str(text), *sets]


@pytest.fixture(scope="session")
def reference(recipe: list[str], tmp_path_factory: pytest.TempPathFactory) -> Life:
    """A run that nothing disturbed. Copy its folder before changing anything."""
    life = Life(tmp_path_factory.mktemp("undisturbed") / "run", recipe)
    life.finish()
    return life


@pytest.fixture
def rng() -> random.Random:
    """Random moments. `SHARD_CRASH_SEED` repeats them, as far as a clock repeats itself."""
    seed = int(os.environ.get("SHARD_CRASH_SEED") or random.SystemRandom().randrange(10**6))
    print(f"SHARD_CRASH_SEED={seed}")
    return random.Random(seed)
