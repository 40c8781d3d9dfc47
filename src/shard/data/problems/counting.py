"""Counting and probability."""

import math
import random
from fractions import Fraction

from shard.data.problems.phrasing import count, listing, plural
from shard.data.problems.problem import Family, Problem


def _falling(n: int, k: int) -> str:
    """`9 * 8 * 7`, the k factors from n down."""
    return " * ".join(str(n - i) for i in range(k))


def combinations(rng: random.Random) -> Problem:
    """Choosing k of n without order."""
    n, k = rng.randint(5, 40), rng.randint(2, 4)
    top, bottom, value = math.perm(n, k), math.factorial(k), math.comb(n, k)
    people = rng.choice(("student", "player", "member", "teacher", "singer", "worker", "artist", "cook", "dancer"))
    group = rng.choice(("team", "committee", "group", "delegation", "crew", "panel"))
    steps = (
        f"In order there are {_falling(n, k)} = {top} ways.",
        f"Each {group} is counted {_falling(k, k)} = {bottom} times.",
        f"{top} / {bottom} = {value}",
    )
    ask = rng.choice(
        (
            f"In how many ways can a {group} of {k} be chosen from {n} {plural(people)}?",
            f"How many different {plural(group)} of {k} can be formed from {n} {plural(people)}?",
            f"A class has {n} {plural(people)}. How many ways are there to pick a {group} of {k}?",
        )
    )
    return Problem(ask, steps, str(value))


def permutations(rng: random.Random) -> Problem:
    """Filling k places from n in order."""
    n, k = rng.randint(4, 30), rng.randint(2, 4)
    what = rng.choice(("runner", "swimmer", "rider", "book", "picture", "flag", "song", "poem", "film", "car"))
    ordinals = ("first", "second", "third", "fourth")
    lines = [
        f"For the {ordinals[i]} place there {'is' if n - i == 1 else 'are'} {count(n - i, 'choice')}." for i in range(k)
    ]
    steps = (*lines, f"{_falling(n, k)} = {math.perm(n, k)}")
    ask = rng.choice(
        (
            f"In how many orders can {k} of {n} {plural(what)} be ranked?",
            f"From {n} {plural(what)}, {k} are put in a row. How many different rows are possible?",
            f"How many ways are there to give {k} different places to {n} {plural(what)}?",
        )
    )
    return Problem(ask, steps, str(math.perm(n, k)))


_WORDS_TEXT = (
    "BANANA LETTER COFFEE PEPPER BALLOON SUCCESS COMMITTEE KITTEN POTATO TOMATO RABBIT CARROT SUMMER WINTER "
    "GARDEN BOTTLE BUTTER CHEESE SCHOOL MIRROR PILLOW HAMMER DINNER ROCKET PUDDLE BUBBLE YELLOW COTTON "
    "MUFFIN TEETH LEVEL PAPER RIVER OCEAN MELON ONION RADAR CIVIC APPLE BERRY CHERRY LEMON OLIVE ORANGE "
    "ISLAND DESERT"
)
_WORDS = _WORDS_TEXT.split()


