"""One unit: what is kept of it, what is counted, and when it is done again."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from corpora import (
    QUESTION,
    altered,
    break_parquet,
    content_of,
    hub_source,
    moments,
    numbered,
    prose,
    text_source,
    write_lines,
    write_parquet,
)
from hub_server import HubServer, Repository, running

from shard.data import units
from shard.data.adapters import BrokenFile
from shard.data.exact_duplicates import exact_hashes
from shard.data.inventory import Inventory
from shard.data.near_duplicates import band_hashes, choose_bands, signatures
from shard.data.settings import AnySource, CleanSettings, DataSettings, GeneratedSource, HubSource, TextSource
from shard.data.units import RAW, Unit, UnitLedger, position, prepare_unit
from shard.data.words import word_hashes
from shard.errors import ShardError


def units_of(source: AnySource, folder: Path, mirror: Path | None = None, **settings: Any) -> list[Unit]:
    """The units of a source, below folder/data."""
    return Inventory.take({"mine": source}, DataSettings(**settings), 0, folder / "data", mirror).units["mine"]


def texts_in(unit: Unit) -> list[str]:
    return pq.read_table(unit.path, columns=["text"]).column(0).to_pylist()


def add_up(ledger: UnitLedger) -> None:
    assert ledger.documents_read == ledger.documents + sum(ledger.dropped.values())


class Reads(list[str]):
    """The files that were read."""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    seen, real = Reads(), units.read_text_file

    def read(file: Path, name: str, *arguments: Any) -> Iterator[Any]:
        seen.append(name)
        return real(file, name, *arguments)

    monkeypatch.setattr(units, "read_text_file", read)
    return seen


# What is kept


def test_what_is_written_of_each_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a document in the middle of a batch is dropped, and wherever batches end."""
    texts = prose("text", 23)
    given = [*texts[:9], f"{QUESTION} indeed", *texts[9:12], "", *texts[12:]]
    questions = write_lines(tmp_path / "questions.jsonl", [{"question": QUESTION}])
    groups = [f"lines.jsonl#{given.index(text) + 1}" for text in texts]
    bands = choose_bands(0.8)
    source = text_source(tmp_path / "in", given)
    for batch, size in ((1000, 2**22), (7, 2**22), (1, 2**22), (1000, 1200)):
        monkeypatch.setattr(units, "BATCH_DOCUMENTS", batch)
        monkeypatch.setattr(units, "BATCH_BYTES", size)
        (unit,) = units_of(source, tmp_path / f"{batch} {size}", evaluation_sets=(str(questions),))
        ledger = prepare_unit(unit)
        table = pq.read_table(unit.path)
        columns = {name: np.array(table.column(name).to_pylist(), np.uint64) for name in ("position", "exact", "bands")}
        assert table.column("text").to_pylist() == texts
        assert table.column("bytes").to_pylist() == [len(text.encode()) for text in texts]
        assert columns["position"].tolist() == [position(0, group) for group in groups]
        assert np.array_equal(columns["exact"], exact_hashes(texts))
        assert np.array_equal(columns["bands"], band_hashes(signatures(word_hashes(texts)), bands))
        assert (ledger.documents, ledger.bytes) == (23, sum(len(text.encode()) for text in texts))
        assert ledger.dropped == {"contaminated": 1, "empty": 1}


def test_batches_are_bounded_by_documents_and_by_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (unit,) = units_of(text_source(tmp_path / "in", ["x y " * 25 + f"{i}" for i in range(20)], clean="off"), tmp_path)
    for batch, size, expected in ((6, 2**22, [6, 6, 6, 2]), (1000, 300, [3] * 6 + [2])):
        monkeypatch.setattr(units, "BATCH_DOCUMENTS", batch)
        monkeypatch.setattr(units, "BATCH_BYTES", size)
        unit.path.with_suffix(".json").unlink(missing_ok=True)
        prepare_unit(unit)
        metadata = pq.ParquetFile(unit.path).metadata
        assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == expected


