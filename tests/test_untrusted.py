"""Files that a stranger made, or a disk damaged: success or one line, in seconds, and never a gigabyte of memory.

What concerns a single reader stands beside its other tests: inference/test_plain_pickle.py, inference/test_load.py.
"""

import hashlib
import json
import os
import random
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shard.config import Config
from shard.data.documents import TRAIN, collect_documents, read_documents
from shard.data.loader import BatchLoader
from shard.data.settings import DataSettings, TextSource
from shard.data.tokenizer_sample import peak_memory
from shard.errors import ShardError
from shard.inference.load import load_model
from shard.model import ShardLM
from shard.recipe import Recipe, packaged_recipes
from shard.release.export import export_model
from shard.release.hugging_face_import import import_hugging_face, recipe_for
from shard.release.importer import check_sums, import_bundle
from shard.tokenizer import train_tokenizer
from shard.training.checkpoint import load_checkpoint, save_checkpoint
from shard.verify import Problem, verify


def problems_of(path: Path) -> list[Problem]:
    return verify(path).problems


SHAPE = Config(
    vocab_size=270, hidden_size=32, num_layers=1, num_heads=2, head_dim=16, intermediate_size=48, max_sequence_length=64
)
CPU = torch.device("cpu")


@contextmanager
def bounded() -> Iterator[None]:
    """Whatever happens inside ends soon, takes less than a gigabyte, and fails in no way but with one line."""
    before, begun = peak_memory(), time.monotonic()
    try:
        yield
    except ShardError as error:
        assert "\n" not in str(error) and 0 < len(str(error)) < 3000, str(error)
    assert time.monotonic() - begun < 10
    assert peak_memory() - before < 10**9


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut, doubled, or others put in."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        end = min(len(data), place + rng.randint(1, 12))
        match rng.randrange(4):
            case 0:
                data[place:end] = bytes(rng.randrange(256) for _ in range(end - place))
            case 1:
                del data[place:end]
            case 2:
                data[place:place] = rng.choice(
                    [b"9" * 30, b"-1", b"[" * 50, b"null", b'"', b"{}", b"\0", b"\xff", b"1e999"]
                )
            case _:
                data[place:place] = data[place:end] * rng.randint(1, 3)
    return bytes(data)


# Recipes

RECIPES = [text.encode() for text in packaged_recipes().values()]


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(RECIPES), st.randoms(use_true_random=False))
def test_a_mutated_recipe(tmp_path_factory: pytest.TempPathFactory, recipe: bytes, rng: random.Random) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.toml"
    path.write_bytes(mutate(recipe, rng))
    with bounded():
        Recipe.load(str(path)).to_toml()


# Checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The part of a run that `shard generate` reads."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    weights = ShardLM(SHAPE).state_dict()
    state = {"config": SHAPE.to_dict(), "stage": "pretrain", "tokens": 1, "seconds": 0.0, "fingerprint": "x"}
    save_checkpoint(folder / "pretrain" / "checkpoints", 3, weights, {"a": torch.ones(3)}, state)
    (folder / "tokenizer").mkdir()
    train_tokenizer(["some text of words"] * 2, 270).save(str(folder / "tokenizer" / "tokenizer.json"))
    return folder


def with_sums(folder: Path) -> None:
    """The hashes made anew, so that the damage goes past them."""
    names = ("model.safetensors", "optimizer.safetensors", "state.json")
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "manifest.json").write_text(json.dumps({"sha256": sums}))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_mutated_checkpoint(run: Path, name: str) -> None:
    path = run / "pretrain" / "checkpoints" / "step-00000003" / name
    whole, rng = path.read_bytes(), random.Random(name)
    head = 8 + struct.unpack("<Q", whole[:8])[0] if name.endswith(".safetensors") else len(whole)
    outcomes = set()
    for i in range(50):
        # The first eight bytes are the length of what follows: sometimes they are left as they are.
        start = 8 * (i % 2) if head < len(whole) else 0
        path.write_bytes(whole[:start] + mutate(whole[start:head], rng) + whole[head:])
        if name != "manifest.json":
            with_sums(path.parent)
        outcome = "refused"
        with bounded():
            load_model(run, torch.float32, CPU)
            outcome = "loaded"
        outcomes.add(outcome)
    path.write_bytes(whole)
    with_sums(path.parent)
    assert "refused" in outcomes
    load_model(run, torch.float32, CPU)  # else every refusal above could have another reason


