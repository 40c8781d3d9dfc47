"""Stories with units: money and interest, speed, time and conversions."""

import random
from fractions import Fraction

from shard.data.problems.phrasing import NAMES, THINGS, count, decimal, fixed, plural, two_names
from shard.data.problems.problem import Family, Problem


def shopping(rng: random.Random) -> Problem:
    """Change from a bill after buying two kinds of things, in cents."""
    who = rng.choice(NAMES)
    first, second = rng.sample(THINGS, 2)
    m, n = rng.randint(1, 9), rng.randint(2, 9)
    p, q = rng.randint(4, 79) * 5, rng.randint(4, 79) * 5
    cost = m * p + n * q
    paid = next(bill for bill in (1000, 2000, 5000, 10_000) if bill >= cost)
    steps = (
        f"{count(m, first).capitalize()}: {m} * {fixed(p)} = {fixed(m * p)} dollars.",
        f"{count(n, second).capitalize()}: {n} * {fixed(q)} = {fixed(n * q)} dollars.",
        f"Together: {fixed(m * p)} + {fixed(n * q)} = {fixed(cost)} dollars.",
        f"Change: {fixed(paid)} - {fixed(cost)} = {fixed(paid - cost)} dollars.",
    )
    each = "" if m == 1 else " each"
    ask = rng.choice(
        (
            f"{who} buys {count(m, first)} at {fixed(p)} dollars{each} and {count(n, second)} at "
            f"{fixed(q)} dollars "
            f"each, and pays with {paid // 100} dollars. How much change is due?",
            f"A shop sells {plural(first)} for {fixed(p)} dollars and {plural(second)} for {fixed(q)} "
            "dollars apiece. "
            f"{who} takes {count(m, first)} and {count(n, second)}. What is left of {paid // 100} dollars?",
        )
    )
    return Problem(ask, steps, f"{fixed(paid - cost)} dollars")


def simple_interest(rng: random.Random) -> Problem:
    """Simple interest and the final amount."""
    who, principal, rate, years = (
        rng.choice(NAMES),
        rng.randint(2, 99) * 100,
        rng.randint(1, 12),
        rng.randint(2, 10),
    )
    yearly = principal * rate // 100
    steps = (
        f"Interest for one year: {principal} * {rate} / 100 = {yearly} dollars.",
        f"For {years} years: {yearly} * {years} = {yearly * years} dollars.",
        f"Final amount: {principal} + {yearly * years} = {principal + yearly * years} dollars.",
    )
    ask = rng.choice(
        (
            f"{who} lends {principal} dollars at {rate}% simple interest per year. What is owed after {years} years?",
            f"What do {principal} dollars grow to in {years} years at {rate}% simple interest a year?",
        )
    )
    return Problem(ask, steps, f"{principal + yearly * years} dollars")


def compound_interest(rng: random.Random) -> Problem:
    """Compound growth, exact to the last decimal."""
    principal, rate, years = (
        rng.randint(1, 250) * 500,
        rng.choice((1, 2, 3, 4, 5, 8, 10, 20)),
        rng.choice((2, 2, 3)),
    )
    factor, value, lines = Fraction(100 + rate, 100), Fraction(principal), []
    for year in range(1, years + 1):
        lines.append(f"Year {year}: {decimal(value)} * {decimal(factor)} = {decimal(value * factor)}.")
        value *= factor
    ask = rng.choice(
        (
            f"{principal} dollars earn {rate}% compound interest a year. What is the balance after {years} years?",
            f"An amount of {principal} grows by {rate}% each year. Find its exact value after {years} years.",
        )
    )
    return Problem(ask, (f"Each year multiplies by {decimal(factor)}.", *lines), decimal(value))


#: What moves, and its slowest and fastest speed in km per hour.
_VEHICLES = (
    ("train", 40, 240),
    ("car", 30, 130),
    ("bus", 20, 100),
    ("truck", 20, 90),
    ("boat", 6, 60),
    ("plane", 200, 900),
    ("cyclist", 10, 40),
    ("horse", 8, 40),
)


