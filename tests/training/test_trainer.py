"""The trainer on a tiny model: golden losses, micro-batches that equal the batch, resume, and what it refuses."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from shard.config import Config
from shard.console import Reporter
from shard.data.loader import BatchLoader
from shard.errors import ShardError
from shard.evaluation.bits_per_byte import encode_heldout, score
from shard.files import write_json
from shard.inference.sampling import complete_prompts
from shard.tokenizer import train_tokenizer
from shard.training.checkpoint import list_steps, load_checkpoint
from shard.training.decisions import Decisions
from shard.training.metrics import read_jsonl
from shard.training.settings import StageSettings
from shard.training.trainer import InterruptedRunError, Stage, Trainer

GOLDEN = Path(__file__).parent / "golden_losses.json"
CONFIG = Config(
    vocab_size=300,
    hidden_size=32,
    num_layers=3,
    num_heads=2,
    head_dim=16,
    intermediate_size=64,
    max_sequence_length=64,
    sliding_window=8,
)
TEXTS = [f"Document {i} says that {i} + {i} = {2 * i}, and {i} * {i} = {i * i}." for i in range(400)]


def write_stream(folder: Path, ids: np.ndarray) -> None:
    folder.mkdir(parents=True)
    ids.astype("<u2").tofile(folder / "train-00000.bin")
    shard = {"file": "train-00000.bin", "tokens": len(ids), "sha256": ""}
    write_json(folder / "tokens.json", {"dtype": "<u2", "tokens": len(ids), "shards": [shard]})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token shards of two sources, and a tokenizer, made of a few lines of text."""
    folder = tmp_path_factory.mktemp("data")
    tokenizer = train_tokenizer(TEXTS, CONFIG.vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = [i for text in TEXTS for i in [*tokenizer.encode(text).ids, 0]]
    write_stream(folder / "a", np.array(ids))
    write_stream(folder / "b", np.array(ids[::-1]))
    return folder


def make_trainer(data: Path, folder: Path, micro_batch: int = 8, compiled: bool = False, **changes: object) -> Trainer:
    from shard.tokenizer import load_tokenizer

    settings = StageSettings(
        **{  # type: ignore[arg-type]
            "steps": 20,
            "sequence_length": 32,
            "tokens_per_step": 256,
            "mix": {"a": 0.75, "b": 0.25},
            "warmup_steps": 3,
            "decay_steps": 5,
            "checkpoint_every": 10,
            "evaluate_every": 10,
            "sample_every": 20,
            "sample_prompts": ("Document",),
            "sentinel_every": 10,
            "weight_decay": 0.1,
            **changes,
        }
    )
    tokenizer = load_tokenizer(data / "tokenizer.json")
    heldout = encode_heldout(TEXTS[:5], tokenizer, 0, None)
    stage = Stage(
        name="pretrain",
        config=CONFIG,
        settings=settings,
        seed=7,
        folder=folder,
        loader=BatchLoader(data, settings.mix, settings.sequence_length, settings.tokens_per_step, 16, seed=7),
        score=lambda model: {"a": score(model, heldout, 32, 32, torch.float32).bits_per_byte},
        sample=lambda model: complete_prompts(model, tokenizer, 0, settings.sample_prompts, 10),
        fingerprint="tiny",
        decisions=Decisions("fp32", "fp32", compiled, micro_batch, False, {"precision": "", "compile": ""}),
        device=torch.device("cpu"),
    )
    return Trainer(stage, Reporter(quiet=True))


def metrics(folder: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in line.items() if k != "timing"} for line in read_jsonl(folder / "metrics.jsonl")]


@pytest.fixture(autouse=True)
def _restore_torch_switches() -> object:
    yield
    torch.use_deterministic_algorithms(False)


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
    sums = [trainer.accumulate_gradients(rows) for trainer in (whole, parts)]
    torch.testing.assert_close(sums[0], sums[1])
    for (name, p), q in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, name=name: f"{name}: {m}")


