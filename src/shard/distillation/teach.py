"""The stage that keeps a teacher's targets: every sequence of every source that pretraining reads, unit by unit.

The uniform numbers of a sequence come from the seed, the source and the number of the sequence, so that its targets do
not depend on the units, nor on where the stage was stopped. (Last bits of the teacher may, on another machine.)
"""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shard.data.shards import TokenStream
from shard.distillation.cache import (
    LEDGER,
    TargetUnit,
    cut_units,
    finish,
    known_unit,
    target_identity,
    tokens_hash,
    write_unit,
)
from shard.distillation.causal import CausalTeacher
from shard.distillation.entries import Entries, join_entries
from shard.distillation.loss import dense_log_probabilities
from shard.distillation.settings import DistillationSettings
from shard.distillation.sparse import sampled_entries, top_k_entries
from shard.errors import ShardError
from shard.provenance import fingerprint
from shard.training.chunks import chunk_tokens

TEACHER_TOKENS = 4096
"""Tokens that the teacher reads at once."""


class TargetWriter:
    """Writes the targets of sources. `teacher` is loaded when the first unit needs it: a restart may need none."""

    def __init__(
        self,
        load: Callable[[], CausalTeacher],
        settings: DistillationSettings,
        teacher: Mapping[str, Any],
        sequence_length: int,
        vocab_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """`teacher` is what the ledgers say of it: its sha256 and more."""
        self._load = load
        self._model: CausalTeacher | None = None
        self.settings, self.teacher, self.device = settings, dict(teacher), device
        self.sequence_length, self.vocab_size, self.seed = sequence_length, vocab_size, seed
        self.identity = target_identity(settings, str(teacher["sha256"]), sequence_length, seed)
        self.tokens, self.seconds = 0, 0.0
        """What was done by this process."""

    def write(
        self,
        folder: Path,
        progress: Callable[[int, int], object] = lambda done, total: None,
        deadline: float | None = None,
    ) -> dict[str, Any] | None:
        """The ledger of one source's targets; None where the `deadline` (time.monotonic()) came first. Units that are
        done and whole are not done again. `progress` is told sequences.
        """
        stream = TokenStream.open(folder)
        total = (stream.num_tokens - 1) // self.sequence_length
        if total < 1:
            raise ShardError(
                f"{folder} holds less than one sequence of {self.sequence_length} tokens: give it more text"
            )
        inputs = fingerprint(self.identity, tokens_hash(folder), folder.name, self.vocab_size)
        ledgers = []
        for unit in cut_units(total, self.sequence_length, self.settings.unit_tokens):
            unit_inputs = fingerprint(inputs, unit.first, unit.last)
            ledger = known_unit(folder, unit, unit_inputs)
            if ledger is None:
                if deadline is not None and time.monotonic() >= deadline:
                    return None
                (folder / LEDGER).unlink(missing_ok=True)
                begun = time.monotonic()
                ledger = write_unit(
                    folder, unit, unit_inputs, self.vocab_size, self._sequences(folder.name, stream, unit)
                )
                self.tokens, self.seconds = self.tokens + ledger["tokens"], self.seconds + time.monotonic() - begun
            ledgers.append(ledger)
            progress(unit.last, total)
        return finish(folder, self.identity, ledgers, self.teacher)

    def _sequences(self, source: str, stream: TokenStream, unit: TargetUnit) -> Iterator[Entries]:
        """The targets of each sequence of a unit, in order."""
        length = self.sequence_length
        together = max(1, TEACHER_TOKENS // length)
        for first in range(unit.first, unit.last, together):
            numbers = range(first, min(first + together, unit.last))
            rows = np.stack([stream.read(i * length, (i + 1) * length) for i in numbers])
            if rows.max() >= self.vocab_size:
                raise ShardError(
                    f"{source} holds the token {rows.max()}, and the vocabulary has {self.vocab_size}: run `shard "
                    "data` again"
                )
            yield from self._entries(source, rows, list(numbers))

    @torch.no_grad()
    def _entries(self, source: str, rows: Any, numbers: list[int]) -> Iterator[Entries]:
        if self._model is None:
            self._model = self._load()
        dense = self._model.targets(torch.from_numpy(rows).to(self.device))
        length, chunk = self.sequence_length, chunk_tokens(self.vocab_size, self.device)
        for i, number in enumerate(numbers):
            uniform = torch.from_numpy(uniform_numbers(self.seed, source, number, length)).to(self.device)
            parts = []
            for start in range(0, length, chunk):
                stop = min(start + chunk, length)
                piece = dense._replace(hidden=dense.hidden[i * length + start : i * length + stop])
                log_p_CV = dense_log_probabilities(piece, self.vocab_size, self.settings.temperature)
                if self.settings.form == "sampled":
                    parts.append(sampled_entries(log_p_CV, uniform[start:stop], self.settings.samples))
                else:
                    parts.append(top_k_entries(log_p_CV, self.settings.top_k))
            yield join_entries(parts)


def uniform_numbers(seed: int, source: str, sequence: int, length: int) -> Any:
    """One number in [0, 1) for each token of a sequence: a pure function of the arguments."""
    return np.random.default_rng(int(fingerprint(seed, source, sequence), 16)).random(length)
