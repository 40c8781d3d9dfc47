"""Derivatives, integrals and limits of polynomials, exact."""

import random
from fractions import Fraction

from shard.data.problems.phrasing import nonzero, paren, polynomial, signed, substituted
from shard.data.problems.problem import Family, Problem


def _coefficients(rng: random.Random, degree: int) -> list[int]:
    """A polynomial, highest power first, with a leading coefficient that is not 0."""
    return [nonzero(rng, -6, 9), *(rng.randint(-9, 9) for _ in range(degree))]


def _derivative(coefficients: list[int]) -> list[int]:
    degree = len(coefficients) - 1
    return [c * (degree - i) for i, c in enumerate(coefficients[:-1])]


def _antiderivative(coefficients: list[int]) -> list[Fraction]:
    return [Fraction(c, len(coefficients) - i) for i, c in enumerate(coefficients)] + [Fraction(0)]


def _value(coefficients: list[int] | list[Fraction], x: int) -> Fraction:
    result = Fraction(0)
    for coefficient in coefficients:
        result = result * x + coefficient
    return result


def _terms(coefficients: list[int]) -> list[tuple[int, int]]:
    """(coefficient, power) of the terms that are there."""
    return [(c, len(coefficients) - 1 - i) for i, c in enumerate(coefficients) if c]


def derivative(rng: random.Random) -> Problem:
    """The derivative of a polynomial, term by term."""
    coefficients = _coefficients(rng, rng.randint(2, 4))
    answer = polynomial(_derivative(coefficients))
    lines = [
        f"{polynomial([c] + [0] * power)} gives {polynomial([c * power] + [0] * (power - 1))}"
        + (f", since {power} * {paren(c)} = {c * power}." if power > 1 else ".")
        for c, power in _terms(coefficients)
        if power
    ]
    if coefficients[-1]:
        lines.append(f"The constant {coefficients[-1]} gives 0.")
    name, text = rng.choice("fghp"), polynomial(coefficients)
    ask = rng.choice(
        (
            f"Differentiate {name}(x) = {text}.",
            f"Find {name}'(x) for {name}(x) = {text}.",
            f"What is the derivative of {text} with respect to x?",
        )
    )
    rule = rng.choice(("Use the power rule on each term.", "Multiply by the exponent and lower it by 1, term by term."))
    return Problem(ask, (rule, *lines, f"The derivative is {answer}."), answer)


def tangent_slope(rng: random.Random) -> Problem:
    """The slope of a curve at a point, and sometimes its tangent line."""
    coefficients, x = _coefficients(rng, rng.choice((2, 2, 3))), nonzero(rng, -5, 6)
    slopes = _derivative(coefficients)
    slope, y = int(_value(slopes, x)), int(_value(coefficients, x))
    text = polynomial(coefficients)
    steps = [f"The derivative is {polynomial(slopes)}.", f"At x = {x}: {substituted(slopes, x)} = {slope}."]
    if rng.random() < 0.5:
        ask = rng.choice(
            (f"Find the slope of y = {text} at x = {x}.", f"How steep is the curve y = {text} at x = {x}?")
        )
        return Problem(ask, tuple(steps), str(slope))
    answer = f"y = {polynomial([slope, y - slope * x])}"
    steps.append(f"The point has y value {substituted(coefficients, x)} = {y}.")
    steps.append(f"Intercept: {y} - {paren(slope)} * {paren(x)} = {y - slope * x}.")
    ask = f"Find the tangent line to y = {text} at x = {x}."
    return Problem(ask, (*steps, f"The tangent is {answer}."), answer)


def antiderivative(rng: random.Random) -> Problem:
    """The indefinite integral of a polynomial, checked term by term."""
    coefficients = _coefficients(rng, rng.randint(1, 3))
    answer = polynomial(_antiderivative(coefficients)) + " + C"
    lines = [
        f"{polynomial([c] + [0] * power)}: raise the exponent to {power + 1} and divide, {c} / {power + 1} = "
        f"{Fraction(c, power + 1)}."
        for c, power in _terms(coefficients)
    ]
    text = polynomial(coefficients)
    ask = rng.choice(
        (
            f"Find the antiderivative of {text}.",
            f"Integrate {text} with respect to x.",
            f"Which functions have the derivative {text}?",
        )
    )
    return Problem(ask, (*lines, f"The result is {answer}, with any constant C."), answer)


