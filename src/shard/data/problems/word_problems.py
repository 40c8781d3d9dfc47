"""Everyday stories: money, ages, mixtures, means, interest, units and time."""

import math
import random
from fractions import Fraction

from shard.data.problems.phrasing import NAMES, THINGS, count, decimal, listing, plural, two_names
from shard.data.problems.problem import Family, Problem


def gains_and_losses(rng: random.Random) -> Problem:
    """A count that changes two or three times."""
    who, other = two_names(rng)
    thing, a, b = rng.choice(THINGS), rng.randint(5, 90), rng.randint(2, 60)
    c = rng.randint(2, a + b - 2)
    steps = [f"{a} + {b} = {a + b}", f"{a + b} - {c} = {a + b - c}"]
    story = rng.choice(
        (
            f"{who} has {count(a, thing)} and gets {b} more from {other}. Then {who} gives {c} away.",
            f"There are {count(a, thing)} in a bag. {who} adds {b} and {other} takes out {c}.",
            f"{who} collects {count(a, thing)} on Monday and {b} on Tuesday, and then sells {c} of them.",
        )
    )
    value = a + b - c
    if rng.random() < 0.4:
        factor = rng.randint(2, 4)
        times = {2: "doubles", 3: "triples", 4: "quadruples"}[factor]
        story += f" After that the number {times}."
        steps.append(f"{value} * {factor} = {value * factor}")
        value *= factor
    ask = f"{story} How many {plural(thing)} are there now?"
    return Problem(ask, (*steps, f"There are {count(value, thing)}."), count(value, thing))


def ages(rng: random.Random) -> Problem:
    """Two ages from their difference or ratio now and later."""
    old, young = two_names(rng)
    factor, child = rng.randint(2, 6), rng.randint(4, 17)
    parent = factor * child
    if rng.random() < 0.5:
        gap, both = parent - child, parent + child
        steps: tuple[str, ...] = (
            f"Without the difference, both would be equally old: {both} - {gap} = {2 * child}.",
            f"{2 * child} / 2 = {child} and {child} + {gap} = {parent}",
        )
        ask = rng.choice(
            (
                f"{old} is {gap} years older than {young}, and together they are {both}. How old are they?",
                f"The ages of {old} and {young} add up to {both}. {old} is older by {gap} years. How old is each?",
            )
        )
        return Problem(ask, steps, f"{old} {parent}, {young} {child}")
    later = rng.randint(2, 20)
    both = parent + child + 2 * later
    steps = (
        f"In {later} years both are older by {later}, so now together they are {both} - 2 * {later} = "
        f"{parent + child}.",
        f"That is {factor} + 1 = {factor + 1} times the age of {young}: {parent + child} / {factor + 1} = {child}.",
        f"{factor} * {child} = {parent}",
    )
    times = "twice" if factor == 2 else f"{factor} times"
    ask = (
        f"{old} is {times} as old as {young}. In {later} years their ages will add up to {both}. How old are they now?"
    )
    return Problem(ask, steps, f"{old} {parent}, {young} {child}")


def mixture(rng: random.Random) -> Problem:
    """The strength of a mixture of two solutions."""
    p, q = rng.sample(range(5, 95, 5), 2)
    a, b = rng.choice((1, 2, 3, 4, 5, 6, 8, 10, 12, 15)), rng.choice((1, 2, 3, 4, 5, 6, 8, 10, 12, 15))
    while not _terminates(result := Fraction(a * p + b * q, a + b)):
        b += 1
    what = rng.choice(("salt", "sugar", "acid", "alcohol"))
    shown = decimal(result)
    steps = (
        f"Liters of {what} in the first: {a} * {p} / 100 = {decimal(Fraction(a * p, 100))}.",
        f"Liters of {what} in the second: {b} * {q} / 100 = {decimal(Fraction(b * q, 100))}.",
        f"Of {what}: {decimal(Fraction(a * p, 100))} + {decimal(Fraction(b * q, 100))} = "
        f"{decimal(Fraction(a * p + b * q, 100))}. In all: {a} + {b} = {a + b}.",
        f"{decimal(Fraction(a * p + b * q, 100))} / {a + b} * 100 = {shown}",
    )
    one, two = (count(x, "liter") for x in (a, b))
    ask = rng.choice(
        (
            f"{one} of a {p}% {what} solution and {two} of a {q}% solution are mixed. What is the strength in percent?",
            f"Mix {one} of liquid with {p}% {what} and {two} with {q}% {what}. What percentage of {what} results?",
        )
    )
    return Problem(ask.replace("of a 80%", "of an 80%").replace("of a 85%", "of an 85%"), steps, f"{shown}%")


def _terminates(value: Fraction) -> bool:
    """Whether the decimal of `value` ends within four places."""
    return 10_000 % value.denominator == 0


