"""The source kind `generated`: worked mathematics problems, correct by construction.

A family is a plain function of a `random.Random` that returns one `Problem`: it draws the solution first,
words the question around it, and shows every line of the working. All arithmetic is on integers and fractions:
no line is ever rounded. Problem i of a seed depends on (seed, i) alone, which makes the source free to
repeat, and the same on every machine.
"""

import random
from collections.abc import Iterator
from hashlib import blake2b

from shard.data.document import Document
from shard.data.problems import (
    algebra,
    arithmetic,
    calculus,
    counting,
    expressions,
    geometry,
    measures,
    number_theory,
    ratios,
    sequences,
    word_problems,
)
from shard.data.problems.problem import Family, Layout, Problem

__all__ = ["FAMILIES", "Family", "Layout", "Problem", "generate_problems", "problem_at"]

_SUBJECTS = (
    arithmetic,
    expressions,
    number_theory,
    ratios,
    algebra,
    geometry,
    counting,
    sequences,
    word_problems,
    measures,
    calculus,
)

#: Every family by `subject.name`, in a fixed order.
FAMILIES: dict[str, Family] = {
    f"{subject.__name__.rpartition('.')[2]}.{family.__name__}": family
    for subject in _SUBJECTS
    for family in subject.FAMILIES
}

_ORDER = tuple(FAMILIES.values())


def problem_at(seed: int, index: int) -> Problem:
    """Problem `index` of `seed`: a pure function, the same in every process and on every machine."""
    digest = blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    rng = random.Random(int.from_bytes(digest, "little"))
    return rng.choice(_ORDER)(rng)


def generate_problems(num_bytes: int, seed: int) -> Iterator[Document]:
    """Documents of `seed`, in order, until their UTF-8 texts come to at least `num_bytes`.

    A statement that was already given is skipped, so no two documents share one; the group of a document is
    its statement, so that a question is either trained on or held out in every source that draws it.
    """
    seen: set[bytes] = set()
    produced, index = 0, 0
    while produced < num_bytes:
        problem = problem_at(seed, index)
        index += 1
        key = blake2b(problem.statement.encode(), digest_size=16).digest()
        if key in seen:
            continue
        seen.add(key)
        text = problem.text()
        produced += len(text.encode())
        yield Document(text, f"problem:{problem.statement}")
