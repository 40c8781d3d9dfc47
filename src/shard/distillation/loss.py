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

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from shard.training.chunks import ChunkPass, chunk_pass, sum_over_chunks
from shard.training.loss import hard_gradient
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


class Distilled(NamedTuple):
    """(1 - weight) * nll + weight * temperature^2 * KL + z_loss * z of each token, whose targets are (ids [C], the
    teacher's); the sums are nll, z and KL.
    """

    weight: float | Tensor
    z_loss: float
    temperature: float

    def gradient(self, logits_CV: Tensor, targets: tuple[Tensor, Targets]) -> tuple[Tensor, tuple[Tensor, ...]]:
        targets_C, soft = targets
        weight, temperature = self.weight, self.temperature
        d_CV, lse_C, nll, z = hard_gradient(logits_CV, targets_C, self.z_loss, 1 - weight)
        log_q_CV = logits_CV - lse_C[:, None]
        if temperature != 1.0:
            log_q_CV = (logits_CV / temperature).log_softmax(dim=-1)
        q_CV = log_q_CV.exp()
        p_CV, kl_C = _teacher(soft, log_q_CV, q_CV, temperature)
        return d_CV + weight * temperature * (q_CV - p_CV), (nll, z, kl_C.sum())

    def total(self, sums: tuple[Tensor, ...]) -> Tensor:
        nll, z, kl = sums
        return (1 - self.weight) * nll + self.weight * self.temperature**2 * kl + self.z_loss * z


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
    run: ChunkPass = chunk_pass,
) -> TeacherLoss:
    """The same as plain_distilled_loss in the memory of a chunk's logits of each of the two models.

    `weight` is the share of the teacher, from 0 to 1 (a tensor where it changes from step to step: a compiled step
    would be compiled anew for each number). `scale` and `run` as in sum_over_chunks.
    """
    total, (nll, z, kl) = sum_over_chunks(
        Distilled(weight, z_loss, temperature),
        hidden_ND,
        table_VD,
        lambda start, stop: (targets_N[start:stop], _cut(soft, start, stop)),
        cap,
        scale,
        run,
    )
    return TeacherLoss(total, nll, z, kl)
