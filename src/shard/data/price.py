"""What the data of a recipe will take, before it starts: files to download, disk, hours, and epochs of each source.

Sizes are those of the hub's own list of files (or of a mirror's); text and tokens are estimated from them. The speed is
measured on this machine, on generated text, through all that a unit goes through.
"""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shard.data.adapters import pattern_of
from shard.data.hub import list_files
from shard.data.settings import AnySource, CleanSettings, DataSettings, GeneratedSource, HubSource, TextSource
from shard.data.text_files import find_text_files
from shard.data.units import Unit, prepare_unit
from shard.data.workers import Workers

TEXT_PER_BYTE = {".parquet": 2.6, ".gz": 3.5, ".zst": 4.0}
"""Bytes of text in a byte of a file; in others one. Of prose in zstd parquet with some columns that are not read."""
BYTES_PER_TOKEN = 3.5
PROBE_BYTES = 2_000_000


def price_sources(
    sources: Mapping[str, AnySource], settings: DataSettings, mirror: Path | None, token_bytes: int
) -> dict[str, dict[str, Any]]:
    """By source: files, bytes to download and on disk, estimates of text and tokens. Asks the hub for its lists."""
    prices = {}
    for name, source in sources.items():
        match source:
            case HubSource():
                files = list_files(source.repository, source.revision, pattern_of(source), mirror).files
                sizes = [(Path(file.path).suffix.lower(), file.size) for file in files]
            case TextSource():
                paths = find_text_files(Path(source.path))
                sizes = [(path.suffix.lower(), path.stat().st_size) for path in paths]
            case _:
                sizes = [("", source.max_bytes or 0)]
        text = sum(size * TEXT_PER_BYTE.get(suffix, 1.0) for suffix, size in sizes)
        share = min(1.0, (source.max_bytes or text) / text) if text else 1.0
        if source.max_tokens is not None and text:
            share = min(share, source.max_tokens * BYTES_PER_TOKEN / text)
        text *= share
        download = sum(size for _, size in sizes) * share if isinstance(source, HubSource) and mirror is None else 0.0
        prices[name] = {
            "files": len(sizes),
            "download_bytes": round(download),
            "text_bytes": round(text),
            "tokens": round(text / BYTES_PER_TOKEN),
            # The cleaned documents in zstd, and the tokens; raw files only while they are read, or for good.
            "disk_bytes": round(text / 2.6 + text / BYTES_PER_TOKEN * token_bytes + download * settings.keep_raw),
        }
    return prices


def measure_data_speed() -> float:
    """Bytes of text a second that one process reads, cleans and compares on this machine; a second of work."""
    with tempfile.TemporaryDirectory() as folder:
        source = GeneratedSource(kind="generated", max_bytes=PROBE_BYTES, clean=CleanSettings(min_characters=1))
        unit = Unit(
            source_name="probe", source=source, number=0, name="probe", folder=folder, settings=DataSettings(), seed=0
        )
        begun = time.perf_counter()
        ledger = prepare_unit(unit)
        return ledger.bytes_read / (time.perf_counter() - begun)


def price(
    sources: Mapping[str, AnySource],
    settings: DataSettings,
    mirror: Path | None,
    token_bytes: int,
    wanted_tokens: Mapping[str, float],
) -> dict[str, Any]:
    """The whole of it: by source with its epochs, bytes and seconds in all (without the download itself)."""
    prices = price_sources(sources, settings, mirror, token_bytes)
    for name, its_price in prices.items():
        its_price["epochs"] = round(wanted_tokens.get(name, 0.0) / max(1, its_price["tokens"]), 3)
    workers, speed = Workers.auto().count, measure_data_speed()
    text = sum(its_price["text_bytes"] for its_price in prices.values())
    return {
        "sources": prices,
        "download_bytes": sum(its_price["download_bytes"] for its_price in prices.values()),
        "disk_bytes": sum(its_price["disk_bytes"] for its_price in prices.values()),
        "text_bytes": text,
        "bytes_per_second": round(speed * workers),
        "workers": workers,
        "seconds": round(text / (speed * workers)),
    }
