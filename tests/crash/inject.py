"""Run by test_injection.py: what each piece of code that writes leaves behind when any of its operations fails.

Prints {scenario: {"operations": [...], "failures": [...]}}. One process, forked for every failure: torch is imported
once. Nothing here starts a thread before the last fork.
"""

import hashlib
import json
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from failing import FAILED_AS_ASKED, WAYS, Disk, forked, operations_of

from shard.environment import set_process_defaults

set_process_defaults()

import torch  # noqa: E402

from shard.data.shards import LEDGER, BulkEncoder, TokenStream, write_shards  # noqa: E402
from shard.errors import ShardError  # noqa: E402
from shard.files import atomic_open  # noqa: E402
from shard.recipe import Recipe  # noqa: E402
from shard.run import Run  # noqa: E402
from shard.training.checkpoint import load_newest, save_checkpoint  # noqa: E402
from shard.training.metrics import Journal, read_jsonl  # noqa: E402

torch.set_num_threads(1)


@dataclass(frozen=True)
class Scenario:
    """A piece of code that writes, and what must hold after it was cut short."""

    prepare: Callable[[Path], object]
    """Make what is there before."""
    action: Callable[[Path], object]
    """What is cut short."""
    problem: Callable[[Path], str | None]
    """What is wrong with the folder after that, in words."""
    finished: Callable[[Path], str | None]
    """What is wrong after the action was done again."""


# A checkpoint.


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((64, 32), value), "b": torch.full((5,), value).bfloat16(), "s": torch.tensor(value)}


def save(folder: Path, step: int, value: float) -> None:
    save_checkpoint(folder, step, tensors(value), tensors(-value), {"tokens": step, "value": value})


def checkpoint_problem(folder: Path, allowed: dict[float, int]) -> str | None:
    """`allowed`: value -> step of the checkpoints that may be the newest one."""
    warnings: list[str] = []
    newest = load_newest(folder, warnings.append)
    if newest is None:
        return f"no checkpoint is left: {sorted(path.name for path in folder.iterdir())}, {warnings}"
    value = newest.state["value"]
    if allowed.get(value) != newest.step:
        return f"loads step {newest.step} with value {value}"
    for found, expected in ((newest.model, tensors(value)), (newest.optimizer, tensors(-value))):
        if found.keys() != expected.keys() or not all(torch.equal(found[name], expected[name]) for name in found):
            return f"step {newest.step} loads with wrong tensors"
    return f"warns: {warnings}" if warnings else None


def checkpoint_scenario(step: int) -> Scenario:
    """Save `step` where step 1 is there, whose value is 1.0; step 1 is thus replaced by another of the same step."""
    old, new = {1.0: 1}, {2.0: step}
    return Scenario(
        prepare=lambda folder: save(folder, 1, 1.0),
        action=lambda folder: save(folder, step, 2.0),
        problem=lambda folder: checkpoint_problem(folder, old | new),
        finished=lambda folder: checkpoint_problem(folder, new),
    )


# The token shards of a source.

TEXTS = [f"document {i}: " + "lorem ipsum " * (i % 7) for i in range(60)]


def write_tokens(folder: Path, tokenizer: Path, texts: list[str]) -> None:
    write_shards(texts, BulkEncoder(tokenizer), 300, 0, 512, folder)


def tokens_problem(folder: Path, allowed: list[dict[str, bytes]]) -> str | None:
    if not (folder / LEDGER).exists():
        return None
    try:
        TokenStream.open(folder)
    except ShardError as error:
        return f"the ledger is there and its shards are not: {error}"
    return None if visible(folder) in allowed else "the ledger is there beside other shards"


def visible(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and ".tmp" not in path.name}


def tokens_scenario(work: Path) -> Scenario:
    tokenizer = work / "tokenizer.json"
    texts = {"old": TEXTS[:40], "new": TEXTS}
    for name, chosen in texts.items():
        forked(partial(write_tokens, work / name, tokenizer, chosen))
    old, new = visible(work / "old"), visible(work / "new")
    assert len(new) > 3
    return Scenario(
        prepare=lambda folder: write_tokens(folder, tokenizer, texts["old"]),
        action=lambda folder: write_tokens(folder, tokenizer, texts["new"]),
        problem=lambda folder: tokens_problem(folder, [old, new]),
        finished=lambda folder: None if visible(folder) == new else "written again, the bytes are others",
    )


# Smaller files.


def write_file(folder: Path, text: str) -> None:
    with atomic_open(folder / "file.txt", "w") as file:
        for word in text.split():
            file.write(word)


def file_problem(folder: Path, allowed: set[str]) -> str | None:
    text = (folder / "file.txt").read_text(encoding="utf-8")
    return None if text in allowed else f"holds {text!r}"


FILE = Scenario(
    prepare=lambda folder: write_file(folder, "o l d"),
    action=lambda folder: write_file(folder, "n e w"),
    problem=lambda folder: file_problem(folder, {"old", "new"}),
    finished=lambda folder: file_problem(folder, {"new"}),
)

