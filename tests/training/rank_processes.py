"""Ranks as processes of a test: forked from one process that has imported torch already, they meet on their own.

In the processes nothing is shared but the folder that they are given, and what they return.
"""

import multiprocessing
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from shard.training.distributed import Ranks

PATIENCE = 120.0
PROCESSES = multiprocessing.get_context("forkserver")


@cache
def start_server() -> None:
    """The process that is forked: it imports all that ranks need, for which it has to find the tests."""
    PROCESSES.set_forkserver_preload(
        ["rank_processes", "tiny_stage", "torch._dynamo"]
    )  # the last is what an optimizer imports
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run_ranks(size: int, function: Callable[..., Any], *arguments: object, silence: float = 60.0) -> list[Any]:
    """function(ranks, *arguments) on each rank; what it returned on each, or the exception that it raised.

    `silence` is how many seconds a rank may not answer.
    """
    environment = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(free_port()), "SHARD_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    start_server()
    processes, ends = [], []
    for index in range(size):
        end, other = PROCESSES.Pipe(duplex=False)
        own = environment | {"RANK": str(index), "LOCAL_RANK": str(index)}
        process = PROCESSES.Process(target=_rank, args=(other, own, silence, function, arguments), daemon=True)
        process.start()
        other.close()
        processes.append(process)
        ends.append(end)
    results: list[Any] = []
    try:
        for index, end in enumerate(ends):
            assert end.poll(PATIENCE), f"rank {index} hangs"
            try:
                results.append(pickle.loads(end.recv_bytes()))
            except EOFError:
                processes[index].join(PATIENCE)
                results.append(SystemExit(processes[index].exitcode))
    finally:
        for process in processes:
            process.kill()
            process.join()
    return results


def _rank(
    end: Connection, environment: dict[str, str], silence: float, function: Callable[..., Any], arguments: Any
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        ranks = Ranks.join(timedelta(seconds=silence))
        result = function(ranks, *arguments)
    except BaseException as error:
        error.__notes__ = [traceback.format_exc()]
        result = error
    with suppress(BrokenPipeError):
        end.send_bytes(pickle.dumps(result))  # Connection.send would share tensors with a process that is gone
    end.close()
    time.sleep(PATIENCE)  # until it is killed: the first rank keeps the store that the others may still read


def good(results: list[Any]) -> list[Any]:
    """The results, where no rank raised."""
    for index, result in enumerate(results):
        if isinstance(result, BaseException):
            raise AssertionError(f"rank {index}: {result!r}\n{''.join(getattr(result, '__notes__', []))}")
    return results
