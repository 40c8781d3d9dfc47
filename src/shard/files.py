"""Files that are never half-written: write to a temporary name, flush to disk, rename."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from shard.errors import ShardError


def sync_folder(folder: Path) -> None:
    """Make the names in a folder (a rename) durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


writer = ""
"""A part of the names of temporary files. One process at a time writes a file of a run (see lock.py), so that they need
no process in them; where that cannot be promised (workers on other machines), set it to something of this process.
"""


def temporary_path(path: Path) -> Path:
    """Where a file or a folder is made before it takes its name: hidden, and known by its name after a kill."""
    return path.with_name(f".{path.name}{writer}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left under temporary names, at any depth. Only names are looked at.

    Folders named `checkpoints` are left to training/checkpoint.py: what lies there may be the only copy.
    """
    for place, folders, files in os.walk(folder):
        for name in folders[:]:
            if name == "checkpoints":
                folders.remove(name)
            elif _is_temporary(name):
                folders.remove(name)
                shutil.rmtree(Path(place, name), ignore_errors=True)
        for name in filter(_is_temporary, files):
            Path(place, name).unlink(missing_ok=True)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


@contextmanager
def atomic_open(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears under its name, complete and on disk, when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
        with temporary.open(mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically."""
    with source.open("rb") as content, atomic_open(target) as file:
        shutil.copyfileobj(content, file, 2**20)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file that is never changed in place; a copy where the disk gives none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, one without links, or too many names: what is wrong beyond that, the copy will say
        copy_file(source, target)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_open(path, "w") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, without NaN (JSON has none)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file of a run; ShardError with `remedy` where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ShardError(f"{path} is missing: {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ShardError(f"{path} is damaged ({error}): {remedy}") from None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
