"""What training costs from 3M to 412M parameters, on 1 to 8 GPUs: by arithmetic, and what binds (docs/scaling.md).

    python benchmarks/scaling.py                     the table for GPUs, from published peaks; computes nothing
    python benchmarks/scaling.py --measure           this machine: its own rates, then a step of each size against them
    python benchmarks/scaling.py --gpus rtx-4090     one kind only

Seconds of a step are a sum, since none of these overlaps with another in Shard:

    compute   FLOPs of products and attention / (peak * PRODUCT_RATE), and Newton-Schulz's, which ranks divide
    memory    bytes that everything between the products reads and writes, and that the update does / bandwidth
    network   the sum of fp32 gradients, a ring: 2 (n - 1) / n of them; orthogonalised matrices, (n - 1) / n of them
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shard.environment import set_process_defaults

set_process_defaults()

import torch

from memory import SIZES
from paired import ratio, seconds_of, spread
from reference_step import random_rows, shard_step
from shard.config import Config
from shard.model import ShardLM
from shard.muon import GRAM_ASPECT, GRAM_RESTARTS, POLAR_EXPRESS
from shard.training.cost import count_parameters, flops_per_token
from shard.training.memory import inner_width, predict_memory
from shard.training.settings import StageSettings

PRODUCT_RATE = 0.47
"""Of the peak, in products and attention alone: 25.7 ms for 32,768 tokens of the 54.5M model, measured on an H200."""
LOGIT_PASSES = 6
"""How often a chunk of fp32 logits is written or read: product, log-sum-exp, cap, gradient, two products of it."""
UPDATE_PASSES = 12
"""How often the update reads or writes an fp32 value of each matrix: momentum, direction, norm, iterates, weight."""


@dataclass(frozen=True)
class Device:
    """Published peaks of one device; bytes a second are in one direction."""

    flops: float
    bandwidth: float
    network: float
    memory: float


GPUS = {
    "rtx-4090": Device(165e12, 1.008e12, 20e9, 24e9),
    "h100": Device(989e12, 3.35e12, 400e9, 80e9),
    "h200": Device(989e12, 4.8e12, 400e9, 141e9),
}
MODELS = {name: config for name, (config, _) in SIZES.items()} | {
    "125M": Config(vocab_size=32768, hidden_size=768, num_heads=12, intermediate_size=2560),
    "412M mixture": Config(
        vocab_size=262144,
        hidden_size=768,
        num_heads=12,
        intermediate_size=1648,
        moe={"num_experts": 3, "top_k": 1, "num_shared": 1},
    ),
}
STEP_TOKENS, SEQUENCE, RANKS = 131_072, 1024, (1, 2, 4, 8)


@dataclass(frozen=True)
class StepCost:
    """Seconds of one step."""

    products: float
    newton_schulz: float
    traffic: float
    update: float
    network: float

    @property
    def seconds(self) -> float:
        """Of all, one after the other."""
        return self.products + self.newton_schulz + self.traffic + self.update + self.network

    @property
    def bound(self) -> str:
        """What each takes of the whole, the largest first."""
        parts = {
            "compute": self.products + self.newton_schulz,
            "memory": self.traffic + self.update,
            "network": self.network,
        }
        order = sorted((name for name in parts if parts[name]), key=lambda name: -parts[name])
        return ", ".join(f"{name} {parts[name] / self.seconds:.0%}" for name in order)


def newton_schulz_flops(config: Config, size: int) -> int:
    """Of a step: for m <= n five times X X^T, A^2 and (b A + c A^2) X; long ones as muon.iterate_gram does it in fp32
    (4 bytes a value), or in fp16 on a GPU.
    """
    with torch.device("meta"):
        model = ShardLM(config)
    gram_matrices = 1 + len(GRAM_RESTARTS[torch.float32 if size == 4 else torch.float16])
    roles, steps, total = model.parameter_roles(), len(POLAR_EXPRESS), 0
    for name, parameter in model.named_parameters():
        if roles[name] == "matrix":
            m, n = sorted(parameter.shape[-2:])
            flops = steps * (4 * m * m * n + 2 * m**3)
            if n >= GRAM_ASPECT * m:
                flops = (8 * steps - 6 * gram_matrices) * m**3 + 4 * gram_matrices * m * m * n
            total += parameter.numel() // (m * n) * flops
    return total


def traffic_bytes(config: Config, size: int) -> int:
    """What a token makes the operations between the products read and write, forward and backward, if each runs once
    over its operands; the backward pass counts twice.
    """
    hidden, inner, width = config.hidden_size, inner_width(config), config.num_heads * config.head_dim
    norms = 2 * 2 * hidden
    sums = 2 * 3 * hidden
    rotary = 2 * 2 * width
    gate = 3 * inner
    layer = 3 * size * (norms + sums + rotary + gate)
    return config.num_layers * layer + LOGIT_PASSES * 4 * config.vocab_size


def step_cost(
    config: Config, device: Device, ranks: int, tokens: int, size: int = 2, rate: float = PRODUCT_RATE
) -> StepCost:
    """Of `tokens` in one step of `ranks` devices; `size` is the bytes of a value in the compute dtype."""
    count = count_parameters(config)
    mine = tokens / ranks
    # A causal kernel computes half of the scores that flops_per_token counts.
    dense = 6 * (count.matrix - count.idle + count.embedding)
    attention = (flops_per_token(config, SEQUENCE) - dense) / 2
    sent = 2 * (ranks - 1) / ranks * 4 * count.total + (ranks - 1) / ranks * size * count.matrix
    adam_passes = 7  # reads weight, gradient and both moments, writes all but the gradient
    return StepCost(
        products=mine * (dense + attention) / (device.flops * rate),
        newton_schulz=newton_schulz_flops(config, size) / ranks / (device.flops * rate),
        traffic=mine * traffic_bytes(config, size) / device.bandwidth,
        update=4 * (UPDATE_PASSES * count.matrix + adam_passes * count.embedding) / device.bandwidth,
        network=sent / device.network if ranks > 1 else 0.0,
    )


def fits(config: Config, device: Device) -> int:
    """The most sequences of a micro-batch, a power of two, that fit into 90 % of the memory; 0 if none does."""
    settings = StageSettings(
        steps=1, mix={"text": 1.0}, tokens_per_step=STEP_TOKENS, sequence_length=SEQUENCE, micro_batch=1
    )
    rows = STEP_TOKENS // SEQUENCE
    while rows and predict_memory(config, settings, rows, "bf16", True, "cuda").peak > 0.9 * device.memory:
        rows //= 2
    return rows


def print_table(names: list[str]) -> None:
    """One line for each device and size, as a table of Markdown."""
    columns = " | ".join(f"{ranks} x" for ranks in RANKS)
    print(f"| device | parameters | micro-batch | {columns} | binds 1 x | binds {RANKS[-1]} x | 20:1 on one |")
    print("| --- | --- | --- |" + " --- |" * (len(RANKS) + 3))
    for name in names:
        device = GPUS[name]
        for size, config in MODELS.items():
            costs = [step_cost(config, device, ranks, STEP_TOKENS) for ranks in RANKS]
            speeds = [STEP_TOKENS / cost.seconds for cost in costs]
            hours = 20 * count_parameters(config).total / speeds[0] / 3600
            thousands = " | ".join(f"{speed / 1000:,.0f}" for speed in speeds)
            bounds = f"{costs[0].bound} | {costs[-1].bound}"
            print(f"| {name} | {size} | {fits(config, device)} | {thousands} | {bounds} | {hours:.2g} h |")


def machine_rates(config: Config, tokens: int, dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    """FLOP/s of a product of this model's shape, and bytes a second of a sum of two tensors that fit in no cache."""
    x = torch.randn(tokens, config.hidden_size).to(device, dtype)
    weight = torch.randn(config.intermediate_size, config.hidden_size).to(device, dtype)
    a, b = torch.ones(2, 2**25, device=device)
    seconds_of(lambda: x @ weight.T)
    product = min(seconds_of(lambda: x @ weight.T) for _ in range(5))
    total = min(seconds_of(lambda: torch.add(a, b, out=a)) for _ in range(5))
    return 2 * x.numel() * config.intermediate_size / product, 3 * 4 * a.numel() / total


