"""What windows gain at T = 8,192: models with local layers against all-global, and one local layer's attention.

    python benchmarks/window.py                 the share of one sequence, five pairs; minutes on two cores
    python benchmarks/window.py --whole         whole models of 12 layers instead of sums of their parts

A sequence of 8,192 tokens through 12 global layers takes more than a minute on two cores. By default the parts are
measured, one global and one local attention and a model with the shortest attention there is (T = 1,024, as many
tokens), and put together by how many layers of each kind a pattern has. `--whole` measures real models.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

from shard.environment import set_process_defaults

set_process_defaults()

import torch
import torch.nn.functional as F

from paired import measure, ratio, spread, words
from reference_step import random_rows, shard_step
from shard.config import Config
from shard.environment import device_name
from shard.training.decisions import DTYPES

LENGTH = 8192
PATTERNS = ("LG", "LLLLLG")
BARS = {"LG": 1.2, "LLLLLG": 1.45}


def attention_of(
    attend: "callable", config: Config, dtype: torch.dtype, device: torch.device, length: int = LENGTH, rows: int = 1
):
    """Attention of one layer forward and backward on so many sequences."""
    torch.manual_seed(0)
    shape = (rows, length, config.num_heads, config.head_dim)
    q, k, v, d_y = (torch.randn(shape).to(device, dtype).transpose(1, 2) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_()

    def run() -> None:
        torch.autograd.grad(attend(q, k, v), (q, k, v), d_y)

    return run


def main() -> None:
    """Measure and print one JSON object, then lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--whole", action="store_true", help="whole models")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--eager", action="store_true", help="not compiled")
    parser.add_argument("--rows", type=int, default=1, help="sequences of a micro-batch")
    arguments = parser.parse_args()

    how = "off" if arguments.eager else "auto"

    def step_of(pattern: str, length: int):
        config = Config(num_layers=arguments.layers, layer_pattern=pattern)
        with tempfile.TemporaryDirectory() as folder:
            return shard_step(
                Path(folder),
                config,
                sequence_length=length,
                tokens_per_step=arguments.rows * length,
                micro_batch=arguments.rows,
                compile=how,
            )

    base = step_of("LG", 1024)
    config, device, dtype = base.stage.config, base.stage.device, DTYPES[base.decisions.precision]
    # As in a run of this length, whose kernels may be made for it: compiled where that is decided.
    attend = step_of("LG", LENGTH).model.blocks[0].attention.attend

    def attend_to(window: int):
        kernel = partial(attend, window=window)
        return torch.compile(kernel, dynamic=False) if base.decisions.compile else kernel

    attention = measure(
        {
            "global": attention_of(attend_to(LENGTH), config, dtype, device, rows=arguments.rows),
            "local": attention_of(attend_to(config.sliding_window), config, dtype, device, rows=arguments.rows),
        },
        arguments.pairs,
    )
    result = {
        "device": device_name(device),
        "precision": base.decisions.precision,
        "attention_seconds": {name: spread(times) for name, times in attention.items()},
        "local_against_global": ratio(attention["global"], attention["local"]),
    }
    kinds = {pattern: Config(num_layers=arguments.layers, layer_pattern=pattern).layer_types for pattern in PATTERNS}
    if arguments.whole:
        sides = {}
        for pattern in ("G", *PATTERNS):
            work, rows = step_of(pattern, LENGTH), random_rows(config, arguments.rows, LENGTH)
            sides[pattern] = lambda work=work, rows=rows: work.accumulate_gradients(rows)
        seconds = measure(sides, arguments.pairs)
        result["how"] = "whole models"
    else:
        rows = random_rows(config, arguments.rows, 1024)
        short = attention_of(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            config,
            dtype,
            device,
            1024,
            arguments.rows,
        )
        parts = measure({"model": lambda: base.accumulate_gradients(rows), "attention": short}, arguments.pairs)
        rest = [
            LENGTH / 1024 * (a - arguments.layers * b) for a, b in zip(parts["model"], parts["attention"], strict=True)
        ]
        seconds = {
            pattern: [
                other + sum(one_local if kind == "L" else one_global for kind in types)
                for other, one_global, one_local in zip(rest, attention["global"], attention["local"], strict=True)
            ]
            for pattern, types in {"G": "G" * arguments.layers, **kinds}.items()
        }
        result["how"] = "sums of parts"
    result["seconds"] = {pattern: spread(times) for pattern, times in seconds.items()}
    result["speed_against_all_global"] = {pattern: ratio(seconds["G"], seconds[pattern]) for pattern in PATTERNS}
    print(json.dumps(result, indent=2))
    print(f"one local layer's attention is {words(result['local_against_global'])} times as fast as a global one's")
    for pattern in PATTERNS:
        print(f"{pattern}: {words(result['speed_against_all_global'][pattern])} times the speed of all-global")


if __name__ == "__main__":
    main()
