"""A whole run with a tokenizer that others made, taken from a repository of the hub."""

from pathlib import Path

import numpy as np
import pytest
from gemma_like import write_like_gemma
from hub_server import Repository, running
from tiny_run import TINY, call
from tokenizers import Tokenizer

from shard.data.shards import TokenStream
from shard.files import read_json
from shard.verify import verify

NAME = "someone/like-gemma"


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Path:
    """The folder of the run, with the tokenizer as it was on the hub beside it."""
    folder = tmp_path_factory.mktemp("adopted")
    texts = [path.read_text() for path in sorted(text_folder.glob("*.txt"))]
    path = write_like_gemma(folder / "origin", texts)
    model = TINY["model"].replace("vocab_size = 300", "vocab_size = 420")
    sets = {**TINY, "model": model, "tokenizer.adopt": f'"{NAME}"', "tokenizer.separator": '"<eos>"'}
    sets |= {"pretrain.sample_prompts": "[]", "data.evaluation_sets": "[]"}
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    with running() as server, pytest.MonkeyPatch.context() as patch:
        server.repositories[NAME] = Repository()
        server.repositories[NAME].commit({"tokenizer.json": path.read_bytes(), "README.md": b"# Like Gemma"})
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
        assert call("run", "quickstart", "--data", text_folder, *words, "--out", folder / "run") == 0
    return folder


def test_the_tokenizer_is_the_hub_s(adopted: Path) -> None:
    run = adopted / "run"
    record = read_json(run / "tokenizer" / "sample.json", "")
    assert record["adopted"] == NAME


def test_what_is_trained_on_is_what_tokenizers_makes_of_the_documents(adopted: Path, text_folder: Path) -> None:
    reference = Tokenizer.from_file(str(adopted / "origin" / "tokenizer.json"))
    stream = TokenStream.open(adopted / "run" / "data" / "text")
    ids = stream.read(0, stream.num_tokens)
    documents = np.split(ids, np.flatnonzero(ids == 1) + 1)
    expected = {
        tuple(reference.encode(path.read_text(), add_special_tokens=False).ids) for path in text_folder.glob("*.txt")
    }
    found = {tuple(document[:-1].tolist()) for document in documents if len(document)}
    assert len(found) > 20
    assert found <= expected


def test_the_release_holds_together_and_generates(adopted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = adopted / "run" / "release"
    assert not verify(bundle).problems
    capsys.readouterr()
    assert call("generate", bundle, "hello there", "--max-tokens", "5", "--temperature", "0") == 0
    assert capsys.readouterr().out.startswith("hello there")


def test_a_wrong_name_is_found_before_documents_are_read(
    text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ("--set", f'tokenizer.adopt="{tmp_path / "nothing"}"')
    assert call("run", "quickstart", "--data", text_folder, *wrong, "--out", tmp_path / "run") == 2
    assert "neither a tokenizer.json" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.parquet"))
