"""Checkpoints written beside the training: it stops only while the state is copied in memory.

The copy goes into buffers that are made once (pinned ones for a GPU), so that the steps that follow may change the
weights while a thread writes, hashes and renames.
"""

import threading
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shard.training.checkpoint import save_checkpoint


@dataclass(frozen=True)
class Saved:
    """What became of one checkpoint: `error` is None where it is on disk."""

    step: int
    error: OSError | None
    stall_seconds: float
    """How long the training stood still."""
    write_seconds: float


class CheckpointWriter:
    """Writes one checkpoint at a time. `before` runs in the thread before the files are written (to flush what must
    not be older than the checkpoint), `after` when it is in place (to delete old ones).
    """

    def __init__(self, folder: Path, before: Callable[[], None], after: Callable[[], None]) -> None:
        self._folder, self._before, self._after = folder, before, after
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._finished: list[Saved] = []
        self._failure: BaseException | None = None

    def save(self, step: int, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Any) -> None:
        """Copy everything and begin to write it; waits for the checkpoint before this one, if that still goes on."""
        begun = time.monotonic()
        self.wait()
        copies = [self._copy("model.", model), self._copy("optimizer.", optimizer)]
        state = deepcopy(state)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        stall = time.monotonic() - begun
        # A daemon: a second Ctrl-C ends the process at once, and what is half-written is cleared at the next start.
        self._thread = threading.Thread(
            target=self._write, args=(step, *copies, state, stall), name="checkpoint", daemon=True
        )
        self._thread.start()

    def _copy(self, prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copies = {}
        for name, tensor in tensors.items():
            key = prefix + name
            if key not in self._buffers:
                self._buffers[key] = torch.empty(
                    tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda"
                )
            copies[name] = self._buffers[key].copy_(tensor.detach(), non_blocking=True)
        return copies

    def _write(
        self, step: int, model: dict[str, Tensor], optimizer: dict[str, Tensor], state: Any, stall: float
    ) -> None:
        begun = time.monotonic()
        error: OSError | None = None
        try:
            self._before()
            save_checkpoint(self._folder, step, model, optimizer, state)
            self._after()
        except OSError as raised:
            error = raised
        except BaseException as raised:  # a mistake of ours: it must reach the main thread
            self._failure = raised
        self._finished.append(Saved(step, error, stall, time.monotonic() - begun))

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def take_finished(self) -> list[Saved]:
        """What was finished since the last call, oldest first."""
        if self._failure is not None:
            raise self._failure
        taken, self._finished = self._finished, []
        return taken
