"""What the card quotes from evaluation.json and benchmark.json."""

from typing import Any

from shard.release.card.facts import Facts
from shard.release.card.markdown import bullets, cell, picture, table
from shard.units import format_size

NOT_MEASURED = "Not measured in this run.\n"


def evaluation_section(facts: Facts) -> str:
    """Bits per byte by source, and the tasks."""
    evaluation = facts.evaluation
    if not evaluation:
        return f"## Evaluation\n\n{NOT_MEASURED}"
    rows = [
        [
            name,
            f"{s['bytes']:,}",
            f"{s['bits_per_byte']:.4f}",
            f"{s['xz_bits_per_byte']:.4f}",
            f"{s['cross_entropy_nats']:.4f}",
        ]
        for name, s in evaluation["sources"].items()
    ]
    columns = ["held-out source", "bytes", "bits per byte", "xz -9e, bits per byte", "cross-entropy, nats a token"]
    return (
        "## Evaluation\n\n" + table(columns, rows) + f"\n{evaluation['precision']}; windows of {evaluation['context']} "
        f"tokens that advance by {evaluation['stride']}; no context across documents.\n"
        + picture(facts.bundle, "bits_per_byte", "Bits per byte of held-out text by step")
        + _tasks(facts)
    )


def _tasks(facts: Facts) -> str:
    """Each result beside its standard error and what it would be by chance."""
    rows = [
        [
            f"{name}: {score['metric']}" if i == 0 else score["metric"],
            f"{score['value']:.4f}",
            f"{score['standard_error']:.4f}",
            f"{score['chance']:.4g}",
            f"{score['items']:,}",
        ]
        for name, results in facts.tasks().items()
        for i, score in enumerate(results)
    ]
    missing = [f"Not measured: {name} ({reason})." for name, reason in not_measured(facts).items()]
    if not rows and not missing:
        return ""
    columns = ["task of the mini-suite", "value", "standard error", "chance", "items"]
    return "\n" + (table(columns, rows) + "\n" if rows else "") + bullets(missing)


def not_measured(facts: Facts) -> dict[str, str]:
    """Tasks that were not measured, and why."""
    tasks: dict[str, Any] = facts.evaluation.get("tasks") or {}
    return {name: task["not_measured"] for name, task in tasks.items() if task.get("not_measured")}


def benchmark_section(facts: Facts) -> str:
    """Speed and memory on the device of the benchmark, and what int8 changes."""
    benchmark = facts.benchmark
    if not benchmark:
        return f"## Benchmark\n\n{NOT_MEASURED}"
    inference = benchmark["inference"]
    has_memory = all("peak_memory_above_weights_bytes" in r for r in inference.values())
    rows = [
        [
            name,
            _spread(r["decode_tokens_per_second"]),
            _spread(r["time_to_first_token_seconds"], 1000, 1),
            _spread(r["prefill_tokens_per_second"]),
            format_size(r["footprint_bytes"]),
            *([format_size(r["peak_memory_above_weights_bytes"]["median"])] if has_memory else []),
        ]
        for name, r in inference.items()
    ]
    columns = ["precision", "greedy decode, tokens/s", "first token, ms", "prefill, tokens/s", "weights"]
    columns += ["memory above them"] if has_memory else []
    lines = [
        f"Training, {stage}: {_spread(speed)} tokens/s."
        for stage, speed in benchmark["training_tokens_per_second"].items()
    ]
    if loop := benchmark.get("published_loop_tokens_per_second"):
        lines.append(f"The lines below, without a cache, in bf16: {_spread(loop)} tokens/s.")
    return (
        f"## Benchmark\n\n{benchmark['device']}, torch {benchmark['versions']['torch']}, batch 1; "
        "median (least to most).\n\n" + table(columns, rows) + "\n" + bullets(lines) + _int8(benchmark)
    )


def _spread(value: dict[str, float], factor: float = 1, digits: int = 0) -> str:
    low, high = value["min"] * factor, value["max"] * factor
    return f"{value['median'] * factor:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _int8(benchmark: dict[str, Any] | Any) -> str:
    """The loss of int8 weights, where the device has them."""
    int8 = benchmark.get("int8")
    if not int8 or not int8.get("sources"):
        return ""
    rows = [
        [
            name,
            f"{s['fp32_bits_per_byte']:.4f}",
            f"{s['int8_bits_per_byte']:.4f}",
            f"{s['change_percent']:+.3f} %",
        ]
        for name, s in int8["sources"].items()
    ]
    columns = ["held-out source", "fp32, bits per byte", "int8, bits per byte", "change"]
    return (
        f"\nWhat int8 weights cost, on the first {format_size(int8['bytes_per_source'])} of each source:\n\n"
        + table(columns, rows)
    )


def samples_section(facts: Facts) -> str:
    """What the model wrote after the prompts of the recipe."""
    evaluation = facts.evaluation
    if not evaluation.get("samples"):
        return ""
    how = evaluation["sampling"]
    rows = [[cell(s["prompt"]), cell(s["text"][len(s["prompt"]) :])] for s in evaluation["samples"]]
    return (
        f"## Sampled outputs\n\nTemperature {how['temperature']}, top-p {how['top_p']}, seed {how['seed']}, at most "
        f"{how['max_tokens']} tokens, the first draw of each.\n\n" + table(["prompt", "continuation"], rows)
    )
