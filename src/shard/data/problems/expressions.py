"""Signed numbers, decimals, rounding and the order of operations."""

import random
from fractions import Fraction

from shard.data.problems.phrasing import decimal, paren
from shard.data.problems.problem import Family, Problem


def decimal_sum(rng: random.Random) -> Problem:
    """Adding or subtracting decimals by lining up the decimal points."""
    a, b = Fraction(rng.randint(101, 99_999), 100), Fraction(rng.randint(11, 9999), rng.choice((10, 100)))
    minus = a > b and rng.random() < 0.5
    value = a - b if minus else a + b
    sign, verb = ("-", "subtract") if minus else ("+", "add")
    x, y = int(a * 100), int(b * 100)
    steps = (
        rng.choice((f"Count in hundredths and {verb} whole numbers.", f"Write both in hundredths, then {verb}.")),
        f"{decimal(a)} = {x}/100 and {decimal(b)} = {y}/100.",
        f"{x} {sign} {y} = {int(value * 100)}",
        f"So {decimal(a)} {sign} {decimal(b)} = {decimal(value)}.",
    )
    ask = rng.choice((f"Compute {decimal(a)} {sign} {decimal(b)}.", f"What is {decimal(a)} {sign} {decimal(b)}?"))
    return Problem(ask, steps, decimal(value))


def decimal_product(rng: random.Random) -> Problem:
    """Multiplying decimals: whole numbers first, then the decimal point."""
    a, b = rng.randint(2, 999), rng.randint(2, 99)
    a, b = a + (a % 10 == 0), b + (b % 10 == 0)  # no trailing zeros: the places are the ones seen
    places_a, places_b = rng.randint(1, 2), rng.randint(1, 2)
    x, y = Fraction(a, 10**places_a), Fraction(b, 10**places_b)
    scale = 10 ** (places_a + places_b)
    steps = (
        rng.choice(("Leave the decimal points aside at first.", "Multiply as if there were no decimal points.")),
        f"{a} * {b} = {a * b}",
        f"The factors have {places_a} and {places_b} decimal places, so divide by {scale}.",
        f"{a * b} / {scale} = {decimal(x * y)}",
    )
    ask = rng.choice((f"Multiply {decimal(x)} by {decimal(y)}.", f"What is {decimal(x)} * {decimal(y)}?"))
    return Problem(ask, steps, decimal(x * y))


def rounding(rng: random.Random) -> Problem:
    """Rounding a whole number to a place, half up, with the digit that decides."""
    place = rng.randint(1, 4)
    unit = 10**place
    number = rng.randint(unit * 2, unit * 999)
    low = number // unit * unit
    decider = number // (unit // 10) % 10
    up = decider >= 5
    name = ("ten", "hundred", "thousand", "ten thousand")[place - 1]
    steps = (
        f"{number} lies between {low} and {low + unit}.",
        f"The digit after the {name}s place is {decider}, which is {'5 or more' if up else 'less than 5'}.",
        f"So round {'up' if up else 'down'} to {low + unit if up else low}.",
    )
    ask = rng.choice((f"Round {number} to the nearest {name}.", f"What is {number} to the nearest {name}?"))
    return Problem(ask, steps, str(low + unit if up else low))


def signed_numbers(rng: random.Random) -> Problem:
    """Sums, differences and products with negative numbers."""
    a, b = rng.randint(-60, 60), -rng.randint(1, 60)
    kind = rng.choice("+-*")
    expression = f"{a} {kind} ({b})"
    if kind == "+":
        value = a + b
        steps = ["Adding a negative number is the same as subtracting its opposite.", f"{a} - {-b} = {value}"]
    elif kind == "-":
        value = a - b
        steps = ["Subtracting a negative number is the same as adding its opposite.", f"{a} + {-b} = {value}"]
    else:
        value = a * b
        rule = "A product with a factor 0 is 0." if not a else "Equal signs give a positive product."
        if a > 0:
            rule = "Different signs give a negative product."
        steps = [rule, f"{abs(a)} * {-b} = {abs(value)}, so {expression} = {value}"]
    ask = rng.choice((f"Compute {expression}.", f"What is {expression}?", f"Find the value of {expression}."))
    return Problem(ask, tuple(steps), str(value))


def order_of_operations(rng: random.Random) -> Problem:
    """Mixed operations: parentheses, powers, products, then sums."""
    a, b, c, d = rng.randint(2, 20), rng.randint(2, 12), rng.randint(2, 12), rng.randint(2, 30)
    shape = rng.randrange(4)
    if shape == 0:
        expression, value = f"{a} + {b} * {c} - {d}", a + b * c - d
        steps = [f"{b} * {c} = {b * c}", f"{a} + {b * c} = {a + b * c}", f"{a + b * c} - {d} = {value}"]
    elif shape == 1:
        expression, value = f"({a} + {b}) * {c} + {d}", (a + b) * c + d
        steps = [f"{a} + {b} = {a + b}", f"{a + b} * {c} = {(a + b) * c}", f"{(a + b) * c} + {d} = {value}"]
    elif shape == 2:
        expression, value = f"{d} * {b} - {a}^2 + {c}", d * b - a * a + c
        steps = [f"{a}^2 = {a * a}", f"{d} * {b} = {d * b}", f"{d * b} - {a * a} = {d * b - a * a}"]
        steps.append(f"{d * b - a * a} + {c} = {value}")
    else:
        expression, value = f"{a * b} / {b} + {c} * ({d} - {a})", a + c * (d - a)
        steps = [f"{d} - {a} = {d - a}", f"{a * b} / {b} = {a}", f"{c} * {paren(d - a)} = {c * (d - a)}"]
        steps.append(f"{a} + {paren(c * (d - a))} = {value}")
    intro = rng.choice(("Follow the order of operations.", "Parentheses and powers first, then * and /, then + and -."))
    ask = rng.choice((f"Evaluate {expression}.", f"What is the value of {expression}?", f"Simplify {expression}."))
    return Problem(ask, (intro, *steps), str(value))


FAMILIES: tuple[Family, ...] = (decimal_sum, decimal_product, rounding, signed_numbers, order_of_operations)
