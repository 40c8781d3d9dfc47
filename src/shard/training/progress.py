"""What a person sees of a stage while it trains, and the time that its steps take."""

import statistics
import time
from collections import deque
from typing import Any

import torch

from shard.config import Config
from shard.console import Reporter
from shard.environment import memory_bytes
from shard.training.cost import flops_per_token
from shard.training.decisions import Decisions
from shard.training.optimizer import Optimizer
from shard.training.settings import StageSettings
from shard.units import format_count, format_duration, format_size


class Progress:
    """Times the steps of one stage and shows where it stands."""

    def __init__(
        self, name: str, config: Config, settings: StageSettings, device: torch.device, reporter: Reporter
    ) -> None:
        self._name, self._settings, self._device, self._reporter = name, settings, device, reporter
        self._flops_per_token = flops_per_token(config, settings.sequence_length)
        self._recent: deque[float] = deque(maxlen=20)
        self._ended = 0.0

    def time_of_step(self, begun: float) -> float:
        """Seconds of a step that began at `begun` and ends now; the part that it spent behind another is that one's."""
        now = time.monotonic()
        seconds, self._ended = now - max(begun, self._ended), now
        self._recent.append(seconds)
        return seconds

    @property
    def seconds_per_step(self) -> float:
        """The median of the last steps, which leaves out the one that compiled; 0 before the first."""
        return statistics.median(self._recent) if self._recent else 0.0

    def timing(self, seconds: float) -> dict[str, Any]:
        """The object `timing` of a step in metrics.jsonl."""
        speed = self._settings.tokens_per_step / seconds
        return {
            "seconds": round(seconds, 4),
            "tokens_per_second": round(speed, 1),
            "flops_per_second": round(speed * self._flops_per_token),
            "memory_bytes": memory_bytes(self._device),
        }

    def announce(self, step: int, last: int, optimizer: Optimizer, decisions: Decisions) -> None:
        """What is going to be done, and how."""
        rows = [[role, opt, f"{tensors}", f"{count:,}"] for role, opt, tensors, count in optimizer.table()]
        self._reporter.table("Parameter groups", ["role", "optimizer", "tensors", "parameters"], rows)
        compiled = "compiled" if decisions.compile else f"not compiled: {decisions.reasons['compile']}"
        self._reporter.line(
            f"{self._name}: steps {step} to {last} of {self._settings.steps}, "
            f"{format_count(self._settings.tokens_per_step)} tokens each in micro-batches of {decisions.micro_batch} x "
            f"{self._settings.sequence_length}; {decisions.precision} ({decisions.reasons['precision']}); {compiled}"
        )

    def show(self, record: dict[str, Any], last: int) -> None:
        """Where the stage stands after a step."""
        timing, step = record["timing"], record["step"]
        loss = "not finite" if record["loss"] is None else f"{record['loss']:.4f}"
        text = f"{self._name} {step}/{last}  loss {loss}"
        if "bits_per_byte" in record:
            scores = "  ".join(f"{name} {value:.3f}" for name, value in record["bits_per_byte"].items())
            self._reporter.line(f"{text}  bits per byte: {scores}")
        else:
            left = self.seconds_per_step * (last - step)
            self._reporter.progress(
                f"{text}  {timing['tokens_per_second']:,.0f} tokens/s  "
                f"{timing['flops_per_second'] / 1e9:,.0f} GFLOP/s  "
                f"{format_size(timing['memory_bytes'])}  {format_duration(left)} left"
            )

    def end(self) -> None:
        """Take the live line away."""
        self._reporter.end_progress()
