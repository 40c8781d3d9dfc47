"""evaluation.json: every held-out document scored, beside what xz makes of the same text, and sampled outputs."""

from pathlib import Path
from typing import Any

from shard.console import Reporter
from shard.data import documents
from shard.evaluation.bits_per_byte import encode_heldout, score, xz_bits_per_byte
from shard.evaluation.settings import EvaluateSettings
from shard.inference.load import LoadedModel


def evaluate_sources(
    loaded: LoadedModel, data: Path, sources: list[str], settings: EvaluateSettings, reporter: Reporter
) -> dict[str, Any]:
    """Scores by source: bits_per_byte, cross_entropy_nats, xz_bits_per_byte, bytes, documents, tokens."""
    context = min(settings.context or loaded.model.config.max_sequence_length, loaded.model.config.max_sequence_length)
    stride = max(1, round(context * settings.stride_share))
    dtype = loaded.model.embedding.weight.dtype
    results: dict[str, Any] = {}
    for name in sources:
        reporter.progress(f"evaluate: {name}")
        texts = list(documents.read_documents(data / name, documents.HELDOUT))
        heldout = encode_heldout(texts, loaded.tokenizer, loaded.separator_id, None)
        result = score(loaded.model, heldout, context, stride, dtype)
        results[name] = {
            "bits_per_byte": round(result.bits_per_byte, 5),
            "cross_entropy_nats": round(result.cross_entropy_nats, 5),
            "xz_bits_per_byte": round(xz_bits_per_byte(texts), 5),
            "bytes": result.num_bytes,
            "documents": len(texts),
            "tokens": result.num_tokens,
        }
    reporter.end_progress()
    reporter.table(
        f"Held-out text (context {context}, stride {stride})",
        ["source", "text", "bits per byte", "xz -9e", "nats per token"],
        [
            [
                n,
                f"{s['bytes']:,}",
                f"{s['bits_per_byte']:.4f}",
                f"{s['xz_bits_per_byte']:.4f}",
                f"{s['cross_entropy_nats']:.4f}",
            ]
            for n, s in results.items()
        ],
    )
    return {"context": context, "stride": stride, "sources": results}
