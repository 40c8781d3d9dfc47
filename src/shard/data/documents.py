"""From sources to clean documents, held-out ones set aside before anything is trained, the tokenizer included.

Order of work: each unit of each source is read, cleaned and compared with the test questions by itself (units.py); then
over all sources exact and near duplicates are dropped, the first source of the recipe keeping a document; then each is
held out or trained on by a hash of its group. Sources that share groups (documentation and code of the same modules)
share one threshold, so that a group is on the same side in all of them.

    data/<source>/documents/00000.parquet .json   what a unit gave
                            00000.npy             which side each document is on, or that it was dropped
                  heldout.jsonl  documents.json   the held-out documents, the ledger
"""

import json
import shutil
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shard.data.exact_duplicates import find_exact_duplicates
from shard.data.inventory import Inventory, count_needed
from shard.data.near_duplicates import find_near_duplicates
from shard.data.settings import AnySource, DataSettings, InstalledSource
from shard.data.units import EXAMPLE_CHARACTERS, RAW, Unit, UnitLedger, prepare_unit
from shard.data.workers import Workers
from shard.errors import ShardError
from shard.files import atomic_open, read_json, sha256_of, write_json
from shard.units import format_size

TRAIN, HELDOUT, LEDGER, DOCUMENTS = "train", "heldout.jsonl", "documents.json", "documents"
DROPPED, ON_TRAIN, ON_HELDOUT = 0, 1, 2
_HASHED_AT_ONCE = 2**14  # documents whose hashes are read together
_CACHED_BYTES = 2**25  # of the row groups whose texts are kept while near duplicates are compared
_ROW_BITS = 32  # of the number of a document: below them its row, above them its unit


def namespace(name: str, source: AnySource) -> str:
    """Sources of one namespace share their groups, and so their threshold."""
    return "installed" if isinstance(source, InstalledSource) else name


@dataclass
class Ledger:
    """What became of the documents of one source: read = kept + dropped, kept = train + held-out."""

    license: str
    documents_read: int = 0
    bytes_read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    """The beginning of one document dropped by each reason."""
    broken: list[str] = field(default_factory=list)
    documents: dict[str, int] = field(default_factory=lambda: {"train": 0, "heldout": 0})
    bytes: dict[str, int] = field(default_factory=lambda: {"train": 0, "heldout": 0})
    heldout_threshold: int = 0
    """Of 2**64: groups below it are held out."""
    evaluation_sets: list[str] = field(default_factory=list)
    """What the documents were compared with, so that no test question is trained on."""
    origin: dict[str, str] = field(default_factory=dict)
    """Versions of packages, or the repository and its revision."""
    units: list[str] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)


@dataclass
class _Part:
    """One unit that was prepared, and what is known of each of its documents."""

    unit: Unit
    ledger: UnitLedger
    sizes: NDArray[np.uint32]
    positions: NDArray[np.uint64]
    sides: NDArray[np.uint8]

    @classmethod
    def read(cls, unit: Unit, ledger: UnitLedger) -> "_Part":
        table = pq.read_table(unit.path, columns=["bytes", "position"], memory_map=True)
        sizes, positions = (table.column(name).to_numpy() for name in ("bytes", "position"))
        return cls(unit, ledger, sizes, positions, np.full(len(sizes), ON_TRAIN, np.uint8))

    def hashes(self, column: str) -> Iterator[NDArray[np.uint64]]:
        """A column of hashes in pieces: [documents, hashes of each]."""
        with pq.ParquetFile(self.unit.path, memory_map=True) as parquet:
            for batch in parquet.iter_batches(_HASHED_AT_ONCE, columns=[column]):
                yield batch.column(0).flatten().to_numpy().reshape(batch.num_rows, -1)


