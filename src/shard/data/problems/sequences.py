"""Arithmetic, geometric and recursive sequences, and their sums."""

import random
from itertools import pairwise

from shard.data.problems.phrasing import nonzero, paren, signed
from shard.data.problems.problem import Family, Problem


def _ordinal(n: int) -> str:
    """`21st`, `12th`."""
    ending = "th" if n // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def _start(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def arithmetic_term(rng: random.Random) -> Problem:
    """The n-th term of an arithmetic sequence."""
    first, step, n = rng.randint(-30, 60), nonzero(rng, -15, 20), rng.randint(8, 120)
    value = first + (n - 1) * step
    shown = _start([first + i * step for i in range(4)])
    steps = (
        f"The common difference is {first + step} - {paren(first)} = {step}.",
        f"From the first term to the {_ordinal(n)} there are {n} - 1 = {n - 1} steps.",
        f"{first} + {n - 1} * {paren(step)} = {value}",
    )
    ask = rng.choice(
        (
            f"Find the {_ordinal(n)} term of the arithmetic sequence {shown}, ...",
            f"What is term number {n} of the sequence {shown}, ... with constant differences?",
        )
    )
    return Problem(ask, steps, str(value))


def arithmetic_sum(rng: random.Random) -> Problem:
    """The sum of an arithmetic series by pairing the ends."""
    first, step, n = rng.randint(1, 40), rng.randint(1, 12), rng.randint(6, 80)
    last = first + (n - 1) * step
    value = n * (first + last) // 2
    steps = (
        f"The last term is {first} + {n - 1} * {step} = {last}.",
        rng.choice(("The sum is the number of terms times the mean of the ends.", "Pair the first with the last.")),
        f"{n} * ({first} + {last}) / 2 = {n} * {first + last} / 2 = {value}",
    )
    shown = _start([first + i * step for i in range(3)])
    ask = rng.choice(
        (
            f"Add the first {n} terms of the arithmetic sequence {shown}, ...",
            f"A row has {n} numbers: {shown} and so on with equal differences. What is their sum?",
        )
    )
    return Problem(ask, steps, str(value))


def which_term(rng: random.Random) -> Problem:
    """The position of a number in an arithmetic sequence."""
    first, step, n = rng.randint(-20, 50), rng.randint(2, 19), rng.randint(6, 150)
    value = first + (n - 1) * step
    shown = _start([first + i * step for i in range(3)])
    steps = (
        f"The difference between neighbors is {step}.",
        f"{value} - {paren(first)} = {value - first} and {value - first} / {step} = {n - 1} steps.",
        f"The first term is number 1, so {n - 1} + 1 = {n}.",
    )
    ask = rng.choice(
        (
            f"Which term of the arithmetic sequence {shown}, ... is {value}?",
            f"At which position does {value} stand in the sequence {shown}, ...?",
        )
    )
    return Problem(ask, steps, str(n))


def geometric_term(rng: random.Random) -> Problem:
    """The n-th term of a geometric sequence."""
    first, ratio, n = rng.randint(1, 120), rng.choice((-3, -2, 2, 2, 3, 4, 5)), rng.randint(5, 9)
    power = ratio ** (n - 1)
    shown = _start([first * ratio**i for i in range(3)])
    steps = (
        f"The common ratio is {first * ratio} / {first} = {ratio}.",
        f"{paren(ratio)}^{n - 1} = {power}",
        f"{first} * {paren(power)} = {first * power}",
    )
    ask = rng.choice(
        (
            f"Find the {_ordinal(n)} term of the geometric sequence {shown}, ...",
            f"Each term of {shown}, ... is a fixed multiple of the one before. What is the {_ordinal(n)} term?",
        )
    )
    return Problem(ask, steps, str(first * power))


def geometric_sum(rng: random.Random) -> Problem:
    """The sum of a geometric series: multiply by the ratio and subtract."""
    first, ratio, n = rng.randint(1, 150), rng.choice((2, 2, 3, 4, 5)), rng.randint(4, 9)
    after = first * ratio**n
    value = (after - first) // (ratio - 1)
    shown = " + ".join(str(first * ratio**i) for i in range(3))
    line = f"({after} - {first}) / ({ratio} - 1) = {after - first} / {ratio - 1} = {value}"
    steps = (
        f"The ratio is {ratio}, and the term after the last would be {first} * {ratio}^{n} = {after}.",
        f"Multiplying the sum by {ratio} and subtracting the sum leaves only this term minus the first.",
        line if ratio > 2 else f"{after} - {first} = {value}",
    )
    ask = rng.choice(
        (
            f"Add the first {n} terms of the geometric series {shown} + ...",
            f"What is {shown} + ... with {n} terms, each {ratio} times the one before?",
        )
    )
    return Problem(ask, steps, str(value))


