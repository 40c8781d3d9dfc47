"""Tokenising: unit by unit, at as many places as there are workers, then joined into shards of one size.

    data/<source>/tokens/00000.bin .json   the tokens of the documents to train on of one unit, and its ledger, last
    data/<source>/train-00000.bin          the shards, and tokens.json; the units' tokens are deleted then

Memory: 512 documents at a time in each worker, and one shard where they are joined.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from shard.data.documents import DOCUMENTS, ON_TRAIN, read_unit, unit_files
from shard.data.shards import BulkEncoder, ShardWriter, encode_stream, token_dtype
from shard.data.workers import Workers
from shard.errors import ShardError
from shard.files import atomic_open, read_json, sha256_of, write_json
from shard.provenance import fingerprint

TOKENS = "tokens"


@dataclass(frozen=True, kw_only=True)
class TokenUnit:
    """One unit to be tokenised, complete: it can be sent to another process or machine that shares the folders."""

    documents: str
    """The .parquet of the unit."""
    tokenizer: str
    tokenizer_sha256: str
    separator_id: int
    dtype: str

    @property
    def path(self) -> Path:
        """The tokens."""
        documents = Path(self.documents)
        return documents.parent.with_name(TOKENS) / f"{documents.stem}.bin"


def tokenize_unit(unit: TokenUnit) -> dict[str, Any]:
    """Do a unit, unless it is done: its tokens on disk, and its ledger (documents, bytes, tokens)."""
    documents, ledger_path = Path(unit.documents), unit.path.with_suffix(".json")
    sides = documents.with_suffix(".npy")
    inputs = fingerprint(sha256_of(documents), sha256_of(sides), unit.tokenizer_sha256, unit.separator_id, unit.dtype)
    if ledger_path.exists() and unit.path.exists():
        known: dict[str, Any] = read_json(ledger_path, "delete it")
        if known["inputs"] == inputs and unit.path.stat().st_size == known["tokens"] * np.dtype(unit.dtype).itemsize:
            return known
    ledger_path.unlink(missing_ok=True)
    ledger: dict[str, Any] = {"documents": 0, "bytes": 0, "tokens": 0, "inputs": inputs}
    encoder = _encoder(unit.tokenizer, unit.tokenizer_sha256)
    with atomic_open(unit.path) as file:
        for tokens, num_documents, num_bytes in encode_stream(
            read_unit(documents, ON_TRAIN), encoder, unit.separator_id
        ):
            file.write(tokens.astype(unit.dtype).tobytes())
            ledger["documents"] += num_documents
            ledger["bytes"] += num_bytes
            ledger["tokens"] += len(tokens)
    write_json(ledger_path, ledger)
    return ledger


def tokenize_sources(
    folders: Mapping[str, Path],
    tokenizer: Path,
    vocab_size: int,
    separator_id: int,
    shard_bytes: int,
    max_tokens: Mapping[str, int | None],
    workers: Workers,
    progress: Callable[[str], object] = lambda text: None,
) -> dict[str, dict[str, Any]]:
    """Write the shards and the ledger of every source (name -> its folder); the ledgers. Units that are done are not
    done again.
    """
    common: dict[str, Any] = {
        "tokenizer": str(tokenizer),
        "tokenizer_sha256": sha256_of(tokenizer),
        "separator_id": separator_id,
        "dtype": token_dtype(vocab_size),
    }
    units = {
        name: [TokenUnit(documents=str(path), **common) for path in unit_files(folder)]
        for name, folder in folders.items()
    }
    for name, its_units in units.items():
        if not its_units:
            raise ShardError(f"{folders[name] / DOCUMENTS} has no documents: run `shard tokenizer` again")
    done = workers.map(tokenize_unit, [unit for its_units in units.values() for unit in its_units])
    ledgers = {}
    for name, folder in folders.items():
        parts = []
        for unit, ledger in zip(units[name], islice(done, len(units[name])), strict=True):
            parts.append((unit, ledger))
            progress(f"tokenising {name}, {len(parts):,} of {len(units[name]):,} files")
        ledgers[name] = _join(folder, parts, shard_bytes, max_tokens[name])
        shutil.rmtree(folder / TOKENS)
    return ledgers


def _join(
    folder: Path, parts: list[tuple[TokenUnit, dict[str, Any]]], shard_bytes: int, max_tokens: int | None
) -> dict[str, Any]:
    """The tokens of all units as shards; not beyond the last document that ends within `max_tokens`."""
    writer = ShardWriter(folder, parts[0][0].dtype, shard_bytes)
    num_documents = num_bytes = num_tokens = 0
    for unit, ledger in parts:
        # Mapped, and added in pieces: a unit may be larger than a shard.
        tokens = np.memmap(unit.path, dtype=unit.dtype, mode="r") if ledger["tokens"] else np.empty(0, unit.dtype)
        documents, size = ledger["documents"], ledger["bytes"]
        if max_tokens is not None and num_tokens + len(tokens) > max_tokens:
            ends = np.flatnonzero(tokens == unit.separator_id) + 1
            documents = int(np.searchsorted(ends, max_tokens - num_tokens, "right"))
            tokens = tokens[: ends[documents - 1] if documents else 0]
            kept = islice(read_unit(Path(unit.documents), ON_TRAIN), documents)
            size = sum(len(text.encode()) for text in kept)
        for start in range(0, len(tokens), 2**22):
            writer.add(tokens[start : start + 2**22])
        num_documents, num_bytes, num_tokens = num_documents + documents, num_bytes + size, num_tokens + len(tokens)
        if not num_tokens and documents < ledger["documents"]:
            raise ShardError(f"{folder}: max_tokens = {max_tokens} is less than the first document has: raise it")
        if documents < ledger["documents"]:
            break
    return writer.finish(num_documents, num_bytes)


@lru_cache(maxsize=1)
def _encoder(path: str, sha256: str) -> BulkEncoder:
    """Loaded once in a process."""
    return BulkEncoder(Path(path))
