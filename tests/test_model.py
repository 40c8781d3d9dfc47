"""The model against a second one written from the formulas, caches against no cache, and what attention may cost."""

import math

import pytest
import torch
import torch.nn.functional as F

from shard.config import Config
from shard.model import KVCache, RMSNorm, ShardLM, ToyLM, local_attention, rope_angles, rotate

WINDOW = 8
LENGTHS = [1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW - 1, 2 * WINDOW, 2 * WINDOW + 1, 3 * WINDOW + 5]


def visible(num_tokens: int, window: int | None) -> torch.Tensor:
    """Return the T x T mask, row by row from its definition: token i sees j where 0 <= i - j < window."""
    rows = [[0 <= i - j < (window or num_tokens) for j in range(num_tokens)] for i in range(num_tokens)]
    return torch.tensor(rows)


def naive_attention(q, k, v, window: int | None) -> torch.Tensor:
    """Return softmax(q k^T / sqrt(K) + mask) v with everything written out."""
    scores = q @ k.mT / math.sqrt(q.size(-1))
    scores = scores.masked_fill(~visible(q.size(2), window), -math.inf)
    exp = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return exp / exp.sum(dim=-1, keepdim=True) @ v


def naive_norm(x, weight, eps: float) -> torch.Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * (1 + weight)


def naive_rope(x, theta: float) -> torch.Tensor:
    """Turn the complex numbers x_i + i x_{i + K/2} by exp(i * position / theta^(2i/K))."""
    half = x.size(-1) // 2
    frequencies = torch.tensor([theta ** (-2 * i / x.size(-1)) for i in range(half)], dtype=torch.float64)
    angles = torch.arange(x.size(-2), dtype=torch.float64)[:, None] * frequencies
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1)


def naive_logits(weights: dict[str, torch.Tensor], config: Config, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of the whole model in fp64, from nothing but named weights and the formulas of model.py."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    x = w["embedding.weight"][ids] * math.sqrt(config.hidden_size)
    for i, kind in enumerate(config.layer_types):
        layer = {n.removeprefix(f"blocks.{i}."): t for n, t in w.items() if n.startswith(f"blocks.{i}.")}
        h = naive_norm(x, layer["attention_norm.weight"], config.norm_eps)
        q, k, v = (
            (h @ layer[f"attention.{part}.weight"].T)
            .reshape(*ids.shape, config.num_heads, config.head_dim)
            .transpose(1, 2)
            for part in ("query", "key", "value")
        )
        q, k = naive_rope(q, config.rope_theta), naive_rope(k, config.rope_theta)
        y = naive_attention(q, k, v, config.sliding_window if kind == "L" else None)
        x = x + y.transpose(1, 2).reshape(*ids.shape, -1) @ layer["attention.output.weight"].T
        h = naive_norm(x, layer["feed_forward_norm.weight"], config.norm_eps)
        gate = h @ layer["feed_forward.gate.weight"].T
        h = gate / (1 + (-gate).exp()) * (h @ layer["feed_forward.up.weight"].T)
        x = x + h @ layer["feed_forward.down.weight"].T
    x = naive_norm(x, w["final_norm.weight"], config.norm_eps)
    return config.logit_cap * torch.tanh(x @ w["embedding.weight"].T / config.logit_cap)


def random_ids(config: Config, batch: int, num_tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(config.vocab_size, (batch, num_tokens), generator=torch.Generator().manual_seed(seed))


# The whole model


def test_the_reference_model_has_exactly_its_parameters_and_one_table():
    with torch.device("meta"):
        model = ShardLM(Config())
    assert sum(p.numel() for p in model.parameters()) == 54_538_752
    tables = [name for name, p in model.named_parameters() if 8192 in p.shape]
    assert tables == ["embedding.weight"]


def test_logits_are_read_from_the_embedding_table(tiny_model, tiny_config):
    """Tied: a change to a token's row changes its logit even where the token is not in the text."""
    ids = torch.zeros(1, 5, dtype=torch.int64)
    before = tiny_model(ids)[0]
    with torch.no_grad():
        tiny_model.embedding.weight[66] *= -1
    after = tiny_model(ids)[0]
    torch.testing.assert_close(after[..., 66], -before[..., 66])
    assert torch.equal(after[..., :66], before[..., :66])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_fp32_and_within_the_cap(tiny_model, tiny_config, dtype):
    with torch.no_grad():
        tiny_model.embedding.weight *= 100
    logits, nothing = tiny_model.to(dtype)(random_ids(tiny_config, 2, 20))
    assert nothing is None
    assert logits.dtype == torch.float32
    assert logits.shape == (2, 20, 67)
    assert logits.abs().max() <= 30
    assert logits.abs().max() > 29, "the cap is not reached, so nothing was tested"


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 17, 40])
def test_equals_the_naive_model_in_fp32(tiny_model, tiny_config, num_tokens):
    ids = random_ids(tiny_config, 2, num_tokens)
    expected = naive_logits(dict(tiny_model.named_parameters()), tiny_config, ids)
    assert expected.std() > 0.5
    torch.testing.assert_close(tiny_model(ids)[0].double(), expected, rtol=1e-5, atol=1e-4)
    relative = (tiny_model(ids)[0].double() - expected).norm() / expected.norm()
    assert relative < 1e-5


