"""Ranks: the processes that train one model together. The only file that talks to torch.distributed.

Every rank holds the whole model and the whole optimizer state. A step is divided twice, the rest is done by all alike:

    gradients   each rank computes its rows of the global batch; one sum over the ranks a step (training/reduction.py)
    Muon        each rank orthogonalises its share of every stack of matrices, and sends it to the others

What is read, written, evaluated, decided or said is the first rank's: the others have it from there. An ordinary run is
ALONE, for which nothing here does anything.
"""

import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from shard.environment import choose_device, count_cores
from shard.errors import ShardError
from shard.muon import newton_schulz

PATIENCE = timedelta(hours=1)
"""A rank that does not answer for so long is lost: longer than the first one evaluates while the others wait."""
POLL_SECONDS = 0.02
FAREWELL_SECONDS = 10.0


class LostRankError(ShardError):
    """Another rank ended, or does not answer."""


@dataclass(eq=False)
class Ranks:
    """The processes that train together, as one of them sees them."""

    index: int = 0
    size: int = 1
    local_size: int = 1
    """Those on this machine."""
    store: Store | None = None
    _num_heard: int = field(default=0, repr=False)

    @classmethod
    def join(cls, patience: timedelta = PATIENCE) -> Self:
        """Meet the others, as the environment says: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and
        MASTER_PORT, which torchrun sets. ShardError where this machine has no device for each of its ranks.
        """
        local, local_size = (int(os.environ.get(key) or default) for key, default in _LOCAL.items())
        device = choose_device()
        if device.type == "mps":
            raise ShardError("several ranks cannot share one Apple GPU: start them with SHARD_DEVICE=cpu")
        if device.type == "cuda":
            if local_size > torch.cuda.device_count():
                raise ShardError(
                    f"{local_size} ranks on a machine with {torch.cuda.device_count()} GPUs: start one for each"
                )
            torch.cuda.set_device(local)
        try:
            there, index, size = next(iter(rendezvous("env://", timeout=patience)))
            store = PrefixStore(_meet(there, index, size, patience), there)
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=PrefixStore("group", store),
                rank=index,
                world_size=size,
                timeout=patience,
                device_id=torch.device("cuda", local) if device.type == "cuda" else None,
            )
        except (RuntimeError, ValueError) as error:
            raise LostRankError(f"the ranks did not find each other: {_first_line(error)}") from None
        return cls(index, size, local_size, PrefixStore("shard", store))

    def leave(self) -> None:
        """After the last word to each other."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this one reads, writes, decides and prints."""
        return self.index == 0

    @contextmanager
    def threads(self) -> Iterator[None]:
        """As many threads as there are cores for each rank of this machine, unless OMP_NUM_THREADS says how many."""
        if self.size == 1 or "OMP_NUM_THREADS" in os.environ:
            yield
            return
        before = torch.get_num_threads()
        torch.set_num_threads(max(1, count_cores() // self.local_size))
        try:
            yield
        finally:
            torch.set_num_threads(before)

    # What the first rank says.

    def broadcast(self, value: Any = None) -> Any:
        """What the first rank gives (anything that JSON holds), on every rank. LostRankError where one has failed."""
        if self.store is None:
            return value
        key, self._num_heard = f"word/{self._num_heard}", self._num_heard + 1
        with _others():
            if self.is_first:
                self.store.set(key, json.dumps(value))
                return value
            # Through the store and not through the group: the first rank may read data for hours before it speaks.
            while not self.store.check([key]):
                if self.store.check(["failed"]):
                    raise LostRankError("another rank has failed")
                time.sleep(POLL_SECONDS)
            return json.loads(self.store.get(key))

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with those of the first rank."""
        if self.size > 1:
            with _others(), torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def is_first_to_fail(self, patience: float = 2.0) -> bool:
        """Tell the others that this rank failed; True for one of all that do, which is to say why. What all of them
        find at once, the first rank says: the others wait so many seconds for it.
        """
        if self.store is None:
            return True
        end = time.monotonic() + patience
        try:
            while not self.is_first and time.monotonic() < end and not self.store.check(["failed"]):
                time.sleep(POLL_SECONDS)
            return self.store.add("failed", 1) == 1
        except RuntimeError:  # the store went with the rank or the launcher that kept it
            return True

    def part(self) -> None:
        """The end, on every rank: the first one waits for a while until the others have heard it."""
        if self.store is None:
            return
        with _others():
            gone = self.store.add("parted", 1)
            end = time.monotonic() + FAREWELL_SECONDS
            while self.is_first and gone < self.size and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
                gone = self.store.add("parted", 0)

    # What is divided.

    def rows(self, batch: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
        """This rank's share of the rows of a global batch, after the number of its first row; shares differ by a row
        at most.
        """
        shares = np.array_split(batch, self.size)
        return sum(map(len, shares[: self.index])), shares[self.index]

    def sum(self, tensor: Tensor) -> None:
        """The sum over all ranks, in place; the same bits on each of them."""
        with _others():
            dist.all_reduce(tensor)

    def newton_schulz(self, stack_KMN: Tensor, method: str) -> Tensor:
        """muon.newton_schulz, of which each rank does a share of the K matrices."""
        if self.size == 1:
            return newton_schulz(stack_KMN, method)
        result_KMN = torch.empty_like(stack_KMN)
        shares = result_KMN.tensor_split(self.size)
        mine = stack_KMN.tensor_split(self.size)[self.index]
        if len(mine):
            shares[self.index].copy_(newton_schulz(mine, method))
        with _others():
            for owner, share in enumerate(shares):
                if len(share):
                    dist.broadcast(share, owner)
        return result_KMN

    def hold_the_same(self, tensors: Sequence[Tensor]) -> bool:
        """Whether all ranks have the same bits in these fp32 tensors: by the sum of them as integers, and each place
        of a tensor weighs differently from the next tensor's.
        """
        if self.size == 1:
            return True
        digest = torch.zeros((), dtype=torch.int64, device=tensors[0].device)
        for tensor in tensors:
            digest = 31 * digest + tensor.detach().contiguous().view(torch.int32).sum(dtype=torch.int64)
        lowest, highest = digest.clone(), digest
        with _others():
            dist.all_reduce(lowest, dist.ReduceOp.MIN)
            dist.all_reduce(highest, dist.ReduceOp.MAX)
        return bool(lowest == highest)


_LOCAL = {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}

ALONE = Ranks()
together: Ranks = ALONE
"""Who this process trains with: ranks.py joins them."""


def _meet(store: Store, index: int, size: int, patience: timedelta) -> str:
    """A name for this meeting of the ranks. Where torchrun starts all again, its store still holds what those before
    them left, the addresses of the dead among it: so each makes up a word, and knows by it that it is meant.
    """
    own, end = secrets.token_hex(8), time.monotonic() + patience.total_seconds()
    store.set(f"hello/{index}", own)
    while time.monotonic() < end:
        if index == 0:
            said = [store.get(key).decode() if store.check([key]) else "" for key in _keys("hello", size)]
            store.set("welcome", json.dumps(said))
            if store.check(_keys(f"{own}/met", size)[1:]):
                return own
        elif store.check(["welcome"]):
            name, *others = json.loads(store.get("welcome"))
            if own in others:
                store.set(f"{name}/met/{index}", "")
                return name
        time.sleep(POLL_SECONDS)
    raise LostRankError(f"the ranks did not find each other within {patience.total_seconds():.0f} s")


def _keys(prefix: str, size: int) -> list[str]:
    return [f"{prefix}/{index}" for index in range(size)]


@contextmanager
def _others() -> Iterator[None]:
    """What a collective raises: another rank is gone (gloo: its connection closed), or silent for too long."""
    try:
        yield
    except RuntimeError as error:
        raise LostRankError(
            f"another rank ended or does not answer ({_first_line(error)}): the same command goes on from what is saved"
        ) from None


def _first_line(error: Exception) -> str:
    """Without the place in the source of gloo, and its advice."""
    text = re.sub(r"^\[\S+\] ", "", str(error).strip() or type(error).__name__)
    return text.splitlines()[0].split(". ")[0][:150]
