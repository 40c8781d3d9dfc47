"""Tokenising unit by unit gives the shards of one stream, cut where it is asked for, and goes on where it stopped."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import altered, content_of, hub_source, moments, num_bytes, prose, text_source

from shard.data.documents import DOCUMENTS, TRAIN, collect_documents, read_documents
from shard.data.settings import AnySource, DataSettings
from shard.data.shards import LEDGER, BulkEncoder, TokenStream, read_token_ledger, write_shards
from shard.data.tokens import TOKENS, TokenUnit, tokenize_sources, tokenize_unit
from shard.data.workers import Workers
from shard.errors import ShardError
from shard.files import sha256_of
from shard.tokenizer import train_tokenizer

SEPARATOR_ID, SHARD_BYTES = 0, 1024
SETTINGS = DataSettings(heldout_bytes=1)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is lost here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(prose("text", 50), 400).save(str(path))
    return path


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two sources: one of four files, of which one gives nothing to train on, and one of one file."""
    files = {f"{i}.parquet": prose(f"file {i}", 8, 30) for i in range(4)}
    files["2.parquet"] = files["0.parquet"]
    sources: dict[str, AnySource] = {
        "web": hub_source(tmp_path / "mirror", files),
        "mine": text_source(tmp_path / "in", prose("mine", 12)),
    }
    collect_documents(sources, SETTINGS, 0, tmp_path / "data", mirror=tmp_path / "mirror")
    return {name: tmp_path / "data" / name for name in sources}


def run(
    folders: Mapping[str, Path],
    tokenizer: Path,
    max_tokens: Mapping[str, int | None] | None = None,
    workers: Workers | None = None,
    vocab_size: int = 400,
) -> dict[str, dict[str, Any]]:
    limits = dict.fromkeys(folders) | dict(max_tokens or {})
    return tokenize_sources(folders, tokenizer, vocab_size, SEPARATOR_ID, SHARD_BYTES, limits, workers or Workers())


def twin(texts: Iterable[str], tokenizer: Path, folder: Path, vocab_size: int = 400) -> dict[str, bytes]:
    write_shards(iter(texts), BulkEncoder(tokenizer), vocab_size, SEPARATOR_ID, SHARD_BYTES, folder)
    return content_of(folder)


def shards_of(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in content_of(folder).items() if name.startswith(("train-", "tokens"))}


@pytest.mark.parametrize("vocab_size", [400, 70_000])
def test_as_the_plain_twin_byte_for_byte(
    folders: dict[str, Path], tokenizer: Path, tmp_path: Path, vocab_size: int
) -> None:
    before = {name: content_of(folder) for name, folder in folders.items()}
    ledgers = run(folders, tokenizer, vocab_size=vocab_size)
    for name, folder in folders.items():
        texts = list(read_documents(folder, TRAIN))
        assert shards_of(folder) == twin(texts, tokenizer, tmp_path / "twin" / name, vocab_size)
        assert ledgers[name] == read_token_ledger(folder)
        assert ledgers[name]["documents"] == len(texts) > 10 and ledgers[name]["bytes"] == num_bytes(texts)
        assert len(ledgers[name]["shards"]) > 1
        # Nothing else has changed, and the tokens of the units are gone.
        assert content_of(folder) == before[name] | shards_of(folder)


