"""The same function over many pieces of work: here, in processes of this machine, or on a Ray cluster.

What a piece gives does not depend on where it ran, and results come in the order of the pieces. A worker that is lost
(killed for its memory, say) has its pieces done again.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import active_children, get_context
from typing import TypeVar

from shard.environment import count_cores
from shard.errors import ShardError

Piece = TypeVar("Piece")
Result = TypeVar("Result")

MOST_WORKERS = 8
"""Of "auto": more processes than that rather wait for the disk than for a processor."""
LOST_WORKERS = 3
"""Times that a pool may lose a worker before the stage stops."""
_AHEAD = 2  # pieces a worker that are given out before the first result is taken


@dataclass(kw_only=True)
class Workers:
    """Where work is done: `count` processes (1: this one), or a Ray cluster at `ray_address`. The processes start when
    they are first needed, and stay for the next work until `close`.
    """

    count: int = 1
    ray_address: str | None = None
    _pool: ProcessPoolExecutor | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def auto(cls) -> "Workers":
        """A process for each processor, within reason."""
        return cls(count=min(MOST_WORKERS, count_cores()))

    def map(self, function: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
        """function(piece) of every piece, in order, so many at the same time. `function` is one of a module, and
        pieces and results can be pickled. What it raises is raised here; a reader that stops early ends the work.
        """
        pieces = list(pieces)
        if self.ray_address is not None:
            from shard.data.ray_workers import map_on_ray

            return map_on_ray(function, pieces, self.ray_address, self.count)
        if self.count <= 1 or len(pieces) <= 1:
            return map(function, pieces)
        return self._map_in_processes(function, pieces)

    def close(self) -> None:
        """End the processes, or the cluster that was started, also in the middle of their work: it is done again."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pids = list(pool._processes or {})  # before shutdown, which forgets them
            for process in active_children():
                if process.pid in pids:
                    process.kill()
            pool.shutdown(wait=True, cancel_futures=True)
        if self.ray_address is not None:
            from shard.data.ray_workers import disconnect

            disconnect()

    def _map_in_processes(self, function: Callable[[Piece], Result], pieces: list[Piece]) -> Iterator[Result]:
        num_done = num_lost = 0
        try:
            while num_done < len(pieces):
                if self._pool is None:
                    # Spawned, not forked: threads of this process (of torch, of Arrow) would not survive a fork.
                    self._pool = ProcessPoolExecutor(self.count, get_context("spawn"), _end_with_parent, (os.getpid(),))
                rest = iter(pieces[num_done:])
                try:
                    waiting: deque[Future[Result]] = deque(
                        self._pool.submit(function, piece) for piece in islice(rest, self.count * _AHEAD)
                    )
                    while waiting:
                        result = waiting.popleft().result()
                        waiting.extend(self._pool.submit(function, piece) for piece in islice(rest, 1))
                        num_done += 1
                        yield result
                except BrokenProcessPool:
                    self.close()
                    num_lost += 1
                    if num_lost > LOST_WORKERS:
                        raise ShardError(
                            f"a worker process was lost {num_lost} times, the last one at {pieces[num_done]}: memory "
                            "may be short (--workers 1), or see what the system's log says"
                        ) from None
        finally:
            if num_done < len(pieces):
                self.close()


def _end_with_parent(parent: int) -> None:
    """In a worker: when the process that started it is killed, the worker must not go on writing in the run folder.
    Ctrl-C is for the parent, which ends its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
