"""What ranks divide equals what one process computes, and what one of them says or lacks reaches all."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from rank_processes import good, run_ranks
from tiny_stage import CONFIG, make_stage

from shard.distillation.loss import DenseTargets
from shard.distillation.settings import DistillationSettings
from shard.distillation.teacher import Distillation
from shard.environment import num_ranks
from shard.model import ShardLM
from shard.muon import newton_schulz, normalize
from shard.training.distributed import ALONE, LostRankError, Ranks, _meet
from shard.training.reduction import Agreed, Reduction, Wish
from shard.training.step import TrainingStep


def stacks() -> list[torch.Tensor]:
    """Wide, tall and square; fewer matrices than ranks, and a number that no number of ranks divides."""
    draw = torch.Generator().manual_seed(3)
    shapes = ((1, 8, 24), (7, 24, 8), (5, 16, 16))
    return [normalize(torch.randn(shape, generator=draw), "polar_express", torch.float32) for shape in shapes]


def orthogonalized(ranks: Ranks) -> list[torch.Tensor]:
    return [ranks.newton_schulz(stack, "polar_express").contiguous() for stack in stacks()]


@pytest.mark.parametrize("size", [2, 4])
def test_orthogonalisation_is_divided_and_gathered(size: int) -> None:
    expected = [newton_schulz(stack, "polar_express") for stack in stacks()]
    for result in good(run_ranks(size, orthogonalized)):
        for ours, theirs in zip(expected, result, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(expected, orthogonalized(ALONE), strict=True)), "alone: the function"


def summed(ranks: Ranks) -> list[Any]:
    parameters = [torch.zeros(3, 5, requires_grad=True), torch.zeros(7, requires_grad=True)]
    reduction = Reduction(parameters, ranks)
    results = []
    for step in range(2):  # the second must not see the first
        reduction.begin()
        (parameters[0] * (ranks.index + 1 + step)).sum().backward()  # the other parameter has no gradient here
        wish = Wish(signal.SIGINT if ranks.index == 1 and step == 1 else None, ranks.is_first and step == 1)
        nll, z, kl, told = reduction.sum(
            torch.tensor(float(ranks.index)), torch.tensor(2.0), torch.tensor(0.5), wish, 8 >> ranks.index
        )
        results.append(
            ([p.grad.clone() for p in parameters], float(nll), float(z), float(kl), Agreed.read(told.tolist()))
        )
    return results


def test_one_sum_brings_the_gradients_the_loss_and_what_is_told() -> None:
    results = good(run_ranks(3, summed))
    for result in results:
        for step, (gradients, nll, z, kl, agreed) in enumerate(result):
            assert (gradients[0] == 1 + 2 + 3 + 3 * step).all()
            assert not gradients[1].any()
            assert (nll, z, kl) == (3.0, 6.0, 1.5)
            assert agreed == Agreed(signal.SIGINT if step else None, bool(step), 2)


def test_sigterm_outweighs_sigint_and_one_rank_alone_agrees_on_nothing() -> None:
    assert Agreed.read([1.0, 1.0, 0.0, 4.0, 2.0]) == Agreed(signal.SIGTERM, False, 2)
    assert Agreed.read([]) == Agreed()


class TeacherOfPlaces:
    """A teacher whose word depends on where in the batch a row stands."""

    def targets(self, index: int, first: int, inputs_BT: torch.Tensor) -> DenseTargets:
        table = torch.randn(CONFIG.vocab_size, 16, generator=torch.Generator().manual_seed(index))
        rows = torch.arange(first, first + len(inputs_BT)).repeat_interleave(inputs_BT.size(1))
        return DenseTargets(3.0 * torch.eye(16)[rows], table)


def gradients(ranks: Ranks, data: Path, folder: Path, micro_batch: int, kind: str = "dense") -> dict[str, torch.Tensor]:
    settings = DistillationSettings(teacher="none", licence="mit", weight=0.7)
    teacher = Distillation(TeacherOfPlaces(), settings, 20) if kind == "taught" else None
    config = replace(CONFIG, moe={"num_experts": 3, "top_k": 1, "num_shared": 1} if kind == "mixture" else None)
    stage = make_stage(data, folder, micro_batch, stage={"ranks": ranks, "teacher": teacher, "config": config})
    torch.manual_seed(7)
    work = TrainingStep(stage, ShardLM(stage.config), lambda *_: None)
    kept: dict[str, torch.Tensor] = {}

    def keep(norm: torch.Tensor, skip: torch.Tensor) -> None:
        kept.update({name: p.grad.clone() for name, p in work.optimizer.parameters.items()})

    work.optimizer.step = keep  # type: ignore[method-assign]
    outcome = work.launch(1, stage.loader.batch(0)).wait()
    stage.loader.close()
    routed = torch.tensor(outcome[9 + work.num_told :])  # of a mixture
    return {**kept, **dict(work.model.named_buffers()), "outcome": torch.tensor(outcome[:5]), "routed": routed}


@pytest.mark.parametrize(("size", "kind"), [(2, "dense"), (3, "dense"), (3, "taught"), (3, "mixture")])
def test_the_gradient_is_that_of_the_global_batch(data: Path, tmp_path: Path, size: int, kind: str) -> None:
    """Eight rows: three ranks have 3, 3 and 2 of them, and micro-batches that fit; each asks a teacher of its own, and
    the loads of experts are those of all.
    """
    expected = gradients(ALONE, data, tmp_path, 8, kind)
    assert (expected["routed"].numel() > 0) == (kind == "mixture")
    results = good(run_ranks(size, gradients, data, tmp_path, 2, kind))
    for name, gradient in expected.items():
        torch.testing.assert_close(results[0][name], gradient, rtol=2e-5, atol=1e-7)
        for other in results[1:]:
            assert torch.equal(other[name], results[0][name]), f"{name}: the same bits on all ranks"


def test_rows_are_divided_without_a_rest() -> None:
    batch = np.arange(22).reshape(11, 2)
    parts = [Ranks(index, 4).rows(batch) for index in range(4)]
    assert [(first, len(part)) for first, part in parts] == [(0, 3), (3, 3), (6, 3), (9, 2)]
    assert (np.concatenate([part for _, part in parts]) == batch).all()
    assert (ALONE.rows(batch)[1] == batch).all()


def spoken(ranks: Ranks) -> Any:
    tensor = torch.full((3,), float(ranks.index))
    ranks.broadcast_tensors([tensor])
    values = [ranks.broadcast({"a": [ranks.index, None]} if ranks.is_first else None), ranks.broadcast(ranks.index)]
    return values, tensor.tolist()


def test_all_have_what_the_first_rank_says() -> None:
    assert good(run_ranks(3, spoken)) == [([{"a": [0, None]}, 0], [0.0, 0.0, 0.0])] * 3


def compared(ranks: Ranks) -> list[bool]:
    tensors = [torch.ones(100), torch.tensor(3.0)]
    answers = [ranks.hold_the_same(tensors)]
    if ranks.index == 1:
        tensors[0][17] = torch.nextafter(tensors[0][17], torch.tensor(2.0))
    return [*answers, ranks.hold_the_same(tensors)]


def test_one_bit_that_differs_is_seen_on_all_ranks() -> None:
    assert good(run_ranks(3, compared)) == [[True, False]] * 3


def left_alone(ranks: Ranks, how: str) -> Any:
    if ranks.index == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(6)
    begun = time.monotonic()
    try:
        ranks.sum(torch.ones(1000))
    except LostRankError as error:
        return str(error), time.monotonic() - begun, ranks.is_first_to_fail()
    return None


@pytest.mark.parametrize("how", ["killed", pytest.param("silent", marks=pytest.mark.slow)])
def test_a_rank_that_is_gone_or_silent_does_not_hang_the_others(how: str) -> None:
    """One of those that are left says so; gone is seen at once, silence after the time that is allowed for it."""
    results = run_ranks(3, left_alone, how, silence=2.0)
    others = [results[0], results[2]]
    for message, seconds, _ in others:
        assert message.startswith("another rank ended or does not answer (")
        assert len(message.splitlines()) == 1
        assert seconds < 20
    assert sorted(is_first for *_, is_first in others) == [False, True]


def test_what_an_earlier_attempt_left_in_the_store_leads_nobody_astray() -> None:
    """The late ones find the words of the dead, and a welcome to them."""
    store, soon = dist.HashStore(), timedelta(seconds=20)
    names = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        with ThreadPoolExecutor(3) as threads:
            meetings = []
            for index in order:
                meetings.append(threads.submit(_meet, store, index, 3, soon))
                time.sleep(0.1)
            names.append({meeting.result() for meeting in meetings})
    assert [len(name) for name in names] == [1, 1, 1], "all ranks of an attempt have one name"
    assert len(set.union(*names)) == 3, "and each attempt another"


def test_ranks_that_do_not_come_are_not_waited_for_without_end() -> None:
    with pytest.raises(LostRankError, match="did not find each other"):
        _meet(dist.HashStore(), 0, 2, timedelta(seconds=0.2))


def test_ranks_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
    assert num_ranks() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert num_ranks() == 1, "a variable that is left over starts no group"
    for key in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(key, "1")
    assert num_ranks() == 4
