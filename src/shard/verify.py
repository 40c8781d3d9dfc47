"""`shard verify`: every file of a run, a checkpoint, a data folder or a release bundle that has a hash, hashed again.

It reads only, names everything that is wrong in one pass, and opens nothing that lies outside the folder. What a killed
process left under a temporary name is no damage, nor is a stage that is not finished yet.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shard.data import documents, shards, teacher_text
from shard.data.inventory import LISTING
from shard.data.units import RAW
from shard.distillation import cache
from shard.errors import ShardError
from shard.files import read_json, sha256_of
from shard.recipe import Recipe
from shard.run import STAGES
from shard.training.checkpoint import FILES, list_steps

SUMS = "SHA256SUMS"
MAX_SUMS_BYTES = 2**22
MAX_SUMS_LINES = 10_000

_DOCUMENTS = re.compile(r"heldout\.jsonl|documents/\d{5,9}\.(parquet|npy)")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One damaged, missing or unexpected file."""

    path: str
    what: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was looked at, and what is wrong with it."""

    path: str
    kind: str
    files_checked: int
    problems: list[Problem]

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def describe(self) -> list[str]:
        """As lines of text: a summary, then one line for each problem."""
        number, damaged = self.files_checked, len(self.problems)
        summary = f"{self.path}: {number} file{'s' * (number != 1)} checked, {damaged or 'none'} damaged"
        return [summary, *(f"{problem.path}: {problem.what}" for problem in self.problems)]


def verify(path: Path) -> Report:
    """Everything that is wrong with a run, a checkpoint, a data folder or a bundle. ShardError for anything else."""
    if not path.is_dir():
        raise ShardError(f"{path} is not a folder: give a run, a checkpoint, a data folder or a release bundle")
    check = _Check(path)
    kind, function = _kind_of(path)
    function(check, path)
    problems = sorted(check.problems, key=lambda problem: problem.path)
    return Report(path=str(path), kind=kind, files_checked=len(check.checked), problems=problems)


def read_sums(bundle: Path) -> dict[str, str]:
    """SHA256SUMS of a bundle: SHA-256 by name. ShardError, by name, for a line that leads out of the bundle."""
    path = bundle / SUMS
    if not path.is_file() or not _lies_in(path, bundle):
        raise ShardError(f"{bundle} is not a release bundle: it has no {SUMS}")
    if path.stat().st_size > MAX_SUMS_BYTES:
        raise ShardError(f"{path} is damaged: it is larger than {MAX_SUMS_BYTES} bytes")
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    if len(lines) > MAX_SUMS_LINES:
        raise ShardError(f"{path} is damaged: it has more than {MAX_SUMS_LINES} lines")
    sums: dict[str, str] = {}
    for line in filter(None, lines):
        expected, _, name = line.partition("  ")
        if not _is_plain(name) or not _lies_in(bundle / name, bundle):
            raise ShardError(f"{path} lists a path outside the bundle: {name!r:.120}")
        if not _SHA256.fullmatch(expected) or name in sums:
            raise ShardError(f"{path} is damaged: {name!r:.120} has no SHA-256, or two")
        sums[name] = expected
    return sums


def _is_plain(name: str) -> bool:
    """Whether a name leads downward, by characters that any disk takes."""
    parts = name.split("/")
    return (
        name.isprintable()
        and "\\" not in name
        and all(part not in ("", ".", "..") and len(part.encode()) < 256 for part in parts)
    )


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a path stays below `folder` when links are followed."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a link to itself, a name too long
        return False


def _kind_of(path: Path) -> tuple[str, Any]:
    """What a folder is, told by any of its files: one that is missing must not hide the others."""
    if (path / SUMS).exists() or (path / "models").is_dir():
        return "bundle", _check_bundle
    if any((path / name).exists() for name in FILES):
        return "checkpoint", _check_checkpoint
    if (path / "recipe.toml").exists() or (path / "manifest.json").exists():
        return "run", _check_run
    if _is_source(path):
        return "data", _check_source
    if any(_is_source(folder) for folder in path.iterdir()):
        return "data", _check_data
    raise ShardError(f"{path} is not a run, a checkpoint, a data folder or a release bundle")


def _is_source(path: Path) -> bool:
    return any((path / name).is_file() for name in (documents.LEDGER, shards.LEDGER, documents.HELDOUT))


@dataclass
class _Check:
    """Collects what was looked at."""

    root: Path
    checked: set[Path] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, path: Path, what: str) -> None:
        found = Problem(path=str(path), what=what)
        if found not in self.problems:
            self.problems.append(found)

    def is_there(self, path: Path) -> bool:
        """Whether a file is there and may be opened."""
        self.checked.add(path)
        if not _lies_in(path, self.root):
            self.problem(path, f"leads out of {self.root}: it was not read")
        elif not path.is_file():
            self.problem(path, "is missing")
        else:
            return True
        return False

    def hash(self, path: Path, expected: Any, witness: str) -> None:
        """Compare a file with the hash that `witness` gives."""
        if self.is_there(path) and sha256_of(path) != expected:
            self.problem(path, f"is damaged: its SHA-256 is not the one in {witness}")

    def table(self, path: Path) -> dict[str, Any] | None:
        """The object of a JSON file, or None."""
        if not self.is_there(path):
            return None
        try:
            value = read_json(path, "")
        except (ShardError, RecursionError):
            value = None
        if not isinstance(value, dict):
            self.problem(path, "is damaged: it is not a JSON object")
            return None
        return value

    def hashes(self, folder: Path, witness: str, names: Iterable[str]) -> None:
        """Compare files with the table sha256 of a JSON file beside them."""
        table = self.table(folder / witness)
        hashes = table.get("sha256") if table else None
        if table is not None and not isinstance(hashes, dict):
            self.problem(folder / witness, "is damaged: it has no table sha256")
        for name in names:
            if isinstance(hashes, dict):
                self.hash(folder / name, hashes.get(name), witness)
            else:
                self.is_there(folder / name)

    def no_others(self, folder: Path, known: Iterable[str]) -> None:
        """Name what lies in a folder whose files are all known."""
        for path in sorted(folder.iterdir() if folder.is_dir() and _lies_in(folder, self.root) else ()):
            if path.name not in known and not path.name.startswith("."):
                self.problem(path, "is unexpected: nothing lists it")


def _check_run(check: _Check, run: Path) -> None:
    manifest = (check.table(run / "manifest.json") or {}) if (run / "manifest.json").exists() else {}
    _check_recipe(check, run, manifest)
    stages = manifest.get("stages", {})
    entries = {
        stage: stages[stage]
        for stage in (*STAGES, "teach")
        if isinstance(stages, dict) and isinstance(stages.get(stage), dict)
    }
    finished = [stage for stage, entry in entries.items() if entry.get("status") in ("done", "imported")]
    for stage in finished:
        outputs = entries[stage].get("outputs", {})
        for name, expected in outputs.items() if isinstance(outputs, dict) else ():
            if _is_plain(name):
                check.hash(run / name, expected, "manifest.json")
            else:
                check.problem(run / "manifest.json", f"is damaged: it lists {name!r:.120}")
    if "tokenizer" in finished:
        check.table(run / "tokenizer" / "tokenizer.json")
        check.no_others(run / "tokenizer", ("tokenizer.json", "sample.json"))
    for path in (run / "decisions.json", run / "tokenizer" / "sample.json"):
        if path.exists():
            check.table(path)
    if (run / "data").is_dir():
        _check_data(check, run / "data", is_finished="data" in finished)
    for stage in ("pretrain", "anneal"):
        _check_training(check, run / stage, entries.get(stage, {}))
    if (run / "release").is_dir():
        _check_bundle(check, run / "release")


def _check_recipe(check: _Check, run: Path, manifest: dict[str, Any]) -> None:
    path = run / "recipe.toml"
    if "recipe_sha256" in manifest:
        check.hash(path, manifest["recipe_sha256"], "manifest.json")
    elif check.is_there(path):
        try:
            Recipe.load(str(path))
        except ShardError as error:
            check.problem(path, f"is damaged: {error}")


def _check_data(check: _Check, data: Path, is_finished: bool = True) -> None:
    for folder in sorted(data.iterdir()) if _lies_in(data, check.root) else ():
        if folder.is_dir() and not folder.name.startswith("."):
            _check_source(check, folder, is_finished)


def _check_source(check: _Check, folder: Path, is_finished: bool = True) -> None:
    """The text and the shards of one source. While it is made, what has no ledger yet is no damage."""
    known = [documents.LEDGER, documents.HELDOUT, shards.LEDGER, documents.DOCUMENTS, LISTING, RAW]
    known += [teacher_text.LEDGER, teacher_text.ANSWERS]
    if (folder / teacher_text.LEDGER).exists() and (table := check.table(folder / teacher_text.LEDGER)) is not None:
        check.hash(folder / teacher_text.ANSWERS, table.get("sha256"), teacher_text.LEDGER)
    if is_finished or (folder / documents.LEDGER).exists():
        _check_documents(check, folder)
    _check_downloads(check, folder)
    if is_finished or (folder / shards.LEDGER).exists():
        _check_shards(check, folder, known)
    if (folder / cache.TARGETS).is_dir():
        _check_targets(check, folder, known)
    if is_finished:
        check.no_others(folder, known)


def _check_documents(check: _Check, folder: Path) -> None:
    """The held-out text and the units that the ledger lists, each with the ledger of its own."""
    table = check.table(folder / documents.LEDGER) or {}
    listed = table.get("sha256")
    hashes: dict[str, Any] = listed if isinstance(listed, dict) else {}
    names = [name for name in hashes if _DOCUMENTS.fullmatch(name)]
    if len(names) < len(hashes):
        check.problem(folder / documents.LEDGER, "is damaged: it lists a path that is none of a source")
    units = sorted({Path(name).stem for name in names if name != documents.HELDOUT})
    of_units = [f"{documents.DOCUMENTS}/{unit}.{end}" for unit in units for end in ("parquet", "npy")]
    check.hashes(folder, documents.LEDGER, [documents.HELDOUT, *of_units])
    for unit in units:
        path = folder / documents.DOCUMENTS / f"{unit}.json"
        ledger = check.table(path)
        if ledger is not None and ledger.get("sha256") != hashes.get(f"{documents.DOCUMENTS}/{unit}.parquet"):
            check.problem(path, f"is damaged: its SHA-256 of {unit}.parquet is not the one in {documents.LEDGER}")
    if hashes:  # else nothing says which of them belong here
        known = {f"{unit}.{end}" for unit in units for end in ("parquet", "npy", "json")}
        check.no_others(folder / documents.DOCUMENTS, known)


def _check_downloads(check: _Check, folder: Path) -> None:
    """What a repository was when the run first looked, and of its files those that are kept."""
    listing = check.table(folder / LISTING) if (folder / LISTING).exists() else None
    files = listing.get("files") if listing is not None else []
    for file in files if isinstance(files, list) else [None]:
        if not isinstance(file, dict) or not isinstance(file.get("path"), str) or not _is_plain(file["path"]):
            return check.problem(folder / LISTING, f"is damaged: it lists {file!r:.120}")
        path = folder / RAW / file["path"]
        if path.exists() and file.get("sha256") is not None:
            check.hash(path, file["sha256"], LISTING)
        elif path.exists() and check.is_there(path) and path.stat().st_size != file.get("size"):
            check.problem(path, f"is damaged: its size is not the one in {LISTING}")
    return None


def _check_shards(check: _Check, folder: Path, known: list[str]) -> None:
    if not check.is_there(folder / shards.LEDGER):
        return None
    try:
        ledger = shards.read_token_ledger(folder)
    except (ShardError, RecursionError) as error:
        known += [path.name for path in folder.glob("train-*.bin")]  # nothing says which of them belong here
        return check.problem(folder / shards.LEDGER, str(error).removeprefix(f"{folder / shards.LEDGER} "))
    for shard in ledger["shards"]:
        known.append(shard["file"])
        check.hash(folder / shard["file"], shard["sha256"], shards.LEDGER)
    return None


def _check_targets(check: _Check, folder: Path, known: list[str]) -> None:
    """A teacher's targets: each unit by the ledger of all, or while they are made by the ledger of its own."""
    known += [cache.TARGETS, cache.LEDGER]
    targets = folder / cache.TARGETS
    if not (folder / cache.LEDGER).exists():
        return None
    try:
        ledger = cache.read_ledger(folder)
    except (ShardError, RecursionError) as error:
        return check.problem(folder / cache.LEDGER, str(error).removeprefix(f"{folder / cache.LEDGER} "))
    for unit in ledger["units"]:
        check.hash(targets / unit["file"], unit["sha256"], cache.LEDGER)
        check.table((targets / unit["file"]).with_suffix(".json"))
    names = [Path(unit["file"]).stem for unit in ledger["units"]]
    return check.no_others(targets, {f"{name}.{end}" for name in names for end in ("safetensors", "json")})


