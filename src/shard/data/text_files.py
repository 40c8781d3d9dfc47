"""Source kind `text`: train on your own texts, a file or a folder of .txt, .md, .jsonl and .parquet files.

What a document is, and its group (numbers count from 1; `name` is the path relative to the folder given):

    .txt, .md   up to 1 MiB: the file, "name"; above: pieces of at most 64 KiB, "name#piece"
    .jsonl      a line, "name#line": an object that holds the text in the chosen columns
    .parquet    a row, "name#row": rows with a null in these columns are skipped

A .txt or .md file that is the whole corpus is always cut, else there would be nothing to hold out: up to
1 MiB into pieces of at most 8 KiB, above of at most a 128th of the file or 64 KiB, whichever is less.
Memory is bounded: files are streamed.
"""

import codecs
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn, TextIO

from shard.data.document import Document
from shard.data.row_format import TEXT, Row, RowFormat
from shard.errors import ShardError

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
WHOLE_FILE_BYTES = 1 << 20  # up to this size a .txt or .md file is one document
PIECE_BYTES = 1 << 16
LONE_PIECE_BYTES = 1 << 13  # the smallest limit on pieces when one file is the whole corpus
LONE_NUM_PIECES = 128  # enough pieces that a share of one percent is not empty
LINE_CHARACTERS = 1 << 26  # a longer line is hardly JSON Lines, and must not fill the memory
BATCH_ROWS = 256
SCAN_BYTES = 1 << 16
CHOOSE_COLUMNS = "set sources.NAME.text_column"

SURROGATES = re.compile(r"[\ud800-\udfff]")


def find_text_files(path: Path) -> list[Path]:
    """The files to read: `path` itself, or those below it, sorted by relative POSIX path.

    Names that start with a dot are skipped. Links are followed, and what is reached twice counts once: loops
    end, and a file cannot be both trained on and held out. Raises ShardError if `path` is missing,
    unreadable, a file of another kind, or a folder without text files.
    """
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        raise ShardError(f"{path} does not exist: set the source's path to a file or folder") from None
    except OSError as error:
        _fail_unreadable(path, error)
    if not is_folder:
        if not _is_text_file(path):
            raise ShardError(f"{path} cannot be read as text: convert it to one of {', '.join(SUFFIXES)}")
        return [path]
    files, num_others = _walk(path)
    if not files:
        raise ShardError(
            f"{path} holds no text files ({num_others} other files were seen): "
            f"put files that end in {', '.join(SUFFIXES)} there, or set the source's path to another folder"
        )
    return files


def read_text_files(path: Path, row_format: RowFormat = TEXT) -> Iterator[Document]:
    """The documents of a file or folder, in the order of `find_text_files`; see the top of this module.

    In .txt and .md files line ends become "\\n" and a byte order mark is dropped. `row_format` says how a .jsonl line
    or a row of a .parquet file becomes a document.
    Raises ShardError, which names the file and the place in it, for whatever cannot be read.
    """
    files = find_text_files(path)
    for file in files:
        yield from read_text_file(file, name_of(file, path), row_format, is_lone=len(files) == 1)


def name_of(file: Path, path: Path) -> str:
    """What a file is called within the file or folder `path`."""
    # A name that is not UTF-8 comes with surrogates, and a group has to be encodable.
    return _replace_surrogates(file.name if file == path else file.relative_to(path).as_posix())


def read_text_file(file: Path, name: str, row_format: RowFormat, is_lone: bool) -> Iterator[Document]:
    """The documents of one file, which is called `name`; `is_lone` where it is the whole corpus."""
    try:
        match file.suffix.lower():
            case ".jsonl":
                yield from _read_jsonl(file, name, row_format)
            case ".parquet":
                yield from _read_parquet(file, name, row_format)
            case _:
                yield from _read_prose(file, name, is_lone)
    except UnicodeDecodeError:
        _fail_not_utf8(file)
    except OSError as error:
        _fail_unreadable(file, error)


def cut_text(stream: TextIO, limit: int) -> Iterator[str]:
    """Cut a text into pieces of at most `limit` bytes of UTF-8 (4 or more); together they are the text.

    A piece ends after the last empty line that fits, else after the last line end, else at a character.
    """
    buffer = b""
    while chunk := stream.read(limit):
        buffer += chunk.encode()
        while len(buffer) > limit:
            end = _find_border(buffer, limit)
            yield buffer[:end].decode()
            buffer = buffer[end:]
    if buffer:
        yield buffer.decode()


def _find_border(buffer: bytes, limit: int) -> int:
    for border in (b"\n\n", b"\n"):
        start = buffer.rfind(border, 0, limit)
        if start >= 0:
            return start + len(border)
    while buffer[limit] & 0xC0 == 0x80:  # a continuation byte: a cut here would be inside a character
        limit -= 1
    return limit


