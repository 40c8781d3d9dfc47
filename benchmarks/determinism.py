"""What it costs that training repeats to the bit: the same steps with torch's deterministic switches on and off.

    python benchmarks/determinism.py            54.5M model, micro-batches of 2,048 tokens, five pairs of processes
    python benchmarks/determinism.py --compile

Each pair is two fresh processes, one after the other and in turns of order, since one of the switches (MKL_DYNAMIC) is
read when torch is imported. Prints the ratio of their median times, pair by pair.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SWITCHES = {"MKL_DYNAMIC": "FALSE", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def time_micro_batches(deterministic: bool, compiled: bool, count: int) -> float:
    """Median seconds of forward and backward of one micro-batch of 2 x 1,024 tokens, in this process."""
    import torch

    from shard.config import Config
    from shard.environment import choose_device, choose_precision, make_deterministic
    from shard.model import ShardLM
    from shard.training.decisions import DTYPES
    from shard.training.loss import chunked_loss

    torch.manual_seed(0)
    if deterministic:
        make_deterministic(0)
    device = choose_device()
    dtype = DTYPES[choose_precision(device)[0]]
    config = Config()
    model = ShardLM(config).to(device)

    def loss(ids: torch.Tensor) -> torch.Tensor:
        hidden = model.hidden(ids[:, :-1], dtype=dtype).flatten(0, 1)
        targets = ids[:, 1:].flatten()
        return chunked_loss(hidden, model.embedding.weight, targets, config.logit_cap, 1e-4, 1 / targets.numel()).total

    function = torch.compile(loss, dynamic=False) if compiled else loss
    seconds = []
    for i in range(count + 1):
        ids = torch.randint(0, config.vocab_size, (2, 1025), device=device)
        begun = time.perf_counter()
        function(ids).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i:  # the first one compiles and touches fresh memory
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def main() -> None:
    """Run the pairs and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--count", type=int, default=5, help="micro-batches timed in a process")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--child", choices=["on", "off"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(time_micro_batches(arguments.child == "on", arguments.compile, arguments.count))
        return

    def child(switch: str) -> float:
        environment = {key: value for key, value in os.environ.items() if key not in SWITCHES}
        environment |= SWITCHES if switch == "on" else {}
        command = [sys.executable, __file__, "--child", switch, "--count", str(arguments.count)]
        command += ["--compile"] if arguments.compile else []
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        return float(output)

    pairs = []
    for i in range(arguments.pairs):
        times = {switch: child(switch) for switch in (("on", "off") if i % 2 else ("off", "on"))}
        pairs.append(times)
        print(f"on {times['on']:.3f} s, off {times['off']:.3f} s", file=sys.stderr)
    ratios = sorted(pair["on"] / pair["off"] for pair in pairs)
    result = {"compiled": arguments.compile, "seconds": pairs}
    print(json.dumps(result | {"ratio": {"median": statistics.median(ratios), "all": ratios}}, indent=2))


if __name__ == "__main__":
    main()
