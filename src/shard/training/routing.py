"""What a mixture of experts adds to training: losses of the router, the bias that balances it, and what is recorded.

    load_e    = share of the choices of a batch that fell on expert e
    balance   = E * sum_e load_e * mean(p_e)          p: the scores, made to sum to one; 1 where all is even
    router z  = mean(logsumexp(logits)^2)
    bias_e   <- bias_e + rate * (r_e - mean(r))       r_e = 1 - load_e / mean load, at least -1, once a step, of the
                                                      global batch

Both losses are sums over the layers, and each is taken over the tokens of a micro-batch. The bias needs no loss, so the
gradient is that of the language model alone (Wang et al., arXiv 2408.15664). There r is the sign of this one, which
makes the median step even; a bias that adds up what was missed makes the mean of all steps even: what is left of the
misses of n steps is what the bias moved in them, over rate * n.
Shape suffixes: L layers, E experts, S = E + 1 (the loads and the entropy), N tokens.
"""

from typing import Any, cast

import torch
from torch import Tensor

from shard.config import Config, Mixture
from shard.model import MixtureOfExperts, Routing, ShardLM
from shard.training.loss import Loss
from shard.training.stage import TeacherLoss


def add_router_losses(
    loss: Loss | TeacherLoss, routing: list[Routing], mixture: Mixture, scale: float | Tensor
) -> tuple[Loss | TeacherLoss, Tensor]:
    """The loss with those of the router in its total, and what is to be recorded, as sums over tokens [L, S]: the
    loads, and the entropy of the scores in nats. `scale` is that of the loss.
    """
    total, rows = loss.total, []
    for logits_NE, scores_NE, load_E in routing:
        num_tokens, num_experts = logits_NE.shape
        shares_NE = scores_NE / scores_NE.sum(dim=-1, keepdim=True)
        if mixture.balance_loss:
            even = num_experts * (load_E / load_E.sum() * shares_NE.mean(dim=0)).sum()
            total = total + scale * num_tokens * mixture.balance_loss * even
        if mixture.router_z_loss:
            total = total + scale * mixture.router_z_loss * logits_NE.logsumexp(dim=-1).square().sum()
        entropy = torch.special.entr(shares_NE.detach()).sum()
        rows.append(torch.cat([load_E.float(), entropy[None]]))
    return loss._replace(total=total), torch.stack(rows)


@torch.no_grad()
def balance(model: ShardLM, routed_LS: Tensor, skip: Tensor) -> None:
    """Move every layer's bias towards even loads, from the sums of a whole step; where the scalar `skip` is 1 nothing
    changes.
    """
    mixture = cast(Mixture, model.config.mixture)
    for block, row_S in zip(model.blocks, routed_LS, strict=True):
        layer = cast(MixtureOfExperts, block.feed_forward)
        load_E = row_S[:-1]
        missing_E = (1 - load_E / load_E.mean()).clamp(min=-1)
        layer.bias += mixture.bias_rate * (missing_E - missing_E.mean()) * (1 - skip)


def describe_routing(sums: list[float], config: Config, num_tokens: int) -> dict[str, Any]:
    """For metrics.jsonl, by layer: the share of each expert in the load, the mean entropy of the scores in nats, and
    how many experts had no token of the step. `sums` are [L, S] of `num_tokens` tokens, in one line.
    """
    mixture = cast(Mixture, config.mixture)
    width = mixture.num_experts + 1
    rows = [sums[i : i + width] for i in range(0, len(sums), width)]
    return {
        "load": [[round(load / (num_tokens * mixture.top_k), 5) for load in row[:-1]] for row in rows],
        "entropy": [round(row[-1] / num_tokens, 5) for row in rows],
        "dead": [sum(load == 0 for load in row[:-1]) for row in rows],
    }
