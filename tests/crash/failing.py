"""Makes the n-th write, flush, rename, ... of a piece of code fail, or kills the process there. In a fork of its own.

Four ways to fail at an operation:

    kill     SIGKILL before it
    torn     half of a write reaches the disk, then SIGKILL
    power    as kill, and what was written but never flushed with fsync is lost
    full     it raises "no space left", a write after half of it; and so does every later write, flush and new folder
"""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

WAYS = ("kill", "torn", "power", "full")
NEEDS_SPACE = {"write", "fsync", "mkdir"}
NEEDS_NAME = {"rename", "replace"}
FAILED_AS_ASKED, FAILED_OTHERWISE = 17, 18


class Disk:
    """Stands between the code and the disk, and counts. Without `fail_at` nothing fails."""

    def __init__(self, way: str = "kill", fail_at: int | None = None) -> None:
        self.way, self.fail_at = way, fail_at
        self.operations: list[tuple[str, str]] = []
        self._unflushed: dict[int, int] = {}
        """Inode -> a descriptor of our own of a file that holds what no fsync has made durable."""

    def install(self) -> None:
        """From here on, for the rest of this process."""
        for name in ("fsync", "rename", "replace", "mkdir", "unlink", "remove", "rmdir", "truncate", "link"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        self._open = io.open
        io.open = builtins.open = self._open_counted

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            self.count(name, str(arguments[0]))
            result = real(*arguments, **options)
            if name == "fsync":
                self._unflushed.pop(os.fstat(arguments[0]).st_ino, None)
            return result

        return operation

    def _open_counted(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        opened = self._open(file, mode, *arguments, **options)
        return CountedFile(opened, self) if set(mode) & set("wax+") else opened

    def count(self, name: str, what: str, half: Callable[[], None] = lambda: None) -> None:
        """One operation comes; `half` does half of it."""
        self.operations.append((name, what))
        number = len(self.operations) - 1
        if self.fail_at is None or number < self.fail_at:
            return
        if number == self.fail_at:
            if self.way in ("torn", "full"):
                half()
            if self.way == "power":
                for descriptor in self._unflushed.values():
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            if self.way != "full":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), what)
        if name in NEEDS_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), what)

    def written(self, file: Any) -> None:
        """Remember that a file holds what is not durable."""
        inode = os.fstat(file.fileno()).st_ino
        if inode not in self._unflushed:
            self._unflushed[inode] = os.dup(file.fileno())

    def applies(self, way: str, number: int) -> bool:
        """Whether an operation can fail this way."""
        name, _ = self.operations[number]
        return {"torn": name == "write", "full": name in NEEDS_SPACE | NEEDS_NAME}.get(way, True)


class CountedFile:
    """A file open for writing, whose writes are counted. All else is the file's own."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> Any:
        whole = data if isinstance(data, str) else bytes(data)

        def half() -> None:
            self._file.write(whole[: len(whole) // 2])
            self._file.flush()

        self._disk.count("write", str(getattr(self._file, "name", "?")), half)
        self._disk.written(self._file)
        return self._file.write(data)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __iter__(self) -> Any:
        return iter(self._file)

    def __enter__(self) -> "CountedFile":
        self._file.__enter__()
        return self

    def __exit__(self, *exception: Any) -> Any:
        return self._file.__exit__(*exception)


def forked(action: Callable[[], object]) -> int:
    """The exit code of a fork that does it: 0, that of an error, or minus a signal."""
    pid = os.fork()
    if pid == 0:
        _do_and_leave(action)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _do_and_leave(action: Callable[[], object]) -> NoReturn:
    code = FAILED_OTHERWISE
    try:
        action()
        code = 0
    except OSError as error:
        code = FAILED_AS_ASKED if error.errno == errno.ENOSPC else FAILED_OTHERWISE
    finally:
        os._exit(code)


def operations_of(action: Callable[[], object], note: Path) -> Disk:
    """Everything that an action does to the disk, counted in a fork and brought back through the file `note`."""
    disk = Disk()
    descriptor = os.open(note, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)

    def counted() -> None:
        disk.install()
        action()
        os.write(descriptor, "\n".join(f"{name} {what}" for name, what in disk.operations).encode())

    assert forked(counted) == 0, "fails although nothing was made to fail"
    os.close(descriptor)
    lines = note.read_text(encoding="utf-8").splitlines()
    disk.operations = [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]
    return disk
