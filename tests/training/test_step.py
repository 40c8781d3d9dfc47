"""The hot path: nothing in it waits for the device, a skipped step leaves no trace, and memory that runs out."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny_stage import Listener, assert_same_end, events, make_stage, make_trainer, metrics
from torch.utils._python_dispatch import TorchDispatchMode

from shard.errors import ShardError
from shard.model import ShardLM
from shard.training.checkpoint import list_steps
from shard.training.decisions import decide, halve_micro_batch, is_out_of_memory, save_decisions
from shard.training.guard import LEAST_SCALE
from shard.training.step import TrainingStep
from shard.training.trainer import Trainer

LOSS, NORM, SKIP = 3, 4, 5  # their places in the outcome of a step
WORDS = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)


class NoSync(TorchDispatchMode):
    """Refuses what makes the host wait for a value of the device."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").split(".")[0]
        assert name not in self.REFUSED, f"the host waits for {name}"
        return func(*args, **(kwargs or {}))


def refuse_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: torch.Tensor, *_: object) -> object:
        raise AssertionError("the host reads a tensor")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, refused)


def no_report(*_: object) -> None:
    raise AssertionError("memory did not run out")


def make_work(data: Path, folder: Path, **changes: object) -> TrainingStep:
    stage = make_stage(data, folder, **changes)
    torch.manual_seed(stage.seed)
    return TrainingStep(stage, ShardLM(stage.config), no_report)


def state_of(work: TrainingStep) -> dict[str, torch.Tensor]:
    tensors = {**work.model.state_dict(), **work.optimizer.state()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("precision", "cautious", "clip"),
    [("fp32", True, None), ("fp32", False, 1.0), ("fp16", True, 1.0), ("fp16", False, None), ("bf16", True, None)],
)
def test_the_host_never_waits_within_a_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, cautious: bool, clip: float | None
) -> None:
    changes = {"precision": precision, "cautious_decay": cautious, "grad_clip": clip}
    work = make_work(data, tmp_path, micro_batch=4, **changes)
    rows = [work.stage.loader.batch(i) for i in range(3)]
    with monkeypatch.context() as patch:
        refuse_reading(patch)
        with NoSync():
            launched = [work.launch(i + 1, batch) for i, batch in enumerate(rows)]
    losses = [step.wait()[LOSS] for step in launched]
    assert losses[2] < losses[0]
    assert [step.wait()[SKIP] for step in launched] == [0, 0, 0], "steps that were taken, so that all of it ran"


def test_the_refusal_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to read a value is caught by one of the two nets."""
    x = torch.ones(3)
    for read in (lambda: x.sum().item(), lambda: float(x.sum()), lambda: bool(x.any()), lambda: x.nonzero()):
        with pytest.raises(AssertionError), NoSync():
            read()
    with monkeypatch.context() as patch:
        refuse_reading(patch)
        for read in (lambda: x.sum().item(), lambda: float(x.sum()), lambda: bool(x.any()), lambda: x.tolist()):
            with pytest.raises(AssertionError, match="the host reads"):
                read()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_skipped_step_changes_no_bit(
    data: Path, tmp_path: Path, precision: str, value: float, clip: float | None
) -> None:
    """Weights, momentum, exp_avg, exp_avg_sq and the count of Adam's steps."""
    work = make_work(data, tmp_path, precision=precision, grad_clip=clip)
    rows, accumulate = work.stage.loader.batch(0), work.accumulate_gradients
    work.launch(1, rows)
    before = state_of(work)

    def spoiled(rows, *place):
        sums = accumulate(rows, *place)
        work.model.blocks[1].attention.query.weight.grad[3, 5] = value
        return sums

    work.accumulate_gradients = spoiled
    outcome = work.launch(2, rows).wait()
    assert outcome[SKIP] == 1
    after = state_of(work)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(p.grad is None for p in work.model.parameters())
    work.accumulate_gradients = accumulate
    assert work.launch(3, rows).wait()[SKIP] == 0
    assert not torch.equal(state_of(work)["embedding.weight"], before["embedding.weight"])
    assert float(state_of(work)["adam_step.embedding.weight"]) == 2, "of steps taken"


def test_a_loss_scale_changes_the_gradient_only_by_rounding(data: Path, tmp_path: Path) -> None:
    """It is taken away again before the norm is measured and the weights move."""
    norms = {}
    for precision in ("fp32", "fp16"):
        work = make_work(data, tmp_path / precision, precision=precision)
        norms[precision] = work.launch(1, work.stage.loader.batch(0)).wait()[NORM]
        assert float(work.guard.scale) == (65536 if precision == "fp16" else LEAST_SCALE)
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=0.01)


# Memory that runs out.


