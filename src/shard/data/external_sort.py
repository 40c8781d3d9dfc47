"""Records on disk: scattered over numbered files, and sorted in bounded memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Records = NDArray[np.void]  # [num_records], of named fields

BUFFER_BYTES = 2**22  # of records that wait in memory
PARTITION_BYTES = 2**24  # of a file that is sorted at once


class RecordFiles:
    """Numbered files of records that grow at their ends. What is added waits in memory until it is worth writing."""

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        folder.mkdir()
        self._folder, self._dtype = folder, dtype
        self._waiting: list[tuple[NDArray[np.uint64], Records]] = []
        self._waiting_bytes = 0

    def append(self, numbers: NDArray[np.uint64], records: Records) -> None:
        """Add each record to the file of its number, in this order."""
        if not len(records):
            return
        self._waiting.append((numbers, records))
        self._waiting_bytes += records.nbytes
        if self._waiting_bytes >= BUFFER_BYTES:
            self._flush()

    def numbers(self) -> list[int]:
        """The numbers that have records, ascending."""
        self._flush()
        return sorted(int(file.name) for file in self._folder.iterdir() if file.is_file())

    def take(self, number: int, most_records: int = -1) -> Iterator[Records]:
        """The records of a file in pieces of at most so many (-1: one piece, maybe empty); the file is gone then."""
        self._flush()
        path = self._folder / str(number)
        if not path.exists():
            yield np.empty(0, dtype=self._dtype)
            return
        with path.open("rb") as file:
            while len(records := np.fromfile(file, dtype=self._dtype, count=most_records)):
                yield records
        path.unlink()

    def size(self, number: int) -> int:
        """The bytes of a file."""
        return (self._folder / str(number)).stat().st_size

    def _flush(self) -> None:
        if not self._waiting:
            return
        numbers = np.concatenate([numbers for numbers, _ in self._waiting])
        # numpy sorts small integers by counting.
        order = np.argsort(numbers.astype(np.uint16) if numbers.max() < 2**16 else numbers, kind="stable")
        records = np.concatenate([records for _, records in self._waiting])[order]
        present, starts = np.unique(numbers[order], return_index=True)
        for number, piece in zip(present.tolist(), np.split(records, starts[1:]), strict=True):
            with (self._folder / str(number)).open("ab") as file:
                piece.tofile(file)
        self._waiting, self._waiting_bytes = [], 0


class ExternalSort:
    """Sorts any number of records by their fields (uint64, the first one spread evenly), by scattering them over
    files by the highest bits of the first field: a file of more than PARTITION_BYTES is scattered again by the next.

    Memory: some four times PARTITION_BYTES, or four times the records of one value of the first field.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], num_partitions: int = 64, num_bits: int = 64) -> None:
        """`folder` is made. `num_partitions`, a power of two, does not change the result. The first fields of all
        records may differ in their lowest `num_bits` only.
        """
        if num_partitions & (num_partitions - 1) or num_partitions < 2:
            raise ValueError("num_partitions must be a power of two, at least 2")
        self._files = RecordFiles(folder, dtype)
        self._folder, self._dtype, self._num_partitions = folder, dtype, num_partitions
        self._shift = max(0, num_bits - num_partitions.bit_length() + 1)  # above it, the bits that choose the file
        self._fields: tuple[str, ...] = dtype.names or ()

    def append(self, records: Records) -> None:
        """Add records, in any order."""
        numbers = (records[self._fields[0]] >> np.uint64(self._shift)) % np.uint64(self._num_partitions)
        self._files.append(numbers, records)

    def read(self) -> Iterator[Records]:
        """All records in order, in pieces; records with one value of the first field are in one piece. The files are
        gone then.
        """
        for number in self._files.numbers():
            if self._files.size(number) > PARTITION_BYTES and self._shift:
                folder = self._folder / f"{number}-again"
                again = ExternalSort(folder, self._dtype, self._num_partitions, self._shift)
                for records in self._files.take(number, PARTITION_BYTES // self._dtype.itemsize):
                    again.append(records)
                yield from again.read()
            else:
                (records,) = self._files.take(number)
                yield records[np.lexsort([records[field] for field in reversed(self._fields)])]
