"""Predicted against measured peak memory of training: three sizes, each in a fresh process.

    python benchmarks/memory.py                three sizes, compiled as a run would be
    python benchmarks/memory.py --eager        not compiled: no minutes of compiling
    python benchmarks/memory.py --recompute    the same with `recompute = "layer"`

A child trains a few steps of two micro-batches on random tokens, with a checkpoint after each, and gives the peak of
its memory: VmHWM of the process on a CPU, the allocator's on CUDA. On a CPU, glibc keeps blocks of up to 32 MiB that
were freed; with `--trim` the child has a fixed limit of 1 MiB above which memory goes back at once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from shard.environment import set_process_defaults

set_process_defaults()

from shard.config import Config
from shard.training.settings import StageSettings

SIZES = {
    "3M": (
        Config(vocab_size=1024, hidden_size=256, num_layers=4, num_heads=4, intermediate_size=768),
        {"sequence_length": 256, "micro_batch": 16},
    ),
    "7M": (
        Config(vocab_size=4096, hidden_size=256, num_layers=6, num_heads=4, intermediate_size=768),
        {"sequence_length": 512, "micro_batch": 8},
    ),
    "25M": (
        Config(vocab_size=8192, hidden_size=384, num_layers=10, num_heads=6, intermediate_size=1536),
        {"sequence_length": 1024, "micro_batch": 4},
    ),
    "54.5M": (Config(), {"sequence_length": 1024, "micro_batch": 4}),
}


def stage_settings(name: str, recompute: bool, compiled: bool) -> StageSettings:
    """Two micro-batches a step, and a checkpoint after each step."""
    shape = SIZES[name][1]
    return StageSettings(
        steps=10**6,
        mix={"text": 1.0},
        tokens_per_step=2 * shape["sequence_length"] * shape["micro_batch"],
        checkpoint_every=1,
        evaluate_every=10**6,
        sample_every=10**6,
        sentinel_every=10**6,
        recompute="layer" if recompute else "none",
        compile="auto" if compiled else "off",
        **shape,
    )


def train(name: str, recompute: bool, compiled: bool, steps: int = 2) -> dict[str, int]:
    """Train in this process, which must be fresh; measured and predicted bytes."""
    import torch

    from overhead import make_trainer
    from shard.training.memory import predict_memory

    config, settings = SIZES[name][0], stage_settings(name, recompute, compiled)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), config, settings)
        trainer.train(until=steps)
        trainer.stage.loader.close()
    device, decisions = trainer.stage.device, trainer.work.decisions
    predicted = predict_memory(
        config, settings, decisions.micro_batch, decisions.precision, decisions.compile, device.type
    )
    if device.type == "cuda":
        measured = torch.cuda.max_memory_allocated()
    else:
        lines = Path("/proc/self/status").read_text().splitlines()
        measured = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return {"measured": measured, "predicted": predicted.peak, **vars(predicted)}


def measure_in_child(name: str, recompute: bool, compiled: bool, trim: bool) -> dict[str, int]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--child", name]
    command += ["--recompute"] * recompute + ["--eager"] * (not compiled)
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": str(2**20)} if trim else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print one JSON object, then lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES)[1:])
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--trim", action="store_true", help="glibc gives freed blocks back at once")
    parser.add_argument("--child", choices=list(SIZES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(train(arguments.child, arguments.recompute, not arguments.eager)))
        return
    options = (arguments.recompute, not arguments.eager, arguments.trim)
    results = {name: measure_in_child(name, *options) for name in arguments.sizes}
    print(json.dumps(results, indent=2))
    for name, bytes_of in results.items():
        ratio = bytes_of["predicted"] / bytes_of["measured"]
        print(f"{name}: predicted {bytes_of['predicted'] / 1e9:.2f} GB, {ratio:.2f} of the measured peak")


if __name__ == "__main__":
    main()
