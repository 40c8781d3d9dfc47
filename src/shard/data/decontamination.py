"""Documents that hold a test question: what a model is tested on, it may not have been trained on.

A document is contaminated where 13 words in a row are those of a question (as GPT-3's authors did: Brown et al.,
2020, appendix C); words are those of words.py, so that case, punctuation and white space make no difference. A
question of fewer words counts as a whole, with its choices after it.

A bitmap passes over the places that cannot begin such a run; the rest are looked up by hash and compared word by word,
so that a document is named only for the words themselves.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shard.data.words import (
    Hashes,
    Offsets,
    WordHashes,
    ngrams_at,
    window_hashes,
    word_hashes,
)
from shard.errors import ShardError

NGRAM_WORDS = 13
QUESTION_KEYS = ("question", "prompt", "text", "query")  # of a line of JSON: the first that is there
_BITS_PER_NGRAM = 16  # of the bitmap, at least: one place in 16 is looked up in vain
_LEAST_BITS = 16  # log2 of the smallest bitmap


@dataclass(frozen=True, slots=True)
class EvalQuestion:
    """A question of a test set; `origin` says where it is from."""

    question: str
    choices: tuple[str, ...]
    origin: str


class Contaminated(NamedTuple):
    """A document of a batch, and the origin of the question whose words are first in it."""

    document: int
    origin: str


@dataclass(frozen=True, slots=True)
class _Table:
    """The runs of words that are looked for, by the hash of their first `num_words` words."""

    num_words: int
    hashes: Hashes  # [num_runs], sorted
    starts: Offsets  # [num_runs]: where each run begins among the words of all questions
    lengths: Offsets  # [num_runs], in words
    bitmap: NDArray[np.bool_]  # of the highest bits of the hashes

    @classmethod
    def build(cls, num_words: int, words: WordHashes, starts: Offsets, lengths: Offsets) -> "_Table":
        hashes = ngrams_at(words, starts, num_words)
        order = np.lexsort([starts, hashes])
        num_bits = max(_LEAST_BITS, (len(hashes) * _BITS_PER_NGRAM - 1).bit_length())
        bitmap = np.zeros(2**num_bits, dtype=bool)
        bitmap[hashes >> np.uint64(64 - num_bits)] = True
        return cls(num_words, hashes[order], starts[order], lengths[order], bitmap)

    def candidates(self, words: Hashes) -> Iterator[tuple[int, int]]:
        """Places among these words and the runs that may begin there."""
        windows = window_hashes(words, self.num_words)
        shift = np.uint64(65 - len(self.bitmap).bit_length())
        # As signed integers, which numpy takes as indices without a copy.
        places = np.flatnonzero(self.bitmap[(windows >> shift).view(np.int64)])
        first = np.searchsorted(self.hashes, windows[places], "left")
        last = np.searchsorted(self.hashes, windows[places], "right")
        hits = np.flatnonzero(first < last)
        for place, low, high in zip(places[hits].tolist(), first[hits].tolist(), last[hits].tolist(), strict=True):
            yield from ((place, run) for run in range(low, high))


@dataclass(frozen=True, slots=True)
class Contamination:
    """The runs of words of a set of test questions."""

    words: WordHashes  # of all questions, one text for each
    origins: tuple[str, ...]  # of each question
    tables: tuple[_Table, ...]

    @classmethod
    def build(cls, questions: Iterable[EvalQuestion], n: int = NGRAM_WORDS) -> "Contamination":
        """Of a question of n words or more, each n of them in a row; of a shorter one, all its words and those of
        its choices as one run. A question without a word is passed over.

        Memory: some 50 bytes for each word of the questions.
        """
        questions = list(questions)
        alone = word_hashes([question.question for question in questions])
        is_long = np.diff(alone.offsets) >= n
        words = word_hashes(
            [
                question.question if long else "\n".join([question.question, *question.choices])
                for question, long in zip(questions, is_long, strict=True)
            ]
        )
        starts, lengths = _runs(words, is_long, n)
        # A short run is found by its first 1, 2, 4 or 8 words, so that few lengths have to be hashed.
        key_lengths = [size for size in (1, 2, 4, 8) if size < n] + [n]
        keys = np.array(key_lengths)[np.searchsorted(key_lengths, lengths, "right") - 1]
        tables = tuple(
            _Table.build(size, words, starts[keys == size], lengths[keys == size])
            for size in key_lengths
            if (keys == size).any()
        )
        return cls(words, tuple(question.origin for question in questions), tables)

    def find(self, texts: Sequence[str] | WordHashes) -> list[Contaminated]:
        """The documents that hold a run of a question, ascending, each once."""
        words = texts if isinstance(texts, WordHashes) else word_hashes(texts)
        found: dict[int, tuple[int, str]] = {}  # document: place and origin of its first run
        for table in self.tables:
            for place, run in table.candidates(words.hashes):
                start, length = int(table.starts[run]), int(table.lengths[run])
                document = int(np.searchsorted(words.offsets, place, "right")) - 1
                if document in found and found[document][0] <= place:
                    continue
                if place + length > words.offsets[document + 1]:
                    continue
                ours, theirs = words.hashes[place : place + length], self.words.hashes[start : start + length]
                if np.array_equal(ours, theirs):
                    question = int(np.searchsorted(self.words.offsets, start, "right")) - 1
                    found[document] = place, self.origins[question]
        return [Contaminated(document, found[document][1]) for document in sorted(found)]


def _runs(words: WordHashes, is_long: NDArray[np.bool_], n: int) -> tuple[Offsets, Offsets]:
    """Where the runs of the questions begin among their words, and their lengths: equal runs once."""
    lengths = np.diff(words.offsets)
    counts = np.where(is_long, lengths - (n - 1), np.minimum(lengths, 1))
    question = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(question)) - np.repeat(np.cumsum(counts) - counts, counts)
    return words.offsets[question] + number, np.where(is_long, n, lengths)[question]


def read_arc(path: Path) -> list[EvalQuestion]:
    """The questions of a parquet file of AI2 ARC (columns question and choices, a struct whose text is a list of
    strings). ShardError, one line, where it is not such a file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as stream:
            parquet = pq.ParquetFile(stream)
            for column in ("question", "choices"):
                if column not in parquet.schema_arrow.names:
                    listed = ", ".join(map(repr, parquet.schema_arrow.names))
                    raise ShardError(f"{path}: no column {column!r}, only {listed}: is it a file of AI2 ARC?")
            table = parquet.read(["question", "choices"]).to_pylist()
    except OSError as error:
        raise ShardError(f"cannot read {path} ({error.strerror or error}): check the path") from error
    except pa.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise ShardError(f"{path} is a broken parquet file ({reason}): write or download it again") from error
    questions = []
    for number, row in enumerate(table, 1):
        choices = row["choices"].get("text") if isinstance(row.get("choices"), dict) else None
        place = f"{path}, row {number}"
        questions.append(_question(row.get("question"), choices, place, f"{path.parent.name}/{path.name}#{number}"))
    return questions


