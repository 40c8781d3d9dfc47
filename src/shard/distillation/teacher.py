"""What a stage of training asks a teacher: the targets of a batch, and the loss that follows them.

One interface for every kind. `OnlineTeacher` runs its model on the student's own inputs; `CachedTeacher` reads what
`shard teach` kept. A teacher with another vocabulary would turn the inputs into text and give SparseTargets as well.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from shard.data.loader import BatchLoader
from shard.distillation.cache import LEDGER, REMEDY, TargetStream
from shard.distillation.causal import CausalTeacher
from shard.distillation.loss import DenseTargets, SparseTargets, Targets, chunked_distilled_loss
from shard.distillation.settings import DistillationSettings
from shard.errors import ShardError
from shard.training.chunks import ChunkPass, chunk_pass
from shard.training.stage import TeacherLoss


class TargetSource(Protocol):
    """Where the targets of a batch come from."""

    def targets(self, index: int, first: int, inputs_BT: Tensor) -> Targets:
        """The targets of B * T tokens: of the rows `first`, `first` + 1, ... of batch `index`, which hold these inputs.
        They are a pure function of these, and lie on the device of the inputs.
        """


class OnlineTeacher:
    """A causal model that is asked at every step; costs its forward pass."""

    def __init__(self, model: CausalTeacher) -> None:
        self.model = model

    def targets(self, index: int, first: int, inputs_BT: Tensor) -> DenseTargets:
        """All of the distribution, as hidden states and the output matrix."""
        return self.model.targets(inputs_BT)


class CachedTeacher:
    """Sparse targets from the disk; ShardError where they are missing, or of other sequences than the stage's."""

    def __init__(self, loader: BatchLoader) -> None:
        self.loader = loader
        self.streams = {name: TargetStream(loader.folder / name) for name in loader.streams}
        for name, stream in self.streams.items():
            if stream.sequence_length != loader.sequence_length:
                raise ShardError(
                    f"{loader.folder / name / LEDGER} is of sequences of {stream.sequence_length} tokens and the stage "
                    f"has {loader.sequence_length}: {REMEDY}"
                )

    def targets(self, index: int, first: int, inputs_BT: Tensor) -> SparseTargets:
        """What was kept of the distributions after these inputs."""
        places = self.loader.locate(index)[first : first + len(inputs_BT)]
        fields = zip(*(self.streams[name].read(sequence) for name, sequence in places), strict=True)
        ids, probs, entropy = (_to(torch.from_numpy(np.concatenate(field)), inputs_BT.device) for field in fields)
        if all(stream.is_sampled for stream in self.streams.values()):
            return SparseTargets(ids, probs, None, entropy)
        return SparseTargets(ids, probs, (1 - probs.sum(dim=-1)).clamp(min=0))


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, without a wait of the host."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Distillation:
    """The teacher of one stage of `steps` steps: `weight` says how far it counts, `loss` is what it makes of it."""

    def __init__(self, source: TargetSource, settings: DistillationSettings, steps: int) -> None:
        self.settings, self.steps, self.targets = settings, steps, source.targets

    def weight(self, step: int) -> float:
        """The teacher's share of the loss at `step` (0-based); 0: it is not asked."""
        return self.settings.weight_at(step, self.steps)

    @property
    def kl_scale(self) -> float:
        """What the KL divergence is multiplied by in the loss, beside the weight."""
        return self.settings.temperature**2

    def loss(
        self,
        hidden_ND: Tensor,
        table_VD: Tensor,
        targets_N: Tensor,
        soft: Targets,
        weight: Tensor,
        cap: float,
        z_loss: float,
        scale: float | Tensor,
        run: ChunkPass = chunk_pass,
    ) -> TeacherLoss:
        """chunked_distilled_loss at the recipe's temperature."""
        temperature = self.settings.temperature
        return chunked_distilled_loss(
            hidden_ND, table_VD, targets_N, soft, weight, cap, z_loss, temperature, scale, run
        )
