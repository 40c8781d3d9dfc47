"""The `text` source: what is a document, how a file is cut, and every error that a user's files can cause."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard.data import text_files
from shard.data.document import Document
from shard.data.row_format import RowFormat
from shard.data.text_files import cut_text, find_text_files, read_text_files
from shard.errors import ShardError


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def write_parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


def read(path: Path, text_column: str = "text") -> list[tuple[str, str]]:
    return [(document.group, document.text) for document in read_text_files(path, RowFormat(columns=[text_column]))]


def message(path: Path, text_column: str = "text") -> str:
    with pytest.raises(ShardError) as caught:
        list(read_text_files(path, RowFormat(columns=[text_column])))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Finding


def test_files_are_found_recursively_sorted_without_hidden_ones(tmp_path: Path) -> None:
    names = [
        "b.txt",
        "a/z.md",
        "a/B/c.JSONL",
        "a.parquet",
        ".hidden.txt",
        ".git/x.txt",
        "a/.x/y.txt",
        "c.pdf",
    ]
    write(tmp_path, dict.fromkeys(names, ""))
    found = [file.relative_to(tmp_path).as_posix() for file in find_text_files(tmp_path)]
    assert found == ["a.parquet", "a/B/c.JSONL", "a/z.md", "b.txt"]


def test_a_hidden_folder_that_the_user_names_is_read(tmp_path: Path) -> None:
    write(tmp_path, {".texts/a.txt": "a", ".texts/b.txt": "b"})
    assert read(tmp_path / ".texts") == [("a.txt", "a"), ("b.txt", "b")]


def test_links_are_followed_and_loops_end_and_a_file_counts_once(tmp_path: Path) -> None:
    root = write(tmp_path / "root", {"a/one.txt": "1", "two.txt": "2"})
    outside = write(tmp_path / "outside", {"three.txt": "3"})
    (root / "a" / "loop").symlink_to(root)
    (outside / "back").symlink_to(root)
    (root / "linked").symlink_to(outside)
    (root / "same.txt").symlink_to("two.txt")
    assert read(root) == [("a/one.txt", "1"), ("linked/three.txt", "3"), ("same.txt", "2")]


def test_a_relative_path_gives_the_same_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a.txt": "a", "sub/b.txt": "b"})
    monkeypatch.chdir(tmp_path)
    assert read(Path()) == [("a.txt", "a"), ("sub/b.txt", "b")]
    assert read(Path("a.txt")) == [("a.txt#1", "a")]


def test_a_file_name_that_is_not_utf8_gives_a_group_that_can_be_encoded(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"\xff.txt")).write_text("x")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    assert read(tmp_path) == [("\ufffd.txt#1", "x")]


# .txt and .md


def test_small_files_are_one_document_each(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"\xef\xbb\xbfone\r\n\r\ntwo\r\n", "b.md": "# \0é\n"})
    assert read(tmp_path) == [("a.txt", "one\n\ntwo\n"), ("b.md", "# \0é\n")]


def test_a_large_file_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "WHOLE_FILE_BYTES", 11)
    monkeypatch.setattr(text_files, "PIECE_BYTES", 8)
    write(tmp_path, {"book.txt": "one\r\n\r\ntwo\r\n\r\nthree\r\n", "short.txt": "a\n\nb\n\nc\n\nd\n"})
    assert read(tmp_path) == [
        ("book.txt#1", "one\n\n"),
        ("book.txt#2", "two\n\n"),
        ("book.txt#3", "three\n"),
        ("short.txt", "a\n\nb\n\nc\n\nd\n"),
    ]


@pytest.mark.parametrize(("size", "limit"), [(100, 8), (1024, 8), (1536, 12), (9000, 64)])
def test_the_only_file_of_a_corpus_is_always_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, limit: int
) -> None:
    for name in ("WHOLE_FILE_BYTES", "PIECE_BYTES", "LONE_PIECE_BYTES"):
        monkeypatch.setattr(text_files, name, getattr(text_files, name) >> 10)
    write(tmp_path, {"only.txt": "x" * size, "picture.png": ""})
    pieces = read(tmp_path)
    assert pieces == read(tmp_path / "only.txt")
    assert [len(text) for _, text in pieces[:-1]] == [limit] * ((size - 1) // limit)
    assert [group for group, _ in pieces] == [f"only.txt#{number + 1}" for number in range(len(pieces))]


def test_the_limits_are_those_of_the_docstring() -> None:
    assert (text_files.WHOLE_FILE_BYTES, text_files.PIECE_BYTES) == (1024**2, 64 * 1024)
    assert text_files.WHOLE_FILE_BYTES // text_files.LONE_NUM_PIECES == text_files.LONE_PIECE_BYTES == 8 * 1024


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("a\n\nb\n\nccccc", ["a\n\nb\n\n", "ccccc"]),  # the last paragraph border that fits
        ("aaa\nbbb\nccc\n", ["aaa\nbbb\n", "ccc\n"]),  # no paragraphs: the last line end
        ("aaaaaaaaaaa", ["aaaaaaaa", "aaa"]),  # no lines: hard
        ("aéééééé", ["aééé", "ééé"]),  # 8 bytes would end inside the fourth é
        ("😀😀😀", ["😀😀", "😀"]),
        ("aaaaaa\n\nb", ["aaaaaa\n\n", "b"]),
        ("aaaaaaa\n\nb", ["aaaaaaa\n", "\nb"]),  # the border itself does not fit
    ],
)
def test_cut_text(text: str, pieces: list[str]) -> None:
    assert list(cut_text(io.StringIO(text), 8)) == pieces


@given(
    text=st.text(st.sampled_from("a\r\n\0é€😀") | st.characters(codec="utf-8"), max_size=100),
    limit=st.integers(4, 40),
    buffer_size=st.integers(1, 9),
)
def test_pieces_add_up_to_the_normalised_text(text: str, limit: int, buffer_size: int) -> None:
    raw = io.BufferedReader(io.BytesIO(text.encode()), buffer_size)
    pieces = list(cut_text(io.TextIOWrapper(raw, encoding="utf-8"), limit))
    assert "".join(pieces) == text.replace("\r\n", "\n").replace("\r", "\n")
    assert all(0 < len(piece.encode()) <= limit for piece in pieces)  # encodes: no character is cut


def test_a_large_file_is_streamed() -> None:
    class Endless(io.StringIO):
        def read(self, size: int | None = -1, /) -> str:
            assert size is not None and 0 < size <= 1024
            return "word\n" * (size // 5)

    pieces = cut_text(Endless(), 1024)
    assert all(len(next(pieces)) <= 1024 for _ in range(100))


# .jsonl


def test_jsonl_is_a_document_a_line(tmp_path: Path) -> None:
    lines = ['\ufeff{"text": "one\\r\\n", "id": 1}\r', "", "  \t", '{"text": "\u2028"}', '{"text": ""}']
    write(tmp_path, {"a.jsonl": "\n".join(lines)})
    assert read(tmp_path) == [("a.jsonl#1", "one\r\n"), ("a.jsonl#4", "\u2028"), ("a.jsonl#5", "")]


def test_another_column(tmp_path: Path) -> None:
    write(tmp_path, {"a.jsonl": '{"text": 1, "body": "x"}'})
    write_parquet(tmp_path / "b.parquet", text=[1], body=["y"])
    assert read(tmp_path, "body") == [("a.jsonl#1", "x"), ("b.parquet#1", "y")]


def test_lone_surrogates_are_replaced_and_nul_is_kept(tmp_path: Path) -> None:
    write(tmp_path, {"a.jsonl": r'{"text": "a\ud800b\udc00\u0000\ud83d\ude00"}'})
    assert read(tmp_path) == [("a.jsonl#1", "a\ufffdb\ufffd\0😀")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "x"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("1" * 5000, "not JSON"),
        ('["x"]', "not an object"),
        ('{"body": "x", "id": 1}', "no column 'text', only 'body', 'id': set sources.NAME.text_column"),
        ("{}", "no column 'text', only none"),
        ('{"text": null}', "column 'text' holds NoneType, not a string"),
    ],
    ids=["cut", "deep", "huge", "list", "column", "empty", "null"],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, expected: str) -> None:
    write(tmp_path, {"sub/a.jsonl": '{"text": "ok"}\n\n' + line + "\n"})
    error = message(tmp_path)
    assert error.startswith(f"{tmp_path}/sub/a.jsonl, line 3: ") and expected in error


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "LINE_CHARACTERS", 20)
    write(tmp_path, {"a.jsonl": '{"text": "12345678"}'})
    assert "line 1: longer than 20 characters" in message(tmp_path)


# .parquet


def test_parquet_is_a_document_a_row_and_null_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "BATCH_ROWS", 2)
    write_parquet(tmp_path / "a.parquet", id=list(range(5)), text=["a", None, "é\r\n", "", "e"])
    groups = ["a.parquet#1", "a.parquet#3", "a.parquet#4", "a.parquet#5"]
    assert read(tmp_path) == list(zip(groups, ["a", "é\r\n", "", "e"], strict=True))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_strings_of_other_types(tmp_path: Path, kind: pa.DataType) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=pa.array(["a", None, "a"], pa.string()).cast(kind))
    assert [text for _, text in read(path)] == ["a", "a"]


def test_parquet_is_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "BATCH_ROWS", 2)
    sizes = []
    iter_batches = pq.ParquetFile.iter_batches

    def spy(*args: object, **options: object) -> Iterator[pa.RecordBatch]:
        for batch in iter_batches(*args, **options):
            sizes.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    documents = read_text_files(write_parquet(tmp_path / "a.parquet", text=list("abcdef")))
    assert next(documents) == Document("a", "a.parquet#1") and sizes == [2]
    assert len(list(documents)) == 5 and max(sizes) == 2


def test_parquet_without_the_column(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", id=[1], body=["x"])
    assert message(path) == f"{path}: no column 'text', only 'id', 'body': set sources.NAME.text_column"


def test_parquet_with_a_column_of_another_type(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=[1])
    assert message(path).startswith(f"{path}: column 'text' holds int64, not strings")


def test_broken_parquet(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "whole", text=["some text"] * 50).read_bytes()
    damaged = whole[:4] + bytes(40) + whole[44:]
    for content in (b"", b"no parquet", whole[:-20], damaged):
        path = write(tmp_path, {"a.parquet": content}) / "a.parquet"
        assert message(path).startswith(f"{path} is a broken parquet file (")


def test_parquet_with_strings_that_are_not_utf8(tmp_path: Path) -> None:
    text = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    path = write_parquet(tmp_path / "a.parquet", text=text)
    assert "is a broken parquet file" in message(path)


# Errors of files and folders


def test_a_missing_path(tmp_path: Path) -> None:
    assert message(tmp_path / "no").startswith(f"{tmp_path}/no does not exist")


def test_a_folder_without_text(tmp_path: Path) -> None:
    write(tmp_path, {"a.pdf": "", "sub/b.docx": "", ".hidden.txt": ""})
    error = message(tmp_path)
    assert error.startswith(f"{tmp_path} holds no text files (2 other files were seen)")
    assert ".txt, .md, .jsonl, .parquet" in error


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    error = message(write(tmp_path, {"a.pdf": ""}) / "a.pdf")
    assert error.startswith(f"{tmp_path}/a.pdf cannot be read as text") and ".jsonl" in error


@pytest.mark.parametrize(
    ("content", "byte", "offset", "encoding"),
    [
        (b"a" * 1234 + b"\xff" + b"b" * 9, 0xFF, 1234, "latin1"),
        (b"\xef\xbb\xbfcaf\xe9 \r\n", 0xE9, 6, "latin1"),
        ("é".encode() * 3 + b"\xe2\x82", 0xE2, 6, "latin1"),  # the file ends inside a character
        (b"aaaaaa\xe2\x82a", 0xE2, 6, "latin1"),  # the character starts in one chunk, fails in the next
        ("text".encode("utf-16"), 0xFF, 0, "utf-16"),
    ],
)
@pytest.mark.parametrize("name", ["notes.txt", "notes.jsonl"])
def test_a_file_that_is_not_utf8(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    byte: int,
    offset: int,
    encoding: str,
    name: str,
) -> None:
    monkeypatch.setattr(text_files, "SCAN_BYTES", 7)
    write(tmp_path, {f"sub/{name}": content})
    assert message(tmp_path) == (
        f"{tmp_path}/sub/{name} is not UTF-8 text: byte 0x{byte:02x} at offset {offset}. "
        f"Convert it (iconv -f {encoding} -t utf-8) or take it out of the folder"
    )


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(
        self: Path, *args: object, **options: object
    ) -> None:  # root may read everything, so chmod tests nothing
        raise PermissionError(13, "Permission denied", str(self))

    write(tmp_path, {name: "x"})
    monkeypatch.setattr(Path, "open", refuse)
    assert message(tmp_path).startswith(f"cannot read {tmp_path}/{name} (Permission denied)")


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a.txt": "x", "sub/b.txt": "x"})
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert message(tmp_path).startswith(f"cannot read {tmp_path}/sub (Permission denied)")


def test_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("gone.txt")
    assert message(tmp_path).startswith(f"cannot read {tmp_path}/a.txt (No such file")


def test_an_error_comes_after_the_documents_before_it(tmp_path: Path) -> None:
    write(tmp_path, {"a.jsonl": json.dumps({"text": "x"}) + "\n{"})
    documents = read_text_files(tmp_path)
    assert next(documents) == Document("x", "a.jsonl#1")
    with pytest.raises(ShardError):
        next(documents)


# Chosen columns


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_columns_and_templates_make_a_document(tmp_path: Path, suffix: str) -> None:
    rows = [{"title": "One", "body": "first", "n": 1}, {"title": "Two", "body": None if suffix == "parquet" else "2"}]
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write(tmp_path, {path.name: "".join(json.dumps(row) + "\n" for row in rows)})
    columns = list(read_text_files(path, RowFormat(columns=["title", "body"])))
    assert columns[0] == Document("One\n\nfirst", f"a.{suffix}#1")
    assert len(columns) == (1 if suffix == "parquet" else 2)  # a null in a column is no document
    template = list(read_text_files(path, RowFormat(template="# {title}\n{body}")))
    assert template[0].text == "# One\nfirst"
    with pytest.raises(ShardError, match=r"no column 'author', only 'title', 'body'"):
        list(read_text_files(path, RowFormat(columns=["title", "author"])))
    with pytest.raises(ShardError, match=r"column 'n' holds int(64)?, not (a )?strings?"):
        list(read_text_files(path, RowFormat(template="{title} {n}")))
