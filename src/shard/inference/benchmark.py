"""benchmark.json: how fast the model is on this device, each figure with its spread over several runs."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shard.console import Reporter
from shard.environment import choose_device, device_name, versions
from shard.inference.load import load_model
from shard.inference.sampling import generate_ids
from shard.training.decisions import DTYPES
from shard.training.metrics import read_jsonl

RUNS = 5
DECODE_TOKENS = 64


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "runs": len(values),
    }


def _timed(action: Callable[[], object], device: torch.device) -> float:
    begun = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def training_speed(stage_folder: Path) -> dict[str, float] | None:
    """Tokens a second of a stage: median, min and max over its steps, the first ones (compilation) left out."""
    speeds = [line["timing"]["tokens_per_second"] for line in read_jsonl(stage_folder / "metrics.jsonl")]
    return _spread(speeds[min(5, len(speeds) // 2) :]) if speeds else None


def benchmark_run(folder: Path, reporter: Reporter) -> dict[str, Any]:
    """Greedy decode tokens/s, time to first token and prefill tokens/s in fp32 and bf16 (batch 1, KV cache); the
    model's footprint; the training speed of the run's own stages.
    """
    device = choose_device()
    inference: dict[str, Any] = {}
    for name, dtype in DTYPES.items():
        reporter.progress(f"bench: {name}")
        loaded = load_model(folder, dtype, device)
        model = loaded.model
        context = model.config.max_sequence_length
        num_prompt = max(1, min(256, context // 2))
        num_decode = max(1, min(DECODE_TOKENS, context - num_prompt))
        generator = torch.Generator().manual_seed(0)
        prompt = torch.randint(0, model.config.vocab_size, (num_prompt,), generator=generator).tolist()

        def generate(count: int, model: Any = model, prompt: list[int] = prompt) -> list[int]:
            return list(generate_ids(model, prompt, count))

        generate(min(4, num_decode))  # first touches of memory are not what is measured
        first, whole = [], []
        for _ in range(RUNS):
            first.append(_timed(lambda run=generate: run(1), device))  # type: ignore[misc]
            whole.append(_timed(lambda run=generate, n=num_decode: run(n), device))  # type: ignore[misc]
        decode = [(num_decode - 1) / max(w - f, 1e-9) for f, w in zip(first, whole, strict=True)]
        inference[name] = {
            "prompt_tokens": num_prompt,
            "decode_tokens": num_decode,
            "decode_tokens_per_second": _spread(decode),
            "time_to_first_token_seconds": _spread(first),
            "prefill_tokens_per_second": _spread([num_prompt / seconds for seconds in first]),
            "footprint_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        }
    reporter.end_progress()
    training = {stage: training_speed(folder / stage) for stage in ("pretrain", "anneal")}
    reporter.table(
        f"Inference on {device_name(device)}, batch 1",
        ["precision", "decode tokens/s", "first token ms", "prefill tokens/s"],
        [
            [
                name,
                f"{r['decode_tokens_per_second']['median']:,.0f}",
                f"{1000 * r['time_to_first_token_seconds']['median']:.1f}",
                f"{r['prefill_tokens_per_second']['median']:,.0f}",
            ]
            for name, r in inference.items()
        ],
    )
    return {
        "device": device_name(device),
        "versions": versions(),
        "inference": inference,
        "training_tokens_per_second": {stage: speed for stage, speed in training.items() if speed},
    }