def definite_integral(rng: random.Random) -> Problem:
    """A definite integral by the fundamental theorem, exact."""
    coefficients, low = _coefficients(rng, rng.choice((1, 2, 2, 3))), rng.randint(-3, 3)
    high = low + rng.randint(1, 4)
    whole = _antiderivative(coefficients)
    top, bottom = _value(whole, high), _value(whole, low)
    text = polynomial(coefficients)
    parts = [_braced(whole, high), _braced(whole, low)]
    steps = (
        f"An antiderivative is F(x) = {polynomial(whole)}.",
        f"At the upper end: {parts[0]} = {top}.",
        f"At the lower end: {parts[1]} = {bottom}.",
        f"{top} - {paren(bottom)} = {top - bottom}",
    )
    ask = rng.choice(
        (
            f"Integrate {text} from x = {low} to x = {high}.",
            f"Compute the definite integral of {text} between {low} and {high}.",
        )
    )
    return Problem(ask, steps, str(top - bottom))


def _braced(coefficients: list[Fraction], x: int) -> str:
    """The antiderivative at x; at 0 every term vanishes."""
    return substituted(coefficients, x) if x else "0 * 0"


def vertex(rng: random.Random) -> Problem:
    """The extreme value of a quadratic, from the zero of its derivative."""
    a, x, shift = nonzero(rng, -6, 6), rng.randint(-12, 12), rng.randint(-30, 30)
    coefficients = [a, -2 * a * x, a * x * x + shift]
    kind = "minimum" if a > 0 else "maximum"
    text = polynomial(coefficients)
    steps = (
        f"The derivative is {polynomial(_derivative(coefficients))}.",
        f"It is zero at x = {x}: {2 * a} * {paren(x)} {signed(-2 * a * x)} = 0.",
        f"There the value is {substituted(coefficients, x) if x else coefficients[2]}" + (f" = {shift}." if x else "."),
        f"The leading coefficient is {'positive' if a > 0 else 'negative'}, so this is a {kind}.",
    )
    ask = rng.choice((f"Find the {kind} of f(x) = {text}.", f"Where does y = {text} have its {kind}, and what is it?"))
    return Problem(ask, steps, f"{kind} {shift} at x = {x}")


def limit_of_quotient(rng: random.Random) -> Problem:
    """A limit of the form 0/0, by cancelling the common factor."""
    x, r, a = nonzero(rng, -12, 12), rng.randint(-15, 15), rng.randint(1, 5)
    top = polynomial([a, -a * (x + r), a * x * r])
    factor, other = polynomial([1, -x]), polynomial([1, -r])
    lead = "" if a == 1 else str(a)
    steps = [f"Factor the numerator: {top} = {lead}({factor})({other})."]
    if r == 0:
        steps = [f"Factor the numerator: {top} = {lead}x({factor})."]
    remaining = f"{lead}({other})" if lead and r else f"{lead}{other}"
    steps.append(f"Cancel {factor}: what remains is {remaining}.")
    times = f"{a} * " if a > 1 else ""
    difference = f"({x} {signed(-r)})" if times else f"{x} {signed(-r)}"
    steps.append(f"At x = {x}: {times}{difference} = {a * (x - r)}.")
    ask = rng.choice(
        (
            f"Find the limit of ({top}) / ({factor}) as x approaches {x}.",
            f"What does ({top}) / ({factor}) tend to when x goes to {x}?",
        )
    )
    return Problem(ask, tuple(steps), str(a * (x - r)))


FAMILIES: tuple[Family, ...] = (
    derivative,
    tangent_slope,
    antiderivative,
    definite_integral,
    vertex,
    limit_of_quotient,
)