@pytest.mark.parametrize("size", [2**62, 2**40, 10**8, 99_999_999])
def test_a_safetensors_header_that_claims_more_than_the_file(run: Path, tmp_path: Path, size: int) -> None:
    folder = save_checkpoint(tmp_path, 3, ShardLM(SHAPE).state_dict(), {}, {"config": SHAPE.to_dict()})
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + b'{"a":1}')
    with_sums(folder)
    with bounded(), pytest.raises(ShardError):
        load_checkpoint(folder)


# Token shards


def write_source(folder: Path) -> bytes:
    folder.mkdir()
    tokens = np.arange(64, dtype="<u2").tobytes()
    (folder / "train-00000.bin").write_bytes(tokens)
    shard = {"file": "train-00000.bin", "tokens": 64, "sha256": hashlib.sha256(tokens).hexdigest()}
    ledger = {"dtype": "<u2", "documents": 1, "bytes": 100, "tokens": 64, "shards": [shard], "bytes_per_token": 1.5}
    (folder / "tokens.json").write_text(json.dumps(ledger))
    return json.dumps(ledger).encode()


def test_a_mutated_ledger_of_tokens(tmp_path: Path) -> None:
    ledger, rng = write_source(tmp_path / "a"), random.Random(1)
    for _ in range(200):
        (tmp_path / "a" / "tokens.json").write_bytes(mutate(ledger, rng))
        with bounded():
            loader = BatchLoader(tmp_path, {"a": 1.0}, 8, 16, 4, seed=0, vocab_size=64)
            loader.batch(0)
            loader.close()
        with bounded():
            problems_of(tmp_path / "a")


# Bundles


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    (folder / "models").mkdir(parents=True)
    weights = {name: p.bfloat16() for name, p in ShardLM(SHAPE).state_dict().items()}
    content = {"model": weights, "cfg": SHAPE.to_dict(), "optimizer": {}, "step": 1, "tokens": 1}
    for name in ("model.pt", "pretrain.pt"):
        torch.save(content, folder / "models" / name)
    train_tokenizer(["some text of words"] * 2, 270).save(str(folder / "models" / "tokenizer.json"))
    (folder / "SHA256SUMS").write_text(sums_of(folder))
    return folder


def sums_of(folder: Path) -> str:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder)}\n" for p in files)


HASH = "0" * 64


