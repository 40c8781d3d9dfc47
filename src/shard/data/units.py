"""A unit is one piece of a source, read, cleaned and looked at by itself: what one worker does, and what a restart
need not do again.

    documents/00000.parquet   the cleaned documents, and of each: its group, its place for the held-out split, and the
                              hashes by which duplicates are found
    documents/00000.json      what was read and dropped, written last: a unit without it is done again

A unit is a file of a dataset, or some local files together; installed and generated sources are one unit each. What a
unit gives depends on nothing but its settings and its input, so that any worker may do it.
"""

import hashlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shard.data.adapters import BrokenFile, BrokenRows, estimate_text, format_of, read_documents
from shard.data.cleaning import EMPTY, Cleaned, Cleaner
from shard.data.decontamination import Contamination, read_arc, read_prompts
from shard.data.document import Document
from shard.data.exact_duplicates import exact_hashes
from shard.data.hub import RemoteFile, fetch
from shard.data.installed import read_installed
from shard.data.near_duplicates import band_hashes, choose_bands, signatures
from shard.data.problems import generate_problems
from shard.data.settings import (
    AnySource,
    DataSettings,
    GeneratedSource,
    HubSource,
    InstalledSource,
    TeacherSource,
    TextSource,
)
from shard.data.teacher_text import read_answers
from shard.data.text_files import read_text_file
from shard.data.words import word_hashes
from shard.errors import ShardError
from shard.files import atomic_open, read_json, sha256_of, write_json
from shard.provenance import fingerprint

BATCH_DOCUMENTS, BATCH_BYTES = 1000, 2**22
"""Documents looked at together: at most so many, of at most about so much text."""
GROUP_DOCUMENTS = 250
"""Documents in a row group of the file: what is read to see the text of one of them."""
EXAMPLE_CHARACTERS = 200
RAW = "raw"
"""Where downloaded files are."""
_COMPRESSION = {
    "text": "zstd",
    "bytes": "zstd",
    "position": "none",
    "exact.list.element": "none",
    "bands.list.element": "none",
}


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One piece of work, complete: it can be sent to another process or machine that shares the folders."""

    source_name: str
    source: AnySource
    number: int
    name: str
    """For people: the file, or what else it is."""
    files: tuple[tuple[str, str], ...] = ()
    """Local files: path, and name within the source."""
    is_lone: bool = False
    """Whether the one local file is the whole source."""
    remote: RemoteFile | None = None
    revision: str = ""
    folder: str
    """data/<source>."""
    mirror: str | None = None
    settings: DataSettings
    seed: int
    evaluation_sets: tuple[tuple[str, str], ...] = ()
    """Files whose questions no document may hold: path and SHA-256."""

    def __str__(self) -> str:
        return f"{self.source_name}: {self.name}"

    @property
    def path(self) -> Path:
        """The cleaned documents."""
        return Path(self.folder) / "documents" / f"{self.number:05d}.parquet"

    @property
    def likely_bytes(self) -> float:
        """About how much text there is in its files."""
        if self.remote is not None:
            return estimate_text(self.remote.path, self.remote.size)
        return sum(estimate_text(path, Path(path).stat().st_size) for path, _ in self.files)

    @property
    def inputs(self) -> str:
        """A fingerprint of all that decides the result."""
        sizes = [(name, Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path, name in self.files]
        remote = self.remote and (self.remote.path, self.remote.size, self.remote.sha256)
        settings = self.settings.model_dump(mode="json")
        return fingerprint(
            self.source.model_dump(mode="json"),
            [settings[key] for key in ("near_duplicate_threshold", "on_broken_file")],
            (self.name, self.is_lone, sizes, remote, self.revision, self.seed),
            [sha256 for _, sha256 in self.evaluation_sets],  # wherever they lie
        )


@dataclass
class UnitLedger:
    """What became of the documents of one unit, before duplicates are looked for."""

    name: str
    documents_read: int = 0
    bytes_read: int = 0
    documents: int = 0
    bytes: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    """The beginning of one document by each reason."""
    broken: list[str] = field(default_factory=list)
    """Files and rows that could not be read."""
    sha256: str = ""
    inputs: str = ""

    def drop(self, reason: str, text: str) -> None:
        """Count a document that is not kept."""
        self.dropped[reason] += 1
        self.examples.setdefault(reason, text[:EXAMPLE_CHARACTERS])


def prepare_unit(unit: Unit) -> UnitLedger:
    """Do a unit, unless it is done: its documents on disk, and its ledger, which is returned."""
    ledger_path = unit.path.with_suffix(".json")
    inputs = unit.inputs
    if (known := _known(ledger_path)) and known.inputs == inputs and _is_whole(unit.path, known.sha256):
        _discard_download(unit)
        return known
    ledger_path.unlink(missing_ok=True)
    ledger = UnitLedger(unit.name, inputs=inputs)
    cleaner = None if unit.source.clean == "off" else Cleaner(unit.source.clean)
    contamination = _contamination(unit.evaluation_sets)
    bands = choose_bands(unit.settings.near_duplicate_threshold)
    with (
        closing(_read(unit, ledger)) as source,
        atomic_open(unit.path) as file,
        # Texts and hashes hardly repeat: a dictionary of them would be built in vain.
        pq.ParquetWriter(file, _schema(bands.num_bands), compression=_COMPRESSION, use_dictionary=False) as writer,
    ):
        for batch in _batches(source):
            documents = []
            for document in batch:
                ledger.documents_read += 1
                ledger.bytes_read += len(document.text.encode())
                cleaned = Cleaned(document.text) if cleaner is None else cleaner.clean(document.text)
                reason = cleaned.reason or (None if cleaned.text.strip() else EMPTY)
                if reason is not None:
                    ledger.drop(reason, document.text)
                else:
                    documents.append(Document(cleaned.text, document.group))
            words = word_hashes([document.text for document in documents])
            contaminated = dict(contamination.find(words)) if contamination else {}
            for i, origin in contaminated.items():
                ledger.drop("contaminated", f"{origin}: {documents[i].text}")
            kept = [i for i in range(len(documents)) if i not in contaminated]
            if kept:
                hashes = band_hashes(signatures(words), bands)[kept]
                table = _table([documents[i] for i in kept], hashes, unit.seed)
                writer.write_batch(table, row_group_size=GROUP_DOCUMENTS)
                ledger.documents += table.num_rows
                ledger.bytes += pc.sum(table.column("bytes")).as_py()
            if unit.source.has_enough(ledger.documents, ledger.bytes):
                break  # whatever the units before it give
    ledger.sha256 = sha256_of(unit.path)
    write_json(ledger_path, vars(ledger))
    _discard_download(unit)
    return ledger


def _known(path: Path) -> UnitLedger | None:
    """The ledger of a unit that was done; None where there is none that can be read."""
    try:
        known = UnitLedger(**read_json(path, "it is made anew"))
    except (ShardError, TypeError):
        return None
    known.dropped = Counter(known.dropped)
    return known


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256


def _discard_download(unit: Unit) -> None:
    """Also of a unit that is done: a kill may have come in between."""
    if unit.remote is not None and unit.mirror is None and not unit.settings.keep_raw:
        (Path(unit.folder) / RAW / unit.remote.path).unlink(missing_ok=True)


def position(seed: int, group: str) -> int:
    """Where a group lies among all uint64: held out below the threshold of its namespace."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest(), "little")


