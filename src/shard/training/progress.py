"""What a person sees of a stage while it trains, and the time that its steps take.

On a terminal it is one live line, of as many parts as fit, with a sparkline of the loss; elsewhere a line now and then.
"""

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

BLOCKS = "▁▂▃▄▅▆▇█"
SPARK_CELLS = 16


class Sparkline:
    """All values so far as a few characters: each is the mean of equally many, the last one of fewer."""

    def __init__(self, cells: int = SPARK_CELLS) -> None:
        self._cells, self._size = cells, 1
        self._means: list[float] = []
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> None:
        """One more."""
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count < self._size:
            return
        self._means.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self._means) == 2 * self._cells:
            self._means = [(a + b) / 2 for a, b in zip(self._means[::2], self._means[1::2], strict=True)]
            self._size *= 2

    def __str__(self) -> str:
        means = self._means + ([self._sum / self._count] if self._count else [])
        if len(means) > self._cells:  # while they are between one and two for each cell
            means = [sum(pair) / len(pair) for pair in (means[i : i + 2] for i in range(0, len(means), 2))]
        if not means:
            return ""
        # The fall from the first values would hide all that follows.
        low, high = min(means), max(means[1:] if len(means) > 4 else means)
        scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
        return "".join(BLOCKS[min(len(BLOCKS) - 1, round((mean - low) * scale))] for mean in means)


def fit(parts: list[tuple[int, str]], width: int) -> str:
    """(rank, text) of each part in the order in which they stand: those of the highest rank go first, until it fits."""
    kept = [part for part in parts if part[1]]
    while len(kept) > 1 and len("  ".join(text for _, text in kept)) > width:
        kept.remove(max(kept))
    return "  ".join(text for _, text in kept)


class Progress:
    """Times the steps of one stage and shows where it stands."""

    def __init__(
        self, name: str, config: Config, settings: StageSettings, device: torch.device, reporter: Reporter
    ) -> None:
        self._name, self._settings, self._device, self._reporter = name, settings, device, reporter
        self._flops_per_token = flops_per_token(config, settings.sequence_length)
        self._recent: deque[float] = deque(maxlen=20)
        self._ended = 0.0
        self._losses = Sparkline()
        self._scores: dict[str, float] = {}

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
        if record["loss"] is not None and "skipped" not in record:
            self._losses.add(record["loss"])
        if "bits_per_byte" in record:
            self._scores = record["bits_per_byte"]
            scores = "  ".join(f"{name} {value:.3f}" for name, value in record["bits_per_byte"].items())
            self._reporter.line(f"{text}  bits per byte: {scores}")
        left = self.seconds_per_step * (last - step)
        if (width := self._reporter.live_width) is not None:
            self._reporter.progress(self._live(record, last, loss, left, width))
        elif "bits_per_byte" not in record:
            self._reporter.progress(
                f"{text}  {timing['tokens_per_second']:,.0f} tokens/s  "
                f"{timing['flops_per_second'] / 1e9:,.0f} GFLOP/s  "
                f"{format_size(timing['memory_bytes'])}  {format_duration(left)} left"
            )

    def _live(self, record: dict[str, Any], last: int, loss: str, left: float, width: int) -> str:
        """The live line."""
        timing, step, scores = record["timing"], record["step"], self._scores
        score = f"{sum(scores.values()) / len(scores):.3f} bits/byte" if scores else ""
        by_source = ", ".join(f"{name} {value:.3f}" for name, value in scores.items()) if len(scores) > 1 else ""
        parts = [
            (0, f"{self._name} {step:,}/{last:,}"),
            (5, f"{step / last:.0%}"),
            (1, f"loss {loss}"),
            (4, str(self._losses) if self._reporter.shows_blocks else ""),
            (3, score),
            (8, by_source),
            (3, f"{timing['tokens_per_second']:,.0f} tokens/s"),
            (7, f"{timing['flops_per_second'] / 1e9:,.0f} GFLOP/s"),
            (6, format_size(timing["memory_bytes"])),
            (2, f"{format_duration(left)} left"),
        ]
        return fit(parts, width)

    def end(self) -> None:
        """Take the live line away."""
        self._reporter.end_progress()