def limit_memory(work: TrainingStep, most: int, error: BaseException, passes: int = 0) -> list[int]:
    """Let micro-batches of more than `most` sequences fail, `passes` of them excepted; the sizes that were tried."""
    real, tried = work._loss, []

    def compute(inputs, targets, scale):
        tried.append(len(inputs))
        if len(inputs) > most and len(tried) > passes:
            raise error
        return real(inputs, targets, scale)

    work._loss = compute
    return tried


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory.\nTried"), RuntimeError(WORDS)], ids=type)
@pytest.mark.parametrize(("most", "chosen", "tried"), [(4, 4, [8, 4, 4]), (2, 2, [8, 4, 2, 2, 2, 2])])
def test_smaller_micro_batches_where_memory_runs_out(
    data: Path, tmp_path: Path, error: BaseException, most: int, chosen: int, tried: list[int]
) -> None:
    """The step gives the bits that it gives with that micro-batch from the start; so do all that follow."""
    saved = []
    make_trainer(data, tmp_path / "small", micro_batch=chosen).train(until=4)
    trainer = make_trainer(data, tmp_path / "large", stage={"save_decisions": saved.append})
    sizes = limit_memory(trainer.work, most, error)
    trainer.train(until=4)
    assert sizes[: len(tried)] == tried
    assert sizes[len(tried) :] == [chosen] * (3 * 8 // chosen), "once found it is kept"
    assert_same_end(tmp_path / "small", tmp_path / "large")
    assert [decisions.micro_batch for decisions in saved] == [4, 2][: len(saved)]
    assert saved[-1].micro_batch == chosen
    assert "did not fit into memory" in saved[-1].reasons["micro_batch"]
    recorded = events(tmp_path / "large", "out_of_memory")
    assert [(e["step"], e["micro_batch"]) for e in recorded] == [(1, d.micro_batch) for d in saved]
    assert recorded[0]["message"] == str(error).splitlines()[0]
    assert any(f"micro-batches of {chosen} sequences" in text for text in trainer.reporter.warnings)


def test_memory_that_runs_out_within_a_step(data: Path, tmp_path: Path) -> None:
    """What the first micro-batches gave is thrown away: no sequence counts twice."""
    make_trainer(data, tmp_path / "small", micro_batch=2).train(until=1)
    trainer = make_trainer(data, tmp_path / "large", micro_batch=4)
    tried = limit_memory(trainer.work, 2, RuntimeError(WORDS), passes=1)
    trainer.train(until=1)
    assert tried == [4, 4, 2, 2, 2, 2]
    assert_same_end(tmp_path / "small", tmp_path / "large")


def test_one_sequence_that_does_not_fit_is_said_in_one_line(data: Path, tmp_path: Path) -> None:
    make_trainer(data, tmp_path, micro_batch=2).train(until=2)
    trainer = make_trainer(data, tmp_path, micro_batch=2)
    limit_memory(trainer.work, 0, torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"))
    with pytest.raises(ShardError, match=r"one sequence of 32 tokens does not fit .*CUDA out of memory\.") as raised:
        trainer.train()
    assert "\n" not in str(raised.value)
    assert list_steps(tmp_path / "checkpoints") == [2]
    assert len(metrics(tmp_path)) == 2


def test_any_other_error_passes_through(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(data, tmp_path)
    tried = limit_memory(trainer.work, 0, RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        trainer.train()
    assert tried == [8]
    assert events(tmp_path, "out_of_memory") == []


def test_the_smaller_micro_batch_is_there_at_the_next_start(data: Path, tmp_path: Path) -> None:
    """Through decisions.json, as a run has it."""
    path, device = tmp_path / "decisions.json", torch.device("cpu")
    stage = make_stage(data, tmp_path / "a", compile="off", precision="fp32")
    decisions = decide("pretrain", stage.settings, device, path)
    assert decisions.micro_batch == 8
    fields = {"decisions": decisions, "save_decisions": lambda d: save_decisions("pretrain", device, path, d)}
    trainer = Trainer(make_stage(data, tmp_path / "a", stage=fields), Listener())
    limit_memory(trainer.work, 2, RuntimeError(WORDS))
    trainer.train(until=1)
    again = decide("pretrain", stage.settings, device, path)
    assert again.micro_batch == 2
    assert again.reasons["micro_batch"] == "4 sequences did not fit into memory"
    assert {**again.reasons, "micro_batch": ""} == {**decisions.reasons, "micro_batch": ""}
    json.loads(path.read_text())


def test_a_real_failed_allocation_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"), True),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: not enough memory: you tried to allocate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_counts_as_out_of_memory(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 12, 96, 97])
def test_halved_micro_batches_are_equal_parts(data: Path, tmp_path: Path, rows: int) -> None:
    decisions = make_stage(data, tmp_path, micro_batch=rows).decisions
    sizes = []
    while decisions is not None:
        sizes.append(decisions.micro_batch)
        decisions = halve_micro_batch(decisions, rows)
    assert sizes[-1] == 1
    assert all(rows % size == 0 for size in sizes)
    for larger, smaller in pairwise(sizes):
        assert smaller <= larger // 2
        assert not any(rows % n == 0 for n in range(smaller + 1, larger // 2 + 1)), "no smaller than it must be"
