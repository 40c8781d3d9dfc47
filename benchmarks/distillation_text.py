"""The text of benchmarks/distillation.py, its student and its teacher, at two scales.

    small   for a CPU: the how-to part of fineweb-edu, whole documents. The ids are those that occur in it.
    large   for a GPU: passages of all of fineweb-edu's copy, which hold only its 12,288 commonest ids. A passage is a
            run of whole lines of a document; one below 64 tokens is left out. Held-out passages are of other documents.

Students and teacher are restricted to the ids: the teacher's softmax over these alone is its distribution given that
one of them comes, exactly. Rare words are missing from the large text, which is easier for both by that.
"""

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from gguf import GGUFReader
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from shard.config import Config
from shard.data.shards import TokenStream
from shard.distillation.causal import CausalTeacher
from shard.distillation.loss import DenseTargets, dense_log_probabilities
from shard.evaluation.bits_per_byte import Heldout, batch_windows
from shard.files import sha256_of, write_json

SEPARATOR = 0  # <|endoftext|>
FINEWEB = "datasets/HuggingFaceFW/fineweb-edu/sample/10BT"
KEPT = "corpus.npz"
UNIT = 16  # sequences of hidden states that a kill costs
TEACHER_TOKENS = 16384  # that the teacher of the large scale reads at once


@dataclass(frozen=True)
class Scale:
    """How much text, and which student."""

    length: int
    rows: int
    """Sequences of a step."""
    steps: int
    heldout_bytes: int
    student: dict[str, Any]
    warmup_steps: int = 10
    momentum_warmup_steps: int = 100
    text_bytes: int = 2**62
    num_ids: int | None = None
    """The commonest ids alone; None: all that occur."""


SMALL = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "head_dim": 32, "intermediate_size": 192}
LARGE = {"hidden_size": 384, "num_layers": 6, "num_heads": 6, "head_dim": 64, "intermediate_size": 1024}
SCALES = {
    "small": Scale(256, 4, 60, 25_000, SMALL | {"sliding_window": 64}, text_bytes=120_000),
    "large": Scale(512, 16, 300, 300_000, LARGE, warmup_steps=30, num_ids=12_288),
}


@dataclass(frozen=True)
class Corpus:
    """The tokens in restricted ids, and what they stand for."""

    folder: Path
    """The stream is in its data/text."""
    scale: Scale
    ids: Tensor
    """Restricted id -> the teacher's."""
    heldout: Heldout
    num_tokens: int

    @property
    def config(self) -> Config:
        """The student."""
        return Config(vocab_size=len(self.ids), max_sequence_length=self.scale.length, **self.scale.student)

    @property
    def num_sequences(self) -> int:
        """Whole ones, each with a target for its last token."""
        return (self.num_tokens - 1) // self.scale.length

    def rows(self, first: int, last: int) -> Tensor:
        """The inputs of some sequences [last - first, T]."""
        stream, length = TokenStream.open(self.folder / "data" / "text"), self.scale.length
        return torch.from_numpy(stream.read(first * length, last * length)).view(-1, length)


def read_vocabulary(path: Path) -> tuple[list[str], list[str]]:
    """Tokens and merges of a GGUF file."""
    fields = GGUFReader(path).fields
    tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    return tokens, merges


def teacher_tokenizer(path: Path) -> Tokenizer:
    """Of a GGUF file whose pre-tokenizer is "smollm" (digits one by one, then GPT-2's pattern); of another teacher the
    tokenizer.json in its folder.
    """
    if path.is_dir():
        tokenizer: Tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        return tokenizer
    tokens, merges = read_vocabulary(path)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def read_texts(mirror: Path) -> list[str]:
    """All documents of the mirror's copy, each once."""
    files = sorted((mirror / FINEWEB).glob("*.parquet"))
    return list(
        dict.fromkeys(text for file in files for text in pq.read_table(file, columns=["text"])["text"].to_pylist())
    )


Sides = dict[str, list[NDArray[np.int64]]]


def whole_documents(texts: list[str], tokenizer: Tokenizer, scale: Scale) -> tuple[Sides, NDArray[np.int64], int]:
    """(tokens of the documents of each side, the ids that occur, bytes held out)."""
    texts = [text for text in texts if text.startswith("How to") and len(text) < 12_000]
    random.Random(0).shuffle(texts)
    sides: Sides = {"heldout": [], "train": []}
    sizes, rest = dict.fromkeys(sides, 0), iter(texts)
    for side, most in (("heldout", scale.heldout_bytes), ("train", scale.text_bytes)):
        while sizes[side] < most:
            text = next(rest)
            sides[side].append(np.array(tokenizer.encode(text).ids))
            sizes[side] += len(text.encode())
    return sides, np.unique([SEPARATOR, *np.concatenate(sides["heldout"] + sides["train"])]), sizes["heldout"]


