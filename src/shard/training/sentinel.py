"""The sentinel: does any Muon matrix, or its momentum, lose rank?

Newton-Schulz brings the singular values of the momentum to about one, but one that is too small beside the others is
out of its reach (muon.RESTORABLE): that direction is no longer trained. The sentinel takes all singular values every
so many steps, and flags what falls below.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from shard.muon import RESTORABLE
from shard.training.optimizer import Optimizer


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one matrix. `ratio` is smallest / largest; stable rank is ||W||_F^2 / ||W||_2^2.

    `num_lost` of the `num_values` singular values lie below the threshold: one or two are ordinary in a square matrix
    (the smallest of a random one is about 1 / n of the largest), many are not.
    """

    name: str
    what: str
    smallest: float
    largest: float
    stable_rank: float
    num_values: int
    num_lost: int

    @property
    def rank_loss(self) -> bool:
        """Whether any direction is out of reach."""
        return self.num_lost > 0

    @property
    def ratio(self) -> float:
        """The smallest singular value relative to the largest; 0 for a zero matrix."""
        return self.smallest / self.largest if self.largest > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For events.jsonl."""
        return asdict(self) | {"ratio": self.ratio, "rank_loss": self.rank_loss}


@torch.no_grad()
def inspect_spectra(optimizer: Optimizer) -> list[Spectrum]:
    """The spectrum of each Muon weight and of its momentum (of a stack each expert's), in fp32 on the CPU. A zero
    matrix (a weight before its first step) has no rank to lose and is not flagged.
    """
    threshold = RESTORABLE[optimizer.settings.muon_method]
    spectra = []
    for parameter in optimizer.names["matrix"]:
        p = optimizer.parameters[parameter]
        pairs = [("weight", p), ("momentum", optimizer.muon.state[p]["momentum"])]
        looks = [(parameter, what, matrix) for what, matrix in pairs]
        if p.ndim == 3:  # a stack of experts
            looks = [(f"{parameter}[{e}]", what, stack[e]) for e in range(len(p)) for what, stack in pairs]
        for name, what, matrix in looks:
            matrix = matrix.detach().float().cpu()
            if not matrix.isfinite().all():  # LAPACK takes none; all of its directions are lost
                spectra.append(Spectrum(name, what, 0.0, 0.0, 0.0, min(matrix.shape), min(matrix.shape)))
                continue
            values = torch.linalg.svdvals(matrix)
            smallest, largest = float(values[-1]), float(values[0])
            stable_rank = float(values.square().sum() / values[0].square()) if largest > 0 else 0.0
            num_lost = int((values < threshold * largest).sum())  # none in a zero matrix
            spectra.append(Spectrum(name, what, smallest, largest, stable_rank, len(values), num_lost))
    return spectra