@pytest.fixture(scope="module")
def documents_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `data` of a run with one source, `text`."""
    folder, rng = tmp_path_factory.mktemp("documents"), random.Random(0)
    (folder / "text").mkdir()
    for i in range(20):
        (folder / "text" / f"{i}.txt").write_text(" ".join(str(rng.randrange(10**6)) for _ in range(100)))
    sources = {"text": TextSource(kind="text", path=str(folder / "text"))}
    collect_documents(sources, DataSettings(evaluation_sets=()), 0, folder / "data")
    return folder / "data"


@pytest.mark.parametrize(
    "name", ["documents.json", "documents/00000.json", "documents/00000.npy", "documents/00000.parquet"]
)
def test_mutated_documents(documents_of_a_run: Path, tmp_path: Path, name: str) -> None:
    data = Path(shutil.copytree(documents_of_a_run, tmp_path / "data"))
    path, rng = data / "text" / name, random.Random(name)
    whole = path.read_bytes()
    assert problems_of(data / "text")[1:] == [], "there are no tokens yet"
    for _ in range(100):
        mutated = mutate(whole, rng)
        path.write_bytes(mutated)
        with bounded():
            problems = problems_of(data)
            if path.suffix in (".npy", ".parquet") and mutated != whole:
                assert str(path) in {problem.path for problem in problems}
        if path.suffix == ".parquet":
            with bounded():
                list(read_documents(data / "text", TRAIN))


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        (f"{HASH}  ../secret\n", r"lists a path outside the bundle: '\.\./secret'"),
        (f"{HASH}  models/../../secret\n", "lists a path outside the bundle"),
        (f"{HASH}  /etc/passwd\n", "lists a path outside the bundle: '/etc/passwd'"),
        (f"{HASH}  link\n", "lists a path outside the bundle: 'link'"),
        (f"{HASH}  loop\n", "lists a path outside the bundle: 'loop'"),
        (f"{HASH}  a\0b\n", "lists a path outside the bundle"),
        (f"{HASH}  {'x' * 300}\n", "lists a path outside the bundle"),
        (f"{HASH}  \n", "lists a path outside the bundle"),
        ("no sums at all\n", "lists a path outside the bundle"),
        (f"short  {'models/model.pt'}\n", "has no SHA-256, or two"),
        (f"{HASH}  a\n{HASH}  a\n", "has no SHA-256, or two"),
        (f"{HASH}  gone\n", "gone is missing from the bundle"),
        (f"{HASH}  models/model.pt\n", r"model\.pt is damaged"),
        ("\n" * 10**5, "more than 10000 lines"),
        ("x" * 5_000_000, "is larger than"),
    ],
)
def test_sums_that_lead_out_or_say_nothing(bundle: Path, tmp_path: Path, sums: str, message: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (bundle / "link").symlink_to(tmp_path / "secret")
    (bundle / "loop").symlink_to(bundle / "loop")
    check_sums(bundle)
    (bundle / "SHA256SUMS").write_text(sums)
    with bounded(), pytest.raises(ShardError, match=message) as caught:
        check_sums(bundle)
    assert "\n" not in str(caught.value)
    assert problems_of(bundle)


class Bomb:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("hide", [lambda bomb: bomb, lambda bomb: {"model": {"a": [bomb]}, "cfg": {}}])
def test_a_bundle_whose_model_is_a_program(bundle: Path, tmp_path: Path, hide: Callable[[Bomb], Any]) -> None:
    recipe = Recipe.load("quickstart")
    for name in ("model.pt", "pretrain.pt"):
        torch.save(hide(Bomb(tmp_path / "ran")), bundle / "models" / name)
    (bundle / "SHA256SUMS").write_text("")
    (bundle / "SHA256SUMS").write_text(sums_of(bundle).replace(f"{hashlib.sha256(b'').hexdigest()}  SHA256SUMS\n", ""))
    check_sums(bundle)  # the sums are the stranger's own
    with pytest.raises(
        ShardError, match=r"model\.pt is damaged or not a plain bundle file: .* asks for (posix|os).system"
    ):
        load_model(bundle, torch.float32, CPU)
    with pytest.raises(ShardError, match=r"pretrain\.pt is damaged or not a plain bundle file"):
        import_bundle(bundle, tmp_path / "run", recipe)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["model.pt", "tokenizer.json"])
def test_a_mutated_bundle(bundle: Path, name: str) -> None:
    path, rng = bundle / "models" / name, random.Random(name)
    whole = path.read_bytes()
    for _ in range(100):
        path.write_bytes(mutate(whole, rng))
        with bounded():
            load_model(bundle, torch.float32, CPU)
    path.write_bytes(whole)
    load_model(bundle, torch.float32, CPU)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_mutated_hugging_face_folder(bundle: Path, tmp_path: Path, name: str) -> None:
    folder, rng = tmp_path / "hf", random.Random(name)
    assert export_model(bundle, "hf", folder)["dtype"] == "bf16"
    sets = [f"{stage}.sequence_length=32" for stage in ("pretrain", "anneal")]

    def load(number: int) -> None:
        recipe = recipe_for(folder, "quickstart", sets, None)
        import_hugging_face(folder, tmp_path / f"run-{number}", recipe)

    path = folder / name
    whole = path.read_bytes()
    for number in range(100):
        # Of weights the header alone says anything.
        path.write_bytes(mutate(whole[:2000], rng) + whole[2000:])
        with bounded():
            load(number)
    path.write_bytes(whole)
    load(100)
