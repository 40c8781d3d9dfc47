"""A stage that several ranks train is the stage that one process trains, up to rounding; and its own repetition, bit
for bit, whatever stops it.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_processes import good, run_ranks
from tiny_stage import Listener, assert_same_end, events, make_stage, make_trainer, metrics

from shard.errors import ShardError
from shard.signals import InterruptedRunError
from shard.training.checkpoint import checkpoint_path, list_steps, load_checkpoint
from shard.training.distributed import ALONE, Ranks
from shard.training.trainer import Trainer


def trainer_of(ranks: Ranks, data: Path, folder: Path, changes: dict[str, Any]) -> Trainer:
    return Trainer(make_stage(data, folder, **{"stage": {"ranks": ranks}, **changes}), Listener())


def train(
    ranks: Ranks, data: Path, folder: Path, stops: tuple[int | None, ...] = (None,), **changes: Any
) -> tuple[int, list[str]]:
    """One start after the other, in the same processes."""
    for stop in stops:
        trainer = trainer_of(ranks, data, folder, changes)
        step = trainer.train(stop)
        trainer.stage.loader.close()
    return step, trainer.reporter.warnings  # type: ignore[attr-defined]


def assert_close_end(expected: Path, got: Path, tolerance: float) -> None:
    """The loss of every step, and the last checkpoint: what differs is rounding."""
    ours, theirs = metrics(expected), metrics(got)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for key in ("loss", "cross_entropy_nats", "z_loss", "grad_norm"):
        np.testing.assert_allclose([m[key] for m in ours], [m[key] for m in theirs], rtol=tolerance, err_msg=key)
    assert list_steps(expected / "checkpoints") == list_steps(got / "checkpoints")
    last = list_steps(expected / "checkpoints")[-1]
    a, b = (load_checkpoint(checkpoint_path(folder / "checkpoints", last)) for folder in (expected, got))
    for name, tensor in a.model.items():
        torch.testing.assert_close(
            b.model[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert a.state["tokens"] == b.state["tokens"]


@pytest.fixture(scope="session")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage as one process trains it."""
    folder = tmp_path_factory.mktemp("alone")
    train(ALONE, data, folder)
    torch.use_deterministic_algorithms(False)
    return folder


