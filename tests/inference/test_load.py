"""Models are loaded from what others made: what does not fit is one line, and takes no memory first."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shard.config import Config
from shard.errors import ShardError
from shard.inference import load
from shard.inference.load import build_model, load_bundle_file, load_model, read_tokenizer
from shard.model import ShardLM
from shard.tokenizer import train_tokenizer

SHAPE = Config(
    vocab_size=270, hidden_size=32, num_layers=2, num_heads=2, head_dim=16, intermediate_size=48, max_sequence_length=64
)


@pytest.fixture(scope="module")
def model() -> ShardLM:
    torch.manual_seed(0)
    return ShardLM(SHAPE).eval()


@pytest.fixture
def bundle(tmp_path: Path, model: ShardLM) -> Path:
    """The part of a bundle that is read."""
    (tmp_path / "models").mkdir()
    weights = {name: p.detach().bfloat16() for name, p in model.named_parameters()}
    torch.save({"model": weights, "cfg": SHAPE.to_dict()}, tmp_path / "models" / "model.pt")
    train_tokenizer(["some text of words, and words again"] * 2, 270).save(str(tmp_path / "models" / "tokenizer.json"))
    return tmp_path


def message_of(function: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(ShardError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return str(caught.value)


def test_a_bundle_gives_the_model_in_the_dtype_that_was_asked_for(bundle: Path, model: ShardLM) -> None:
    loaded = load_model(bundle, torch.float32, torch.device("cpu"))
    assert not loaded.model.training and loaded.model.config == SHAPE and loaded.separator_id == 0
    for name, p in loaded.model.named_parameters():
        assert p.dtype == torch.float32 and p.requires_grad and isinstance(p, torch.nn.Parameter)
        assert torch.equal(p, model.get_parameter(name).bfloat16().float())
    ids = torch.tensor([[1, 2, 3]])
    assert torch.allclose(loaded.model(ids)[0], model(ids)[0], atol=0.1)
    assert load_model(bundle, torch.bfloat16, torch.device("cpu")).model.embedding.weight.dtype == torch.bfloat16


# The model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, w: c.update(hidden_size=2**16, intermediate_size=2**18, num_layers=50), "has the shape"),
        (lambda c, w: c.update(hidden_size=2**40), "hidden_size must be at most 65536"),
        (lambda c, w: c.update(num_layers=10**9), "num_layers must be at most 1000"),
        (lambda c, w: c.update(layer_pattern="L" * 10**6), "layer_pattern has 1000000 letters"),
        (lambda c, w: c.update(layer_pattern="x" * 10**6), "layer_pattern must be made of"),
        (lambda c, w: c.update(rope_theta=10**400), "rope_theta must be at most"),
        (lambda c, w: c.update(unknown=1), "unexpected keyword argument 'unknown'"),
        (lambda c, w: c.update({1: 2}), "keywords must be strings"),
        (lambda c, w: w.pop("embedding.weight"), "the weight 'embedding.weight' is missing"),
        (lambda c, w: w.update(more=torch.ones(1)), "the weight 'more' is unknown"),
        (lambda c, w: w.update({"final_norm.weight": torch.ones(31)}), "has the shape (31,)"),
        (lambda c, w: w.update({"final_norm.weight": torch.ones(32).long()}), "the type torch.int64"),
        (lambda c, w: w.update({"final_norm.weight": torch.ones(32).to(torch.complex64)}), "the type torch.complex64"),
    ],
)
def test_what_is_no_model(model: ShardLM, change: Any, message: str) -> None:
    config, weights = SHAPE.to_dict(), dict(model.state_dict())
    change(config, weights)
    found = message_of(build_model, config, weights, "there")
    assert found.startswith("there does not hold a Shard model: ") and message in found


@pytest.mark.parametrize(
    "content",
    [
        [1],
        {"cfg": {}},
        {"model": {}, "cfg": 1},
        {"model": [torch.ones(1)], "cfg": {}},
        {"model": {"a": 1}, "cfg": {}},
        {"model": {1: torch.ones(1)}, "cfg": {}},
        {"model": {}, "cfg": {}, "optimizer": {"x": None}},
    ],
)
def test_what_is_no_bundle_file(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert "is not a bundle file" in message_of(load_bundle_file, tmp_path / "model.pt")


# The tokenizer


def change_tokenizer(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    path = bundle / "models" / "tokenizer.json"
    parts = json.loads(path.read_text(encoding="utf-8"))
    change(parts)
    path.write_text(json.dumps(parts), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["model"].update(type="WordLevel", unk_token="x"), "is not BPE"),
        (
            lambda p: p.update(normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 99}),
            "normalizer",
        ),
        (lambda p: p.update(padding={"strategy": {"Fixed": 10**10}}), "it has a padding"),
        (lambda p: p.update(truncation={"max_length": 3}), "it has a truncation"),
        (lambda p: p.update(post_processor={"type": "TemplateProcessing"}), "post_processor is not one"),
        (lambda p: p["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "(a+)+$"}), "pre_tokenizer is not"),
        (lambda p: p.update(decoder={"type": "Replace"}), "decoder is not one"),
        (lambda p: p["model"]["vocab"].update(new=270), "has the id 270, and the model 270 ids"),
        (
            lambda p: p["added_tokens"].append(p["added_tokens"][0] | {"id": 10**6, "content": "a new one"}),
            "belong to its model",
        ),
        (lambda p: p["model"].update(vocab={}, merges=[["a", "b"]]), "is not a tokenizer"),
        (lambda p: p["model"]["vocab"].update(new=-1), "is not a tokenizer"),
        (lambda p: p.clear(), "is not a tokenizer"),
    ],
)
def test_what_is_no_tokenizer_of_the_model(bundle: Path, change: Any, message: str) -> None:
    assert message in message_of(read_tokenizer, change_tokenizer(bundle, change), 270)
    assert message in message_of(load_model, bundle, torch.float32, torch.device("cpu"))


def test_a_tokenizer_of_fewer_tokens_than_the_model_has(bundle: Path) -> None:
    path = bundle / "models" / "tokenizer.json"
    assert read_tokenizer(path, 300).get_vocab_size() == 270
    assert "has the id 269, and the model 269 ids" in message_of(read_tokenizer, path, 269)


def test_a_tokenizer_too_large_to_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MAX_TOKENIZER_BYTES", 1000)
    assert "is too large for a tokenizer" in message_of(read_tokenizer, bundle / "models" / "tokenizer.json", 270)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b"[]", b"null", b'{"model": 3}'])
def test_a_tokenizer_that_is_no_json(bundle: Path, content: bytes) -> None:
    path = bundle / "models" / "tokenizer.json"
    path.write_bytes(content)
    assert "is not a tokenizer of a Shard model" in message_of(read_tokenizer, path, 270)
    path.unlink()
    assert message_of(load_model, bundle, torch.float32, torch.device("cpu")).endswith("tokenizer.json is missing")


# The checkpoint


@pytest.mark.parametrize(
    "state", [{"step": 1}, {"step": 1, "config": 3}, {"step": 1, "config": {"x": 1}}, {"step": 1, "config": None}]
)
def test_a_checkpoint_without_the_shape_of_its_model(tmp_path: Path, model: ShardLM, state: dict[str, Any]) -> None:
    from shard.training.checkpoint import save_checkpoint

    path = save_checkpoint(tmp_path, 1, model.state_dict(), {}, state)
    message = message_of(load_model, path, torch.float32, torch.device("cpu"))
    assert "lacks the table config" in message or "does not hold a Shard model" in message
    shutil.rmtree(path)
    assert "does not exist" in message_of(load_model, path, torch.float32, torch.device("cpu"))
