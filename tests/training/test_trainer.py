"""The trainer on a tiny model: golden losses, micro-batches that equal the batch, resume, and what it refuses."""

import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_stage import assert_same_end, events, make_trainer, metrics

from shard.errors import ShardError
from shard.files import write_json
from shard.signals import InterruptedRunError
from shard.training import guard as guard_module
from shard.training import trainer as trainer_module
from shard.training import writer as writer_module
from shard.training.checkpoint import checkpoint_path, list_steps, load_checkpoint, save_checkpoint
from shard.training.progress import Progress
from shard.training.trainer import Trainer

GOLDEN = Path(__file__).parent / "golden_losses.json"


def machine() -> dict[str, object]:
    """What the bits of a sum depend on: torch, and the kernels that the processor allows."""
    capabilities = {k: v for k, v in torch.cpu.get_capabilities().items() if isinstance(v, bool) and v}
    return {"torch": torch.__version__, "capabilities": sorted(capabilities)}


def test_golden_losses(data: Path, tmp_path: Path) -> None:
    """20 steps give the losses that they gave when this file was written: to the bit on the same kind of machine,
    within the rounding of another kernel elsewhere. SHARD_UPDATE_GOLDEN=1 writes the file anew, after a change that is
    meant to change the numbers.
    """
    make_trainer(data, tmp_path).train()
    losses = [line["loss"] for line in metrics(tmp_path)]
    if os.environ.get("SHARD_UPDATE_GOLDEN"):
        write_json(GOLDEN, {**machine(), "losses": losses})
    golden = json.loads(GOLDEN.read_text())
    same_machine = {k: golden[k] for k in ("torch", "capabilities")} == machine()
    assert len(losses) == 20
    assert losses == (golden["losses"] if same_machine else pytest.approx(golden["losses"], abs=1e-4))
    assert losses[-1] < losses[0] - 1


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_micro_batches_equal_the_batch(data: Path, tmp_path: Path, micro_batch: int) -> None:
    """Gradient accumulation gives the gradients of the whole batch."""
    whole = make_trainer(data, tmp_path / "whole", micro_batch=8)
    parts = make_trainer(data, tmp_path / "parts", micro_batch=micro_batch)
    rows = whole.stage.loader.batch(0)
    sums = [trainer.work.accumulate_gradients(rows) for trainer in (whole, parts)]
    torch.testing.assert_close(sums[0], sums[1])
    for (name, p), q in zip(whole.work.model.named_parameters(), parts.work.model.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, name=name: f"{name}: {m}")


def start_again(data: Path, folder: Path, stops: Sequence[int], **changes: object) -> Path:
    """One start for each stop, and one to the end."""
    for until in (*stops, None):
        make_trainer(data, folder, **changes).train(until)
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run."""
    return start_again(data, tmp_path_factory.mktemp("whole"), ())


@pytest.mark.parametrize(
    ("precision", "stops"), [("fp32", (7, 13)), ("fp32", (1, 2, 10, 19)), ("bf16", (7, 13)), ("fp16", (9, 11))]
)
def test_stopped_and_resumed_equals_undisturbed(data: Path, tmp_path: Path, precision: str, stops: list[int]) -> None:
    """Weights, optimizer state, guard and metrics are the same bits, and the same checkpoints are left."""
    start_again(data, tmp_path / "whole", (), precision=precision)
    start_again(data, tmp_path / "parts", stops, precision=precision)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    scored = [line["step"] for line in metrics(tmp_path / "parts") if "bits_per_byte" in line]
    assert scored == [10, 20], "what is recorded does not depend on where it was stopped"
    assert [e["step"] for e in events(tmp_path / "parts", "sentinel")] == [10, 20]
    assert [e["step"] for e in events(tmp_path / "parts", "sample")] == [20]


def test_random_numbers_go_on_where_they_stopped(data: Path, tmp_path: Path) -> None:
    """Nothing in a step draws any today; what will must not begin anew after a stop."""

    def draw(folder: Path, until: int | None, drawn: list[float]) -> None:
        trainer = make_trainer(data, folder, steps=8)
        launch = trainer.work.launch
        trainer.work.launch = lambda step, *batch: (drawn.append(float(torch.rand(()))), launch(step, *batch))[1]
        trainer.train(until)

    whole: list[float] = []
    parts: list[float] = []
    draw(tmp_path / "whole", None, whole)
    for until in (3, None):
        draw(tmp_path / "parts", until, parts)
    assert len(set(whole)) == 8
    assert parts == whole


def test_the_statistics_of_the_guard_survive_a_stop(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once there are enough steps (here 12) they decide: under a strict limit many a step is skipped, and the same
    ones.
    """
    monkeypatch.setattr(guard_module, "WINDOW", 12)
    changes = {
        "steps": 36,
        "tokens_per_step": 64,
        "skip_sigma": 1.0,
        "lr_muon": 1e-5,
        "lr_embedding": 1e-5,
        "lr_norm": 1e-5,
        "rollback_after": 10,
    }
    start_again(data, tmp_path / "whole", (), **changes)
    start_again(data, tmp_path / "parts", (9, 17, 26), **changes)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    skipped = [line["step"] for line in metrics(tmp_path / "parts") if "skipped" in line]
    assert len(skipped) > 2
    assert min(skipped) > 12


