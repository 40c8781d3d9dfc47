"""Equations, inequalities, polynomials and powers."""

import math
import random
from fractions import Fraction

from shard.data.problems.phrasing import nonzero, paren, polynomial, signed, substituted
from shard.data.problems.problem import Family, Problem

_VARIABLES = "xyntz"


def _move(number: int) -> str:
    """What to do to both sides to remove the term `number`."""
    return f"Subtract {number} from both sides" if number > 0 else f"Add {-number} to both sides"


def _undo(number: int) -> str:
    """The next operand of that move: `- 3` for 3, `+ 3` for -3."""
    return signed(-number)


def _value(coefficients: list[int], x: int) -> int:
    result = 0
    for coefficient in coefficients:
        result = result * x + coefficient
    return result


def linear_equation(rng: random.Random) -> Problem:
    """ax + b = c with a whole solution, checked by substitution."""
    v, x = rng.choice(_VARIABLES), rng.randint(-20, 40)
    a, b = nonzero(rng, -12, 15), nonzero(rng, -60, 60)
    if a == 1:
        a = 2
    c = a * x + b
    left = polynomial([a, b], v)
    steps = [f"{_move(b)}: {c} {_undo(b)} = {c - b}, so {polynomial([a, 0], v)} = {c - b}."]
    steps.append(f"Divide by {a}: {c - b} / {paren(a)} = {x}, so {v} = {x}.")
    if rng.random() < 0.5:
        steps.append(f"Check: {a} * {paren(x)} {signed(b)} = {c}.")
    ask = rng.choice((f"Solve {left} = {c} for {v}.", f"Find {v} if {left} = {c}.", f"Solve for {v}: {left} = {c}."))
    return Problem(ask, tuple(steps), f"{v} = {x}")


def linear_both_sides(rng: random.Random) -> Problem:
    """ax + b = cx + d with a whole solution."""
    v, x, c = rng.choice(_VARIABLES), rng.randint(-15, 25), nonzero(rng, -9, 9)
    a = c + rng.randint(2, 9)
    b = nonzero(rng, -40, 40)
    a = a or a + 1
    d = (a - c) * x + b
    left, right = polynomial([a, b], v), polynomial([c, d], v)
    slope = a - c
    take = f"Subtract {polynomial([c, 0], v)}" if c > 0 else f"Add {polynomial([-c, 0], v)}"
    steps = [f"{take} on both sides: {polynomial([slope, b], v)} = {d}."]
    steps.append(f"{_move(b)}: {d} {_undo(b)} = {d - b}, so {polynomial([slope, 0], v)} = {d - b}.")
    if slope > 1:
        steps.append(f"{d - b} / {slope} = {x}, so {v} = {x}.")
    ask = rng.choice(
        (f"Solve {left} = {right}.", f"For which {v} is {left} = {right}?", f"Find {v}: {left} = {right}.")
    )
    return Problem(ask, tuple(steps), f"{v} = {x}")


def linear_system(rng: random.Random) -> Problem:
    """Two equations in x and y by elimination of y."""
    x, y = rng.randint(-9, 12), rng.randint(-9, 12)
    a, b, c, d = (nonzero(rng, -6, 7) for _ in range(4))
    determinant = a * d - b * c
    if determinant == 0:
        a, determinant = a + (1 if a != -1 else 2), 0
        determinant = a * d - b * c
    e, f = a * x + b * y, c * x + d * y
    right = e * d - f * b
    left1 = polynomial([a, 0], "x") + _with_y(b)
    left2 = polynomial([c, 0], "x") + _with_y(d)
    steps = (
        f"Multiply the first equation by {d} and the second by {b}, then subtract, so that y disappears.",
        f"Coefficient of x: {a} * {paren(d)} - {paren(c)} * {paren(b)} = {determinant}.",
        f"Right side: {e} * {paren(d)} - {paren(f)} * {paren(b)} = {right}.",
        f"x = {right} / {paren(determinant)} = {x}",
        f"Put x = {x} into the first equation: {a} * {paren(x)} = {a * x} and {e} - {paren(a * x)} = {b * y}.",
        f"y = {b * y} / {paren(b)} = {y}",
    )
    ask = rng.choice(
        (
            f"Solve the system {left1} = {e} and {left2} = {f}.",
            f"Find x and y such that {left1} = {e} and {left2} = {f}.",
        )
    )
    return Problem(ask, steps, f"x = {x}, y = {y}")


def _with_y(b: int) -> str:
    """The second term of ax + by, with its sign."""
    return f" {'-' if b < 0 else '+'} {'' if abs(b) == 1 else abs(b)}y"


def _roots_text(v: str, r: int, s: int) -> str:
    low, high = min(r, s), max(r, s)
    return f"{v} = {low}" if low == high else f"{v} = {low} or {v} = {high}"


def _factors(v: str, r: int, s: int) -> str:
    if r == s:
        return f"({v} {signed(-r)})^2"
    return f"({v} {signed(-r)})({v} {signed(-s)})"