def test_every_reason_is_counted_with_its_first_example(tmp_path: Path) -> None:
    questions = write_lines(tmp_path / "questions.jsonl", [{"question": "other words"}, {"question": QUESTION}])
    kept = [f"{text} the of and to" for text in prose("text", 4)]
    dropped = {
        "empty": ["", " \n"],
        "short": ["too short", "as short"],
        "control": ["\ufffd" * 99],
        "long lines": ["QUJD" * 1000],
        "symbols": ["<>!$%&/()=?" * 10],
        "repetition": ["the same line\n" * 50],
        "language": ["слова другого языка " + " ".join(f"слово{i}" for i in range(50))],
        "contaminated": [f"{text} {QUESTION.replace(' ', chr(10))} {text}" for text in ("x", "y")],
    }
    given = [*kept[:2], *(text for texts in dropped.values() for text in texts), *kept[2:]]
    source = text_source(tmp_path / "in", given, clean=CleanSettings(language="en", max_ngram_share=None))
    (unit,) = units_of(source, tmp_path, evaluation_sets=(str(questions),))
    ledger = prepare_unit(unit)
    assert ledger.dropped == {reason: len(texts) for reason, texts in dropped.items()}
    origin = "questions.jsonl#2: "
    assert ledger.examples == {
        reason: ((origin if reason == "contaminated" else "") + texts[0])[:200] for reason, texts in dropped.items()
    }
    assert texts_in(unit) == kept
    assert ledger.documents_read == len(given) and ledger.bytes_read == sum(len(text.encode()) for text in given)
    add_up(ledger)


def test_contamination_is_looked_for_in_the_cleaned_text(tmp_path: Path) -> None:
    questions = write_lines(tmp_path / "questions.jsonl", [{"question": QUESTION}])
    hidden = "\x00".join(QUESTION[i : i + 40] for i in range(0, len(QUESTION), 40)) + " and more of it" * 3
    clean = CleanSettings(min_characters=1, max_control_share=0.5)
    source = text_source(tmp_path / "in", [hidden, "clean"], clean=clean)
    (unit,) = units_of(source, tmp_path, evaluation_sets=(str(questions),))
    assert prepare_unit(unit).dropped == {"contaminated": 1}
    assert texts_in(unit) == ["clean"]


def test_a_unit_of_which_nothing_is_kept(tmp_path: Path) -> None:
    (unit,) = units_of(text_source(tmp_path / "in", ["", " "]), tmp_path)
    ledger = prepare_unit(unit)
    assert (ledger.documents_read, ledger.documents, ledger.dropped) == (2, 0, {"empty": 2})
    assert texts_in(unit) == []


def test_generated_problems_are_one_unit(tmp_path: Path) -> None:
    (unit,) = units_of(GeneratedSource(kind="generated", max_bytes=3000), tmp_path)
    ledger = prepare_unit(unit)
    *texts, last = texts_in(unit)
    assert ledger.documents == len(texts) + 1 > 5
    assert ledger.bytes - len(last.encode()) < 3000 <= ledger.bytes  # what is too much is dropped with all limits
    add_up(ledger)


# Done, and done again


def test_a_done_unit_is_not_read_again(tmp_path: Path, reads: Reads) -> None:
    (unit,) = units_of(text_source(tmp_path / "in", [*numbered("text", 9), ""]), tmp_path)
    ledger = prepare_unit(unit)
    before = {path: path.stat().st_mtime_ns for path in unit.path.parent.iterdir()}
    assert reads == ["lines.jsonl"] and len(before) == 2
    again = prepare_unit(unit)
    assert again == ledger and again.dropped["never"] == 0
    assert reads == ["lines.jsonl"]
    assert {path: path.stat().st_mtime_ns for path in unit.path.parent.iterdir()} == before


@pytest.mark.parametrize(
    "change",
    [
        {"near_duplicate_threshold": 0.7},
        {"on_broken_file": "skip"},
        {"evaluation_sets": ("questions.jsonl",)},
        {"clean": CleanSettings(min_characters=15)},
        {"clean": "off"},
        {"max_documents": 3},
    ],
    ids=str,
)
def test_a_unit_of_other_settings_is_done_again(
    change: dict[str, Any], tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "questions.jsonl", [{"question": QUESTION}])
    texts = [*numbered("text", 12), QUESTION, "\x01\x02\x03"]
    prepare_unit(units_of(text_source(tmp_path / "in", texts), tmp_path)[0])
    settings = {key: change[key] for key in change if key in DataSettings.model_fields}
    options = {key: change[key] for key in change if key not in settings}
    source = TextSource(kind="text", path=str(tmp_path / "in"), **options)
    ledger = prepare_unit(units_of(source, tmp_path, **settings)[0])
    assert len(reads) == 2
    fresh = prepare_unit(units_of(source, tmp_path / "fresh", **settings)[0])
    assert ledger == fresh and content_of(tmp_path / "data") == content_of(tmp_path / "fresh" / "data")


