"""The bounded sample that the tokenizer is trained on, and what that training will need.

Memory of BPE training grows with the number of distinct words, not only with the bytes read, and has no bound of its
own: so the sample is bounded, recorded, and its memory predicted before it starts.
"""

import hashlib
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shard.data.documents import TRAIN, read_documents, read_ledger
from shard.tokenizer import train_tokenizer

# Measured (docs/data.md): peak growth of the process for each byte of sample text, rounded up.
MEMORY_PER_BYTE = 12
MEMORY_FLOOR = 100_000_000


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


def predicted_memory(sample_bytes: int) -> int:
    """Memory in bytes that training a tokenizer on so much text takes, at most, as far as was measured."""
    return MEMORY_FLOOR + MEMORY_PER_BYTE * sample_bytes


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def train_on_sample(
    folder: Path, weights: Mapping[str, float], sample_bytes: int, vocab_size: int, seed: int, path: Path
) -> dict[str, Any]:
    """Train a tokenizer on a sample of the documents below `folder`, save it at `path`; the record of the sample."""
    sizes = {name: read_ledger(folder / name)["bytes"]["train"] for name in weights}
    shares = sample_shares(weights, sizes, sample_bytes)
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
    tokenizer.save(str(path))
    record |= {
        "vocab_size": tokenizer.get_vocab_size(),
        "bytes": sum(source["bytes"] for source in record["sources"].values()),
        "sha256": digest.hexdigest(),
        "predicted_memory_bytes": predicted_memory(min(sample_bytes, sum(sizes.values()))),
        "measured_memory_bytes": max(0, peak_memory() - before),
    }
    return record
