"""What only a GPU can show: a step that the host never waits for, compiled kernels that repeat, memory as predicted.

Left out where there is none. The other tests of training run on whatever device they choose, which is the CPU there.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_stage import CONFIG, Listener, assert_same_end, make_stage

from shard.config import Config
from shard.environment import make_deterministic
from shard.model import ShardLM
from shard.training.decisions import decide
from shard.training.stage import Stage
from shard.training.step import TrainingStep
from shard.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
CUDA = torch.device("cuda")
SHAPE = replace(CONFIG, hidden_size=128, num_heads=2, head_dim=64, intermediate_size=256, sliding_window=16)
MIXTURE = replace(SHAPE, moe={"num_experts": 3, "top_k": 1, "num_shared": 1, "score": "sigmoid", "bias_rate": 0.01})


def stage_of(data: Path, folder: Path, config: Config, **changes: object) -> Stage:
    """The tiny stage on the GPU, computing as a run would decide to."""
    make_deterministic(0)
    plain = make_stage(data, folder, **changes)
    decisions = decide("pretrain", plain.settings, CUDA, folder / "decisions.json", config)
    return replace(plain, config=config, device=CUDA, decisions=decisions)


@pytest.mark.parametrize("config", [SHAPE, MIXTURE], ids=["dense", "mixture"])
@pytest.mark.parametrize("how", ["off", "on"])
def test_the_host_never_waits_within_a_step(data: Path, tmp_path: Path, config: Config, how: str) -> None:
    """By CUDA's own account: whatever makes the host wait raises."""
    stage = stage_of(data, tmp_path, config, compile=how)
    work = TrainingStep(stage, ShardLM(config).to(CUDA), lambda *_: None)
    for step in (1, 2):  # compiles, and allocates pinned memory
        work.launch(step, stage.loader.batch(step)).wait()
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = [work.launch(step, stage.loader.batch(step)) for step in (3, 4, 5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(step.wait()[5] == 0 for step in launched)


@pytest.mark.parametrize("config", [SHAPE, MIXTURE], ids=["dense", "mixture"])
def test_a_resumed_stage_ends_with_the_same_bits(data: Path, tmp_path: Path, config: Config) -> None:
    """Compiled, in bf16, with the attention that was chosen; in one go against stopped and begun again."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    Trainer(stage_of(data, straight, config), Listener()).train()
    Trainer(stage_of(data, stopped, config), Listener()).train(until=10)
    torch._dynamo.reset()
    Trainer(stage_of(data, stopped, config), Listener()).train()
    assert_same_end(straight, stopped)
