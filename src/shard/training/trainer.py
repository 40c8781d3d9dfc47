"""One stage of training: from a checkpoint (or from nothing) to its last step, with everything that it leaves behind.

The loop is small on purpose: batch(step) -> gradients, micro-batch by micro-batch -> optimizer step -> record. All that
decides the result is a pure function of the recipe and the step, or stands in the checkpoint.
"""

import signal
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shard.config import Config
from shard.console import Reporter
from shard.data.loader import BatchLoader
from shard.environment import make_deterministic, memory_bytes
from shard.errors import ShardError
from shard.model import ShardLM
from shard.training.checkpoint import (
    Checkpoint,
    list_steps,
    load_newest,
    prune,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from shard.training.cost import flops_per_token
from shard.training.decisions import DTYPES, Decisions
from shard.training.loss import Loss, chunked_loss
from shard.training.metrics import Journal
from shard.training.optimizer import Optimizer
from shard.training.sentinel import inspect_spectra
from shard.training.settings import StageSettings
from shard.units import format_count, format_duration, format_size


class InterruptedRunError(ShardError):
    """A signal asked the run to stop; what was done is saved. Exits with 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@dataclass(frozen=True)
class Stage:
    """What a stage of training is given."""

    name: str
    """pretrain or anneal."""
    config: Config
    settings: StageSettings
    seed: int
    folder: Path
    loader: BatchLoader
    score: Callable[[ShardLM], dict[str, float]]
    """Bits per byte of held-out text by source, at the dtype of training."""
    sample: Callable[[ShardLM], list[dict[str, str]]]
    """What the model writes: {"prompt": ..., "text": ...} of each prompt."""
    fingerprint: str
    """Of recipe, tokenizer and data: a checkpoint with another one is refused."""
    decisions: Decisions
    device: torch.device


class Trainer:
    """Trains one stage. `start` is the checkpoint that an anneal branches from; pretraining starts from nothing."""

    def __init__(self, stage: Stage, reporter: Reporter, start: Checkpoint | None = None) -> None:
        self.stage, self.reporter = stage, reporter
        self.journal = Journal(stage.folder)
        self.checkpoints = stage.folder / "checkpoints"
        make_deterministic(stage.seed)
        self.model = ShardLM(stage.config).to(stage.device)
        if stage.decisions.flex_attention:
            from shard.training.flex import flex_local_attention

            for block in self.model.blocks:
                block.attention.local_attention = flex_local_attention  # type: ignore[union-attr]
        self.optimizer = Optimizer(self.model, stage.settings, DTYPES[stage.decisions.newton_schulz])
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.branched_from: dict[str, Any] | None = None
        resumed = load_newest(self.checkpoints, reporter.warn)
        if resumed is not None:
            self._resume(resumed)
        elif start is not None:
            self._load_tensors(start)
            self.tokens = int(start.state["tokens"])
            self.branched_from = {"stage": start.state["stage"], "step": start.step, "tokens": self.tokens}
        self.journal.resume(self.step)
        self._compute = torch.compile(self._loss, dynamic=False) if stage.decisions.compile else self._loss
        self._flops_per_token = flops_per_token(stage.config, stage.settings.sequence_length)

    def _load_tensors(self, checkpoint: Checkpoint) -> None:
        try:
            self.model.load_state_dict(checkpoint.model)
            self.optimizer.load_state(checkpoint.optimizer)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ShardError(f"{checkpoint.path} does not fit this recipe's model: {reason}") from None

    def _resume(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        if state["fingerprint"] != self.stage.fingerprint:
            raise ShardError(
                f"{checkpoint.path} was made with another recipe, tokenizer or data than this run folder now holds: "
                "use another --out"
            )
        self._load_tensors(checkpoint)
        self.step, self.tokens = checkpoint.step, int(state["tokens"])
        self.seconds = float(state["seconds"])
        self.branched_from = state["branched_from"]
        set_rng_state(state["rng"])
        self.reporter.line(f"{self.stage.name}: continues after step {self.step} ({checkpoint.path})")

    def _loss(self, inputs_BT: Tensor, targets_BT: Tensor) -> Loss:
        settings = self.stage.settings
        hidden_BTD = self.model.hidden(inputs_BT, dtype=self.stage.decisions.dtype)
        return chunked_loss(
            hidden_BTD.flatten(0, 1),
            self.model.embedding.weight,
            targets_BT.flatten(),
            self.stage.config.logit_cap,
            settings.z_loss,
            scale=1 / settings.tokens_per_step,
        )

    def accumulate_gradients(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Gradients of one global batch [rows, T + 1], micro-batch by micro-batch; the sums of nll and z over it.

        Each micro-batch's loss is already a share of the whole batch's mean, so the sum equals the big batch.
        """
        batch = torch.from_numpy(rows).to(self.stage.device, non_blocking=True)
        nll = torch.zeros((), device=self.stage.device)
        z = torch.zeros((), device=self.stage.device)
        for micro in batch.split(self.stage.decisions.micro_batch):
            loss = self._compute(micro[:, :-1].contiguous(), micro[:, 1:].contiguous())
            loss.total.backward()
            nll += loss.nll_sum
            z += loss.z_sum
        return nll, z

    def train(self, until: int | None = None) -> int:
        """Train to the last step, or to `until`; saves there and returns the step reached."""
        settings = self.stage.settings
        last = min(settings.steps, until or settings.steps)
        self._announce(last)
        self.journal.event("start", step=self.step, until=last)
        recent: list[float] = []
        with _SignalFlag() as stop:
            while self.step < last:
                begun = time.monotonic()
                rows = self.stage.loader.fetch(self.step)
                rates = self.optimizer.set_step(self.step)
                nll, z = self.accumulate_gradients(rows)
                grad_norm = float(self.optimizer.step())
                cross_entropy = float(nll) / settings.tokens_per_step
                z_loss = settings.z_loss * float(z) / settings.tokens_per_step
                if not np.isfinite(cross_entropy) or not np.isfinite(grad_norm):
                    raise ShardError(
                        f"{self.stage.name}: the loss or gradient of step {self.step + 1} is not finite: lower "
                        "lr_muon and lr_embedding, or set precision to fp32; the last checkpoint is untouched"
                    )
                self.step += 1
                self.tokens += settings.tokens_per_step
                seconds = time.monotonic() - begun
                self.seconds += seconds
                speed = settings.tokens_per_step / seconds
                record: dict[str, Any] = {
                    "step": self.step,
                    "tokens": self.tokens,
                    "loss": cross_entropy + z_loss,
                    "cross_entropy_nats": cross_entropy,
                    "z_loss": z_loss,
                    "grad_norm": grad_norm,
                    **rates,
                }
                if self._due(settings.evaluate_every, last):
                    record["bits_per_byte"] = self.stage.score(self.model)
                record["timing"] = {
                    "seconds": round(seconds, 4),
                    "tokens_per_second": round(speed, 1),
                    "flops_per_second": round(speed * self._flops_per_token),
                    "memory_bytes": memory_bytes(self.stage.device),
                }
                self.journal.metric(**record)
                recent = [*recent, seconds][-20:]  # the median leaves out the step that compiled
                self._show(record, last, statistics.median(recent) * (last - self.step))
                if self._due(settings.sentinel_every, last):
                    self._look_for_rank_loss()
                if self._due(settings.sample_every, last):
                    self._sample()
                if self._due(settings.checkpoint_every, last) or stop.signal_number:
                    self.save()
                if stop.signal_number:
                    self.reporter.end_progress()
                    raise InterruptedRunError(
                        f"{self.stage.name}: interrupted after step {self.step} of {settings.steps}, saved; "
                        "the same command goes on from there",
                        stop.signal_number,
                    )
        self.reporter.end_progress()
        self.stage.loader.close()
        if list_steps(self.checkpoints)[-1:] != [self.step]:
            self.save()
        self.journal.event("end", step=self.step)
        return self.step

    def _due(self, every: int, last: int) -> bool:
        return self.step % every == 0 or self.step == last

    def _announce(self, last: int) -> None:
        stage, d = self.stage, self.stage.decisions
        rows = [[role, opt, f"{tensors}", f"{count:,}"] for role, opt, tensors, count in self.optimizer.table()]
        self.reporter.table("Parameter groups", ["role", "optimizer", "tensors", "parameters"], rows)
        compiled = "compiled" if d.compile else f"not compiled: {d.reasons['compile']}"
        self.reporter.line(
            f"{stage.name}: steps {self.step} to {last} of {stage.settings.steps}, "
            f"{format_count(stage.settings.tokens_per_step)} tokens each in micro-batches of {d.micro_batch} x "
            f"{stage.settings.sequence_length}; {d.precision} ({d.reasons['precision']}); {compiled}"
        )

    def _show(self, record: dict[str, Any], last: int, seconds_left: float) -> None:
        timing = record["timing"]
        text = (
            f"{self.stage.name} {self.step}/{last}  loss {record['loss']:.4f}  "
            f"{timing['tokens_per_second']:,.0f} tokens/s  {timing['flops_per_second'] / 1e9:,.0f} GFLOP/s  "
            f"{format_size(timing['memory_bytes'])}  {format_duration(seconds_left)} left"
        )
        if "bits_per_byte" in record:
            scores = "  ".join(f"{name} {value:.3f}" for name, value in record["bits_per_byte"].items())
            self.reporter.line(
                f"{self.stage.name} {self.step}/{last}  loss {record['loss']:.4f}  bits per byte: {scores}"
            )
        else:
            self.reporter.progress(text)

    def _look_for_rank_loss(self) -> None:
        spectra = inspect_spectra(self.optimizer)
        lost = [spectrum for spectrum in spectra if spectrum.rank_loss]
        worst = min(spectra, key=lambda spectrum: spectrum.ratio)
        self.journal.event("sentinel", step=self.step, spectra=[spectrum.to_dict() for spectrum in spectra])
        if lost:
            self.journal.event("rank_loss", step=self.step, matrices=[f"{s.name} ({s.what})" for s in lost])
            num_lost, num_values = sum(s.num_lost for s in lost), sum(s.num_values for s in spectra)
            self.reporter.warn(
                f"sentinel, step {self.step}: rank loss, {num_lost} of {num_values:,} singular values are below what "
                f"Newton-Schulz restores, in {len(lost)} of {len(spectra)} matrices; worst {worst.name} "
                f"({worst.what}), smallest / largest {worst.ratio:.1e}"
            )

    def _sample(self) -> None:
        for sample in self.stage.sample(self.model):
            self.journal.event("sample", step=self.step, **sample)
            self.reporter.line(f"  sample: {sample['text']!r}")

    def save(self) -> None:
        """Write a checkpoint of the present step and prune old ones."""
        state = {
            "stage": self.stage.name,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "fingerprint": self.stage.fingerprint,
            "branched_from": self.branched_from,
            "rng": rng_state(),
            "config": self.stage.config.to_dict(),
        }
        save_checkpoint(self.checkpoints, self.step, self.model.state_dict(), self.optimizer.state(), state)
        self.journal.event("checkpoint", step=self.step)
        settings = self.stage.settings
        stable = settings.steps - settings.decay_steps
        # The last one of the stable phase is where an anneal branches from.
        in_stable = [step for step in list_steps(self.checkpoints) if step <= stable]
        prune(self.checkpoints, settings.keep_last, settings.keep_every, set(in_stable[-1:]))


class _SignalFlag(AbstractContextManager["_SignalFlag"]):
    """Remembers SIGINT and SIGTERM until the step is done; a second one stops at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def _remember(self, number: int, _: FrameType | None) -> None:
        if self.signal_number is not None:
            raise InterruptedRunError("stopped at once; the last checkpoint is untouched", number)
        self.signal_number = number

    def __enter__(self) -> Self:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)
        except ValueError:  # not in the main thread: signals go elsewhere
            self._previous = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
