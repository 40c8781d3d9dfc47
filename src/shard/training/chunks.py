"""Losses of capped logits, straight from hidden states: all logits are never held at once.

    l = cap * tanh(h E^T / cap)        dx = dl * (1 - tanh^2) * scale        dh = dx E        dE = dx^T h

Gradients are computed in the forward pass, chunk by chunk, since they need only what the chunk already has; dE is
summed in fp32, in place. What training compiles is the pass over one chunk: a whole loop in one graph would keep the
dE of every chunk until all are summed, and take minutes to compile.
Shape suffixes: N tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_LOGITS = {"cpu": 2**22, "cuda": 2**24, "mps": 2**24}
"""Logits held at once: 16 MiB in fp32 stay in the cache of a CPU, 64 MiB fill a GPU."""
LEAST_CHUNK = {"cpu": 128, "cuda": 512, "mps": 128}
"""Tokens of a chunk at least: each one reads the table twice and its gradient once, and writes the latter."""


class Objective(Protocol):
    """What is minimised. It is a part of what is compiled: numbers in it are constants, tensors may change."""

    def gradient(self, logits_CV: Tensor, targets: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """d loss / d l [C, V], and sums over these tokens: what `total` needs."""

    def total(self, sums: tuple[Tensor, ...]) -> Tensor:
        """The loss, of the sums over all tokens."""


ChunkPass = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
"""`chunk_pass`, or what torch.compile makes of it."""


def chunk_tokens(vocab_size: int, device: torch.device | str) -> int:
    """Tokens whose logits are held at once on a device, or on a type of devices."""
    kind = torch.device(device).type
    return max(LEAST_CHUNK[kind], CHUNK_LOGITS[kind] // vocab_size)


def chunk_pass(
    objective: Objective,
    hidden_CD: Tensor,
    weight_VD: Tensor,
    targets: Any,
    d_table_VD: Tensor,
    cap: float,
    scale: float | Tensor,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The gradient [C, D] of the hidden states of a chunk, and its sums; that of the table is added to `d_table_VD`."""
    unit_CV = torch.tanh(F.linear(hidden_CD, weight_VD).float() / cap)
    d_CV, sums = objective.gradient(cap * unit_CV, targets)
    d_CV = (d_CV * (1 - unit_CV.square()) * scale).to(hidden_CD.dtype)
    if hidden_CD.dtype == d_table_VD.dtype:
        d_table_VD.addmm_(d_CV.mT, hidden_CD)
    else:
        d_table_VD.add_((d_CV.mT @ hidden_CD).float())
    return d_CV @ weight_VD, sums


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        table_VD: Tensor,
        objective: Objective,
        cut: Callable[[int, int], Any],
        cap: float,
        scale: float | Tensor,
        run: ChunkPass,
    ) -> tuple[Tensor, ...]:
        num_tokens, chunk = hidden_ND.size(0), chunk_tokens(table_VD.size(0), hidden_ND.device)
        hidden_ND = hidden_ND.detach()  # torch.compile would look for gradients of its parts
        weight_VD = table_VD.detach().to(hidden_ND.dtype)
        d_table_VD = torch.zeros_like(table_VD, dtype=torch.float32)
        d_hidden, every_sums = [], []
        for start in range(0, num_tokens, chunk):
            stop = min(start + chunk, num_tokens)
            d_hidden_CD, sums = run(
                objective, hidden_ND[start:stop], weight_VD, cut(start, stop), d_table_VD, cap, scale
            )
            d_hidden.append(d_hidden_CD)
            every_sums.append(torch.stack(sums))
        ctx.save_for_backward(torch.cat(d_hidden), d_table_VD)
        sums = tuple(torch.stack(every_sums).sum(dim=0).unbind())
        return scale * objective.total(sums), *sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden_ND, d_table_VD = ctx.saved_tensors
        # In place: a second gradient of the same loss raises, as autograd does for what it has freed.
        return d_hidden_ND.mul_(grads[0]), d_table_VD.mul_(grads[0]), *[None] * 5


def sum_over_chunks(
    objective: Objective,
    hidden_ND: Tensor,
    table_VD: Tensor,
    cut: Callable[[int, int], Any],
    cap: float,
    scale: float | Tensor,
    run: ChunkPass = chunk_pass,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(scale * loss, the sums of the objective) over all tokens, in the memory of the logits of a chunk.

    `hidden_ND` is in the compute dtype; `table_VD` is the master table, cast once. `cut(start, stop)` gives the targets
    of some tokens. `scale` is applied before the gradients are rounded to the compute dtype: give 1 / tokens of the
    whole step, times the loss scale of fp16. Differentiable once, in the loss. `run` is `chunk_pass`, compiled or not.
    """
    total, *sums = _Chunks.apply(hidden_ND, table_VD, objective, cut, cap, scale, run)  # type: ignore[no-untyped-call]
    return total, tuple(one.detach() for one in sums)
