"""What the measured results prove of a model, and what they show that it cannot do."""

import re
from collections.abc import Iterator
from typing import Any

from shard.release.card.facts import Facts
from shard.release.card.markdown import bullets
from shard.release.card.results import not_measured
from shard.training.cost import count_parameters
from shard.units import format_count

CHINCHILLA = 20
"""Tokens a parameter at which a fixed budget of compute is best spent (Hoffmann et al., 2022)."""

Score = dict[str, Any]


def beats_chance(score: Score) -> bool:
    """Whether a share of right answers lies more than two standard errors above chance."""
    return bool(score["value"] > score["chance"] + 2 * score["standard_error"])


def proof_section(facts: Facts) -> str:
    """What unseen text and tasks show."""
    if not facts.evaluation:
        return ""
    sources = facts.evaluation["sources"].items()
    better = [name for name, s in sources if s["bits_per_byte"] < s["xz_bits_per_byte"]]
    worse = [name for name, s in sources if s["bits_per_byte"] >= s["xz_bits_per_byte"]]
    lines = []
    if better:
        lines.append(f"It predicts unseen text of {', '.join(better)} better than `xz -9e` compresses it.")
    if worse:
        lines.append(f"It does **not** reach `xz -9e` on {', '.join(worse)}.")
    if able := [f"{name} ({_beside_chance(score)})" for name, score in _shares(facts) if beats_chance(score)]:
        lines.append(f"It is better than chance by more than two standard errors on {', '.join(able)}.")
    lines.append(
        "The whole path, tokenizer to release, ran from one recipe; every number above was written by the run."
    )
    return "## What it proves\n\n" + bullets(lines)


def limits_section(facts: Facts) -> str:
    """What a base model of its size is not, and what the tasks show that it cannot do."""
    config = facts.run.recipe.config
    total, tokens = count_parameters(config).total, facts.tokens
    ratio = tokens / total
    return "## What it cannot do\n\n" + bullets(
        [
            "It is a base model: it continues text. It was not taught to follow instructions, to be truthful or safe.",
            f"It has {format_count(total)} parameters and saw {format_count(tokens)} tokens here, "
            f"{ratio:.2g} for each of them"
            + (f" (below the {CHINCHILLA} of the Chinchilla line)" if ratio < CHINCHILLA else "")
            + ": it knows few facts; read the sampled outputs.",
            *_measured(facts),
            f"It knows the text of its sources, and little else. It was never trained beyond "
            f"{_longest_sequence(facts)} tokens.",
        ]
    )


def _longest_sequence(facts: Facts) -> int:
    """Of the stages of this run; of the recipe where all of the training was imported."""
    trained = [stage.settings.sequence_length for stage in facts.stages.values() if stage.lines]
    return max(trained or [stage.settings.sequence_length for stage in facts.stages.values()])


def _shares(facts: Facts) -> Iterator[tuple[str, Score]]:
    """The headline of each task that is a share of items, which a guess gets by chance."""
    for name, results in facts.tasks().items():
        if re.match(r"acc|exact match|share", results[0]["metric"]):
            yield name, results[0]


def _beside_chance(score: Score) -> str:
    return f"{score['value']:.4f}, chance {score['chance']:.4g}"


def _measured(facts: Facts) -> Iterator[str]:
    """A sentence for each ability that was measured and is not there."""
    tasks = facts.tasks()
    if arithmetic := tasks.get("arithmetic"):
        score = arithmetic[0]
        right, items = round(score["value"] * score["items"]), score["items"]
        if right < items:
            how_many = "all" if not right else "most" if 2 * right < items else "some"
            yield f"It gets {how_many} sums wrong: {right:,} of {items:,} right."
    for name, score in _shares(facts):
        if name.startswith("arc") and not beats_chance(score):
            yield f"It is no better than guessing on {name}: {_beside_chance(score)}."
    if code := tasks.get("code"):
        if not beats_chance(code[0]):
            yield f"The code that it writes parses no more often than random tokens do: {_beside_chance(code[0])}."
        elif code[0]["value"] < 1:
            yield f"Of the code that it writes, {1 - code[0]['value']:.0%} does not even parse."
    yield from _passkey(tasks.get("passkey", []))
    yield from _positions(tasks.get("position", []))
    if missing := list(not_measured(facts)):
        yield f"Not measured, so not known: {', '.join(missing)}."


def _passkey(results: list[Score]) -> Iterator[str]:
    """Up to which length it finds a pass key at least every second time."""
    by_length = {}
    for score in results:
        if match := re.fullmatch(r"exact match, (\d+) tokens", score["metric"]):
            by_length[int(match[1])] = score["value"]
    works = 0
    for length, value in sorted(by_length.items()):
        if value < 0.5:
            beyond = f"It finds a pass key in texts of up to {works:,} tokens, and" if works else "It"
            yield f"{beyond} mostly does not find it in texts of {length:,}: {value:.4f} exact match."
            return
        works = length
    if works:
        yield f"It finds a pass key in texts of up to {works:,} tokens; longer ones were not tried."


def _positions(results: list[Score]) -> Iterator[str]:
    """A last stretch of the context that is predicted worse than the one before it."""
    if len(results) < 3:  # the whole, and two stretches
        return
    before, last = results[-2:]
    if last["value"] > before["value"]:
        yield (
            f"The end of its context is of no use to it: {last['value']:.4f} {last['metric']}, after "
            f"{before['value']:.4f} before them."
        )
