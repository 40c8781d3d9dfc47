"""Layers that are computed again in the backward pass: the same numbers in less memory."""

from pathlib import Path

import pytest
import torch
from tiny_stage import assert_same_end, make_stage, make_trainer

from shard.model import ShardLM
from shard.training.step import TrainingStep


def gradients(data: Path, folder: Path, recompute: str, precision: str) -> tuple[list[torch.Tensor], int]:
    """Sums of the loss and gradients of one step, and how many bytes the forward pass kept for the backward pass."""
    stage = make_stage(data, folder, recompute=recompute, precision=precision)
    torch.manual_seed(0)
    model = ShardLM(stage.config)
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)  # output matrices of zero would hide a wrong gradient
    work = TrainingStep(stage, model, lambda *_: None)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sums = work.accumulate_gradients(stage.loader.batch(0))
    return [*sums, *(p.grad for p in model.parameters())], sum(kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loss_and_gradients_are_equal_to_the_bit(data: Path, tmp_path: Path, precision: str) -> None:
    plain, plain_bytes = gradients(data, tmp_path, "none", precision)
    again, again_bytes = gradients(data, tmp_path, "layer", precision)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert again_bytes < 0.5 * plain_bytes


def test_a_stage_ends_the_same(data: Path, tmp_path: Path) -> None:
    """With its evaluations, samples and checkpoints, whose names of parameters do not change."""
    make_trainer(data, tmp_path / "none").train(until=10)
    make_trainer(data, tmp_path / "layer", recompute="layer").train(until=10)
    assert_same_end(tmp_path / "none", tmp_path / "layer")
