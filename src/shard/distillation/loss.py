"""Cross-entropy mixed with the forward KL divergence from a teacher, straight from hidden states: neither the student's
logits nor the teacher's are ever held at once.

    l = cap * tanh(h E^T / cap)        q = softmax(l / tau)        p: the teacher's distribution at temperature tau
    loss = scale * sum((1 - w) * nll + w * tau^2 * KL(p || q) + z_loss * logsumexp(l)^2)
    d (tau^2 KL) / d l = tau * (q - p)

nll and z are those of training/loss.py. The KL is H(p, q) - H(p): targets that were drawn from p give H(p, q) without
bias, and bring H(p) with them. `kl_sum` is in nats, at the temperature tau; tau^2 keeps the size of the gradient over
temperatures (Hinton et al., arXiv 1503.02531).
Shape suffixes: N tokens, C tokens of a chunk, D hidden size, E the teacher's hidden size, V vocabulary, K targets.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from shard.training import loss as hard
from shard.training.stage import TeacherLoss


class DenseTargets(NamedTuple):
    """All of the teacher's distribution, as what makes its logits: hidden states and its output matrix."""

    hidden: Tensor
    """[N, E]; or the logits [N, V] themselves, where there is no matrix."""
    table: Tensor | None = None
    """[V, E]."""
    cap: float | None = None
    """The teacher's own cap on its logits."""


class SparseTargets(NamedTuple):
    """Some of the teacher's distribution: the probabilities of some ids, which are distinct where it is above 0."""

    ids: Tensor
    """[N, K]."""
    probs: Tensor
    """[N, K]. They sum to 1 with the tail."""
    tail: Tensor | None = None
    """[N]: the mass of all other ids together, about which nothing else is known."""
    entropy: Tensor | None = None
    """[N]: of the teacher, in nats; None: that of the targets themselves."""


Targets = DenseTargets | SparseTargets


def dense_log_probabilities(targets: DenseTargets, vocab_size: int, temperature: float) -> Tensor:
    """The teacher's log-probabilities [N, V] in fp32 over the first `vocab_size` ids: exact, since what is left out is
    normalised away. Ids that the teacher lacks have about none.
    """
    hidden, table = targets.hidden, targets.table
    logits_NV = (hidden if table is None else F.linear(hidden, table[:vocab_size])).float()[:, :vocab_size]
    if targets.cap is not None:
        logits_NV = targets.cap * torch.tanh(logits_NV / targets.cap)
    if logits_NV.size(1) < vocab_size:
        logits_NV = F.pad(logits_NV, (0, vocab_size - logits_NV.size(1)), value=-1e4)
    return (logits_NV / temperature).log_softmax(dim=-1)


def sparse_entropy(targets: SparseTargets) -> Tensor:
    """H(p) [N] in nats: the teacher's where it is known, else that of the targets, their tail as one more id."""
    if targets.entropy is not None:
        return targets.entropy.float()
    entropy_N = torch.special.entr(targets.probs.float()).sum(dim=-1)
    return entropy_N if targets.tail is None else entropy_N + torch.special.entr(targets.tail.float())