def test_equals_the_naive_model_in_bf16(tiny_model, tiny_config):
    """The same weights, rounded; bf16 keeps 8 bits, and four layers of roundings add up to about 1 in 100."""
    ids = random_ids(tiny_config, 2, 40)
    model = tiny_model.to(torch.bfloat16)
    expected = naive_logits(dict(model.named_parameters()), tiny_config, ids)
    relative = (model(ids)[0].double() - expected).norm() / expected.norm()
    assert relative < 0.03


def test_computes_in_another_dtype_than_its_weights(tiny_model, tiny_config):
    """fp32 masters and bf16 arithmetic: what training runs."""
    ids = random_ids(tiny_config, 1, 20)
    hidden = tiny_model.hidden(ids, dtype=torch.bfloat16)
    assert hidden.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in tiny_model.parameters())
    expected = tiny_model.hidden(ids)
    assert (hidden.float() - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize("pattern", ["LG", "LLLLLG", "G"])
def test_layer_pattern_decides_the_masks(tiny_config, pattern):
    torch.manual_seed(0)
    config = Config(**tiny_config.to_dict() | {"layer_pattern": pattern})
    model = ShardLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    ids = random_ids(config, 1, 30)
    expected = naive_logits(dict(model.named_parameters()), config, ids)
    torch.testing.assert_close(model(ids)[0].double(), expected, rtol=1e-5, atol=1e-3)


def test_no_token_sees_the_future(tiny_model, tiny_config):
    ids = random_ids(tiny_config, 1, 30)
    changed = ids.clone()
    changed[0, 17] = (changed[0, 17] + 1) % tiny_config.vocab_size
    before, after = tiny_model(ids)[0], tiny_model(changed)[0]
    assert torch.equal(before[:, :17], after[:, :17])
    moved = (before != after).any(dim=-1)[0]
    assert moved[17:].all(), "a global last layer carries the change to every later token"


def test_toylm_is_shardlm():
    assert ToyLM is ShardLM


def test_every_parameter_has_one_role(tiny_model):
    roles = tiny_model.parameter_roles()
    parameters = dict(tiny_model.named_parameters())
    assert roles.keys() == parameters.keys()
    assert {n for n, r in roles.items() if r == "embedding"} == {"embedding.weight"}
    assert {n for n, r in roles.items() if r == "norm"} == {n for n, p in parameters.items() if p.ndim == 1}
    assert sum(r == "norm" for r in roles.values()) == 2 * 4 + 1
    assert sum(r == "matrix" for r in roles.values()) == 7 * 4


def test_starts_as_a_function_of_the_last_token_alone():
    """Output matrices start at zero, so that each layer is the identity at first."""
    torch.manual_seed(0)
    model = ShardLM(Config(vocab_size=50, hidden_size=32, num_layers=2, num_heads=2, head_dim=16, intermediate_size=8))
    ids = torch.tensor([[1, 2, 3], [9, 8, 3]])
    logits = model(ids)[0]
    torch.testing.assert_close(logits[0, -1], logits[1, -1])
    assert not torch.equal(logits[0, 0], logits[1, 0])


# Its parts


def test_norm_equals_torch_with_weight_1_plus_w():
    torch.manual_seed(0)
    ours, oracle = RMSNorm(24, eps=1e-3), torch.nn.RMSNorm(24, eps=1e-3)
    x = torch.randn(5, 24) * torch.logspace(-3, 2, 5)[:, None]
    torch.testing.assert_close(ours(x), oracle(x))  # w starts at 0, their weight at 1
    with torch.no_grad():
        ours.weight.normal_()
        oracle.weight.copy_(1 + ours.weight)
    torch.testing.assert_close(ours(x), oracle(x))


def test_norm_computes_in_fp32_and_answers_in_the_dtype_of_its_input():
    torch.manual_seed(0)
    norm = RMSNorm(24, eps=1e-6)
    x = torch.randn(5, 24).bfloat16()
    assert torch.equal(norm(x), norm(x.float()).bfloat16())


def test_rope_equals_complex_rotation_far_out():
    torch.manual_seed(0)
    x = torch.randn(1, 1, 8192, 8, dtype=torch.float64)
    got = rotate(x.float(), *rope_angles(torch.arange(8192), 8, 10_000.0))
    torch.testing.assert_close(got.double(), naive_rope(x, 10_000.0), rtol=0, atol=3e-3)
    near = slice(0, 100)
    torch.testing.assert_close(got.double()[:, :, near], naive_rope(x, 10_000.0)[:, :, near], rtol=0, atol=5e-5)


def test_bf16_leaves_rope_in_fp32(tiny_model, monkeypatch):
    model = tiny_model.to(torch.bfloat16)
    assert not list(model.buffers()), "a buffer would be rounded by .to(torch.bfloat16)"
    seen = []
    monkeypatch.setattr("shard.model.rotate", lambda x, cos, sin: seen.append((cos, sin)) or rotate(x, cos, sin))
    model(torch.zeros(1, 50, dtype=torch.int64))
    expected = rope_angles(torch.arange(50)[:, None], 16, 10_000.0)
    assert len(seen) == 8
    for cos, sin in seen:
        assert cos.dtype == sin.dtype == torch.float32
        assert torch.equal(cos, expected[0])
        assert torch.equal(sin, expected[1])


def test_embedding_scale_is_rounded_to_the_dtype(tiny_config):
    """As in the Gemma family: sqrt(512) = 22.627... is 22.625 in bf16, which shows in other tools' logits."""
    config = Config(**tiny_config.to_dict() | {"hidden_size": 512, "num_layers": 1})
    torch.manual_seed(0)
    model = ShardLM(config).to(torch.bfloat16)  # layers are the identity at first, so the stream is what goes in
    seen = {}
    model.final_norm.register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))
    model(torch.tensor([[3]]))
    assert float(torch.tensor(math.sqrt(512)).bfloat16()) == 22.625
    assert torch.equal(seen["x"][0, 0], (model.embedding.weight[3].float() * 22.625).bfloat16())
    assert not torch.equal(seen["x"][0, 0], (model.embedding.weight[3].float() * math.sqrt(512)).bfloat16())


