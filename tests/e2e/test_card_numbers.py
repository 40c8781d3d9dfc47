"""Every number of a card is that of a file of the run, and follows it."""

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from card_numbers import NUMBER, WORDS, check, numbers, sections

from shard.recipe import Recipe
from shard.release.card import limits, training
from shard.release.card.write import render_card
from shard.run import Run
from shard.training import cost

TASKS: dict[str, Any] = {
    "arc_easy_cloze": [("acc", 0.32456, 0.01963, 0.25013, 570), ("acc_norm", 0.31, 0.019, 0.25013, 570)],
    "arc_challenge_letters": [("acc", 0.24421, 0.02484, 0.25, 299)],
    "arithmetic": [
        ("exact match", 0.03077, 0.00757, 0.01923, 520),
        ("exact match, addition of 2 digits", 0.1, 0.04, 0.04, 50),
    ],
    "passkey": [
        ("exact match, 512 tokens", 0.95, 0.04873, 1e-05, 20),
        ("mean rank of 10, 512 tokens", 1.05, 0.05, 5.5, 20),
        ("exact match, 1024 tokens", 0.15, 0.07984, 1e-05, 20),
        ("mean rank of 10, 1024 tokens", 3.75, 0.44, 5.5, 20),
    ],
    "position": [
        ("bits per byte, positions 0 to 127", 2.11234, 0.03, 8.0, 128),
        ("bits per byte, positions 0 to 63", 2.01234, 0.03, 8.0, 128),
        ("bits per byte, positions 64 to 127", 2.21234, 0.03, 8.0, 128),
    ],
    "code": [("share that parses", 0.3, 0.07246, 0.025, 40)],
}
KEYS = ("metric", "value", "standard_error", "chance", "items")


def measured() -> dict[str, Any]:
    """Tasks as evaluation.json has them, with values that no tiny model would get."""
    tasks: dict[str, Any] = {
        name: {"version": 1, "sha256": "0" * 64, "results": [dict(zip(KEYS, row, strict=True)) for row in rows]}
        for name, rows in TASKS.items()
    }
    tasks["arc_easy_letters"] = {"version": 1, "not_measured": "its longest item takes 173 tokens, the context is 128"}
    return tasks


