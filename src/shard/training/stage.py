"""What a stage of training is given: all that the trainer needs to know, put together by train.py."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from shard.config import Config
from shard.data.loader import BatchLoader
from shard.model import ShardLM
from shard.training.chunks import ChunkPass
from shard.training.decisions import Decisions
from shard.training.distributed import ALONE, Ranks
from shard.training.settings import StageSettings
from shard.training.sinks import Sinks


class TeacherLoss(NamedTuple):
    """Sums over tokens as in loss.py, and that of the KL divergence from the teacher, in nats."""

    total: Tensor
    nll_sum: Tensor
    z_sum: Tensor
    kl_sum: Tensor


class Teacher(Protocol):
    """What a stage that follows a teacher asks of it: distillation/teacher.py."""

    def weight(self, step: int) -> float:
        """The teacher's share of the loss at `step` (0-based); at 0 it is not asked for targets."""

    @property
    def kl_scale(self) -> float:
        """What the KL divergence is multiplied by in the loss, beside the weight."""

    def targets(self, index: int, first: int, inputs_BT: Tensor) -> Any:
        """What the teacher says of the rows `first`, ... of batch `index`, which hold these inputs: for `loss`."""

    def loss(
        self,
        hidden_ND: Tensor,
        table_VD: Tensor,
        targets_N: Tensor,
        soft: Any,
        weight: Tensor,
        cap: float,
        z_loss: float,
        scale: float | Tensor,
        run: ChunkPass,
    ) -> TeacherLoss:
        """In place of chunked_loss."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage."""

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
    identity: dict[str, Any]
    """What the fingerprint is of, so that a difference can be named."""
    accepts: frozenset[str] = frozenset()
    """Fingerprints besides its own that it goes on from: those of the run that it was forked from."""
    decisions: Decisions
    save_decisions: Callable[[Decisions], None] = lambda decisions: None
    """Writes down what was decided anew: a smaller micro-batch."""
    device: torch.device
    environment: dict[str, Any] = field(default_factory=dict)
    """Device, threads and versions: what differs from those of a checkpoint is named."""
    teacher: Teacher | None = None
    """Whose distributions the stage follows, beside the text."""
    start: Path | None = None
    """The checkpoint that an anneal branches from; pretraining starts from nothing."""
    sinks: Sinks = field(default_factory=Sinks)
    """What else the metrics are copied to."""
    ranks: Ranks = ALONE
    """Who trains it together; all but the first need only what computes."""
    pinned: frozenset[int] = frozenset()
    """Steps whose checkpoints are never deleted: an anneal branched from them."""
