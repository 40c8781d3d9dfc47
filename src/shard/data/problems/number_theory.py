"""Divisors, primes, remainders and number bases."""

import math
import random

from shard.data.problems.phrasing import count, listing
from shard.data.problems.problem import Family, Problem

_DIGITS = "0123456789ABCDEF"
_PRIMES = [p for p in range(7, 180) if all(p % q for q in range(2, math.isqrt(p) + 1))]


def factorise(number: int) -> list[int]:
    """The prime factors of `number` in rising order, with repetition."""
    factors, prime = [], 2
    while prime * prime <= number:
        while number % prime == 0:
            factors.append(prime)
            number //= prime
        prime += 1
    return [*factors, number] if number > 1 else factors


def _powers(factors: list[int]) -> str:
    """`2^3 * 5`."""
    exponents = {prime: factors.count(prime) for prime in factors}
    return " * ".join(f"{prime}^{power}" if power > 1 else str(prime) for prime, power in exponents.items())


def _composite(rng: random.Random) -> int:
    """A number that is not prime and has small factors."""
    number = rng.randint(2, 12)
    for _ in range(rng.randint(1, 3)):
        number *= rng.choice((2, 2, 3, 3, 5, 7, 11, 13))
    return number * rng.choice((1, 1, 17, 19, 23))


def _trial_division(number: int) -> list[str]:
    """The lines of a factorisation by trial division."""
    factors = factorise(number)
    lines = []
    for prime in factors[:-1]:
        lines.append(f"{number} / {prime} = {number // prime}")
        number //= prime
    lines.append(f"{number} is prime, so we stop.")
    return lines


def euclid(rng: random.Random) -> Problem:
    """Greatest common divisor by Euclid's algorithm."""
    common = rng.randint(1, 60)
    a, b = common * rng.randint(3, 150), common * rng.randint(2, 60)
    if a < b:
        a, b = b, a
    steps, x, y = [], a, b
    while y:
        steps.append(f"{x} = {x // y} * {y} + {x % y}")
        x, y = y, x % y
    steps.append(rng.choice((f"The last divisor is {x}, so the gcd is {x}.", f"The remainder is 0: the gcd is {x}.")))
    ask = rng.choice(
        (
            f"Find the greatest common divisor of {a} and {b}.",
            f"Use Euclid's algorithm to compute gcd({a}, {b}).",
            f"What is the largest whole number that divides both {a} and {b}?",
        )
    )
    return Problem(ask, tuple(steps), str(x))


def least_common_multiple(rng: random.Random) -> Problem:
    """Least common multiple from the gcd, or in the story of two events that coincide."""
    common = rng.randint(1, 12)
    a, b = common * rng.randint(2, 40), common * rng.randint(2, 40)
    g = math.gcd(a, b)
    value = a // g * b
    steps = [f"The greatest common divisor of {a} and {b} is {g}."]
    steps.append(rng.choice(("Divide the product by it.", "The lcm is the product divided by the gcd.")))
    steps.append(f"{a} * {b} / {g} = {a * b} / {g} = {value}")
    if rng.random() < 0.4 and a != b:
        ask = (
            f"One light blinks every {a} seconds and another every {b} seconds. They blink together now. "
            "After how many seconds will they next blink together?"
        )
        return Problem(ask, ("The time is the least common multiple.", *steps), count(value, "second"))
    ask = rng.choice((f"Find the least common multiple of {a} and {b}.", f"Compute lcm({a}, {b})."))
    return Problem(ask, tuple(steps), str(value))


def prime_factorisation(rng: random.Random) -> Problem:
    """Prime factorisation by trial division."""
    number = _composite(rng) * rng.randint(1, 30)
    product = _powers(factorise(number))
    steps = [rng.choice(("Divide by the smallest prime that fits, again and again.", "Use trial division."))]
    steps += _trial_division(number)
    steps.append(f"Hence {number} = {product}.")
    ask = rng.choice((f"Write {number} as a product of primes.", f"Find the prime factorization of {number}."))
    return Problem(ask, tuple(steps), product)


def number_of_divisors(rng: random.Random) -> Problem:
    """How many divisors, from the exponents of the factorisation."""
    number = _composite(rng) * rng.randint(1, 40)
    factors = factorise(number)
    powers = [factors.count(prime) for prime in dict.fromkeys(factors)]
    value = math.prod(power + 1 for power in powers)
    exponents = f"The exponents are {listing(powers)}" if len(powers) > 1 else f"The exponent is {powers[0]}"
    steps = (
        *_trial_division(number),
        f"So {number} = {_powers(factors)}.",
        f"{exponents}; add 1 to each and multiply.",
        f"{' * '.join(f'({power} + 1)' for power in powers)} = {value}",
    )
    ask = rng.choice((f"How many positive divisors does {number} have?", f"Count the positive divisors of {number}."))
    return Problem(ask, steps, str(value))