@pytest.mark.parametrize("seed", range(3))
def test_a_signal_saves_and_says_so(data: Path, tmp_path: Path, whole: Path, seed: int) -> None:
    """SIGTERM or SIGINT before some step or after it: that step is saved, the exit code is 128 + the signal's number,
    and the next start goes on from there to the bits and the checkpoints of an undisturbed run.
    """
    rng = random.Random(seed)
    number = rng.choice([signal.SIGTERM, signal.SIGINT])
    at, before = rng.randrange(1, 20), rng.random() < 0.5
    trainer = make_trainer(data, tmp_path / "parts")
    launch = trainer.work.launch

    def interrupt(step: int, *batch: object) -> object:
        if step == at and before:
            os.kill(os.getpid(), number)
        launched = launch(step, *batch)
        if step == at and not before:
            os.kill(os.getpid(), number)
        return launched

    trainer.work.launch = interrupt
    with pytest.raises(InterruptedRunError, match=f"interrupted after step {at} of 20, saved") as raised:
        trainer.train()
    assert raised.value.exit_code == 128 + number
    assert list_steps(tmp_path / "parts" / "checkpoints")[-1] == at
    again = make_trainer(data, tmp_path / "parts")
    assert again.step == at
    again.train()
    assert_same_end(whole, tmp_path / "parts")


