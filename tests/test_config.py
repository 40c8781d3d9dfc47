"""The shape of a model: the published defaults, the round trip through a dict, and every refusal."""

import json
from dataclasses import FrozenInstanceError

import pytest

from shard.config import LARGEST, Config


def test_defaults_are_shard_40m_v1():
    assert Config().to_dict() == {
        "vocab_size": 8192,
        "hidden_size": 512,
        "num_layers": 12,
        "num_heads": 8,
        "head_dim": 64,
        "intermediate_size": 2048,
        "max_sequence_length": 8192,
        "sliding_window": 1024,
        "layer_pattern": "LG",
        "rope_theta": 10_000.0,
        "norm_eps": 1e-6,
        "logit_cap": 30.0,
        "moe": None,
        "engram": None,
    }


def test_comes_back_from_its_dict_and_from_json(tiny_config):
    assert Config(**tiny_config.to_dict()) == tiny_config
    assert Config(**json.loads(json.dumps(tiny_config.to_dict()))) == tiny_config
    assert tiny_config != Config()


def test_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Config().hidden_size = 1


def test_unknown_keys_are_refused():
    with pytest.raises(TypeError, match="hidden_sise"):
        Config(hidden_sise=3)


@pytest.mark.parametrize(
    ("pattern", "num_layers", "expected"),
    [
        ("LG", 12, "LGLGLGLGLGLG"),
        ("LG", 5, "LGLGG"),
        ("LLLLLG", 12, "LLLLLGLLLLLG"),
        ("LLLLLG", 8, "LLLLLGLG"),
        ("L", 3, "LLG"),
        ("G", 3, "GGG"),
        ("LLLLLG", 2, "LG"),
        ("L", 1, "G"),
    ],
)
def test_pattern_repeats_and_the_last_layer_is_global(pattern, num_layers, expected):
    assert Config(layer_pattern=pattern, num_layers=num_layers).layer_types == expected


SIZES = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "head_dim",
    "intermediate_size",
    "max_sequence_length",
    "sliding_window",
)


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", [0, -1, 2.0, "8", True, None])
def test_sizes_are_whole_numbers_of_at_least_one(key, value):
    with pytest.raises(ValueError, match=f"^{key} "):
        Config(**{key: value})


@pytest.mark.parametrize("key", ["rope_theta", "norm_eps", "logit_cap"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "10", None, True])
def test_factors_are_positive_numbers(key, value):
    with pytest.raises(ValueError, match=f"^{key} "):
        Config(**{key: value})


@pytest.mark.parametrize("key", ["rope_theta", "norm_eps", "logit_cap"])
def test_factors_may_be_whole_numbers(key):
    assert getattr(Config(**{key: 3}), key) == 3


@pytest.mark.parametrize("value", ["", "lg", "LX", " LG", 3, None, ["L", "G"]])
def test_patterns_are_of_the_letters_l_and_g(value):
    with pytest.raises(ValueError, match=r"^layer_pattern "):
        Config(layer_pattern=value)


def test_heads_have_an_even_size():
    with pytest.raises(ValueError, match=r"^head_dim "):
        Config(head_dim=63)


@pytest.mark.parametrize("value", [{}, {"experts": 3}])
def test_parts_of_later_models_are_refused(value):
    with pytest.raises(ValueError, match=r"^engram "):
        Config(engram=value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "^moe must be a table with num_experts"),
        ({"num_experts": 3, "experts": 3}, "^moe must be a table"),
        ({"num_experts": 1}, r"^moe\.num_experts"),
        ({"num_experts": 3.0}, r"^moe\.num_experts"),
        ({"num_experts": 10**9}, r"^moe\.num_experts"),
        ({"num_experts": 3, "top_k": 4}, r"^moe\.top_k must be at most num_experts = 3"),
        ({"num_experts": 3, "top_k": True}, r"^moe\.top_k"),
        ({"num_experts": 3, "num_shared": -1}, r"^moe\.num_shared"),
        ({"num_experts": 3, "score": "hard"}, r"^moe\.score"),
        ({"num_experts": 3, "score": "softmax_top_k"}, "the router learns nothing"),
        ({"num_experts": 3, "bias_rate": -0.1}, r"^moe\.bias_rate"),
        ({"num_experts": 3, "balance_loss": float("nan")}, r"^moe\.balance_loss"),
    ],
)
def test_a_mixture_of_experts_is_checked(value, message):
    with pytest.raises(ValueError, match=message):
        Config(moe=value)


def test_a_mixture_comes_back_from_its_dict():
    config = Config(moe={"num_experts": 3, "top_k": 2})
    assert Config(**config.to_dict()) == config
    assert config.mixture is not None and (config.mixture.num_experts, config.mixture.top_k) == (3, 2)
    assert Config().mixture is None


@pytest.mark.parametrize(("key", "limit"), LARGEST.items())
def test_nothing_is_larger_than_any_model(key, limit):
    assert getattr(Config(**{key: limit}), key) == limit
    for value in (limit + 2, 10**400):
        with pytest.raises(ValueError, match=f"^{key} must be at most") as caught:
            Config(**{key: value})
        assert len(str(caught.value)) < 100


def test_a_pattern_is_no_longer_than_a_model_has_layers():
    assert Config(layer_pattern="L" * 1000).layer_types == "L" * 11 + "G"
    with pytest.raises(ValueError, match=r"^layer_pattern has 1001 letters"):
        Config(layer_pattern="L" * 1001)
