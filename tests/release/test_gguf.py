"""What a GGUF file holds and says, and which models and tokenizers have none."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from llama_server import SHAPES, WINDOWED, make_model, write_tokenizer
from tokenizers import Tokenizer
from torch import Tensor

from shard.errors import ShardError
from shard.release import gguf as shard_gguf
from shard.release.gguf import export_folder, export_gguf
from shard.tokenizer import SEPARATOR, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_file)


def read(path: Path) -> Any:
    return gguf.GGUFReader(path)


def test_what_a_file_says_of_itself(tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = make_model(WINDOWED, tokenizer)
    path = export_gguf(model.state_dict(), WINDOWED, tokenizer_file, tmp_path / "m.gguf", "bf16", "little", "mit")
    reader = read(path)
    content = {key: field.contents() for key, field in reader.fields.items()}
    assert content["general.architecture"] == "granite_swa"
    assert (content["general.name"], content["general.license"]) == ("little", "mit")
    assert "20 * tanh(x / 20)" in content["general.description"]
    assert content["shard.logit_cap"] == 20.0
    assert content["general.file_type"] == gguf.LlamaFileType.MOSTLY_BF16
    assert content["granite_swa.context_length"] == 512
    assert content["granite_swa.attention.sliding_window"] == 32
    assert content["granite_swa.attention.sliding_window_pattern"] == [True, False, True, False]
    assert content["granite_swa.embedding_scale"] == 8.0
    assert (content["tokenizer.ggml.model"], content["tokenizer.ggml.pre"]) == ("gpt2", "qwen2")
    for role in ("bos", "eos", "padding"):
        assert content[f"tokenizer.ggml.{role}_token_id"] == 0
    assert content["tokenizer.ggml.add_bos_token"] is False
    tokens, types = content["tokenizer.ggml.tokens"], content["tokenizer.ggml.token_type"]
    num_tokens = tokenizer.get_vocab_size()
    assert tokens[:num_tokens] == [tokenizer.id_to_token(i) for i in range(num_tokens)]
    assert len(tokens) == 420 > num_tokens
    kinds = gguf.TokenType
    assert types == [kinds.CONTROL] + [kinds.NORMAL] * (num_tokens - 1) + [kinds.UNUSED] * (420 - num_tokens)


@pytest.mark.parametrize("name", ["alternating", "global"])
def test_a_bf16_file_holds_the_bits_of_the_released_weights(
    name: str, tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A width whose root bf16 rounds: the model multiplies by the rounded one."""
    config = replace(SHAPES[name], hidden_size=96)
    model = make_model(config, tokenizer)
    path = export_gguf(model.state_dict(), config, tokenizer_file, tmp_path / "m.gguf", "bf16", "m")
    reader = read(path)
    stored = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    released = model.to(torch.bfloat16)
    ours = released.state_dict()

    def in_bf16(tensor_name: str) -> Tensor:
        return stored[tensor_name].view(torch.bfloat16)

    table = in_bf16("token_embd.weight")
    if name == "global":
        # What the model's first layer gets.
        ids = torch.arange(config.vocab_size)
        scale = torch.tensor(96**0.5, dtype=torch.bfloat16)
        assert torch.equal(table, released.embedding(ids) * scale)
        table = in_bf16("output.weight")
    else:
        assert read(path).fields["granite_swa.embedding_scale"].contents() == 9.8125
        assert "output.weight" not in stored
    assert torch.equal(table, ours["embedding.weight"])
    assert torch.equal(in_bf16("blk.1.ffn_up.weight"), ours["blocks.1.feed_forward.up.weight"])
    query = in_bf16("blk.1.attn_q.weight")
    assert torch.equal(query[48::2], ours["blocks.1.attention.query.weight"][48:72])
    assert torch.equal(query[49::2], ours["blocks.1.attention.query.weight"][72:])
    norm = ours["blocks.2.attention_norm.weight"]
    assert torch.equal(stored["blk.2.attn_norm.weight"], 1 + norm.float())
    if name == "alternating":
        assert torch.equal(stored["blk.3.attn_sinks.weight"], torch.full((2,), -1e4))
    num_theirs = len([n for n in stored if not n.endswith("sinks.weight")])
    assert num_theirs == len(ours) + (name == "global")


