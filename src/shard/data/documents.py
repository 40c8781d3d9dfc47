"""From sources to clean documents, held-out ones set aside before anything is trained, the tokenizer included.

Order of work: read every source, drop empty documents and exact duplicates (over all sources; the first source of
the recipe keeps a document), then split by a hash of each document's group. Sources that share groups (documentation
and code of the same modules) share one threshold, so that a group is on the same side in all of them.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from shard.data.document import Document
from shard.data.installed import package_versions, read_installed
from shard.data.problems import generate_problems
from shard.data.settings import (
    AnySource,
    DataSettings,
    GeneratedSource,
    HubSource,
    InstalledSource,
    TextSource,
)
from shard.data.text_files import read_text_files
from shard.errors import ShardError
from shard.files import atomic_open, read_json, sha256_of, write_json
from shard.units import format_size

TRAIN, HELDOUT, LEDGER = "train.jsonl", "heldout.jsonl", "documents.json"
WHOLE = "all.jsonl"
"""Both sides of a source before they are divided; gone when the ledger is there."""


def read_source(name: str, source: AnySource) -> Iterator[Document]:
    """Every document of a source, in a fixed order. Raises ShardError where the source cannot be read."""
    match source:
        case InstalledSource():
            return read_installed(source.packages, source.content)
        case GeneratedSource():
            return generate_problems(source.max_bytes or 0, source.seed)
        case TextSource():
            return read_text_files(Path(source.path), source.text_column)
        case HubSource():
            return refuse_hub_source(name, source)


def refuse_hub_source(name: str, source: HubSource) -> NoReturn:
    """ShardError: this version reads no datasets of the hub."""
    raise ShardError(
        f"sources.{name}: datasets of the hub ({source.repository}) are not read in this version: "
        "train on local text with --data PATH"
    )


def namespace(name: str, source: AnySource) -> str:
    """Sources of one namespace share their groups, and so their threshold."""
    return "installed" if isinstance(source, InstalledSource) else name


def position(seed: int, group: str) -> float:
    """Where a group lies in [0, 1): held out below the threshold of its namespace."""
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


@dataclass
class Ledger:
    """What became of the documents of one source: read = kept + dropped, kept = train + held-out."""

    license: str
    documents_read: int = 0
    bytes_read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    documents: dict[str, int] = field(default_factory=lambda: {"train": 0, "heldout": 0})
    bytes: dict[str, int] = field(default_factory=lambda: {"train": 0, "heldout": 0})
    heldout_threshold: float = 0.0
    sha256: dict[str, str] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)


def collect_documents(
    sources: Mapping[str, AnySource], settings: DataSettings, seed: int, folder: Path
) -> dict[str, Ledger]:
    """Write `folder/<source>/{train.jsonl,heldout.jsonl,documents.json}`; the ledgers, by source.

    A kill at any moment leaves each source with no ledger, or with the whole of what its ledger lists: the old ledgers
    go first, the new ones come last.

    Memory: 16 bytes for each document and some 100 for each group. Raises ShardError for a source that cannot be
    read, or is too small to hold anything out.
    """
    for name in sources:
        for stale in (LEDGER, WHOLE):  # the second from a process that was killed
            (folder / name / stale).unlink(missing_ok=True)
    ledgers = {name: Ledger(source.license) for name, source in sources.items()}
    seen: set[bytes] = set()
    sizes = {name: _read_and_deduplicate(name, source, ledgers[name], seen, folder) for name, source in sources.items()}
    thresholds: dict[str, float] = defaultdict(float)
    for name, source in sources.items():
        target = min(settings.heldout_bytes, settings.heldout_share * sum(sizes[name].values()))
        key = namespace(name, source)
        thresholds[key] = max(thresholds[key], _threshold(sizes[name], target, seed))
    for name, source in sources.items():
        _split(name, ledgers[name], thresholds[namespace(name, source)], seed, folder)
        if isinstance(source, InstalledSource):
            ledgers[name].origin = package_versions(source.packages)
    for name in sources:  # a source that is refused leaves no ledger of another: they were split together
        write_json(folder / name / LEDGER, vars(ledgers[name]))
    return ledgers


def read_documents(folder: Path, which: str) -> Iterator[str]:
    """The texts of `train.jsonl` or `heldout.jsonl` of one source's folder."""
    with (folder / which).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def read_ledger(folder: Path) -> dict[str, Any]:
    """The ledger of one source's folder."""
    ledger: dict[str, Any] = read_json(folder / LEDGER, "run `shard tokenizer` again")
    return ledger


def _read_and_deduplicate(
    name: str, source: AnySource, ledger: Ledger, seen: set[bytes], folder: Path
) -> dict[str, int]:
    """Write `folder/<name>/all.jsonl`; the bytes of each group that was kept."""
    sizes: dict[str, int] = defaultdict(int)
    total = 0
    with atomic_open(folder / name / WHOLE, "w") as file:
        for document in read_source(name, source):
            text = document.text
            num_bytes = len(text.encode())
            if source.max_bytes is not None and total + num_bytes > source.max_bytes and total > 0:
                break
            ledger.documents_read += 1
            ledger.bytes_read += num_bytes
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if not text.strip():
                ledger.dropped["empty"] += 1
            elif digest in seen:
                ledger.dropped["duplicate"] += 1
            else:
                seen.add(digest)
                total += num_bytes
                sizes[document.group] += num_bytes
                file.write(json.dumps({"text": text, "group": document.group}, ensure_ascii=False) + "\n")
    if not sizes:
        raise ShardError(
            f"sources.{name}: no text was found ({ledger.documents_read} documents read): check the source"
        )
    return sizes


def _threshold(sizes: Mapping[str, int], target: float, seed: int) -> float:
    """The least threshold that holds out at least `target` bytes of these groups."""
    held = 0
    order = sorted((position(seed, group), size) for group, size in sizes.items())
    for i, (_, size) in enumerate(order[:-1]):
        held += size
        if held >= target:
            return (order[i][0] + order[i + 1][0]) / 2
    return order[-1][0] if len(order) > 1 else 0.0


def _split(name: str, ledger: Ledger, threshold: float, seed: int, folder: Path) -> None:
    """Divide all.jsonl into train.jsonl and heldout.jsonl, and count."""
    ledger.heldout_threshold = threshold
    whole = folder / name / WHOLE
    with (
        whole.open(encoding="utf-8") as lines,
        atomic_open(folder / name / TRAIN, "w") as train,
        atomic_open(folder / name / HELDOUT, "w") as heldout,
    ):
        for line in lines:
            document = json.loads(line)
            side, file = ("heldout", heldout) if position(seed, document["group"]) < threshold else ("train", train)
            file.write(line)
            ledger.documents[side] += 1
            ledger.bytes[side] += len(document["text"].encode())
    whole.unlink()
    for side, num_documents in ledger.documents.items():
        if num_documents == 0:
            total, count = sum(ledger.bytes.values()), sum(ledger.documents.values())
            raise ShardError(
                f"sources.{name}: {count} document{'s' * (count != 1)} ({format_size(total)}): too few to hold some "
                f"out and train on the rest, nothing is left for {side}; give it more text"
            )
    ledger.sha256 = {which: sha256_of(folder / name / which) for which in (TRAIN, HELDOUT)}
