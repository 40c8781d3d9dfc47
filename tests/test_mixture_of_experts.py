"""The mixture of experts of model.py: its products, its output, its decoding, what it costs."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from shard.config import Config
from shard.errors import UsageError
from shard.inference.decoder import Decoder
from shard.inference.load import build_model
from shard.inference.quantize import quantize
from shard.inference.sampling import generate_ids
from shard.model import MixtureOfExperts, Routing, ShardLM, expert_linear, grouped_linear, looped_linear
from shard.training.cost import count_parameters

MIXTURES = {
    "sigmoid": {"num_experts": 3, "top_k": 1, "num_shared": 1, "score": "sigmoid"},
    "softmax": {"num_experts": 3, "top_k": 1, "num_shared": 0, "score": "softmax"},
    "top-2": {"num_experts": 3, "top_k": 2, "num_shared": 0, "score": "softmax_top_k"},
}


def mixed(config: Config, name: str) -> ShardLM:
    """A model of which nothing is silent, with a bias that decides some choices."""
    torch.manual_seed(7)
    model = ShardLM(replace(config, moe=MIXTURES[name]))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3 if p.ndim == 1 else p.size(-1) ** -0.5)
        model.embedding.weight.normal_(std=0.1)
        for block in model.blocks:
            block.feed_forward.bias.uniform_(-0.2, 0.2)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ends", [[5, 5, 12], [0, 12, 12], [0, 0, 12], [4, 8, 12]])
def test_grouped_and_looped_products_agree_forward_and_backward(dtype: torch.dtype, ends: list[int]) -> None:
    torch.manual_seed(0)
    x, w, dy = (torch.randn(shape, dtype=dtype) for shape in ((12, 16), (3, 24, 16), (12, 24)))
    found = []
    for product in (looped_linear, grouped_linear, expert_linear):
        a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = product(a, b, torch.tensor(ends))
        y.backward(dy)
        found.append((y.detach(), a.grad, b.grad))
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, **tolerance)


def test_sizes_that_the_grouped_product_does_not_take_are_looped() -> None:
    x, w = torch.randn(5, 13), torch.randn(3, 7, 13)
    y = expert_linear(x, w, torch.tensor([1, 1, 5]))
    torch.testing.assert_close(y, torch.cat([x[:1] @ w[0].T, x[1:] @ w[2].T]))


@pytest.mark.parametrize("name", MIXTURES)
def test_a_layer_equals_a_sum_over_tokens_and_experts(tiny_config: Config, name: str) -> None:
    layer = mixed(tiny_config, name).blocks[0].feed_forward
    assert isinstance(layer, MixtureOfExperts)
    x_ND = torch.randn(20, tiny_config.hidden_size)
    expected, num_moved = [], 0
    for x in x_ND:
        logits = layer.router.weight @ x
        scores = logits.sigmoid() if name == "sigmoid" else logits.softmax(0)
        chosen = sorted(range(3), key=lambda e: -(scores[e] + layer.bias[e]).item())[: layer.top_k]
        num_moved += set(chosen) != set(scores.topk(layer.top_k).indices.tolist())
        total = sum(logits[e].exp().item() for e in chosen)
        y = layer.shared(x) if layer.shared is not None else torch.zeros_like(x)
        for e in chosen:
            weight = logits[e].exp() / total if name == "top-2" else scores[e]
            hidden = F.silu(layer.gate.weight[e] @ x) * (layer.up.weight[e] @ x)
            y = y + weight * (layer.down.weight[e] @ hidden)
        expected.append(y)
    assert num_moved, "the bias must decide something"
    torch.testing.assert_close(layer(x_ND), torch.stack(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x_ND.view(4, 5, -1)).flatten(0, 1), torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MIXTURES)
def test_the_router_learns_from_the_language_model_loss(tiny_config: Config, name: str) -> None:
    model = mixed(tiny_config, name)
    model(torch.randint(0, 67, (2, 30)))[0].square().mean().backward()
    for block in model.blocks:
        assert block.feed_forward.router.weight.grad.abs().sum() > 0
        assert not block.feed_forward.bias.requires_grad


def test_the_router_computes_in_fp32(tiny_config: Config) -> None:
    model = mixed(tiny_config, "top-2").bfloat16()
    routing: list[Routing] = []
    model.hidden(torch.randint(0, 67, (2, 30)), routing=routing)
    assert len(routing) == tiny_config.num_layers
    assert {(r.logits.dtype, r.scores.dtype) for r in routing} == {(torch.float32, torch.float32)}
    assert all(int(r.load.sum()) == 2 * 30 * 2 for r in routing)


@pytest.mark.parametrize("name", MIXTURES)
def test_cached_decoding_equals_the_whole_text(tiny_config: Config, name: str) -> None:
    model = mixed(tiny_config, name)
    prompt = torch.randint(0, 67, (12,)).tolist()
    plain = list(generate_ids(model, prompt, 20, use_cache=False))
    assert list(generate_ids(model, prompt, 20)) == plain
    decoder = Decoder(model)
    batch, logits = decoder.start([prompt, prompt[:5]], 40)
    for token in plain:
        assert int(logits[0].argmax()) == token
        logits = decoder.extend(batch, [token, token])


def test_int8_is_refused_in_one_line(tiny_config: Config) -> None:
    with pytest.raises(UsageError, match="mixture of experts: choose bf16"):
        quantize(mixed(tiny_config, "sigmoid"))


def test_weights_and_bias_come_back(tiny_config: Config) -> None:
    model = mixed(tiny_config, "sigmoid")
    built = build_model(model.config.to_dict(), model.state_dict(), "here")
    ids = torch.randint(0, 67, (1, 20))
    assert torch.equal(built(ids)[0], model(ids)[0])
    weights = {name: weight for name, weight in model.state_dict().items() if not name.endswith("bias")}
    with pytest.raises(Exception, match="bias' is missing"):
        build_model(model.config.to_dict(), weights, "here")


def test_counts_what_a_token_uses(tiny_config: Config) -> None:
    count = count_parameters(replace(tiny_config, moe=MIXTURES["top-2"]))
    one_expert = 3 * tiny_config.hidden_size * tiny_config.intermediate_size
    assert count.idle == tiny_config.num_layers * one_expert
    assert count.active == count.total - count.idle
    dense = count_parameters(tiny_config)
    assert dense.active == dense.total
    assert count.total - dense.total == tiny_config.num_layers * (2 * one_expert + 3 * tiny_config.hidden_size)