def average(rng: random.Random) -> Problem:
    """The mean of a list, exact."""
    numbers = [rng.randint(1, 120) for _ in range(rng.choice((4, 5, 8, 10)))]
    if rng.random() < 0.5:
        numbers[-1] += -sum(numbers) % len(numbers)
    value, n = sum(numbers), len(numbers)
    mean = decimal(Fraction(value, n))
    steps = (f"{' + '.join(map(str, numbers))} = {value}", f"There are {n} numbers: {value} / {n} = {mean}.")
    ask = rng.choice((f"Find the mean of {listing(numbers)}.", f"What is the average of {listing(numbers)}?"))
    return Problem(ask, steps, mean)


def missing_value(rng: random.Random) -> Problem:
    """The value that brings a mean to a target."""
    who, mean = rng.choice(NAMES), rng.randint(55, 90)
    scores = [rng.randint(mean - 15, mean + 8) for _ in range(rng.randint(2, 5))]
    n, needed = len(scores) + 1, (len(scores) + 1) * mean - sum(scores)
    steps = (
        f"For {n} tests with a mean of {mean} the total must be {n} * {mean} = {n * mean}.",
        f"So far: {' + '.join(map(str, scores))} = {sum(scores)}.",
        f"{n * mean} - {sum(scores)} = {needed}",
    )
    ask = rng.choice(
        (
            f"{who} scored {listing(scores)} points. How many points must the next test bring for a mean of {mean}?",
            f"The scores so far are {listing(scores)}. {who} wants an average of {mean} after one more test. "
            "Which score is needed?",
        )
    )
    return Problem(ask, steps, f"{needed} points")


def shared_work(rng: random.Random) -> Problem:
    """Two workers together, with their rates as fractions."""
    first, second = two_names(rng)
    a, b = rng.randint(2, 30), rng.randint(2, 30)
    job = rng.choice(("paint a fence", "clean a hall", "pick the apples", "dig a ditch", "sort the mail"))
    time = Fraction(a * b, a + b)
    lowest = "" if time.denominator == a + b else f" = {time}"
    steps = (
        f"In one hour they do 1/{a} and 1/{b} of the work.",
        f"1/{a} + 1/{b} = {b}/{a * b} + {a}/{a * b} = {a + b}/{a * b}",
        f"The time is the reciprocal, {a * b}/{a + b}{lowest}.",
    )
    hours = "1 hour" if time == 1 else f"{time} hours"
    ask = rng.choice(
        (
            f"{first} can {job} in {a} hours and {second} in {b} hours. How long do they need together?",
            f"Alone, {first} takes {a} hours to {job} and {second} takes {b}. How long does it take both "
            "of them together?",
        )
    )
    return Problem(ask, steps, hours)


def heads_and_legs(rng: random.Random) -> Problem:
    """Two kinds of animals or vehicles from two totals."""
    few, fx, many, fy, part = rng.choice(
        (
            ("hen", 2, "goat", 4, "leg"),
            ("duck", 2, "rabbit", 4, "leg"),
            ("bicycle", 2, "car", 4, "wheel"),
            ("tricycle", 3, "wagon", 4, "wheel"),
            ("ant", 6, "spider", 8, "leg"),
        )
    )
    x, y = rng.randint(2, 60), rng.randint(2, 60)
    n, parts = x + y, fx * x + fy * y
    steps = (
        f"If all {n} were {plural(few)}, there would be {n} * {fx} = {n * fx} {plural(part)}.",
        f"That is {parts} - {n * fx} = {parts - n * fx} too few, and each {many} adds {fy} - {fx} = {fy - fx}.",
        f"{parts - n * fx} / {fy - fx} = {y} and {n} - {y} = {x}",
    )
    ask = rng.choice(
        (
            f"There are {n} {plural(few)} and {plural(many)} with {parts} {plural(part)} in all. How many of each?",
            f"{plural(few).capitalize()} and {plural(many)} number {n} together and have {parts} "
            f"{plural(part)}. "
            "How many are there of each kind?",
        )
    )
    return Problem(ask, steps, f"{count(x, few)} and {count(y, many)}")


def packing(rng: random.Random) -> Problem:
    """Full packs and the rest, or the number of packs needed."""
    thing, size, number = rng.choice(THINGS), rng.randint(4, 36), rng.randint(40, 999)
    full, rest = divmod(number, size)
    needed = math.ceil(Fraction(number, size))
    steps = [f"{number} = {full} * {size} + {rest}"]
    if rng.random() < 0.5:
        ask = f"{count(number, thing)} are packed in boxes of {size}. How many full boxes are there and what is left?"
        steps.append(f"That makes {count(full, 'full box')} with {count(rest, thing)} left over.")
        return Problem(ask, tuple(steps), f"{count(full, 'box')}, {rest} left")
    steps.append(f"The rest needs one more box: {full} + 1 = {needed}." if rest else "Nothing is left over.")
    ask = rng.choice(
        (
            f"A box holds {size} {plural(thing)}. How many boxes are needed for {number} {plural(thing)}?",
            f"How many boxes of {size} does it take to hold {number} {plural(thing)}?",
        )
    )
    return Problem(ask, tuple(steps), count(needed, "box"))


FAMILIES: tuple[Family, ...] = (
    gains_and_losses, ages, mixture, average, missing_value,     shared_work, heads_and_legs, packing,
)  # fmt: skip
