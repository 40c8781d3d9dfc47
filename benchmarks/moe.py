"""Does a mixture of experts pay at equal active parameters, and which scores and which balance?

Models on the bytes of the standard library's Python files, all with the same tokens in the same order and the same
parameters at work for each token (the routers apart): a dense one, and mixtures of 3 experts whose width is half of its
feed-forward layer. What is compared is the bits per byte of files that none was trained on; three seeds each.

    python benchmarks/moe.py [--steps 120] [--seeds 0 1 2] [--out FILE]                      tiny models, on a CPU
    python benchmarks/moe.py --scale large --variants dense ... --seeds 0 --out FILE         on a GPU, in bf16
    python benchmarks/moe.py --scale large --table FILE ...                                  what files of several hold

Each training prints one line of JSON. Loads are given by how far they are from even, where the farthest expert of the
farthest layer counts: of the mean load of the last tenth of the steps, and of the median step of these.
"""

import argparse
import json
import random
import statistics
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shard.environment import set_process_defaults

set_process_defaults()

import torch

from shard.config import Config
from shard.environment import choose_device, choose_precision, device_name
from shard.model import Routing, ShardLM
from shard.training.cost import count_parameters
from shard.training.decisions import DTYPES
from shard.training.loss import chunked_loss
from shard.training.optimizer import Optimizer
from shard.training.routing import add_router_losses, balance
from shard.training.settings import StageSettings


@dataclass(frozen=True)
class Scale:
    """How much of what."""

    dense: Config
    rows: int
    """Sequences of a step, as long as the context."""
    steps: int
    heldout_bytes: int
    warmup_steps: int
    momentum_warmup_steps: int
    whole_library: bool
    """Its packages too, but their tests; else its modules alone."""


SCALES = {
    "small": Scale(
        Config(
            vocab_size=256,
            hidden_size=64,
            num_layers=4,
            num_heads=2,
            head_dim=32,
            intermediate_size=256,
            max_sequence_length=128,
            sliding_window=64,
        ),
        rows=8,
        steps=120,
        heldout_bytes=60_000,
        warmup_steps=20,
        momentum_warmup_steps=50,
        whole_library=False,
    ),
    "large": Scale(
        Config(
            vocab_size=256,
            hidden_size=256,
            num_layers=6,
            num_heads=4,
            head_dim=64,
            intermediate_size=1024,
            max_sequence_length=256,
            sliding_window=256,
        ),
        rows=64,
        steps=600,
        heldout_bytes=500_000,
        warmup_steps=30,
        momentum_warmup_steps=150,
        whole_library=True,
    ),
}
ONE = {"num_experts": 3, "top_k": 1, "num_shared": 1, "bias_rate": 0.0}
TWO = {"num_experts": 3, "top_k": 2, "num_shared": 0, "score": "softmax_top_k"}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "top-1 sigmoid + shared, no balance": {**ONE, "score": "sigmoid"},
    "top-1 sigmoid + shared, sign 0.01": {**ONE, "score": "sigmoid", "bias_rate": 1e-2},
    "top-1 sigmoid + shared, sign 0.003": {**ONE, "score": "sigmoid", "bias_rate": 3e-3},
    "top-1 sigmoid + shared, bias 0.01": {**ONE, "score": "sigmoid", "bias_rate": 1e-2},
    "top-1 sigmoid + shared, bias 0.03": {**ONE, "score": "sigmoid", "bias_rate": 3e-2},
    "top-1 sigmoid + shared, bias 0.1": {**ONE, "score": "sigmoid", "bias_rate": 1e-1},
    "top-1 softmax + shared, bias 0.03": {**ONE, "score": "softmax", "bias_rate": 3e-2},
    "top-2 softmax over the chosen, bias 0.03": {**TWO, "bias_rate": 3e-2},
    "top-1 sigmoid + shared, balance loss 0.01": {**ONE, "score": "sigmoid", "balance_loss": 1e-2},
}


