"""One process at a time in a run folder: seen from a second process, and after a kill."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shard.errors import ShardError
from shard.lock import LOCK_FILE, RunLock

HOLDER = """
import sys, time
from pathlib import Path
from shard.lock import RunLock
held = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(ShardError) as raised:
        RunLock(tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path} is in use by process {holder.pid} on {os.uname().nodename} since 20")
    assert message.endswith(": wait for it, or stop it")
    assert "\n" not in message


def test_a_killed_process_holds_nothing(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock = RunLock(tmp_path)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid(), "the old holder's words are gone"
    lock.release()


def test_the_same_process_is_refused_too_until_it_releases(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    for _ in range(2):  # being refused must not free what the first one holds
        with pytest.raises(ShardError, match=f"in use by process {os.getpid()} "):
            RunLock(tmp_path)
    lock.release()
    lock.release()
    again = RunLock(tmp_path)
    assert (tmp_path / LOCK_FILE).is_file(), "the file stays"
    again.release()


def test_two_folders_do_not_hinder_each_other(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    locks = [RunLock(tmp_path / "a"), RunLock(tmp_path / "b")]
    for lock in locks:
        lock.release()


def test_a_lock_goes_with_a_folder_that_is_renamed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    lock = RunLock(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(ShardError, match="in use"):
        RunLock(tmp_path / "b")
    lock.release()


def test_a_folder_that_is_renamed_while_it_is_locked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else this process would hold the folder of another name."""
    (tmp_path / "a").mkdir()
    flock = fcntl.flock

    def flock_after_rename(descriptor: int, operation: int) -> None:
        (tmp_path / "a").rename(tmp_path / "b")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_rename)
    with pytest.raises(ShardError, match="in use by another process"):
        RunLock(tmp_path / "a")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null"])
def test_a_holder_that_has_not_said_who_it_is(tmp_path: Path, content: str) -> None:
    lock = RunLock(tmp_path)
    (tmp_path / LOCK_FILE).write_text(content)
    with pytest.raises(ShardError, match="is in use by another process: wait"):
        RunLock(tmp_path)
    lock.release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_disk_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    RunLock(tmp_path).release()
    error = capsys.readouterr().err
    assert "without locks" in error
    assert error.count("\n") == 1


def test_another_error_of_the_disk_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="input/output"):
        RunLock(tmp_path)
