"""Documents to token shards, with cleaning, deduplication and decontamination, against `tokenizers` encoding alone.

    python benchmarks/data.py --mirror MIRROR            the text of a mirror of the seven repositories, five pairs
    python benchmarks/data.py --mirror MIRROR --scale    1, 2, 4 and 8 times as much text: is the cost linear?

Each pair runs both on the same text and the same processors, in turns: `shard data` from parquet to shards, with a
tokenizer that is there already, and `tokenizers.Tokenizer.encode_batch` on texts that are in memory already. Prints the
ratio of their times, pair by pair. To scale, the text is repeated with other words: else it would be duplicates. Memory
is what the parent and each worker hold at most, mapped files not counted.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shard.console import Reporter
from shard.data.adapters import pattern_of
from shard.data.documents import TRAIN, collect_documents, read_documents
from shard.data.hub import list_files
from shard.data.settings import HubSource
from shard.data.tokens import tokenize_sources
from shard.data.workers import Workers
from shard.recipe import Recipe
from shard.run import Run
from shard.stages import tokenizer as tokenizer_stage
from shard.tokenizer import load_tokenizer

VOCABULARY, SEPARATOR = 8192, 0


def shard_seconds(recipe: Recipe, mirror: Path, tokenizer: Path, folder: Path, workers: int) -> tuple[float, int]:
    """Seconds from the files of the mirror to shards, and the bytes of text that were read."""
    begun = time.perf_counter()
    with contextlib.closing(Workers(count=workers)) as pool:
        ledgers = collect_documents(recipe.sources, recipe.data, recipe.seed, folder / "data", pool, mirror)
        folders = {name: folder / "data" / name for name in recipe.sources}
        limits: dict[str, int | None] = dict.fromkeys(folders)
        tokenize_sources(folders, tokenizer, VOCABULARY, SEPARATOR, recipe.data.shard_bytes, limits, pool)
    return time.perf_counter() - begun, sum(ledger.bytes_read for ledger in ledgers.values())


class MemoryPeak:
    """The most memory that this process and each child hold, without mapped files, looked at 20 times a second."""

    def __init__(self) -> None:
        self.parent = self.worker = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryPeak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            sizes = [_anonymous_memory(pid) for pid in ["self", *children]]
            self.parent, self.worker = max(self.parent, sizes[0]), max(self.worker, *sizes[1:], 0)


def _anonymous_memory(pid: str) -> int:
    with contextlib.suppress(OSError):  # it has ended
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def scaled(recipe: Recipe, mirror: Path, tokenizer: Path, folder: Path, workers: int) -> dict[str, Any]:
    """What one size of text takes."""
    with MemoryPeak() as peak:
        seconds, num_bytes = shard_seconds(recipe, mirror, tokenizer, folder, workers)
    return {
        "bytes": num_bytes,
        "seconds": round(seconds, 1),
        "megabytes_per_second": round(num_bytes / seconds / 1e6, 2),
        "peak_megabytes": {"parent": round(peak.parent / 1e6), "a worker": round(peak.worker / 1e6)},
    }


def encode_seconds(texts: list[str], tokenizer: Path) -> float:
    """Seconds of encode_batch on texts in memory, a thousand at a time, on all processors."""
    encoder = load_tokenizer(tokenizer)
    begun = time.perf_counter()
    for start in range(0, len(texts), 1000):
        encoder.encode_batch(texts[start : start + 1000], add_special_tokens=False)
    return time.perf_counter() - begun


def multiply(recipe: Recipe, mirror: Path, factor: int, folder: Path) -> Path:
    """A mirror with so many times the text of the parquet files, each copy in words of its own."""
    target = folder / f"mirror-{factor}"
    shutil.copytree(mirror, target)
    hub = [source for source in recipe.sources.values() if isinstance(source, HubSource)]
    files = [
        target / "datasets" / source.repository / file.path
        for source in hub
        for file in list_files(source.repository, None, pattern_of(source), target).files
    ]
    for path in files:
        if path.suffix != ".parquet" or "ai2_arc" in path.parts:
            continue
        table = pq.read_table(path)
        columns = [name for name in ("text", "problem", "solution") if name in table.column_names]
        for copy in range(1, factor):
            changed = table
            for name in columns:
                texts = [_in_other_words(text, copy) for text in table.column(name).to_pylist()]
                place = changed.column_names.index(name)
                changed = changed.set_column(place, name, pa.array(texts, pa.string()))
            pq.write_table(changed, path.with_name(f"{path.stem}-copy-{copy}.parquet"), compression="zstd")
    return target


def _in_other_words(text: str | None, copy: int) -> str | None:
    """Every fourth word with an ending: no 5-gram is the same."""
    if text is None:
        return None
    words = text.split(" ")
    return " ".join(word + "xyzqkvw"[copy % 7] if i % 4 == 0 else word for i, word in enumerate(words))


def pairs(
    recipe: Recipe, mirror: Path, tokenizer: Path, texts: list[str], arguments: Any, scratch: Path
) -> Iterator[Any]:
    """Both, in turns of order."""
    for i in range(arguments.pairs):
        times = {}
        for which in ("shard", "tokenizers") if i % 2 else ("tokenizers", "shard"):
            if which == "shard":
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    times[which], num_bytes = shard_seconds(recipe, mirror, tokenizer, Path(folder), arguments.workers)
                times["shard_bytes"] = num_bytes
            else:
                times[which] = encode_seconds(texts, tokenizer)
        print(f"shard {times['shard']:.1f} s, tokenizers {times['tokenizers']:.1f} s", file=sys.stderr)
        yield times


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mirror", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    recipe = Recipe.load("shard-40m-v1", ["data.heldout_bytes=100kB", "tokenizer.sample_bytes=20MB"])
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        run = Run.open(Path(scratch) / "run", recipe)
        run.read_with(arguments.mirror, arguments.workers, None)
        tokenizer_stage(run, Reporter(quiet=True))
        if arguments.scale:
            results = []
            for factor in arguments.factors:
                mirror = multiply(recipe, arguments.mirror, factor, Path(scratch))
                folder = Path(scratch) / f"out-{factor}"
                # In a process of its own: this one holds what it made the text from.
                with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
                    task = fresh.submit(scaled, recipe, mirror, run.tokenizer_path, folder, arguments.workers)
                    results.append({"factor": factor} | task.result())
                print(json.dumps(results[-1]), file=sys.stderr)
                shutil.rmtree(mirror)
                shutil.rmtree(folder)
            print(json.dumps(results, indent=2))
            return
        texts = [text for name in recipe.sources for text in read_documents(run.data / name, TRAIN)]
        size = sum(len(text.encode()) for text in texts)
        measured = list(pairs(recipe, arguments.mirror, run.tokenizer_path, texts, arguments, Path(scratch)))
        run.close()
    # Of the same text each: what is dropped was read and judged, too.
    ratios = sorted((pair["tokenizers"] / size) / (pair["shard"] / pair["shard_bytes"]) for pair in measured)
    result = {
        "megabytes_per_second": {
            "shard": [round(pair["shard_bytes"] / pair["shard"] / 1e6, 2) for pair in measured],
            "tokenizers": [round(size / pair["tokenizers"] / 1e6, 2) for pair in measured],
        },
        "ratio": {"median": statistics.median(ratios), "all": ratios},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