def test_a_cut_is_at_the_end_of_a_document(folders: dict[str, Path], tokenizer: Path, tmp_path: Path) -> None:
    """The most documents that fit, wherever that is: within a unit, at its end, at that of an empty one."""
    texts = list(read_documents(folders["web"], TRAIN))
    run(folders, tokenizer)
    stream = TokenStream.open(folders["web"])
    ends = (np.flatnonzero(stream.read(0, stream.num_tokens) == SEPARATOR_ID) + 1).tolist()
    assert len(ends) == len(texts)
    last_of_units = np.cumsum(
        [int((np.load(path) == 1).sum()) for path in sorted((folders["web"] / DOCUMENTS).glob("*.npy"))]
    )
    assert last_of_units[1] == last_of_units[2]  # the empty one
    for count in sorted({1, 2, int(last_of_units[0]), *(int(last_of_units[1]) + i for i in (-1, 0, 1)), len(texts)}):
        for extra in (0, 1, -1):
            limit = ends[count - 1] + extra
            whole = count - (extra < 0)
            if whole == 0:
                continue
            ledger = run(folders, tokenizer, {"web": limit})["web"]
            expected = twin(texts[:whole], tokenizer, tmp_path / f"{count} {extra}")
            assert shards_of(folders["web"]) == expected, (count, extra)
            assert (ledger["documents"], ledger["tokens"]) == (whole, ends[whole - 1])
            assert ledger["bytes"] == num_bytes(texts[:whole]) and ledger["tokens"] <= limit
    assert read_token_ledger(folders["mine"])["documents"] == len(list(read_documents(folders["mine"], TRAIN)))


