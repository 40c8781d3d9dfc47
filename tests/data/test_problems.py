"""The generated problems: every line of arithmetic is checked again, by code that the families do not use."""

import itertools
import math
import random
import re
from collections.abc import Callable
from fractions import Fraction

import pytest
import sympy

from shard.data.problems import FAMILIES, Problem, generate_problems, problem_at

DRAWS = 60


class UnparsableError(Exception):
    """Not a complete expression of numbers alone: part of an equation in x, for instance."""


def evaluate(text: str) -> Fraction:
    """The exact value of an expression of numbers, + - * / ^ and parentheses, by recursive descent."""
    tokens = re.findall(r"\d+(?:\.\d+)?|[-+*/^()]|\S", text)
    position = 0

    def take(*wanted: str) -> str | None:
        nonlocal position
        if position < len(tokens) and tokens[position] in wanted:
            position += 1
            return tokens[position - 1]
        return None

    def atom() -> Fraction:
        nonlocal position
        if take("("):
            value = expression()
            if not take(")"):
                raise UnparsableError(text)
            return value
        if position == len(tokens) or not tokens[position][0].isdigit():
            raise UnparsableError(text)
        position += 1
        return Fraction(tokens[position - 1])

    def power() -> Fraction:
        if take("-"):
            return -power()
        base = atom()
        return base ** int(power()) if take("^") else base

    def product() -> Fraction:
        value = power()
        while sign := take("*", "/"):
            value = value * power() if sign == "*" else value / power()
        return value

    def expression() -> Fraction:
        value = product()
        while sign := take("+", "-"):
            value = value + product() if sign == "+" else value - product()
        return value

    result = expression()
    if position != len(tokens):
        raise UnparsableError(text)
    return result


SIDE = r"[-+*/^()\d. ]*"
EQUATION = re.compile(rf"(?<![-+*/^()\d. ])({SIDE})=(?=({SIDE}))")


def equations(text: str) -> list[tuple[str, str]]:
    """The pairs of sides around each `=` that are arithmetic alone."""
    found = []
    for line in re.split(r"\n|[.:] (?=\S)|[.]$", text, flags=re.M):
        for match in EQUATION.finditer(line):
            left, right = match.groups()
            before, after = line[: match.start()], line[match.end(2) :]
            if (
                not left.strip()
                or not right.strip()
                or (after[:1].isalpha() and right[-1] != " ")
                or after[:1] in ("|", "_")
            ):
                continue  # an unknown on one side
            if re.search(r"[\w)|']$", before) and not left.startswith(" "):
                continue  # a factor such as x^2 belongs to the left side
            if re.match(r" ?[-+*/^] ", left) or re.search(r"[-+*/^] ?$", right):
                continue  # only the end, or only the start, of a side
            found.append((left.strip(), right.strip()))
    return found


def draws(name: str, number: int = DRAWS) -> list[Problem]:
    return [FAMILIES[name](random.Random(1000 * number + i)) for i in range(number)]


checked: dict[str, int] = {}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_equation_of_a_family_holds(name: str) -> None:
    total = 0
    for problem in draws(name):
        for left, right in equations(problem.text()):
            try:
                values = evaluate(left), evaluate(right)
            except UnparsableError:
                continue
            assert values[0] == values[1], f"{left} = {right} in:\n{problem.text()}"
            total += 1
    checked[name] = total


def test_thousands_of_equations_were_checked() -> None:
    if len(checked) < len(FAMILIES):
        pytest.skip("only some families ran")
    assert sum(checked.values()) > 12_000
    without = {name for name, total in checked.items() if total == 0}
    assert without <= {"expressions.rounding"}, f"no arithmetic to check in {sorted(without)}"


def test_the_checker_finds_a_wrong_equation() -> None:
    assert equations("So 3x + 5 = 20 and x = 5. Check: 3 * 5 + 5 = 20.") == [("3 * 5 + 5", "20")]
    assert equations("12 * 3 = 30 + 6 = 36") == [("12 * 3", "30 + 6"), ("30 + 6", "36")]
    assert evaluate("2 * 3^2 - (-4) / 8") == Fraction(37, 2)
    assert evaluate("0.1 + 0.2") == Fraction(3, 10)


