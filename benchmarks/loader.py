"""What reading batches costs: of a corpus of any size, from the disk (cold) and from memory (warm), beside a step.

    python benchmarks/loader.py                                  4 GB of tokens in three sources
    python benchmarks/loader.py --gigabytes 32 --folder DIR      a corpus larger than memory

Prints one JSON object: milliseconds of `batch(index)` alone, and of `fetch(index)`, which is what a step waits for
while a thread reads ahead, at steps of so many milliseconds. Cold: the system forgets the files before each batch.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from shard.data.loader import BatchLoader
from shard.data.shards import ShardWriter

MIX = {"prose": 0.7, "math": 0.2, "small": 0.1}
SHARES = {"prose": 0.8, "math": 0.199, "small": 0.001}
PIECE = 2**24  # tokens written at once


def write_corpus(folder: Path, num_bytes: int) -> None:
    """Shards of random tokens, as the data stage leaves them."""
    rng = np.random.default_rng(0)
    piece = rng.integers(0, 8192, PIECE, dtype=np.uint16)
    for name, share in SHARES.items():
        (folder / name).mkdir(parents=True)
        writer = ShardWriter(folder / name, "<u2", 2**28)
        left = max(2**20, int(num_bytes * share) // 2)
        while left > 0:
            writer.add(np.roll(piece, left % 4096)[: min(left, PIECE)])
            left -= PIECE
        writer.finish(1, 1)


def forget(folder: Path) -> None:
    """Let the system drop what it holds of the files in memory."""
    for path in folder.rglob("*.bin"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "median": round(1000 * statistics.median(ordered), 3),
        "min": round(1000 * ordered[0], 3),
        "max": round(1000 * ordered[-1], 3),
    }


def anonymous_memory() -> int:
    """Bytes of this process that are not mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--folder", type=Path, default=Path.cwd())
    parser.add_argument("--tokens-per-step", type=int, default=131_072)
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--step-milliseconds", type=float, default=220, help="131,072 tokens at 590,000 a second")
    parser.add_argument("--batches", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch)
        write_corpus(folder, int(arguments.gigabytes * 1e9))
        os.sync()  # what is not on the disk yet cannot be forgotten
        loader = BatchLoader(
            folder, MIX, arguments.sequence_length, arguments.tokens_per_step, 1000, seed=0, vocab_size=8192
        )
        before = anonymous_memory()
        results: dict[str, dict[str, float]] = {}
        index = 0
        for name in ("cold", "warm"):
            alone, waited = [], []
            for _ in range(arguments.batches):
                if name == "cold":
                    forget(folder)
                begun = time.perf_counter()
                loader.batch(index)
                alone.append(time.perf_counter() - begun)
                if name == "warm":
                    begun = time.perf_counter()
                    loader.batch(index)  # the same again
                    alone[-1] = time.perf_counter() - begun
                index += 1
            loader.fetch(index)
            for _ in range(arguments.batches):
                if name == "cold":
                    forget(folder)
                time.sleep(arguments.step_milliseconds / 1000)
                index += 1
                begun = time.perf_counter()
                loader.fetch(index)
                waited.append(time.perf_counter() - begun)
            results[name] = {"batch": spread(alone), "waited_for": spread(waited)}
            share = statistics.median(waited) / (arguments.step_milliseconds / 1000)
            results[name]["share_of_step"] = round(share, 6)
        loader.close()
        grown = anonymous_memory() - before
    print(
        json.dumps(
            {
                "corpus_bytes": int(arguments.gigabytes * 1e9),
                "tokens_per_step": arguments.tokens_per_step,
                "step_milliseconds": arguments.step_milliseconds,
                "milliseconds": results,
                "memory_growth_bytes": grown,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
