"""Chunked loss against plain loss, both compiled: seconds, and memory above what goes in.

    python benchmarks/loss.py                             8,192 tokens of a vocabulary of 8,192, five pairs
    python benchmarks/loss.py --vocabulary 262144         chunked only: plain would hold 8 GiB of logits, twice

The peak is that of a fresh process (VmHWM) on a CPU, and of the allocator on CUDA, less what was held before the call:
hidden states, table, and both of their gradients, which any loss has to give.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from shard.environment import set_process_defaults

set_process_defaults()

import torch

from paired import measure, ratio, spread, words
from shard.environment import choose_device, choose_precision, device_name
from shard.training.chunks import chunk_pass
from shard.training.decisions import DTYPES
from shard.training.loss import chunked_loss, plain_loss

HIDDEN = 512
LOSSES = ("chunked", "plain")


def make_step(name: str, tokens: int, vocabulary: int) -> "callable":
    """The loss forward and backward, compiled. The gradients are written over those of the call before."""
    device = choose_device()
    dtype = DTYPES[choose_precision(device)[0]]
    torch.manual_seed(0)
    hidden = torch.randn(tokens, HIDDEN, device=device).to(dtype).requires_grad_()
    table = (0.02 * torch.randn(vocabulary, HIDDEN, device=device)).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), device=device)
    if name == "chunked":
        run_chunk = torch.compile(chunk_pass, dynamic=False)  # as a run does

        def function(h: torch.Tensor, w: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return chunked_loss(h, w, t, 30.0, 1e-4, 1 / tokens, run_chunk).total

    else:
        function = torch.compile(lambda h, w, t: plain_loss(h, w, t, 30.0, 1e-4, 1 / tokens).total, dynamic=False)

    def run() -> None:
        hidden.grad = table.grad = None
        function(hidden, table, targets).backward()

    return run


def peak_bytes(name: str, tokens: int, vocabulary: int) -> int:
    """Memory above what goes in and comes out, in this process, which must be fresh."""
    # Once on few tokens: the compiler's own memory, and its libraries, are no part of the loss.
    make_step(name, 64, vocabulary)()
    run = make_step(name, tokens, vocabulary)
    if torch.cuda.is_available():
        run()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    run()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main() -> None:
    """Measure and print one JSON object, then lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--child", choices=LOSSES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(peak_bytes(arguments.child, arguments.tokens, arguments.vocabulary))
        return
    names = ["chunked"] + (["plain"] if arguments.vocabulary <= 32768 else [])
    sizes = ["--tokens", str(arguments.tokens), "--vocabulary", str(arguments.vocabulary)]
    peaks = {}
    for name in names:
        command = [sys.executable, __file__, "--child", name, *sizes]
        peaks[name] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    sides = {name: make_step(name, arguments.tokens, arguments.vocabulary) for name in names}
    seconds = measure(sides, arguments.pairs)
    result = {
        "device": device_name(choose_device()),
        "tokens": arguments.tokens,
        "vocabulary": arguments.vocabulary,
        "seconds": {name: spread(times) for name, times in seconds.items()},
        "peak_bytes": peaks,
    }
    if "plain" in names:
        result["time_against_plain"] = ratio(seconds["chunked"], seconds["plain"])
        result["memory_against_plain"] = peaks["chunked"] / peaks["plain"]
    print(json.dumps(result, indent=2))
    print(f"chunked: {result['seconds']['chunked']['median']:.2f} s, {peaks['chunked'] / 2**20:,.0f} MiB")
    if "plain" in names:
        share = result["memory_against_plain"]
        print(f"{words(result['time_against_plain'])} times the time of plain, {share:.2f} of its memory")


if __name__ == "__main__":
    main()