def read_prompts(path: Path) -> list[EvalQuestion]:
    """The questions of a file of JSON lines: an object each, with the key question (or prompt, text or query) and
    perhaps choices, a list of strings. ShardError, one line, names the file and the line that is wrong.
    """
    questions = []
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    questions.append(_parse_prompt(line, f"{path}, line {number}", f"{path.name}#{number}"))
    except UnicodeDecodeError as error:
        raise ShardError(f"{path} is not UTF-8 text ({error.reason}): convert it") from None
    except OSError as error:
        raise ShardError(f"cannot read {path} ({error.strerror or error}): check the path") from error
    return questions


def _parse_prompt(line: str, place: str, origin: str) -> EvalQuestion:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{place}: not JSON ({error}): repair or remove the line") from None
    if not isinstance(row, dict):
        raise ShardError(f'{place}: JSON, but not an object: write {{"question": "..."}}, one a line')
    key = next((key for key in QUESTION_KEYS if key in row), None)
    if key is None:
        raise ShardError(f"{place}: none of the keys {', '.join(QUESTION_KEYS)}: name the question so")
    return _question(row[key], row.get("choices", []), place, origin)


def _question(question: Any, choices: Any, place: str, origin: str) -> EvalQuestion:
    if not isinstance(question, str):
        raise ShardError(f"{place}: the question is {type(question).__name__}, not a string: repair it")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ShardError(f"{place}: the choices are not a list of strings: repair them")
    return EvalQuestion(question, tuple(choices), origin)