@pytest.fixture(scope="session")
def pair(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage as two ranks train it."""
    folder = tmp_path_factory.mktemp("pair")
    good(run_ranks(2, train, data, folder))
    return folder


def test_two_ranks_have_the_loss_curve_of_one_process(alone: Path, pair: Path) -> None:
    assert_close_end(alone, pair, 1e-3)


def test_four_ranks_have_the_loss_curve_of_one_process(data: Path, tmp_path: Path, alone: Path) -> None:
    results = good(run_ranks(4, train, data, tmp_path))
    assert [step for step, _ in results] == [20] * 4
    assert_close_end(alone, tmp_path, 1e-3)
    assert all(not warnings for _, warnings in results[1:]), "only the first one speaks"


def test_the_same_number_of_ranks_resumes_to_the_same_bits(data: Path, tmp_path: Path, pair: Path) -> None:
    good(run_ranks(2, train, data, tmp_path, (7, 13, None)))
    assert_same_end(pair, tmp_path)


def test_another_number_of_ranks_goes_on(data: Path, tmp_path: Path, alone: Path) -> None:
    """From two to three, and then one alone."""
    good(run_ranks(2, train, data, tmp_path, (7,)))
    good(run_ranks(3, train, data, tmp_path, (14,)))
    train(ALONE, data, tmp_path)
    torch.use_deterministic_algorithms(False)
    assert_close_end(alone, tmp_path, 1e-3)


def interrupted(ranks: Ranks, data: Path, folder: Path, on: int) -> Any:
    """Rank `on` gets SIGTERM in step 6; what each says."""
    trainer = trainer_of(ranks, data, folder, {})
    launch = trainer.work.launch

    def launch_and_signal(step, *batch):
        if step == 6 and ranks.index == on:
            os.kill(os.getpid(), signal.SIGTERM)
        return launch(step, *batch)

    trainer.work.launch = launch_and_signal  # type: ignore[method-assign]
    try:
        return trainer.train()
    except InterruptedRunError as error:
        return str(error), error.exit_code


@pytest.mark.parametrize("on", [0, 1])
def test_a_signal_to_any_rank_stops_all_at_the_same_step_saved(data: Path, tmp_path: Path, pair: Path, on: int) -> None:
    (message, code), step = good(run_ranks(2, interrupted, data, tmp_path, on))
    at = 7  # the ranks hear of it with the sum of the step after the one that had begun
    assert code == 143
    assert message.startswith(f"pretrain: interrupted after step {at} of 20, saved")
    assert step == at
    assert list_steps(tmp_path / "checkpoints") == [at]
    good(run_ranks(2, train, data, tmp_path))
    assert_same_end(pair, tmp_path)


def paused(ranks: Ranks, data: Path, folder: Path, seconds: float) -> int:
    trainer = trainer_of(ranks, data, folder, {})
    launch = trainer.work.launch

    def slow(step, *batch):
        time.sleep(0.1)
        return launch(step, *batch)

    trainer.work.launch = slow  # type: ignore[method-assign]
    return trainer.train(None, time.monotonic() + seconds if ranks.is_first else None)


def test_a_deadline_is_the_first_rank_s_and_pauses_all(data: Path, tmp_path: Path) -> None:
    first, second = good(run_ranks(2, paused, data, tmp_path, 1.0))
    assert first == second
    assert 1 <= first < 20
    assert list_steps(tmp_path / "checkpoints") == [first]
    assert good(run_ranks(2, paused, data, tmp_path, -1.0)) == [first, first], "over before it began"


def short_of_memory(ranks: Ranks, data: Path, folder: Path) -> Any:
    """On rank 1 a micro-batch of more than one row does not fit, from step 5 on."""
    saved: list[Any] = []
    stage = make_stage(data, folder, 4, stage={"ranks": ranks, "save_decisions": saved.append})
    trainer = Trainer(stage, Listener())
    compute, sizes = trainer.work._loss, []

    def limited(inputs, targets, scale):
        sizes.append(len(inputs))
        if ranks.index == 1 and trainer.step >= 5 and len(inputs) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return compute(inputs, targets, scale)

    trainer.work._loss = limited
    trainer.train()
    return [decisions.micro_batch for decisions in saved], sizes[-1], trainer.reporter.warnings  # type: ignore[attr-defined]


def test_memory_that_runs_out_on_one_rank_gives_all_smaller_micro_batches(
    data: Path, tmp_path: Path, alone: Path
) -> None:
    (saved, size, warnings), (_, other_size, _) = good(run_ranks(2, short_of_memory, data, tmp_path))
    assert saved == [1], "the first rank writes it down"
    assert (size, other_size) == (1, 1)
    assert any("out of memory at step 5: micro-batches of 1 sequences" in warning for warning in warnings)
    assert [event["micro_batch"] for event in events(tmp_path, "out_of_memory")] == [1]
    assert_close_end(alone, tmp_path, 1e-3)


TROUBLE = (12, 13, 14)


def troubled(ranks: Ranks, data: Path, folder: Path) -> Any:
    """Batches that rank 1 alone finds to be bad."""
    trainer = trainer_of(ranks, data, folder, {})
    accumulate, fetch, index = trainer.work.accumulate_gradients, trainer.stage.loader.fetch, []

    def fetch_and_note(i):
        index.append(i)
        return fetch(i)

    def spoil(*inputs):
        nll, *others = accumulate(*inputs)
        is_bad = index[-1] in TROUBLE and ranks.index == ranks.size - 1
        return (nll * float("nan") if is_bad else nll, *others)

    trainer.stage.loader.fetch = fetch_and_note  # type: ignore[method-assign]
    trainer.work.accumulate_gradients = spoil  # type: ignore[method-assign]
    step = trainer.train()
    return step, trainer.passed_over, [rollback.to_dict() for rollback in trainer.rollbacks], index


def test_trouble_on_one_rank_is_skipped_and_passed_over_by_all(data: Path, tmp_path: Path) -> None:
    expected = troubled(ALONE, data, tmp_path / "alone")
    torch.use_deterministic_algorithms(False)
    results = good(run_ranks(3, troubled, data, tmp_path / "ranks"))
    assert results == [expected] * 3
    assert expected[1] == list(TROUBLE)
    assert_close_end(tmp_path / "alone", tmp_path / "ranks", 1e-3)


def drifted(ranks: Ranks, data: Path, folder: Path) -> int:
    trainer = trainer_of(ranks, data, folder, {})
    launch = trainer.work.launch

    def drift(step, *batch):
        if step == 15 and ranks.index == 1:
            with torch.no_grad():
                trainer.work.model.embedding.weight[3, 5] *= 1.001
        return launch(step, *batch)

    trainer.work.launch = drift  # type: ignore[method-assign]
    return trainer.train()


def test_ranks_that_drift_apart_are_stopped_before_that_is_saved(data: Path, tmp_path: Path) -> None:
    for error in run_ranks(2, drifted, data, tmp_path):
        assert isinstance(error, ShardError)
        assert "at step 20 the ranks hold different weights" in str(error)
        assert "the checkpoint of step 10 is whole" in str(error)
    assert list_steps(tmp_path / "checkpoints") == [10]


@pytest.mark.parametrize("changes", [{"precision": "fp16", "grad_clip": 1.0}, {"precision": "bf16", "micro_batch": 2}])
def test_in_other_precisions(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    trainer = make_trainer(data, tmp_path / "alone", **changes)
    trainer.train(10)
    trainer.stage.loader.close()
    torch.use_deterministic_algorithms(False)

    good(run_ranks(2, train_with, data, tmp_path / "ranks", changes))
    ours, theirs = metrics(tmp_path / "alone"), metrics(tmp_path / "ranks")
    np.testing.assert_allclose([m["loss"] for m in ours], [m["loss"] for m in theirs], rtol=0.02)


def train_with(ranks: Ranks, data: Path, folder: Path, changes: dict[str, Any]) -> int:
    return trainer_of(ranks, data, folder, changes).train(10)