def passages(texts: list[str], tokenizer: Tokenizer, scale: Scale) -> tuple[Sides, NDArray[np.int64], int]:
    """The same, of runs of lines that hold only the commonest ids."""
    random.Random(0).shuffle(texts)
    most = 4 * (scale.heldout_bytes + scale.text_bytes)  # at least a quarter of the text is kept
    texts = [text for text, before in zip(texts, accumulate(map(len, texts)), strict=True) if before < most]
    size, (newline,) = tokenizer.get_vocab_size(), tokenizer.encode("\n").ids
    encoded, counts = [], np.zeros(size, dtype=np.int64)
    for start in range(0, len(texts), 256):
        for one in tokenizer.encode_batch(texts[start : start + 256]):
            encoded.append(np.array(one.ids, dtype=np.int32))
            counts += np.bincount(encoded[-1], minlength=size)
    counts[SEPARATOR] = counts.max() + 1
    ids = np.sort(np.argsort(-counts, kind="stable")[: scale.num_ids])
    is_common = np.isin(np.arange(size), ids)
    lengths = np.array([len(tokenizer.id_to_token(i)) for i in range(size)])  # one character a byte
    sides: Sides = {"heldout": [], "train": []}
    num_bytes = 0
    for tokens in encoded:
        side = "heldout" if num_bytes < scale.heldout_bytes else "train"
        for passage in common_runs(tokens, is_common, newline):
            sides[side].append(passage)
            num_bytes += int(lengths[passage].sum()) if side == "heldout" else 0
    return sides, ids, num_bytes


def common_runs(tokens: NDArray[Any], is_common: NDArray[np.bool_], newline: int) -> Iterator[NDArray[np.int64]]:
    """Runs of whole lines without a rare id, from 64 tokens on."""
    lines = np.split(tokens, np.flatnonzero(tokens == newline) + 1)
    run: list[NDArray[Any]] = []
    for line in [*lines, None]:
        if line is not None and is_common[line].all():
            run.append(line)
        else:
            if sum(map(len, run)) >= 64:
                yield np.concatenate(run).astype(np.int64)
            run = []


def make_corpus(folder: Path, scale: Scale, mirror: Path, teacher: Path) -> Corpus:
    """Token shards of one source in restricted ids, and corpus.npz: all that training needs of it."""
    cut = whole_documents if scale.num_ids is None else passages
    sides, ids, num_bytes = cut(read_texts(mirror), teacher_tokenizer(teacher), scale)
    small = np.zeros(int(ids.max()) + 1, dtype=np.int64)
    small[ids] = np.arange(len(ids))
    end = np.array([SEPARATOR])
    stream = small[np.concatenate([part for text in sides["train"] for part in (text, end)])].astype("<u2")
    data = folder / "data" / "text"
    data.mkdir(parents=True, exist_ok=True)
    stream.tofile(data / "train-00000.bin")
    shard = {"file": "train-00000.bin", "tokens": len(stream), "sha256": sha256_of(data / "train-00000.bin")}
    write_json(data / "tokens.json", {"dtype": "<u2", "tokens": len(stream), "shards": [shard]})
    heldout = small[np.concatenate(sides["heldout"])].astype("<u2")
    lengths = [len(text) for text in sides["heldout"]]
    np.savez(folder / KEPT, ids=ids, heldout=heldout, lengths=lengths, num_bytes=num_bytes)
    return load_corpus(folder, scale)


def load_corpus(folder: Path, scale: Scale) -> Corpus:
    """What make_corpus wrote."""
    with np.load(folder / KEPT) as kept:
        ids, num_bytes = kept["ids"], int(kept["num_bytes"])
        texts = np.split(kept["heldout"].astype(np.int64), np.cumsum(kept["lengths"])[:-1])
    separator = int(np.searchsorted(ids, SEPARATOR))
    heldout = Heldout(tuple((separator, *text.tolist()) for text in texts), num_bytes)
    num_tokens = json.loads((folder / "data" / "text" / "tokens.json").read_text())["tokens"]
    return Corpus(folder, scale, torch.from_numpy(ids), heldout, num_tokens)


