"""The bounded sample that the tokenizer is trained on, and what that training will need.

Memory of BPE training grows with the number of distinct words, not only with the bytes read, and has no bound of its
own: so the sample is bounded, recorded, and its memory predicted before it starts.
"""

import hashlib
import math
import re
import resource
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shard.data.documents import TRAIN, read_documents, read_ledger
from shard.files import write_text
from shard.tokenizer import train_tokenizer

# Measured (docs/data.md): the process grew by 900 to 1,640 bytes for each distinct word of the sample.
MEMORY_PER_WORD = 1700
MEMORY_FLOOR = 100_000_000
PREFIX_CHARACTERS = 1_000_000  # read of each source to see how its vocabulary grows

_WORD = re.compile(r"\w+|[^\w\s]+")


def sample_shares(weights: Mapping[str, float], sizes: Mapping[str, int], sample_bytes: int) -> dict[str, float]:
    """The share of each source's text that goes into the sample: by weight, and what a small source cannot give is
    given by the others.
    """
    wanted = dict.fromkeys(weights, 0.0)
    open_names = {name for name, weight in weights.items() if weight > 0 and sizes[name] > 0}
    left = float(sample_bytes)
    while open_names and left > 1:
        total = sum(weights[name] for name in open_names)
        added = {name: min(left * weights[name] / total, sizes[name] - wanted[name]) for name in open_names}
        for name, extra in added.items():
            wanted[name] += extra
        left -= sum(added.values())
        open_names = {name for name in open_names if wanted[name] < sizes[name] - 0.5}
    return {name: wanted[name] / sizes[name] if sizes[name] else 0.0 for name in weights}


def distinct_words(texts: Iterable[str], num_characters: float) -> float:
    """How many distinct words so much text of this kind holds, by Heaps' law: words ~ characters^beta, with beta from
    the first and the second half of a prefix (at most 1, where every word is new).
    """
    words: set[str] = set()
    seen, half = 0, (0, 0)
    for text in texts:
        words.update(_WORD.findall(text))
        seen += len(text)
        if half[0] == 0 and seen >= PREFIX_CHARACTERS / 2:
            half = (seen, len(words))
        if seen >= PREFIX_CHARACTERS:
            break
    if seen >= num_characters or half[0] in (0, seen):
        return len(words) * max(1.0, num_characters / max(1, seen))
    beta = min(1.0, math.log(len(words) / half[1]) / math.log(seen / half[0]))
    return len(words) * (num_characters / seen) ** beta


def predict_memory(folder: Path, shares: Mapping[str, float], sizes: Mapping[str, int]) -> int:
    """Memory in bytes that training the tokenizer on these shares of the sources takes, at most, as far as was
    measured: it grows with the number of distinct words.
    """
    num_words = sum(
        distinct_words(read_documents(folder / name, TRAIN), share * sizes[name])
        for name, share in shares.items()
        if share > 0
    )
    return round(MEMORY_FLOOR + MEMORY_PER_WORD * num_words)


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # there ru_maxrss begins at the peak of the process that started this one
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def training_sizes(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """Bytes to train on of each source."""
    return {name: read_ledger(folder / name)["bytes"]["train"] for name in names}


def train_on_sample(
    folder: Path, shares: Mapping[str, float], vocab_size: int, seed: int, path: Path
) -> tuple[dict[str, Any], int]:
    """Train a tokenizer on these shares of the documents below `folder`, save it at `path`; the record of the sample,
    and the bytes by which the peak of the process grew: none while it stays below an earlier peak.

    A document is in the sample by a hash of its number, so that a share is spread over the whole source.
    """
    record: dict[str, Any] = {
        "sources": {name: {"share": round(share, 6), "documents": 0, "bytes": 0} for name, share in shares.items()}
    }
    digest = hashlib.sha256()

    def texts() -> Iterator[str]:
        for name, share in shares.items():
            for i, text in enumerate(read_documents(folder / name, TRAIN)):
                draw = hashlib.blake2b(f"tokenizer:{seed}:{name}:{i}".encode(), digest_size=8).digest()
                if int.from_bytes(draw, "little") < share * 2**64:
                    record["sources"][name]["documents"] += 1
                    record["sources"][name]["bytes"] += len(text.encode())
                    digest.update(text.encode() + b"\0")
                    yield text

    before = peak_memory()
    tokenizer = train_tokenizer(texts(), vocab_size)
    write_text(path, tokenizer.to_str(pretty=True))
    record |= {
        "vocab_size": tokenizer.get_vocab_size(),
        "bytes": sum(source["bytes"] for source in record["sources"].values()),
        "sha256": digest.hexdigest(),
    }
    return record, max(0, peak_memory() - before)
