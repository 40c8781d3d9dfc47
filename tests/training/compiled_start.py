"""Run by test_compiler_cache.py: one micro-batch of a small compiled model. Prints what the compiler's cache had, and
the SHA-256 of all gradients.
"""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

from shard.environment import set_process_defaults

set_process_defaults()

import torch  # noqa: E402
from tiny_stage import CONFIG, make_stage, write_data  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402

from shard.environment import make_deterministic  # noqa: E402
from shard.model import ShardLM  # noqa: E402
from shard.training.step import TrainingStep  # noqa: E402


def main(folder: Path, attention: str) -> None:
    """Attention has a backward pass of its own in both kinds: in bands, and by our own kernel."""
    if not (folder / "data").exists():
        (folder / "data").mkdir()
        write_data(folder / "data")
    config = replace(CONFIG, num_layers=1, layer_pattern="L", sliding_window=256, max_sequence_length=512)
    stage = make_stage(
        folder / "data", folder / "run", compiled=True, sequence_length=512, tokens_per_step=512, micro_batch=1
    )
    chosen = {"cpu_attention": False, attention: True}
    stage = replace(stage, config=config, decisions=replace(stage.decisions, **chosen))
    make_deterministic(3)
    step = TrainingStep(stage, ShardLM(config), print)
    step.accumulate_gradients(stage.loader.fetch(0))
    stage.loader.close()
    digest = hashlib.sha256()
    for parameter in step.model.parameters():
        assert parameter.grad is not None
        digest.update(parameter.grad.numpy().tobytes())
    found = {**counters["aot_autograd"], **counters["inductor"]}
    print(json.dumps({"found": found, "gradients": digest.hexdigest(), "threads": torch.get_num_threads()}))


main(Path(sys.argv[1]), sys.argv[2])
