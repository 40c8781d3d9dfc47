"""Does a mixture of experts pay at equal active parameters, and which scores and which balance?

Tiny models on the bytes of the standard library's Python files, all with the same tokens in the same order and the same
parameters at work for each token (the routers apart): a dense one, and mixtures of 3 experts whose width is half of its
feed-forward layer. What is compared is the bits per byte of files that none was trained on; three seeds each.

    python benchmarks/moe.py [--steps 120] [--seeds 3] [--out FILE]
"""

import argparse
import json
import random
import statistics
import sysconfig
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from shard.config import Config
from shard.model import Routing, ShardLM
from shard.training.cost import count_parameters
from shard.training.loss import chunked_loss
from shard.training.optimizer import Optimizer
from shard.training.routing import add_router_losses, balance
from shard.training.settings import StageSettings

LENGTH, ROWS = 128, 8
HELDOUT_BYTES = 60_000
DENSE = Config(
    vocab_size=256,
    hidden_size=64,
    num_layers=4,
    num_heads=2,
    head_dim=32,
    intermediate_size=256,
    max_sequence_length=LENGTH,
    sliding_window=64,
)
ONE = {"num_experts": 3, "top_k": 1, "num_shared": 1, "bias_rate": 0.0}
TWO = {"num_experts": 3, "top_k": 2, "num_shared": 0, "score": "softmax_top_k"}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "top-1 sigmoid + shared, no balance": {**ONE, "score": "sigmoid"},
    "top-1 sigmoid + shared, bias 0.01": {**ONE, "score": "sigmoid", "bias_rate": 1e-2},
    "top-1 softmax + shared, bias 0.01": {**ONE, "score": "softmax", "bias_rate": 1e-2},
    "top-2 softmax over the chosen, bias 0.01": {**TWO, "bias_rate": 1e-2},
    "top-1 sigmoid + shared, balance loss 0.01": {**ONE, "score": "sigmoid", "balance_loss": 1e-2},
}


def read_bytes(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes to train on, and bytes of other files."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    random.Random(seed).shuffle(files)
    texts = [path.read_bytes() for path in files]
    heldout, i = b"", 0
    while len(heldout) < HELDOUT_BYTES:
        heldout, i = heldout + texts[i], i + 1
    pair = (b"".join(texts[i:]), heldout[:HELDOUT_BYTES])
    train, held = (torch.frombuffer(bytearray(part), dtype=torch.uint8).long() for part in pair)
    return train, held


def config_of(mixture: dict[str, Any] | None) -> Config:
    """The dense model, or one whose two experts at work are together as wide as its feed-forward layer."""
    return DENSE if mixture is None else replace(DENSE, intermediate_size=DENSE.intermediate_size // 2, moe=mixture)


def train(
    mixture: dict[str, Any] | None, seed: int, steps: int, tokens: torch.Tensor, held: torch.Tensor
) -> dict[str, Any]:
    """Train one model; its held-out bits per byte, and the worst mean load of its last tenth beside an even one."""
    torch.manual_seed(seed)
    config = config_of(mixture)
    model = ShardLM(config)
    settings = StageSettings(
        steps=steps, sequence_length=LENGTH, tokens_per_step=LENGTH * ROWS, mix={"code": 1.0}, warmup_steps=20,
        decay_steps=steps // 3, muon_momentum_warmup_steps=50,
    )  # fmt: skip
    optimizer = Optimizer(model, settings, torch.float32)
    order = torch.Generator().manual_seed(seed)
    begun, loads = time.perf_counter(), []
    for step in range(steps):
        optimizer.set_step(step)
        starts = torch.randint(0, len(tokens) - LENGTH - 1, (ROWS,), generator=order)
        rows = torch.stack([tokens[i : i + LENGTH + 1] for i in starts.tolist()])
        routing: list[Routing] | None = None if mixture is None else []
        hidden = model.hidden(rows[:, :-1], routing=routing).flatten(0, 1)
        scale = 1 / (LENGTH * ROWS)
        table = model.embedding.weight
        loss = chunked_loss(hidden, table, rows[:, 1:].flatten(), config.logit_cap, settings.z_loss, scale)
        routed = None
        if routing is not None and config.mixture is not None:
            loss, routed = add_router_losses(loss, routing, config.mixture, scale)
        loss.total.backward()
        optimizer.step(optimizer.gradient_norm(), torch.zeros(()))
        if routed is not None:
            balance(model, routed, torch.zeros(()))
            if step >= steps * 9 // 10:
                loads.append(routed[:, :-1])
    seconds = time.perf_counter() - begun
    nll, scored = 0.0, 0
    with torch.no_grad():
        for chunk in held[: len(held) // LENGTH * LENGTH].view(-1, LENGTH).split(32):
            hidden = model.hidden(chunk[:, :-1]).flatten(0, 1)
            nll += float(chunked_loss(hidden, table, chunk[:, 1:].flatten(), config.logit_cap, 0.0).nll_sum)
            scored += chunk[:, 1:].numel()
    result: dict[str, Any] = {"bits_per_byte": nll / scored / 0.6931471805599453, "seconds": seconds}
    if loads:
        mean = torch.stack(loads).mean(dim=0)
        even = mean.mean(dim=1, keepdim=True)
        result["largest_deviation"] = float((mean / even - 1).abs().max())
        result["least_load"] = float((mean / even).min())
    return result


def main() -> None:
    """Run every variant with every seed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokens, held = read_bytes()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for seed in range(arguments.seeds):  # in turns, so that a busy machine touches all alike
        for name, mixture in VARIANTS.items():
            results[name].append(train(mixture, seed, arguments.steps, tokens, held))
            print(f"seed {seed}, {name}: {results[name][-1]}", flush=True)
    columns = "variant | parameters | at work | bits per byte (least to most) | against dense | largest deviation"
    print(f"\n| {columns} |")
    print("| --- | --- | --- | --- | --- | --- |")
    dense = [one["bits_per_byte"] for one in results["dense"]]
    for name, mixture in VARIANTS.items():
        config = (
            DENSE if mixture is None else replace(DENSE, intermediate_size=DENSE.intermediate_size // 2, moe=mixture)
        )
        count, ones = count_parameters(config), results[name]
        scores = [one["bits_per_byte"] for one in ones]
        change = [100 * (score / base - 1) for score, base in zip(scores, dense, strict=True)]
        worst = max((one.get("largest_deviation", 0.0) for one in ones), default=0.0)
        print(
            f"| {name} | {count.total:,} | {count.active:,} | {statistics.mean(scores):.4f} ({min(scores):.4f} to "
            f"{max(scores):.4f}) | {statistics.mean(change):+.2f} % ({min(change):+.2f} to {max(change):+.2f}) | "
            f"{100 * worst:.1f} % |"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
