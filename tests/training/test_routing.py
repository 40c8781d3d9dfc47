"""The losses of a router, the bias that balances it, and what is recorded."""

from dataclasses import replace

import pytest
import torch

from shard.config import Config, Mixture
from shard.model import Routing, ShardLM
from shard.muon import Muon
from shard.training.loss import Loss
from shard.training.routing import add_router_losses, balance, describe_routing

MOE = {"num_experts": 3, "top_k": 1, "bias_rate": 0.1}
NOTHING = Loss(torch.zeros(()), torch.zeros(()), torch.zeros(()))


def test_router_losses_equal_their_formulas() -> None:
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scores = logits.sigmoid()
    load = torch.tensor([7, 3, 0])
    mixture = Mixture(num_experts=3, balance_loss=0.5, router_z_loss=0.25)
    loss, routed = add_router_losses(NOTHING, [Routing(logits, scores, load)], mixture, scale=0.1)
    shares = (scores / scores.sum(1, keepdim=True)).detach()
    even = 3 * sum(float(load[e]) / 10 * shares[:, e].mean() for e in range(3))
    z = logits.detach().exp().sum(1).log().square().mean()
    torch.testing.assert_close(loss.total.detach(), 0.1 * 10 * (0.5 * even + 0.25 * z))
    assert routed[0, :3].tolist() == [7, 3, 0]
    assert float(routed[0, 3]) == pytest.approx(float(-(shares * shares.log()).sum()), rel=1e-5)
    loss.total.backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0


def test_without_weights_the_total_is_left_alone() -> None:
    logits = torch.randn(4, 3)
    routing = [Routing(logits, logits.sigmoid(), torch.tensor([1, 2, 1]))]
    assert add_router_losses(NOTHING, routing, Mixture(num_experts=3), 1.0)[0].total is NOTHING.total


def test_the_bias_moves_against_the_load_once_a_step_and_not_in_a_skipped_one(tiny_config: Config) -> None:
    model = ShardLM(replace(tiny_config, moe=MOE))
    routed = torch.tensor([[9.0, 3.0, 0.0, 1.0]] * tiny_config.num_layers)
    balance(model, routed, torch.ones(()))
    assert not any(block.feed_forward.bias.any() for block in model.blocks)
    balance(model, routed, torch.zeros(()))
    # The mean load is 4: the first has 1.25 of it too much, which counts as 1.
    expected = 0.1 * (torch.tensor([-1.0, 0.25, 1.0]) - 0.25 / 3)
    for block in model.blocks:
        torch.testing.assert_close(block.feed_forward.bias, expected)


def test_the_bias_makes_the_mean_load_even_where_single_steps_are_not(tiny_config: Config) -> None:
    """Each step's tokens like another expert best, and the first most of all."""
    model = ShardLM(replace(tiny_config, moe=MOE | {"bias_rate": 0.03}))
    layer = model.blocks[0].feed_forward
    generator = torch.Generator().manual_seed(0)
    loads = []
    for _ in range(300):
        liking_E = torch.tensor([0.3, 0.0, -0.1]) + 0.1 * torch.randn(3, generator=generator)
        scores_NE = liking_E + 0.2 * torch.randn(256, 3, generator=generator)
        chosen = (scores_NE + layer.bias).argmax(dim=-1)
        loads.append(torch.bincount(chosen, minlength=3).float())
        balance(model, torch.cat([loads[-1], torch.zeros(1)]).repeat(tiny_config.num_layers, 1), torch.zeros(()))
    share_E = torch.stack(loads[100:]).mean(dim=0) / 256
    assert (torch.stack(loads[100:]) / 256 - 1 / 3).abs().max() > 0.15, "single steps are far from even"
    assert (3 * share_E - 1).abs().max() < 0.03


def test_what_is_recorded(tiny_config: Config) -> None:
    config = replace(tiny_config, moe=MOE | {"top_k": 2})
    record = describe_routing([4, 4, 0, 2.0, 2, 3, 3, 4.0], config, num_tokens=4)
    assert record == {"load": [[0.5, 0.5, 0], [0.25, 0.375, 0.375]], "entropy": [0.5, 1.0], "dead": [1, 0]}


def test_muon_moves_each_matrix_of_a_stack_as_if_it_were_alone() -> None:
    torch.manual_seed(0)
    for shape in ((3, 8, 4), (3, 4, 8)):
        stack = torch.nn.Parameter(torch.randn(shape))
        alone = [torch.nn.Parameter(matrix.clone()) for matrix in stack.detach()]
        for _ in range(2):
            gradient = torch.randn(shape)
            stack.grad = gradient
            for p, g in zip(alone, gradient, strict=True):
                p.grad = g.clone()
            for params in ([stack], alone):
                Muon(params, weight_decay=0.1, dtype=torch.float32).step()
        torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in alone]), rtol=1e-5, atol=1e-6)