def read_bytes(scale: Scale) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes to train on, and bytes of other files: on the CPU, one a byte."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(folder.glob("*.py"))
    if scale.whole_library:
        left_out = {"test", "tests", "site-packages", "dist-packages", "idlelib", "__pycache__"}
        files = sorted(path for path in folder.rglob("*.py") if not left_out & set(path.relative_to(folder).parts))
    random.Random(0).shuffle(files)
    texts = [path.read_bytes() for path in files]
    heldout, i = b"", 0
    while len(heldout) < scale.heldout_bytes:
        heldout, i = heldout + texts[i], i + 1
    pair = (b"".join(texts[i:]), heldout[: scale.heldout_bytes])
    train, held = (torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in pair)
    return train, held


def config_of(scale: Scale, mixture: dict[str, Any] | None) -> Config:
    """The dense model, or one whose two experts at work are together as wide as its feed-forward layer."""
    dense = scale.dense
    return dense if mixture is None else replace(dense, intermediate_size=dense.intermediate_size // 2, moe=mixture)


@torch.no_grad()
def balance_by_sign(model: ShardLM, routed_LS: torch.Tensor, skip: torch.Tensor) -> None:
    """The rule as published (arXiv 2408.15664), for comparison: a step of equal size for every expert."""
    mixture = model.config.mixture
    for block, row_S in zip(model.blocks, routed_LS, strict=True):
        sign_E = (row_S[:-1].mean() - row_S[:-1]).sign()
        block.feed_forward.bias += mixture.bias_rate * (sign_E - sign_E.mean()) * (1 - skip)


def train(
    scale: Scale,
    mixture: dict[str, Any] | None,
    seed: int,
    tokens: torch.Tensor,
    held: torch.Tensor,
    device: torch.device,
    precision: str,
    by_sign: bool = False,
) -> dict[str, Any]:
    """Train one model; its held-out bits per byte, and how far the loads of its last tenth are from even."""
    torch.manual_seed(seed)
    config, steps, rows, length = config_of(scale, mixture), scale.steps, scale.rows, scale.dense.max_sequence_length
    dtype = DTYPES[precision]
    model = ShardLM(config).to(device)
    settings = StageSettings(
        steps=steps,
        sequence_length=length,
        tokens_per_step=length * rows,
        mix={"code": 1.0},
        warmup_steps=scale.warmup_steps,
        decay_steps=steps // 3,
        muon_momentum_warmup_steps=scale.momentum_warmup_steps,
    )
    optimizer = Optimizer(model, settings, dtype)
    order = torch.Generator().manual_seed(seed)
    tokens, held = tokens.to(device), held.to(device).long()
    starts = torch.stack([torch.randint(0, len(tokens) - length - 1, (rows,), generator=order) for _ in range(steps)])
    starts, places = starts.to(device), torch.arange(length + 1, device=device)
    taken = torch.zeros((), device=device)
    begun, loads = time.perf_counter(), []
    table = model.embedding.weight
    for step in range(steps):
        optimizer.set_step(step)
        batch = tokens[starts[step][:, None] + places].long()
        routing: list[Routing] | None = None if mixture is None else []
        hidden = model.hidden(batch[:, :-1], dtype=dtype, routing=routing).flatten(0, 1)
        scale_of_loss = 1 / settings.tokens_per_step
        targets = batch[:, 1:].flatten()
        loss = chunked_loss(hidden, table, targets, config.logit_cap, settings.z_loss, scale_of_loss)
        routed = None
        if routing is not None and config.mixture is not None:
            loss, routed = add_router_losses(loss, routing, config.mixture, scale_of_loss)
        loss.total.backward()
        optimizer.step(optimizer.gradient_norm(), taken)
        if routed is not None:
            (balance_by_sign if by_sign else balance)(model, routed, taken)
            if step >= steps * 9 // 10:
                loads.append(routed[:, :-1])
    nll, scored = torch.zeros((), dtype=torch.float64, device=device), 0
    with torch.no_grad():
        for chunk in held[: len(held) // length * length].view(-1, length).split(scale.rows * 4):
            hidden = model.hidden(chunk[:, :-1], dtype=dtype).flatten(0, 1)
            nll += chunked_loss(hidden, table, chunk[:, 1:].flatten(), config.logit_cap, 0.0).nll_sum
            scored += chunk[:, 1:].numel()
    bits = float(nll) / scored / 0.6931471805599453
    result: dict[str, Any] = {"bits_per_byte": round(bits, 5), "seconds": round(time.perf_counter() - begun, 1)}
    if loads:
        off = torch.stack(loads).cpu()
        off = off / off.mean(dim=-1, keepdim=True) - 1  # [steps, layers, experts]
        result["deviation"] = round(float(off.mean(dim=0).abs().max()), 5)
        result["deviation_of_median_step"] = round(float(off.abs().amax(dim=(1, 2)).median()), 5)
        result["least_load"] = round(1 + float(off.mean(dim=0).min()), 5)
    return result


def print_table(scale: Scale, results: Sequence[dict[str, Any]]) -> None:
    """Against the dense model of the same seed."""
    columns = "variant | parameters | at work | bits per byte (least to most) | against dense | seeds | "
    print(f"\n| {columns}largest deviation of the mean load | of the median step |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    dense = {one["seed"]: one["bits_per_byte"] for one in results if one["variant"] == "dense"}
    for name, mixture in VARIANTS.items():
        ones = [one for one in results if one["variant"] == name]
        if not ones:
            continue
        count = count_parameters(config_of(scale, mixture))
        scores = [one["bits_per_byte"] for one in ones]
        changes = [100 * (one["bits_per_byte"] / dense[one["seed"]] - 1) for one in ones if one["seed"] in dense]
        against = "-"
        if changes:
            against = f"{statistics.mean(changes):+.2f} % ({min(changes):+.2f} to {max(changes):+.2f})"
        worst, median = (max(one.get(k, 0.0) for one in ones) for k in ("deviation", "deviation_of_median_step"))
        print(
            f"| {name} | {count.total:,} | {count.active:,} | {statistics.mean(scores):.4f} ({min(scores):.4f} to "
            f"{max(scores):.4f}) | {against} | {len(ones)} | {100 * worst:.1f} % | {100 * median:.1f} % |"
        )


def read_results(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The lines of several files."""
    return [json.loads(line) for path in paths if path.exists() for line in path.read_text().splitlines()]


def main() -> None:
    """Run the variants with every seed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="small", choices=SCALES)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    for name in ("steps", "rows", "heldout-bytes"):
        parser.add_argument(f"--{name}", type=int, help="in place of the scale's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e9, help="no training begins after these")
    parser.add_argument("--out", type=Path, help="results as lines of JSON; what it holds is not done again")
    parser.add_argument("--table", type=Path, nargs="*", help="print what these hold, and nothing else")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    own = {name: getattr(arguments, name) for name in ("steps", "rows", "heldout_bytes")}
    scale = replace(SCALES[arguments.scale], **{name: value for name, value in own.items() if value is not None})
    if arguments.table is not None:
        return print_table(scale, read_results(arguments.table))
    torch.set_num_threads(arguments.threads)
    device = torch.device("cpu") if arguments.scale == "small" else choose_device()
    precision = "fp32" if arguments.scale == "small" else choose_precision(device)[0]
    tokens, held = read_bytes(scale)
    results = [] if arguments.out is None else read_results([arguments.out])
    key = {"steps": scale.steps, "rows": scale.rows}
    for seed in arguments.seeds:  # in turns, so that a busy machine touches all alike
        for name in arguments.variants:
            this = {"variant": name, "seed": seed, **key}
            if any(this.items() <= one.items() for one in results):
                continue
            if time.monotonic() >= deadline:
                return print("paused", flush=True)
            done = train(scale, VARIANTS[name], seed, tokens, held, device, precision, ", sign " in name)
            extra = {"bytes": len(tokens), "precision": precision, "device": device_name(device)}
            results.append(this | done | extra)
            print(json.dumps(results[-1]), flush=True)
            if arguments.out:
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(results[-1]) + "\n")
    print_table(scale, results)
    return None


if __name__ == "__main__":
    main()
