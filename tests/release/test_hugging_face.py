"""The export computes in transformers what the model computes here: logits, texts, token ids. Nothing is downloaded."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tiny_release import SHAPE, Exported, make_model, other
from torch import Tensor

from shard.config import Config
from shard.errors import ShardError
from shard.inference.sampling import generate_ids
from shard.model import ShardLM
from shard.release.hugging_face import export_hugging_face, obstacle, their_name
from shard.tokenizer import load_tokenizer, train_tokenizer

transformers = pytest.importorskip("transformers")


def load(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options)


def random_ids(num: int, seed: int = 0) -> Tensor:
    """[1, num] ids, the separator among them."""
    ids = torch.randint(1, 300, (1, num), generator=torch.Generator().manual_seed(seed))
    ids[0, num // 2] = 0
    return ids


def in_bf16(model: ShardLM) -> ShardLM:
    copy = ShardLM(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.to(torch.bfloat16).eval()


# Logits


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer_pattern": "LLG", "sliding_window": 2},
        {"layer_pattern": "L", "num_layers": 5, "rope_theta": 1e6},
        {"layer_pattern": "G"},
        {"sliding_window": 500},
        {"num_heads": 1, "head_dim": 64, "logit_cap": 15},
    ],
    ids=str,
)
@torch.no_grad()
def test_logits_equal_ours_in_fp32_beyond_the_window(
    changes: dict[str, Any], tokenizer_path: Path, tmp_path: Path
) -> None:
    config = other(**changes)
    model = make_model(config)
    export_hugging_face(model.state_dict(), config, tokenizer_path, tmp_path, "fp32")
    theirs = load(tmp_path)
    assert type(theirs) is transformers.VaultGemmaForCausalLM and theirs.dtype == torch.float32
    ids = random_ids(150)
    difference = (theirs(ids).logits - model(ids)[0]).abs().max().item()
    print(f"fp32: largest difference {difference:.1e} of logits up to {model(ids)[0].abs().max():.2f}")
    assert difference < 1e-4


@torch.no_grad()
def test_the_window_the_cap_and_the_angles_matter_in_that_comparison(exported: Exported) -> None:
    ids = random_ids(150)
    right = exported.model(ids)[0]
    assert right.abs().max() > 0.5 * SHAPE.logit_cap
    for wrong in ({"sliding_window": 9}, {"logit_cap": 21.0}, {"rope_theta": 5100.0}, {"layer_pattern": "G"}):
        model = ShardLM(other(**wrong)).eval()
        model.load_state_dict(exported.model.state_dict())
        assert (model(ids)[0] - right).abs().max() > 0.01, wrong


@torch.no_grad()
def test_bf16_lies_as_far_from_fp32_there_as_here(exported: Exported) -> None:
    """There the angles and the capped logits are rounded to bf16, too."""
    ids = random_ids(150)
    exact, ours = exported.model(ids)[0], in_bf16(exported.model)(ids)[0]
    model = load(exported.bf16)
    assert model.dtype == torch.bfloat16
    theirs = model(ids).logits.float()
    far = {"ours": (ours - exact).std().item(), "theirs": (theirs - exact).std().item()}
    between = (ours - theirs).abs()
    print(f"bf16: {far} from fp32; between them {between.std():.3f}, at most {between.max():.3f}")
    assert far["theirs"] < 2 * far["ours"]
    assert between.std() < 2 * far["ours"]


# Texts


def test_greedy_generation_equals_ours_in_fp32(exported: Exported) -> None:
    theirs, seen = load(exported.fp32), set()
    for length in (1, 5, 8, 40, 120):
        ids = random_ids(length, seed=length)
        ours = list(generate_ids(exported.model, ids[0].tolist(), 60))
        new = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, eos_token_id=-1)[0, length:]
        assert new.tolist() == ours
        seen |= set(ours)
    assert len(seen) > 20, "a model that repeats itself proves little"


def test_generation_ends_at_the_separator(exported: Exported, tmp_path: Path) -> None:
    """The ids of the separator and of a token that is generated late change places."""
    prompt = random_ids(20)[0].tolist()
    new = list(generate_ids(exported.model, prompt, 60))
    token = next(t for i, t in enumerate(new) if i >= 10 and t not in new[:i] and t not in (*prompt, 0))
    assert 0 not in new[: new.index(token)]
    model = ShardLM(SHAPE).eval()
    model.load_state_dict(exported.model.state_dict())
    with torch.no_grad():
        model.embedding.weight[[0, token]] = model.embedding.weight[[token, 0]]
    export_hugging_face(model.state_dict(), SHAPE, exported.tokenizer, tmp_path, "fp32")
    ids = torch.tensor([[token if t == 0 else t for t in prompt]])
    theirs = load(tmp_path).generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60)
    ours = list(generate_ids(model, ids[0].tolist(), 60, stop_id=0))
    assert theirs[0, 20:].tolist() == [*ours, 0]
    assert len(ours) == new.index(token)


def test_a_batch_of_prompts_is_padded_on_the_left(exported: Exported) -> None:
    model, tok = load(exported.fp32), transformers.AutoTokenizer.from_pretrained(exported.fp32)
    prompts = ["The quick", "def f(x):\n    return", "12345 times. The brown fox, don't"]
    batch = tok(prompts, return_tensors="pt", padding=True)
    new = model.generate(**batch, max_new_tokens=20, eos_token_id=-1)[:, batch.input_ids.size(1) :]
    for prompt, theirs in zip(prompts, new.tolist(), strict=True):
        ids = load_tokenizer(exported.tokenizer).encode(prompt).ids
        assert theirs == list(generate_ids(exported.model, ids, 20))


@torch.no_grad()
def test_in_bf16_they_part_at_near_ties_only(exported: Exported) -> None:
    """Our bf16 text, read by transformers in bf16: it would have chosen otherwise only where fp32 hardly minds."""
    ours, theirs = in_bf16(exported.model), load(exported.bf16)
    num_tokens = num_other = 0
    for seed in range(6):
        prompt = random_ids(30, seed)[0].tolist()
        new = list(generate_ids(ours, prompt, 120))
        ids = torch.tensor([prompt + new])
        chosen = theirs(ids).logits[0, 29:-1].argmax(-1)
        top = exported.model(ids)[0][0, 29:-1].topk(2).values
        differs = chosen != torch.tensor(new)
        num_tokens, num_other = num_tokens + len(new), num_other + int(differs.sum())
        assert (top[:, 0] - top[:, 1])[differs].lt(0.25).all()
        assert (top[:, 0] - top[:, 1]).gt(0.25).float().mean() > 0.5, "else nothing would be shown"
    print(f"bf16: another token at {num_other} of {num_tokens} places, each a near tie (below 0.25 in fp32)")


def test_the_pipeline_continues_a_text_as_we_do(ascii_export: Exported) -> None:
    generate = transformers.pipeline("text-generation", model=str(ascii_export.fp32))
    text = generate("The quick brown", max_new_tokens=30)[0]["generated_text"]
    tok = load_tokenizer(ascii_export.tokenizer)
    ids = tok.encode("The quick brown").ids
    assert text == tok.decode([*ids, *generate_ids(ascii_export.model, ids, 30, stop_id=0)])
    assert len(text) > 40


# Token ids

HARD = [
    "",
    " ",
    "  leading and   inner  ",
    "<|endoftext|>",
    "a<|endoftext|><|endoftext|> b",
    "<|endoftext",
    "1234567890 3.14 \uff12\uff10\uff12\uff14 ½",
    "don't I'LL we've 'S",
    "\n\n\r\n\t\tindented\n",
    "über naïve Ä",
    "漢字かな交じり文 한국어",
    "🙂👩‍👩‍👧‍👦🇩🇪",
    "עברית ‏العربية",
    "x\u0000y\ufffd\ufeff\u200b",
    "def f(x):\n    return {'a': x**2}  # done\n",
    "$$\\frac{a}{b} \\ge 10^{-3}$$",
    "a" * 300,
    "\ud7ff\ue000\U0010ffff",
]


@pytest.fixture(scope="module")
def both(exported: Exported) -> tuple[Any, Any]:
    return load_tokenizer(exported.tokenizer), transformers.AutoTokenizer.from_pretrained(exported.bf16)


@pytest.mark.parametrize("text", HARD, ids=ascii)
def test_token_ids_equal_ours(both: tuple[Any, Any], text: str) -> None:
    ours, theirs = both
    ids = ours.encode(text).ids
    assert theirs(text).input_ids == theirs.encode(text) == ids
    assert theirs(["x", text]).input_ids[1] == ids
    assert theirs.decode(ids) == ours.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_token_ids_equal_ours_for_any_text(both: tuple[Any, Any], text: str) -> None:
    ours, theirs = both
    assert theirs(text).input_ids == ours.encode(text).ids


def test_the_tokenizer_is_fast_and_knows_its_special_token(both: tuple[Any, Any]) -> None:
    tok = both[1]
    assert tok.is_fast
    assert tok.bos_token == tok.eos_token == tok.pad_token == "<|endoftext|>"
    assert tok.bos_token_id == tok.eos_token_id == tok.pad_token_id == 0
    assert tok.model_max_length == SHAPE.max_sequence_length
    assert tok("text", truncation=True, max_length=2).keys() == {"input_ids", "attention_mask"}
    assert tok.decode([0, 70, 0], skip_special_tokens=True) == tok.decode([70])
    assert tok("a<|endoftext|>", split_special_tokens=False).input_ids[-1] == 0, "who wants the token asks for it"


# In an interpreter of its own


def test_a_fresh_interpreter_without_shard_loads_it(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['shard'] = None\n")
    lines = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model, tok = (c.from_pretrained(sys.argv[1]) for c in (AutoModelForCausalLM, AutoTokenizer))\n"
        "out = model.generate(**tok('The quick brown fox', return_tensors='pt'), max_new_tokens=30, eos_token_id=-1)\n"
        "print(out[0].tolist())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", lines, str(exported.fp32)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ids = load_tokenizer(exported.tokenizer).encode("The quick brown fox").ids
    assert json.loads(done.stdout) == [*ids, *generate_ids(exported.model, ids, 30)]


# What is written


def test_the_weights_are_ours_to_the_bit_under_their_names(exported: Exported) -> None:
    for folder, dtype in ((exported.fp32, torch.float32), (exported.bf16, torch.bfloat16)):
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt"}
            names = {their_name(name): weight for name, weight in exported.model.state_dict().items()}
            assert set(file.keys()) == set(names)
            assert all(torch.equal(file.get_tensor(name), weight.to(dtype)) for name, weight in names.items())


def test_the_same_model_gives_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    export_hugging_face(exported.model.state_dict(), SHAPE, exported.tokenizer, tmp_path, "bf16")
    files = {path.name: path.read_bytes() for path in exported.bf16.iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert set(files) == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    }
    assert files["tokenizer.json"] == exported.tokenizer.read_bytes()


def test_the_shape_of_the_reference_model(tokenizer_path: Path, tmp_path: Path) -> None:
    """A recipe may say 30 and 10000 where they want 30.0 and 10000.0."""
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in ShardLM(Config()).named_parameters()}
    weights = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    result = export_hugging_face(weights, Config(logit_cap=30, rope_theta=10_000), tokenizer_path, tmp_path)
    assert result == {"dtype": "bf16", "parameters": 54_538_752}
    assert (tmp_path / "model.safetensors").stat().st_size == pytest.approx(2 * 54_538_752, rel=1e-3)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    assert sum(p.numel() for p in model.parameters()) == 54_538_752
    assert model.config.final_logit_softcapping == 30.0 and model.config.max_position_embeddings == 8192
    assert model.config.rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}


# What cannot be exported


def with_engram() -> Config:
    """A model that this version cannot make, as a later one may."""
    config = other()
    object.__setattr__(config, "engram", {"size": 3})
    return config


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (other(hidden_size=50), "multiple of model.num_heads"),
        (other(sliding_window=1), "model.sliding_window = 1"),
        (with_engram(), "has no engram"),
    ],
)
def test_what_the_class_cannot_express_is_refused_in_one_line(
    config: Config, reason: str, tokenizer_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(ShardError, match=reason) as caught:
        export_hugging_face({}, config, tokenizer_path, tmp_path / "hf")
    assert "\n" not in str(caught.value) and not (tmp_path / "hf").exists()


def test_a_window_of_one_without_local_layers_is_no_obstacle() -> None:
    assert obstacle(other(sliding_window=1, layer_pattern="G")) is None
    assert obstacle(Config()) is None


def test_a_tokenizer_without_a_separator_is_refused(tmp_path: Path) -> None:
    tok = json.loads(train_tokenizer(["some words and words again"] * 3, 270).to_str())
    tok["added_tokens"], tok["model"]["vocab"]["no separator"] = [], tok["model"]["vocab"].pop("<|endoftext|>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(tok))
    with pytest.raises(ShardError, match=r"has no token <\|endoftext\|>"):
        export_hugging_face({}, SHAPE, tmp_path / "tokenizer.json", tmp_path / "hf")