@pytest.fixture(scope="module")
def folder(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, with every part of a card: tasks, int8, memory, a price, skipped steps, a second start."""
    folder = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("card") / "run"))
    prices = ["release.price_per_hour=1.75", "release.currency=EUR", "release.watts=143.5"]
    recipe = Recipe.load(str(folder / "recipe.toml"), prices)
    (folder / "recipe.toml").write_text(recipe.to_toml())
    edit(folder / "evaluation.json", lambda e: e.update(tasks=measured()))
    int8 = {"fp32_bits_per_byte": 4.71234, "int8_bits_per_byte": 4.72345, "change_percent": 0.2358}
    loop = {"median": 51.1, "min": 48.2, "max": 55.3, "runs": 3}

    def extend(benchmark: Any) -> None:
        benchmark.update(int8={"bytes_per_source": 20000, "sources": {"text": int8}})
        benchmark.update(published_loop_tokens_per_second=loop)
        for precision in benchmark["inference"].values():
            precision["peak_memory_above_weights_bytes"] = {"median": 123456, "min": 1, "max": 200000, "runs": 5}

    edit(folder / "benchmark.json", extend)
    metrics = folder / "pretrain" / "metrics.jsonl"
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps[1]["skipped"] = "gradient spike"
    metrics.write_text("".join(json.dumps(step) + "\n" for step in steps))
    with (folder / "pretrain" / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": "2026-01-01T00:00:00Z", "event": "start"}) + "\n")
    return folder


def edit(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def render(folder: Path) -> str:
    return render_card(Run(folder, Recipe.load(str(folder / "recipe.toml"))), folder / "release")


@pytest.fixture(scope="module")
def card(folder: Path) -> str:
    return render(folder)


def test_the_card_of_a_finished_run(finished_run: Path) -> None:
    """As it was written."""
    check((finished_run / "release" / "README.md").read_text(encoding="utf-8"), finished_run)


def test_a_card_with_every_part(folder: Path, card: str) -> None:
    check(card, folder)
    assert len(numbers(card.split("\n---\n", 1)[1])) > 150


def test_no_number_can_be_changed_unseen(folder: Path, card: str) -> None:
    """Each number of the card in turn gets another last digit."""
    check(card, folder)
    head, _, body = card.partition("\n---\n")
    protected = [m.span() for m in re.finditer(r"^```.*?^```$", body, flags=re.DOTALL | re.MULTILINE)]
    protected += [m.span() for word in WORDS for m in re.finditer(re.escape(word), body)]
    changed = 0
    for match in NUMBER.finditer(body):
        if any(start <= match.start() < end for start, end in protected):
            continue
        last = match.end() - 1
        other = f"{body[:last]}{(int(body[last]) + 1) % 10}{body[match.end() :]}"
        with pytest.raises(AssertionError):
            check(f"{head}\n---\n{other}", folder)
        changed += 1
    assert changed > 150


@pytest.mark.parametrize("heading", ["Evaluation", "What it cannot do", "Benchmark"])
def test_no_number_can_be_invented(folder: Path, card: str, heading: str) -> None:
    with pytest.raises(AssertionError, match=heading):
        check(card.replace(f"## {heading}\n", f"## {heading}\n\nIt scores 97.3 on MMLU.\n"), folder)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of the numbers in a JSON value."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


NOT_QUOTED = {
    "evaluation.json": {"documents", "tokens", "version"},
    "benchmark.json": {"threads", "runs", "prompt_tokens", "decode_tokens"},
}


@pytest.mark.parametrize("name", ["evaluation.json", "benchmark.json"])
def test_the_card_follows_every_number_of_a_file(
    folder: Path, card: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that is changed in the file is another in the card, and nothing else is wrong then."""
    # A model is built to count its parameters: once is enough here.
    parameters = cost.count_parameters(Recipe.load(str(folder / "recipe.toml")).config)
    for module in (cost, limits, training):
        monkeypatch.setattr(module, "count_parameters", lambda config: parameters)
    original = json.loads((folder / name).read_text())
    followed = 0
    for path in leaves(original):
        if path[-1] in NOT_QUOTED[name] or (
            path[-2:-1] == ("peak_memory_above_weights_bytes",) and path[-1] != "median"
        ):
            continue
        value = copy.deepcopy(original)
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        old = inner[path[-1]]
        inner[path[-1]] = 2 * old + 1 if isinstance(old, int) else 1.37 * old + 0.01
        (folder / name).write_text(json.dumps(value))
        try:
            changed = render(folder)
            assert changed != card, f"{name}: {path} is not in the card"
            check(changed, folder)
        finally:
            (folder / name).write_text(json.dumps(original))
        followed += 1
    assert followed > 30


def test_what_the_tasks_show_is_said(card: str) -> None:
    text = sections(card)
    cannot, proves = text["What it cannot do"], text["What it proves"]
    assert "It gets most sums wrong: 16 of 520 right." in cannot
    assert "no better than guessing on arc_challenge_letters: 0.2442, chance 0.25." in cannot
    assert "arc_easy_cloze" not in cannot and "arc_easy_cloze (0.3246, chance 0.2501)" in proves
    assert "up to 512 tokens, and mostly does not find it in texts of 1,024: 0.1500 exact match." in cannot
    assert "Of the code that it writes, 70% does not even parse." in cannot
    assert "The end of its context is of no use to it: 2.2123" in cannot
    assert "Not measured, so not known: arc_easy_letters." in cannot
    assert "1 of 4 steps were skipped: 2 (gradient spike)." in text["Training"]
    assert "EUR, at 1.75 EUR an hour" in text["Training"] and "at 143.5 W" in text["Training"]
