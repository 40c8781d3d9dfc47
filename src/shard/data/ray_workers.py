"""The same function over many pieces of work on a Ray cluster: one that runs already, whose machines share the folders,
or one of this machine only that is started for the work.

A piece that is done twice, because its worker was given up and is alive all the same, is written by both under
temporary names of their own (files.py) and renamed: whoever comes last puts the same bytes in the same place.
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from typing import Any, TypeVar

from shard import files
from shard.data.workers import LOST_WORKERS
from shard.errors import ShardError

Piece = TypeVar("Piece")
Result = TypeVar("Result")

LOCAL = "local"
"""The address that stands for a cluster of this machine."""
PATIENCE = 10.0
"""Seconds in which a cluster has to answer; Ray itself would try for minutes, and say so on the terminal."""
_AHEAD = 2  # pieces a processor that are given out before the first result is taken
_RESULTS_BYTES = 2**27  # of shared memory for what a local cluster passes around: small ledgers

_connection = ExitStack()  # of this process, which has one at most: how it is ended


def map_on_ray(
    function: Callable[[Piece], Result], pieces: list[Piece], address: str, num_workers: int
) -> Iterator[Result]:
    """function(piece) of every piece, in order: on the cluster at `address`, or on `num_workers` processes of this
    machine ("local"). What it raises is raised here, and ends the work. A lost worker has its pieces done again. A
    reader that stops early waits for what was begun.

    Raises ShardError where no cluster answers, or where a piece was lost more than LOST_WORKERS times.
    """
    if not pieces:
        return
    ray = _connect(address, num_workers)
    remote = ray.remote(max_retries=LOST_WORKERS)(_do)
    here = os.getcwd()  # noqa: PTH109, a word for all machines
    at_once = max(1, int(ray.cluster_resources().get("CPU", 1))) * _AHEAD
    rest = iter(pieces)
    waiting = deque((piece, remote.remote(function, piece, here)) for piece in islice(rest, at_once))
    try:
        while waiting:
            piece, reference = waiting.popleft()
            result = reference.future().result()  # ray.get mistakes a signal's exception for an error of its own
            waiting.extend((piece, remote.remote(function, piece, here)) for piece in islice(rest, 1))
            yield result
    except GeneratorExit:
        # Not ray.cancel: in Ray 2.60 it ends this process where a piece is done at the same moment.
        if waiting and ray.is_initialized():
            ray.wait([reference for _, reference in waiting], num_returns=len(waiting))
        raise
    except ray.exceptions.RayTaskError as error:
        disconnect()
        if isinstance(error.cause, RuntimeError) and "failed to import on the worker" in str(error.cause):
            missing = str(error.cause).splitlines()[-1]
            raise ShardError(
                f"--ray {address}: a machine of the cluster cannot import Shard ({missing}): install it there, in the "
                "same version"
            ) from None
        raise error.cause from error
    except ray.exceptions.RayError as error:
        disconnect()
        raise ShardError(
            f"--ray {address}: a worker was lost {LOST_WORKERS + 1} times at {piece} ({_first_line(error)}): memory "
            "may be short (--workers 1), or see Ray's logs"
        ) from None
    except BaseException:
        disconnect()
        raise


def disconnect() -> None:
    """End the connection, and the cluster where it was started for this process, also in the middle of its work."""
    _connection.close()


def _do(function: Callable[[Piece], Result], piece: Piece, folder: str) -> Result:
    """In a worker."""
    try:
        os.chdir(folder)
    except OSError as error:
        host = socket.gethostname()
        raise ShardError(f"--ray: {host} cannot enter {folder} ({error.strerror}): all must share it") from None
    files.writer = f"-{socket.gethostname()}-{os.getpid()}"
    return function(piece)


def _connect(address: str, num_workers: int) -> Any:
    """The module ray, connected; a connection that is there already stays."""
    if address == LOCAL:
        # Without the token nobody else on the network can use the cluster. Ray would keep one in the home folder.
        defaults = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    else:
        # Tries to connect, whatever the name says, and seconds of one.
        defaults = {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_py_gcs_connect_timeout_s": f"{PATIENCE:.0f}"}
    for name, value in defaults.items():  # which Ray reads when it is imported
        os.environ.setdefault(name, value)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # else it tells its makers
    try:
        import ray
    except ImportError:
        raise ShardError("--ray needs Ray: pip install 'shard-lm[ray]'") from None
    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {}
    if address == LOCAL:
        # A folder of its own: the common one may be another user's, and tells whoever looks for a cluster of this one.
        folder = tempfile.mkdtemp(prefix="shard-ray-", dir="/tmp")  # a short path, since sockets lie in it
        _connection.callback(shutil.rmtree, folder, ignore_errors=True)
        options |= {"num_cpus": num_workers, "include_dashboard": False, "_temp_dir": folder}
        options |= {"object_store_memory": _RESULTS_BYTES}
    else:
        _look_for(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    _connection.callback(ray.shutdown)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # of many kinds
        disconnect()
        raise ShardError(
            f"--ray {address}: no cluster to work on ({_first_line(error)}): start one with `ray start --head`, or use "
            "--ray local"
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in its place
    return ray


def _look_for(address: str) -> None:
    """ShardError where nothing listens at host:port."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except OSError as error:
        raise ShardError(
            f"--ray {address}: nothing answers there ({error.strerror or error}): start a cluster with "
            "`ray start --head`, or use --ray local"
        ) from None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