def test_a_q8_0_file_is_within_half_a_step(tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Half a step, and what the scale loses in f16. Rows of 80 do not divide into blocks of 32: they stay f32."""
    config = replace(WINDOWED, intermediate_size=80)
    model = make_model(config, tokenizer)
    reader = read(export_gguf(model.state_dict(), config, tokenizer_file, tmp_path / "m.gguf", "q8_0", "m"))
    stored = {tensor.name: tensor for tensor in reader.tensors}
    up = stored["blk.0.ffn_up.weight"]
    assert up.tensor_type == gguf.GGMLQuantizationType.Q8_0
    theirs = torch.from_numpy(gguf.dequantize(up.data, up.tensor_type))
    ours = model.state_dict()["blocks.0.feed_forward.up.weight"]
    blocks = ours.unflatten(1, (-1, 32))
    step = blocks.abs().amax(-1, keepdim=True) / 127
    assert ((theirs - ours).unflatten(1, (-1, 32)).abs() <= 0.57 * step).all()
    assert stored["blk.0.ffn_down.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert stored["blk.0.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    down = torch.from_numpy(stored["blk.0.ffn_down.weight"].data.copy())
    assert torch.equal(down, model.state_dict()["blocks.0.feed_forward.down.weight"])


def test_the_same_weights_give_the_same_bytes(tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    weights = make_model(WINDOWED, tokenizer).state_dict()
    for dtype in shard_gguf.DTYPES:
        files = [export_gguf(weights, WINDOWED, tokenizer_file, tmp_path / f"{i}.gguf", dtype, "m") for i in range(2)]
        assert len({hashlib.sha256(file.read_bytes()).hexdigest() for file in files}) == 1


def test_a_file_without_a_recipe_beside_its_tokenizer(tokenizer_file: Path, tmp_path: Path) -> None:
    weights = make_model(WINDOWED, load_tokenizer(tokenizer_file)).state_dict()
    result = export_folder(weights, WINDOWED, tokenizer_file, tmp_path, "q8_0")
    assert result == {"dtype": "q8_0", "architecture": "granite_swa", "file": "model-q8_0.gguf"}
    assert [path.name for path in tmp_path.iterdir()] == ["model-q8_0.gguf"]


# What has no such form


def message_of(*arguments: Any) -> str:
    with pytest.raises(ShardError) as raised:
        export_gguf(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("part", ["moe", "engram"])
def test_parts_that_llama_cpp_does_not_know(part: str, tokenizer_file: Path, tmp_path: Path) -> None:
    config = replace(WINDOWED)
    object.__setattr__(config, part, {"num_experts": 3})  # a later version may build such a model
    path = tmp_path / "gguf" / "m.gguf"
    assert part in message_of({}, config, tokenizer_file, path, "f32", "m")
    assert not path.parent.exists()


def test_without_the_package(tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_gguf, "find_spec", lambda name: None)
    assert "pip install 'shard-lm[gguf]'" in message_of({}, WINDOWED, tokenizer_file, tmp_path / "m", "f32", "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["other pattern", "no pattern", "no separator"])
def test_another_tokenizer(what: str, tokenizer_file: Path, tmp_path: Path) -> None:
    parts = json.loads(tokenizer_file.read_text())
    if what == "other pattern":
        parts["pre_tokenizer"]["pretokenizers"][0] = {"type": "Digits", "individual_digits": True}
    elif what == "no pattern":
        parts["pre_tokenizer"] = None
    else:
        parts["added_tokens"] = []
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(parts))
    message = message_of({}, WINDOWED, path, tmp_path / "m.gguf", "f32", "m")
    assert str(path) in message and ("separator" in what) == (SEPARATOR in message)
    assert not (tmp_path / "m.gguf").exists()


def test_a_failure_leaves_no_file(tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    weights = dict(make_model(WINDOWED, tokenizer).state_dict())
    del weights["blocks.3.feed_forward.down.weight"]
    with pytest.raises(KeyError):
        export_gguf(weights, WINDOWED, tokenizer_file, tmp_path / "m.gguf", "f32", "m")
    assert not list(tmp_path.iterdir())
