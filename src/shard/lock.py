"""One process at a time works in a run folder: a lock of the kernel's, which frees it however the holder ends."""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from shard.console import Reporter
from shard.errors import ShardError

LOCK_FILE = ".lock"

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""What a filesystem without locks (some network disks) answers."""


class RunLock:
    """Holds a folder until `release`. ShardError names the process that holds it already, this one included.

    The file stays when the lock goes: deleting it would leave a second process with the lock on a file that a third
    one no longer sees.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_FILE
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A folder is made under another name first: the one that was opened may have been renamed since.
            if not _is_file_at(self._descriptor, path):
                raise BlockingIOError
        except BlockingIOError:
            holder = _read_holder(self._descriptor)
            self.release()
            raise ShardError(f"{folder} is in use by {holder}: wait for it, or stop it") from None
        except OSError as error:
            self.release()
            if error.errno not in _NO_LOCKS:
                raise
            Reporter().warn(f"{folder} is on a disk without locks: see to it that no other process works in it")
        else:
            _write_holder(self._descriptor)

    def release(self) -> None:
        """Let the next process in; may be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _is_file_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)


def _read_holder(descriptor: int) -> str:
    """The holder in words; it may be about to write who it is."""
    try:
        holder: dict[str, Any] = json.loads(os.pread(descriptor, 2**16, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['started']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