def collect_documents(
    sources: Mapping[str, AnySource],
    settings: DataSettings,
    seed: int,
    folder: Path,
    workers: Workers | None = None,
    mirror: Path | None = None,
    *,
    before: Callable[[Inventory], object] = lambda inventory: None,
    progress: Callable[[str], object] = lambda text: None,
) -> dict[str, Ledger]:
    """Write what the top of this module lists; the ledgers, by source. Units that are done are not done again.

    A kill at any moment leaves each source with no ledger, or with the whole of what its ledger lists: the old ledgers
    go first, the new ones come last. `before` is called with what there is to read, `progress` with where it stands.

    Memory: 13 bytes for each document, and what a batch of each worker takes. Raises ShardError for a source that
    cannot be read, or is too small to hold anything out.
    """
    for name in sources:
        (folder / name / LEDGER).unlink(missing_ok=True)
    inventory = Inventory.take(sources, settings, seed, folder, mirror, progress)
    before(inventory)
    parts = _prepare(sources, inventory.units, workers or Workers(), progress)
    ledgers = {name: _add_up(source, parts[name], inventory) for name, source in sources.items()}
    for name, source in sources.items():
        _limit(source.max_documents, source.most_bytes, parts[name], ledgers[name])
    everything = [part for name in sources for part in parts[name]]
    progress(f"looking for duplicates among {sum(len(part.sizes) for part in everything):,} documents")
    _drop_exact_duplicates(everything, ledgers, folder)
    _drop_near_duplicates(everything, ledgers, folder, settings.near_duplicate_threshold)
    thresholds: dict[str, int] = defaultdict(int)
    for name, source in sources.items():
        key = namespace(name, source)
        thresholds[key] = max(thresholds[key], _threshold(name, parts[name], settings))
    for name, source in sources.items():
        _split(folder / name, parts[name], ledgers[name], thresholds[namespace(name, source)])
    for name in sources:  # a source that is refused leaves no ledger of another: they were split together
        write_json(folder / name / LEDGER, vars(ledgers[name]))
    return ledgers


def read_documents(folder: Path, which: str) -> Iterator[str]:
    """The texts to train on or held out (TRAIN, HELDOUT) of one source's folder, in order."""
    if which == HELDOUT:
        with (folder / HELDOUT).open(encoding="utf-8") as file:
            yield from (json.loads(line)["text"] for line in file)
        return
    for path in unit_files(folder):
        yield from read_unit(path, ON_TRAIN)


def read_unit(path: Path, side: int) -> Iterator[str]:
    """The texts of one unit that are on a side. ShardError where its file is damaged or incomplete."""
    try:
        sides = np.load(path.with_suffix(".npy"), allow_pickle=False)
        first = 0
        with pq.ParquetFile(path, memory_map=True) as parquet:
            if len(sides) != parquet.metadata.num_rows:
                raise ValueError(f"{path.with_suffix('.npy').name} is of {len(sides)} documents")
            # Row group by row group: a batch of iter_batches may be as large as the file.
            for group in range(parquet.num_row_groups):
                num_rows = parquet.metadata.row_group(group).num_rows
                wanted = np.flatnonzero(sides[first : first + num_rows] == side)
                if len(wanted):
                    texts = parquet.read_row_group(group, columns=["text"], use_threads=False).column(0)
                    yield from texts.take(wanted).to_pylist()
                first += num_rows
    except Exception as error:  # numpy and Arrow raise many kinds for a file that is not what it should be
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ShardError(
            f"{path} is missing or damaged ({reason}): run `shard data` again, which reads it anew"
        ) from None


def unit_files(folder: Path) -> list[Path]:
    """The documents of the units that the ledger of one source's folder lists, in order."""
    names = [name for name in read_ledger(folder)["sha256"] if name.endswith(".parquet")]
    return [folder / name for name in sorted(names, key=lambda name: int(Path(name).stem))]


def is_collected(folder: Path) -> bool:
    """Whether all documents of one source are there, and as its ledger says."""
    if not (folder / LEDGER).exists():
        return False
    hashes = read_ledger(folder)["sha256"]
    return all((folder / name).is_file() and sha256_of(folder / name) == hashes[name] for name in hashes)


def read_ledger(folder: Path) -> dict[str, Any]:
    """The ledger of one source's folder."""
    ledger: dict[str, Any] = read_json(folder / LEDGER, "run `shard tokenizer` again")
    return ledger


def _prepare(
    sources: Mapping[str, AnySource],
    units: Mapping[str, list[Unit]],
    workers: Workers,
    progress: Callable[[str], object],
) -> dict[str, list[_Part]]:
    """Prepare the units; of a source with a limit no more than it takes."""
    num_read = num_bytes = 0

    def read(unit: Unit, ledger: UnitLedger) -> _Part:
        nonlocal num_read, num_bytes
        num_read, num_bytes = num_read + 1, num_bytes + ledger.bytes_read
        progress(
            f"{num_read:,} files read, {format_size(num_bytes)} of text; the last was {unit.source_name}/{unit.name}"
        )
        return _Part.read(unit, ledger)

    parts: dict[str, list[_Part]] = {name: [] for name in sources}
    limited = [name for name, source in sources.items() if source.is_limited and len(units[name]) > 1]
    free = [unit for name in sources if name not in limited for unit in units[name]]
    for unit, ledger in zip(free, workers.map(prepare_unit, free), strict=True):
        parts[unit.source_name].append(read(unit, ledger))
    for name in limited:
        parts[name] = _prepare_enough(sources[name], units[name], workers, read)
    for its_parts in parts.values():
        folder, kept = its_parts[0].unit.path.parent, {part.unit.path.stem for part in its_parts}
        for path in folder.iterdir():
            if path.stem not in kept:  # done ahead by other workers, or of text that is gone
                path.unlink()
        if not its_parts[0].unit.settings.keep_raw:
            shutil.rmtree(folder.with_name(RAW), ignore_errors=True)
    return parts


