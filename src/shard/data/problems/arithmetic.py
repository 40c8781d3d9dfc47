"""Whole numbers and decimals: the four operations, their order, and rounding."""

import random

from shard.data.problems.phrasing import paren, signed
from shard.data.problems.problem import Family, Problem


def _parts(number: int) -> list[int]:
    """The values of the digits that are not 0: 305 -> [300, 5]."""
    text = str(number)
    return [int(digit) * 10 ** (len(text) - 1 - place) for place, digit in enumerate(text) if digit != "0"]


def addition_question(rng: random.Random) -> Problem:
    """A short sum with the answer at once, explained by splitting the second number."""
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    if rng.random() < 0.4:
        a, b = rng.randint(10, 999), rng.randint(10, 999)
    steps, value = [], a
    for part in _parts(b):
        steps.append(f"{value} + {part} = {value + part}")
        value += part
    reason = " and ".join(_sentences(steps))
    ask = rng.choice((f"What is {a} + {b}?", f"What is the sum of {a} and {b}?", f"How much is {a} plus {b}?"))
    intro = rng.choice(("Add one part at a time", f"Split {b} by place value", "Step by step"))
    return Problem(ask, (f"{intro}: {reason}.",), str(a + b), "question")


def _sentences(equations: list[str]) -> list[str]:
    """Equations joined by commas, the last one apart, so that `and` can stand before it."""
    return [", ".join(equations[:-1]), equations[-1]] if len(equations) > 1 else equations


def addition_prose(rng: random.Random) -> Problem:
    """A sum in words: counting up for a small second number, else tens and ones."""
    a = rng.randint(2, 999)
    if rng.random() < 0.5:
        b = rng.randint(2, 9)
        numbers = ", ".join(str(a + i) for i in range(1, b + 1))
        step = f"start at {a} and count up {b}: {numbers}."
    else:
        b = rng.randint(11, 99)
        tens, ones = b - b % 10, b % 10
        step = rng.choice((f"add the tens first: {a} + {tens} = {a + tens}.", f"start with {a} + {tens} = {a + tens}."))
        if ones:
            step += f" Then add the ones: {a + tens} + {ones} = {a + b}."
    end = rng.choice((f"So {a} plus {b} is {a + b}.", f"The result is {a + b}.", f"Therefore {a} + {b} = {a + b}."))
    return Problem(f"{a} plus {b}", (step, end), str(a + b), "prose")


def subtraction_prose(rng: random.Random) -> Problem:
    """A difference in words: counting back, or counting up from the smaller number."""
    b = rng.randint(2, 99)
    a = b + rng.randint(2, 900)
    if b <= 8 and rng.random() < 0.8:
        numbers = ", ".join(str(a - i) for i in range(1, b + 1))
        step = f"start at {a} and count back {b}: {numbers}."
    elif rng.random() < 0.5 or b % 10 == 0:
        tens, ones = b - b % 10, b % 10
        step = f"take away the tens, {a} - {tens} = {a - tens}" if tens else f"start at {a}"
        step += f", and then the ones, {a - tens} - {ones} = {a - b}." if ones else "."
    else:
        up = 10 - b % 10
        step = (
            f"subtract {b + up} instead and give {up} back: {a} - {b + up} = {a - b - up} and "
            f"{paren(a - b - up)} + {up} = {a - b}."
        )
    end = rng.choice((f"So {a} minus {b} is {a - b}.", f"The difference is {a - b}.", f"Hence {a} - {b} = {a - b}."))
    return Problem(f"{a} minus {b}", (step, end), str(a - b), "prose")


def multiplication_prose(rng: random.Random) -> Problem:
    """A product in words, by splitting one factor or by doubling."""
    a, b = rng.choice((rng.randint(11, 99), rng.randint(101, 999))), rng.randint(3, 12)
    if b in (4, 8):
        step, value = "double again and again:", a
        for _ in range(b.bit_length() - 1):
            step += f" {value} * 2 = {value * 2},"
            value *= 2
        step = step[:-1] + "."
    else:
        tens, ones = a - a % 10, a % 10
        step = f"split {a} into tens and ones: " if ones else "multiply directly: "
        step += f"{tens} * {b} = {tens * b}"
        step += f", {ones} * {b} = {ones * b}, and {tens * b} + {ones * b} = {a * b}." if ones else "."
    end = rng.choice((f"So {a} times {b} is {a * b}.", f"The product is {a * b}.", f"Thus {a} * {b} = {a * b}."))
    return Problem(f"{a} times {b}", (step, end), str(a * b), "prose")


def quick_solve(rng: random.Random) -> Problem:
    """`Solve: 17 * 23 = ?`, and its like for the other operations, with one line for each part."""
    kind = rng.choice("***+-/")
    if kind == "*":
        a, b = rng.randint(3, 99), rng.randint(11, 99)
        if rng.random() < 0.3:
            a = rng.randint(100, 999)
        products = [(part, a * part) for part in _parts(b)]
        lines = [f"{a} * {part} = {product}" for part, product in products]
        if len(lines) > 1:
            lines.append(f"{' + '.join(str(product) for _, product in products)} = {a * b}")
        return Problem(f"{a} * {b} = ?", tuple(lines), str(a * b), "solve")
    if kind == "/":
        a, b = rng.randint(3, 199), rng.randint(3, 25)
        line = f"{b} * {a} = {a * b}, so {a * b} / {b} = {a}"
        return Problem(f"{a * b} / {b} = ?", (line,), str(a), "solve")
    a, b = rng.randint(20, 9999), rng.randint(11, 999)
    sign = 1 if kind == "+" else -1
    lines, value = [], a
    for part in _parts(b):
        lines.append(f"{value} {kind} {part} = {value + sign * part}")
        value += sign * part
    return Problem(f"{a} {kind} {b} = ?", tuple(lines), str(value), "solve")


_PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands", "millions")


def column_addition(rng: random.Random) -> Problem:
    """A sum of long numbers, digit by digit with carries."""
    a, b = rng.randint(100, 999_999), rng.randint(100, 999_999)
    steps, carry, x, y, place = [], 0, a, b, 0
    while x or y:
        terms = [x % 10, y % 10] + ([carry] if carry else [])
        value = sum(terms)
        carry = value // 10
        tail = f", write {value % 10} and carry 1." if carry else "."
        steps.append(f"{_PLACES[place].capitalize()}: {' + '.join(map(str, terms))} = {value}{tail}")
        x, y, place = x // 10, y // 10, place + 1
    if carry:
        steps.append("The last carry becomes the leading 1.")
    steps.append(f"Reading the digits from the left, {a} + {b} = {a + b}.")
    ask = rng.choice((f"Add {a} and {b} column by column.", f"Find {a} + {b}.", f"Work out the sum {a} + {b}."))
    return Problem(ask, tuple(steps), str(a + b))


def column_subtraction(rng: random.Random) -> Problem:
    """A difference of long numbers, digit by digit with borrowing, checked by adding back."""
    b = rng.randint(100, 99_999)
    a = b + rng.randint(100, 899_999)
    steps, borrow, x, y, place = [], 0, a, b, 0
    while x or y:
        top, bottom = x % 10 - borrow, y % 10
        taken = f"{x % 10} - 1 = {top} after lending 1. " if borrow else ""
        borrow = int(top < bottom)
        if borrow:
            lent = f"Borrow 10: {top} + 10 = {top + 10} and {top + 10} - {bottom} = {top + 10 - bottom}."
        else:
            lent = f"{top} - {bottom} = {top - bottom}."
        steps.append(f"{_PLACES[place].capitalize()}: {taken}{lent}")
        x, y, place = x // 10, y // 10, place + 1
    steps.append(f"So {a} - {b} = {a - b}. Check: {a - b} + {b} = {a}.")
    ask = rng.choice((f"Subtract {b} from {a}.", f"Find {a} - {b}.", f"By how much does {a} exceed {b}?"))
    return Problem(ask, tuple(steps), str(a - b))


def long_multiplication(rng: random.Random) -> Problem:
    """A product by partial products, added one at a time."""
    a, b = rng.randint(12, 9999), rng.randint(12, 999)
    parts = _parts(b)
    steps = [f"Split {b} = {' + '.join(map(str, parts))}."] if len(parts) > 1 else []
    steps += [f"{a} * {part} = {a * part}" for part in parts]
    value = a * parts[0]
    for part in parts[1:]:
        steps.append(f"{value} + {a * part} = {value + a * part}")
        value += a * part
    steps.append(rng.choice((f"So {a} * {b} = {a * b}.", f"The product is {a * b}.")))
    ask = rng.choice((f"Multiply {a} by {b}.", f"Compute {a} * {b} using partial products.", f"What is {a} * {b}?"))
    return Problem(ask, tuple(steps), str(a * b))


def near_round_product(rng: random.Random) -> Problem:
    """A product with a factor next to a round number, by the distributive law."""
    base = rng.choice((20, 30, 50, 100, 200, 500, 1000))
    shift = rng.choice((-3, -2, -1, 1, 2, 3))
    a, b = base + shift, rng.randint(6, 199)
    steps = (
        rng.choice((f"Notice that {a} = {base} {signed(shift)}.", f"Since {a} = {base} {signed(shift)}, distribute.")),
        f"{a} * {b} = {base} * {b} {signed(shift).replace(' ', f' {b} * ')}",
        f"{base} * {b} = {base * b} and {b} * {abs(shift)} = {b * abs(shift)}",
        f"{base * b} {'+' if shift > 0 else '-'} {b * abs(shift)} = {a * b}",
    )
    ask = rng.choice((f"Compute {a} * {b} mentally.", f"Find a quick way to work out {a} * {b}."))
    return Problem(ask, steps, str(a * b))


def long_division(rng: random.Random) -> Problem:
    """Division digit by digit, with quotient and remainder."""
    divisor, number = rng.randint(3, 39), rng.randint(100, 99_999)
    steps, rest, started = [], 0, False
    for digit in str(number):
        rest = rest * 10 + int(digit)
        times = rest // divisor
        started = started or times > 0
        if started:
            left = rest - times * divisor
            steps.append(f"{divisor} goes into {rest} {_times(times)}: {rest} - {times} * {divisor} = {left}.")
            rest = left
    quotient = number // divisor
    steps.append(f"Check: {divisor} * {quotient} + {rest} = {number}.")
    ask = rng.choice(
        (
            f"Divide {number} by {divisor} and give the quotient and the remainder.",
            f"What are the quotient and the remainder of {number} divided by {divisor}?",
        )
    )
    return Problem(ask, tuple(steps), f"quotient {quotient}, remainder {rest}")


def _times(number: int) -> str:
    return "once" if number == 1 else "twice" if number == 2 else f"{number} times"


FAMILIES: tuple[Family, ...] = (
    addition_question,
    addition_prose,
    subtraction_prose,
    multiplication_prose,
    quick_solve,
    column_addition,
    column_subtraction,
    long_multiplication,
    near_round_product,
    long_division,
)