def _check_training(check: _Check, folder: Path, entry: dict[str, Any]) -> None:
    checkpoints = folder / "checkpoints"
    if not _lies_in(checkpoints, check.root):
        return check.problem(checkpoints, f"leads out of {check.root}: it was not read")
    steps = list_steps(checkpoints)
    for step in steps:
        _check_checkpoint(check, checkpoints / f"step-{step:08d}")
    check.no_others(checkpoints, [f"step-{step:08d}" for step in steps])
    is_whole = entry.get("status") == "done"
    # What was trained elsewhere has its metrics there.
    begins_elsewhere = "bundle" in entry or "forked_from" in entry
    if (steps or is_whole) and entry.get("status") != "imported":
        _check_metrics(check, folder / "metrics.jsonl", 0 if begins_elsewhere else max(steps, default=0), is_whole)
    if (folder / "events.jsonl").exists():
        _read_lines(check, folder / "events.jsonl", is_whole)
    return None


def _check_metrics(check: _Check, path: Path, least: int, is_whole: bool) -> None:
    """Steps 1, 2, ... to at least the newest checkpoint; with `least` 0 they may begin later."""
    lines = _read_lines(check, path, is_whole)
    if lines is None:
        return None
    expected = 1 if least or not lines else lines[0].get("step")
    for line in lines:
        if line.get("step") != expected or not isinstance(expected, int):
            return check.problem(
                path, f"is damaged: step {line.get('step')!r:.30} stands where {expected!r:.30} should"
            )
        expected += 1
    if isinstance(expected, int) and expected - 1 < least:
        return check.problem(path, f"is damaged: it ends at step {expected - 1}, before the checkpoint of step {least}")
    return None


