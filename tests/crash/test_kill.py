"""A run that is killed at random moments and started again is, in the end, the run that nothing disturbed."""

import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from crashing import Life, assert_same, shard

# How often a moment is looked for in each part of a run. The clock also finds the moments outside of the stages, most
# of them in the import of torch. Training is where there is most to lose.
PLACES = {"clock": 3, "tokenizer": 3, "data": 3, "pretrain": 5, "anneal": 5, "evaluate": 1, "bench": 1, "release": 2}
LONGEST = {"clock": 4.0, "pretrain": 0.6, "anneal": 0.4, "evaluate": 0.4, "bench": 1.0}
"""Seconds after the begin of a stage within which the moment lies: about as long as the stage takes on two cores."""
SHORTEST = 0.1


def choose_place(life: Life, rng: random.Random) -> str | None:
    """Where the next disturbance is to fall; None to let the run end, lest its last stages get most of them."""
    done = {stage for stage, entry in life.manifest.items() if entry.get("status") == "done"}
    place = rng.choices(list(PLACES), list(PLACES.values()))[0]
    if place not in done:
        return place
    return None if "anneal" in done else choose_place(life, rng)


def disturb(life: Life, rng: random.Random, signals: tuple[int, ...]) -> int | None:
    """Send the signals at a random moment of what is left of a run; None where it came to its end."""
    place = choose_place(life, rng)
    if place is None:
        life.finish()
        return None
    before = life.manifest.get(place)
    delay, gap = rng.uniform(0, LONGEST.get(place, SHORTEST)), rng.uniform(0, 0.1) if len(signals) > 1 else 0.0
    return life.disturb(lambda: place == "clock" or life.manifest.get(place) != before, delay, signals, gap)


def disturb_and_compare(
    reference: Life,
    tmp_path: Path,
    rng: random.Random,
    kinds: list[tuple[int, ...]],
    check: Callable[[Life, tuple[int, ...], int], None],
) -> None:
    """Disturb runs, one after the other, until every kind of disturbance has been used; each ends as the reference."""
    places: Counter[str] = Counter()
    lives = 0
    while kinds:
        life = Life(tmp_path / f"run-{lives}", reference.recipe)
        lives += 1
        finished = False
        while kinds and not finished:
            code = disturb(life, rng, kinds[0])
            if code is None:
                finished = True
            else:
                check(life, kinds.pop(0), code)
        if not finished:
            life.finish()
        places.update(life.moments)
        assert_same(life.folder, reference.folder)
    print(f"{places.total()} disturbances in {lives} lives: {dict(places)}")


def test_a_run_that_is_killed_again_and_again_ends_as_the_undisturbed_one(
    reference: Life, tmp_path: Path, rng: random.Random
) -> None:
    disturb_and_compare(reference, tmp_path, rng, [(signal.SIGKILL,)] * 3, lambda *_: None)


def assert_readable(life: Life, signals: tuple[int, ...], code: int) -> None:
    """The exit code is that of the signal, a signal that can be caught gives no traceback, and the folder is whole."""
    assert code == 128 + signals[-1], life.errors
    if signals[-1] != signal.SIGKILL and life.moments[-1] != "start":  # before that, Python itself is still starting
        assert "Traceback" not in life.errors
    if (life.folder / "recipe.toml").exists():
        for verb in ("status", "verify"):
            outcome = shard(verb, life.folder)
            known = "No such command" not in outcome.stderr
            assert outcome.returncode == 0 or not known, f"{verb} at {life.moments[-1]}: {outcome.stderr}"
            assert "Traceback" not in outcome.stderr


@pytest.mark.slow
def test_whatever_stops_a_run_its_folder_is_readable_and_nothing_is_lost(
    reference: Life, tmp_path: Path, rng: random.Random
) -> None:
    kinds: list[tuple[int, ...]] = [(signal.SIGKILL,)] * 25
    kinds += [(signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT, signal.SIGINT)] * 4
    rng.shuffle(kinds)
    disturb_and_compare(reference, tmp_path, rng, kinds, assert_readable)