def plain_distilled_loss(
    hidden_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    soft: Targets,
    weight: float | Tensor,
    cap: float,
    z_loss: float,
    temperature: float = 1.0,
    scale: float | Tensor = 1.0,
) -> TeacherLoss:
    """The reference: holds all logits [N, V] of both, differentiated by autograd."""
    logits_NV = F.linear(hidden_ND, table_VD.to(hidden_ND.dtype)).float()
    logits_NV = cap * torch.tanh(logits_NV / cap)
    nll_sum = F.cross_entropy(logits_NV, targets_N, reduction="sum")
    z_sum = logits_NV.logsumexp(dim=-1).square().sum()
    log_q_NV = (logits_NV / temperature).log_softmax(dim=-1)
    if isinstance(soft, DenseTargets):
        log_p_NV = dense_log_probabilities(soft, len(table_VD), temperature)
        kl_sum = (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum()
    else:
        kl_N = -(soft.probs * log_q_NV.gather(1, soft.ids)).sum(dim=-1) - sparse_entropy(soft)
        if soft.tail is not None:
            kl_N = kl_N - soft.tail * log_q_NV.scatter(1, soft.ids, -torch.inf).logsumexp(dim=-1)
        kl_sum = kl_N.sum()
    total = scale * ((1 - weight) * nll_sum + weight * temperature**2 * kl_sum + z_loss * z_sum)
    return TeacherLoss(total, nll_sum.detach(), z_sum.detach(), kl_sum.detach())


class _ChunkedDistilledLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        table_VD: Tensor,
        targets_N: Tensor,
        soft: Targets,
        weight: float | Tensor,
        cap: float,
        z_loss: float,
        temperature: float,
        scale: float | Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        num_tokens, vocab_size = hidden_ND.size(0), table_VD.size(0)
        chunk = hard.chunk_tokens(vocab_size, hidden_ND.device)
        weight_VD = table_VD.to(hidden_ND.dtype)
        d_hidden_chunks = []
        d_table_VD = torch.zeros_like(table_VD, dtype=torch.float32)
        nll_sum, z_sum, kl_sum = (hidden_ND.new_zeros((), dtype=torch.float32) for _ in range(3))
        for start in range(0, num_tokens, chunk):
            hidden_CD = hidden_ND[start : start + chunk]
            targets_C = targets_N[start : start + chunk]
            unit_CV = torch.tanh(F.linear(hidden_CD, weight_VD).float() / cap)
            logits_CV = cap * unit_CV
            lse_C = logits_CV.logsumexp(dim=-1)
            nll_sum = nll_sum + (lse_C - logits_CV.gather(1, targets_C[:, None]).squeeze(1)).sum()
            z_sum = z_sum + lse_C.square().sum()
            log_q_CV = logits_CV - lse_C[:, None]
            is_target_CV = targets_C[:, None] == torch.arange(vocab_size, device=targets_C.device)
            q_CV = log_q_CV.exp()
            d_CV = q_CV * (1 - weight + 2 * z_loss * lse_C[:, None])
            d_CV = torch.where(is_target_CV, d_CV - (1 - weight), d_CV)
            if temperature != 1.0:
                log_q_CV = (logits_CV / temperature).log_softmax(dim=-1)
                q_CV = log_q_CV.exp()
            p_CV, kl_C = _teacher(_cut(soft, start, start + chunk), log_q_CV, q_CV, temperature)
            kl_sum = kl_sum + kl_C.sum()
            d_CV = (d_CV + weight * temperature * (q_CV - p_CV)) * (1 - unit_CV.square()) * scale
            d_CV = d_CV.to(hidden_ND.dtype)
            d_hidden_chunks.append(d_CV @ weight_VD)
            d_table_VD = d_table_VD + (d_CV.mT @ hidden_CD).float()
        ctx.save_for_backward(torch.cat(d_hidden_chunks), d_table_VD)
        total = scale * ((1 - weight) * nll_sum + weight * temperature**2 * kl_sum + z_loss * z_sum)
        return total, nll_sum, z_sum, kl_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden_ND, d_table_VD = ctx.saved_tensors
        return d_hidden_ND * grads[0].to(d_hidden_ND.dtype), d_table_VD * grads[0], *[None] * 7


def _cut(soft: Targets, start: int, stop: int) -> Targets:
    """The targets of a chunk."""
    if isinstance(soft, DenseTargets):
        return soft._replace(hidden=soft.hidden[start:stop])
    return SparseTargets(*(None if field is None else field[start:stop] for field in soft))  # type: ignore[arg-type]


def _teacher(soft: Targets, log_q_CV: Tensor, q_CV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """What the student's distribution is drawn towards [C, V], and the KL divergence [C] between the two.

    A tail of unknown shape is spread as the student spreads it, so that only its mass is taught.
    """
    if isinstance(soft, DenseTargets):
        log_p_CV = dense_log_probabilities(soft, q_CV.size(1), temperature)
        p_CV = log_p_CV.exp()
        return p_CV, (p_CV * (log_p_CV - log_q_CV)).sum(dim=-1)
    probs_CK = soft.probs.float()
    kl_C = -(probs_CK * log_q_CV.gather(1, soft.ids)).sum(dim=-1) - sparse_entropy(soft)
    p_CV = torch.zeros_like(q_CV)
    if soft.tail is not None:
        outside_CV = log_q_CV.scatter(1, soft.ids, -torch.inf)
        log_outside_C = outside_CV.logsumexp(dim=-1)
        kl_C = kl_C - soft.tail * log_outside_C
        p_CV = soft.tail[:, None] * (outside_CV - log_outside_C[:, None]).exp()
    return p_CV.scatter_add(1, soft.ids, probs_CK), kl_C


def chunked_distilled_loss(
    hidden_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    soft: Targets,
    weight: float | Tensor,
    cap: float,
    z_loss: float,
    temperature: float = 1.0,
    scale: float | Tensor = 1.0,
) -> TeacherLoss:
    """The same as plain_distilled_loss in memory of a chunk's logits of each of the two models.

    `weight` is the share of the teacher, from 0 to 1 (a tensor where it changes from step to step: a compiled step
    would be compiled anew for each number). The rest is as in chunked_loss. Differentiable once, in `total`.
    """
    total, *sums = _ChunkedDistilledLoss.apply(  # type: ignore[no-untyped-call]
        hidden_ND, table_VD, targets_N, soft, weight, cap, z_loss, temperature, scale
    )
    return TeacherLoss(total, *(one.detach() for one in sums))
