"""The kill test with the reference model: 54.5 million parameters, bf16, compiled, sequences of 2,048 tokens.

`make test-crash-full`: a quarter of an hour on two cores. With SHARD_CRASH_SMALL=1 the same with a tiny model, to try
this file itself.
"""

import os
import random
import signal
from pathlib import Path

import pytest
from crashing import Life, assert_same, write_text_folder

SMALL = bool(os.environ.get("SHARD_CRASH_SMALL"))
LENGTH = 128 if SMALL else 2048
STEP_SECONDS = 0.1 if SMALL else 8.0
LIFE_SECONDS = 10.0 if SMALL else 240.0
PATIENCE = 300.0 if SMALL else 1500.0
STEPS = {"pretrain": 6, "anneal": 3}
CHECKPOINT_EVERY = {"pretrain": 2, "anneal": 1}
RECIPE = {
    "tokenizer.sample_bytes": "300kB",
    "data.heldout_bytes": "4kB",
    "pretrain.steps": STEPS["pretrain"],
    "pretrain.sequence_length": LENGTH,
    "pretrain.tokens_per_step": LENGTH,
    "pretrain.warmup_steps": 2,
    "pretrain.precision": "bf16",
    "pretrain.compile": "on",
    "pretrain.checkpoint_every": CHECKPOINT_EVERY["pretrain"],
    "pretrain.evaluate_every": 3,
    "pretrain.evaluate_bytes": "2kB",
    "pretrain.sample_every": 100,
    "pretrain.sample_prompts": '["The "]',
    "pretrain.sentinel_every": 100,
    "anneal.steps": STEPS["anneal"],
    "anneal.sequence_length": LENGTH,
    "anneal.checkpoint_every": CHECKPOINT_EVERY["anneal"],
    "evaluate.context": 512 if not SMALL else 64,
    "evaluate.max_items": 4,
    "release.prompts": '["a b"]',
}
SMALL_MODEL = {
    "model": "{vocab_size = 512, hidden_size = 64, num_layers = 2, num_heads = 2, head_dim = 32, "
    "intermediate_size = 128, max_sequence_length = 128, sliding_window = 32}",
}


@pytest.mark.slow
def test_the_reference_model_is_killed_in_pretraining_in_annealing_and_anywhere(
    tmp_path: Path, rng: random.Random
) -> None:
    (tmp_path / "text").mkdir()
    text = write_text_folder(tmp_path / "text", num_files=400, num_words=20_000)
    sets = [f"{key}={value}" for key, value in (RECIPE | (SMALL_MODEL if SMALL else {})).items()]
    recipe = ["shard-40m-v1", "--data", str(text), *(word for pair in sets for word in ("--set", pair))]
    reference = Life(tmp_path / "undisturbed", recipe, PATIENCE, threads=2)
    reference.finish()
    life = Life(tmp_path / "run", recipe, PATIENCE, threads=2)
    killed = 0
    for stage, num_steps in STEPS.items():
        # After its first checkpoint, so that what is loaded is part of the test; between that step and the last one.
        step = rng.randint(CHECKPOINT_EVERY[stage], num_steps - 1)

        def begun(stage: str = stage, step: int = step) -> bool:
            return life.steps(stage) >= step

        killed += life.disturb(begun, rng.uniform(0, STEP_SECONDS), (signal.SIGKILL,)) is not None
    killed += life.disturb(lambda: True, rng.uniform(0, LIFE_SECONDS / 3), (signal.SIGKILL,)) is not None
    if life.place != "after release":
        life.finish()
    print(f"{killed} kills: {life.moments}")
    assert killed >= 2, "the test ended before the kills"
    assert_same(life.folder, reference.folder)
