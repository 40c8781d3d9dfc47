"""What int8 weights cost: held-out bits per byte with them and without, on the same text."""

from pathlib import Path
from typing import Any

import torch

from shard.console import Reporter
from shard.data import documents
from shard.environment import choose_device
from shard.errors import UsageError
from shard.evaluation.bits_per_byte import encode_heldout, score
from shard.evaluation.settings import EvaluateSettings
from shard.inference.load import load_model
from shard.inference.quantize import check_int8, quantize

BYTES = 20_000
"""Text of each source that is scored: both models read the same, so that little is enough to compare them."""


def measure_int8_loss(
    path: Path, data: Path, sources: list[str], settings: EvaluateSettings, reporter: Reporter
) -> dict[str, Any] | None:
    """By source the bits per byte in fp32 and in int8 and the difference in percent; None where there is no int8.

    Every product runs on the kernel of a decode step: what it rounds besides the weights is in the difference too.
    """
    device = choose_device()
    try:
        check_int8(device)
    except UsageError:
        return None
    loaded = load_model(path, torch.float32, device)
    if loaded.model.config.moe is not None:
        return None
    reporter.progress("bench: bits per byte with int8 weights")
    context = loaded.model.config.max_sequence_length
    context = min(settings.context or context, context)
    stride = max(1, round(context * settings.stride_share))
    heldout = {
        name: encode_heldout(
            documents.read_documents(data / name, documents.HELDOUT), loaded.tokenizer, loaded.separator_id, BYTES
        )
        for name in sources
    }

    def bits_per_byte() -> dict[str, float]:
        return {
            name: score(loaded.model, text, context, stride, torch.float32).bits_per_byte
            for name, text in heldout.items()
            if text.documents
        }

    exact = bits_per_byte()
    quantize(loaded.model, most_rows=2**31)
    rounded = bits_per_byte()
    reporter.end_progress()
    changes = {name: 100 * (rounded[name] / exact[name] - 1) for name in exact}
    if changes:
        worst = max(changes, key=lambda name: abs(changes[name]))
        reporter.line(f"bench: int8 changes bits per byte by {changes[worst]:+.3f} % at most ({worst})")
    return {
        "bytes_per_source": BYTES,
        "sources": {
            name: {
                "fp32_bits_per_byte": round(exact[name], 5),
                "int8_bits_per_byte": round(rounded[name], 5),
                "change_percent": round(changes[name], 4),
            }
            for name in exact
        },
    }
