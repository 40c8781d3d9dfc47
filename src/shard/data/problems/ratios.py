"""Fractions, percentages and ratios."""

import math
import random
from fractions import Fraction

from shard.data.problems.phrasing import NAMES, count, decimal, listing, plural, two_names
from shard.data.problems.problem import Family, Problem


def _fraction(rng: random.Random, largest: int) -> Fraction:
    """A proper fraction that is not a whole number."""
    bottom = rng.randint(2, largest)
    return Fraction(rng.randint(1, bottom - 1), bottom)


def _reduced(top: int, bottom: int) -> str:
    """` = 3/4` where top/bottom is not yet in lowest terms, else nothing."""
    return "" if math.gcd(top, bottom) == 1 and bottom > 1 else f" = {Fraction(top, bottom)}"


def fraction_sum(rng: random.Random) -> Problem:
    """Sum or difference of two fractions over the least common denominator."""
    a, b = _fraction(rng, 24), _fraction(rng, 24)
    if a < b:
        a, b = b, a
    minus = a > b and rng.random() < 0.5
    sign, value = ("-", a - b) if minus else ("+", a + b)
    bottom = math.lcm(a.denominator, b.denominator)
    x, y = a.numerator * (bottom // a.denominator), b.numerator * (bottom // b.denominator)
    top = x - y if minus else x + y
    steps = (
        f"The least common denominator of {a.denominator} and {b.denominator} is {bottom}."
        if a.denominator != b.denominator
        else f"Both denominators are {bottom}.",
        f"{a} {sign} {b} = {x}/{bottom} {sign} {y}/{bottom}",
        f"{x} {sign} {y} = {top}, so the result is {top}/{bottom}{_reduced(top, bottom)}.",
    )
    ask = rng.choice((f"Compute {a} {sign} {b}.", f"What is {a} {sign} {b}?", f"Work out {a} {sign} {b}."))
    return Problem(ask, steps, str(value))


def fraction_product(rng: random.Random) -> Problem:
    """Product of two fractions, or a fraction of a fraction."""
    a, b = _fraction(rng, 20), _fraction(rng, 20)
    top, bottom = a.numerator * b.numerator, a.denominator * b.denominator
    steps = (
        rng.choice(("Multiply the numerators and the denominators.", "Top times top, bottom times bottom.")),
        f"{a.numerator} * {b.numerator} = {top} and {a.denominator} * {b.denominator} = {bottom}",
        f"{a} * {b} = {top}/{bottom}{_reduced(top, bottom)}",
    )
    ask = rng.choice((f"Multiply {a} by {b}.", f"What is {a} of {b}?", f"Compute {a} * {b} in lowest terms."))
    return Problem(ask, steps, str(a * b))


def fraction_quotient(rng: random.Random) -> Problem:
    """Division by a fraction as multiplication by its reciprocal."""
    a, b = _fraction(rng, 20), _fraction(rng, 20)
    top, bottom = a.numerator * b.denominator, a.denominator * b.numerator
    steps = (
        rng.choice(("Multiply by the reciprocal.", "Dividing by a fraction is multiplying by its reciprocal.")),
        f"({a}) / ({b}) = {a} * {b.denominator}/{b.numerator}",
        f"{a.numerator} * {b.denominator} = {top} and {a.denominator} * {b.numerator} = {bottom}",
        f"The quotient is {top}/{bottom}{_reduced(top, bottom)}.",
    )
    ask = rng.choice((f"Divide {a} by {b}.", f"Compute ({a}) / ({b}).", f"How many times does {b} fit into {a}?"))
    return Problem(ask, steps, str(a / b))


def simplify_fraction(rng: random.Random) -> Problem:
    """Lowest terms by dividing by the gcd."""
    value, factor = _fraction(rng, 40), rng.randint(2, 36)
    top, bottom = value.numerator * factor, value.denominator * factor
    steps = (
        f"The greatest common divisor of {top} and {bottom} is {factor}.",
        f"{top} / {factor} = {value.numerator} and {bottom} / {factor} = {value.denominator}",
        f"So {top}/{bottom} = {value}.",
    )
    ask = rng.choice((f"Simplify {top}/{bottom}.", f"Write {top}/{bottom} in lowest terms."))
    return Problem(ask, steps, str(value))


def compare_fractions(rng: random.Random) -> Problem:
    """The larger of two fractions by cross multiplication."""
    a, b = _fraction(rng, 30), _fraction(rng, 30)
    if a == b:
        b = (b + 1) / 2
    x, y = a.numerator * b.denominator, b.numerator * a.denominator
    larger = max(a, b)
    steps = (
        rng.choice(("Cross multiply.", "Compare the cross products.")),
        f"{a.numerator} * {b.denominator} = {x} and {b.numerator} * {a.denominator} = {y}",
        f"Since {x} {'<' if x < y else '>'} {y}, {a} {'<' if a < b else '>'} {b}.",
    )
    ask = rng.choice((f"Which is larger, {a} or {b}?", f"Find the greater of the fractions {a} and {b}."))
    return Problem(ask, steps, str(larger))


def mixed_number(rng: random.Random) -> Problem:
    """Improper fraction to mixed number, and back."""
    part, whole = _fraction(rng, 30), rng.randint(1, 30)
    top, bottom = part.numerator, part.denominator
    over = whole * bottom + top
    mixed = f"{whole} and {part}"
    if rng.random() < 0.5:
        steps: tuple[str, ...] = (
            f"{over} = {whole} * {bottom} + {top}",
            f"So {over}/{bottom} is {whole} wholes and {part}.",
        )
        if whole == 1:
            steps = (steps[0], f"So {over}/{bottom} is one whole and {part}, that is {mixed}.")
        ask = rng.choice((f"Write {over}/{bottom} as a mixed number.", f"Turn {over}/{bottom} into a mixed number."))
        return Problem(ask, steps, mixed)
    steps = (f"{whole} * {bottom} + {top} = {over}", f"So {mixed} is {over}/{bottom}.")
    ask = rng.choice((f"Write {mixed} as an improper fraction.", f"Which single fraction equals {mixed}?"))
    return Problem(ask, steps, f"{over}/{bottom}")


def fraction_to_decimal(rng: random.Random) -> Problem:
    """A terminating decimal by scaling the denominator to a power of ten."""
    bottom = rng.choice((4, 5, 8, 16, 20, 25, 40, 50, 80, 125, 200, 250))
    value = Fraction(rng.randint(1, 40 * bottom), bottom)
    scale = 1
    while scale % value.denominator:
        scale *= 10
    factor = scale // value.denominator
    steps = (
        f"{value.denominator} * {factor} = {scale}, a power of ten.",
        f"{value.numerator} * {factor} = {value.numerator * factor}",
        f"{value} = {value.numerator * factor}/{scale} = {decimal(value)}",
    )
    if scale == 1:
        return fraction_to_decimal(rng)
    ask = rng.choice((f"Write {value} as a decimal.", f"Convert the fraction {value} to a decimal."))
    return Problem(ask, steps, decimal(value))


def percent_of(rng: random.Random) -> Problem:
    """A percentage of a number, through one percent or through parts."""
    percent, base = rng.randint(1, 99), rng.choice((1, 2, 5, 10, 20, 50)) * rng.randint(2, 120)
    value = Fraction(percent * base, 100)
    one = Fraction(base, 100)
    if rng.random() < 0.5:
        steps: tuple[str, ...] = (
            f"1% of {base} is {decimal(one)}.",
            f"{percent} * {decimal(one)} = {decimal(value)}",
        )
    else:
        steps = (
            f"{percent}% means {percent} out of 100, so multiply by {percent} and divide by 100.",
            f"{base} * {percent} / 100 = {base * percent} / 100 = {decimal(value)}",
        )
    ask = rng.choice((f"What is {percent}% of {base}?", f"Find {percent} percent of {base}."))
    if percent == 1:
        steps = (f"{base} / 100 = {decimal(one)}",)
    return Problem(ask, steps, decimal(value))


def percent_change(rng: random.Random) -> Problem:
    """By how many percent did it change?"""
    base, percent = rng.randint(1, 40) * 20, rng.choice((*range(-80, 0, 5), *range(5, 155, 5)))
    new = base + base * percent // 100
    change, verb = abs(new - base), "rise" if percent > 0 else "fall"
    what = rng.choice(("price of a ticket", "number of members", "weight of a parcel", "rent of a room"))
    steps = (
        f"The change is {max(new, base)} - {min(new, base)} = {change}.",
        f"Relative to the old value: {change} / {base} = {decimal(Fraction(change, base))}.",
        f"{decimal(Fraction(change, base))} * 100 = {abs(percent)}, a {verb} of {abs(percent)}%.",
    )
    ask = rng.choice(
        (
            f"The {what} changes from {base} to {new}. By what percentage does it {verb}?",
            f"A quantity goes from {base} to {new}. Find the percentage {verb}.",
        )
    )
    return Problem(ask, steps, f"{abs(percent)}%")


def discount(rng: random.Random) -> Problem:
    """Price after a discount, or the price before it."""
    percent = rng.choice((5, 10, 15, 20, 25, 30, 40, 50, 60, 75))
    price = rng.randint(1, 60) * 20
    thing = rng.choice(("coat", "lamp", "chair", "bicycle", "tent", "camera", "table", "watch"))
    off = price * percent // 100
    if rng.random() < 0.5:
        steps: tuple[str, ...] = (
            f"The discount in dollars is {price} * {percent} / 100 = {off}.",
            f"{price} - {off} = {price - off}",
        )
        ask = rng.choice(
            (
                f"A {thing} costs {price} dollars. What does it cost after a discount of {percent}%?",
                f"The price of a {thing} is {price} dollars and is reduced by {percent}%. Find the new price.",
            )
        )
        return Problem(ask, steps, f"{price - off} dollars")
    steps = (
        f"The sale price is 100 - {percent} = {100 - percent} percent of the old price.",
        f"{price - off} * 100 / {100 - percent} = {price}",
        f"Check: {price} - {price} * {percent} / 100 = {price - off}.",
    )
    ask = f"After a discount of {percent}%, a {thing} costs {price - off} dollars. What did it cost before?"
    return Problem(ask, steps, f"{price} dollars")


def share_in_ratio(rng: random.Random) -> Problem:
    """Divide a sum in a ratio of two or three numbers."""
    parts = [rng.randint(1, 9) for _ in range(rng.choice((2, 2, 3)))]
    share = rng.randint(2, 60)
    amount, people = share * sum(parts), rng.sample(NAMES, len(parts))
    thing = rng.choice(("dollar", "marble", "sticker", "point", "stamp"))
    steps = [
        f"There are {' + '.join(map(str, parts))} = {sum(parts)} equal parts.",
        f"One part is {amount} / {sum(parts)} = {share}.",
        *(f"{who}: {part} * {share} = {part * share}" for who, part in zip(people, parts, strict=True)),
    ]
    ratio = ":".join(map(str, parts))
    ask = rng.choice(
        (
            f"{listing(people)} share {count(amount, thing)} in the ratio {ratio}. How many does each get?",
            f"Divide {count(amount, thing)} among {listing(people)} in the ratio {ratio}.",
        )
    )
    return Problem(
        ask, tuple(steps), listing([f"{who} {part * share}" for who, part in zip(people, parts, strict=True)])
    )


def proportion(rng: random.Random) -> Problem:
    """The rule of three, through one unit or through a scale factor."""
    unit, few, many = rng.randint(2, 60), rng.randint(2, 12), rng.randint(2, 40)
    if few == many:
        many += 1
    who, other = two_names(rng)
    noun, verb = rng.choice((("box", "pack"), ("letter", "sort"), ("chair", "paint"), ("envelope", "seal")))
    steps = (
        f"In one hour: {few * unit} / {few} = {unit}.",
        f"In {many} hours: {many} * {unit} = {many * unit}.",
    )
    ask = rng.choice(
        (
            f"{who} can {verb} {few * unit} {plural(noun)} in {few} hours. How many can {who} {verb} in {many} hours?",
            f"A team needs {few} hours to {verb} {few * unit} {plural(noun)}. At the same pace, how many "
            f"{plural(noun)} does it {verb} in {many} hours?",
            f"At a steady pace, {who} and {other} {verb} {few * unit} {plural(noun)} in {few} hours. How "
            "many do they "
            f"{verb} in {many} hours?",
        )
    )
    return Problem(ask, steps, str(many * unit))


FAMILIES: tuple[Family, ...] = (
    fraction_sum,
    fraction_product,
    fraction_quotient,
    simplify_fraction,
    compare_fractions,
    mixed_number,
    fraction_to_decimal,
    percent_of,
    percent_change,
    discount,
    share_in_ratio,
    proportion,
)
