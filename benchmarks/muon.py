"""The optimizer: batched Muon against torch.optim.Muon, and its share of a step.

    python benchmarks/muon.py

torch.optim.Muon always computes in bf16. Where Shard does not, it is measured in Shard's dtype, too: its Newton-Schulz
iteration is given a copy that skips the cast, so that not only the dtype is compared. On a GPU the share is that of the
kernels, since a run queues Muon while the micro-batches before it are computed.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from shard.environment import set_process_defaults

set_process_defaults()

import torch
import torch.optim._muon as torch_muon

from paired import kernel_seconds, measure, ratio, seconds_of, spread, words
from reference_step import random_rows, shard_step
from shard.config import Config
from shard.environment import choose_device, device_name
from shard.muon import Muon
from shard.training.decisions import DTYPES

SEQUENCE, STEP_TOKENS = 1024, (8192, 131_072)


def parameters_of(config: Config, device: torch.device) -> list[torch.nn.Parameter]:
    """Matrices of the model's shapes with gradients."""
    width, hidden, inner = config.num_heads * config.head_dim, config.hidden_size, config.intermediate_size
    shapes = [(width, hidden)] * 3 + [(hidden, width)] + [(inner, hidden)] * 2 + [(hidden, inner)]
    torch.manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in shapes * config.num_layers]
    for p in made:
        p.grad = torch.randn_like(p)
    return made


def torch_step(config: Config, device: torch.device, dtype: torch.dtype) -> "callable":
    """A step of torch.optim.Muon that computes in `dtype`: its own iteration where that is bf16."""
    optimizer = torch.optim.Muon(parameters_of(config, device), lr=0.02, weight_decay=0.1)
    original = torch_muon._zeropower_via_newtonschulz

    def iterate(grad: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> torch.Tensor:
        x = grad.to(dtype)
        x = x.T if grad.size(0) > grad.size(1) else x
        x = x / x.norm().clamp(min=eps)
        a, b, c = coefficients
        for _ in range(steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.T if grad.size(0) > grad.size(1) else x

    def run() -> None:
        torch_muon._zeropower_via_newtonschulz = original if dtype == torch.bfloat16 else iterate
        try:
            optimizer.step()
        finally:
            torch_muon._zeropower_via_newtonschulz = original

    return run


def main() -> None:
    """Measure and print one JSON object, then lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--eager", action="store_true", help="the model is not compiled")
    parser.add_argument("--bf16", action="store_true", help="torch.optim.Muon as it is, even where bf16 is emulated")
    parser.add_argument("--rows", type=int, help="sequences of a micro-batch: 32 on a GPU, else 2")
    arguments = parser.parse_args()
    config = Config(num_layers=arguments.layers)
    on_gpu = choose_device().type == "cuda"
    num_rows = arguments.rows or (32 if on_gpu else 2)
    tokens = SEQUENCE * num_rows
    with tempfile.TemporaryDirectory() as folder:
        how = "off" if arguments.eager else "auto"
        work = shard_step(
            Path(folder),
            config,
            sequence_length=SEQUENCE,
            tokens_per_step=tokens,
            micro_batch=num_rows,
            compile=how,
        )
    device, dtype = work.stage.device, DTYPES[work.decisions.newton_schulz]
    ours = Muon(
        parameters_of(config, device), lr=0.02, weight_decay=0.1, dtype=dtype, compile=work.optimizer.muon.compiled
    )
    ours.found_inf = torch.zeros((), device=device)
    sides = {"Shard": ours.step, "torch, same dtype": torch_step(config, device, dtype)}
    if dtype != torch.bfloat16 and (arguments.bf16 or on_gpu):
        sides["torch, bf16"] = torch_step(config, device, torch.bfloat16)
    seconds = measure(sides, arguments.pairs)
    rows = random_rows(config, num_rows, SEQUENCE)
    of_a_step = {"Muon": ours.step, "micro-batch": lambda: work.accumulate_gradients(rows)}
    shares = measure(of_a_step, arguments.pairs, seconds_of=kernel_seconds if on_gpu else seconds_of)
    muon, micro = (statistics.median(times) for times in shares.values())
    result = {
        "device": device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": {name: spread(times) for name, times in seconds.items()},
        "micro_batch_tokens": tokens,
        "seconds_of_a_step": {name: spread(times) for name, times in shares.items()},
        "speed_against": {name: ratio(seconds[name], seconds["Shard"]) for name in sides if name != "Shard"},
        "share_of_a_step": {step: muon / (step / tokens * micro + muon) for step in STEP_TOKENS},
    }
    print(json.dumps(result, indent=2))
    for name, speed in result["speed_against"].items():
        print(f"{words(speed)} times the speed of torch.optim.Muon ({name.removeprefix('torch, ')})")
    for step_tokens, share in result["share_of_a_step"].items():
        print(f"{share:.1%} of a step of {step_tokens:,} tokens")


if __name__ == "__main__":
    main()