def _prepare_enough(
    source: AnySource, units: list[Unit], workers: Workers, read: Callable[[Unit, UnitLedger], _Part]
) -> list[_Part]:
    """The first units, until a limit of their source is reached: no more are begun than are likely to be needed, since
    each may be a download of gigabytes.
    """
    parts: list[_Part] = []
    num_documents = num_bytes = 0
    while len(parts) < len(units) and not source.has_enough(num_documents, num_bytes):
        rest = units[len(parts) :]
        begun = rest[: count_needed(source, (unit.likely_bytes for unit in rest), num_documents, num_bytes)]
        for unit, ledger in zip(begun, workers.map(prepare_unit, begun), strict=False):
            parts.append(read(unit, ledger))
            num_documents, num_bytes = num_documents + ledger.documents, num_bytes + ledger.bytes
            if source.has_enough(num_documents, num_bytes):
                break
    return parts


def _add_up(source: AnySource, parts: list[_Part], inventory: Inventory) -> Ledger:
    name = parts[0].unit.source_name
    ledger = Ledger(source.license, evaluation_sets=inventory.checked, origin=inventory.origins[name])
    for part in parts:
        ledger.documents_read += part.ledger.documents_read
        ledger.bytes_read += part.ledger.bytes_read
        ledger.dropped.update(part.ledger.dropped)
        ledger.examples = part.ledger.examples | ledger.examples
        ledger.broken += part.ledger.broken
        ledger.units.append(part.unit.name)
    if not any(part.ledger.documents for part in parts):
        raise ShardError(
            f"sources.{name}: no text was found ({ledger.documents_read} documents read): check the source"
        )
    return ledger


def _limit(max_documents: int | None, max_bytes: int | None, parts: list[_Part], ledger: Ledger) -> None:
    """Drop what lies beyond the limits of a source; at least its first document stays."""
    num_documents = num_bytes = 0
    for part in parts:
        numbers = num_documents + np.arange(1, len(part.sizes) + 1)
        totals = num_bytes + np.cumsum(part.sizes, dtype=np.int64)
        beyond = (numbers > (max_documents or 2**62)) | (totals > (max_bytes or 2**62))
        beyond &= numbers > 1
        part.sides[beyond] = DROPPED
        if count := int(beyond.sum()):
            ledger.dropped["beyond the limit"] += count
        num_documents, num_bytes = num_documents + len(part.sizes), num_bytes + int(part.sizes.sum(dtype=np.int64))


def _numbered(parts: list[_Part], column: str) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
    """The numbers and the hashes of the documents that are kept so far, some thousands at a time."""
    for i, part in enumerate(parts):
        first = 0
        for hashes in part.hashes(column):
            rows = np.flatnonzero(part.sides[first : first + len(hashes)] != DROPPED)
            if len(rows):
                yield (rows + first).astype(np.uint64) | np.uint64(i << _ROW_BITS), hashes[rows]
            first += len(hashes)


def _drop(parts: list[_Part], ledgers: Mapping[str, Ledger], documents: Iterable[int], reason: str) -> None:
    for document in documents:
        part = parts[document >> _ROW_BITS]
        row = document & (2**_ROW_BITS - 1)
        part.sides[row] = DROPPED
        ledger = ledgers[part.unit.source_name]
        ledger.dropped[reason] += 1
        if reason not in ledger.examples:
            ledger.examples[reason] = _Texts(parts).get([document])[0][:EXAMPLE_CHARACTERS]


