"""What it costs to train in several processes: a step of N ranks on N cores against one process with N threads.

    python benchmarks/ddp.py                       the 54.5M model, 32,768 tokens a step, two ranks
    python benchmarks/ddp.py --pairs 3 --layers 4  fewer pairs, a smaller model

Both are there all the time, and take turns: while one does a step, the other waits and computes nothing. A pair is a
step of each, one after the other, in changing order, on the same global batch. What is printed is the ratio of their
times, pair by pair: its median and its spread; and how long the sum of the gradients takes, waiting included.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shard.environment import set_process_defaults

set_process_defaults()

import numpy as np
import torch

from shard.config import Config
from shard.data.loader import BatchLoader
from shard.environment import device_name, make_deterministic
from shard.files import write_json
from shard.model import ShardLM
from shard.training.decisions import decide
from shard.training.distributed import ALONE, Ranks
from shard.training.settings import StageSettings
from shard.training.stage import Stage
from shard.training.step import TrainingStep


def write_tokens(folder: Path, config: Config, settings: StageSettings) -> None:
    """Random ones: what they say does not change the time of a step."""
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 4 * settings.tokens_per_step, dtype=np.uint16)
    (folder / "text").mkdir(parents=True)
    tokens.astype("<u2").tofile(folder / "text" / "train-00000.bin")
    shard = {"file": "train-00000.bin", "tokens": len(tokens), "sha256": ""}
    write_json(folder / "text" / "tokens.json", {"dtype": "<u2", "tokens": len(tokens), "shards": [shard]})


def make_work(folder: Path, config: Config, settings: StageSettings, ranks: Ranks) -> TrainingStep:
    """A step of the stage, as each process has it."""
    device = torch.device("cpu")
    stage = Stage(
        name="pretrain",
        config=config,
        settings=settings,
        seed=0,
        folder=folder,
        loader=BatchLoader(folder, settings.mix, settings.sequence_length, settings.tokens_per_step, 1000, 0),
        score=lambda model: {},
        sample=lambda model: [],
        fingerprint="ddp",
        identity={},
        decisions=decide("pretrain", settings, device, folder / f"decisions-{ranks.size}-{ranks.index}.json"),
        device=device,
        ranks=ranks,
    )
    make_deterministic(0)
    return TrainingStep(stage, ShardLM(config).to(device), lambda *_: None)


def serve(arguments: argparse.Namespace) -> None:
    """A process: for every line on its stdin one step, and a line on its stdout with the seconds and the loss."""
    alone = arguments.role == "alone"
    ranks = ALONE if alone else Ranks.join()
    torch.set_num_threads(arguments.ranks if alone else 1)
    config, settings = shape(arguments)
    work = make_work(Path(arguments.folder), config, settings, ranks)
    sent = 0.0

    def timed(function: Any) -> Any:
        def call(*inputs: Any) -> Any:
            nonlocal sent
            begun = time.perf_counter()
            try:
                return function(*inputs)
            finally:
                sent += time.perf_counter() - begun

        return call

    ranks.sum = timed(ranks.sum)  # type: ignore[method-assign]
    print(json.dumps({"ready": True}), flush=True)
    for step, _ in enumerate(sys.stdin):
        sent, begun = 0.0, time.perf_counter()
        outcome = work.launch(step + 1, work.stage.loader.fetch(step)).wait()
        seconds = time.perf_counter() - begun
        answer = {"seconds": seconds, "waiting_and_sum": sent, "loss": outcome[3]}
        answer |= {"precision": work.decisions.precision, "compiled": work.decisions.compile}
        print(json.dumps(answer), flush=True)
    os._exit(0)


def shape(arguments: argparse.Namespace) -> tuple[Config, StageSettings]:
    """The model and the stage."""
    settings = StageSettings(
        steps=10**6,
        sequence_length=arguments.sequence_length,
        tokens_per_step=arguments.tokens_per_step,
        mix={"text": 1.0},
        compile=arguments.compile,
    )
    return Config(num_layers=arguments.layers), settings


class Group:
    """The processes of one side: they do a step when they are told, and not before."""

    def __init__(self, role: str, size: int, folder: str, options: list[str]) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        shared = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
        shared |= {"MASTER_PORT": str(port), "SHARD_DEVICE": "cpu"}
        command = [sys.executable, __file__, "--role", role, "--folder", folder, *options]
        self.processes = [
            subprocess.Popen(
                command,
                env=os.environ | shared | {"RANK": str(index), "LOCAL_RANK": str(index)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in range(size)
        ]
        self._answers()

    def _answers(self) -> list[dict[str, Any]]:
        lines = [process.stdout.readline() for process in self.processes]  # type: ignore[union-attr]
        if not all(lines):
            raise SystemExit("one of the processes ended; what it said stands above")
        return [json.loads(line) for line in lines]

    def step(self) -> tuple[float, list[dict[str, Any]]]:
        """Seconds from the word to the last answer."""
        begun = time.perf_counter()
        for process in self.processes:
            print("step", file=process.stdin, flush=True)
        answers = self._answers()
        return time.perf_counter() - begun, answers

    def end(self) -> None:
        """Let them go."""
        for process in self.processes:
            process.kill()
            process.wait()


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tokens-per-step", type=int, default=32768)
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--role", choices=["alone", "rank"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        serve(arguments)
    options = [
        f"--{name.replace('_', '-')}={getattr(arguments, name)}"
        for name in ("ranks", "tokens_per_step", "sequence_length", "layers", "compile")
    ]
    config, settings = shape(arguments)
    seconds: dict[str, list[float]] = {"alone": [], "ranks": []}
    with tempfile.TemporaryDirectory() as folder:
        write_tokens(Path(folder), config, settings)
        alone = Group("alone", 1, folder, options)
        ranks = Group("rank", arguments.ranks, folder, options)
        try:
            for side in (alone, ranks):
                side.step()  # compiles
            waited, losses = [], []
            for pair in range(arguments.pairs):
                step_losses = {}
                for name, side in (("alone", alone), ("ranks", ranks))[:: 1 if pair % 2 else -1]:
                    taken, answers = side.step()
                    seconds[name].append(taken)
                    step_losses[name] = answers[0]["loss"]
                    if name == "ranks":
                        waited.append(max(answer["waiting_and_sum"] for answer in answers))
                losses.append(step_losses)
                both = f"alone {seconds['alone'][-1]:.2f} s, {arguments.ranks} ranks {seconds['ranks'][-1]:.2f} s"
                print(f"pair {pair + 1}: {both}", file=sys.stderr)
        finally:
            alone.end()
            ranks.end()
    ratios = [b / a for a, b in zip(seconds["alone"], seconds["ranks"], strict=True)]
    result = {
        "parameters": sum(p.numel() for p in ShardLM(config).parameters()),
        "tokens_per_step": settings.tokens_per_step,
        "ranks": arguments.ranks,
        "precision": answers[0]["precision"],
        "compiled": answers[0]["compiled"],
        "seconds_alone": spread(seconds["alone"]),
        "seconds_ranks": spread(seconds["ranks"]),
        "ratio": spread(ratios),
        "gradient_sum_seconds_with_waiting": spread(waited),
        "losses": losses,
        "device": device_name(torch.device("cpu")),
    }
    print(json.dumps(result, indent=2))


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    main()
