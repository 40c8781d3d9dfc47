"""`shard data` that is killed at random moments and started again leaves, in the end, the bytes that an undisturbed one
leaves: documents, shards, ledgers, tokenizer.
"""

import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from crashing import Life, differences
from hub_server import Handler, Repository, running
from seven_datasets import hub_files

CLOCK = "clock"
PLACES: dict[str, tuple[str, float]] = {
    "reading": ("data/*/documents/.*.tmp", 0.5),
    "downloading": ("data/*/raw/**/.*.part", 0.3),
    "searching duplicates": ("data/.*-duplicates-*.tmp", 0.2),
    "splitting": ("data/*/heldout.jsonl", 0.1),
    "training the tokenizer": ("tokenizer", 0.3),
    "tokenising": ("data/*/tokens", 0.3),
    "joining": ("data/*/train-*.bin", 0.1),
}
"""Where a moment is looked for: what is there then, and seconds after that within which it lies."""
LONGEST = 3.0
"""Seconds after the start, for a moment that the clock alone chooses. Most of it is the start of Python."""


class DataLife(Life):
    """`shard data` in a run folder. Only the process itself is killed: its workers have to end alone."""

    @property
    def place(self) -> str:
        """What was there when it was killed: the last of the places that it had come to."""
        there = [name for name, (pattern, _) in PLACES.items() if any(self.folder.glob(pattern))]
        return there[-1] if there else "start"


def life_in(folder: Path, arguments: list[str], **environment: str) -> DataLife:
    """Two workers, and a folder that is not there yet."""
    recipe = ["shard-40m-v1", "--workers", "2", *arguments]
    return DataLife(folder, recipe, verb="data", whole_group=False, environment=environment)


@pytest.fixture(scope="session")
def from_mirror(sets: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    mirror = tmp_path_factory.mktemp("mirror")
    for repository, files in hub_files().items():
        for name, content in files.items():
            path = mirror / "datasets" / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return ["--mirror", str(mirror), *sets]


@pytest.fixture(scope="session")
def undisturbed(from_mirror: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    life = life_in(tmp_path_factory.mktemp("undisturbed-data") / "run", from_mirror)
    life.finish()
    return life.folder


@pytest.fixture
def slow_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same files from a server that takes a tenth of a second for each."""
    real = Handler.send_content

    def send_slowly(handler: Handler, content: bytes, until: int | None = None) -> None:
        write, num_bytes = handler.wfile.write, max(1, len(content) // 10)

        def write_slowly(piece: bytes) -> None:
            for start in range(0, len(piece), num_bytes):
                time.sleep(0.01)
                write(piece[start : start + num_bytes])
                handler.wfile.flush()

        monkeypatch.setattr(handler.wfile, "write", write_slowly)
        try:
            real(handler, content, until)
        except ConnectionError:  # the other side was killed
            handler.close_connection = True

    monkeypatch.setattr(Handler, "send_content", send_slowly)
    with running() as server:
        for repository, files in hub_files().items():
            server.repositories[repository] = Repository()
            server.repositories[repository].commit(files)
        yield server.url


def matches(folder: Path, pattern: str) -> set[Path]:
    """The paths of a pattern in a folder that the command works in: one of its folders may go while it is read."""
    try:
        return set(folder.glob(pattern))
    except FileNotFoundError:
        return set()


def kill(life: DataLife, place: str, rng: random.Random) -> bool:
    """At a random moment in a place; False where it came to its end before."""
    if place == CLOCK:
        return life.disturb(lambda: True, rng.uniform(0, LONGEST), [signal.SIGKILL]) is not None
    pattern, longest = PLACES[place]
    before = matches(life.folder, pattern)
    return (
        life.disturb(
            lambda: bool(matches(life.folder, pattern) - before),
            rng.uniform(0, longest),
            [signal.SIGKILL],
        )
        is not None
    )


def kill_and_compare(
    new_life: Callable[[int], DataLife], reference: Path, places: list[str], rng: random.Random, kills_a_life: int
) -> None:
    """Kill at each of the places, the last one first. A life of enough kills is let go on to its end and compared."""
    moments: Counter[str] = Counter()
    lives = count()
    while places:
        life = new_life(next(lives))
        while places and len(life.moments) < kills_a_life and kill(life, places[-1], rng):
            places.pop()
        life.finish()
        moments.update(life.moments)
        assert_same_data(life, reference)
    print(f"{moments.total()} kills in {next(lives)} lives: {dict(moments)}")


def assert_same_data(life: DataLife, reference: Path) -> None:
    found = [what for name in ("data", "tokenizer") for what in differences(life.folder / name, reference / name)]
    assert found == [], life.moments
    left = {path.name for path in life.folder.iterdir()} ^ {path.name for path in reference.iterdir()}
    assert left == set(), life.moments
    stages = json.loads((life.folder / "manifest.json").read_text(encoding="utf-8"))["stages"]
    assert {stage: stages[stage]["status"] for stage in stages} == {"tokenizer": "done", "data": "done"}
    deadline = time.monotonic() + 10
    while alive := members_of(life.groups):
        assert time.monotonic() < deadline, f"processes {alive} go on without their parent, after {life.moments}"
        time.sleep(0.02)


def members_of(groups: list[int]) -> list[int]:
    """The living processes of process groups."""
    if sys.platform != "linux":
        return []
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(group) in groups and state != "Z":
            found.append(int(path.parent.name))
    return found


def test_data_that_is_killed_again_and_again_ends_as_the_undisturbed_one(
    undisturbed: Path, from_mirror: list[str], tmp_path: Path, rng: random.Random
) -> None:
    places = ["joining", "tokenising", "searching duplicates", "reading"]
    kill_and_compare(lambda i: life_in(tmp_path / f"run-{i}", from_mirror), undisturbed, places, rng, kills_a_life=4)


@pytest.mark.slow
def test_data_that_is_killed_anywhere_ends_as_the_undisturbed_one(
    undisturbed: Path, from_mirror: list[str], tmp_path: Path, rng: random.Random
) -> None:
    places = [place for place in PLACES if place != "downloading"] * 4 + [CLOCK] * 6
    rng.shuffle(places)
    kill_and_compare(lambda i: life_in(tmp_path / f"run-{i}", from_mirror), undisturbed, places, rng, kills_a_life=3)


@pytest.mark.slow
def test_downloads_that_are_killed_end_as_the_undisturbed_ones(
    slow_hub: str, sets: list[str], tmp_path: Path, rng: random.Random
) -> None:
    def life(name: object) -> DataLife:
        return life_in(tmp_path / f"run-{name}", sets, HF_ENDPOINT=slow_hub)

    reference = life("undisturbed")
    reference.finish()
    assert not list(reference.folder.rglob("raw"))
    kill_and_compare(life, reference.folder, ["downloading"] * 6 + ["reading"] * 2, rng, kills_a_life=4)
