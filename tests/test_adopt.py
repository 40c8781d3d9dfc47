"""Adopted tokenizers: kept exactly, with their own separator, or refused in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemma_like import write_like_gemma
from tokenizers import Tokenizer

from shard.adopt import adopt_tokenizer, find_tokenizer
from shard.data.shards import BulkEncoder, is_own_form
from shard.errors import ShardError, UsageError
from shard.inference.load import read_tokenizer, separator_of
from shard.recipe import Recipe
from shard.signals import InterruptedRunError
from shard.tokenizer import train_tokenizer

TEXTS = ["The quick  brown fox, 12345 times.\n\n", "def f(x):\n    return x + 1\n", "überall 漢字 🙂 don't <eos> <bos>"]


@pytest.fixture
def like_gemma(tmp_path: Path) -> Path:
    return write_like_gemma(tmp_path / "gemma", TEXTS[:2] * 5)


def test_ids_are_those_of_tokenizers_and_nothing_is_added(like_gemma: Path, tmp_path: Path) -> None:
    path = tmp_path / "run" / "tokenizer" / "tokenizer.json"
    record = adopt_tokenizer(str(like_gemma.parent), "<eos>", 1000, path)
    assert (record["separator_id"], record["left_out"]) == (1, ["<image>"])
    reference = Tokenizer.from_file(str(like_gemma))
    reference.encode_special_tokens = True
    assert not is_own_form(path)
    for text, ids in zip(TEXTS, BulkEncoder(path).encode(TEXTS), strict=True):
        expected = reference.encode(text, add_special_tokens=False).ids
        assert np.array_equal(ids, expected)
        assert 1 not in ids and 2 not in ids, "a text cannot spell the separator"
        assert read_tokenizer(path, 1000).encode(text).ids == expected
        assert read_tokenizer(path, 1000).decode(expected) == text


def test_the_separator_is_what_the_recipe_says(like_gemma: Path, tmp_path: Path) -> None:
    path = tmp_path / "run" / "tokenizer" / "tokenizer.json"
    path.parent.mkdir(parents=True)
    assert separator_of(path) == "<|endoftext|>"
    sets = [f'tokenizer={{adopt = "{like_gemma}", separator = "<eos>"}}']
    (tmp_path / "run" / "recipe.toml").write_text(Recipe.load("quickstart", sets).to_toml())
    assert separator_of(path) == "<eos>"


def test_our_own_form_goes_through_tokie(tmp_path: Path) -> None:
    train_tokenizer(["some words"] * 3, 270).save(str(tmp_path / "tokenizer.json"))
    assert is_own_form(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("change", "separator", "error", "reason"),
    [
        ({}, None, UsageError, "set tokenizer.separator"),
        ({}, "<image>", UsageError, "set tokenizer.separator"),
        (
            {"normalizer": {"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}},
            "<eos>",
            ShardError,
            "norm",
        ),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}}}, "<eos>", ShardError, "pre_tokenizer"),
        ({"model": {"type": "Unigram", "vocab": []}}, "<eos>", ShardError, "not BPE"),
        ({"added_tokens": None}, "<eos>", ShardError, "is no tokenizer.json"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    change: dict[str, Any], separator: str | None, error: type[Exception], reason: str, like_gemma: Path, tmp_path: Path
) -> None:
    parts = json.loads(like_gemma.read_text(encoding="utf-8")) | change
    like_gemma.write_text(json.dumps(parts), encoding="utf-8")
    with pytest.raises(error, match=reason) as raised:
        adopt_tokenizer(str(like_gemma), separator, 1000, tmp_path / "out" / "tokenizer.json")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_a_name_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither a tokenizer.json, nor a folder"):
        find_tokenizer(str(tmp_path / "nothing"))


def test_a_separator_belongs_to_an_adopted_tokenizer() -> None:
    with pytest.raises(UsageError, match=r"tokenizer: separator: belongs to an adopted"):
        Recipe.load("quickstart", ["tokenizer.separator=<eos>"])


@pytest.mark.parametrize("way", [KeyboardInterrupt(), InterruptedRunError("interrupted", 15)])
def test_a_stop_during_the_download_is_no_failed_download(way: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise way

    monkeypatch.setattr("huggingface_hub.hf_hub_download", stop)
    with pytest.raises(type(way)):
        find_tokenizer("someone/something")
