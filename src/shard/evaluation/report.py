"""evaluation.json: every held-out document scored, beside what xz makes of the same text, and sampled outputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shard.console import Reporter
from shard.data import documents
from shard.evaluation.bits_per_byte import encode_heldout, score, xz_bits_per_byte
from shard.evaluation.settings import EvaluateSettings
from shard.inference.load import LoadedModel
from shard.inference.sampling import generate_ids

SAMPLE = {"temperature": 0.7, "top_p": 0.9, "seed": 0, "max_tokens": 60}


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


def draw_samples(loaded: LoadedModel, prompts: Sequence[str]) -> list[dict[str, str]]:
    """What the model writes after each prompt, at a fixed temperature, top-p and seed."""
    samples = []
    for prompt in prompts:
        ids = loaded.tokenizer.encode(prompt, add_special_tokens=False).ids or [loaded.separator_id]
        if len(ids) >= loaded.model.config.max_sequence_length:
            continue
        new = generate_ids(
            loaded.model,
            ids,
            int(SAMPLE["max_tokens"]),
            SAMPLE["temperature"],
            SAMPLE["top_p"],
            int(SAMPLE["seed"]),
            stop_id=loaded.separator_id,
        )
        samples.append({"prompt": prompt, "text": loaded.tokenizer.decode([*ids, *new])})
    return samples