# Local attention


@pytest.mark.parametrize("num_tokens", LENGTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_local_attention_equals_a_masked_softmax(num_tokens, dtype, tolerance):
    torch.manual_seed(num_tokens)
    q, k, v, weights = (torch.randn(2, 3, num_tokens, 4).to(dtype) for _ in range(4))
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    oracle = [x.double().requires_grad_() for x in (q, k, v)]
    got = local_attention(*inputs, WINDOW)
    expected = naive_attention(*oracle, WINDOW)
    assert got.dtype == dtype
    assert got.shape == expected.shape
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)
    got_grads = torch.autograd.grad((got * weights).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * weights.double()).sum(), oracle)
    for got_grad, expected_grad in zip(got_grads, expected_grads, strict=True):
        scale = max(1.0, float(expected_grad.abs().max()))
        torch.testing.assert_close(got_grad.double(), expected_grad, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("position", [WINDOW - 1, WINDOW, WINDOW + 3, 2 * WINDOW - 1, 2 * WINDOW, 3 * WINDOW + 4])
def test_the_window_ends_where_it_should(position):
    """The token at i - W is out of sight of i, the one at i - W + 1 is not: the current token is counted."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 3 * WINDOW + 5, 4) for _ in range(3))
    before = local_attention(q, k, v, WINDOW)

    def after_change(at: int) -> torch.Tensor:
        other_k, other_v = k.clone(), v.clone()
        other_k[:, :, at] += 1
        other_v[:, :, at] += 1
        return local_attention(q, other_k, other_v, WINDOW)[:, :, position]

    oldest = position - WINDOW + 1
    assert not torch.allclose(after_change(oldest), before[:, :, position], atol=1e-4)
    if oldest > 0:
        assert torch.equal(after_change(oldest - 1), before[:, :, position])


@pytest.mark.parametrize("needs_grad", [False, True])
def test_local_attention_makes_nothing_of_t_by_t(largest_tensor, needs_grad):
    num_tokens, window, width = 1024, 16, 4
    q, k, v = (torch.randn(1, 1, num_tokens, width, requires_grad=needs_grad) for _ in range(3))
    with largest_tensor() as largest:
        y = local_attention(q, k, v, window)
        if needs_grad:
            y.sum().backward()
    assert 0 < largest.elements <= 2 * num_tokens * window
    assert largest.elements < num_tokens**2 / 16
    with largest_tensor() as control:
        naive_attention(q, k, v, window)
    assert control.elements >= num_tokens**2, "the measure does not see a T x T tensor"


# The cache


CHUNKS = {
    "prompt, then one by one": [11] + [1] * 19,
    "one by one": [1] * 30,
    "prompt within the window": [5] + [1] * 25,
    "chunks of the window": [8, 8, 8, 6],
    "chunks over the window's edge": [5, 6, 7, 12],
    "chunks longer than the window": [3, 20, 7],
    "long prompt, small chunks": [17, 2, 3, 1, 7],
    "all at once": [30],
}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS.keys())
def test_cached_logits_equal_those_without_a_cache(tiny_model, tiny_config, chunks):
    ids = random_ids(tiny_config, 2, 30)
    assert sum(chunks) == 30
    with torch.no_grad():
        expected = tiny_model(ids)[0]
        cache = KVCache(tiny_model, batch_size=2, max_length=30)
        got = torch.cat([tiny_model(chunk, cache)[0] for chunk in ids.split(chunks, dim=1)], dim=1)
    assert cache.num_seen == 30
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    assert (got - expected).norm() / expected.norm() < 1e-5
    assert torch.equal(got.argmax(-1), expected.argmax(-1))


def test_local_caches_hold_the_window_and_no_more(tiny_model):
    cache = KVCache(tiny_model, batch_size=2, max_length=40)
    assert [layer.k_BHSK.shape for layer in cache.layers] == [(2, 2, size, 16) for size in (8, 40, 8, 40)]
    assert [layer.v_BHSK.shape for layer in cache.layers] == [(2, 2, size, 16) for size in (8, 40, 8, 40)]
    short = KVCache(tiny_model, batch_size=1, max_length=5)
    assert {layer.k_BHSK.size(2) for layer in short.layers} == {5}


def test_cache_has_the_dtype_of_the_model(tiny_model):
    cache = KVCache(tiny_model.to(torch.bfloat16), batch_size=1, max_length=4)
    assert {layer.k_BHSK.dtype for layer in cache.layers} == {torch.bfloat16}


def test_more_tokens_than_the_context_are_refused(tiny_model, tiny_config):
    tiny_model(random_ids(tiny_config, 1, 96))
    with pytest.raises(ValueError, match=r"97 tokens.*context is 96"):
        tiny_model(random_ids(tiny_config, 1, 97))
    cache = KVCache(tiny_model, 1, 200)
    with torch.no_grad():
        tiny_model(random_ids(tiny_config, 1, 90), cache)
        with pytest.raises(ValueError, match=r"97 tokens.*context is 96"):
            tiny_model(random_ids(tiny_config, 1, 7), cache)


def test_more_tokens_than_the_cache_holds_are_refused(tiny_model, tiny_config):
    cache = KVCache(tiny_model, 1, 20)
    with torch.no_grad():
        tiny_model(random_ids(tiny_config, 1, 20), cache)
        with pytest.raises(ValueError, match="holds 20 tokens, not 21"):
            tiny_model(random_ids(tiny_config, 1, 1), cache)


def test_the_oracle_is_torch_s_own_attention():
    """The naive attention of this file, checked against an implementation that is not ours."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 20, 4, dtype=torch.float64) for _ in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(naive_attention(q, k, v, None), expected)


@pytest.mark.parametrize("hidden_size", [128, 512])
def test_a_new_model_starts_near_the_loss_of_guessing(hidden_size: int) -> None:
    """At any width: a tied head that sees its own embedding must not bet on it."""
    torch.manual_seed(0)
    model = ShardLM(Config(vocab_size=500, hidden_size=hidden_size, num_layers=2, num_heads=2, head_dim=16))
    ids = torch.randint(0, 500, (4, 65))
    with torch.no_grad():
        loss = F.cross_entropy(model(ids[:, :-1])[0].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(float(loss) - math.log(500)) < 0.25
