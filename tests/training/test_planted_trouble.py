"""Trouble that was planted: batches whose gradient is not finite or explodes, alone, in a row, and without end."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_stage import assert_same_end, events, make_trainer, metrics

from shard.errors import ShardError
from shard.training import trainer as trainer_module
from shard.training import writer as writer_module
from shard.training.checkpoint import checkpoint_path, list_steps, load_checkpoint
from shard.training.sentinel import Spectrum
from shard.training.trainer import Trainer

# One layer and few records: hundreds of steps in a second.
QUIET = {"num_layers": 1, "evaluate_every": 1000, "sentinel_every": 1000, "sample_every": 1000}
SHORT = {**QUIET, "steps": 24, "checkpoint_every": 5}
RATES = {"lr_muon": 0.005, "lr_embedding": 0.005, "lr_norm": 0.005}
LONG = {**QUIET, **RATES, "steps": 160, "checkpoint_every": 80, "decay_steps": 60}


def plant(trainer: Trainer, is_bad: Callable[[int], str | None]) -> Trainer:
    """Spoil the gradient of each batch for whose index `is_bad` gives a kind: known by the tokens, not by the step."""
    loader, accumulate = trainer.stage.loader, trainer.work.accumulate_gradients
    kinds = {loader.batch(i).tobytes(): is_bad(i) for i in range(trainer.stage.settings.steps + 40)}

    def spoiled(rows, *place):
        nll, *others = accumulate(rows, *place)
        kind = kinds[rows.tobytes()]
        for p in trainer.work.model.parameters():
            if kind == "explode":
                p.grad *= 1e6
            elif kind in ("nan", "inf"):
                p.grad += float(kind)
        return (nll * float("nan") if kind == "loss" else nll + 1e4 if kind == "high loss" else nll), *others

    trainer.work.accumulate_gradients = spoiled
    return trainer


def those(*indices: int, kind: str = "nan") -> Callable[[int], str | None]:
    return lambda index: kind if index in indices else None


def train(
    data: Path, folder: Path, is_bad: Callable[[int], str | None], until: int | None = None, **changes
) -> Trainer:
    trainer = plant(make_trainer(data, folder, **changes), is_bad)
    trainer.train(until)
    return trainer


def end(folder: Path) -> dict[str, torch.Tensor]:
    steps = list_steps(folder / "checkpoints")
    checkpoint = load_checkpoint(checkpoint_path(folder / "checkpoints", steps[-1]))
    return checkpoint.model | {f"optimizer {n}": t for n, t in checkpoint.optimizer.items()}


def assert_same_weights(a: Path, b: Path) -> None:
    ours, theirs = end(a), end(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def without(data: Path, folder: Path, indices: set[int], **changes) -> Path:
    """The twin: an undisturbed run whose loader never had these batches."""
    trainer = make_trainer(data, folder, **changes)
    order = [index for index in range(200) if index not in indices]
    trainer.stage.loader.fetch = lambda step: trainer.stage.loader.batch(order[step])
    trainer.train()
    return folder


def test_single_bad_batches_are_skipped_and_the_loss_ends_where_it_did(data: Path, tmp_path: Path) -> None:
    """Trouble of each kind, far apart; spikes only where there are statistics to know them by."""
    bad = {20: "nan", 135: "explode", 145: "high loss"}
    make_trainer(data, tmp_path / "clean", **LONG).train()
    trainer = train(data, tmp_path / "bad", bad.get, **LONG)
    clean, hurt = metrics(tmp_path / "clean"), metrics(tmp_path / "bad")
    reasons = {21: "gradient", 136: "gradient spike", 146: "loss spike"}
    assert {line["step"]: line["skipped"] for line in hurt if "skipped" in line} == reasons
    assert not any("skipped" in line for line in clean), "a sound step is never skipped"
    recorded = events(tmp_path / "bad", "skipped")
    assert [(e["step"], e["reason"], e["batch"]) for e in recorded] == [(s, r, s - 1) for s, r in reasons.items()]
    assert recorded[0]["grad_norm"] is None, "JSON has no NaN"
    assert recorded[1]["grad_norm"] > 1e4 * recorded[1]["grad_norm_limit"]
    assert recorded[2]["loss"] > recorded[2]["loss_limit"]
    assert recorded[0]["grad_norm_limit"] is None, "no statistics yet"
    assert trainer.rollbacks == []
    state = load_checkpoint(checkpoint_path(tmp_path / "bad" / "checkpoints", 160)).state
    assert state["skipped"] == list(reasons)
    assert state["guard"]["num_taken"] == 157
    assert clean[:20] == hurt[:20]
    assert len([text for text in trainer.reporter.warnings if "skipped" in text]) == 3
    final = [sum(line["loss"] for line in lines[-5:]) / 5 for lines in (clean, hurt)]
    assert final[1] == pytest.approx(final[0], rel=0.01)
    assert final[0] < clean[0]["loss"] - 1


@pytest.mark.parametrize(("kind", "reason"), [("loss", "loss"), ("nan", "gradient"), ("inf", "gradient")])
def test_what_is_not_finite_is_skipped_from_the_first_step(data: Path, tmp_path: Path, kind: str, reason: str) -> None:
    train(data, tmp_path, those(0, 2, kind=kind), until=4, **SHORT)
    lines = metrics(tmp_path)
    assert [line.get("skipped") for line in lines] == [reason, None, reason, None]
    assert [line["loss"] is None for line in lines] == [kind == "loss", False] * 2
    assert [line["grad_norm"] is None for line in lines] == [kind != "loss", False] * 2


def test_a_skipped_step_is_as_if_it_had_not_been(data: Path, tmp_path: Path) -> None:
    """Its batch is gone, its learning rate too; weights and state are those from before."""
    train(data, tmp_path, those(4), until=4, **SHORT)
    before = end(tmp_path)
    train(data, tmp_path, those(4), until=5, **SHORT)
    after = end(tmp_path)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert metrics(tmp_path)[-1]["skipped"] == "gradient"


def test_bad_batches_in_a_row_are_passed_over(data: Path, tmp_path: Path) -> None:
    """Back to the last checkpoint without trouble; the run then is that of a corpus without these batches, to the
    bit.
    """
    trainer = train(data, tmp_path / "bad", those(13, 14, 15), **SHORT)
    assert trainer.passed_over == [13, 14, 15]
    assert [r.to_dict() for r in trainer.rollbacks] == [{"step": 16, "checkpoint": 10, "passed_over": [13, 14, 15]}]
    assert events(tmp_path / "bad", "rollback") == [r.to_dict() for r in trainer.rollbacks]
    assert trainer.skipped == []
    assert_same_weights(without(data, tmp_path / "twin", {13, 14, 15}, **SHORT), tmp_path / "bad")
    assert metrics(tmp_path / "bad") == metrics(tmp_path / "twin")
    state = load_checkpoint(checkpoint_path(tmp_path / "bad" / "checkpoints", 24)).state
    assert state["passed_over"] == [13, 14, 15]
    assert state["rollbacks"] == [r.to_dict() for r in trainer.rollbacks]
    (warning,) = [text for text in trainer.reporter.warnings if "back to step" in text]
    assert "3 batches are passed over (rollback 1 of at most 3)" in warning
    assert not (tmp_path / "bad" / "trouble.json").exists()


def test_bad_batches_before_the_first_checkpoint(data: Path, tmp_path: Path) -> None:
    """Back to the beginning: the same first weights and random numbers."""
    changes = {**SHORT, "steps": 12}
    trainer = train(data, tmp_path / "bad", those(1, 2, 3), **changes)
    assert [r.checkpoint for r in trainer.rollbacks] == [0]
    assert_same_weights(without(data, tmp_path / "twin", {1, 2, 3}, **changes), tmp_path / "bad")
    states = [load_checkpoint(checkpoint_path(tmp_path / f / "checkpoints", 12)).state for f in ("bad", "twin")]
    assert states[0]["rng"] == states[1]["rng"]
    assert states[0]["guard"] == states[1]["guard"]


def test_bad_batches_at_the_beginning_of_an_anneal(data: Path, tmp_path: Path) -> None:
    """Back to the branch point, weights and momentum."""
    make_trainer(data, tmp_path / "pretrain", **SHORT).train(until=5)
    start = checkpoint_path(tmp_path / "pretrain" / "checkpoints", 5)
    changes = {**SHORT, "steps": 8, "stage": {"name": "anneal", "start": start}}
    train(data, tmp_path / "bad", those(0, 1, 2), **changes)
    assert_same_weights(without(data, tmp_path / "twin", {0, 1, 2}, **changes), tmp_path / "bad")
    states = [load_checkpoint(checkpoint_path(tmp_path / f / "checkpoints", 8)).state for f in ("bad", "twin")]
    assert states[0]["branched_from"] == states[1]["branched_from"] == {"stage": "pretrain", "step": 5, "tokens": 1280}
    assert states[0]["tokens"] == states[1]["tokens"]


TWICE = those(13, 14, 15, 17, 18, 19)


def test_trouble_again_from_the_same_checkpoint_passes_over_all_since(data: Path, tmp_path: Path) -> None:
    """Then it was the state, or what led to it, and not only the batches that showed it."""
    trainer = train(data, tmp_path / "bad", TWICE, **SHORT)
    assert [r.to_dict() for r in trainer.rollbacks] == [
        {"step": 16, "checkpoint": 10, "passed_over": [13, 14, 15]},
        {"step": 17, "checkpoint": 10, "passed_over": [10, 11, 12, 16, 17, 18, 19]},
    ]
    assert trainer.passed_over == list(range(10, 20))
    assert_same_weights(without(data, tmp_path / "twin", set(range(10, 20)), **SHORT), tmp_path / "bad")


def test_trouble_after_a_new_checkpoint_is_a_first_time(data: Path, tmp_path: Path) -> None:
    trainer = train(data, tmp_path / "bad", those(8, 9, 10, 19, 20, 22), **SHORT)
    assert [r.to_dict() for r in trainer.rollbacks] == [
        {"step": 11, "checkpoint": 5, "passed_over": [8, 9, 10]},
        {"step": 20, "checkpoint": 15, "passed_over": [19, 20, 22]},
    ]
    assert_same_weights(without(data, tmp_path / "twin", {8, 9, 10, 19, 20, 22}, **SHORT), tmp_path / "bad")


@pytest.fixture(scope="module")
def troubled(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with two rollbacks, undisturbed otherwise."""
    folder = tmp_path_factory.mktemp("troubled")
    train(data, folder, TWICE, **SHORT)
    return folder


