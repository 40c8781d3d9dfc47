"""From the rows of a dataset file to documents: parquet, JSON Lines, one JSON array, and those compressed.

Columns are found by name, never by place. Files are streamed, so that memory is bounded. A row that holds no text is
counted and passed over; a file that cannot be read to its end raises BrokenFile after its last good row. The caller
decides what is too much.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

from pydantic import ValidationError

from shard.data.row_format import TEXT, Row, RowError, RowFormat
from shard.data.settings import HubSource, TextSource
from shard.data.text_files import BATCH_ROWS, LINE_CHARACTERS, SCAN_BYTES, SURROGATES
from shard.errors import ShardError

SUPPORTED = re.compile(r".*\.(parquet|jsonl?(\.gz|\.zst)?)", re.IGNORECASE | re.DOTALL)
ARRAY_CHARACTERS = 1 << 16  # read at a time of a JSON array
SEPARATORS = re.compile(r"[\s,]*")

TEXT_PER_BYTE = {".parquet": 2.6, ".gz": 3.5, ".zst": 4.0}
"""Bytes of text in a byte of a file; in others one. Of prose in zstd parquet with some columns that are not read."""


class BrokenFile(ShardError):  # noqa: N818, it is the file that is broken
    """A file that cannot be read to its end. `rows_lost` is None where it does not say how many it should have."""

    def __init__(self, path: Path, reason: str, rows_read: int, rows_lost: int | None) -> None:
        lost = "what follows" if rows_lost is None else f"{rows_lost} of {rows_read + rows_lost} rows"
        super().__init__(
            f"{path} is broken after row {rows_read}, {lost} cannot be read ({reason.partition(chr(10))[0]}): "
            "download it again, or take it away"
        )
        self.path, self.reason, self.rows_read, self.rows_lost = path, reason, rows_read, rows_lost

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it comes whole from another process."""
        return type(self), (self.path, self.reason, self.rows_read, self.rows_lost)


@dataclass
class BrokenRows:
    """What was passed over: rows by reason ("null", "not a string", ...), and the place of the first ones."""

    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, path: Path, number: int, error: "RowError") -> None:
        """Count a row."""
        self.reasons[error.reason] += 1
        if len(self.examples) < 5:
            self.examples.append(f"{path}, row {number}: {error}")

    @property
    def total(self) -> int:
        """All rows that were passed over."""
        return self.reasons.total()


def estimate_text(name: str, size: int) -> float:
    """About how much text there is in a file of so many bytes, by the end of its name."""
    return size * TEXT_PER_BYTE.get(Path(name).suffix.lower(), 1.0)


def read_documents(path: Path, row_format: RowFormat, broken: BrokenRows) -> Iterator[tuple[int, str]]:
    """(number of the row from 1, text) of every row of a file, in order; rows without text go to `broken`.

    Raises BrokenFile as said above, and ShardError where the file has none of the columns or cannot be opened.
    """
    if not SUPPORTED.fullmatch(path.name):
        raise ShardError(f"{path} is none of .parquet, .jsonl, .json (.gz, .zst): choose other files by pattern")
    write = row_format.writer()
    read = _read_parquet if path.suffix.lower() == ".parquet" else _read_json
    try:
        with path.open("rb"):  # what cannot be opened is not broken
            pass
    except OSError as error:
        raise ShardError(f"cannot read {path} ({error.strerror or error}): repair or download it again") from error
    for number, row in read(path, row_format):
        try:
            if isinstance(row, RowError):
                raise row
            text = write(row)
        except RowError as error:
            broken.add(path, number, error)
        else:
            # JSON can spell lone surrogates, which UTF-8 cannot.
            yield number, text if text.isascii() else SURROGATES.sub("\ufffd", text)


# Parquet


def _read_parquet(path: Path, row_format: RowFormat) -> Iterator[tuple[int, Row | RowError]]:
    # Imported here: the command line has to start fast.
    import pyarrow as pa
    import pyarrow.parquet as pq

    number, total = 0, None
    with path.open("rb") as stream:
        try:
            # The two in the middle make pyarrow stream a column; else it holds a row group, often the whole file.
            parquet = pq.ParquetFile(stream, buffer_size=SCAN_BYTES, pre_buffer=False, page_checksum_verification=True)
            total = parquet.metadata.num_rows
            _check_columns(path, row_format, parquet.schema_arrow)
            # One group after the other: else a batch may hold rows of a good one and of a broken one.
            for group in range(parquet.num_row_groups):
                for batch in parquet.iter_batches(BATCH_ROWS, [group], row_format.needed()):
                    for row in _rows_of(batch):
                        number += 1
                        yield number, row
        except (pa.ArrowException, OSError) as error:
            raise BrokenFile(path, str(error), number, None if total is None else total - number) from error


def _check_columns(path: Path, row_format: RowFormat, schema: Any) -> None:
    import pyarrow as pa

    for name in row_format.needed():
        if schema.names.count(name) != 1:
            _fail_no_column(path, name, schema.names)
        kind = schema.field(name).type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        is_text = pa.types.is_string(values) or pa.types.is_large_string(values) or pa.types.is_string_view(values)
        if not is_text and (row_format.kind is None or not pa.types.is_struct(values)):
            raise ShardError(f"{path}: column {name!r} holds {kind}, not strings: choose another column")


def _rows_of(batch: Any) -> list[Row | RowError]:
    """The rows of a batch. That a file's strings are UTF-8 shows only here: pyarrow does not look."""
    try:
        rows: list[Row | RowError] = batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [RowError("not UTF-8")]
        return [row for i in range(batch.num_rows) for row in _rows_of(batch.slice(i, 1))]
    return rows


# JSON