def test_stopped_and_resumed_equals_undisturbed(data: Path, tmp_path: Path) -> None:
    """Weights, optimizer state and metrics are the same bits."""
    make_trainer(data, tmp_path / "whole").train()
    make_trainer(data, tmp_path / "parts").train(until=7)
    make_trainer(data, tmp_path / "parts").train(until=13)
    make_trainer(data, tmp_path / "parts").train()
    whole, parts = (load_checkpoint(tmp_path / f / "checkpoints" / "step-00000020") for f in ("whole", "parts"))
    for kind in ("model", "optimizer"):
        for name, tensor in getattr(whole, kind).items():
            assert torch.equal(tensor, getattr(parts, kind)[name]), name
    scored = {line["step"]: line for line in metrics(tmp_path / "parts")}
    for line in metrics(tmp_path / "whole"):
        # A stop also scores the held-out text at its own step; everything else is equal.
        assert {**scored[line["step"]], "bits_per_byte": None} == {**line, "bits_per_byte": None}


def test_a_damaged_checkpoint_is_passed_over(data: Path, tmp_path: Path) -> None:
    """The run goes back to the older one and ends with the same weights."""
    make_trainer(data, tmp_path / "whole").train()
    make_trainer(data, tmp_path / "hurt", checkpoint_every=5).train(until=15)
    newest = tmp_path / "hurt" / "checkpoints" / "step-00000015" / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    trainer = make_trainer(data, tmp_path / "hurt", checkpoint_every=5)
    assert trainer.step == 10
    trainer.train()
    whole, hurt = (load_checkpoint(tmp_path / f / "checkpoints" / "step-00000020") for f in ("whole", "hurt"))
    assert all(torch.equal(tensor, hurt.model[name]) for name, tensor in whole.model.items())
    assert [line["step"] for line in metrics(tmp_path / "hurt")] == list(range(1, 21))


def test_compiled_equals_eager_within_rounding(data: Path, tmp_path: Path) -> None:
    """The compiled step is the same function."""
    make_trainer(data, tmp_path / "eager").train(until=4)
    make_trainer(data, tmp_path / "compiled", compiled=True).train(until=4)
    eager, compiled = ([line["loss"] for line in metrics(tmp_path / f)] for f in ("eager", "compiled"))
    assert compiled == pytest.approx(eager, abs=2e-3)


def test_a_checkpoint_of_other_data_is_refused(data: Path, tmp_path: Path) -> None:
    make_trainer(data, tmp_path).train(until=3)
    state = tmp_path / "checkpoints" / "step-00000003"
    from shard.training import checkpoint

    loaded = load_checkpoint(state)
    checkpoint.save_checkpoint(
        tmp_path / "checkpoints", 3, loaded.model, loaded.optimizer, {**loaded.state, "fingerprint": "other"}
    )
    with pytest.raises(ShardError, match="another recipe, tokenizer or data"):
        make_trainer(data, tmp_path)


def test_a_signal_saves_and_says_so(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM after a step: that step is saved, the exit code is 143, and the next start goes on from there."""
    trainer = make_trainer(data, tmp_path)
    show = trainer._show

    def interrupt(record: dict[str, object], last: int, seconds_left: float) -> None:
        show(record, last, seconds_left)
        if record["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer, "_show", interrupt)
    with pytest.raises(InterruptedRunError) as raised:
        trainer.train()
    assert raised.value.exit_code == 143
    assert list_steps(tmp_path / "checkpoints")[-1] in (4, 5)
    assert make_trainer(data, tmp_path).step == list_steps(tmp_path / "checkpoints")[-1]


def test_a_loss_that_is_not_finite_stops_with_one_line(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(data, tmp_path)
    trainer.train(until=2)
    trainer = make_trainer(data, tmp_path)
    with torch.no_grad():
        trainer.model.embedding.weight[5] = float("nan")
    with pytest.raises(ShardError, match="not finite"):
        trainer.train()
    assert list_steps(tmp_path / "checkpoints") == [2]


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
