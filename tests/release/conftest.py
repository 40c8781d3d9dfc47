"""A small model of which nothing is silent, its tokenizer, and the two in the format of transformers."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from shard.config import Config
from shard.model import ShardLM
from shard.release.hugging_face import export_hugging_face
from shard.tokenizer import load_tokenizer, train_tokenizer

SHAPE = Config(
    vocab_size=320,
    hidden_size=48,
    num_layers=4,
    num_heads=4,
    head_dim=16,  # not hidden_size / num_heads
    intermediate_size=96,
    max_sequence_length=200,
    sliding_window=8,
    layer_pattern="LG",
    rope_theta=5000.0,
    norm_eps=1e-5,
    logit_cap=20.0,
)
"""No key has the value that transformers would take by itself, but for max_sequence_length."""


def make_model(config: Config, num_tokens: int = SHAPE.vocab_size) -> ShardLM:
    """Random weights everywhere, of a size at which the cap bites; ids from `num_tokens` up are never the likeliest.

    The table is small beside the layers, or a tied model would repeat itself; the last norm makes up for it.
    """
    torch.manual_seed(0)
    model = ShardLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3 if p.ndim == 1 else p.size(1) ** -0.5)
        model.embedding.weight.normal_(std=0.03)
        model.embedding.weight[num_tokens:] = 0
        model.final_norm.weight.add_(14)
    return model


@dataclass(frozen=True)
class Exported:
    """Our model and its tokenizer.json, and the folders written from them."""

    model: ShardLM
    tokenizer: Path
    fp32: Path
    bf16: Path


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ["The quick brown fox, 12345 times. ", "def f(x):\n    return x + 1\n", "überall 漢字 🙂 don't I'LL "]
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(texts * 20, 310).save(str(path))
    return path


@pytest.fixture(scope="session")
def exported(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    model = make_model(SHAPE, load_tokenizer(tokenizer_path).get_vocab_size())
    for dtype in ("fp32", "bf16"):
        export_hugging_face(model.state_dict(), SHAPE, tokenizer_path, folder / dtype, dtype)
    return Exported(model, tokenizer_path, folder / "fp32", folder / "bf16")


@pytest.fixture(scope="session")
def ascii_export(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One that writes whole characters only: what streams of bytes do at the end of a text is not the question."""
    tokenizer = load_tokenizer(tokenizer_path)
    model = make_model(SHAPE, tokenizer.get_vocab_size())
    with torch.no_grad():
        for token in range(tokenizer.get_vocab_size()):
            text = tokenizer.decode([token])
            if not text or not text.isascii() or not text.isprintable():
                model.embedding.weight[token] = 0
    folder = tmp_path_factory.mktemp("ascii")
    for dtype in ("fp32", "bf16"):
        export_hugging_face(model.state_dict(), SHAPE, tokenizer_path, folder / dtype, dtype)
    return Exported(model, tokenizer_path, folder / "fp32", folder / "bf16")


def other(**changes: object) -> Config:
    """SHAPE with some keys changed."""
    return replace(SHAPE, **changes)  # type: ignore[arg-type]