def _read_prose(file: Path, name: str, is_lone: bool) -> Iterator[Document]:
    size = file.stat().st_size
    with file.open(encoding="utf-8-sig") as stream:
        if size <= WHOLE_FILE_BYTES and not is_lone:
            yield Document(stream.read(), name)
            return
        limit = PIECE_BYTES
        if is_lone:
            limit = min(PIECE_BYTES, max(LONE_PIECE_BYTES, size // LONE_NUM_PIECES))
        for number, piece in enumerate(cut_text(stream, limit), 1):
            yield Document(piece, f"{name}#{number}")


def _read_jsonl(file: Path, name: str, row_format: RowFormat) -> Iterator[Document]:
    # Only "\n" ends a line: a carriage return may stand between two tokens of JSON.
    write = row_format.writer()
    with file.open(encoding="utf-8-sig", newline="\n") as stream:
        lines = iter(lambda: stream.readline(LINE_CHARACTERS), "")
        for number, line in enumerate(lines, 1):
            place = f"{file}, line {number}"
            if len(line) == LINE_CHARACTERS:
                raise ShardError(f"{place}: longer than {LINE_CHARACTERS} characters: write one document a line")
            if line.strip():
                yield Document(_parse_line(line, place, row_format.needed(), write), f"{name}#{number}")


def _parse_line(line: str, place: str, columns: list[str], write: Callable[[Row], str]) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{place}: not JSON ({error}): repair or remove the line") from None
    if not isinstance(row, dict):
        raise ShardError(f'{place}: JSON, but not an object: write {{"{columns[0]}": "..."}}, one a line')
    for column in columns:
        if column not in row:
            _fail_no_column(place, column, row)
        if not isinstance(row[column], str):
            raise ShardError(
                f"{place}: column {column!r} holds {type(row[column]).__name__}, not a string: "
                f"repair the line, or {CHOOSE_COLUMNS}"
            )
    return _replace_surrogates(write(row))


def _read_parquet(file: Path, name: str, row_format: RowFormat) -> Iterator[Document]:
    # Imported here: the command line has to start fast, and most corpora hold no parquet.
    import pyarrow as pa
    import pyarrow.parquet as pq

    with file.open("rb") as stream:  # outside the try: what cannot be opened is not broken
        try:
            # Both make pyarrow stream a column; else it holds a row group, often the whole file.
            parquet = pq.ParquetFile(stream, buffer_size=SCAN_BYTES, pre_buffer=False)
            schema, columns, write = parquet.schema_arrow, row_format.needed(), row_format.writer()
            for column in columns:
                if schema.names.count(column) != 1:
                    _fail_no_column(str(file), column, schema.names)
                kind = schema.field(column).type
                values = kind.value_type if pa.types.is_dictionary(kind) else kind
                if not (pa.types.is_string(values) or pa.types.is_large_string(values)):
                    raise ShardError(f"{file}: column {column!r} holds {kind}, not strings: {CHOOSE_COLUMNS}")
            number = 0
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    if all(row[column] is not None for column in columns):
                        yield Document(write(row), f"{name}#{number}")
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).partition("\n")[0]
            raise ShardError(
                f"{file} is a broken parquet file ({reason}): write or download it again, or take it away"
            ) from error


def _walk(root: Path) -> tuple[list[Path], int]:
    """The text files below `root`, and how many other files there are; hidden ones do not count."""

    def fail(error: OSError) -> NoReturn:
        _fail_unreadable(Path(error.filename), error)

    found: list[Path] = []
    num_others = 0
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=fail):
        if not _is_new(Path(folder), seen):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = [Path(folder, name) for name in names if not name.startswith(".")]
        texts = [file for file in files if _is_text_file(file)]
        found += texts
        num_others += len(files) - len(texts)
    found.sort(key=lambda file: file.relative_to(root).as_posix())
    return [file for file in found if _is_new(file, seen)], num_others


def _is_new(path: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether the file or folder behind `path` is not in `seen` (device, inode) yet; adds it."""
    try:
        info = path.stat()
    except OSError as error:  # a dangling link, say: better said than passed over
        _fail_unreadable(path, error)
    key = (info.st_dev, info.st_ino)
    is_new = key not in seen
    seen.add(key)
    return is_new


def _is_text_file(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _replace_surrogates(text: str) -> str:
    """Lone surrogates, which JSON can spell but UTF-8 cannot, become U+FFFD."""
    return SURROGATES.sub("\ufffd", text)


def _fail_unreadable(path: Path, error: OSError) -> NoReturn:
    raise ShardError(
        f"cannot read {path} ({error.strerror or error}): repair it (chmod u+r), or take it out of the source"
    ) from error


def _fail_no_column(place: str, column: str, columns: Iterable[str]) -> NoReturn:
    listed = ", ".join(map(repr, columns)) or "none"
    raise ShardError(f"{place}: no column {column!r}, only {listed}: {CHOOSE_COLUMNS}")


def _fail_not_utf8(file: Path) -> NoReturn:
    """Find the first bad byte by a second reading: the error of a text stream does not know its offset."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    with file.open("rb") as stream:
        while True:
            chunk = stream.read(SCAN_BYTES)
            num_pending = len(decoder.getstate()[0])  # bytes of a character that the last chunk began
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                offset, byte = position - num_pending + error.start, error.object[error.start]
                break
            position += len(chunk)
    encoding = "utf-16" if offset == 0 and byte in (0xFE, 0xFF) else "latin1"  # those begin every UTF-16 file
    raise ShardError(
        f"{file} is not UTF-8 text: byte 0x{byte:02x} at offset {offset}. "
        f"Convert it (iconv -f {encoding} -t utf-8) or take it out of the folder"
    )
