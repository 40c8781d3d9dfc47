"""Sparse targets of every token on the disk, in files of some sequences each, beside the token shards they belong to.

    data/<source>/targets/00000.safetensors .json   the targets of a unit, and its ledger, last
    data/<source>/targets.json                      what all of them are, with the hash of each

Targets belong to the sequences that pretraining cuts from the stream (sequence i is the tokens from i * length on), so
that the teacher sees what the student sees. A file holds: `starts` of each sequence among the entries, `num` of the
entries of each token, `ids` and `values` of all entries (counts of draws, or log-probabilities), and the teacher's
`entropy` at each token. A kill leaves whole units only; those are not done again.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shard.data.shards import read_token_ledger, token_dtype
from shard.distillation.entries import Entries, pad_entries
from shard.distillation.settings import DistillationSettings
from shard.errors import ShardError
from shard.files import atomic_open, read_json, sha256_of, write_json
from shard.provenance import fingerprint

TARGETS, LEDGER = "targets", "targets.json"
REMEDY = "run `shard teach` again"
_OPEN_UNITS = 64
_RECORD_KEYS = ("form", "samples", "top_k", "temperature", "bos_id", "precision")


@dataclass(frozen=True, kw_only=True)
class TargetUnit:
    """Some sequences of a source that follow one another."""

    number: int
    first: int
    last: int
    """The one after the last sequence."""

    def path(self, folder: Path) -> Path:
        """Its file below the folder of the source."""
        return folder / TARGETS / f"{self.number:05d}.safetensors"


def target_identity(
    settings: DistillationSettings, teacher_sha256: str, sequence_length: int, seed: int
) -> dict[str, Any]:
    """All that decides the targets of some tokens."""
    table = settings.model_dump(mode="json")
    used = {key: table[key] for key in _RECORD_KEYS if key not in ("samples", "top_k")}
    used |= {"width": settings.width, "teacher (sha256)": teacher_sha256}
    return used | {"sequence_length": sequence_length, "seed": seed}


def tokens_hash(folder: Path) -> str:
    """One hash over the token shards of a source."""
    return fingerprint([shard["sha256"] for shard in read_token_ledger(folder)["shards"]])


def cut_units(num_sequences: int, sequence_length: int, unit_tokens: int) -> list[TargetUnit]:
    """All sequences of a source, in units of about so many tokens."""
    step = max(1, unit_tokens // sequence_length)
    starts = range(0, num_sequences, step)
    return [TargetUnit(number=i, first=a, last=min(a + step, num_sequences)) for i, a in enumerate(starts)]


def write_unit(
    folder: Path, unit: TargetUnit, inputs: str, vocab_size: int, sequences: Iterator[Entries]
) -> dict[str, Any]:
    """Write the targets of a unit's sequences, then its ledger, which is returned."""
    from safetensors.numpy import save

    path = unit.path(folder)
    path.with_suffix(".json").unlink(missing_ok=True)
    parts = list(sequences)
    starts = np.cumsum([0, *(len(part.ids) for part in parts)], dtype=np.int64)
    num, ids, values, entropy = (np.concatenate(field) for field in zip(*parts, strict=True))
    tensors = {
        "starts": starts,
        "num": num,
        "ids": ids.astype(token_dtype(vocab_size)),
        "values": values,
        "entropy": entropy,
    }
    with atomic_open(path) as file:
        file.write(save(tensors))
    ledger = {
        "file": path.name,
        "sequences": len(parts),
        "tokens": len(num),
        "entries": len(ids),
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "inputs": inputs,
    }
    write_json(path.with_suffix(".json"), ledger)
    return ledger


def known_unit(folder: Path, unit: TargetUnit, inputs: str) -> dict[str, Any] | None:
    """The ledger of a unit that is done and whole; None where it has to be done."""
    path = unit.path(folder)
    try:
        ledger: dict[str, Any] = read_json(path.with_suffix(".json"), "it is made anew")
        is_whole = ledger["inputs"] == inputs and path.is_file() and sha256_of(path) == ledger["sha256"]
    except (ShardError, KeyError, TypeError):
        return None
    return ledger if is_whole else None


def finish(
    folder: Path, identity: dict[str, Any], units: list[dict[str, Any]], teacher: dict[str, Any]
) -> dict[str, Any]:
    """Write the ledger of all targets of a source, which is returned, and remove the files of others."""
    ledger = {
        **identity,
        "teacher": teacher,
        "tokens (sha256)": tokens_hash(folder),
        "tokens": sum(unit["tokens"] for unit in units),
        "entries": sum(unit["entries"] for unit in units),
        "bytes": sum(unit["bytes"] for unit in units),
        "sequences": sum(unit["sequences"] for unit in units),
        "units": [{key: unit[key] for key in ("file", "sequences", "sha256")} for unit in units],
    }
    kept = {Path(unit["file"]).stem for unit in units}
    for path in (folder / TARGETS).iterdir():
        if path.stem not in kept:
            path.unlink()
    write_json(folder / LEDGER, ledger)
    return ledger


