"""A small model, its tokenizer, and the two in the format of transformers."""

from pathlib import Path

import pytest
import torch
from tiny_release import SHAPE, Exported, make_model

from shard.release.hugging_face import export_hugging_face
from shard.tokenizer import load_tokenizer, train_tokenizer


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
