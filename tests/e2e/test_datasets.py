"""The reference recipe on a small mirror of all its seven datasets: from files in the hub's layout to a release."""

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shard.cli import main
from shard.data.adapters import KNOWN
from shard.data.documents import HELDOUT, TRAIN, read_documents
from shard.recipe import Recipe

SOURCES = ("fineweb-edu", "open-web-math", "numina-math", "meta-math", "arxiv", "cosmopedia", "ai2-arc")
QUESTION = "Which of these seven very old rivers carries the most salt into the northern sea each winter?"
SHORT_QUESTION, SHORT_CHOICES = "What melts first?", ["ice cream", "an iron nail", "window glass", "brick"]
_WORDS = ["".join(random.Random(i).choices("abcdefghijklmnopqrstuvwxyz", k=2 + i % 6)) for i in range(400)]
_LITTLE = ["the", "of", "and", "to", "that", "with", "is", "was", "are", "this"]


def prose(name: str, count: int, num_words: int = 60) -> list[str]:
    """Made-up words between English ones."""
    rng = random.Random(name)
    return [
        " ".join(rng.choice(_LITTLE if i % 3 == 0 else _WORDS) for i in range(num_words)).capitalize() + "."
        for _ in range(count)
    ]


def altered(text: str) -> str:
    return text.rpartition(" ")[0] + " otherwise."


def arc_row(number: int, question: str, choices: list[str], answer: str = "B") -> dict[str, Any]:
    return {
        "id": f"Mercury_{number}",
        "question": question,
        "choices": {"text": choices, "label": ["A", "B", "C", "D"]},
        "answerKey": answer,
    }


def rows_of() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The rows of each file of each repository, with the columns that they have on the hub."""
    web, math, book = prose("web", 40), prose("math", 30), prose("book", 30)
    asked = [f"{text} {QUESTION.upper()} {text}" for text in prose("asked", 3)]
    short = " ".join([SHORT_QUESTION, *SHORT_CHOICES])

    def page(text: str | None) -> dict[str, Any]:
        return {"text": text, "id": "<urn:uuid:0>", "dump": "CC-MAIN-2024-10", "url": "https://a.example", "score": 3.1}

    return {
        "HuggingFaceFW/fineweb-edu": {
            "sample/10BT/000_00000.parquet": [page(text) for text in [*web[:20], asked[0], web[3], None]],
            "sample/10BT/001_00000.parquet": [page(text) for text in [*web[20:], altered(web[4]), "Too short."]],
            "data/CC-MAIN-2024-10/train-00000.parquet": [page("not read: this is not of the sample")] * 3,
        },
        "open-web-math/open-web-math": {
            "data/train-00000-of-00001-ab.parquet": [
                {"url": "https://b.example", "text": text, "date": "2024-01-01", "metadata": "{}"}
                for text in [*math, web[5], altered(web[25])]
            ]
        },
        "AI-MO/NuminaMath-CoT": {
            "data/train-00000-of-00001.parquet": [
                {"source": "olympiads", "problem": problem, "solution": solution, "messages": [{"role": "user"}]}
                for problem, solution in [*zip(prose("p", 30, 25), prose("s", 30, 25), strict=True), (QUESTION, "No.")]
            ],
            "data/test-00000-of-00001.parquet": [{"problem": "not read", "solution": "not read"}],
        },
        "meta-math/MetaMathQA": {
            "MetaMathQA-395K.json": [
                {"query": query, "response": response, "type": "GSM_Rephrased", "original_question": "not read"}
                for query, response in [*zip(prose("q", 30, 25), prose("r", 30, 25), strict=True), (short, "ice cream")]
            ]
        },
        "togethercomputer/RedPajama-Data-1T-Sample": {
            "arxiv_sample.jsonl": [
                {"text": f"\\section{{One}}\n{text}", "meta": "{}"} for text in [*prose("arxiv", 30), asked[1]]
            ],
            "book_sample.jsonl": [{"text": "not read", "meta": "{}"}],
        },
        "HuggingFaceTB/cosmopedia": {
            f"data/{name}/train-00000-of-00001.parquet": [
                {"prompt": "not read", "text": text, "token_length": 5, "audience": "general", "format": "a story"}
                for text in texts
            ]
            for name, texts in {"stories": book[:15], "wikihow": [*book[15:], altered(book[0]), web[6]]}.items()
        },
        "allenai/ai2_arc": {
            "ARC-Easy/train-00000-of-00001.parquet": [
                arc_row(i, question, prose(f"choices {i}", 4, 3)) for i, question in enumerate(prose("arc", 30, 15))
            ]
            + [arc_row(99, QUESTION, ["one", "two", "three", "four"]), arc_row(100, "Which?", ["a"] * 4, "E")],
            "ARC-Easy/validation-00000-of-00001.parquet": [
                arc_row(0, QUESTION, ["one", "two", "three", "four"]),
                arc_row(1, SHORT_QUESTION, SHORT_CHOICES),
            ],
        },
    }


DROPPED = {
    "fineweb-edu": {"broken row: null": 1, "contaminated": 1, "short": 1, "duplicate": 1, "near duplicate": 1},
    "open-web-math": {"duplicate": 1, "near duplicate": 1},
    "numina-math": {"contaminated": 1},
    "meta-math": {"contaminated": 1},
    "arxiv": {"contaminated": 1},
    "cosmopedia": {"near duplicate": 1, "duplicate": 1},
    "ai2-arc": {"contaminated": 1, "broken row: no answer": 1},
}
"""What was planted."""


def build_mirror(mirror: Path) -> None:
    for repository, files in rows_of().items():
        for name, rows in files.items():
            path = mirror / "datasets" / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            match path.suffix:
                case ".parquet":
                    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)
                case ".json":
                    path.write_text(json.dumps(rows))
                case _:
                    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int | str | None
    out: str
    err: str


def call(*arguments: object) -> Outcome:
    """`shard ARGUMENTS`, where the fixture that belongs to one test cannot be used."""
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = exit_.code
    return Outcome(code or 0, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Made:
    """A run whose data are made, and how that went."""

    run: Path
    arguments: list[object]
    missing: Outcome
    """Of the start at which a repository was not in the mirror."""
    done: Outcome


@pytest.fixture(scope="module")
def made(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two starts of `shard data`: a dataset is missing from the mirror at first, and the second is not told of the
    mirror any more. Nobody else can be asked.
    """
    folder = tmp_path_factory.mktemp("datasets")
    mirror, run = folder / "mirror", folder / "run"
    build_mirror(mirror)
    sets = tiny[tiny.index("--set") :]
    arguments = [
        "shard-40m-v1",
        "--out",
        run,
        *sets,
        "--set",
        "data.heldout_bytes=300",
        "--set",
        "data.shard_bytes=4096",
    ]
    cosmopedia = mirror / "datasets/HuggingFaceTB/cosmopedia"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        cosmopedia.rename(folder / "elsewhere")
        missing = call("data", *arguments, "--mirror", mirror, "--workers", 1)
        (folder / "elsewhere").rename(cosmopedia)
        done = call("data", *arguments, "--workers", 1)
    return Made(run, arguments, missing, done)