def measure(name: str, pairs: int) -> dict[str, object]:
    """A step of one micro-batch of this size on this machine, and what the arithmetic says with its own rates."""
    config, rows = MODELS[name], 2
    tokens = rows * SEQUENCE
    with tempfile.TemporaryDirectory() as folder:
        shape = {"sequence_length": SEQUENCE, "tokens_per_step": tokens, "micro_batch": rows}
        work = shard_step(Path(folder), config, **shape)
    batch, decisions = random_rows(config, rows, SEQUENCE), work.decisions
    size = 4 if decisions.precision == "fp32" else 2
    predicted, measured = [], []
    for step in range(1, 2 + pairs):
        flops, bandwidth = machine_rates(config, tokens, decisions.dtype, work.stage.device)
        measured.append(seconds_of(partial(lambda step: work.launch(step, batch).wait(), step)))
        here = Device(flops, bandwidth, network=1.0, memory=0.0)
        predicted.append(step_cost(config, here, 1, tokens, size, rate=1.0).seconds)
    return {
        "model": name,
        "tokens": tokens,
        "precision": decisions.precision,
        "compiled": decisions.compile,
        "gflops": flops / 1e9,
        "gbytes": bandwidth / 1e9,
        "seconds": spread(measured[1:]),  # the first one compiles
        "predicted_of_measured": ratio(predicted[1:], measured[1:]),
    }


def main() -> None:
    """Print the table, or measure this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", nargs="+", choices=list(GPUS), default=list(GPUS))
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--sizes", nargs="+", choices=list(MODELS), default=list(MODELS)[:5])
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.measure:
        for name in arguments.sizes:
            print(json.dumps(measure(name, arguments.pairs)), flush=True)
    else:
        print_table(arguments.gpus)


if __name__ == "__main__":
    main()