def test_a_join_adds_a_unit_in_pieces(
    folders: dict[str, Path], tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit of many shards, and shards of many units, with the limit far within."""
    texts = list(read_documents(folders["web"], TRAIN))
    for shard_bytes in (64, 2**20):
        for name in ("joined", "twin"):
            (tmp_path / f"{name} {shard_bytes}").mkdir()
        tokenize_sources({"web": folders["web"]}, tokenizer, 400, 0, shard_bytes, {"web": None}, Workers())
        write_shards(iter(texts), BulkEncoder(tokenizer), 400, 0, shard_bytes, tmp_path / f"twin {shard_bytes}")
        assert shards_of(folders["web"]) == content_of(tmp_path / f"twin {shard_bytes}")


class Encoded(list[str]):
    """The texts that were encoded."""


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Encoded:
    seen, real = Encoded(), BulkEncoder.encode

    def encode(self: BulkEncoder, texts: list[str]) -> Any:
        seen.extend(texts)
        return real(self, texts)

    monkeypatch.setattr(BulkEncoder, "encode", encode)
    return seen


def unit_of(folder: Path, number: int, tokenizer: Path, **changed: Any) -> TokenUnit:
    return TokenUnit(
        **{
            "documents": str(folder / DOCUMENTS / f"{number:05d}.parquet"),
            "tokenizer": str(tokenizer),
            "tokenizer_sha256": sha256_of(tokenizer),
            "separator_id": SEPARATOR_ID,
            "dtype": "<u2",
        }
        | changed
    )


def test_a_done_unit_is_not_encoded_again(folders: dict[str, Path], tokenizer: Path, encoded: Encoded) -> None:
    first = tokenize_unit(unit_of(folders["web"], 0, tokenizer))
    assert encoded and len(encoded) == first["documents"]
    encoded.clear()
    assert tokenize_unit(unit_of(folders["web"], 0, tokenizer)) == first
    assert encoded == []
    run(folders, tokenizer)
    assert len(encoded) == sum(len(list(read_documents(folder, TRAIN))) for folder in folders.values()) - len(
        list(read_documents(folders["web"], TRAIN))[: first["documents"]]
    )
    assert not (folders["web"] / TOKENS).exists()


def test_a_unit_is_encoded_again_where_anything_differs(
    folders: dict[str, Path], tokenizer: Path, encoded: Encoded, tmp_path: Path
) -> None:
    unit = unit_of(folders["web"], 0, tokenizer)
    ledger = tokenize_unit(unit)

    def is_encoded_again(other: TokenUnit = unit) -> bool:
        encoded.clear()
        again = tokenize_unit(other)
        size = np.dtype(other.dtype).itemsize * again["tokens"]
        return bool(encoded) and unit.path.stat().st_size == size

    assert not is_encoded_again()
    unit.path.write_bytes(unit.path.read_bytes()[:-2])
    assert is_encoded_again()
    unit.path.unlink()
    assert is_encoded_again()
    unit.path.with_suffix(".json").unlink()
    assert is_encoded_again()
    assert is_encoded_again(unit_of(folders["web"], 0, tokenizer, dtype="<u4"))
    assert is_encoded_again(unit_of(folders["web"], 0, tokenizer, separator_id=1))
    other = tmp_path / "other.json"
    train_tokenizer(prose("other", 50), 300).save(str(other))
    assert is_encoded_again(unit_of(folders["web"], 0, other))
    assert is_encoded_again()
    assert tokenize_unit(unit) == ledger
    sides = Path(unit.documents).with_suffix(".npy")
    changed = np.load(sides)
    changed[0] = 0  # dropped now
    np.save(sides, changed)
    assert is_encoded_again()
    assert tokenize_unit(unit)["documents"] == ledger["documents"] - 1


def test_killed_anywhere_it_goes_on_to_the_same_bytes(
    folders: dict[str, Path], tokenizer: Path, tmp_path: Path
) -> None:
    """A ledger is never there without the shards that it lists."""
    with moments() as state:
        count = state.watch(lambda: run(folders, tokenizer, {"web": 900}))
        whole = {name: content_of(folder) for name, folder in folders.items()}
        for moment in range(1, count + 1):
            for folder in folders.values() if moment % 2 else ():  # where shards were before, and where none were
                for path in [folder / LEDGER, *folder.glob("train-*.bin")]:
                    os.unlink(path)  # noqa: PTH108, which is not counted
            state.kill(moment, lambda: run(folders, tokenizer, {"web": 900}))
            for folder in folders.values():
                if (folder / LEDGER).exists():
                    for shard in read_token_ledger(folder)["shards"]:
                        assert sha256_of(folder / shard["file"]) == shard["sha256"], moment
            run(folders, tokenizer, {"web": 900})
            for name, folder in folders.items():
                left = {name: content for name, content in content_of(folder).items() if ".tmp" not in name}
                assert left == whole[name], moment


def test_documents_that_are_missing_or_damaged(folders: dict[str, Path], tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"gone/documents\.json is missing: run `shard tokenizer` again$"):
        run(folders | {"gone": tmp_path / "gone"}, tokenizer)
    path = folders["web"] / DOCUMENTS / "00001.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ShardError, match=r"00001\.parquet is missing or damaged .*: run `shard data` again"):
        run(folders, tokenizer)
    assert not (folders["web"] / LEDGER).exists()


# Many workers


def test_any_number_of_workers_gives_the_same_bytes(tokenizer: Path, tmp_path: Path) -> None:
    """Documents, ledgers and tokens: of a source of many files that ends early, with a broken one among them."""
    mirror = tmp_path / "mirror"
    files: dict[str, list[Any]] = {f"{i}.parquet": [*prose(f"file {i}", 6), None, "short"] for i in range(8)}
    files["3.parquet"] += [files["1.parquet"][0], altered(files["2.parquet"][1]), altered(files["0.parquet"][1])]
    sources: dict[str, AnySource] = {
        "web": hub_source(mirror, files, max_documents=6 + 6 + 9 + 2),
        "mine": text_source(tmp_path / "in", [*prose("mine", 12), files["1.parquet"][2]]),
    }
    settings = DataSettings(heldout_bytes=1, on_broken_file="skip")
    path = mirror / "datasets/someone/some/2.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    contents = []
    for count in (1, 2, 4):
        data, workers = tmp_path / str(count) / "data", Workers(count=count)
        collect_documents(sources, settings, 0, data, workers, mirror)
        run({name: data / name for name in sources}, tokenizer, {"web": 800}, workers)
        contents.append(content_of(data))
    ledger = json.loads(contents[0]["web/documents.json"])
    assert ledger["units"] == [f"{i}.parquet" for i in range(5)]
    assert [path for path in contents[0] if path.startswith("web/documents/") and ".json" in path][-1][-6:] == "4.json"
    assert ledger["dropped"] == {
        "broken row: null": 4,
        "short": 4,
        "beyond the limit": 4,
        "duplicate": 1,
        "near duplicate": 1,
    }
    assert contents[0] == contents[1] == contents[2]