def quadratic_by_factoring(rng: random.Random) -> Problem:
    """A monic quadratic with two whole roots, by finding the numbers with given sum and product."""
    v, r, s = rng.choice(_VARIABLES), nonzero(rng, -15, 15), nonzero(rng, -15, 15)
    equation = polynomial([1, -r - s, r * s], v)
    steps = [
        f"Look for two numbers with sum {-r - s} and product {r * s}: {-r} and {-s}.",
        f"{-r} + {paren(-s)} = {-r - s} and {-r} * {paren(-s)} = {r * s}",
        f"So {equation} = {_factors(v, r, s)}.",
        f"A product is 0 when a factor is 0: {_roots_text(v, r, s)}.",
    ]
    ask = rng.choice(
        (
            f"Solve {equation} = 0.",
            f"Find all solutions of {equation} = 0.",
            f"Factor and solve {equation} = 0.",
        )
    )
    return Problem(ask, tuple(steps), _roots_text(v, r, s))


def completing_the_square(rng: random.Random) -> Problem:
    """A monic quadratic with an even middle term, by completing the square."""
    v, h, k = rng.choice(_VARIABLES), nonzero(rng, -20, 20), rng.randint(1, 15)
    c = h * h - k * k
    equation = polynomial([1, 2 * h, c], v)
    steps = [
        f"Half of {2 * h} is {h}, and {paren(h)}^2 = {h * h}.",
        f"So {polynomial([1, 2 * h, 0], v)} = ({v} {signed(h)})^2 - {h * h}.",
        f"The equation becomes ({v} {signed(h)})^2 = {h * h} - {paren(c)}, and {h * h} - {paren(c)} = {k * k}.",
        f"Since {k}^2 = {k * k}, {v} {signed(h)} is {k} or {-k}.",
        f"{k} {signed(-h)} = {k - h} and {-k} {signed(-h)} = {-k - h}",
    ]
    ask = rng.choice(
        (f"Solve {equation} = 0 by completing the square.", f"Complete the square to solve {equation} = 0.")
    )
    return Problem(ask, tuple(steps), _roots_text(v, k - h, -k - h))


def quadratic_formula(rng: random.Random) -> Problem:
    """A quadratic with rational roots, by the discriminant."""
    a, p, q, r = rng.randint(2, 5), nonzero(rng, -9, 9), rng.randint(1, 4), nonzero(rng, -9, 9)
    # (a x - p)(q x - r) = 0 has the roots p/a and r/q.
    lead, middle, last = a * q, -(a * r + p * q), p * r
    inside = middle * middle - 4 * lead * last
    root = math.isqrt(inside)
    equation = polynomial([lead, middle, last])
    low, high = Fraction(-middle - root, 2 * lead), Fraction(-middle + root, 2 * lead)
    steps = [
        f"The discriminant is {paren(middle)}^2 - 4 * {lead} * {paren(last)} = {inside}.",
        f"{root}^2 = {inside}, so its square root is {root}." if root else "It is 0: there is one double root.",
        f"({-middle} + {root}) / (2 * {lead}) = {high}",
    ]
    if root:
        steps.append(f"({-middle} - {root}) / (2 * {lead}) = {low}")
    answer = f"x = {low}" if low == high else f"x = {low} or x = {high}"
    ask = rng.choice((f"Solve {equation} = 0 with the quadratic formula.", f"Find the roots of {equation}."))
    return Problem(ask, tuple(steps), answer)


def inequality(rng: random.Random) -> Problem:
    """A linear inequality; the sign turns when dividing by a negative number."""
    v, a, b, bound = rng.choice(_VARIABLES), nonzero(rng, -9, 9), nonzero(rng, -50, 50), rng.randint(-15, 20)
    a = 3 if a == 1 else a
    c, sign = a * bound + b, rng.choice("<>")
    final = sign if a > 0 else "<>"[sign == "<"]
    left = polynomial([a, b], v)
    steps = [f"{_move(b)}: {c} {_undo(b)} = {c - b}, so {polynomial([a, 0], v)} {sign} {c - b}."]
    turn = "which turns the sign around" if a < 0 else "which is positive, so the sign stays"
    steps.append(f"Divide by {a}, {turn}: {c - b} / {paren(a)} = {bound}, hence {v} {final} {bound}.")
    ask = rng.choice((f"Solve the inequality {left} {sign} {c}.", f"For which {v} is {left} {sign} {c}?"))
    return Problem(ask, tuple(steps), f"{v} {final} {bound}")