RECIPE = Recipe.load("quickstart", [])


def open_run(folder: Path, **record: str) -> dict[str, Any]:
    """Open the run in a folder, as every verb does; with `record`, mark a stage. The stages of its manifest."""
    with Run.open(folder / "run", RECIPE) as run:
        for stage, status in record.items():
            run.record(stage, status=status)
        stages: dict[str, Any] = run.manifest["stages"]
    return stages


def run_problem(folder: Path, done: set[str]) -> str | None:
    stages = open_run(folder)
    return None if {name for name in stages if stages[name]["status"] == "done"} >= done else f"holds only {stages}"


NEW_RUN = Scenario(
    prepare=lambda folder: folder.mkdir(),
    action=open_run,
    problem=lambda folder: run_problem(folder, set()),
    finished=lambda folder: run_problem(folder, set()),
)
MANIFEST = Scenario(
    prepare=lambda folder: open_run(folder, tokenizer="done"),
    action=lambda folder: open_run(folder, data="done"),
    problem=lambda folder: run_problem(folder, {"tokenizer"}),
    finished=lambda folder: run_problem(folder, {"tokenizer", "data"}),
)


def journal_with(folder: Path, num_steps: int) -> None:
    journal = Journal(folder)
    for step in range(1, num_steps + 1):
        journal.metric(step=step, loss=1 / step)


def journal_problem(folder: Path, counts: set[int]) -> str | None:
    steps = [line["step"] for line in read_jsonl(folder / "metrics.jsonl")]
    return None if len(steps) in counts and steps == list(range(1, len(steps) + 1)) else f"metrics hold steps {steps}"


JOURNAL = Scenario(  # cut back to step 3, as after a kill: the steps before are nowhere else
    prepare=lambda folder: journal_with(folder, 5),
    action=lambda folder: Journal(folder).resume(3),
    problem=lambda folder: journal_problem(folder, {3, 4, 5}),
    finished=lambda folder: journal_problem(folder, {3}),
)


# Every way to fail, at every operation.


def leftovers(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if ".tmp" in path.name)


def told(check: Callable[[Path], str | None], folder: Path) -> str | None:
    """What a check says; an exception of the code under test is something wrong, too."""
    try:
        return check(folder)
    except Exception as error:
        return f"raises {type(error).__name__}: {error}"


def what_is_there(folder: Path) -> str:
    """A hash of all names and bytes."""
    parts = [(str(path), path.read_bytes() if path.is_file() else b"") for path in sorted(folder.rglob("*"))]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def examine(scenario: Scenario, work: Path) -> dict[str, Any]:
    """Let every operation of a scenario fail in every way."""
    before, folder = work / "before", work / "folder"
    assert forked(lambda: scenario.prepare(before)) == 0
    shutil.copytree(before, folder)
    disk = operations_of(lambda: scenario.action(folder), work / "note")
    failures = [] if (wrong := told(scenario.finished, folder)) is None else [f"undisturbed: {wrong}"]
    judged: dict[str, str | None] = {}  # many ways to fail leave the same behind

    def cut_short(way: str, number: int) -> None:
        Disk(way, number).install()
        scenario.action(folder)

    def judge() -> str | None:
        if (wrong := told(scenario.problem, folder)) is not None:
            return wrong
        if (code := forked(lambda: scenario.action(folder))) != 0:
            return f"doing it again fails with {code}"
        if (wrong := told(scenario.finished, folder)) is not None:
            return f"after doing it again: {wrong}"
        return f"left over after doing it again: {leftovers(folder)}" if leftovers(folder) else None

    for way in WAYS:
        for number in filter(partial(disk.applies, way), range(len(disk.operations))):
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
            code = forked(partial(cut_short, way, number))
            # An error after the rename (the flush of the folder's names) may also be taken as a warning.
            expected = (FAILED_AS_ASKED, 0) if way == "full" else (-signal.SIGKILL,)
            found = [] if code in expected else [f"the exit code is {code}"]
            if way == "full" and leftovers(folder):
                found.append(f"left over: {leftovers(folder)}")
            if (state := what_is_there(folder)) not in judged:
                judged[state] = judge()
            if (wrong := judged[state]) is not None:
                found.append(wrong)
            name, what = disk.operations[number]
            failures += [f"{way} at {number}, {name} {Path(what).name}: {wrong}" for wrong in found]
    return {"operations": [f"{name} {what}" for name, what in disk.operations], "failures": failures}


def main(work: Path) -> None:
    scenarios = {
        "checkpoint": checkpoint_scenario(2),
        "replaced checkpoint": checkpoint_scenario(1),
        "shards": tokens_scenario(work),
        "file": FILE,
        "new run": NEW_RUN,
        "manifest": MANIFEST,
        "journal": JOURNAL,
    }
    results = {}
    for name, scenario in scenarios.items():
        (work / "at" / name).mkdir(parents=True)
        results[name] = examine(scenario, work / "at" / name)
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