def _read_json(path: Path, row_format: RowFormat) -> Iterator[tuple[int, Row | RowError]]:
    """The objects of one array, or of one line each."""
    import pyarrow as pa

    number, is_checked = 0, False
    try:
        # By the name's end: gzip, zstd or nothing.
        with pa.input_stream(str(path), compression="detect", buffer_size=SCAN_BYTES) as raw:
            stream = io.BufferedReader(raw, SCAN_BYTES)
            is_array = stream.peek(SCAN_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
            for number, row in enumerate(_read_array(stream) if is_array else _read_lines(stream), 1):
                if isinstance(row, dict) and not is_checked:
                    # A column that the first row lacks is rather a mistake in the recipe than a broken row.
                    for name in row_format.needed():
                        if name not in row:
                            _fail_no_column(path, name, row)
                    is_checked = True
                yield number, row if isinstance(row, dict | RowError) else RowError("not an object")
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        raise BrokenFile(path, str(error), number, None) from error


def _read_lines(stream: IO[bytes]) -> Iterator[Any]:
    """The value of every line that is not empty, RowError where there is none."""
    for line in iter(lambda: stream.readline(LINE_CHARACTERS), b""):
        if len(line) == LINE_CHARACTERS:
            raise ValueError(f"a line of more than {LINE_CHARACTERS} bytes")
        if not line.strip():
            continue
        try:
            yield json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            yield RowError("not UTF-8", f"not UTF-8 at byte {error.start}")
        except (ValueError, RecursionError) as error:
            yield RowError("not JSON", f"not JSON ({error})")


def _read_array(stream: IO[bytes]) -> Iterator[Any]:
    """The elements of an array, one in memory at a time. ValueError where it breaks: what follows is lost."""
    text, decoder = io.TextIOWrapper(stream, encoding="utf-8-sig"), json.JSONDecoder()
    buffer = text.read(ARRAY_CHARACTERS)
    at, at_end = buffer.index("[") + 1, False
    while True:
        at = SEPARATORS.match(buffer, at).end()  # type: ignore[union-attr]
        if buffer.startswith("]", at):
            return
        try:
            value, end = decoder.raw_decode(buffer, at)
        except ValueError as error:
            if at_end or len(buffer) - at > LINE_CHARACTERS:
                raise ValueError(f"no end of the array: {error}") from None
            end = len(buffer)
        if end < len(buffer) or at_end:
            yield value
            at = end
        else:
            # As much again as is there: an element longer than that is parsed a few times, not many.
            more = text.read(max(ARRAY_CHARACTERS, len(buffer) - at))
            buffer, at, at_end = buffer[at:] + more, 0, not more


def _fail_no_column(path: Path, name: str, columns: Iterable[str]) -> NoReturn:
    raise ShardError(f"{path}: no column {name!r}, only {', '.join(map(repr, columns)) or 'none'}: choose one of these")


# What is known


def format_of(source: HubSource | TextSource) -> RowFormat:
    """How the rows of a source become documents: as the recipe says, else as is known. ShardError for neither."""
    rows = source.rows if isinstance(source, HubSource) else None
    if source.columns is None and source.template is None and rows is None:
        return _known(source).row_format if isinstance(source, HubSource) else RowFormat(columns=[source.text_column])
    columns = None if source.columns is None else list(source.columns)
    try:
        return RowFormat(columns=columns, template=source.template, kind=rows)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ShardError(
            f"the source {source.repository if isinstance(source, HubSource) else source.path}: {reason}"
        ) from None


def pattern_of(source: HubSource) -> str | tuple[str, ...]:
    """Which files of a repository are read: as the recipe says, else as is known. ShardError where neither does."""
    return source.files if source.files is not None else _known(source).files


def _known(source: HubSource) -> "KnownRepository":
    if source.repository not in KNOWN:
        raise ShardError(
            f"the source {source.repository} is none of {', '.join(KNOWN)}: say which files, and which columns or "
            "template"
        )
    return KNOWN[source.repository]


@dataclass(frozen=True, kw_only=True)
class KnownRepository:
    """What a recipe need not say about a repository."""

    files: str
    row_format: RowFormat
    license: str
    notes: str = ""


KNOWN: dict[str, KnownRepository] = {
    "open-web-math/open-web-math": KnownRepository(files="data/*.parquet", row_format=TEXT, license="odc-by"),
    "HuggingFaceFW/fineweb-edu": KnownRepository(
        files="sample/10BT/*.parquet", row_format=TEXT, license="odc-by", notes="the sample of 10 billion tokens"
    ),
    "AI-MO/NuminaMath-CoT": KnownRepository(
        files="data/train-*.parquet",
        row_format=RowFormat(template="Problem: {problem}\n\nSolution: {solution}"),
        license="apache-2.0",
        notes="the column messages says the same once more",
    ),
    "meta-math/MetaMathQA": KnownRepository(
        files="*.json",
        row_format=RowFormat(template="Question: {query}\n\nAnswer: {response}"),
        license="mit",
        notes="made from the train splits of GSM8K and MATH",
    ),
    "togethercomputer/RedPajama-Data-1T-Sample": KnownRepository(
        files="arxiv_sample.jsonl",
        row_format=TEXT,
        license="other",
        notes="LaTeX of arXiv, under each paper's licence",
    ),
    "HuggingFaceTB/cosmopedia": KnownRepository(
        files="data/*/*.parquet", row_format=TEXT, license="apache-2.0", notes="written by Mixtral; all its configs"
    ),
    "allenai/ai2_arc": KnownRepository(
        files="*/train-*.parquet",
        row_format=RowFormat(kind="multiple_choice"),
        license="cc-by-sa-4.0",
        notes="train only: validation and test are for evaluation",
    ),
}
"""Repository -> which of its files to read and how; a recipe may say otherwise."""