def _drop_exact_duplicates(parts: list[_Part], ledgers: Mapping[str, Ledger], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = [duplicate.document for duplicate in find_exact_duplicates(_numbered(parts, "exact"), folder)]
    _drop(parts, ledgers, sorted(found), "duplicate")


def _drop_near_duplicates(parts: list[_Part], ledgers: Mapping[str, Ledger], folder: Path, threshold: float) -> None:
    looked_at = [part for part in parts if part.unit.source.near_duplicates == "drop"]
    found = find_near_duplicates(_numbered(looked_at, "bands"), _Texts(looked_at).get, folder, threshold=threshold)
    _drop(looked_at, ledgers, (duplicate.document for duplicate in found), "near duplicate")


class _Texts:
    """The texts of any documents. Those of one row group are often asked for together: the last groups stay."""

    def __init__(self, parts: list[_Part]) -> None:
        self._parts = parts
        self._opened: dict[int, tuple[Any, NDArray[np.int64]]] = {}
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._num_bytes = 0

    def get(self, documents: list[int]) -> list[str]:
        """In the order of the numbers."""
        texts = [""] * len(documents)
        for place in sorted(range(len(documents)), key=documents.__getitem__):
            number, row = documents[place] >> _ROW_BITS, documents[place] & (2**_ROW_BITS - 1)
            starts = self._open(number)[1]
            group = int(np.searchsorted(starts, row, "right")) - 1
            texts[place] = self._group(number, group)[row - int(starts[group])].as_py()
        return texts

    def _open(self, number: int) -> tuple[Any, NDArray[np.int64]]:
        """What a unit's file says of itself, and the first row of each of its row groups."""
        if number not in self._opened:
            metadata = pq.read_metadata(self._parts[number].unit.path)
            sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            self._opened[number] = metadata, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return self._opened[number]

    def _group(self, number: int, group: int) -> Any:
        key = (number, group)
        if key not in self._groups:
            path, metadata = self._parts[number].unit.path, self._open(number)[0]
            with pq.ParquetFile(path, metadata=metadata, memory_map=True) as parquet:
                self._groups[key] = parquet.read_row_group(group, columns=["text"], use_threads=False).column(0)
            self._num_bytes += self._groups[key].nbytes
            while self._num_bytes > _CACHED_BYTES and len(self._groups) > 1:
                self._num_bytes -= self._groups.popitem(last=False)[1].nbytes
        self._groups.move_to_end(key)
        return self._groups[key]


def _threshold(name: str, parts: list[_Part], settings: DataSettings) -> int:
    """The least threshold that holds out as much of a source as is asked for: halfway between two of its groups."""
    kept = [part.sides != DROPPED for part in parts]
    positions = np.concatenate([part.positions[rows] for part, rows in zip(parts, kept, strict=True)])
    sizes = np.concatenate([part.sizes[rows] for part, rows in zip(parts, kept, strict=True)]).astype(np.int64)
    target = min(settings.heldout_bytes, settings.heldout_share * int(sizes.sum()))
    groups, of_group = np.unique(positions, return_inverse=True)
    held = np.cumsum(np.bincount(of_group, weights=sizes))
    if len(groups) < 2:
        return 0
    last = min(int(np.searchsorted(held, target)), len(groups) - 2)
    return (int(groups[last]) + int(groups[last + 1]) + 1) // 2


def _split(folder: Path, parts: list[_Part], ledger: Ledger, threshold: int) -> None:
    """Set the held-out documents of a source aside, and count."""
    ledger.heldout_threshold = threshold
    with atomic_open(folder / HELDOUT, "w") as file:
        for part in parts:
            held = (part.sides != DROPPED) & (part.positions < np.uint64(threshold))
            part.sides[held] = ON_HELDOUT
            for which, side in (("train", ON_TRAIN), ("heldout", ON_HELDOUT)):
                ledger.documents[which] += int((part.sides == side).sum())
                ledger.bytes[which] += int(part.sizes[part.sides == side].sum(dtype=np.int64))
            path = part.unit.path
            with atomic_open(path.with_suffix(".npy")) as sides:
                np.save(sides, part.sides)
            for text in read_unit(path, ON_HELDOUT):
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    for which, num_documents in ledger.documents.items():
        if num_documents == 0:
            total, count = sum(ledger.bytes.values()), sum(ledger.documents.values())
            raise ShardError(
                f"sources.{parts[0].unit.source_name}: {count} document{'s' * (count != 1)} ({format_size(total)}): "
                f"too few to hold some out and train on the rest, nothing is left for {which}; give it more text"
            )
    written = [folder / HELDOUT, *(part.unit.path.with_suffix(end) for part in parts for end in (".parquet", ".npy"))]
    ledger.sha256 = {path.relative_to(folder).as_posix(): sha256_of(path) for path in written}
