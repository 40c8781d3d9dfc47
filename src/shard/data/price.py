"""What the data of a recipe will take, before it starts: files to download, disk, hours, and epochs of each source.

Sizes are those of the hub's own list of files (or of a mirror's, or of the disk); text and tokens are estimated from
them. The speed is measured on this machine, on generated text, through all that a document goes through by itself.
"""

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shard.data.adapters import estimate_text, pattern_of
from shard.data.documents import ON_TRAIN
from shard.data.hub import list_files
from shard.data.inventory import count_needed, in_turns
from shard.data.problems import generate_problems
from shard.data.settings import AnySource, DataSettings, HubSource, TeacherSource, TextSource
from shard.data.teacher_text import likely_answer_bytes
from shard.data.text_files import find_text_files
from shard.data.tokens import TokenUnit, tokenize_unit
from shard.data.units import Unit, prepare_unit
from shard.data.workers import Workers
from shard.files import sha256_of, write_text
from shard.tokenizer import train_tokenizer

BYTES_PER_TOKEN = 3.5
TEXT_PER_DOCUMENT_BYTE = 2.6
"""Bytes of text in a byte of the cleaned documents on the disk."""
PROBE_BYTES = 2_000_000
PROBE_DOCUMENT_BYTES = 2000  # as long as a page of the web is

Sizes = list[tuple[str, int]]
"""Of the files of a source: name, and bytes on the disk or to download."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """What one source takes; estimates, but for the files."""

    files: int
    download_bytes: int
    largest_file: int
    """Of the files to download: so much raw data lies on the disk at a time for each worker."""
    text_bytes: int
    tokens: int
    disk_bytes: int
    """The cleaned documents and the tokens; with data.keep_raw also the downloaded files."""


def list_sizes(source: AnySource, mirror: Path | None) -> Sizes:
    """The files of a source in the order of reading. Asks the hub, where it is on the hub and there is no mirror."""
    match source:
        case HubSource():
            files = list_files(source.repository, source.revision, pattern_of(source), mirror).files
            return [(file.path, file.size) for file in (in_turns(files) if source.is_limited else files)]
        case TextSource():
            return [(path.name, path.stat().st_size) for path in find_text_files(Path(source.path))]
        case TeacherSource():
            return [("", likely_answer_bytes(source))]
        case _:
            return [("", source.max_bytes or 0)]


def price_source(source: AnySource, sizes: Sizes, settings: DataSettings, is_download: bool, token_bytes: int) -> Price:
    """What a source with files of these sizes takes, as far as its limits reach."""
    likely = [estimate_text(name, size) for name, size in sizes]
    sizes = sizes[: count_needed(source, likely)]
    text = min(sum(likely[: len(sizes)]), source.most_bytes or float("inf"))
    tokens = min(text / BYTES_PER_TOKEN, source.shard_tokens or float("inf"))
    download = sum(size for _, size in sizes) if is_download else 0
    return Price(
        files=len(sizes),
        download_bytes=download,
        largest_file=max((size for _, size in sizes), default=0) if is_download else 0,
        text_bytes=round(text),
        tokens=round(tokens),
        # Tokens lie there twice while they are joined.
        disk_bytes=round(text / TEXT_PER_DOCUMENT_BYTE + 2 * tokens * token_bytes + download * settings.keep_raw),
    )


def disk_in_all(prices: Mapping[str, Price], settings: DataSettings, workers: int) -> int:
    """Bytes on the disk at most, with the files that are being read."""
    raw = 0 if settings.keep_raw else workers * max((price.largest_file for price in prices.values()), default=0)
    return sum(price.disk_bytes for price in prices.values()) + raw


def measure_data_speed() -> float:
    """Bytes of text a second that one process cleans, compares and tokenises on this machine: two seconds of work."""
    problems = list(generate_problems(PROBE_BYTES, seed=0))
    together = max(1, PROBE_DOCUMENT_BYTES * len(problems) // PROBE_BYTES)
    texts = [
        "\n\n".join(problem.text for problem in problems[i : i + together]) for i in range(0, len(problems), together)
    ]
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder, "tokenizer.json")
        write_text(tokenizer, train_tokenizer(texts[:100], 1000).to_str())
        # The first time, tables are built and modules loaded.
        for name, some in (("warm-up", texts[:20]), ("probe", texts)):
            path = Path(folder, f"{name}.jsonl")
            write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in some))
            source = TextSource(kind="text", path=str(path))
            unit = Unit(
                source_name=name,
                source=source,
                number=0,
                name=name,
                files=((str(path), path.name),),
                folder=str(Path(folder, name)),
                settings=DataSettings(),
                seed=0,
            )
            begun = time.perf_counter()
            ledger = prepare_unit(unit)
            np.save(unit.path.with_suffix(".npy"), np.full(ledger.documents, ON_TRAIN, np.uint8))
            tokenize_unit(
                TokenUnit(
                    documents=str(unit.path),
                    tokenizer=str(tokenizer),
                    tokenizer_sha256=sha256_of(tokenizer),
                    separator_id=0,
                    dtype="<u2",
                )
            )
            seconds = time.perf_counter() - begun
    return sum(len(text.encode()) for text in texts) / seconds


def price(
    sources: Mapping[str, AnySource],
    settings: DataSettings,
    mirror: Path | None,
    token_bytes: int,
) -> dict[str, Any]:
    """The whole of it: by source, bytes and seconds in all (without the download itself)."""
    prices = {
        name: price_source(
            source,
            list_sizes(source, mirror),
            settings,
            is_download=isinstance(source, HubSource) and mirror is None,
            token_bytes=token_bytes,
        )
        for name, source in sources.items()
    }
    workers, speed = Workers.auto().count, measure_data_speed()
    text = sum(one.text_bytes for one in prices.values())
    return {
        "sources": {name: vars(one) for name, one in prices.items()},
        "download_bytes": sum(one.download_bytes for one in prices.values()),
        "disk_bytes": disk_in_all(prices, settings, workers),
        "text_bytes": text,
        "bytes_per_second": round(speed * workers),
        "workers": workers,
        "seconds": round(text / (speed * workers)),
    }