UGLY = {
    "spacing": r"  | [,.;](?!\.\.)( |\n|$)|,,|\.\.,",
    "two signs": r"[-+] -|-0(?![.\d])",
    "a coefficient of 1": r"(?<![\d.])1[xyntz]\b",
    "a power of 0 or 1": r"\b[xyntz]\^[01]\b",
    "a rounding artefact": r"\d\.\d{9,}",
    "a leading zero": r"(?<![\w.:])0\d(?!:)",
    "one and a plural": r"(?<![-+*/.:^\d] )(?<![-.:\d])1 (?!is |gives |leaves |was )[a-z]+s\b",
    "the wrong article": r"\b[Aa] (8\d?|11|18)\b(?!\d)",
    "a Python value": r"None(?! of)|Fraction\(|Decimal\(|\[|\{",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_wording_of_a_family_is_clean(name: str) -> None:
    problems = draws(name)
    for problem in problems:
        text = problem.text()
        assert problem.statement and problem.steps and all(problem.steps)
        assert problem.answer in text
        assert text.isascii() and text == text.strip()
        for what, pattern in UGLY.items():
            assert not (found := re.search(pattern, text)), f"{what}: {found.group()!r} in:\n{text}"
    assert len({problem.statement for problem in problems}) > 0.8 * len(problems)
    assert len({re.sub(r"[^a-z ]", "", problem.text()) for problem in problems}) >= 2


def test_the_three_short_forms_are_there() -> None:
    texts = [document.text for document in generate_problems(300_000, seed=0)]
    assert any(re.match(r"Question: What is \d+ \+ \d+\? Answer: \d+\n", text) for text in texts)
    assert any(re.match(r"To compute \d+ plus \d+, we can ", text) for text in texts)
    assert any(re.match(r"Solve: \d+ \* \d+ = \?\n", text) for text in texts)
    assert any(text.startswith("Problem: ") and "\nSolution: " in text and "\nAnswer: " in text for text in texts)


def test_generation_is_a_pure_function_of_the_seed() -> None:
    long = list(generate_problems(80_000, seed=5))
    assert long[: len(short := list(generate_problems(40_000, seed=5)))] == short
    assert 40_000 <= sum(len(document.text.encode()) for document in short) < 42_000
    assert {document.text for document in generate_problems(40_000, seed=6)}.isdisjoint(d.text for d in short[:1])
    assert len({document.group for document in long}) == len(long)
    assert all(document.group.removeprefix("problem:") in document.text for document in long)
    assert problem_at(5, 17) == problem_at(5, 17) != problem_at(5, 18)


def test_a_known_problem_never_changes() -> None:
    """A golden value: the same on every machine and in every version, else old runs could not be repeated."""
    assert problem_at(0, 0).statement == GOLDEN


GOLDEN = "A lawn measures 13 by 14 m. A path 6 m wide runs around it. Find the area of the path."


# Oracles: the answer found again from the statement, by brute force, the standard library or sympy.


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"-?\d+", text)]


def symbolic(text: str) -> sympy.Expr:
    """A polynomial as printed -> sympy: 3x^2 - 2x, (1/2)x^3."""
    return sympy.sympify(re.sub(r"(?<=[\d)])(?=[a-z(])", "*", text.replace("^", "**")), {"C": sympy.Integer(0)})


X = sympy.Symbol("x")


def answer_gcd(problem: Problem) -> bool:
    return int(problem.answer) == math.gcd(*numbers(problem.statement.replace("Euclid's", "")))


def answer_lcm(problem: Problem) -> bool:
    return int(problem.answer.split()[0]) == math.lcm(*numbers(problem.statement))


def answer_divisors(problem: Problem) -> bool:
    number = numbers(problem.statement)[0]
    return int(problem.answer) == sum(number % d == 0 for d in range(1, number + 1))


def answer_prime(problem: Problem) -> bool:
    return problem.answer.startswith("yes") == sympy.isprime(numbers(problem.statement)[0])


def answer_power(problem: Problem) -> bool:
    return int(problem.answer) == pow(*numbers(problem.statement))


def answer_inverse(problem: Problem) -> bool:
    found = re.search(r"of (\d+) modulo (\d+)|makes (\d+)x .* by (\d+)", problem.statement)
    assert found
    a, modulus = (int(group) for group in found.groups() if group)
    return int(problem.answer) * a % modulus == 1


def answer_base(problem: Problem) -> bool:
    found = re.search(r"number (\d+) to base (\d+)|Write (\d+) in base (\d+)", problem.statement)
    assert found
    number, base = (int(group) for group in found.groups() if group)
    return int(problem.answer, base) == number


def answer_combinations(problem: Problem) -> bool:
    small, large = sorted(number for number in numbers(problem.statement))
    return int(problem.answer) == math.comb(large, small)


