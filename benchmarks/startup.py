"""How long Shard takes to start: its commands, and a training up to the end of its first micro-batch.

    python benchmarks/startup.py              the 54.5M model, compiled: one start without the compiler's cache, then 3
    python benchmarks/startup.py --commands   only `shard --help` and its like

Every start is a process of its own, timed from before it begins to the end of its first micro-batch of --rows
sequences of random tokens. The first start finds no decisions and no compiled code, the later ones find what it left.
The second micro-batch shows what of the first was computing. Reading data and a checkpoint are not part of it.
Processor time, of all threads, is given too, for a machine that others use.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shard.recipe import Recipe

COMMANDS = {
    "shard --version": ["--version"],
    "shard --help": ["--help"],
    "shard run --help": ["run", "--help"],
    "shard plan --help": ["plan", "--help"],
    "shard status RUN": ["status", "RUN"],
}


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and spread."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def processor_seconds() -> float:
    """Of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def time_commands(run: Path, repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds of whole processes, in turns; the first of each, which reads the disk, is left out."""
    run.mkdir()
    (run / "recipe.toml").write_text(Recipe.load("quickstart").to_toml(), encoding="utf-8")
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for i in range(repeats + 1):
        for name, arguments in COMMANDS.items():
            command = [sys.executable, "-m", "shard", *(str(run) if a == "RUN" else a for a in arguments)]
            begun, used = time.perf_counter(), processor_seconds()
            subprocess.run(command, check=True, capture_output=True)
            if i > 0:
                measured[name].append((time.perf_counter() - begun, processor_seconds() - used))
    columns = {name: zip(*pairs, strict=True) for name, pairs in measured.items()}
    return {
        name: dict(zip(("seconds", "processor_seconds"), map(summary, map(list, both)), strict=True))
        for name, both in columns.items()
    }


def time_starts(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The first start and the later ones, all with a compiler cache of their own."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    environment.pop("TRITON_CACHE_DIR", None)
    starts = []
    for _ in range(1 + arguments.starts):
        command = [sys.executable, __file__, *sys.argv[1:], "--begun", str(time.time()), "--folder", str(folder)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        starts.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"start: {starts[-1]['seconds']:.1f} s", file=sys.stderr)
    cold, *warm = starts
    result = {key: cold.pop(key) for key in ("device", "parameters", "precision", "compiled")}
    size = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    result |= {"sequence_length": arguments.sequence_length, "rows": arguments.rows, "cache_bytes": size, "cold": cold}
    if warm:
        parts = {part: summary([start["parts"][part] for start in warm]) for part in cold["parts"]}
        seconds = summary([start["seconds"] for start in warm])
        used = {key: summary([start[key] for start in warm]) for key in cold if key.startswith("processor")}
        result["warm"] = {"seconds": seconds, "parts": parts, **used, "cache": warm[-1]["cache"]}
    return result


def start_training(arguments: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own that began at time.time() = `begun`: the parts of its start."""
    parts, last = {}, arguments.begun

    def end_of(part: str) -> None:
        nonlocal last
        now = time.time()
        parts[part], last = now - last, now

    from shard.environment import set_process_defaults

    set_process_defaults()
    import torch
    from torch._dynamo.utils import compilation_time_metrics, counters

    from reference_step import random_rows, shard_step
    from shard.config import Config
    from shard.environment import environment

    end_of("interpreter and imports")
    config = Config(num_layers=arguments.layers)
    batch = random_rows(config, arguments.rows, arguments.sequence_length)
    tokens = arguments.rows * arguments.sequence_length
    how = {"sequence_length": arguments.sequence_length, "tokens_per_step": tokens, "micro_batch": arguments.rows}
    step = shard_step(arguments.folder, config, compile="off" if arguments.eager else "auto", **how)
    end_of("decisions, model and optimizer")
    processor = []
    for micro_batch in ("first micro-batch", "second micro-batch"):
        step.accumulate_gradients(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        end_of(micro_batch)
        processor.append(time.process_time())
    computing = parts.pop("second micro-batch")
    first = parts.pop("first micro-batch")
    spent = {name: sum(seconds) for name, seconds in compilation_time_metrics.items()}
    tracing = spent.get("_compile.compile_inner", 0.0) - spent.get("OutputGraph.call_user_compiler", 0.0)
    parts |= {
        "tracing": tracing,
        "compiling, or reading what was compiled": first - computing - tracing,
        "computing (the second micro-batch)": computing,
    }
    return {
        "seconds": sum(parts.values()),
        "parts": parts,
        "processor_seconds": processor[0],
        "processor_seconds_of_computing": processor[1] - processor[0],
        "cache": {
            f"{stage} {outcome}": counters[group][f"{name}_{outcome}"]
            for stage, group, name in (
                ("graphs", "aot_autograd", "autograd_cache"),
                ("code", "inductor", "fxgraph_cache"),
            )
            for outcome in ("hit", "miss", "bypass")
        },
        "device": environment(step.stage.device)["device"],
        "parameters": sum(p.numel() for p in step.model.parameters()),
        "precision": step.decisions.precision,
        "compiled": step.decisions.compile,
    }


def lines(result: dict[str, Any]) -> list[str]:
    """The result, to read."""
    spread = "{median:.2f} s ({min:.2f} to {max:.2f})"
    text = [
        f"{name:<18} {spread.format(**of['seconds'])}; processor {spread.format(**of['processor_seconds'])}"
        for name, of in result["commands"].items()
    ]
    if "training" in result:
        training = result["training"]
        text.append(f"first micro-batch without the compiler's cache: {training['cold']['seconds']:.1f} s")
        if "warm" in training:
            text.append(f"first micro-batch with it: {spread.format(**training['warm']['seconds'])}")
            text += [f"  {part:<42} {spread.format(**s)}" for part, s in training["warm"]["parts"].items()]
            processor, computing = (training["warm"][f"processor_seconds{of}"] for of in ("", "_of_computing"))
            text.append(f"  processor {spread.format(**processor)}, of which computing {spread.format(**computing)}")
    return text


def main() -> None:
    """Measure; print one JSON object, then lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", action="store_true", help="leave the training out")
    parser.add_argument("--repeats", type=int, default=10, help="of each command")
    parser.add_argument("--starts", type=int, default=3, help="of a training, with a warm cache")
    parser.add_argument("--rows", type=int, default=1, help="sequences of a micro-batch")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.begun is not None:
        print(json.dumps(start_training(arguments)))
        return
    with tempfile.TemporaryDirectory() as name:
        result: dict[str, Any] = {"commands": time_commands(Path(name) / "run", arguments.repeats)}
        if not arguments.commands:
            result["training"] = time_starts(Path(name), arguments)
    print(json.dumps(result, indent=2))
    print("\n".join(lines(result)))


if __name__ == "__main__":
    main()