def _read_lines(check: _Check, path: Path, is_whole: bool) -> list[dict[str, Any]] | None:
    """The objects of a file of JSON lines; a last one that is cut off belongs to a process that was killed."""
    if not check.is_there(path):
        return None
    values: list[dict[str, Any]] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                if is_whole or line.endswith("\n"):
                    check.problem(path, f"is damaged: line {number} is not a JSON object")
                    return None
                break
            values.append(value)
    return values


def _check_checkpoint(check: _Check, folder: Path) -> None:
    check.hashes(folder, "manifest.json", FILES)
    check.no_others(folder, (*FILES, "manifest.json"))


def _check_bundle(check: _Check, bundle: Path) -> None:
    if not check.is_there(bundle / SUMS):
        return None
    try:
        sums = read_sums(bundle)
    except ShardError as error:
        return check.problem(bundle / SUMS, str(error).removeprefix(f"{bundle / SUMS} "))
    for name, expected in sums.items():
        check.hash(bundle / name, expected, SUMS)
    # Folders are not entered through links: `walk` would be led out of the bundle.
    pending = [bundle]
    while pending:
        for path in sorted(pending.pop().iterdir()):
            name = path.relative_to(bundle).as_posix()
            if path.name.startswith(".") or name in (*sums, SUMS):
                continue
            if path.is_dir() and not path.is_symlink():
                pending.append(path)
            else:
                check.problem(path, f"is unexpected: {SUMS} does not list it")
    return None
