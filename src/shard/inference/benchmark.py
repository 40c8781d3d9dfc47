"""benchmark.json: how fast the model is on this device, each figure with its spread over several runs."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shard.console import Reporter
from shard.environment import choose_device, device_name, versions
from shard.errors import UsageError
from shard.inference.decoder import Decoder
from shard.inference.generate import continue_prompt
from shard.inference.kernels import choose_kernels
from shard.inference.load import load_in_precision
from shard.inference.memory import peak_tensor_bytes
from shard.inference.quantize import check_int8
from shard.inference.sampling import generate_ids
from shard.training.metrics import read_jsonl
from shard.units import format_size

RUNS = 5
PROMPT_TOKENS = 256
DECODE_TOKENS = 64
PUBLISHED_RUNS = 3
PUBLISHED_TOKENS = (6, 40)
"""Prompt and continuation of the loop in the card: "The capital of France is", and 40 tokens."""


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "runs": len(values),
    }


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, on a GPU until it is done."""
    begun = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def training_speed(stage_folder: Path) -> dict[str, float] | None:
    """Tokens a second of a stage: median, min and max over its steps, the first ones (compilation) left out."""
    speeds = [line["timing"]["tokens_per_second"] for line in read_jsonl(stage_folder / "metrics.jsonl")]
    return _spread(speeds[min(5, len(speeds) // 2) :]) if speeds else None


def precisions(device: torch.device, is_dense: bool = True) -> tuple[str, ...]:
    """What is timed on a device: fp16 is for GPUs, int8 for dense models on CPUs that have its kernels."""
    if device.type != "cpu":
        return "fp32", "bf16", "fp16"
    try:
        check_int8(device)
    except UsageError:
        return "fp32", "bf16"
    return ("fp32", "bf16", "int8") if is_dense else ("fp32", "bf16")


def _prompt(vocab_size: int, num_tokens: int) -> list[int]:
    return torch.randint(0, vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(0)).tolist()


def measure_decoder(decoder: Decoder) -> dict[str, Any]:
    """Greedy decode tokens/s, time to first token, prefill tokens/s (batch 1), footprint, and the peak of memory above
    the weights: caches, activations and logits of a prompt and some steps.
    """
    model, device = decoder.model, decoder.device
    context = model.config.max_sequence_length
    num_prompt = max(1, min(PROMPT_TOKENS, context // 2))
    num_decode = max(1, min(DECODE_TOKENS, context - num_prompt))
    prompt = _prompt(model.config.vocab_size, num_prompt)

    def generate(count: int) -> list[int]:
        return list(continue_prompt(decoder, prompt, count))

    generate(num_decode)  # first touches of memory, and a compilation, are not what is measured
    first, whole = [], []
    for _ in range(RUNS):
        first.append(timed(lambda: generate(1), device))
        whole.append(timed(lambda: generate(num_decode), device))
    decode = [(num_decode - 1) / max(w - f, 1e-9) for f, w in zip(first, whole, strict=True)]
    return {
        "prompt_tokens": num_prompt,
        "decode_tokens": num_decode,
        "decode_tokens_per_second": _spread(decode),
        "time_to_first_token_seconds": _spread(first),
        "prefill_tokens_per_second": _spread([num_prompt / seconds for seconds in first]),
        "footprint_bytes": sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]),
        "peak_memory_above_weights_bytes": _spread(
            [peak_tensor_bytes(lambda: generate(min(num_decode, 8)), device) for _ in range(RUNS)]
        ),
    }


def measure_published_loop(decoder: Decoder) -> dict[str, float]:
    """Tokens/s of the loop that a card shows, which recomputes all tokens at each step."""
    config = decoder.model.config
    num_prompt = min(PUBLISHED_TOKENS[0], config.max_sequence_length - 1)
    count = min(PUBLISHED_TOKENS[1], config.max_sequence_length - num_prompt)
    prompt = _prompt(config.vocab_size, num_prompt)

    def generate() -> list[int]:
        return list(generate_ids(decoder.model, prompt, count, use_cache=False))

    return _spread([count / timed(generate, decoder.device) for _ in range(PUBLISHED_RUNS)])


def benchmark_run(folder: Path, reporter: Reporter, is_dense: bool = True) -> dict[str, Any]:
    """What `measure_decoder` says in each precision that the device has, eager as `shard generate` runs; the published
    loop in bf16, the precision of a release; the training speed of the run's own stages.
    """
    device = choose_device()
    inference: dict[str, Any] = {}
    published: dict[str, float] = {}
    for name in precisions(device, is_dense):
        reporter.progress(f"bench: {name}")
        decoder = Decoder(load_in_precision(folder, name, device).model)
        inference[name] = measure_decoder(decoder)
        if name == "bf16":
            published = measure_published_loop(decoder)
    reporter.end_progress()
    training = {stage: training_speed(folder / stage) for stage in ("pretrain", "anneal")}
    reporter.table(
        f"Inference on {device_name(device)}, batch 1",
        ["precision", "decode tokens/s", "first token ms", "prefill tokens/s", "weights", "memory above them"],
        [
            [
                name,
                f"{r['decode_tokens_per_second']['median']:,.0f}",
                f"{1000 * r['time_to_first_token_seconds']['median']:.1f}",
                f"{r['prefill_tokens_per_second']['median']:,.0f}",
                format_size(r["footprint_bytes"]),
                format_size(r["peak_memory_above_weights_bytes"]["median"]),
            ]
            for name, r in inference.items()
        ],
    )
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "int8_kernels": choose_kernels()[1] if "int8" in inference else None,
        "inference": inference,
        "published_loop_tokens_per_second": published,
        "training_tokens_per_second": {stage: speed for stage, speed in training.items() if speed},
    }
