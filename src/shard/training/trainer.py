"""One stage of training: from a checkpoint (or from nothing) to its last step, with everything that it leaves behind.

The loop is small on purpose: batch(index) -> gradients, micro-batch by micro-batch -> verdict of the guard -> optimizer
step -> record. All that decides the result is a pure function of the recipe and the step, or stands in the checkpoint.
The host reads what a step gave only when the next one is on its way to the device.

Several ranks run this loop and decide alike; only the first reads checkpoints, writes, evaluates and prints.
"""

import time
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np

from shard.console import Reporter
from shard.environment import make_deterministic
from shard.errors import ShardError
from shard.files import write_json
from shard.model import ShardLM
from shard.provenance import describe_difference, flatten
from shard.signals import InterruptedRunError, StopFlag
from shard.training.checkpoint import (
    Checkpoint,
    checkpoint_path,
    delete,
    list_steps,
    load_checkpoint,
    load_newest,
    prune,
    read_state,
    rng_state,
    set_rng_state,
)
from shard.training.decisions import Decisions
from shard.training.distributed import LostRankError
from shard.training.guard import reason_of_skip
from shard.training.metrics import Journal, SilentJournal, read_jsonl
from shard.training.progress import Progress
from shard.training.reduction import Agreed, Wish
from shard.training.routing import describe_routing
from shard.training.sentinel import inspect_spectra
from shard.training.stage import Stage
from shard.training.step import Launched, TrainingStep
from shard.training.trouble import Rollback, batch_index, plan_rollback, recent
from shard.training.writer import CheckpointWriter