def expand_product(rng: random.Random) -> Problem:
    """(ax + b)(cx + d), term by term."""
    a, c, b, d = rng.randint(1, 7), rng.randint(1, 7), nonzero(rng, -12, 12), nonzero(rng, -12, 12)
    v = rng.choice(_VARIABLES)
    left = f"({polynomial([a, b], v)})({polynomial([c, d], v)})"
    answer = polynomial([a * c, a * d + b * c, b * d], v)
    steps = (
        rng.choice(("Multiply every term by every term.", "Use the distributive law twice.")),
        f"{v}^2 term: {a} * {c} = {a * c}.",
        f"{v} term: {a} * {paren(d)} + {paren(b)} * {c} = {a * d + b * c}.",
        f"Constant term: {b} * {paren(d)} = {b * d}.",
        f"The product is {answer}.",
    )
    ask = rng.choice((f"Expand {left}.", f"Multiply out {left}.", f"Write {left} without parentheses."))
    return Problem(ask, steps, answer)


def exponent_rules(rng: random.Random) -> Problem:
    """Powers of one base: product, quotient and power of a power."""
    base, m, n = rng.choice(("2", "3", "5", "7", "10", "x", "y", "a")), rng.randint(2, 30), rng.randint(2, 30)
    k = rng.randint(2, 9)
    kind = rng.randrange(3)
    if kind == 0:
        expression, value, rule = f"{base}^{m} * {base}^{n}", m + n, "add the exponents"
        line = f"{m} + {n} = {m + n}"
    elif kind == 1:
        m += n + 2
        expression, value, rule = f"{base}^{m} / {base}^{n}", m - n, "subtract the exponents"
        line = f"{m} - {n} = {m - n}"
    else:
        expression, value, rule = (
            f"({base}^{m})^{k} * {base}^{n}",
            m * k + n,
            "first multiply, then add the exponents",
        )
        line = f"{m} * {k} = {m * k} and {m * k} + {n} = {m * k + n}"
    steps = (f"The base is the same, so {rule}.", line, f"The result is {base}^{value}.")
    ask = rng.choice((f"Write {expression} as a single power.", f"Simplify {expression} to one power of {base}."))
    return Problem(ask, steps, f"{base}^{value}")


def evaluate_polynomial(rng: random.Random) -> Problem:
    """The value of a polynomial of degree 2 or 3 at a whole number."""
    degree, x = rng.choice((2, 3)), nonzero(rng, -6, 8)
    coefficients = [
        nonzero(rng, -5, 7),
        *(rng.randint(-9, 9) for _ in range(degree - 1)),
        nonzero(rng, -20, 20),
    ]
    text, value = polynomial(coefficients), _value(coefficients, x)
    name = rng.choice("fgp")
    steps = [
        f"Substitute {x} for x.",
        f"{substituted(coefficients, x)} = {value}",
        f"So {name}({x}) = {value}.",
    ]
    powers = " and ".join(f"{paren(x)}^{power} = {x**power}" for power in range(2, degree + 1))
    ask = rng.choice((f"Let {name}(x) = {text}. Find {name}({x}).", f"What is {name}({x}) if {name}(x) = {text}?"))
    return Problem(ask, (steps[0], powers, *steps[1:]), str(value))


def absolute_value(rng: random.Random) -> Problem:
    """|ax + b| = c, by its two cases."""
    a, r, gap = rng.randint(1, 6), nonzero(rng, -12, 12), rng.randint(1, 12)
    b, c = -a * r, a * gap
    left = f"|{polynomial([a, b])}|"
    steps = [
        f"Either {polynomial([a, b])} = {c} or {polynomial([a, b])} = {-c}.",
        f"First case: ({c} {_undo(b)}) / {a} = {r + gap}.",
        f"Second case: ({-c} {_undo(b)}) / {a} = {r - gap}.",
    ]
    ask = rng.choice((f"Solve {left} = {c}.", f"Find every x with {left} = {c}."))
    return Problem(ask, tuple(steps), _roots_text("x", r + gap, r - gap))


def composition(rng: random.Random) -> Problem:
    """f(g(x)) for two linear functions at a number."""
    a, b, c, d = nonzero(rng, -6, 7), nonzero(rng, -12, 12), nonzero(rng, -6, 7), nonzero(rng, -12, 12)
    x = rng.randint(-8, 10)
    inner = c * x + d
    steps = (
        rng.choice((f"Work from the inside: first g({x}).", f"Compute g({x}), then apply f.")),
        f"{c} * {paren(x)} {signed(d)} = {inner}",
        f"Now f({inner}): {a} * {paren(inner)} {signed(b)} = {a * inner + b}",
    )
    f, g = polynomial([a, b]), polynomial([c, d])
    ask = rng.choice(
        (
            f"If f(x) = {f} and g(x) = {g}, what is f(g({x}))?",
            f"Let f(x) = {f} and g(x) = {g}. Find f(g({x})).",
        )
    )
    return Problem(ask, steps, str(a * inner + b))


FAMILIES: tuple[Family, ...] = (
    linear_equation,
    linear_both_sides,
    linear_system,
    quadratic_by_factoring,
    completing_the_square,
    quadratic_formula,
    inequality,
    expand_product,
    exponent_rules,
    evaluate_polynomial,
    absolute_value,
    composition,
)
