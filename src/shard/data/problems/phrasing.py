"""Numbers, polynomials and nouns as text: the few rules of spelling that all families share."""

import random
from collections.abc import Sequence
from fractions import Fraction

_NAMES_TEXT = (
    "Ada Amir Anna Ben Bruno Carla Chen Dana David Elena Emil Fatima Felix Grace Hana Hugo Ines Ivan "
    "Jonas Julia Kofi Lara Leo Lina Maria Marco Mei Nadia Noah Nora Omar Oscar Petra Priya Rosa Ruth Sam "
    "Sara Tariq Tom Uma Vera Victor Wanda Yara Yusuf Zoe"
)
NAMES = _NAMES_TEXT.split()

_THINGS_TEXT = (
    "apple pencil marble book sticker stamp shell button card ticket cookie orange lemon notebook bead "
    "postcard ribbon balloon eraser candle magnet badge peanut acorn"
)
THINGS = _THINGS_TEXT.split()

_MAX_DECIMALS = 12


def two_names(rng: random.Random) -> tuple[str, str]:
    """Two different people."""
    first, second = rng.sample(NAMES, 2)
    return first, second


def plural(noun: str) -> str:
    """The plural of a regular noun."""
    return noun + ("es" if noun.endswith(("x", "s", "ch", "sh")) else "s")


def count(number: int, noun: str) -> str:
    """`1 apple`, `3 apples`."""
    return f"{number} {noun if number == 1 else plural(noun)}"


def nonzero(rng: random.Random, low: int, high: int) -> int:
    """A whole number from low to high (both included) that is not 0."""
    while True:
        number = rng.randint(low, high)
        if number:
            return number


def decimal(value: Fraction) -> str:
    """The terminating decimal of `value`, exact. Raises ValueError where it does not terminate."""
    for places in range(_MAX_DECIMALS + 1):
        scaled, rest = divmod(abs(value.numerator) * 10**places, value.denominator)
        if not rest:
            digits = str(scaled).rjust(places + 1, "0")
            sign = "-" if value < 0 else ""
            return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)
    raise ValueError(f"{value} has no decimal of at most {_MAX_DECIMALS} places")


def fixed(hundredths: int) -> str:
    """Money and the like with both decimals: 1250 -> `12.50`."""
    return f"{hundredths // 100}.{hundredths % 100:02d}"


def signed(number: int) -> str:
    """A number as the next term of a sum: `+ 3` or `- 3`."""
    return f"- {-number}" if number < 0 else f"+ {number}"


def paren(number: int | Fraction) -> str:
    """A number as an operand: in parentheses where it is negative."""
    return f"({number})" if number < 0 else str(number)


def polynomial(coefficients: Sequence[int | Fraction], variable: str = "x") -> str:
    """A polynomial, highest power first: [3, -1, 0, 2] -> `3x^3 - x^2 + 2`."""
    text = ""
    for index, coefficient in enumerate(coefficients):
        if not coefficient:
            continue
        power = len(coefficients) - 1 - index
        size = str(abs(coefficient))
        number = "" if size == "1" and power else f"({size})" if "/" in size and power else size
        term = number + ("" if not power else variable if power == 1 else f"{variable}^{power}")
        minus = coefficient < 0
        text += (" - " if minus else " + ") + term if text else ("-" if minus else "") + term
    return text or "0"


def substituted(coefficients: Sequence[int | Fraction], value: int) -> str:
    """A polynomial with a number put in: `2 * 3^2 - 4 * 3 + 1`."""
    text = ""
    for index, coefficient in enumerate(coefficients):
        if not coefficient:
            continue
        power, size = len(coefficients) - 1 - index, str(abs(coefficient))
        base = "" if not power else paren(value) if power == 1 else f"{paren(value)}^{power}"
        term = size if not base else base if size == "1" else f"{size} * {base}"
        minus = coefficient < 0
        text += (" - " if minus else " + ") + term if text else ("-" if minus else "") + term
    return text or "0"


def listing(items: Sequence[object]) -> str:
    """`2, 3 and 5`."""
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