@pytest.mark.parametrize("stops", [(13, 16), (14, 15), (12, 17, 21)])
def test_stops_around_the_trouble_change_no_bit(data: Path, tmp_path: Path, troubled: Path, stops: list[int]) -> None:
    """A stop writes a checkpoint amid the trouble: it is no place to go back to."""
    for until in (*stops, None):
        train(data, tmp_path, TWICE, until, **SHORT)
    assert_same_end(troubled, tmp_path)


def test_a_checkpoint_of_a_stop_is_no_place_to_go_back_to(data: Path, tmp_path: Path) -> None:
    """Calm or not: where a run was stopped must not decide where it goes back to."""
    is_bad = those(11, 12, 13)
    train(data, tmp_path / "whole", is_bad, **SHORT)
    for until in (11, None):
        trainer = train(data, tmp_path / "parts", is_bad, until, **SHORT)
    assert [r.checkpoint for r in trainer.rollbacks] == [10]
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("launches", [16, 17, 23, 26])
def test_kills_around_the_trouble_change_no_bit(data: Path, tmp_path: Path, troubled: Path, launches: int) -> None:
    """Killed before some step, rollbacks included: nothing is saved there, and the next start does all of it again."""
    trainer = plant(make_trainer(data, tmp_path, **SHORT), TWICE)
    launch, num_launched = trainer.work.launch, []

    def killed(step, *batch):
        num_launched.append(step)
        if len(num_launched) == launches:
            raise KeyboardInterrupt
        return launch(step, *batch)

    trainer.work.launch = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.writer.wait()
    train(data, tmp_path, TWICE, **SHORT)
    assert_same_end(troubled, tmp_path)


