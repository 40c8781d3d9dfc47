"""Back from the Hugging Face format: the same bits, and one line for a folder that is no Shard model."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_release import SHAPE, Exported

from shard.data.tokenizer_sample import peak_memory
from shard.errors import ShardError, UsageError
from shard.inference.load import load_model
from shard.recipe import Recipe
from shard.release.export import export_model
from shard.release.hugging_face_import import import_hugging_face, is_hugging_face, read_config, recipe_for
from shard.tokenizer import load_tokenizer
from shard.verify import verify

SHORT = ["pretrain.sequence_length=64", "anneal.sequence_length=64"]


def imported(source: Path, run: Path) -> Path:
    import_hugging_face(source, run, recipe_for(source, "quickstart", SHORT, None))
    return run


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_round_trip_changes_no_bit(exported: Exported, tmp_path: Path, dtype: str) -> None:
    source = getattr(exported, dtype)
    run = imported(source, tmp_path / "run")
    loaded = load_model(run, torch.float32, torch.device("cpu"))
    assert loaded.model.config == SHAPE
    for name, weight in exported.model.state_dict().items():
        expected = weight if dtype == "fp32" else weight.bfloat16().float()
        assert torch.equal(loaded.model.state_dict()[name], expected), name
    export_model(run, "hf", tmp_path / "again", dtype)
    for path in source.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    assert verify(run).problems == []


def test_what_transformers_saved_again_comes_back(exported: Exported, tmp_path: Path) -> None:
    """It writes other keys, and a post-processor into the tokenizer."""
    transformers = pytest.importorskip("transformers")
    for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer):
        kind.from_pretrained(exported.fp32).save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["post_processor"] is not None
    run = imported(tmp_path / "saved", tmp_path / "run")
    loaded = load_model(run, torch.float32, torch.device("cpu"))
    assert loaded.model.config == SHAPE
    for name, weight in exported.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight), name
    assert json.loads((run / "tokenizer" / "tokenizer.json").read_text())["post_processor"] is None
    text = "The quick 漢字 <|endoftext|> 🙂"
    assert loaded.tokenizer.encode(text).ids == load_tokenizer(exported.tokenizer).encode(text).ids


def test_the_config_of_transformers_4_is_read(exported: Exported, tmp_path: Path) -> None:
    content = json.loads((exported.fp32 / "config.json").read_text())
    del content["rope_parameters"], content["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(content | {"rope_scaling": None}))
    assert read_config(tmp_path) == SHAPE


@pytest.mark.parametrize(
    ("types", "pattern"),
    [("LG", "L"), ("LGLG", "LG"), ("LLLLLG" * 2, "LLLLLG"), ("G", "G"), ("LLG", "L"), ("GLG", "GL"), ("LGG", "LG")],
)
def test_the_pattern_is_the_shortest_that_repeats_to_the_layers(
    exported: Exported, tmp_path: Path, types: str, pattern: str
) -> None:
    content = json.loads((exported.fp32 / "config.json").read_text())
    names = {"L": "sliding_attention", "G": "full_attention"}
    content |= {"layer_types": [names[kind] for kind in types], "num_hidden_layers": len(types)}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = read_config(tmp_path)
    assert (config.layer_types, config.layer_pattern) == (types, pattern)


# The recipe


def test_the_recipe_is_the_named_one_or_the_one_beside_with_the_model_of_the_folder(
    exported: Exported, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported.fp32, tmp_path / "bundle" / "hf"))
    with pytest.raises(UsageError, match="name a recipe"):
        recipe_for(folder, None, None, None)
    recipe = Recipe.load("quickstart", ["name=beside", *SHORT])
    (tmp_path / "bundle" / "recipe.toml").write_text(recipe.to_toml())
    found = recipe_for(folder, None, ["seed=7"], None)
    assert (found.name, found.seed, found.config) == ("beside", 7, SHAPE)
    (folder / "recipe.toml").write_text(recipe.to_toml().replace("beside", "inside"))
    assert recipe_for(folder, None, None, None).name == "inside"
    assert recipe_for(folder, "quickstart", SHORT, None).name == "quickstart"
    other = recipe_for(folder, None, ["model.sliding_window=4"], None)
    with pytest.raises(UsageError, match="the shape of the model is that of"):
        import_hugging_face(folder, tmp_path / "run", other)


# Folders that are none

Change = Callable[[dict[str, Any]], Any]


def set_(**values: Any) -> Change:
    return lambda content: content.update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_(model_type="llama", architectures=["LlamaForCausalLM"]), r"only a VaultGemmaForCausalLM .* not \['Llama"),
        (set_(architectures=["VaultGemmaForSequenceClassification"]), "only a VaultGemmaForCausalLM"),
        (set_(hidden_activation="gelu_pytorch_tanh"), "hidden_activation is 'gelu_pytorch_tanh'"),
        (lambda content: content.pop("hidden_activation"), "hidden_activation is 'gelu_pytorch_tanh'"),
        (lambda content: content.pop("attn_logit_softcapping"), "attn_logit_softcapping is 50.0"),
        (set_(attention_bias=True), "attention_bias is True"),
        (set_(tie_word_embeddings=False), "tie_word_embeddings is False"),
        (set_(num_key_value_heads=2), "num_key_value_heads is 2, and a Shard model has 4"),
        (set_(query_pre_attn_scalar=64), "query_pre_attn_scalar is 64, and a Shard model has 16"),
        (set_(final_logit_softcapping=None), "logit_cap must be a positive number, not None"),
        (set_(rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}), "plain angles"),
        (set_(rope_parameters={"rope_type": "default"}), "plain angles"),
        (set_(rope_parameters=None, rope_scaling={"factor": 2}), "rope_scaling is"),
        (set_(layer_types=["full_attention"] * 3 + ["sliding_attention"]), "ends with a global one"),
        (set_(layer_types=["chunked_attention"] * 4), "layer_types is"),
        (set_(layer_types=[["x"]]), "layer_types is"),
        (set_(layer_types=["full_attention"] * 2000, num_hidden_layers=2000), "2000 entries, more than any model"),
        (set_(num_hidden_layers=5), "num_hidden_layers is 5"),
        (set_(sliding_window=None), "sliding_window must be a whole number"),
        (set_(hidden_size="48"), "hidden_size must be a whole number"),
        (set_(hidden_size=2**40), "hidden_size must be at most"),
        (set_(rms_norm_eps=float("nan")), "norm_eps must be a positive number"),
        (lambda content: content.pop("vocab_size"), "lacks the key vocab_size"),
        (set_(intermediate_size=2**18, num_hidden_layers=4), r"gate_proj.weight is \(96, 48\) F32, not \(262144, 48\)"),
    ],
)
def test_a_config_of_another_model_is_one_line(
    exported: Exported, tmp_path: Path, change: Change, message: str
) -> None:
    folder = Path(shutil.copytree(exported.fp32, tmp_path / "hf"))
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))
    refused(folder, tmp_path, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "lacks the weight model.layers.1.mlp.up_proj.weight"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(320, 48)}), "has the weight 'lm_head.weight'"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}), "q_proj.bias'"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(49)}), r"model.norm.weight is \(49,\) F32, not \(48,\)"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(48, dtype=torch.int8)}), r"\(48,\) I8"),
    ],
)
def test_weights_of_another_model_are_one_line(
    exported: Exported, tmp_path: Path, change: Change, message: str
) -> None:
    folder = Path(shutil.copytree(exported.fp32, tmp_path / "hf"))
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    refused(folder, tmp_path, message)


def refused(folder: Path, tmp_path: Path, message: str) -> None:
    with pytest.raises(ShardError, match=message) as caught:
        imported(folder, tmp_path / "run")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_files_that_are_missing_damaged_or_pickled_are_one_line(exported: Exported, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported.fp32, tmp_path / "hf"))
    whole = (folder / "model.safetensors").read_bytes()
    assert is_hugging_face(folder) and not is_hugging_face(tmp_path)
    for content in (b"", whole[:100], whole[:-1], struct.pack("<Q", 2**60) + whole[8:], b"\x80\x04." + whole):
        (folder / "model.safetensors").write_bytes(content)
        refused(folder, tmp_path, "model.safetensors cannot be read")
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.zeros(48)}, folder / "pytorch_model.bin")
    refused(folder, tmp_path, "model.safetensors is missing: other formats of weights are not read")
    (folder / "model.safetensors.index.json").write_text("{}")
    refused(folder, tmp_path, "it is split")
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "tokenizer.json").write_text("{}")
    refused(folder, tmp_path, "tokenizer.json is not a tokenizer")
    (folder / "tokenizer.json").unlink()
    refused(folder, tmp_path, "tokenizer.json is missing")
    for content in (b"[]", b"{", b"\xff", b'{"a": ' + b"[" * 100_000, b" " * 2**20 + b"{}"):
        (folder / "config.json").write_bytes(content)
        refused(folder, tmp_path, "config.json cannot be read")


def test_a_shape_that_claims_all_memory_takes_none(exported: Exported, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported.fp32, tmp_path / "hf"))
    content = json.loads((folder / "config.json").read_text())
    content |= {"vocab_size": 2**24, "hidden_size": 2**16, "intermediate_size": 2**18}
    (folder / "config.json").write_text(json.dumps(content))
    before = peak_memory()
    refused(folder, tmp_path, "not")
    assert peak_memory() - before < 10**8


def test_a_template_that_adds_tokens_is_refused(exported: Exported, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported.fp32, tmp_path / "hf"))
    parts = json.loads((folder / "tokenizer.json").read_text())
    separator = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    parts["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [separator, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    refused(folder, tmp_path, "its post_processor is not one that Shard uses")
