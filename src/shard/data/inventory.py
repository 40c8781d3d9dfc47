"""What there is to read: the units of each source, the revision of each repository, and the test questions."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shard.data.adapters import pattern_of
from shard.data.hub import Listing, RemoteFile, fetch, list_files
from shard.data.installed import package_versions
from shard.data.settings import (
    AnySource,
    DataSettings,
    HubSource,
    InstalledSource,
    Source,
    TeacherSource,
    TextSource,
)
from shard.data.teacher_text import ask_teacher
from shard.data.text_files import find_text_files, name_of
from shard.data.units import Unit
from shard.errors import ShardError
from shard.files import read_json, sha256_of, write_json
from shard.provenance import fingerprint

LIKELY_DOCUMENT_BYTES = 2000
"""Text of a document, about, where a source is limited by their number."""
UNIT_BYTES = 2**26
"""Local files are put together into units of about so much."""
KNOWN_EVALUATION_SETS: dict[str, tuple[str, ...]] = {
    "allenai/ai2_arc": ("*/validation-*.parquet", "*/test-*.parquet"),
}
"""Repository -> its files of test questions."""
LISTING = "listing.json"


@dataclass
class Inventory:
    """All units by source; where each source is from; and what its documents are compared with."""

    units: dict[str, list[Unit]] = field(default_factory=dict)
    origins: dict[str, dict[str, str]] = field(default_factory=dict)
    checked: list[str] = field(default_factory=list)

    @classmethod
    def take(
        cls,
        sources: Mapping[str, AnySource],
        settings: DataSettings,
        seed: int,
        folder: Path,
        mirror: Path | None,
        progress: Callable[[str], object] = lambda text: None,
    ) -> "Inventory":
        """Look at every source. The first look at a repository pins its revision and files for the life of the run; a
        teacher is asked for its documents.
        """
        inventory = cls()
        is_online = mirror is not None or any(isinstance(source, HubSource) for source in sources.values())
        sets = _evaluation_files(settings, folder.parent / "evaluation-sets", mirror, is_online)
        inventory.checked = [name for name, _ in sets]
        hashes = tuple((str(path), sha256_of(path)) for _, path in sets)
        for name, source in sources.items():
            common: dict[str, Any] = {
                "source_name": name,
                "source": source,
                "folder": str(folder / name),
                "mirror": str(mirror) if mirror else None,
                "settings": settings,
                "seed": seed,
                "evaluation_sets": hashes,
            }
            inventory.origins[name] = {}
            match source:
                case HubSource():
                    listing = _listing(
                        source.repository, source.revision, pattern_of(source), folder / name / LISTING, mirror
                    )
                    inventory.origins[name] = {"repository": source.repository, "revision": listing.revision}
                    remote = in_turns(listing.files) if source.is_limited else listing.files
                    inventory.units[name] = [
                        Unit(**common, number=i, name=file.path, remote=file, revision=listing.revision)
                        for i, file in enumerate(remote)
                    ]
                case TeacherSource():
                    inventory.origins[name] = {"endpoint": source.endpoint, "model": source.model}
                    answers = ask_teacher(name, source, folder / name, progress)
                    files = ((str(answers), answers.name),)
                    inventory.units[name] = [Unit(**common, number=0, name=answers.name, files=files)]
                case TextSource():
                    inventory.units[name] = _text_units(source, common)
                case _:
                    if isinstance(source, InstalledSource):
                        inventory.origins[name] = package_versions(source.packages)
                    versions = fingerprint(inventory.origins[name])
                    inventory.units[name] = [Unit(**common, number=0, name=name, revision=versions)]
        return inventory


def count_needed(source: Source, likely_bytes: Iterable[float], num_documents: int = 0, num_bytes: int = 0) -> int:
    """How many of the next files, with about so much text each, it is likely to take to a limit of their source, after
    so many documents with so much text: at least one.
    """
    more_documents = (source.max_documents or math.inf) - num_documents
    wanted = min((source.most_bytes or math.inf) - num_bytes, more_documents * LIKELY_DOCUMENT_BYTES)
    count = 0
    for likely in likely_bytes:
        count += 1
        wanted -= likely
        if wanted <= 0:
            break
    return count


def in_turns(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """One file of each folder, then the second of each, ...: what is read of a source with a limit holds some of all
    its parts, not the whole of the first.
    """
    number_in_folder: Counter[str] = Counter()
    keys = {}
    for file in files:
        folder = file.path.rpartition("/")[0]
        keys[file] = (number_in_folder[folder], file.path)
        number_in_folder[folder] += 1
    return sorted(keys, key=lambda file: keys[file])


def _text_units(source: TextSource, common: dict[str, Any]) -> list[Unit]:
    root = Path(source.path)
    files = find_text_files(root)
    groups: list[list[Path]] = []
    size = UNIT_BYTES
    for file in files:
        if size >= UNIT_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.stat().st_size
    return [
        Unit(
            **common,
            number=i,
            name=name_of(group[0], root) + (f" and {len(group) - 1} more" if len(group) > 1 else ""),
            files=tuple((str(file), name_of(file, root)) for file in group),
            is_lone=len(files) == 1,
        )
        for i, group in enumerate(groups)
    ]


def _listing(
    repository: str, revision: str | None, pattern: str | tuple[str, ...], path: Path, mirror: Path | None
) -> Listing:
    """The files of a repository as they were when the run first looked; kept in `path`."""
    if path.exists():
        known = read_json(path, "delete it: the repository is listed anew")
        return Listing(known["revision"], [RemoteFile(**file) for file in known["files"]])
    listing = list_files(repository, revision, pattern, mirror)
    files = [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in listing.files]
    write_json(path, {"repository": repository, "revision": listing.revision, "files": files})
    return listing


def _evaluation_files(
    settings: DataSettings, folder: Path, mirror: Path | None, is_online: bool
) -> list[tuple[str, Path]]:
    """(name for the card, file) of the test questions. A repository is asked only where the run uses the hub anyway."""
    found: list[tuple[str, Path]] = []
    for name in settings.evaluation_sets:
        if name in KNOWN_EVALUATION_SETS:
            if not is_online or (mirror is not None and not (mirror / "datasets" / name).is_dir()):
                continue
            patterns = KNOWN_EVALUATION_SETS[name]
            if mirror is not None:  # which is read where it is, and leaves nothing in the run
                listing = list_files(name, None, patterns, mirror)
            else:
                listing = _listing(name, None, patterns, folder / name / LISTING, None)
            for file in listing.files:
                path = fetch(name, listing.revision, file, folder / name, mirror)
                found.append((f"{name}/{file.path} ({listing.revision[:12]})", path))
        elif Path(name).suffix in (".jsonl", ".parquet") and Path(name).is_file():
            found.append((name, Path(name)))
        else:
            known = ", ".join(KNOWN_EVALUATION_SETS)
            raise ShardError(
                f"data.evaluation_sets: {name!r} is neither a .jsonl or .parquet file that is there nor one of {known}"
            )
    return found