def read_ledger(folder: Path) -> dict[str, Any]:
    """`folder/targets.json`, what the files are opened by checked. ShardError, one line, where it is damaged."""
    path = folder / LEDGER
    ledger: dict[str, Any] = read_json(path, REMEDY)
    units = ledger.get("units") if isinstance(ledger, dict) else None
    if not isinstance(units, list) or ledger.get("form") not in ("sampled", "top_k"):
        raise ShardError(f"{path} is damaged: it needs a form and a list of units: {REMEDY}")
    for number, unit in enumerate(units):
        if not isinstance(unit, dict) or unit.get("file") != f"{number:05d}.safetensors":
            raise ShardError(f"{path} is damaged: it lists what is no file of targets, {unit!r:.80}: {REMEDY}")
        if not isinstance(unit.get("sequences"), int) or not isinstance(unit.get("sha256"), str):
            raise ShardError(f"{path} is damaged: {unit['file']} has no number of sequences or no sha256: {REMEDY}")
    return ledger


def targets_hash(folder: Path) -> str:
    """One hash over all targets of a source. ShardError where they are not there."""
    return fingerprint([unit["sha256"] for unit in read_ledger(folder)["units"]])


class TargetStream:
    """The targets of a source, opened file by file as they are asked for; little of them is in memory.

    ShardError where the ledger is missing or damaged, or belongs to other tokens than the shards beside it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.ledger = folder, read_ledger(folder)
        if self.ledger.get("tokens (sha256)") != tokens_hash(folder):
            raise ShardError(f"{folder / LEDGER} belongs to other tokens than those in {folder}: {REMEDY}")
        self.sequence_length = int(self.ledger["sequence_length"])
        self.width, self.is_sampled = int(self.ledger["width"]), self.ledger["form"] == "sampled"
        ends = np.cumsum([unit["sequences"] for unit in self.ledger["units"]])
        self._starts = np.concatenate([[0], ends]).astype(np.int64)
        self._open: Callable[[int], _OpenUnit] = lru_cache(_OPEN_UNITS)(self._open_unit)

    def check_files(self) -> None:
        """ShardError where a file that the ledger lists is missing."""
        for unit in self.ledger["units"]:
            if not (self.folder / TARGETS / unit["file"]).is_file():
                raise ShardError(f"{self.folder / TARGETS / unit['file']} is missing: {REMEDY}")

    def _open_unit(self, number: int) -> "_OpenUnit":
        path = self.folder / TARGETS / self.ledger["units"][number]["file"]
        return _OpenUnit(path, self.sequence_length)

    def read(self, sequence: int) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """ids and probabilities [sequence_length, width] of a sequence, and the teacher's entropy at each token."""
        if not 0 <= sequence < self._starts[-1]:
            raise ShardError(f"{self.folder / LEDGER} has no sequence {sequence}: {REMEDY}")
        number = int(np.searchsorted(self._starts, sequence, side="right")) - 1
        entries = self._open(number).read(sequence - int(self._starts[number]))
        ids, values = pad_entries(entries, self.width)
        entropy = entries.entropy.astype(np.float32)
        if self.is_sampled:
            return ids, values / np.float32(self.width), entropy
        return ids, np.exp(values), entropy


class _OpenUnit:
    """One file: its arrays, mapped."""

    def __init__(self, path: Path, sequence_length: int) -> None:
        self._path, self._length = path, sequence_length
        try:
            self._arrays = _map_tensors(path)
            self._starts = np.array(self._arrays["starts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ShardError(f"{path} is missing or damaged ({type(error).__name__}): {REMEDY}") from None

    def read(self, sequence: int) -> Entries:
        first, last = int(self._starts[sequence]), int(self._starts[sequence + 1])
        tokens = slice(sequence * self._length, (sequence + 1) * self._length)
        arrays = self._arrays
        num = arrays["num"][tokens]
        if int(num.sum(dtype=np.int64)) != last - first:
            raise ShardError(f"{self._path} is damaged: its entries do not add up: {REMEDY}")
        return Entries(num, arrays["ids"][first:last], arrays["values"][first:last], arrays["entropy"][tokens])


_TYPES = {"U8": "<u1", "U16": "<u2", "U32": "<u4", "I64": "<i8", "F16": "<f2"}


def _map_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file, memory-mapped: the library itself would read the whole of a slice's tensor."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    arrays: dict[str, NDArray[Any]] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            offset = 8 + size + int(entry["data_offsets"][0])
            arrays[name] = np.memmap(path, _TYPES[entry["dtype"]], "r", offset, tuple(entry["shape"]))
    return arrays


def predict_bytes(settings: DistillationSettings, tokens: float, vocab_size: int) -> tuple[float, float]:
    """(about, at most): bytes on the disk of the targets of so many tokens."""
    id_bytes = int(token_dtype(vocab_size)[-1])
    small = 1 if settings.width < 256 else 2
    value_bytes = small if settings.form == "sampled" else 2
    fixed = small + 2  # the number of entries, and the entropy
    most = fixed + settings.width * (id_bytes + value_bytes)
    likely = most if settings.form == "top_k" else fixed + likely_entries(settings.samples) * (id_bytes + value_bytes)
    return tokens * likely, tokens * most


def likely_entries(samples: int) -> float:
    """Distinct ids among so many systematic draws, about: measured with SmolLM2-135M on English (docs/LOG.md)."""
    return float(min(samples, samples**0.75))
