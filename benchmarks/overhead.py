"""What safety costs: guard, metrics and a checkpoint every so many steps, as a share of the time of a step.

    python benchmarks/overhead.py                 the 54.5M model, 32,768 tokens a step, a checkpoint every 50 steps
    python benchmarks/overhead.py --steps 3       fewer steps; the share is of their median

Two runs that differ by 2 % cannot be told apart on a busy machine. So the time of each added part is measured where it
is spent, in the run whose steps it is compared with: the guard's verdict, what masking the update costs, the record,
the look at the singular values, the copy of the state for a checkpoint (the training stands still for it), and the
processor time of the thread that writes it beside the training, counted as if all were taken from the training.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from shard.environment import set_process_defaults

set_process_defaults()

import numpy as np
import torch

from shard.config import Config
from shard.console import Reporter
from shard.data.loader import BatchLoader
from shard.environment import choose_device, environment
from shard.files import write_json
from shard.training.decisions import decide
from shard.training.sentinel import inspect_spectra
from shard.training.settings import StageSettings
from shard.training.stage import Stage
from shard.training.trainer import Trainer


def make_trainer(folder: Path, config: Config, settings: StageSettings) -> Trainer:
    """A trainer on random tokens: what they say does not change the time of a step."""
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 4 * settings.tokens_per_step, dtype=np.uint16)
    (folder / "data" / "text").mkdir(parents=True)
    tokens.astype("<u2").tofile(folder / "data" / "text" / "train-00000.bin")
    shard = {"file": "train-00000.bin", "tokens": len(tokens), "sha256": ""}
    write_json(folder / "data" / "text" / "tokens.json", {"dtype": "<u2", "tokens": len(tokens), "shards": [shard]})
    device = choose_device()
    stage = Stage(
        name="pretrain",
        config=config,
        settings=settings,
        seed=0,
        folder=folder / "pretrain",
        loader=BatchLoader(folder / "data", settings.mix, settings.sequence_length, settings.tokens_per_step, 1000, 0),
        score=lambda model: {},
        sample=lambda model: [],
        fingerprint="overhead",
        identity={},
        decisions=decide("pretrain", settings, device, folder / "decisions.json", config),
        device=device,
    )
    return Trainer(stage, Reporter(quiet=True))


class Clock:
    """Adds up the time of every call of a method; on a GPU it waits for the device."""

    def __init__(self, owner: object, name: str) -> None:
        self.seconds, self._function = 0.0, getattr(owner, name)
        setattr(owner, name, self)

    def __call__(self, *args: object, **kwargs: object) -> object:
        begun = time.perf_counter()
        try:
            return self._function(*args, **kwargs)
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - begun


def measure_masking(trainer: Trainer) -> float:
    """Seconds that an optimizer step takes longer because it may be skipped: the median of paired differences."""
    optimizer, zero = trainer.work.optimizer, torch.zeros((), device=trainer.stage.device)
    differences = []
    for i in range(7):
        seconds = {}
        for found_inf in (None, zero) if i % 2 else (zero, None):
            for p in optimizer.parameters.values():
                p.grad = torch.full_like(p, 1e-6)
            optimizer.muon.found_inf = optimizer.adamw.found_inf = found_inf
            begun = time.perf_counter()
            optimizer.muon.step()
            optimizer.adamw.step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[found_inf is None] = time.perf_counter() - begun
        differences.append(seconds[False] - seconds[True])
    optimizer.clear_gradients()
    return statistics.median(differences)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tokens-per-step", type=int, default=32768)
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--checkpoint-every", type=int, default=50)
    parser.add_argument("--layers", type=int, default=12)
    arguments = parser.parse_args()
    config = Config(num_layers=arguments.layers)
    settings = StageSettings(
        steps=10**6,
        sequence_length=arguments.sequence_length,
        tokens_per_step=arguments.tokens_per_step,
        mix={"text": 1.0},
        checkpoint_every=10**6,
        evaluate_every=10**6,
        sample_every=10**6,
        sentinel_every=10**6,
    )
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        trainer = make_trainer(Path(folder), config, settings)
        trainer.train(until=1)  # compiles, and makes the buffers of the checkpoint
        guard = Clock(trainer.work.guard, "judge")
        record, timing = Clock(trainer.journal, "metric"), Clock(trainer._progress, "timing")
        steps, stalls, writes, checkpoint_cpu = [], [], [], []
        for _ in range(arguments.steps):
            begun = time.perf_counter()
            trainer._launched.append(trainer._launch())
            trainer._settle(0)
            steps.append(time.perf_counter() - begun)
            print(f"step {trainer.step}: {steps[-1]:.2f} s", file=sys.stderr)
            before = time.process_time()
            trainer._save()
            trainer.writer.wait()  # alone, so that the processor time is the thread's
            checkpoint_cpu.append(time.process_time() - before)
            (saved,) = trainer.writer.take_finished()
            stalls.append(saved.stall_seconds)
            writes.append(saved.write_seconds)
        masking = measure_masking(trainer)
        begun = time.perf_counter()
        inspect_spectra(trainer.work.optimizer)
        sentinel = time.perf_counter() - begun
        trainer.stage.loader.close()
        step = statistics.median(steps)
        per_step = {
            "guard": guard.seconds / arguments.steps,
            "masked update": max(0.0, masking),
            "metrics": (record.seconds + timing.seconds) / arguments.steps,
            "sentinel": sentinel / StageSettings.model_fields["sentinel_every"].default,
            "checkpoint": statistics.median(checkpoint_cpu) / arguments.checkpoint_every,
        }
        result = {
            "parameters": sum(p.numel() for p in trainer.work.model.parameters()),
            "tokens_per_step": settings.tokens_per_step,
            "precision": trainer.work.decisions.precision,
            "compiled": trainer.work.decisions.compile,
            "step_seconds": {"median": step, "min": min(steps), "max": max(steps)},
            "added_seconds_per_step": per_step,
            "checkpoint": {
                "stall_seconds": {"median": statistics.median(stalls), "min": min(stalls), "max": max(stalls)},
                "write_seconds": statistics.median(writes),
                "processor_seconds": statistics.median(checkpoint_cpu),
            },
            "overhead": sum(per_step.values()) / step,
            "overhead_against_the_fastest_step": sum(per_step.values()) / min(steps),
            "device": environment(trainer.stage.device)["device"],
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