class RestrictedTeacher:
    """The teacher, on the ids of a corpus alone; loaded where it is needed first."""

    def __init__(
        self, corpus: Corpus, folder: Path, gguf_file: str | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.corpus, self.device = corpus, device
        self._folder, self._dtype, self._ids = folder, dtype, corpus.ids.to(device)
        self._gguf_file = gguf_file if gguf_file is not None and (folder / gguf_file).is_file() else None
        self._model: CausalTeacher | None = None
        self._table: Tensor | None = None
        self._hidden: Tensor | None = None

    @property
    def model(self) -> CausalTeacher:
        """The whole teacher."""
        if self._model is None:
            from transformers import AutoModelForCausalLM

            extra = {} if self._gguf_file is None else {"gguf_file": self._gguf_file}
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(self._folder), dtype=self._dtype, local_files_only=True, **extra
            )
            self._model = CausalTeacher(model.to(self.device))
        return self._model

    @property
    def table(self) -> Tensor:
        """The rows of its output matrix that count."""
        if self._table is None:
            self._table = self.model.model.get_output_embeddings().weight[self._ids].detach()
        return self._table

    def ask(self, inputs_BT: Tensor) -> DenseTargets:
        """Its distributions after each of B * T inputs, computed now."""
        return self.model.targets(self._ids[inputs_BT])._replace(table=self.table)

    def targets(self, inputs_BT: Tensor) -> DenseTargets:
        """The same, for a TargetWriter."""
        return self.ask(inputs_BT)

    def all_states(self) -> Tensor:
        """Its hidden states [sequences, T, E] after all of the text, on the device, computed once."""
        if self._hidden is None:
            total, step = self.corpus.num_sequences, max(1, TEACHER_TOKENS // self.corpus.scale.length)
            parts = []
            for first in range(0, total, step):
                rows = self.corpus.rows(first, min(first + step, total)).to(self.device)
                parts.append(self.ask(rows).hidden.unflatten(0, (len(rows), -1)))
            self._hidden = torch.cat(parts)
        return self._hidden

    @property
    def name(self) -> str:
        """The file, or the folder."""
        return self._gguf_file or self._folder.name

    def speed(self) -> float:
        """Tokens a second of its forward pass, over some batches after one to warm up; 0 where there is only that."""
        total, step = self.corpus.num_sequences, max(1, TEACHER_TOKENS // self.corpus.scale.length)
        batches = [(first, min(first + step, total)) for first in range(0, min(total, 17 * step), step)]
        for i, (first, last) in enumerate(batches):
            self.ask(self.corpus.rows(first, last).to(self.device))
            if i == 0:
                synchronize(self.device)
                begun = time.perf_counter()
        synchronize(self.device)
        timed = sum(last - first for first, last in batches[1:])
        return timed * self.corpus.scale.length / (time.perf_counter() - begun)

    def bits_per_byte(self) -> float:
        """Of the held-out text, in windows of the student's length that follow one another."""
        length, nll = self.corpus.scale.length, torch.zeros((), dtype=torch.float64, device=self.device)
        documents = self.corpus.heldout.documents
        windows = [(d[i : i + length + 1], 0) for d in documents for i in range(0, len(d) - 1, length)]
        windows.sort(key=lambda window: len(window[0]))
        for batch in batch_windows(windows):
            longest = max(len(ids) for ids, _ in batch)
            rows = torch.tensor([(*ids, *[-1] * (longest - len(ids))) for ids, _ in batch], device=self.device)
            dense, targets = self.ask(rows[:, :-1].clamp(min=0)), rows[:, 1:].flatten()
            for start in range(0, len(targets), 1024):
                piece, chosen = dense.hidden[start : start + 1024], targets[start : start + 1024, None]
                log_p = dense_log_probabilities(dense._replace(hidden=piece), len(self.corpus.ids), 1.0)
                nll -= log_p.gather(1, chosen.clamp(min=0))[chosen >= 0].sum(dtype=torch.float64)
        return float(nll) / float(np.log(2)) / self.corpus.heldout.num_bytes


class RememberedTeacher(RestrictedTeacher):
    """One whose hidden states are kept on the disk, for a CPU, where they are dear: each sequence's once."""

    def __init__(self, corpus: Corpus, folder: Path, gguf_file: str | None, out: Path) -> None:
        super().__init__(corpus, folder, gguf_file, torch.device("cpu"), torch.float32)
        self._parts = out / "hidden"
        self._parts.mkdir(exist_ok=True)
        self._known: dict[bytes, Tensor] = {}
        self._seconds = 0.0
        for path in sorted(self._parts.glob("*.npz")):
            with np.load(path) as part:
                self._known |= zip(map(bytes, part["keys"]), torch.from_numpy(part["hidden"]), strict=True)
                self._seconds += float(part["seconds"])
        kept = out / "table.npy"
        if not kept.exists():
            np.save(kept, self.table.numpy())
        self._table = torch.from_numpy(np.load(kept))

    def speed(self) -> float:
        """Over all that was remembered."""
        return len(self._known) * self.corpus.scale.length / self._seconds

    def targets(self, inputs_BT: Tensor) -> DenseTargets:
        """The distributions after each of B * T inputs."""
        keys = [row.numpy().astype("<u2").tobytes() for row in inputs_BT]
        if missing := [i for i, key in enumerate(keys) if key not in self._known]:
            begun = time.perf_counter()
            hidden = self.ask(inputs_BT[missing]).hidden.unflatten(0, (len(missing), -1))
            seconds = time.perf_counter() - begun
            self._seconds += seconds
            new = [keys[i] for i in missing]
            self._known |= zip(new, hidden, strict=True)
            path = self._parts / f"{len(self._known):06d}.npz"
            temporary = path.with_suffix(".tmp")
            size = 2 * self.corpus.scale.length
            with temporary.open("wb") as file:
                np.savez(
                    file,
                    keys=np.array(new, dtype=f"S{size}").view(f"V{size}"),
                    hidden=hidden.numpy(),
                    seconds=seconds,
                )
            temporary.replace(path)
        return DenseTargets(torch.cat([self._known[key] for key in keys]), self.table)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
