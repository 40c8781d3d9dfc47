"""A stage that follows a teacher: gradients, records, resumes, and that nothing changes without one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_stage import CONFIG, assert_same_end, make_stage, make_trainer, metrics, write_data
from torch import Tensor

from shard.distillation.entries import pad_entries
from shard.distillation.loss import DenseTargets, SparseTargets, dense_log_probabilities, plain_distilled_loss
from shard.distillation.settings import DistillationSettings
from shard.distillation.sparse import sampled_entries
from shard.distillation.teacher import Distillation
from shard.model import ShardLM
from shard.training.step import TrainingStep


class Bigrams:
    """A teacher that looks at one token: its hidden states are a table of the ids."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(9)
        self.states = torch.randn(CONFIG.vocab_size, 16, generator=generator)
        self.table = torch.randn(CONFIG.vocab_size, 16, generator=generator)
        self.asked: list[tuple[int, int, tuple[int, ...]]] = []

    def targets(self, index: int, first: int, inputs_BT: Tensor) -> DenseTargets:
        self.asked.append((index, first, tuple(inputs_BT.shape)))
        return DenseTargets(self.states[inputs_BT.flatten()], self.table)


class Sampled(Bigrams):
    """The same, by draws that depend on the inputs alone."""

    def targets(self, index: int, first: int, inputs_BT: Tensor) -> SparseTargets:  # type: ignore[override]
        dense = super().targets(index, first, inputs_BT)
        log_p = dense_log_probabilities(dense, CONFIG.vocab_size, 1.0)
        uniform = (inputs_BT.flatten().double() * 0.6180339887) % 1
        entries = sampled_entries(log_p, uniform, 500)
        ids, counts = pad_entries(entries, 500)
        entropy = torch.from_numpy(entries.entropy.astype("f4"))
        return SparseTargets(torch.from_numpy(ids), torch.from_numpy(counts) / 500, None, entropy)


def teacher(source: Any = None, steps: int = 20, **changes: Any) -> Distillation:
    settings = DistillationSettings(teacher="none", licence="mit", **{"weight": 0.7, **changes})
    return Distillation(source or Bigrams(), settings, steps)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def gradients(data: Path, folder: Path, **changes: Any) -> tuple[TrainingStep, tuple[Tensor, ...]]:
    stage = make_stage(data, folder, **changes)
    torch.manual_seed(0)
    work = TrainingStep(stage, ShardLM(stage.config), lambda *_: None)
    sums = work.accumulate_gradients(stage.loader.batch(3), 3, 0, stage.teacher.weight(5) if stage.teacher else 0.0)
    stage.loader.close()
    return work, sums


def test_the_gradients_are_those_of_the_plain_loss_on_the_whole_batch(data: Path, tmp_path: Path) -> None:
    source = Bigrams()
    changes = {"stage": {"teacher": teacher(source, temperature=2.0)}}
    work, (nll, z, kl) = gradients(data, tmp_path, micro_batch=3, **changes)
    assert source.asked == [(3, 0, (3, 32)), (3, 3, (3, 32)), (3, 6, (2, 32))]
    got = {name: parameter.grad.clone() for name, parameter in work.model.named_parameters()}
    work.optimizer.clear_gradients()
    rows = torch.from_numpy(make_stage(data, tmp_path).loader.batch(3))
    hidden = work.model.hidden(rows[:, :-1], dtype=torch.float32).flatten(0, 1)
    soft = source.targets(3, 0, rows[:, :-1])
    expected = plain_distilled_loss(
        hidden, work.model.embedding.weight, rows[:, 1:].flatten(), soft, 0.7, CONFIG.logit_cap, 1e-4, 2.0, 1 / 256
    )
    expected.total.backward()
    for value, other in zip((nll, z, kl), expected[1:], strict=True):
        assert value.item() == pytest.approx(other.item(), rel=1e-5)
    for name, parameter in work.model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_record_has_the_weight_and_the_divergence_and_the_loss_they_make(data: Path, tmp_path: Path) -> None:
    follows = teacher(weight=0.8, weight_end=0.0, weight_steps=10, temperature=1.5)
    make_trainer(data, tmp_path / "run", stage={"teacher": follows}).train()
    for step in metrics(tmp_path / "run"):
        share = max(0.0, 0.8 * (1 - (step["step"] - 1) / 10))
        assert step["teacher_weight"] == pytest.approx(share)
        assert ("teacher_kl_nats" in step) == (share > 0)
        divergence = step.get("teacher_kl_nats", 0.0)
        expected = (1 - share) * step["cross_entropy_nats"] + share * 1.5**2 * divergence + step["z_loss"]
        assert step["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_student_comes_nearer_to_its_teacher(data: Path, tmp_path: Path) -> None:
    make_trainer(data, tmp_path / "run", stage={"teacher": teacher(weight=1.0)}).train()
    divergences = [step["teacher_kl_nats"] for step in metrics(tmp_path / "run")]
    assert divergences[-1] < 0.8 * divergences[0]
    assert min(divergences) > 0


def test_a_stage_that_was_stopped_goes_on_to_the_same_bits(data: Path, tmp_path: Path) -> None:
    follows = {"teacher": teacher(Sampled(), weight=0.9, weight_end=0.2)}
    make_trainer(data, tmp_path / "whole", stage=follows).train()
    make_trainer(data, tmp_path / "parts", stage=follows).train(until=13)
    make_trainer(data, tmp_path / "parts", stage=follows).train()
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_teacher_of_weight_0_changes_no_bit_and_is_not_asked(data: Path, tmp_path: Path) -> None:
    source = Bigrams()
    make_trainer(data, tmp_path / "without").train()
    make_trainer(data, tmp_path / "with", stage={"teacher": teacher(source, weight=0.0)}).train()
    assert source.asked == []
    recorded = [{k: v for k, v in step.items() if k != "teacher_weight"} for step in metrics(tmp_path / "with")]
    assert recorded == metrics(tmp_path / "without")


def test_sampled_targets_train_as_all_of_the_distribution_does(data: Path, tmp_path: Path) -> None:
    """The same steps by 500 draws a token: the curves lie together, and the text alone goes elsewhere."""
    curves = {}
    for name, follows in (("all", Bigrams()), ("draws", Sampled()), ("text", None)):
        changes = {} if follows is None else {"stage": {"teacher": teacher(follows)}}
        make_trainer(data, tmp_path / name, **changes).train()
        curves[name] = torch.tensor([step["cross_entropy_nats"] for step in metrics(tmp_path / name)])
    apart = (curves["draws"] - curves["all"]).abs().max()
    assert apart < 0.05
    assert (curves["text"] - curves["all"]).abs().max() > 5 * apart


@pytest.mark.parametrize("source", [Sampled, pytest.param(Bigrams, marks=pytest.mark.slow)])
def test_the_compiled_step_is_the_eager_one(data: Path, tmp_path: Path, source: type[Bigrams]) -> None:
    """Also with a weight that changes, which is not compiled anew."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    ends = []
    for compiled in (False, True):
        follows = {"teacher": teacher(source(), weight=0.9, weight_end=0.1)}
        folder = tmp_path / f"compiled {compiled}"
        make_trainer(data, folder, compiled=compiled, stage=follows, steps=4, decay_steps=1, num_layers=1).train()
        ends.append([step["loss"] for step in metrics(folder)])
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