def test_the_recipe_reads_what_the_mirror_has() -> None:
    """The seven datasets, each known with its files and columns."""
    sources = Recipe.load("shard-40m-v1").sources
    assert tuple(sources) == SOURCES
    assert {source.repository for source in sources.values()} == set(KNOWN) == set(rows_of())


def test_a_dataset_that_the_mirror_lacks(made: Made) -> None:
    assert made.missing.code == 1
    *before, line = made.missing.err.strip().splitlines()
    assert [words.partition(",")[0] for words in before] == ["data: reading fineweb-edu"]
    assert line.startswith("shard: the mirror ")
    assert "has no datasets/HuggingFaceTB/cosmopedia, only " in line and "put its files there" in line
    assert "Traceback" not in made.missing.out


def test_what_became_of_every_row(made: Made) -> None:
    """And the mirror was remembered: the second start was not told of it."""
    assert made.done.code == 0, made.done.err
    rows = rows_of()
    for name, source in Recipe.load("shard-40m-v1").sources.items():
        folder = made.run / "data" / name
        ledger = json.loads((folder / "documents.json").read_text())
        read = {file: table for file, table in rows[source.repository].items() if file in ledger["units"]}
        assert sorted(read) == ledger["units"]
        assert ledger["documents_read"] == sum(map(len, read.values()))
        assert ledger["dropped"] == DROPPED[name], name
        assert ledger["documents_read"] == sum(ledger["documents"].values()) + sum(ledger["dropped"].values())
        assert ledger["documents"]["train"] > 20 and ledger["bytes"]["heldout"] >= 300
        kept = [text for which in (TRAIN, HELDOUT) for text in read_documents(folder, which)]
        assert len(kept) == sum(ledger["documents"].values()) == len(set(kept))
        assert not any("not read" in text or QUESTION.lower() in text.lower() for text in kept)
        assert set(ledger["examples"]) == {reason for reason in DROPPED[name] if not reason.startswith("broken row")}
        assert ledger["origin"] == {"repository": source.repository, "revision": "mirror"}
        assert ledger["license"] == source.license != "unknown"
        assert ledger["evaluation_sets"] == [
            "allenai/ai2_arc/ARC-Easy/validation-00000-of-00001.parquet (mirror)",
        ]
        tokens = json.loads((folder / "tokens.json").read_text())
        assert (tokens["documents"], tokens["bytes"]) == (ledger["documents"]["train"], ledger["bytes"]["train"])
        assert not (folder / "tokens").exists() and not (folder / "raw").exists()


def test_rows_become_documents_as_the_datasets_want_it(made: Made) -> None:
    texts = {name: next(read_documents(made.run / "data" / name, TRAIN)) for name in SOURCES}
    assert texts["numina-math"].startswith("Problem: ") and "\n\nSolution: " in texts["numina-math"]
    assert texts["meta-math"].startswith("Question: ") and "\n\nAnswer: " in texts["meta-math"]
    assert texts["arxiv"].startswith("\\section{One}\n")
    lines = texts["ai2-arc"].splitlines()
    assert [line[:3] for line in lines[2:6]] == ["A. ", "B. ", "C. ", "D. "] and lines[-1] == f"Answer: {lines[3]}"


def test_a_second_start_skips_and_then_it_runs_to_a_release(
    made: Made, shard: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made.run, run)
    arguments = [run if argument == made.run else argument for argument in made.arguments]
    times = {path: path.stat().st_mtime_ns for path in (run / "data").rglob("*")}
    assert len(times) > 50
    again = shard("data", *arguments)
    assert again.code == 0 and "data: done already" in again.out + again.err
    finished = shard("run", *arguments)
    assert finished.code == 0, finished.err
    now = {path: path.stat().st_mtime_ns for path in times}
    assert now == times
    assert shard("verify", run).code == 0
    card = (run / "release" / "README.md").read_text()
    for name, source in Recipe.load("shard-40m-v1").sources.items():
        assert name in card and source.license in card
