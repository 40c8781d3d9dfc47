"""Training of the reference model at T = 1,024 against transformers' Llama of the same shape, and against the limit.

    python benchmarks/train.py                    five pairs; minutes on two cores
    python benchmarks/train.py --precision bf16   another dtype than the one that Shard chooses here, on both sides

A step of 131,072 tokens takes minutes on two cores, so a micro-batch and the optimizer are measured by themselves and
put together: seconds of a step = micro-batches * micro-batch + optimizer. On a GPU all micro-batches of a step are
measured in one go, since the host queues the next one while one is computed. Forward and backward are real, on random
tokens; Shard's side includes its guard and the norm of the gradients. The limit is what no implementation in
torch gets below here: the matrix products of the step and the attention kernel, forward and backward, alone.
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
from reference_step import Peer, random_rows, shard_step
from shard.config import Config
from shard.environment import device_name
from shard.training.decisions import DTYPES

SEQUENCE, STEP_TOKENS = 1024, 131_072


def products_and_attention(config: Config, rows: int, dtype: torch.dtype, device: torch.device) -> "callable":
    """The limit: y = x W^T, dX = dY W and dW = dY^T X of every matrix, and attention, once for each layer."""
    tokens, width = rows * SEQUENCE, config.num_heads * config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = [(hidden, width)] * 3 + [(width, hidden)] + [(hidden, inner)] * 2 + [(inner, hidden)]
    shapes = layer * config.num_layers + [(hidden, config.vocab_size)]
    made = {shape: (torch.randn(tokens, shape[0]), torch.randn(shape[1], shape[0])) for shape in set(shapes)}
    made = {shape: tuple(x.to(device, dtype) for x in pair) for shape, pair in made.items()}
    grads = {shape: torch.randn(tokens, shape[1]).to(device, dtype) for shape in made}
    q, k, v, d_y = (
        torch.randn(rows, SEQUENCE, config.num_heads, config.head_dim).to(device, dtype).transpose(1, 2)
        for _ in range(4)
    )
    for x in (q, k, v):
        x.requires_grad_()

    def run() -> None:
        for shape in shapes:
            (x, weight), grad = made[shape], grads[shape]
            F.linear(x, weight)
            grad @ weight
            grad.T @ x
        for _ in range(config.num_layers):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            torch.autograd.grad(y, (q, k, v), d_y)

    return run


def repeated(side: "callable", times: int) -> None:
    """Call it some times, one after another."""
    for _ in range(times):
        side()


def main() -> None:
    """Measure and print one JSON object, then lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2, help="sequences of a micro-batch, on all sides")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp16", "fp32"], default="auto")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--eager", action="store_true", help="neither side is compiled")
    arguments = parser.parse_args()
    if STEP_TOKENS % (arguments.rows * SEQUENCE):
        parser.error(f"--rows must divide {STEP_TOKENS // SEQUENCE}, the sequences of a step")
    config = Config(num_layers=arguments.layers)
    rows = random_rows(config, arguments.rows, SEQUENCE)
    tokens = rows.shape[0] * SEQUENCE
    with tempfile.TemporaryDirectory() as folder:
        work = shard_step(
            Path(folder),
            config,
            sequence_length=SEQUENCE,
            tokens_per_step=tokens,
            micro_batch=arguments.rows,
            precision=arguments.precision,
            compile="off" if arguments.eager else "auto",
        )
    precision = work.decisions.precision
    eager = Peer(config, precision, compiled=False)
    compiled = None if arguments.eager else Peer(config, precision, compiled=True)
    device = work.stage.device
    sides = {
        "Shard": lambda: work.accumulate_gradients(rows),
        "transformers": lambda: eager.micro_batch(rows),
        **({"transformers, compiled": lambda: compiled.micro_batch(rows)} if compiled else {}),
        "limit": products_and_attention(config, arguments.rows, DTYPES[precision], device),
    }
    micro_batches = STEP_TOKENS // tokens
    at_once = micro_batches if device.type == "cuda" else 1
    together = {name: partial(repeated, side, at_once) for name, side in sides.items()}
    seconds = {name: [t / at_once for t in times] for name, times in measure(together, arguments.pairs).items()}
    zero = torch.zeros((), device=device)

    def update() -> None:
        grads = {name: p.grad for name, p in work.optimizer.parameters.items()}
        norm = work.optimizer.gradient_norm()
        work.guard.judge(zero, norm)
        work.optimizer.step(norm, zero)
        for name, p in work.optimizer.parameters.items():
            p.grad = grads[name]

    optimizers = measure({"Shard": update, "transformers": eager.update}, arguments.pairs)
    optimizer_of = {
        "Shard": optimizers["Shard"],
        "transformers": optimizers["transformers"],
        "transformers, compiled": optimizers["transformers"],
        "limit": [0.0] * arguments.pairs,
    }
    steps = {
        name: [micro_batches * a + b for a, b in zip(times, optimizer_of[name], strict=True)]
        for name, times in seconds.items()
    }
    peers = [name for name in steps if name.startswith("transformers")]
    best = min(peers, key=lambda name: spread(steps[name])["median"])
    result = {
        "device": device_name(device),
        "precision": precision,
        "compiled": work.decisions.compile,
        "micro_batch_tokens": tokens,
        "step_tokens": STEP_TOKENS,
        "micro_batch_seconds": {name: spread(times) for name, times in seconds.items()},
        "optimizer_seconds": {name: spread(times) for name, times in optimizers.items()},
        "tokens_per_second": {name: STEP_TOKENS / spread(times)["median"] for name, times in steps.items()},
        "speed_against": {name: ratio(steps[name], steps["Shard"]) for name in steps if name != "Shard"},
        "optimizer_share": spread(optimizers["Shard"])["median"] / spread(steps["Shard"])["median"],
    }
    print(json.dumps(result, indent=2))
    print(f"{result['tokens_per_second']['Shard']:,.0f} tokens/s, {precision}, optimizer included")
    print(f"{words(result['speed_against'][best])} times the speed of {best}, the better of both")
    print(f"{words(result['speed_against']['limit'])} of the limit, matrix products and attention alone")


if __name__ == "__main__":
    main()