def test_a_unit_is_done_again_when_its_files_change_or_its_questions(tmp_path: Path, reads: Reads) -> None:
    source = text_source(tmp_path / "in", texts := numbered("text", 9))
    questions = write_lines(tmp_path / "questions.jsonl", [{"question": QUESTION}])
    settings = {"evaluation_sets": (str(questions),)}
    (unit,) = units_of(source, tmp_path, **settings)
    prepare_unit(unit)

    text_source(tmp_path / "in", [*texts, "more"])  # of another size
    prepare_unit(unit)
    assert texts_in(unit) == [*texts, "more"]

    lines = text_source(tmp_path / "in", [*texts, "MORE"]).path + "/lines.jsonl"  # of this size, later
    os.utime(lines, ns=(1, 1))
    prepare_unit(unit)
    assert texts_in(unit) == [*texts, "MORE"]

    write_lines(questions, [{"question": texts[2]}])
    (unit,) = units_of(source, tmp_path, **settings)
    prepare_unit(unit)
    assert texts_in(unit) == [*texts[:2], *texts[3:], "MORE"]

    prepare_unit(replace(unit, seed=1))
    assert len(reads) == 5
    prepare_unit(replace(unit, seed=1, settings=unit.settings.model_copy(update={"heldout_bytes": 7})))  # not of a unit
    assert len(reads) == 5


@pytest.mark.parametrize("gone", [".json", ".parquet"])
def test_a_unit_whose_file_is_gone_is_done_again(gone: str, tmp_path: Path, reads: Reads) -> None:
    (unit,) = units_of(text_source(tmp_path / "in", numbered("text", 9)), tmp_path)
    prepare_unit(unit)
    before = content_of(tmp_path / "data")
    unit.path.with_suffix(gone).unlink()
    prepare_unit(unit)
    assert content_of(tmp_path / "data") == before and len(reads) == 2


def test_a_unit_whose_reading_fails_is_not_done(tmp_path: Path) -> None:
    """And the ledger of an earlier one is gone, since its documents are no more what is asked for."""
    source = text_source(tmp_path / "in", numbered("text", 9))
    (unit,) = units_of(source, tmp_path)
    prepare_unit(unit)
    with (tmp_path / "in" / "lines.jsonl").open("a") as file:
        file.write("{")
    with pytest.raises(ShardError, match=r"lines\.jsonl, line 10: not JSON"):
        prepare_unit(unit)
    assert [path.name for path in unit.path.parent.iterdir()] == ["00000.parquet"]


# Broken files and rows

SKIP = {"on_broken_file": "skip"}


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.json"])
def test_a_broken_file_stops_or_is_skipped_from_there(name: str, tmp_path: Path) -> None:
    texts = prose("text", 25)
    source = hub_source(tmp_path, {name: texts})
    path = tmp_path / "datasets/someone/some" / name
    match path.suffix:
        case ".parquet":
            break_parquet(path, texts)
        case ".json":
            path.write_text('[{"text": "' + texts[0] + '"}, {"text": "' + texts[1] + '"}, {"te')
        case ".jsonl":
            path = path.rename(path.with_name("a.jsonl.gz"))  # that it is none shows at its start
            source = source.model_copy(update={"files": "*.gz"})
    with pytest.raises(BrokenFile) as caught:
        prepare_unit(units_of(source, tmp_path, tmp_path)[0])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert content_of(tmp_path / "data" / "mine" / "documents") == {}
    (unit,) = units_of(source, tmp_path, tmp_path, **SKIP)
    ledger = prepare_unit(unit)
    kept, lost = {".parquet": (10, 15), ".json": (2, 0), ".gz": (0, 0)}[path.suffix]
    assert texts_in(unit) == texts[:kept]
    assert (ledger.documents, ledger.dropped["unreadable"]) == (kept, lost)
    assert ledger.broken == [str(caught.value).replace(str(path), unit.name)]  # the same wherever the file lies
    add_up(ledger)


def test_a_truncated_parquet_file_gives_nothing(tmp_path: Path) -> None:
    """Its columns are listed at its end: without that, it cannot even be said how many rows it had."""
    source = hub_source(tmp_path, {"a.parquet": prose("text", 25), "b.parquet": prose("more", 5)})
    path = tmp_path / "datasets/someone/some/a.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BrokenFile, match=r"a\.parquet is broken after row 0, what follows cannot be read"):
        prepare_unit(units_of(source, tmp_path, tmp_path)[0])
    first, second = map(prepare_unit, units_of(source, tmp_path, tmp_path, **SKIP))
    assert (first.documents_read, first.documents, len(first.broken)) == (0, 0, 1)
    assert (second.documents_read, second.documents, second.broken) == (5, 5, [])
    add_up(first)