def answer_arrangements(problem: Problem) -> bool:
    word = max(re.findall(r"[A-Z]{2,}", problem.statement), key=len)
    ways = math.factorial(len(word))
    for letter in set(word):
        ways //= math.factorial(word.count(letter))
    return int(problem.answer) == ways


def answer_dice(problem: Problem) -> bool:
    *dice, goal = numbers(problem.statement)
    first, second = dice if len(dice) == 2 else dice * 2
    rolls = list(itertools.product(range(1, first + 1), range(1, second + 1)))
    return Fraction(problem.answer) == Fraction(sum(a + b == goal for a, b in rolls), len(rolls))


def answer_roots(problem: Problem) -> bool:
    found = re.search(r"-?\d*([xyntz])\^2[-+ \dxyntz]*", problem.statement)
    assert found
    expression = symbolic(found.group().split(" = ")[0].strip())
    (variable,) = expression.free_symbols
    given = {Fraction(root) for root in re.findall(r"= (-?\d+(?:/\d+)?)", problem.answer)}
    return given == {Fraction(str(root)) for root in sympy.roots(expression, variable)}


def answer_system(problem: Problem) -> bool:
    equations_text = re.findall(r"(-?\d*x [-+] \d*y) = (-?\d+)", problem.statement)
    values = dict(zip("xy", numbers(problem.answer), strict=True))
    return len(equations_text) == 2 and all(symbolic(left).subs(values) == int(right) for left, right in equations_text)


def answer_derivative(problem: Problem) -> bool:
    found = re.search(r"(?:= |of )([-\d]*x[-+ \dx^]*?)(?: with.*|[.?])$", problem.statement)
    assert found
    return sympy.expand(sympy.diff(symbolic(found[1]), X) - symbolic(problem.answer)) == 0


def answer_antiderivative(problem: Problem) -> bool:
    found = re.search(r"(?:of|Integrate|derivative) ([-\d]*x[-+ \dx^]*?)(?: with.*|[.?])$", problem.statement)
    assert found
    return sympy.expand(sympy.diff(symbolic(problem.answer), X) - symbolic(found[1])) == 0


def answer_integral(problem: Problem) -> bool:
    found = re.search(r"(?:of|Integrate) ([-\d]*x[-+ \dx^]*?) (?:from|between) ", problem.statement)
    assert found
    low, high = numbers(problem.statement[found.end() :])
    return str(sympy.integrate(symbolic(found[1]), (X, low, high))) == problem.answer


def answer_two_remainders(problem: Problem) -> bool:
    given = numbers(problem.statement)
    (r, p, s, q) = given
    return int(problem.answer) == next(n for n in itertools.count(1) if n % p == r and n % q == s)


def answer_hypotenuse(problem: Problem) -> bool:
    a, b = numbers(problem.statement)
    c = int(problem.answer.split()[0])
    return sorted((a, b, c))[2] ** 2 == sum(side**2 for side in sorted((a, b, c))[:2])


def answer_expansion(problem: Problem) -> bool:
    found = re.search(r"\(.*\)\(.*\)", problem.statement)
    assert found
    return sympy.expand(symbolic(found.group()) - symbolic(problem.answer)) == 0


ORACLES: dict[str, Callable[[Problem], bool]] = {
    "number_theory.euclid": answer_gcd,
    "number_theory.least_common_multiple": answer_lcm,
    "number_theory.number_of_divisors": answer_divisors,
    "number_theory.primality": answer_prime,
    "number_theory.modular_power": answer_power,
    "number_theory.modular_inverse": answer_inverse,
    "number_theory.base_from_decimal": answer_base,
    "number_theory.two_remainders": answer_two_remainders,
    "counting.combinations": answer_combinations,
    "counting.arrangements": answer_arrangements,
    "counting.two_dice": answer_dice,
    "algebra.quadratic_by_factoring": answer_roots,
    "algebra.completing_the_square": answer_roots,
    "algebra.quadratic_formula": answer_roots,
    "algebra.linear_system": answer_system,
    "algebra.expand_product": answer_expansion,
    "calculus.derivative": answer_derivative,
    "calculus.antiderivative": answer_antiderivative,
    "calculus.definite_integral": answer_integral,
    "geometry.pythagoras": answer_hypotenuse,
}


@pytest.mark.parametrize("name", ORACLES)
def test_an_independent_oracle_finds_the_same_answer(name: str) -> None:
    for problem in draws(name, 20):
        assert ORACLES[name](problem), problem.text()