def second_differences(rng: random.Random) -> Problem:
    """The next term of a quadratic sequence from its second differences."""
    a, b, c = rng.randint(1, 5), rng.randint(-8, 12), rng.randint(-15, 30)
    terms = [a * i * i + b * i + c for i in range(1, 7)]
    first = [y - x for x, y in pairwise(terms)]
    steps = (
        f"The differences are {_start(first[:4])}.",
        f"Their differences are all {first[1]} - {paren(first[0])} = {2 * a}.",
        f"The next difference is {first[3]} + {2 * a} = {first[4]}.",
        f"{terms[4]} {signed(first[4])} = {terms[5]}",
    )
    ask = rng.choice(
        (
            f"The differences of {_start(terms[:5])} grow by a constant. What comes next?",
            f"Continue the quadratic sequence {_start(terms[:5])}, ... by one term.",
        )
    )
    return Problem(ask, steps, str(terms[5]))


def recurrence(rng: random.Random) -> Problem:
    """A term of a linear recurrence, one step at a time."""
    a, b, first, n = rng.choice((-2, 2, 2, 3, 4)), nonzero(rng, -9, 9), rng.randint(-5, 12), rng.randint(4, 7)
    value, lines = first, []
    for index in range(2, n + 1):
        lines.append(f"Term {index}: {a} * {paren(value)} {signed(b)} = {a * value + b}.")
        value = a * value + b
    rule = f"multiplied by {a} and then {b} is added" if b > 0 else f"multiplied by {a} and then {-b} is subtracted"
    ask = rng.choice(
        (
            f"A sequence starts with {first}. To get the next term, a term is {rule}. Find term {n}.",
            f"Starting from {first}, each number is {rule} to give the next. What is the {_ordinal(n)} number?",
        )
    )
    return Problem(ask, tuple(lines), str(value))


def two_term_recurrence(rng: random.Random) -> Problem:
    """A Fibonacci-like sequence with its own two starting numbers."""
    a, b, n = rng.randint(1, 40), rng.randint(1, 40), rng.randint(5, 10)
    x, y, lines = a, b, []
    for index in range(3, n + 1):
        lines.append(f"Term {index}: {x} + {y} = {x + y}.")
        x, y = y, x + y
    ask = rng.choice(
        (
            f"A sequence starts {a}, {b}, and each later term is the sum of the two before it. Find the "
            f"{_ordinal(n)} term.",
            f"The first two numbers are {a} and {b}; every further one adds the previous two. What is number {n}?",
        )
    )
    return Problem(ask, tuple(lines), str(y))


def sum_of_range(rng: random.Random) -> Problem:
    """Sums of consecutive whole, even or odd numbers."""
    kind, n, low = rng.choice(("whole", "even", "odd")), rng.randint(5, 200), rng.randint(1, 40)
    step = 1 if kind == "whole" else 2
    first = low if kind == "whole" else 2 * low - (kind == "odd")
    last = first + (n - 1) * step
    how_many = f"({last} - {first}) / 2 + 1 = {n}" if step == 2 else f"{last} - {first} + 1 = {n}"
    value = n * (first + last) // 2
    steps = (
        f"Number of terms: {how_many}.",
        f"Twice the sum is {n} * ({first} + {last}) = {n * (first + last)}.",
        f"{n * (first + last)} / 2 = {value}",
    )
    ask = rng.choice(
        (
            f"What is the sum of all {kind} numbers from {first} to {last}?",
            f"Add up the {kind} numbers from {first} to {last}, both included.",
        )
    )
    return Problem(ask, steps, str(value))


FAMILIES: tuple[Family, ...] = (
    arithmetic_term,
    arithmetic_sum,
    which_term,
    geometric_term,
    geometric_sum,
    second_differences,
    recurrence,
    two_term_recurrence,
    sum_of_range,
)