def test_broken_rows_are_counted_by_reason(tmp_path: Path) -> None:
    texts = prose("text", 5)
    rows: list[Any] = [{"text": texts[0]}, {"text": None}, [1], {"text": 3}, {"text": texts[1]}, {"text": None}]
    source = hub_source(tmp_path, {"a.jsonl": []})
    write_lines(tmp_path / "datasets/someone/some/a.jsonl", rows)
    (unit,) = units_of(source, tmp_path, tmp_path)
    ledger = prepare_unit(unit)
    assert ledger.dropped == {"broken row: null": 2, "broken row: not an object": 1, "broken row: not a string": 1}
    assert len(ledger.broken) == 4 and ledger.broken[0].endswith("a.jsonl, row 2: column 'text' is null")
    assert texts_in(unit) == texts[:2] and ledger.documents_read == 6
    add_up(ledger)
    positions = pq.read_table(unit.path, columns=["position"]).column(0).to_pylist()
    assert positions == [position(0, "a.jsonl#1"), position(0, "a.jsonl#5")]  # rows keep their numbers


# Downloads


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub with two files of documents, one of which breaks."""
    good = write_parquet(tmp_path / "made/good.parquet", prose("good", 20))
    break_parquet(tmp_path / "made/bad.parquet", prose("bad", 20))
    with running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
        repository = server.repositories["someone/some"] = Repository()
        bad = (tmp_path / "made/bad.parquet").read_bytes()
        repository.commit({"data/good.parquet": good.read_bytes(), "other/bad.parquet": bad})
        yield server


def remote(files: str = "data/*.parquet") -> HubSource:
    return HubSource(kind="hub", repository="someone/some", files=files, columns=("text",))


@pytest.mark.parametrize("keep_raw", [False, True])
def test_a_download_goes_when_its_documents_are_kept(keep_raw: bool, server: HubServer, tmp_path: Path) -> None:
    (unit,) = units_of(remote(), tmp_path, evaluation_sets=(), keep_raw=keep_raw)
    ledger = prepare_unit(unit)
    assert ledger.documents == 20 and len(unit.revision) == 40
    raw = content_of(tmp_path / "data/mine" / RAW)
    assert raw == ({"data/good.parquet": (tmp_path / "made/good.parquet").read_bytes()} if keep_raw else {})
    prepare_unit(unit)
    assert len(server.content_requests()) == 1
    prepare_unit(replace(unit, seed=1))
    assert len(server.content_requests()) == 2 - keep_raw


def test_a_download_that_breaks_stays(server: HubServer, tmp_path: Path) -> None:
    """It is what the message names; with "skip" it goes as others do."""
    with pytest.raises(BrokenFile, match=r"raw/other/bad\.parquet is broken after row 10, 10 of 20 rows"):
        prepare_unit(units_of(remote("other/*"), tmp_path, evaluation_sets=())[0])
    assert list(content_of(tmp_path / "data/mine" / RAW)) == ["other/bad.parquet"]
    assert prepare_unit(units_of(remote("other/*"), tmp_path, evaluation_sets=(), **SKIP)[0]).documents == 10
    assert content_of(tmp_path / "data/mine" / RAW) == {}
    assert len(server.content_requests()) == 1


def test_a_unit_that_was_killed_is_done_again_with_the_same_bytes(server: HubServer, tmp_path: Path) -> None:
    """At every rename and removal, that of the download included."""
    (whole,) = units_of(remote(), tmp_path / "whole", evaluation_sets=())
    prepare_unit(whole)
    expected = content_of(tmp_path / "whole")
    with moments() as state:
        unit = replace(whole, folder=str(tmp_path / "counted/data/mine"))
        count = state.watch(lambda: prepare_unit(unit))
        assert count >= 5
        for moment in range(1, count + 1):
            unit = replace(whole, folder=str(tmp_path / f"{moment}/data/mine"))
            state.kill(moment, lambda: prepare_unit(unit))  # noqa: B023
            ledger = unit.path.with_suffix(".json")
            assert not ledger.exists() or unit.path.exists()
            prepare_unit(unit)
            left = {name: content for name, content in content_of(tmp_path / str(moment)).items() if ".tmp" not in name}
            assert left == {name: content for name, content in expected.items() if "listing" not in name}, moment


def test_only_near_duplicates_share_a_band(tmp_path: Path) -> None:
    texts = prose("text", 3)
    (unit,) = units_of(text_source(tmp_path / "in", [*texts, altered(texts[0])]), tmp_path)
    prepare_unit(unit)
    bands = np.array(pq.read_table(unit.path, columns=["bands"]).column(0).to_pylist(), np.uint64)
    shared = (bands[:, None] == bands[None]).any(axis=2)
    assert {(i, j) for i, j in np.argwhere(shared).tolist() if i < j} == {(0, 3)}
