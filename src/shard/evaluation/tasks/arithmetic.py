"""Arithmetic by exact match: sums, differences and products of whole numbers, by the number of their digits.

The model continues "Question: What is 23 + 19? Answer:" greedily, without an example before it. The answer is the first
number of the continuation, which must stand at its beginning, and must be right in every digit.

Chance is what the best fixed answer would get: the share of the most frequent answer.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from shard.evaluation.greedy import continue_greedily
from shard.evaluation.tasks.form import Measured, Score, Subject, Task, check_fits, draw, hash_items, share

ITEMS_PER_CELL = 50
CELLS = [("+", digits) for digits in (1, 2, 3, 4)] + [("-", digits) for digits in (1, 2, 3, 4)]
CELLS += [("*", digits) for digits in (1, 2, 3)]
NAMES = {"+": "addition", "-": "subtraction", "*": "multiplication"}
MAX_TOKENS = 8  # a space, six digits, and one more, which must not be another


@dataclass(frozen=True)
class Sum:
    """A problem in two numbers of `digits` digits each."""

    left: int
    operation: str
    right: int
    digits: int

    @property
    def prompt(self) -> str:
        """What the model continues."""
        return f"Question: What is {self.left} {self.operation} {self.right}? Answer:"

    @property
    def answer(self) -> int:
        """The right answer."""
        match self.operation:
            case "+":
                return self.left + self.right
            case "-":
                return self.left - self.right
        return self.left * self.right


def make_items() -> list[Sum]:
    """All problems, one of each kind in turn; those of one kind are all different. Differences are never negative."""
    cells: list[list[Sum]] = []
    for operation, digits in CELLS:
        low, high = 10 ** (digits - 1), 10**digits - 1
        found: dict[Sum, None] = {}
        number = 0
        while len(found) < min(ITEMS_PER_CELL, (high - low + 1) ** 2 // 2):
            key = f"arithmetic {operation} {digits} {number}"
            left, right = draw(f"{key} left", low, high), draw(f"{key} right", low, high)
            if operation == "-":
                left, right = max(left, right), min(left, right)
            found[Sum(left, operation, right, digits)] = None
            number += 1
        cells.append(list(found))
    return [cell[i] for i in range(ITEMS_PER_CELL) for cell in cells if i < len(cell)]


def read_answer(continuation: str) -> int | None:
    """The number that a continuation begins with, if it does."""
    found = re.match(r"\s*(-?\d+)", continuation)
    return int(found[1]) if found else None


def measure(subject: Subject, max_items: int | None) -> Measured:
    """Exact match over all problems, then by operation and digits."""
    items = make_items()
    sha256 = hash_items([asdict(item) for item in items])
    items = items[:max_items]
    tokenizer = subject.loaded.tokenizer
    prompts = [tokenizer.encode(item.prompt, add_special_tokens=False).ids for item in items]
    check_fits(max(map(len, prompts)) + MAX_TOKENS, subject)
    new = continue_greedily(subject.loaded.model, prompts, MAX_TOKENS, subject.loaded.separator_id)
    hits = [read_answer(tokenizer.decode(ids)) == item.answer for ids, item in zip(new, items, strict=True)]
    scores = [_score("exact match", items, hits)]
    for operation, digits in CELLS:
        chosen = [i for i, item in enumerate(items) if (item.operation, item.digits) == (operation, digits)]
        if chosen:
            name = f"exact match, {NAMES[operation]} of {digits} digit{'s' * (digits > 1)}"
            scores.append(_score(name, [items[i] for i in chosen], [hits[i] for i in chosen]))
    return Measured(sha256, tuple(scores))


def _score(metric: str, items: Sequence[Sum], hits: Sequence[bool]) -> Score:
    most_frequent = max(Counter(item.answer for item in items).values())
    return share(metric, hits, most_frequent / len(items))


TASK = Task("arithmetic", 1, measure)