def arrangements(rng: random.Random) -> Problem:
    """Arrangements of letters with repetition, after some were added or a word was taken whole."""
    word = rng.choice(_WORDS)
    start = rng.randrange(3)
    letters = word[start:] + "".join(rng.sample("ABEIMNORST", rng.randint(0, 2)))
    repeated = {letter: letters.count(letter) for letter in letters if letters.count(letter) > 1}
    top = math.factorial(len(letters))
    bottom = math.prod(math.factorial(times) for times in repeated.values())
    n = len(letters)
    steps = [f"{n} different letters would give {_falling(n, n)} = {top} arrangements."]
    for letter, times in repeated.items():
        steps.append(f"{letter} occurs {times} times, so divide by {_falling(times, times)} = {math.factorial(times)}.")
    if repeated:
        divisors = "".join(f" / {math.factorial(times)}" for times in repeated.values())
        steps.append(f"{top}{divisors} = {top // bottom}")
    else:
        steps.append("No letter is repeated, so nothing is divided out.")
    ask = rng.choice(
        (
            f"In how many different ways can the letters {letters} be arranged?",
            f"How many distinct arrangements of the letters of {letters} are there?",
        )
    )
    return Problem(ask, tuple(steps), str(top // bottom))


def two_dice(rng: random.Random) -> Problem:
    """The probability of a sum with two fair dice of given sizes."""
    p, q = rng.choice((6, rng.randint(4, 24))), rng.choice((6, rng.randint(4, 24)))
    goal = rng.randint(3, p + q - 1)
    low, high = max(1, goal - q), min(p, goal - 1)
    number = high - low + 1
    result = Fraction(number, p * q)
    single = f"Only {low} on the first die and {goal - low} on the second give {goal}."
    steps = (
        f"There are {p} * {q} = {p * q} equally likely outcomes.",
        f"The first die can show {low} to {high}; the second must then show {goal} minus that."
        if number > 1
        else single,
        f"That makes {high} - {low} + 1 = {number} favorable {'outcome' if number == 1 else 'outcomes'}.",
        f"The probability is {number}/{p * q}" + (f" = {result}." if result.denominator != p * q else "."),
    )
    first = f"Two fair dice with {p} sides each" if p == q else f"A fair die with {p} sides and one with {q} sides"
    ask = rng.choice(
        (
            f"{first} are rolled. What is the probability that the sum is {goal}?",
            f"{first} are thrown. Find the probability of a total of {goal}.",
        )
    )
    return Problem(ask, steps, str(result))


def marbles(rng: random.Random) -> Problem:
    """Two draws without replacement from a bag: both of one color."""
    first, second = rng.sample(("red", "blue", "green", "white", "black", "yellow"), 2)
    a, b = rng.randint(2, 25), rng.randint(2, 25)
    n = a + b
    result = Fraction(a * (a - 1), n * (n - 1))
    steps = (
        f"There are {a} + {b} = {n} marbles, so the first is {first} with probability {a}/{n}.",
        f"Then {count(a - 1, f'{first} marble')} out of {n - 1} {'is' if a == 2 else 'are'} left, which "
        "gives "
        f"{a - 1}/{n - 1}.",
        f"{a}/{n} * {a - 1}/{n - 1} = {a * (a - 1)}/{n * (n - 1)} = {result}",
    )
    ask = rng.choice(
        (
            f"A bag holds {a} {first} and {b} {second} marbles. Two are drawn without replacement. "
            f"What is the probability that both are {first}?",
            f"Two marbles are taken at random from a bag with {a} {first} and {b} {second} ones. "
            f"Find the probability of getting two {first} marbles.",
        )
    )
    return Problem(ask, steps, str(result))


def at_least_one(rng: random.Random) -> Problem:
    """At least one success, through the complement."""
    sides, rolls = rng.randint(3, 20), rng.randint(2, 4)
    wins, color = rng.randint(1, sides - 1), rng.choice(("gold", "red", "silver", "blue", "green"))
    miss = Fraction(sides - wins, sides)
    good = f"{wins} {'is' if wins == 1 else 'are'} {color}"
    steps = (
        rng.choice(("Use the complement: no win at all.", "First find the probability of never winning.")),
        f"A single spin loses with probability ({sides} - {wins}) / {sides} = {miss}.",
        f"All {rolls} spins lose with probability ({miss})^{rolls} = {miss**rolls}.",
        f"1 - {miss**rolls} = {1 - miss**rolls}",
    )
    ask = rng.choice(
        (
            f"A wheel has {sides} equal sections, of which {good}. It is spun {rolls} times. "
            f"What is the probability of at least one {color} result?",
            f"A wheel has {sides} equal sections; {good}, and {color} wins. Find the probability of "
            "winning at "
            f"least once in {rolls} spins.",
        )
    )
    return Problem(ask, steps, str(1 - miss**rolls))


def inclusion_exclusion(rng: random.Random) -> Problem:
    """Two overlapping sets: how many are in neither."""
    both, a, b, neither = rng.randint(2, 30), rng.randint(2, 60), rng.randint(2, 60), rng.randint(2, 40)
    first, second = rng.sample(("tennis", "chess", "piano", "football", "painting", "swimming", "singing"), 2)
    x, y, everyone = a + both, b + both, a + b + both + neither
    steps = (
        f"At least one: {x} + {y} - {both} = {a + b + both}, since those with both were counted twice.",
        f"Neither: {everyone} - {a + b + both} = {neither}.",
    )
    ask = rng.choice(
        (
            f"Of {everyone} people, {x} like {first}, {y} like {second} and {both} like both. How many like neither?",
            f"In a club of {everyone} people, {x} chose {first}, {y} chose {second}, and {both} of them "
            "chose both. "
            "How many chose neither?",
        )
    )
    return Problem(ask, steps, str(neither))


def coin_flips(rng: random.Random) -> Problem:
    """Exactly k heads in n flips."""
    n = rng.randint(3, 20)
    k = rng.randint(1, n - 1)
    side, ways = rng.choice(("head", "tail")), math.comb(n, k)
    few = min(k, n - k)
    chosen = plural(side) if few == k else "other side"
    result = Fraction(ways, 2**n)
    steps = (
        f"There are 2^{n} = {2**n} equally likely sequences.",
        f"Choose the {count(few, 'position')} of the {chosen}: ({_falling(n, few)}) / ({_falling(few, few)}) = {ways}.",
        f"The probability is {ways}/{2**n}" + (f" = {result}." if result.denominator < 2**n else "."),
    )
    who = rng.choice(("A fair coin is flipped", "Someone tosses a fair coin", "We throw a fair coin"))
    ask = f"{who} {n} times. What is the probability of exactly {count(k, side)}?"
    if rng.random() < 0.5:
        ask = f"Find the probability of exactly {count(k, side)} in {n} tosses of a fair coin."
    return Problem(ask, steps, str(result))


def product_rule(rng: random.Random) -> Problem:
    """Independent choices multiply."""
    kinds = rng.sample(
        ("shirt", "hat", "glove", "jacket", "belt", "bag", "coat", "sweater", "tie"), rng.choice((2, 3, 3, 4))
    )
    numbers = [rng.randint(2, 12) for _ in kinds]
    owned = listing([count(number, kind) for number, kind in zip(numbers, kinds, strict=True)])
    value = math.prod(numbers)
    steps = ("The choices are independent, so multiply.", f"{' * '.join(map(str, numbers))} = {value}")
    ask = rng.choice(
        (
            f"A wardrobe holds {owned}. How many outfits with one of each are there?",
            f"In how many ways can one of each kind be chosen from {owned}?",
        )
    )
    return Problem(ask, steps, str(value))


def grid_paths(rng: random.Random) -> Problem:
    """Shortest paths in a grid."""
    a, b = rng.randint(2, 20), rng.randint(2, 9)
    value = math.comb(a + b, min(a, b))
    k = min(a, b)
    right, up = rng.choice((("right", "up"), ("east", "north"), ("east", "south"), ("left", "down"), ("west", "north")))
    steps = (
        f"Every path has {a} + {b} = {a + b} steps; choose which {k} of them go {up if k == b else right}.",
        f"({_falling(a + b, k)}) / ({_falling(k, k)}) = {math.perm(a + b, k)} / {math.factorial(k)} = {value}",
    )
    ask = rng.choice(
        (
            f"How many paths go {a} steps {right} and {b} steps {up} on a grid, in any order?",
            f"On a street grid, a shop is {a} blocks {right} and {b} blocks {up} from here. "
            "How many shortest ways lead there?",
            f"A robot must move {a} squares {right} and {b} squares {up}, one at a time. How many routes are there?",
        )
    )
    return Problem(ask, steps, str(value))


FAMILIES: tuple[Family, ...] = (
    combinations,
    permutations,
    arrangements,
    two_dice,
    marbles,
    at_least_one,
    inclusion_exclusion,
    coin_flips,
    product_rule,
    grid_paths,
)