def primality(rng: random.Random) -> Problem:
    """Is it prime? Trial division up to the square root."""
    number = rng.randint(50, 2500) * 2 + 1
    root = math.isqrt(number)
    steps = [f"{root}^2 = {root * root} and {root + 1}^2 = {(root + 1) ** 2}, so test the primes up to {root}."]
    prime = factorise(number)[0]
    if prime == number:
        tried = [p for p in range(2, root + 1) if all(p % q for q in range(2, math.isqrt(p) + 1))]
        steps.append(f"None of {listing(tried)} divides {number}.")
        answer = "yes, it is prime"
    else:
        steps.append(f"{number} / {prime} = {number // prime}, so {prime} is a divisor.")
        answer = "no, it is not prime"
    ask = rng.choice((f"Is {number} a prime number?", f"Decide whether {number} is prime."))
    return Problem(ask, (*steps, f"Conclusion: {answer}."), answer)


def modular_power(rng: random.Random) -> Problem:
    """The remainder of a power, by repeated squaring."""
    base, exponent, modulus = rng.randint(2, 30), rng.randint(5, 60), rng.randint(5, 50)
    steps = [rng.choice((f"Square repeatedly, keeping remainders modulo {modulus}.", "Use repeated squaring."))]
    square, bit, result = base % modulus, 1, 1
    needed: list[tuple[int, int]] = []
    steps.append(f"{base}^1 leaves {square}.")
    while bit <= exponent:
        if exponent & bit:
            needed.append((bit, square))
        if bit * 2 <= exponent:
            whole = square * square
            steps.append(f"{base}^{bit * 2}: {square}^2 = {whole}, which leaves {whole % modulus}.")
            square = whole % modulus
        bit *= 2
    steps.append(f"{exponent} = {' + '.join(str(power) for power, _ in reversed(needed))}.")
    result = needed[-1][1]
    for _, factor in reversed(needed[:-1]):
        steps.append(f"{result} * {factor} = {result * factor}, which leaves {result * factor % modulus}.")
        result = result * factor % modulus
    ask = rng.choice(
        (
            f"What is the remainder when {base}^{exponent} is divided by {modulus}?",
            f"Compute {base}^{exponent} modulo {modulus}.",
        )
    )
    return Problem(ask, (*steps, f"The remainder is {result}."), str(result))


def modular_arithmetic(rng: random.Random) -> Problem:
    """A product plus a number, reduced early."""
    a, b, c, modulus = rng.randint(20, 400), rng.randint(20, 400), rng.randint(5, 400), rng.randint(5, 19)
    x, y, z = a % modulus, b % modulus, c % modulus
    value = x * y + z
    steps = (
        f"Reduce each number modulo {modulus} first.",
        f"{a} = {a // modulus} * {modulus} + {x}, {b} = {b // modulus} * {modulus} + {y}, "
        f"{c} = {c // modulus} * {modulus} + {z}.",
        f"{x} * {y} + {z} = {value}",
        f"{value} = {value // modulus} * {modulus} + {value % modulus}, so the remainder is {value % modulus}.",
    )
    ask = rng.choice(
        (
            f"Find the remainder of {a} * {b} + {c} on division by {modulus}.",
            f"What is {a} * {b} + {c} modulo {modulus}?",
        )
    )
    return Problem(ask, steps, str(value % modulus))


def modular_inverse(rng: random.Random) -> Problem:
    """The inverse modulo a prime, found by looking for a multiple that is one more than a multiple."""
    prime = rng.choice(_PRIMES)
    a = rng.randint(2, prime - 2)
    inverse = pow(a, -1, prime)
    multiples = a * inverse // prime
    steps = (
        f"We need x with {a}x = 1 + a multiple of {prime}.",
        f"Among the numbers 1 + {prime}k, the first that {a} divides comes at k = {multiples}.",
        f"1 + {prime} * {multiples} = {a * inverse}",
        f"{a * inverse} / {a} = {inverse}",
    )
    ask = rng.choice(
        (
            f"Find the inverse of {a} modulo {prime}.",
            f"Which x between 1 and {prime - 1} makes {a}x leave remainder 1 when divided by {prime}?",
        )
    )
    return Problem(ask, steps, str(inverse))