def test_a_second_signal_leaves_the_checkpoint_from_before(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(data, tmp_path / "parts", checkpoint_every=5)
    launch = trainer.work.launch

    def interrupt(step: int, *batch: object) -> object:
        if step == 8:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return launch(step, *batch)

    trainer.work.launch = interrupt
    with pytest.raises(InterruptedRunError, match="stopped at once") as raised:
        trainer.train()
    assert raised.value.exit_code == 130
    trainer.writer.wait()
    assert list_steps(tmp_path / "parts" / "checkpoints")[-1] == 5
    start_again(data, tmp_path / "parts", (), checkpoint_every=5)
    start_again(data, tmp_path / "whole", (), checkpoint_every=5)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_deadline_pauses_and_saves(data: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that would end behind it is not begun. A clock that counts steps stands for the real one."""
    monkeypatch.setattr(Progress, "seconds_per_step", 1.5)
    for deadline, reached in ((7.0, 6), (6.5, 6), (14.25, 13), (99.0, 20)):
        trainer = make_trainer(data, tmp_path / "parts")
        clock = SimpleNamespace(monotonic=lambda trainer=trainer: float(trainer.step))
        monkeypatch.setattr(trainer_module, "time", clock)
        assert trainer.train(deadline=deadline) == reached
        assert list_steps(tmp_path / "parts" / "checkpoints")[-1] == reached
    assert_same_end(whole, tmp_path / "parts")


def test_a_deadline_of_the_real_clock(data: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    trainer = make_trainer(data, tmp_path, steps=100_000, sentinel_every=10_000, evaluate_every=10_000)
    reached = trainer.train(deadline=begun + 0.5)
    assert time.monotonic() - begun < 5
    assert reached == trainer.step < 100_000
    assert trainer.train(deadline=time.monotonic()) == reached, "a deadline that has passed begins nothing"


def test_a_deadline_before_the_first_step(data: Path, tmp_path: Path) -> None:
    assert make_trainer(data, tmp_path).train(deadline=time.monotonic() - 1) == 0
    assert list_steps(tmp_path / "checkpoints") == []


def test_a_stop_behind_changes_nothing(data: Path, tmp_path: Path) -> None:
    make_trainer(data, tmp_path).train(until=7)
    assert make_trainer(data, tmp_path).train(until=3) == 7
    assert list_steps(tmp_path / "checkpoints") == [7]
    assert len(metrics(tmp_path)) == 7


def test_another_micro_batch_from_one_start_to_the_next(data: Path, tmp_path: Path) -> None:
    """The batches stay the same, and so does the loss up to rounding."""
    seen: dict[str, list[bytes]] = {"whole": [], "parts": []}
    for name, micro_batches in (("whole", [8]), ("parts", [4, 1])):
        for i, micro_batch in enumerate(micro_batches):
            trainer = make_trainer(data, tmp_path / name, micro_batch=micro_batch)
            launch = trainer.work.launch
            trainer.work.launch = lambda step, *batch, launch=launch, name=name: (
                seen[name].append(batch[0].tobytes()),
                launch(step, *batch),
            )[1]
            trainer.train(until=9 if i + 1 < len(micro_batches) else None)
    assert seen["whole"] == seen["parts"]
    assert len(set(seen["whole"])) == 20
    whole, parts = ([line["loss"] for line in metrics(tmp_path / name)] for name in ("whole", "parts"))
    assert parts == pytest.approx(whole, abs=2e-3)


def test_checkpoints_are_kept_where_they_are_needed(data: Path, tmp_path: Path) -> None:
    """While the run goes on: the last two, each sixth step, what is pinned, and where an anneal may branch."""
    make_trainer(data, tmp_path, checkpoint_every=2, keep_every=6).train(until=3)
    trainer = make_trainer(data, tmp_path, checkpoint_every=2, keep_every=6, stage={"pinned": frozenset({3, 999})})
    after, seen = trainer.writer._after, {}

    def recording() -> None:
        newest = list_steps(trainer.checkpoints)[-1]
        after()
        seen[newest] = list_steps(trainer.checkpoints)

    trainer.writer._after = recording
    trainer.train(until=17)
    assert seen == {
        4: [2, 3, 4],
        6: [3, 4, 6],
        8: [3, 6, 8],
        10: [3, 6, 8, 10],
        12: [3, 6, 10, 12],
        14: [3, 6, 12, 14],
        16: [3, 6, 12, 14, 16],  # decay begins at 15: 14 is the branch point
        17: [3, 6, 12, 14, 16, 17],  # a stop saves besides
    }
    make_trainer(data, tmp_path, checkpoint_every=2, keep_every=6, stage={"pinned": frozenset({3})}).train()
    assert list_steps(tmp_path / "checkpoints") == [3, 6, 12, 14, 18, 20]


def test_an_anneal_goes_on_from_its_branch_point(data: Path, tmp_path: Path) -> None:
    """It starts with the weights and the momentum of the checkpoint, counts its tokens on, and resumes as any stage."""
    make_trainer(data, tmp_path / "pretrain").train(until=10)
    start = checkpoint_path(tmp_path / "pretrain" / "checkpoints", 10)
    anneal = {"name": "anneal", "start": start}
    trainer = make_trainer(data, tmp_path / "whole", stage=anneal, steps=12, decay_steps=12, warmup_steps=0)
    assert (trainer.step, trainer.tokens) == (0, 2560)
    branch = load_checkpoint(start)
    assert all(torch.equal(t, branch.model[n]) for n, t in trainer.work.model.state_dict().items())
    assert all(torch.equal(t, branch.optimizer[n]) for n, t in trainer.work.optimizer.state().items())
    assert int(trainer.work.guard.num_taken) == 0, "statistics are those of one stage"
    trainer.train()
    start_again(data, tmp_path / "parts", (5,), stage=anneal, steps=12, decay_steps=12, warmup_steps=0)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    state = load_checkpoint(checkpoint_path(tmp_path / "parts" / "checkpoints", 12)).state
    assert state["branched_from"] == {"stage": "pretrain", "step": 10, "tokens": 2560}
    assert state["tokens"] == 22 * 256
    assert metrics(tmp_path / "parts")[0]["tokens"] == 11 * 256


def test_a_disk_that_is_full_for_a_while(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that cannot be written is named, and the run goes on to the next."""
    make_trainer(data, tmp_path / "whole", checkpoint_every=5).train()
    real, steps = writer_module.save_checkpoint, []

    def full_at_first(folder: Path, step: int, *rest: object) -> Path:
        steps.append(step)
        if len(steps) == 2:
            raise OSError(28, "No space left on device")
        return real(folder, step, *rest)

    monkeypatch.setattr(writer_module, "save_checkpoint", full_at_first)
    trainer = make_trainer(data, tmp_path / "parts", checkpoint_every=5)
    trainer.train()
    assert steps == [5, 10, 15, 20]
    (warning,) = [text for text in trainer.reporter.warnings if "could not be written" in text]
    assert "the checkpoint of step 10 could not be written" in warning
    assert "the one of step 5 is whole" in warning
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(
    data: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trainer(data, tmp_path / "parts").train(until=10)
    monkeypatch.setattr(
        writer_module, "save_checkpoint", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    trainer = make_trainer(data, tmp_path / "parts")
    with pytest.raises(ShardError, match="step 13 could not be saved; make room"):
        trainer.train(until=13)
    assert any("the one of step 10 is whole" in text for text in trainer.reporter.warnings)
    monkeypatch.undo()
    start_again(data, tmp_path / "parts", ())
    assert_same_end(whole, tmp_path / "parts")


def test_metrics_that_cannot_be_written_stop_the_stage(data: Path, tmp_path: Path, whole: Path) -> None:
    make_trainer(data, tmp_path / "parts").train(until=4)
    trainer = make_trainer(data, tmp_path / "parts")

    def full(**record: object) -> None:
        raise OSError(28, "No space left on device")

    trainer.journal.metric = full
    with pytest.raises(ShardError, match=r"step 5 could not be written down .*the checkpoint of step 4 is whole"):
        trainer.train()
    start_again(data, tmp_path / "parts", ())
    assert_same_end(whole, tmp_path / "parts")


def test_compiled_equals_eager_and_resumes_to_the_same_bits(data: Path, tmp_path: Path) -> None:
    """The compiled step is the same function within rounding, and it repeats itself."""
    make_trainer(data, tmp_path / "eager").train(until=4)
    for name, stops in (("whole", (4,)), ("parts", (3, 4))):
        for until in stops:
            make_trainer(data, tmp_path / name, compiled=True).train(until=until)
    eager, compiled = ([line["loss"] for line in metrics(tmp_path / f)] for f in ("eager", "whole"))
    assert compiled == pytest.approx(eager, abs=2e-3)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_loss_that_is_not_finite_stops_with_one_line(data: Path, tmp_path: Path) -> None:
    """A weight that is not finite: three steps are skipped, and the checkpoint gives the weight back. What comes back
    each time stops the stage.
    """
    make_trainer(data, tmp_path / "whole", checkpoint_every=2).train(until=8)
    make_trainer(data, tmp_path / "hurt", checkpoint_every=2).train(until=2)

    def spoil(trainer: Trainer) -> None:
        with torch.no_grad():
            trainer.work.model.embedding.weight[5] = float("nan")

    trainer = make_trainer(data, tmp_path / "hurt", checkpoint_every=2)
    spoil(trainer)
    trainer.train(until=8)
    assert [e["reason"] for e in events(tmp_path / "hurt", "skipped")] == ["loss"] * 3
    assert [r.to_dict() for r in trainer.rollbacks] == [{"step": 5, "checkpoint": 2, "passed_over": [2, 3, 4]}]
    assert all(line["loss"] is not None for line in metrics(tmp_path / "hurt"))

    make_trainer(data, tmp_path / "lost", checkpoint_every=2).train(until=2)
    trainer = make_trainer(data, tmp_path / "lost", checkpoint_every=2)
    launch = trainer.work.launch
    trainer.work.launch = lambda step, *batch: (spoil(trainer), launch(step, *batch))[1]
    with pytest.raises(ShardError, match=r"gave up at step \d+: 3 of the last steps .* after 3 rollbacks") as raised:
        trainer.train()
    assert "\n" not in str(raised.value)
    assert str(tmp_path / "lost" / "trouble.json") in str(raised.value)
    trainer.writer.wait()
    report = json.loads((tmp_path / "lost" / "trouble.json").read_text())
    assert len(report["rollbacks"]) == 3
    calm = load_checkpoint(checkpoint_path(tmp_path / "lost" / "checkpoints", 2))
    assert all(tensor.isfinite().all() for tensor in (calm.model | calm.optimizer).values())


def test_a_damaged_checkpoint_is_passed_over(data: Path, tmp_path: Path) -> None:
    """The run goes back to the older one and ends with the same weights."""
    make_trainer(data, tmp_path / "whole", checkpoint_every=5).train()
    make_trainer(data, tmp_path / "hurt", checkpoint_every=5).train(until=15)
    newest = tmp_path / "hurt" / "checkpoints" / "step-00000015" / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    trainer = make_trainer(data, tmp_path / "hurt", checkpoint_every=5)
    assert trainer.step == 10
    assert any(f"{newest} is damaged" in text for text in trainer.reporter.warnings)
    trainer.train()
    assert_same_end(tmp_path / "whole", tmp_path / "hurt")
    assert [line["step"] for line in metrics(tmp_path / "hurt")] == list(range(1, 21))


def change_state(folder: Path, step: int, **changes: object) -> None:
    """Write a checkpoint again with another state, as if it had been made elsewhere."""
    loaded = load_checkpoint(checkpoint_path(folder / "checkpoints", step))
    save_checkpoint(folder / "checkpoints", step, loaded.model, loaded.optimizer, {**loaded.state, **changes})


def test_a_checkpoint_of_other_data_is_refused(data: Path, tmp_path: Path) -> None:
    """By the key that differs, and its value there and here."""
    make_trainer(data, tmp_path, stage={"identity": {"lr": 1, "seed": 3}}).train(until=3)
    change_state(tmp_path, 3, fingerprint="other")
    with pytest.raises(ShardError, match="another recipe, tokenizer or data") as raised:
        make_trainer(data, tmp_path, stage={"identity": {"lr": 2, "seed": 3}})
    assert "lr is 1 there and 2 here" in str(raised.value)
    assert "seed" not in str(raised.value)
    assert "step-00000003" in str(raised.value)


def test_a_fork_goes_on_from_the_run_it_was_forked_from(data: Path, tmp_path: Path) -> None:
    """And its own checkpoints carry its own fingerprint."""
    make_trainer(data, tmp_path).train(until=3)
    fork = {"fingerprint": "fork", "identity": {"what": "fork"}}
    with pytest.raises(ShardError, match="what is 'tiny' there and 'fork' here"):
        make_trainer(data, tmp_path, stage=fork)
    trainer = make_trainer(data, tmp_path, stage={**fork, "accepts": frozenset({"tiny"})})
    assert trainer.step == 3
    trainer.train(until=5)
    state = load_checkpoint(checkpoint_path(tmp_path / "checkpoints", 5)).state
    assert (state["fingerprint"], state["identity"]) == ("fork", {"what": "fork"})
    with pytest.raises(ShardError, match="what is 'fork' there and 'tiny' here"):
        make_trainer(data, tmp_path)


def test_a_checkpoint_of_another_model_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    make_trainer(data, tmp_path).train(until=1)
    path = checkpoint_path(tmp_path / "checkpoints", 1)
    loaded = load_checkpoint(path)
    optimizer = {name: tensor for name, tensor in loaded.optimizer.items() if name != "exp_avg.embedding.weight"}
    save_checkpoint(tmp_path / "checkpoints", 1, loaded.model, optimizer, loaded.state)
    with pytest.raises(ShardError, match=r"step-00000001 does not fit this recipe's model: .*exp_avg\.embedding"):
        make_trainer(data, tmp_path)
    model = {name: tensor[:1] for name, tensor in loaded.model.items()}
    save_checkpoint(tmp_path / "checkpoints", 1, model, loaded.optimizer, loaded.state)
    with pytest.raises(ShardError, match=r"step-00000001 does not fit this recipe's model"):
        make_trainer(data, tmp_path)


def test_another_machine_is_named_and_the_run_goes_on(data: Path, tmp_path: Path) -> None:
    before = {"device": "CPU: a", "versions": {"torch": "2.13", "numpy": "2.0"}}
    now = {"device": "CPU: a", "versions": {"torch": "2.14", "numpy": "2.0"}}
    make_trainer(data, tmp_path, stage={"environment": before}).train(until=2)
    same = make_trainer(data, tmp_path, stage={"environment": before})
    assert same.reporter.warnings == []
    trainer = make_trainer(data, tmp_path, stage={"environment": now})
    (warning,) = trainer.reporter.warnings
    assert "versions.torch is '2.13' there and '2.14' here" in warning
    assert "device" not in warning
    (event,) = events(tmp_path, "environment")
    assert event["step"] == 2
    assert event["before"]["versions.torch"] == "2.13"
    assert event["now"]["versions.torch"] == "2.14"
    assert trainer.train(until=4) == 4


@pytest.mark.parametrize(("line", "missing"), [(0, 6), (3, 3), (5, 1), (None, 6)])
def test_metrics_that_are_missing_are_counted(data: Path, tmp_path: Path, line: int | None, missing: int) -> None:
    """What lies behind a broken line cannot be trusted; the weights are whole, so that the run goes on."""
    make_trainer(data, tmp_path).train(until=6)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if line is None:
        path.unlink()
    else:
        path.write_bytes(b"".join([*lines[:line], lines[line].replace(b"{", b"[", 1), *lines[line + 1 :]]))
    trainer = make_trainer(data, tmp_path)
    assert trainer.step == 6
    (warning,) = trainer.reporter.warnings
    assert f"metrics.jsonl lacks {missing} of the 6 steps" in warning
    trainer.train(until=7)
    assert metrics(tmp_path)[-1]["step"] == 7


def test_clipping_bounds_the_raw_gradient_only(data: Path, tmp_path: Path) -> None:
    """The recorded norm is the one before clipping, and Muon's step does not shrink with the gradient."""
    make_trainer(data, tmp_path / "free").train(until=1)
    make_trainer(data, tmp_path / "clipped", grad_clip=1e-3).train(until=1)
    free, clipped = (metrics(tmp_path / f)[0] for f in ("free", "clipped"))
    assert free["grad_norm"] == clipped["grad_norm"]
    a, b = (load_checkpoint(tmp_path / f / "checkpoints" / "step-00000001") for f in ("free", "clipped"))
    name = "blocks.0.feed_forward.down.weight"  # starts at zero: its value is the step
    assert float(a.model[name].norm()) > 0
    torch.testing.assert_close(a.model[name], b.model[name], rtol=2e-2, atol=2e-3)
