"""The form that every task of the mini-suite has: what it is given, and what it gives back."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shard.inference.load import LoadedModel

RESAMPLES = 1000


@dataclass(frozen=True)
class Subject:
    """A model to examine, and the files that the run has at hand for it."""

    loaded: LoadedModel
    context: int
    """Tokens that the model may read at once."""
    heldout: Sequence[Path] = ()
    """Folders of the sources, with held-out documents."""
    question_folders: Sequence[Path] = ()
    """Folders that may hold repositories of test questions, as <owner>/<name>/<path>."""


@dataclass(frozen=True)
class Score:
    """One number of a task. `chance` is what it would be without any ability; the task says what that means."""

    metric: str
    value: float
    standard_error: float
    chance: float
    items: int


@dataclass(frozen=True)
class Measured:
    """The scores of a task, the headline first, and the SHA-256 of all its items, also where a limit took some only."""

    sha256: str
    scores: tuple[Score, ...]


class NotMeasured(Exception):  # noqa: N818, it is no mistake
    """Why a task cannot be measured on this model here: files that are not at hand, a context that is too short."""


@dataclass(frozen=True)
class Task:
    """One task. `measure(subject, max_items)` gives its scores over its first `max_items` items (None: all), or raises
    NotMeasured. The version rises when items or scoring change, so that results of one version can be compared.
    """

    name: str
    version: int
    measure: Callable[[Subject, int | None], Measured]


def run_task(task: Task, subject: Subject, max_items: int | None) -> dict[str, Any]:
    """What evaluation.json says of a task: version, and sha256 and results, or why it was not measured."""
    try:
        measured = task.measure(subject, max_items)
    except NotMeasured as reason:
        return {"version": task.version, "not_measured": str(reason)}
    results = [{k: round(v, 5) if isinstance(v, float) else v for k, v in asdict(s).items()} for s in measured.scores]
    return {"version": task.version, "sha256": measured.sha256, "results": results}


def hash_items(items: Any) -> str:
    """SHA-256 of items as canonical JSON."""
    text = json.dumps(items, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def draw(key: str, low: int, high: int) -> int:
    """A number from low to high that depends on the key alone: the same in every version of Python."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return low + int.from_bytes(digest, "little") % (high - low + 1)


def share(metric: str, hits: Sequence[bool], chance: float) -> Score:
    """A share of hits with its binomial standard error. Of no or all hits that is 0, though 3 / n is still likely."""
    value = sum(hits) / len(hits)
    return Score(metric, value, math.sqrt(value * (1 - value) / len(hits)), chance, len(hits))


def mean(metric: str, values: Sequence[float], chance: float) -> Score:
    """A mean with its standard error."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Score(metric, float(np.mean(values)), error, chance, len(values))


def ratio(metric: str, numerators: Sequence[float], denominators: Sequence[float], chance: float) -> Score:
    """A ratio of sums over items; its standard error by 1000 bootstrap resamples of the items with a fixed seed."""
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    rows = np.random.Generator(np.random.PCG64(0)).integers(len(top), size=(RESAMPLES, len(top)))
    resampled = top[rows].sum(axis=1) / bottom[rows].sum(axis=1)
    return Score(metric, float(top.sum() / bottom.sum()), float(resampled.std()), chance, len(top))


def check_fits(num_tokens: int, subject: Subject) -> None:
    """Raise NotMeasured where the longest item of a task is longer than the context."""
    if num_tokens > subject.context:
        raise NotMeasured(f"its longest item takes {num_tokens} tokens, the context is {subject.context}")