def to_base(number: int, base: int) -> str:
    """The digits of `number` in `base`."""
    digits = ""
    while number:
        number, digit = divmod(number, base)
        digits = _DIGITS[digit] + digits
    return digits or "0"


def base_from_decimal(rng: random.Random) -> Problem:
    """Decimal to another base by repeated division."""
    number, base = rng.randint(10, 3000), rng.choice((2, 2, 3, 4, 5, 6, 7, 8, 9, 16))
    steps, value = [f"Divide by {base} until nothing is left, noting the remainders."], number
    while value:
        value, rest = divmod(value, base)
        digit = f", the digit {_DIGITS[rest]}" if rest > 9 else ""
        steps.append(f"{value * base + rest} = {value} * {base} + {rest}, remainder {rest}{digit}")
    answer = to_base(number, base)
    steps.append(f"Reading the remainders from the last to the first gives {answer}.")
    ask = rng.choice((f"Write {number} in base {base}.", f"Convert the decimal number {number} to base {base}."))
    return Problem(ask, tuple(steps), answer)


def base_to_decimal(rng: random.Random) -> Problem:
    """Another base to decimal by place values."""
    number, base = rng.randint(10, 3000), rng.choice((2, 2, 3, 4, 5, 6, 7, 8, 9, 16))
    digits = to_base(number, base)
    terms = [(_DIGITS.index(digit), len(digits) - 1 - place) for place, digit in enumerate(digits)]
    terms = [(digit, power) for digit, power in terms if digit]
    steps = [
        rng.choice((f"Each place is worth a power of {base}.", "Add the place values of all digits that are not 0.")),
        f"{' + '.join(f'{digit} * {base}^{power}' for digit, power in terms)} = {number}",
    ]
    if len(terms) > 1:
        steps.insert(1, f"The values are {listing([digit * base**power for digit, power in terms])}.")
    ask = rng.choice(
        (
            f"What is the base {base} number {digits} in decimal?",
            f"Convert {digits} from base {base} to decimal.",
        )
    )
    return Problem(ask, tuple(steps), str(number))


def divisibility(rng: random.Random) -> Problem:
    """The digit-sum rules of 3 and 9."""
    number, divisor = rng.randint(1000, 9_999_999), rng.choice((3, 9))
    digits = [int(digit) for digit in str(number)]
    value = sum(digits)
    rest = value % divisor
    steps = [
        f"A number and the sum of its digits leave the same remainder on division by {divisor}.",
        f"{' + '.join(map(str, digits))} = {value}",
        f"{value} = {value // divisor} * {divisor} + {rest}",
        f"The remainder is {rest}, so {number} is {'divisible' if not rest else 'not divisible'} by {divisor}.",
    ]
    ask = rng.choice((f"Is {number} divisible by {divisor}?", f"Does {divisor} divide {number}?"))
    return Problem(ask, tuple(steps), "no" if rest else "yes")


def two_remainders(rng: random.Random) -> Problem:
    """The smallest number with two given remainders (the Chinese remainder theorem, by search)."""
    p, q = rng.sample((3, 4, 5, 7, 9, 11, 13, 16, 17, 19), 2)
    if math.gcd(p, q) > 1:
        p, q = 7, rng.choice((8, 10, 12, 15))
    p, q = min(p, q), max(p, q)
    value = rng.randint(q, p * q - 1)
    r, s = value % p, value % q
    tried = list(range(s, value + 1, q))
    steps = [f"List the numbers that leave {s} on division by {q}, and divide each by {p}."]
    steps += [f"{number} = {number // p} * {p} + {number % p}" for number in tried]
    steps.append(f"The first with remainder {r} is {value}.")
    ask = rng.choice(
        (
            f"Find the smallest positive number that leaves remainder {r} when divided by {p} "
            f"and remainder {s} when divided by {q}.",
            f"What is the least positive integer n with n = {r} modulo {p} and n = {s} modulo {q}?",
        )
    )
    return Problem(ask, tuple(steps), str(value))


FAMILIES: tuple[Family, ...] = (
    euclid,
    least_common_multiple,
    prime_factorisation,
    number_of_divisors,
    primality,
    modular_power,
    modular_arithmetic,
    modular_inverse,
    base_from_decimal,
    base_to_decimal,
    divisibility,
    two_remainders,
)
