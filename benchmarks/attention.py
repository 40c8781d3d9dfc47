"""Attention of one layer on a CPU, forward and backward: our own kernel against torch's, causal and over a window.

    python benchmarks/attention.py        fifteen pairs; a minute or two on two cores

The reference model's heads (8 of 64), fp32. Causal attention is against torch's kernel, a window of 1,024 against the
narrow bands that torch's kernel computes where ours cannot be built (training/window.py), and both against each other.
"""

import argparse
import json

from shard.environment import set_process_defaults

set_process_defaults()

import torch

from paired import measure, ratio, words
from shard.environment import device_name
from shard.model import Attend, local_attention
from shard.training.cpu_attention import cpu_attention, load_cpu_attention
from shard.training.window import flash_window_attention

HEADS, HEAD_SIZE, WINDOW = 8, 64, 1024


def layer(attend: Attend, batch: int, tokens: int, window: int) -> dict[str, "callable"]:
    """Forward, and forward with backward, of sequences that lie as they come out of the products."""
    torch.manual_seed(0)
    q, k, v, d_y = (torch.randn(batch, tokens, HEADS, HEAD_SIZE).transpose(1, 2) for _ in range(4))
    with_grad = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in (q, k, v)]
    return {
        "forward": lambda: attend(q, k, v, window),
        "forward and backward": lambda: torch.autograd.grad(attend(*with_grad, window), with_grad, d_y),
    }


def main() -> None:
    """Measure and print one JSON object, then lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    arguments = parser.parse_args()
    works, reason = load_cpu_attention()
    if not works:
        parser.error(reason)
    result, lines = {"device": device_name(torch.device("cpu"))}, []
    for batch, tokens, window, name, other in (
        (2, 1024, 1024, "torch's", local_attention),
        (1, 8192, 8192, "torch's", local_attention),
        (1, 8192, WINDOW, "bands", flash_window_attention),
    ):
        ours, theirs = (layer(attend, batch, tokens, window) for attend in (cpu_attention, other))
        for part in ours:
            seconds = measure({"ours": ours[part], name: theirs[part]}, arguments.pairs)
            speed = ratio(seconds[name], seconds["ours"])
            title = f"{batch} x {tokens:,}, window {window:,}, {part}"
            result[title] = {"seconds": seconds, "speed": speed}
            median = sorted(seconds["ours"])[arguments.pairs // 2]
            lines.append(f"{title}: {median * 1000:.1f} ms, {words(speed)} times as fast as {name}")
    print(json.dumps(result, indent=2))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