def test_a_slow_disk_writes_the_trouble_as_it_was_at_the_checkpoint(
    data: Path, tmp_path: Path, troubled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of step 15 are written when step 16 has been skipped already, and then the process is killed."""
    gate, real = threading.Event(), writer_module.save_checkpoint

    def slow(folder, step, *rest):
        if step == 15:
            assert gate.wait(20)
        return real(folder, step, *rest)

    monkeypatch.setattr(writer_module, "save_checkpoint", slow)
    train(data, tmp_path, TWICE, 14, **SHORT)
    trainer = plant(make_trainer(data, tmp_path, **SHORT), TWICE)
    record = trainer._record

    def killed(launched):
        good = record(launched)
        if launched.step == 16:
            gate.set()
            raise KeyboardInterrupt
        return good

    trainer._record = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.writer.wait()
    assert load_checkpoint(checkpoint_path(tmp_path / "checkpoints", 15)).state["skipped"] == [14, 15]
    train(data, tmp_path, TWICE, **SHORT)
    assert_same_end(troubled, tmp_path)


def test_trouble_without_end_is_given_up_with_a_report(data: Path, tmp_path: Path) -> None:
    """One line, a report that is JSON, and a checkpoint that nobody touched; another start ends the same way."""
    changes = {**SHORT, "max_rollbacks": 2}

    def always(index: int) -> str | None:
        return "nan" if index >= 13 else None

    train(data, tmp_path, always, until=10, **changes)

    def files() -> dict[str, bytes]:
        return {str(p.relative_to(tmp_path)): p.read_bytes() for p in (tmp_path / "checkpoints").glob("step-*10/*")}

    before = files()
    for _ in range(2):
        trainer = plant(make_trainer(data, tmp_path, **changes), always)
        with pytest.raises(ShardError, match="gave up at step 13: 3 of the last steps") as raised:
            trainer.train()
        assert "\n" not in str(raised.value)
        assert f"report: {tmp_path / 'trouble.json'}" in str(raised.value)
        assert "after 2 rollbacks" in str(raised.value)
        trainer.writer.wait()
        assert list_steps(tmp_path / "checkpoints")[-1] == 10
        assert files() == before
        report = json.loads((tmp_path / "trouble.json").read_text(), parse_constant=pytest.fail)
        assert report["step"] == 13
        assert len(report["rollbacks"]) == 2
        assert report["passed_over"] == trainer.passed_over
        assert report["skipped"] == [11, 12, 13]
        assert {e["event"] for e in report["events"]} == {"skipped", "rollback"}
        assert report["metrics"][-1]["step"] == 12
        assert {s["what"] for s in report["spectra"]} == {"weight", "momentum"}


def test_no_rollback_at_all_gives_up_at_once(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"gave up at step 4: 2 of the last steps .* after 0 rollbacks"):
        train(data, tmp_path, those(1, 3), max_rollbacks=0, rollback_after=2, **SHORT)
    json.loads((tmp_path / "trouble.json").read_text())


def test_trouble_that_is_far_apart_sends_nothing_back(data: Path, tmp_path: Path) -> None:
    """Ten steps from the first to the third are too many; one less is not."""
    trainer = train(data, tmp_path / "apart", those(2, 6, 12), **SHORT)
    assert (trainer.skipped, trainer.rollbacks) == ([3, 7, 13], [])
    trainer = train(data, tmp_path / "near", those(2, 6, 11), **SHORT)
    assert [r.passed_over for r in trainer.rollbacks] == [[2, 6, 11]]


def test_a_place_to_go_back_to_is_never_pruned(data: Path, tmp_path: Path) -> None:
    """With one checkpoint kept, those made amid the trouble must not push the calm one out."""
    changes = {**QUIET, "steps": 24, "checkpoint_every": 2, "keep_last": 1, "decay_steps": 24, "rollback_after": 4}
    trainer = train(data, tmp_path / "bad", those(9, 12, 15, 16), **changes)
    assert [(r.step, r.checkpoint) for r in trainer.rollbacks] == [(17, 8)]
    assert_same_weights(without(data, tmp_path / "twin", {9, 12, 15, 16}, **changes), tmp_path / "bad")


# The loss scale of fp16.


def test_overflows_are_no_trouble(data: Path, tmp_path: Path) -> None:
    """The scale is halved until the gradient fits; the steps are recorded and nothing is rolled back."""
    trainer = train(data, tmp_path / "whole", those(2, 3, 4, 5, 6, kind="inf"), precision="fp16", **SHORT)
    lines = metrics(tmp_path / "whole")
    assert [line["step"] for line in lines if line.get("skipped") == "overflow"] == [3, 4, 5, 6, 7]
    assert [line["loss_scale"] for line in lines[1:9]] == [2.0**e for e in (16, 16, 15, 14, 13, 12, 11, 11)]
    assert (trainer.skipped, trainer.rollbacks) == ([], [])
    assert [e["reason"] for e in events(tmp_path / "whole", "skipped")] == ["overflow"] * 5
    for until in (4, 6, None):
        train(data, tmp_path / "parts", those(2, 3, 4, 5, 6, kind="inf"), until, precision="fp16", **SHORT)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_gradient_that_overflows_at_any_scale_is_trouble(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="gave up at step 20"):
        train(data, tmp_path, lambda index: "inf" if index >= 1 else None, precision="fp16", max_rollbacks=0, **SHORT)
    assert [e["reason"] for e in events(tmp_path, "skipped")] == ["overflow"] * 16 + ["gradient"] * 3


# Rank loss.


def lose_rank(monkeypatch: pytest.MonkeyPatch, num_lost: int) -> None:
    healthy = Spectrum("blocks.0.attention.query.weight", "weight", 0.5, 1.0, 20.0, num_values=32, num_lost=0)
    hurt = replace(healthy, name="blocks.1.attention.key.weight", smallest=0.0, num_lost=num_lost)
    monkeypatch.setattr(trainer_module, "inspect_spectra", lambda optimizer: [healthy, hurt])


@pytest.mark.parametrize(("num_lost", "stops"), [(0, False), (3, False), (4, True), (32, True)])
def test_rank_loss_stops_where_the_recipe_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_lost: int, stops: bool
) -> None:
    """More than a tenth of 32 values are four or more."""
    lose_rank(monkeypatch, num_lost)
    changes = {**SHORT, "steps": 8, "sentinel_every": 4, "rank_loss_share": 0.1}
    record = make_trainer(data, tmp_path / "record", rank_loss="record", **changes)
    assert record.train() == 8
    assert len(events(tmp_path / "record", "rank_loss")) == (2 if num_lost else 0)
    trainer = make_trainer(data, tmp_path / "stop", rank_loss="stop", **changes)
    if not stops:
        assert trainer.train() == 8
        return
    with pytest.raises(ShardError, match=r"stopped, as rank_loss = .* step 4: .*blocks\.1\.attention\.key") as raised:
        trainer.train()
    assert "\n" not in str(raised.value)
    assert "more than 10% of blocks.1.attention.key.weight" in str(raised.value)
    assert events(tmp_path / "stop", "rank_loss")[0]["matrices"] == ["blocks.1.attention.key.weight (weight)"]
    assert len(metrics(tmp_path / "stop")) == 4