class Trainer:
    """Trains one stage; it begins where the newest whole checkpoint of the stage left off."""

    def __init__(self, stage: Stage, reporter: Reporter) -> None:
        self.stage, self.reporter, self.ranks = stage, reporter, stage.ranks
        self.journal = Journal(stage.folder) if self.ranks.is_first else SilentJournal(stage.folder)
        self.checkpoints = stage.folder / "checkpoints"
        self.writer = CheckpointWriter(self.checkpoints, self.journal.flush, self._prune)
        make_deterministic(stage.seed)
        self.work = TrainingStep(stage, ShardLM(stage.config).to(stage.device), self._report_less_memory)
        # On the CPU a step is over when it returns; elsewhere the host stays one step ahead of what it reads.
        self._lag = 0 if stage.device.type == "cpu" else 1
        self._launched: deque[Launched] = deque()
        self._agreed = Agreed()
        self._restore(load_newest(self.checkpoints, reporter.warn) if self.ranks.is_first else None)
        if missing := self.journal.resume(self.step):
            reporter.warn(
                f"{self.journal.metrics_path} lacks {missing} of the {self.step} steps so far: it was damaged"
            )
        self._progress = Progress(stage.name, stage.config, stage.settings, stage.device, reporter)

    # State: from nothing, from a branch point, from a checkpoint.

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        """The state of a checkpoint of this stage, else that of step 0: the branch point, or the model as it is."""
        stage = self.stage
        self.work.reset()
        self.step, self.seconds, self._tokens_before = 0, 0.0, 0
        self.skipped: list[int] = []
        self.passed_over: list[int] = []
        self.rollbacks: list[Rollback] = []
        self.branched_from: dict[str, Any] | None = None
        if checkpoint is not None:
            self._resume(checkpoint)
        elif stage.start is not None:  # which only the first rank has
            start = load_checkpoint(stage.start)
            self._load_tensors(start)
            self._tokens_before = int(start.state["tokens"])
            self.branched_from = {"stage": start.state["stage"], "step": start.step, "tokens": self._tokens_before}
        if self.ranks.size > 1:
            self._share_state()

    def _share_state(self) -> None:
        """The first rank's state on all ranks: what of it decides the next steps."""
        work = self.work
        told = self.ranks.broadcast(
            {
                "step": self.step,
                "tokens_before": self._tokens_before,
                "guard": work.guard.state(),
                "skipped": self.skipped,
                "passed_over": self.passed_over,
                "rollbacks": [rollback.to_dict() for rollback in self.rollbacks],
            }
        )
        self.ranks.broadcast_tensors(work.tensors())
        if not self.ranks.is_first:
            self.step, self._tokens_before = told["step"], told["tokens_before"]
            work.guard.load_state(told["guard"])
            self.skipped, self.passed_over = told["skipped"], told["passed_over"]
            self.rollbacks = [Rollback(**rollback) for rollback in told["rollbacks"]]

    def _load_tensors(self, checkpoint: Checkpoint) -> None:
        try:
            self.work.model.load_state_dict(checkpoint.model)
            self.work.optimizer.load_state(checkpoint.optimizer)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ShardError(f"{checkpoint.path} does not fit this recipe's model: {reason}") from None

    def _resume(self, checkpoint: Checkpoint) -> None:
        state, stage = checkpoint.state, self.stage
        if state["fingerprint"] not in {stage.fingerprint, *stage.accepts}:
            difference = describe_difference(state.get("identity", {}), stage.identity)
            raise ShardError(
                f"{checkpoint.path} was made with another recipe, tokenizer or data than this run folder now holds "
                f"({difference}): put that back, or branch with --fork NEW"
            )
        self._load_tensors(checkpoint)
        try:
            self.step, self.seconds = checkpoint.step, float(state["seconds"])
            self._tokens_before = int(state["tokens"]) - self.step * stage.settings.tokens_per_step
            self.branched_from = state["branched_from"]
            if state["guard"] is not None:  # an imported pretraining has none
                self.work.guard.load_state(state["guard"])
            self.skipped, self.passed_over = list(state["skipped"]), list(state["passed_over"])
            self.rollbacks = [Rollback(**rollback) for rollback in state["rollbacks"]]
            set_rng_state(state["rng"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ShardError(f"{checkpoint.path / 'state.json'} is not what Shard writes: {error!r}") from None
        self.reporter.line(f"{stage.name}: continues after step {self.step} ({checkpoint.path})")
        there, here = flatten(state.get("environment", {})), flatten(stage.environment)
        if there and there != here:
            self.reporter.warn(
                f"since that checkpoint changed: {describe_difference(there, here)}; last bits may differ"
            )
            self.journal.event("environment", step=self.step, before=there, now=here)

    @property
    def tokens(self) -> int:
        """Tokens up to the present step, those before the stage included."""
        return self._tokens_before + self.step * self.stage.settings.tokens_per_step

    # Steps and their records.

    def _launch(self) -> Launched:
        """Queue the next step on the device, without waiting for anything there."""
        index = batch_index(self.step, self.passed_over)
        rows = self.stage.loader.fetch(index)
        self.step += 1
        return self.work.launch(self.step, rows, index)

    def _settle(self, lag: int) -> bool:
        """Record the launched steps but the last `lag`. False where there was trouble, and the stage went back."""
        while len(self._launched) > lag:
            if not self._record(self._launched.popleft()):
                self._launched.clear()
                self._roll_back()
                return False
        return True

    def _record(self, launched: Launched) -> bool:
        """Write a step down; False where it was one too many that had to be skipped."""
        settings, step = self.stage.settings, launched.step
        nll, z, kl, loss, norm, skip, loss_limit, norm_limit, scale, *others = launched.wait()
        if self.ranks.size > 1:
            self._hear(Agreed.read(others[: self.work.num_told]))
        seconds = self._progress.time_of_step(launched.begun)
        self.seconds += seconds
        cross_entropy = nll / settings.tokens_per_step
        z_loss = settings.z_loss * z / settings.tokens_per_step
        record: dict[str, Any] = {
            "step": step,
            "tokens": self._tokens_before + step * settings.tokens_per_step,
            "loss": _finite(cross_entropy + z_loss),
            "cross_entropy_nats": _finite(cross_entropy),
            "z_loss": _finite(z_loss),
            "grad_norm": _finite(norm),
            **launched.rates,
        }
        if self.stage.teacher is not None:
            share, divergence = launched.teacher_weight, kl / settings.tokens_per_step
            objective = (1 - share) * cross_entropy + share * self.stage.teacher.kl_scale * divergence + z_loss
            record |= {"loss": _finite(objective), "teacher_weight": share}
            if share > 0:
                record["teacher_kl_nats"] = _finite(divergence)
        if self.work.scaled:
            record["loss_scale"] = scale
        if routed := others[self.work.num_told :]:
            record["experts"] = describe_routing(routed, self.stage.config, settings.tokens_per_step)
        if skip:
            reason = reason_of_skip(loss, norm, loss_limit, norm_limit, scale)
            record["skipped"] = reason
            self._record_skip(record, loss_limit, norm_limit)
            if reason != "overflow" and len(recent(self.skipped, step)) >= settings.rollback_after:
                return False
        if not self.ranks.is_first:
            return True
        if self._due(settings.evaluate_every, step):
            record["bits_per_byte"] = self.stage.score(self.work.model)
        record["timing"] = self._progress.timing(seconds)
        self.journal.metric(**record)
        self.stage.sinks.log(record)
        self._progress.show(record, self._last)
        return True

    def _hear(self, agreed: Agreed) -> None:
        """What the ranks told each other with a step."""
        self._agreed = Agreed(agreed.signal_number or self._agreed.signal_number, agreed.pause)
        least, decisions = agreed.micro_batch, self.work.decisions
        if least is not None and least < decisions.micro_batch:
            reason = f"more sequences than {least} did not fit into the memory of another rank"
            reasons = {**decisions.reasons, "micro_batch": reason}
            self.work.decisions = replace(decisions, micro_batch=least, reasons=reasons)
            self._report_less_memory(self.work.decisions, reason)

    def _report_less_memory(self, smaller: Decisions, message: str) -> None:
        """Memory ran out, and micro-batches are smaller from here on: written down, so that every start has it."""
        self.stage.save_decisions(smaller)
        self.journal.event("out_of_memory", step=self.step, micro_batch=smaller.micro_batch, message=message)
        self.reporter.warn(
            f"out of memory at step {self.step}: micro-batches of {smaller.micro_batch} sequences from here on; the "
            "batches stay the same"
        )

    def _record_skip(self, record: dict[str, Any], loss_limit: float, norm_limit: float) -> None:
        step, reason = record["step"], record["skipped"]
        index = batch_index(step - 1, self.passed_over)
        limits = {"loss_limit": _finite(loss_limit), "grad_norm_limit": _finite(norm_limit)}
        self.journal.event(
            "skipped",
            step=step,
            reason=reason,
            batch=index,
            loss=record["loss"],
            grad_norm=record["grad_norm"],
            **limits,
        )
        if reason != "overflow":
            self.skipped.append(step)
            self.reporter.warn(f"{self.stage.name}: step {step} skipped, {reason} (batch {index})")

    # The stage.

    def train(self, until: int | None = None, deadline: float | None = None) -> int:
        """Train to the last step, or to `until`, or to the step before time.monotonic() reaches `deadline`; saves
        there and returns the step reached.
        """
        try:
            return self._train(min(self.stage.settings.steps, until or self.stage.settings.steps), deadline)
        except OSError as error:
            raise ShardError(
                f"{self.stage.name}: step {self.step} could not be written down ({error}); {self._what_is_there()}: "
                "make room, and the same command goes on from there"
            ) from None
        except LostRankError as error:
            self.writer.wait()
            raise LostRankError(
                f"{self.stage.name}: stopped at step {self.step}, {self._what_is_there()}: {error}"
            ) from None

    def _what_is_there(self) -> str:
        steps = list_steps(self.checkpoints)
        return f"the checkpoint of step {steps[-1]} is whole" if steps else "no checkpoint was due yet"

    def _train(self, last: int, deadline: float | None) -> int:
        stage, settings, self._last = self.stage, self.stage.settings, last
        self._progress.announce(self.step, last, self.work.optimizer, self.work.decisions)
        self.journal.event("start", step=self.step, until=last)
        stage.sinks.begin(self.step)
        with StopFlag() as stop:
            if self.ranks.size > 1:
                self._agreed = Agreed(pause=self.ranks.broadcast(self._is_late(deadline, 0)))
            while self.step < last and not self._must_pause(deadline):
                self.work.wish = Wish(stop.signal_number, self._is_late(deadline, 2))
                self._launched.append(self._launch())
                if self.ranks.size == 1:
                    self._agreed = Agreed(stop.signal_number)
                if not self._settle(0 if self._agreed.signal_number or self._is_landmark() else self._lag):
                    continue
                if self._is_scheduled(self.step):
                    self._compare_ranks()
                if self.ranks.is_first:
                    self._look_and_save()
                if self._agreed.signal_number:
                    break
            self._settle(0)
            self._compare_ranks()
            if not self.ranks.is_first:
                return self.step
            self.writer.wait()
            if list_steps(self.checkpoints)[-1:] != [self.step] and self.step > 0:
                self._save()
            self.writer.wait()
            if not self._report_saved():
                raise ShardError(
                    f"{stage.name}: step {self.step} could not be saved; make room and run the same command again: "
                    "it goes on from the last checkpoint"
                )
            self._progress.end()
            if self._agreed.signal_number:
                raise InterruptedRunError(
                    f"{stage.name}: interrupted after step {self.step} of {settings.steps}, saved; "
                    "the same command goes on from there",
                    self._agreed.signal_number,
                )
        self.journal.event("end", step=self.step)
        return self.step

    def _is_late(self, deadline: float | None, num_steps: int) -> bool:
        """Whether so many steps more would not be over by then; only the first rank looks at the clock."""
        late = deadline is not None and time.monotonic() + num_steps * self._progress.seconds_per_step >= deadline
        return late and self.ranks.is_first

    def _must_pause(self, deadline: float | None) -> bool:
        """Before a step; several ranks have agreed on it with the step before."""
        return self._agreed.pause if self.ranks.size > 1 else self._is_late(deadline, 1)

    def _compare_ranks(self) -> None:
        """ShardError where a rank has other weights than the others, before they are saved."""
        if not self.ranks.hold_the_same(self.work.tensors()):
            raise ShardError(
                f"{self.stage.name}: at step {self.step} the ranks hold different weights: one computes wrongly, or is "
                f"on another kind of machine; not saved, {self._what_is_there()}: leave it out, and go on from there"
            )

    def _look_and_save(self) -> None:
        """What the first rank does after a step, where it is due."""
        settings = self.stage.settings
        if self._due(settings.sentinel_every, self.step):
            self._look_for_rank_loss()
        if self._due(settings.sample_every, self.step):
            self._sample()
        if self._is_scheduled(self.step):
            self._save()
        self._report_saved()

    def _due(self, every: int, step: int) -> bool:
        # Not at `until`: what a stage records must not depend on where it was stopped.
        return step % every == 0 or step == self.stage.settings.steps

    def _is_scheduled(self, step: int) -> bool:
        return self._due(self.stage.settings.checkpoint_every, step)

    def _is_landmark(self) -> bool:
        """Whether something follows the present step that needs all of it."""
        s, step = self.stage.settings, self.step
        every = (s.evaluate_every, s.sentinel_every, s.sample_every, s.checkpoint_every)
        return step == self._last or any(self._due(n, step) for n in every)

    def _look_for_rank_loss(self) -> None:
        spectra = inspect_spectra(self.work.optimizer)
        lost = [spectrum for spectrum in spectra if spectrum.rank_loss]
        worst = min(spectra, key=lambda spectrum: spectrum.ratio)
        self.journal.event("sentinel", step=self.step, spectra=[spectrum.to_dict() for spectrum in spectra])
        if not lost:
            return
        self.journal.event("rank_loss", step=self.step, matrices=[f"{s.name} ({s.what})" for s in lost])
        num_lost, num_values = sum(s.num_lost for s in lost), sum(s.num_values for s in spectra)
        text = (
            f"sentinel, step {self.step}: rank loss, {num_lost} of {num_values:,} singular values are below what "
            f"Newton-Schulz restores, in {len(lost)} of {len(spectra)} matrices; worst {worst.name} "
            f"({worst.what}), smallest / largest {worst.ratio:.1e}"
        )
        self.reporter.warn(text)
        settings = self.stage.settings
        grave = [s.name for s in lost if s.num_lost > settings.rank_loss_share * s.num_values]
        if grave and settings.rank_loss == "stop":
            raise ShardError(
                f'{self.stage.name} stopped, as rank_loss = "stop" asks: {text}; more than '
                f"{settings.rank_loss_share:.0%} of {grave[0]} is lost: branch with "
                '--fork NEW and a lower lr_muon, or rank_loss = "record"'
            )

    def _sample(self) -> None:
        for sample in self.stage.sample(self.work.model):
            self.journal.event("sample", step=self.step, **sample)
            self.reporter.line(f"  sample: {sample['text']!r}")

    # Checkpoints.

    def _save(self) -> None:
        """Begin to write a checkpoint of the present step."""
        state = {
            "stage": self.stage.name,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "fingerprint": self.stage.fingerprint,
            "identity": self.stage.identity,
            "environment": self.stage.environment,
            "branched_from": self.branched_from,
            "rng": rng_state(),
            "config": self.stage.config.to_dict(),
            "guard": self.work.guard.state(),
            "skipped": self.skipped,
            "passed_over": self.passed_over,
            "rollbacks": [rollback.to_dict() for rollback in self.rollbacks],
        }
        self.writer.save(self.step, self.work.model.state_dict(), self.work.optimizer.state(), state)

    def _report_saved(self) -> bool:
        """Say what became of the checkpoints that were being written; False where the last one failed."""
        good = True
        for saved in self.writer.take_finished():
            good = saved.error is None
            if saved.error is None:
                timing = {
                    "stall_seconds": round(saved.stall_seconds, 4),
                    "write_seconds": round(saved.write_seconds, 4),
                }
                self.journal.event("checkpoint", step=saved.step, timing=timing)
            else:
                steps = list_steps(self.checkpoints)
                there = f"the one of step {steps[-1]} is whole" if steps else "there is none yet"
                self.reporter.warn(f"the checkpoint of step {saved.step} could not be written ({saved.error}): {there}")
        return good

    def _prune(self) -> None:
        """Keep the last ones, each `keep_every`, where an anneal branches or may branch, and where a rollback goes."""
        settings = self.stage.settings
        scheduled = [step for step in list_steps(self.checkpoints) if self._is_scheduled(step)]
        in_stable = [step for step in scheduled if step <= settings.steps - settings.decay_steps]
        kept = {*scheduled[-settings.keep_last :], *in_stable[-1:], *self.stage.pinned}
        kept |= {step for step in scheduled if settings.keep_every and step % settings.keep_every == 0}
        kept |= {step for step in [next(filter(self._is_calm, reversed(scheduled)), None)] if step is not None}
        prune(self.checkpoints, kept)

    def _is_calm(self, step: int) -> bool:
        """Whether a checkpoint is one that a rollback may go to: scheduled, with no step skipped just before it."""
        if not self._is_scheduled(step):
            return False
        try:
            return not recent(read_state(checkpoint_path(self.checkpoints, step))["skipped"], step)
        except (ShardError, KeyError):
            return False

    def _roll_back(self) -> None:
        """Go back to the last good checkpoint, and past the batches that made the trouble; or stop with a report."""
        stage, step = self.stage, self.skipped[-1]
        if len(self.rollbacks) >= stage.settings.max_rollbacks:
            raise ShardError(self._write_report(step) if self.ranks.is_first else f"gave up at step {step}")
        earlier, skipped, passed_over = self.rollbacks, self.skipped, self.passed_over
        self._restore(self._place_to_go_back_to(step) if self.ranks.is_first else None)
        rollback = plan_rollback(step, skipped, self.step, passed_over, earlier)
        if self.ranks.is_first:  # what lies behind belongs to steps that will be done anew
            delete(self.checkpoints, [s for s in list_steps(self.checkpoints) if s > self.step])
        self.passed_over = sorted({*passed_over, *rollback.passed_over})
        self.rollbacks = [*earlier, rollback]
        self.journal.resume(self.step)
        self.journal.event("rollback", **rollback.to_dict())
        stage.sinks.begin(self.step)
        self.reporter.warn(
            f"{stage.name}: {len(recent(skipped, step))} steps skipped up to step {step}; back to step {self.step}, "
            f"and {len(rollback.passed_over)} batches are passed over (rollback {len(self.rollbacks)} of at most "
            f"{stage.settings.max_rollbacks})"
        )

    def _place_to_go_back_to(self, step: int) -> Checkpoint | None:
        """The newest calm checkpoint before a step; without one the model is made anew."""
        self.writer.wait()
        self._report_saved()
        checkpoint = load_newest(self.checkpoints, self.reporter.warn, lambda s: s < step and self._is_calm(s))
        if checkpoint is None:
            make_deterministic(self.stage.seed)
            self.work.model.load_state_dict(ShardLM(self.stage.config).state_dict())
        return checkpoint

    def _write_report(self, step: int) -> str:
        """trouble.json: what was seen before the stage gave up. Returns the line for the user."""
        path = self.stage.folder / "trouble.json"
        events = [e for e in read_jsonl(self.journal.events_path) if e["event"] in ("skipped", "rollback", "rank_loss")]
        report = {
            "step": step,
            "rollbacks": [rollback.to_dict() for rollback in self.rollbacks],
            "passed_over": self.passed_over,
            "skipped": self.skipped,
            "events": events[-100:],
            "metrics": read_jsonl(self.journal.metrics_path)[-20:],
            "spectra": [spectrum.to_dict() for spectrum in inspect_spectra(self.work.optimizer)],
        }
        write_json(path, report)
        return (
            f"{self.stage.name} gave up at step {step}: {len(recent(self.skipped, step))} of the last steps had to be "
            f"skipped again after {len(self.rollbacks)} rollbacks (report: {path}); what was saved is untouched: "
            "branch with --fork NEW and a lower lr_muon and lr_embedding, or precision fp32"
        )


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if np.isfinite(value) else None