def speed(rng: random.Random) -> Problem:
    """Distance, speed and time: any one from the other two."""
    vehicle, slowest, fastest = rng.choice(_VEHICLES)
    v, halves = rng.randint(slowest // 2, fastest // 2) * 2, rng.randint(2, 19)
    t = Fraction(halves, 2)
    d = int(v * t)
    hours = f"{decimal(t)} {'hour' if t == 1 else 'hours'}"
    asked = rng.randrange(3)
    if asked == 0:
        ask = rng.choice(
            (
                f"A {vehicle} travels at {v} km per hour for {hours}. How far does it go?",
                f"How far does a {vehicle} get in {hours} at {v} km per hour?",
            )
        )
        return Problem(ask, ("Distance is speed times time.", f"{v} * {decimal(t)} = {d}"), f"{d} km")
    if asked == 1:
        ask = rng.choice(
            (
                f"A {vehicle} covers {d} km in {hours}. What is its average speed?",
                f"It takes a {vehicle} {hours} to go {d} km. Find its average speed.",
            )
        )
        return Problem(ask, ("Speed is distance divided by time.", f"{d} / {decimal(t)} = {v}"), f"{v} km per hour")
    ask = rng.choice(
        (
            f"How long does a {vehicle} need for {d} km at {v} km per hour?",
            f"A {vehicle} moves at {v} km per hour. After what time has it gone {d} km?",
        )
    )
    return Problem(ask, ("Time is distance divided by speed.", f"{d} / {v} = {decimal(t)}"), hours)


def meeting(rng: random.Random) -> Problem:
    """Two travellers move towards each other."""
    v, w, t = rng.randint(3, 90), rng.randint(3, 90), rng.randint(2, 12)
    d = (v + w) * t
    first, second = two_names(rng)
    steps = (
        f"The gap closes at {v} + {w} = {v + w} km per hour.",
        f"{d} / {v + w} = {t} hours",
        f"Check: {v} * {t} + {w} * {t} = {v * t} + {w * t} = {d}.",
    )
    ask = rng.choice(
        (
            f"{first} and {second} start {d} km apart and drive toward each other at {v} and {w} km per "
            "hour. "
            "After how many hours do they meet?",
            f"Two stations are {d} km apart. Trains leave them at the same time toward each other at {v} "
            f"and {w} km "
            "per hour. When do they meet?",
        )
    )
    return Problem(ask, steps, f"after {t} hours")


def elapsed_time(rng: random.Random) -> Problem:
    """The time between two clock times on one day."""
    start = rng.randint(0, 1200)
    end = start + rng.randint(20, 1439 - start)
    a, b = (f"{t // 60:02d}:{t % 60:02d}" for t in (start, end))
    minutes = end - start
    answer = f"{count(minutes // 60, 'hour')} and {count(minutes % 60, 'minute')}"
    steps = (
        f"Count the minutes since midnight: {end // 60} * 60 + {end % 60} = {end} and "
        f"{start // 60} * 60 + {start % 60} = {start}.",
        f"{end} - {start} = {minutes} minutes",
        f"{minutes} = {minutes // 60} * 60 + {minutes % 60}, that is {answer}.",
    )
    event = rng.choice(("A film", "A lesson", "A flight", "A meeting", "A train ride", "A concert"))
    ask = rng.choice(
        (
            f"{event} starts at {a} and ends at {b}. How long does it take?",
            f"How much time passes from {a} to {b} on the same day?",
        )
    )
    return Problem(ask, steps, answer)


_CONVERSIONS = (
    ("km", "km", "m", 1000), ("m", "m", "cm", 100), ("cm", "cm", "mm", 10), ("kg", "kg", "g", 1000),
    ("liter", "liters", "milliliters", 1000), ("hour", "hours", "minutes", 60),
    ("minute", "minutes", "seconds", 60), ("day", "days", "hours", 24), ("week", "weeks", "days", 7),
    ("foot", "feet", "inches", 12), ("yard", "yards", "feet", 3), ("pound", "pounds", "ounces", 16),
    ("dozen", "dozens", "pieces", 12),
)  # fmt: skip


def unit_conversion(rng: random.Random) -> Problem:
    """From the larger unit to the smaller, or back."""
    one, big, small, factor = rng.choice(_CONVERSIONS)
    value = Fraction(rng.randint(3, 1200), rng.choice((1, 2, 4, 5, 10)))
    if value == 1:
        value += 1
    result = value * factor
    if rng.random() < 0.5 and result.denominator == 1:
        steps: tuple[str, ...] = (
            f"{factor} {small} make one {one}, so divide.",
            f"{result} / {factor} = {decimal(value)}",
        )
        ask = rng.choice((f"Convert {result} {small} to {big}.", f"How many {big} are {result} {small}?"))
        return Problem(ask, steps, f"{decimal(value)} {big}")
    steps = (
        f"One {one} is {factor} {small}, so multiply.",
        f"{decimal(value)} * {factor} = {decimal(result)}",
    )
    ask = rng.choice((f"Convert {decimal(value)} {big} to {small}.", f"How many {small} are {decimal(value)} {big}?"))
    return Problem(ask, steps, f"{decimal(result)} {small}")


FAMILIES: tuple[Family, ...] = (
    shopping,
    simple_interest,
    compound_interest,
    speed,
    meeting,
    elapsed_time,
    unit_conversion,
)
