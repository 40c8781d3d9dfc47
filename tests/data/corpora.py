"""Small sources for tests: local text, a mirror of the hub, and documents that are alike."""

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shard.data.settings import HubSource, TextSource

QUESTION = "Which of these seven very old rivers carries the most salt into the northern sea each winter"
"""Of more than 13 words: any 13 of them in a document are contamination."""


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A .jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def text_source(folder: Path, texts: Sequence[str], **options: Any) -> TextSource:
    """A source of one .jsonl file with a document a line."""
    write_lines(folder / "lines.jsonl", [{"text": text} for text in texts])
    return TextSource(kind="text", path=str(folder), **options)


def hub_source(
    mirror: Path, files: Mapping[str, Sequence[str | None]], repository: str = "someone/some", **options: Any
) -> HubSource:
    """A repository in a mirror: files of rows with a text each."""
    for name, texts in files.items():
        path = mirror / "datasets" / repository / name
        if path.suffix == ".parquet":
            write_parquet(path, texts)
        else:
            write_lines(path, [{"text": text} for text in texts])
    pattern = f"*{Path(next(iter(files))).suffix}"
    return HubSource(kind="hub", repository=repository, **{"files": pattern, "columns": ("text",), **options})


def write_parquet(path: Path, texts: Sequence[str | None], rows_in_group: int = 10) -> Path:
    """A file with the column text, in row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, row_group_size=rows_in_group)
    return path


def break_parquet(path: Path, texts: Sequence[str]) -> None:
    """A file that reads well up to its second row group: there zeros took the place of content."""
    write_parquet(path, texts)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    first, size = column.dictionary_page_offset or column.data_page_offset, column.total_compressed_size
    content = path.read_bytes()
    path.write_bytes(content[:first] + bytes(size) + content[first + size :])


def numbered(name: str, count: int) -> list[str]:
    """Documents of different lengths, with characters of more than one byte; cleaning changes none."""
    return [f"{name} Nº {i} " + "é" * (i % 7 + 1) for i in range(count)]


def prose(name: str, count: int, num_words: int = 80) -> list[str]:
    """Documents of made-up words that are long enough to be nearly equal to others."""
    rng = random.Random(name)
    return [" ".join(f"{rng.choice('abcdefgh')}{rng.randrange(5000)}" for _ in range(num_words)) for _ in range(count)]


def altered(text: str) -> str:
    """Nearly the same: another last word."""
    return text.rpartition(" ")[0] + " otherwise"


def num_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Killed(BaseException):
    """Stands for a kill: nothing catches it but the test."""


class Moments:
    """The renames and removals of a piece of work, and a kill at any one of them."""

    def __init__(self) -> None:
        self.count, self.killed_at = 0, -1

    def watch(self, work: Callable[[], object]) -> int:
        """How many there are."""
        self.count, self.killed_at = 0, -1
        work()
        return self.count

    def kill(self, moment: int, work: Callable[[], object]) -> None:
        """Do the work up to the rename or removal of this number."""
        self.count, self.killed_at = 0, moment
        with pytest.raises(Killed):
            work()
        self.killed_at = -1


@contextmanager
def moments() -> Iterator[Moments]:
    """Renames and removals of pathlib are counted, and can be stopped."""
    state = Moments()

    def counted(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if "-duplicates-" in str(arguments[0]):  # where documents are sorted: hundreds, gone with any process
                return real(*arguments, **options)
            state.count += 1
            if state.count == state.killed_at:
                raise Killed
            return None if 0 < state.killed_at < state.count else real(*arguments, **options)  # the dead change nothing

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", counted(Path.replace))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        patch.setattr(os, "fsync", lambda descriptor: None)  # what is written stays: no power is lost here
        yield state
