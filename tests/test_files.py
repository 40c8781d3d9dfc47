"""A file is there whole, or as it was before: whatever happens while it is written."""

import os
from pathlib import Path

import pytest

from shard import files
from shard.errors import ShardError
from shard.files import (
    atomic_open,
    copy_file,
    link_or_copy,
    read_json,
    remove_leftovers,
    sha256_of,
    sync_folder,
    temporary_path,
    write_json,
    write_text,
)


def test_a_file_appears_under_its_name_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.bin"
    with atomic_open(path) as file:
        file.write(b"\x00\xff")
        assert not path.exists()
    assert path.read_bytes() == b"\x00\xff"
    assert [entry.name for entry in path.parent.iterdir()] == ["b.bin"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_no_temporary(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(error), atomic_open(path, "w") as file:
        file.write("half of the new")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_rename_leaves_the_old_file_and_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_flushed_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut could leave the new name with nothing behind it."""
    path = tmp_path / "file.txt"
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def logged_fsync(descriptor: int) -> None:
        target = os.fstat(descriptor)
        is_folder = (target.st_dev, target.st_ino) == (tmp_path.stat().st_dev, tmp_path.stat().st_ino)
        order.append("folder" if is_folder else f"file of {target.st_size}")
        fsync(descriptor)

    def logged_replace(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(files.os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "replace", logged_replace)
    write_text(path, "12345")
    assert order == ["file of 5", "rename", "folder"]


def test_sync_folder_closes_its_descriptor(tmp_path: Path) -> None:
    before = os.dup(0)
    os.close(before)
    sync_folder(tmp_path)
    after = os.dup(0)
    os.close(after)
    assert after == before


def test_text_is_utf8_with_plain_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "é\n→\n")
    assert (tmp_path / "file.txt").read_bytes() == "é\n→\n".encode()


def test_json_comes_back_and_has_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    value = {"a": [1, 2.5, None, True], "é": "→"}
    write_json(path, value)
    assert read_json(path, "") == value
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert read_json(path, "") == value


@pytest.mark.parametrize(
    ("content", "word"), [(None, "missing"), (b"", "damaged"), (b'{"a": ', "damaged"), (b"\xff\xfe", "damaged")]
)
def test_a_json_file_that_cannot_be_read_is_named_with_the_remedy(
    tmp_path: Path, content: bytes | None, word: str
) -> None:
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ShardError) as raised:
        read_json(path, "run `shard data` again")
    message = str(raised.value)
    assert str(path) in message
    assert word in message
    assert message.endswith("run `shard data` again")
    assert "\n" not in message


def test_the_sha256_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_a_killed_writer_leaves_is_removed_and_nothing_else(tmp_path: Path) -> None:
    leftover = tmp_path / "data" / "text" / "train-00000.bin"
    leftover.parent.mkdir(parents=True)
    with atomic_open(leftover) as file:
        file.write(b"half")
        file.flush()
        (left,) = leftover.parent.iterdir()
        content = left.read_bytes()
    temporary_path(leftover).write_bytes(content)  # as kill -9 would have left it
    assert left == temporary_path(leftover)
    write_text(temporary_path(tmp_path / "release") / "models" / "model.pt", "half")
    write_text(temporary_path(tmp_path / "manifest.json"), "{")
    kept = [
        *(tmp_path / ".lock", tmp_path / ".hidden", tmp_path / "notes.tmp", leftover),
        *(tmp_path / "pretrain/checkpoints/.tmp-replaced-step-00000001/state.json",),
        *(tmp_path / "pretrain/checkpoints/.step.tmp",),
    ]
    for path in kept:
        write_text(path, "mine")
    remove_leftovers(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
    assert not temporary_path(tmp_path / "release").exists()


def test_a_folder_behind_a_link_is_not_swept(tmp_path: Path) -> None:
    write_text(tmp_path / "elsewhere" / ".a.tmp", "theirs")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data").symlink_to(tmp_path / "elsewhere")
    remove_leftovers(tmp_path / "run")
    assert (tmp_path / "elsewhere" / ".a.tmp").is_file()


def test_a_copy_has_the_content_and_a_life_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 5000)
    copy_file(tmp_path / "a", tmp_path / "below" / "b")
    assert (tmp_path / "below" / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert (tmp_path / "a").stat().st_nlink == 1


def test_a_link_is_a_second_name_and_a_copy_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    link_or_copy(tmp_path / "a", tmp_path / "below" / "b")
    assert (tmp_path / "below" / "b").samefile(tmp_path / "a")

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(files.os, "link", refuse)
    link_or_copy(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"abc"
    assert not (tmp_path / "c").samefile(tmp_path / "a")
