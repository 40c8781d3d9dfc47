"""Lengths, areas, volumes, angles and coordinates, all exact."""

import random
from fractions import Fraction

from shard.data.problems.phrasing import decimal, nonzero, paren, polynomial
from shard.data.problems.problem import Family, Problem

_UNITS = ("cm", "m", "mm", "km", "inches", "feet")
_TRIPLES = (
    (3, 4, 5), (5, 12, 13), (8, 15, 17), (7, 24, 25), (20, 21, 29), (12, 35, 37), (9, 40, 41), (28, 45, 53),
    (11, 60, 61), (16, 63, 65), (33, 56, 65), (48, 55, 73), (13, 84, 85), (36, 77, 85), (39, 80, 89),
)  # fmt: skip


def _triple(rng: random.Random, largest: int) -> tuple[int, int, int]:
    """A Pythagorean triple with its legs in either order."""
    a, b, c = rng.choice(_TRIPLES)
    if rng.random() < 0.5:
        a, b = b, a
    scale = rng.randint(1, max(1, largest // c))
    return a * scale, b * scale, c * scale


def rectangle(rng: random.Random) -> Problem:
    """Area and perimeter of a rectangle."""
    a, b, unit = rng.randint(2, 99), rng.randint(2, 60), rng.choice(_UNITS)
    place = rng.choice(("rectangle", "rectangular garden", "rectangular floor", "sheet of paper", "rectangular field"))
    steps = (
        f"Area: {a} * {b} = {a * b} square {unit}.",
        f"Perimeter: 2 * ({a} + {b}) = 2 * {a + b} = {2 * (a + b)} {unit}.",
    )
    ask = rng.choice(
        (
            f"A {place} is {a} {unit} long and {b} {unit} wide. Find its area and its perimeter.",
            f"What are the area and the perimeter of a {place} with sides of {a} {unit} and {b} {unit}?",
        )
    )
    return Problem(ask, steps, f"area {a * b} square {unit}, perimeter {2 * (a + b)} {unit}")


def rectangle_side(rng: random.Random) -> Problem:
    """The missing side from the perimeter or the area."""
    a, b, unit = rng.randint(3, 99), rng.randint(3, 60), rng.choice(_UNITS)
    if rng.random() < 0.5:
        ask = rng.choice(
            (
                f"The perimeter of a rectangle is {2 * (a + b)} {unit} and one side is {a} {unit}. Find "
                "the other side.",
                f"One side of a rectangle is {a} {unit} and its perimeter is {2 * (a + b)} {unit}. "
                "How long is the other side?",
            )
        )
        steps: tuple[str, ...] = (
            f"Two neighboring sides make half the perimeter: {2 * (a + b)} / 2 = {a + b}.",
            f"The other side is {a + b} - {a} = {b} {unit}.",
        )
        return Problem(ask, steps, f"{b} {unit}")
    ask = rng.choice(
        (
            f"A rectangle has an area of {a * b} square {unit} and a side of {a} {unit}. What is the other side?",
            f"The area of a rectangle is {a * b} square {unit}. One side is {a} {unit}. Find the other side.",
        )
    )
    steps = ("The area is the product of the sides, so divide.", f"{a * b} / {a} = {b} {unit}")
    return Problem(ask, steps, f"{b} {unit}")


def triangle_area(rng: random.Random) -> Problem:
    """Half of base times height."""
    base, height, unit = rng.randint(2, 99), rng.randint(2, 60), rng.choice(_UNITS)
    area = decimal(Fraction(base * height, 2))
    steps = (
        rng.choice(("The area is half of base times height.", "A triangle is half of a parallelogram.")),
        f"{base} * {height} = {base * height}",
        f"{base * height} / 2 = {area} square {unit}",
    )
    ask = rng.choice(
        (
            f"Find the area of a triangle with base {base} {unit} and height {height} {unit}.",
            f"A triangle has a base of {base} {unit} and a height of {height} {unit}. What is its area?",
        )
    )
    return Problem(ask, steps, f"{area} square {unit}")


def trapezoid_area(rng: random.Random) -> Problem:
    """Mean of the parallel sides times the height."""
    a, b, h, unit = rng.randint(3, 60), rng.randint(3, 60), rng.randint(2, 40), rng.choice(_UNITS)
    area = decimal(Fraction((a + b) * h, 2))
    steps = (
        f"Add the parallel sides: {a} + {b} = {a + b}.",
        f"Multiply by the height and halve: {a + b} * {h} / 2 = {(a + b) * h} / 2 = {area} square {unit}.",
    )
    ask = rng.choice(
        (
            f"A trapezoid has parallel sides of {a} {unit} and {b} {unit} and a height of {h} {unit}. Find its area.",
            f"What is the area of a trapezoid with height {h} {unit} and parallel sides {a} {unit} and {b} {unit}?",
        )
    )
    return Problem(ask, steps, f"{area} square {unit}")


def pythagoras(rng: random.Random) -> Problem:
    """A missing side of a right triangle, with whole numbers."""
    a, b, c = _triple(rng, 900)
    unit = rng.choice(_UNITS)
    if rng.random() < 0.5:
        steps: tuple[str, ...] = (
            "By the theorem of Pythagoras, the squares of the legs add up to the square of the hypotenuse.",
            f"{a}^2 + {b}^2 = {a * a} + {b * b} = {c * c}",
            f"{c}^2 = {c * c}, so the hypotenuse is {c} {unit}.",
        )
        ask = rng.choice(
            (
                f"The legs of a right triangle are {a} {unit} and {b} {unit}. Find the hypotenuse.",
                f"How long is the diagonal of a rectangle with sides of {a} {unit} and {b} {unit}?",
            )
        )
        return Problem(ask, steps, f"{c} {unit}")
    steps = (
        "By the theorem of Pythagoras, subtract the square of the known leg from that of the hypotenuse.",
        f"{c}^2 - {a}^2 = {c * c} - {a * a} = {b * b}",
        f"{b}^2 = {b * b}, so the length is {b} {unit}.",
    )
    ask = rng.choice(
        (
            f"A right triangle has a hypotenuse of {c} {unit} and a leg of {a} {unit}. Find the other leg.",
            f"A straight ramp of {c} {unit} starts {a} {unit} away from a wall. How high on the wall "
            "does it end, "
            f"in {unit}?",
        )
    )
    return Problem(ask, steps, f"{b} {unit}")


def box(rng: random.Random) -> Problem:
    """Volume or surface of a box."""
    a, b, c, unit = rng.randint(2, 30), rng.randint(2, 30), rng.randint(2, 20), rng.choice(_UNITS)
    if rng.random() < 0.5:
        steps: tuple[str, ...] = (
            f"{a} * {b} = {a * b}",
            f"{a * b} * {c} = {a * b * c}, so the volume is {a * b * c} cubic {unit}.",
        )
        ask = rng.choice(
            (
                f"What is the volume of a box that measures {a} by {b} by {c} {unit}?",
                f"A tank is {a} {unit} long, {b} {unit} wide and {c} {unit} high. Find its volume.",
            )
        )
        return Problem(ask, steps, f"{a * b * c} cubic {unit}")
    surface = 2 * (a * b + a * c + b * c)
    steps = (
        f"The three different faces: {a} * {b} = {a * b}, {a} * {c} = {a * c}, {b} * {c} = {b * c}.",
        f"Each occurs twice: 2 * ({a * b} + {a * c} + {b * c}) = {surface} square {unit}.",
    )
    ask = rng.choice(
        (
            f"Find the surface area of a box that measures {a} by {b} by {c} {unit}.",
            f"How much paper covers a closed box of {a} by {b} by {c} {unit} exactly, in square {unit}?",
        )
    )
    return Problem(ask, steps, f"{surface} square {unit}")


def circle(rng: random.Random) -> Problem:
    """Area and circumference as multiples of pi, or a cylinder."""
    radius, height, unit = rng.randint(2, 90), rng.randint(2, 60), rng.choice(_UNITS)
    square = radius * radius
    if rng.random() < 0.4:
        steps: tuple[str, ...] = (
            f"Area: the radius squared times pi, and {radius}^2 = {square}.",
            f"Circumference: twice the radius times pi, and 2 * {radius} = {2 * radius}.",
        )
        given = rng.choice((f"radius {radius}", f"diameter {2 * radius}"))
        if given.startswith("d"):
            steps = (f"The radius is {2 * radius} / 2 = {radius} {unit}.", *steps)
        ask = f"Give the area and the circumference of a circle with {given} {unit} in terms of pi."
        return Problem(ask, steps, f"area {square}*pi square {unit}, circumference {2 * radius}*pi {unit}")
    steps = (
        f"The base has area {square}*pi, since {radius}^2 = {square}.",
        f"Multiply by the height: {square} * {height} = {square * height}.",
    )
    ask = rng.choice(
        (
            f"Find the volume of a cylinder with radius {radius} {unit} and height {height} {unit} in terms of pi.",
            f"A cylinder is {height} {unit} high and its base has a radius of {radius} {unit}. Express "
            "its volume "
            "with pi.",
        )
    )
    return Problem(ask, steps, f"{square * height}*pi cubic {unit}")


def triangle_angles(rng: random.Random) -> Problem:
    """The third angle of a triangle, or the angles of an isosceles or quadrilateral figure."""
    a, b = rng.randint(5, 110), rng.randint(5, 65)
    if rng.random() < 0.5:
        steps: tuple[str, ...] = (
            "The angles of a triangle add up to 180 degrees.",
            f"{a} + {b} = {a + b} and 180 - {a + b} = {180 - a - b}",
        )
        ask = rng.choice(
            (
                f"Two angles of a triangle are {a} and {b} degrees. Find the third angle.",
                f"A triangle has angles of {a} degrees and {b} degrees. How large is the third angle?",
            )
        )
        return Problem(ask, steps, f"{180 - a - b} degrees")
    c = rng.randint(20, 140)
    steps = (
        "The angles of a quadrilateral add up to 360 degrees.",
        f"{a} + {b} + {c} = {a + b + c} and 360 - {a + b + c} = {360 - a - b - c}",
    )
    ask = f"Three angles of a quadrilateral are {a}, {b} and {c} degrees. Find the fourth angle."
    return Problem(ask, steps, f"{360 - a - b - c} degrees")


def point_distance(rng: random.Random) -> Problem:
    """Distance of two points that lie on a whole-number right triangle, and their midpoint."""
    dx, dy, distance = _triple(rng, 120)
    x, y = rng.randint(-20, 20), rng.randint(-20, 20)
    p, q = x + dx, y + dy
    if rng.random() < 0.3:
        u, v = Fraction(x + p, 2), Fraction(y + q, 2)
        steps: tuple[str, ...] = (
            "The midpoint has the mean of the coordinates.",
            f"({x} + {paren(p)}) / 2 = {decimal(u)} and ({y} + {paren(q)}) / 2 = {decimal(v)}",
        )
        ask = f"Find the midpoint of ({x}, {y}) and ({p}, {q})."
        return Problem(ask, steps, f"({decimal(u)}, {decimal(v)})")
    steps = (
        f"The differences are {p} - {paren(x)} = {dx} and {q} - {paren(y)} = {dy}.",
        f"{dx}^2 + {dy}^2 = {dx * dx} + {dy * dy} = {distance**2}",
        f"{distance}^2 = {distance**2}, so the distance is {distance}.",
    )
    ask = rng.choice(
        (
            f"Find the distance between the points ({x}, {y}) and ({p}, {q}).",
            f"How far is the point ({x}, {y}) from the point ({p}, {q})?",
        )
    )
    return Problem(ask, steps, str(distance))


def line_through_points(rng: random.Random) -> Problem:
    """The equation of a line through two points, with whole slope and intercept."""
    slope, intercept, x = nonzero(rng, -8, 8), rng.randint(-20, 20), rng.randint(-9, 9)
    p = x + rng.randint(1, 8)
    y, q = slope * x + intercept, slope * p + intercept
    answer = f"y = {polynomial([slope, intercept])}"
    steps = (
        f"Slope: ({q} - {paren(y)}) / ({p} - {paren(x)}) = {slope}.",
        f"Intercept: {y} - {paren(slope)} * {paren(x)} = {intercept}.",
        f"The line is {answer}.",
    )
    ask = rng.choice(
        (
            f"Find the equation of the line through ({x}, {y}) and ({p}, {q}).",
            f"A line passes through ({x}, {y}) and ({p}, {q}). Write it as y = mx + b.",
        )
    )
    return Problem(ask, steps, answer)


def framed_rectangle(rng: random.Random) -> Problem:
    """The area of a border as the difference of two rectangles."""
    a, b, w, unit = rng.randint(4, 60), rng.randint(4, 40), rng.randint(1, 6), rng.choice(("m", "feet"))
    outer_a, outer_b = a + 2 * w, b + 2 * w
    steps = (
        f"The outer sides are {a} + 2 * {w} = {outer_a} and {b} + 2 * {w} = {outer_b}.",
        f"Outer area: {outer_a} * {outer_b} = {outer_a * outer_b}. Inner area: {a} * {b} = {a * b}.",
        f"The path covers {outer_a * outer_b} - {a * b} = {outer_a * outer_b - a * b} square {unit}.",
    )
    foot = "foot" if unit == "feet" and w == 1 else unit
    ask = rng.choice(
        (
            f"A pool of {a} by {b} {unit} is surrounded by a path {w} {foot} wide. What is the area of the path?",
            f"A lawn measures {a} by {b} {unit}. A path {w} {foot} wide runs around it. Find the area of the path.",
        )
    )
    return Problem(ask, steps, f"{outer_a * outer_b - a * b} square {unit}")


FAMILIES: tuple[Family, ...] = (
    rectangle,
    rectangle_side,
    triangle_area,
    trapezoid_area,
    pythagoras,
    box,
    circle,
    triangle_angles,
    point_distance,
    line_through_points,
    framed_rectangle,
)