def _schema(num_bands: int) -> pa.Schema:
    return pa.schema(
        [
            ("text", pa.string()),
            ("bytes", pa.uint32()),
            ("position", pa.uint64()),
            ("exact", pa.list_(pa.uint64(), 2)),
            ("bands", pa.list_(pa.uint64(), num_bands)),
        ]
    )


def _table(documents: list[Document], bands: np.ndarray[Any, Any], seed: int) -> pa.RecordBatch:
    texts = [document.text for document in documents]
    columns = [
        pa.array(texts, pa.string()),
        pa.array([len(text.encode()) for text in texts], pa.uint32()),
        pa.array([position(seed, document.group) for document in documents], pa.uint64()),
        pa.FixedSizeListArray.from_arrays(pa.array(exact_hashes(texts).ravel()), 2),
        pa.FixedSizeListArray.from_arrays(pa.array(bands.ravel()), bands.shape[1]),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_schema(bands.shape[1]))


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if len(batch) >= BATCH_DOCUMENTS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read(unit: Unit, ledger: UnitLedger) -> Generator[Document, None, None]:
    source = unit.source
    match source:
        case InstalledSource():
            yield from read_installed(source.packages, source.content)
        case GeneratedSource():
            yield from generate_problems(source.max_bytes or 0, source.seed)
        case TextSource():
            for path, name in unit.files:
                yield from read_text_file(Path(path), name, format_of(source), unit.is_lone)
        case TeacherSource():
            yield from read_answers(source, Path(unit.folder))
        case HubSource():
            yield from _read_remote(unit, source, ledger)


def _read_remote(unit: Unit, source: HubSource, ledger: UnitLedger) -> Iterator[Document]:
    """The rows of one file of a repository; the file itself goes when its documents are kept."""
    assert unit.remote is not None
    mirror = Path(unit.mirror) if unit.mirror else None
    raw = fetch(source.repository, unit.revision, unit.remote, Path(unit.folder) / RAW, mirror)
    rows = BrokenRows()
    try:
        for number, text in read_documents(raw, format_of(source), rows):
            yield Document(text, f"{unit.name}#{number}")
    except BrokenFile as error:
        if unit.settings.on_broken_file == "stop":
            raise
        ledger.broken.append(str(error).replace(str(raw), unit.name))  # the same wherever the file lies
        if error.rows_lost:
            ledger.dropped["unreadable"] += error.rows_lost
            ledger.documents_read += error.rows_lost
    finally:  # also where a limit ends the reading
        ledger.broken += [example.replace(str(raw), unit.name) for example in rows.examples]
        for reason, count in rows.reasons.items():
            ledger.dropped[f"broken row: {reason}"] += count
            ledger.documents_read += count


@lru_cache(maxsize=1)
def _contamination(evaluation_sets: tuple[tuple[str, str], ...]) -> Contamination | None:
    """Built once in a process."""
    questions = []
    for path, _ in evaluation_sets:
        questions += read_arc(Path(path)) if path.endswith(".parquet") else read_prompts(Path(path))
    return Contamination.build(questions) if questions else None
