"""From sources to documents: nothing leaks over the split, nothing is lost from the ledger."""

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from corpora import (
    QUESTION,
    altered,
    break_parquet,
    content_of,
    hub_source,
    moments,
    num_bytes,
    numbered,
    prose,
    text_source,
    write_lines,
)

from shard.data import documents, inventory, units
from shard.data.document import Document
from shard.data.documents import (
    DOCUMENTS,
    HELDOUT,
    LEDGER,
    ON_TRAIN,
    TRAIN,
    Ledger,
    collect_documents,
    read_documents,
    read_ledger,
    read_unit,
)
from shard.data.settings import AnySource, DataSettings, HubSource, InstalledSource, TextSource
from shard.errors import ShardError
from shard.files import sha256_of


def texts_of(folder: Path) -> list[str]:
    """What is kept of a source, on both sides."""
    return [text for which in (TRAIN, HELDOUT) for text in read_documents(folder, which)]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is lost here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, AnySource]:
    """Two sources that share the names of their modules; the second has some more, and larger documents."""

    def read(packages: list[str], content: str) -> Iterator[Document]:
        count, size = (60, 10) if content == "documentation" else (90, 50)
        for i in range(count):
            yield Document(f"{content} of module {i}: " + "x" * size, f"package.module_{i}")

    monkeypatch.setattr(units, "read_installed", read)
    monkeypatch.setattr(inventory, "package_versions", lambda packages: dict.fromkeys(packages, "1.2.3"))
    return {
        name: InstalledSource(kind="installed", content=name, packages=["package"])
        for name in ("documentation", "code")
    }


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_on_both_sides_over_all_sources(installed: dict[str, AnySource], seed: int, tmp_path: Path) -> None:
    collect_documents(installed, DataSettings(heldout_bytes=200), seed, tmp_path)
    sides = {
        which: {
            int(re.findall(r"of module (\d+):", text)[0])
            for name in installed
            for text in read_documents(tmp_path / name, which)
        }
        for which in (TRAIN, HELDOUT)
    }
    assert not sides[TRAIN] & sides[HELDOUT]
    assert sides[TRAIN] | sides[HELDOUT] == set(range(90))
    ledgers = [read_ledger(tmp_path / name) for name in installed]
    assert ledgers[0]["heldout_threshold"] == ledgers[1]["heldout_threshold"] > 0
    assert ledgers[0]["origin"] == {"package": "1.2.3"}


def test_other_sources_have_thresholds_of_their_own(installed: dict[str, AnySource], tmp_path: Path) -> None:
    sources = installed | {
        "small": text_source(tmp_path / "small", numbered("small", 40)),
        "large": text_source(tmp_path / "large", numbered("large", 400)),
    }
    ledgers = collect_documents(sources, DataSettings(heldout_bytes=100), 0, tmp_path / "out")
    assert len({ledger.heldout_threshold for ledger in ledgers.values()}) == 3


def test_exact_duplicates_stay_where_they_were_first(tmp_path: Path) -> None:
    shared, own = numbered("shared", 20), numbered("own", 30)
    sources = {
        "first": text_source(tmp_path / "first", [*shared, *shared[:5]]),
        "second": text_source(tmp_path / "second", [*own, *shared, own[0]]),
    }
    ledgers = collect_documents(sources, DataSettings(), 0, tmp_path / "out")
    kept = {name: sorted(texts_of(tmp_path / "out" / name)) for name in sources}
    assert kept == {"first": sorted(shared), "second": sorted(own)}
    assert [ledger.dropped for ledger in ledgers.values()] == [{"duplicate": 5}, {"duplicate": 21}]
    assert ledgers["first"].examples["duplicate"] in shared[:5]
    assert ledgers["second"].examples["duplicate"] in [*shared, own[0]]


def test_the_ledger_adds_up(tmp_path: Path) -> None:
    texts = numbered("text", 50)
    given = [*texts, "", " \n\t", "", texts[3]]
    source = text_source(tmp_path / "in", given, license="CC0-1.0")
    returned = collect_documents({"mine": source}, DataSettings(), 0, tmp_path)["mine"]
    folder = tmp_path / "mine"
    ledger = read_ledger(folder)
    assert ledger == vars(returned)
    assert ledger["license"] == "CC0-1.0"
    assert ledger["documents_read"] == len(given) and ledger["bytes_read"] == num_bytes(given)
    assert ledger["dropped"] == {"empty": 3, "duplicate": 1}
    for which, side in ((TRAIN, "train"), (HELDOUT, "heldout")):
        written = list(read_documents(folder, which))
        assert ledger["documents"][side] == len(written) > 0
        assert ledger["bytes"][side] == num_bytes(written)
    assert sum(ledger["documents"].values()) == ledger["documents_read"] - sum(ledger["dropped"].values())
    assert sum(ledger["bytes"].values()) == num_bytes(texts)
    assert ledger["examples"] == {"empty": "", "duplicate": texts[3]}
    assert ledger["broken"] == [] and ledger["units"] == ["lines.jsonl"] and ledger["origin"] == {}
    hashed = [HELDOUT, "documents/00000.parquet", "documents/00000.npy"]
    assert ledger["sha256"] == {name: sha256_of(folder / name) for name in hashed}
    assert sorted(content_of(folder)) == sorted([LEDGER, "documents/00000.json", *hashed])


@pytest.mark.parametrize("clean", ["off", "on"])
def test_documents_keep_their_text_and_order(clean: str, tmp_path: Path) -> None:
    """As they are with clean = "off", else as the cleaner leaves them."""
    odd = ["lines\r\nand\rmore\n\u2028\x85\x0c\0", "a lone surrogate \ud800", " two\u2028lines\u2029and more\u200a"]
    texts = [*numbered("text", 30), *odd]
    source = text_source(tmp_path / "in", texts, **({"clean": "off"} if clean == "off" else {}))
    ledger = collect_documents({"mine": source}, DataSettings(), 0, tmp_path)["mine"]
    if clean == "off":
        expected = [text.replace("\ud800", "\ufffd") for text in texts]
    else:  # control characters, and what cannot be encoded, are more than a fiftieth of the first two
        expected = [*texts[:30], " two\nlines\nand more"]
        assert ledger.dropped == {"control": 2}
    for which in (TRAIN, HELDOUT):
        kept = list(read_documents(tmp_path / "mine", which))
        assert kept == [text for text in expected if text in kept]
    assert sorted(texts_of(tmp_path / "mine")) == sorted(expected)


@pytest.mark.parametrize("seed", range(5))
def test_as_much_is_held_out_as_was_asked_for(seed: int, tmp_path: Path) -> None:
    """At least heldout_bytes, and less by one document would be too little."""
    source = text_source(tmp_path / "in", numbered("text", 400))
    ledger = collect_documents({"mine": source}, DataSettings(heldout_bytes=500), seed, tmp_path)["mine"]
    longest = max(num_bytes([text]) for text in read_documents(tmp_path / "mine", HELDOUT))
    assert 500 <= ledger.bytes["heldout"] < 500 + longest


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_small_source_gives_only_its_share(share: float, tmp_path: Path) -> None:
    texts = numbered("text", 100)
    settings = DataSettings(heldout_bytes=10**6, heldout_share=share)
    ledger = collect_documents({"mine": text_source(tmp_path / "in", texts)}, settings, 0, tmp_path)["mine"]
    target = share * num_bytes(texts)
    assert target <= ledger.bytes["heldout"] < target + max(num_bytes([text]) for text in texts)


def test_two_collections_are_equal_byte_for_byte(installed: dict[str, AnySource], tmp_path: Path) -> None:
    sources = installed | {"mine": text_source(tmp_path / "in", numbered("text", 50))}
    written = []
    for run in ("first", "second"):
        collect_documents(sources, DataSettings(), 3, tmp_path / run)
        written.append(content_of(tmp_path / run))
    assert len(written[0]) == 15
    assert written[0] == written[1]


def test_another_seed_is_another_split(tmp_path: Path) -> None:
    sources = {"mine": text_source(tmp_path / "in", numbered("text", 100))}
    heldout = set()
    for seed in range(3):
        collect_documents(sources, DataSettings(), seed, tmp_path)
        heldout.add(tuple(read_documents(tmp_path / "mine", HELDOUT)))
    assert len(heldout) == 3


def test_documents_that_were_held_out_stay_so_when_text_is_added_after_them(tmp_path: Path) -> None:
    """The side hangs on the group's hash and a threshold, not on a running random number."""
    texts = numbered("text", 100)
    sides = []
    for name, given in (("short", texts), ("long", [*texts, *numbered("more", 20)])):
        source = text_source(tmp_path / f"in-{name}", given)
        ledger = collect_documents({name: source}, DataSettings(), 0, tmp_path)[name]
        groups = {text: f"lines.jsonl#{number}" for number, text in enumerate(given, 1)}
        held = [groups[text] for text in read_documents(tmp_path / name, HELDOUT)]
        assert all(
            (units.position(0, group) < ledger.heldout_threshold) == (group in held) for group in groups.values()
        )
        sides.append(dict.fromkeys(held, ledger.heldout_threshold))
    least = min(threshold for side in sides for threshold in side.values())
    below = [{group for group in side if units.position(0, group) < least} for side in sides]
    old = {group for group in below[1] if int(group.split("#")[1]) <= len(texts)}
    assert below[0] == old and old


# Limits


def test_max_bytes_is_not_exceeded(tmp_path: Path) -> None:
    texts = numbered("text", 100)
    limit = num_bytes(texts[:40]) + 3
    source = text_source(tmp_path / "in", texts, max_bytes=limit)
    ledger = collect_documents({"mine": source}, DataSettings(), 0, tmp_path)["mine"]
    assert sum(ledger.bytes.values()) == num_bytes(texts[:40])
    assert sum(ledger.documents.values()) == 40
    assert ledger.documents_read == 100 and ledger.dropped == {"beyond the limit": 60}
    assert sorted(texts_of(tmp_path / "mine")) == sorted(texts[:40])


def test_max_bytes_may_be_met_to_the_byte(tmp_path: Path) -> None:
    texts = numbered("text", 50)
    source = text_source(tmp_path / "in", texts, max_bytes=num_bytes(texts[:40]))
    ledger = collect_documents({"mine": source}, DataSettings(), 0, tmp_path)["mine"]
    assert sum(ledger.bytes.values()) == num_bytes(texts[:40])


def test_max_bytes_counts_cleaned_text_before_duplicates_are_dropped(tmp_path: Path) -> None:
    """So that whether a document is beyond the limit does not hang on other sources."""
    texts = numbered("text", 30)
    given = ["", *(texts[:1] * 50), " \r\n", *texts]
    source = text_source(tmp_path / "in", given, max_bytes=num_bytes([*(texts[:1] * 50), *texts[:10]]))
    ledger = collect_documents({"mine": source}, DataSettings(), 0, tmp_path)["mine"]
    assert sorted(texts_of(tmp_path / "mine")) == sorted(texts[:10])
    assert ledger.dropped == {"empty": 2, "duplicate": 50, "beyond the limit": 20}


@pytest.mark.parametrize("limit", [{"max_documents": 1}, {"max_documents": 7}, {"max_documents": 12, "max_bytes": 150}])
def test_max_documents_and_both_limits(limit: dict[str, int], tmp_path: Path) -> None:
    texts = numbered("text", 30)
    sizes = itertools.accumulate(len(text.encode()) for text in texts)
    expected = [
        text
        for i, (text, size) in enumerate(zip(texts, sizes, strict=True), 1)
        if i <= limit["max_documents"] and size <= limit.get("max_bytes", 10**9)
    ]
    sources = {"mine": text_source(tmp_path / "in", texts, **limit)}
    if limit["max_documents"] == 1:
        assert error_of(sources, tmp_path).startswith("sources.mine: 1 document (")
        return
    ledger = collect_documents(sources, DataSettings(), 0, tmp_path)["mine"]
    assert sorted(texts_of(tmp_path / "mine")) == sorted(expected) and 1 < len(expected) < 13
    assert ledger.documents_read == 30 and ledger.dropped == {"beyond the limit": 30 - len(expected)}


def test_a_limit_below_the_first_document_keeps_that_one(tmp_path: Path) -> None:
    source = text_source(tmp_path / "in", numbered("text", 30), max_bytes=1)
    assert error_of({"mine": source}, tmp_path).startswith("sources.mine: 1 document (13 B)")


def test_limits_count_over_the_files_of_a_source(tmp_path: Path) -> None:
    """And what no limit lets in is not read: neither counted, nor left on the disk."""
    files = {f"{i}.parquet": prose(f"file {i}", 10) for i in range(5)}
    source = hub_source(tmp_path / "mirror", files, max_documents=25)
    ledger = collect_documents({"web": source}, DataSettings(), 0, tmp_path / "out", mirror=tmp_path / "mirror")["web"]
    everything = [text for texts in files.values() for text in texts]
    assert sorted(texts_of(tmp_path / "out" / "web")) == sorted(everything[:25])
    assert ledger.documents_read == 30 and ledger.dropped == {"beyond the limit": 5}
    assert ledger.units == ["0.parquet", "1.parquet", "2.parquet"]
    names = [f"0000{i}.{end}" for i in range(3) for end in ("json", "npy", "parquet")]
    assert sorted(content_of(tmp_path / "out" / "web" / DOCUMENTS)) == names


def test_a_limit_of_tokens_limits_the_reading(tmp_path: Path) -> None:
    """A token holds no more than 8 bytes of text on average."""
    texts = prose("text", 30)
    limit = num_bytes(texts[:12]) // 8
    ledger = collect_documents(
        {"mine": text_source(tmp_path / "in", texts, max_tokens=limit)}, DataSettings(), 0, tmp_path
    )
    kept = texts_of(tmp_path / "mine")
    assert sorted(kept) == sorted(texts[: len(kept)]) and 8 * limit - num_bytes(kept) in range(len(texts[11]) + 8)
    assert ledger["mine"].dropped == {"beyond the limit": 30 - len(kept)}


def test_no_more_files_are_begun_than_a_limit_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a download. Where the guess was too low, more are begun; where too high, they are not used."""
    files = {f"{i:02}.parquet": prose(f"file {i}", 10) for i in range(12)}
    everything = [text for texts in files.values() for text in texts]
    begun: list[str] = []
    real = documents.prepare_unit
    monkeypatch.setattr(documents, "prepare_unit", lambda unit: begun.append(unit.name) or real(unit))
    for limit in ({"max_bytes": num_bytes(everything[:35])}, {"max_documents": 35}):
        for likely in (1, 4000, 10**9):
            begun.clear()
            monkeypatch.setattr(units.Unit, "likely_bytes", likely)
            source = hub_source(tmp_path / "mirror", files, **limit)
            out = tmp_path / f"{limit} {likely}"
            ledger = collect_documents({"web": source}, DataSettings(), 0, out, mirror=tmp_path / "mirror")["web"]
            assert sorted(texts_of(out / "web")) == sorted(everything[:35])
            assert begun == ledger.units == [f"{i:02}.parquet" for i in range(4)]
            assert not (out / "web" / "raw").exists()


def test_a_file_is_read_no_further_than_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was passed over until then is counted all the same."""
    monkeypatch.setattr(units, "BATCH_DOCUMENTS", 5)
    texts: list[str | None] = [*prose("text", 3), None, *prose("more", 27)]
    source = hub_source(tmp_path / "mirror", {"0.parquet": texts}, max_documents=7)
    ledger = collect_documents({"web": source}, DataSettings(), 0, tmp_path / "out", mirror=tmp_path / "mirror")["web"]
    assert ledger.documents_read == 11 and ledger.dropped == {"broken row: null": 1, "beyond the limit": 3}
    assert sorted(texts_of(tmp_path / "out/web")) == sorted(text for text in texts[:8] if text is not None)


# What is dropped


def test_near_duplicates_stay_where_they_were_first(tmp_path: Path) -> None:
    """The order of the sources in the recipe decides, then that of the documents."""
    first, second = prose("first", 12), prose("second", 12)
    both = {
        "first": text_source(tmp_path / "first", [*first, altered(first[0])]),
        "second": text_source(tmp_path / "second", [*second, *map(altered, first[:3]), altered(second[1])]),
    }
    for names in (("first", "second"), ("second", "first")):
        out = tmp_path / "-".join(names)
        ledgers = collect_documents({name: both[name] for name in names}, DataSettings(), 0, out)
        kept = {name: sorted(texts_of(out / name)) for name in names}
        if names[0] == "first":
            assert kept == {"first": sorted(first), "second": sorted(second)}
            assert [ledgers[name].dropped for name in names] == [
                {"near duplicate": 1},
                {"duplicate": 1, "near duplicate": 3},
            ]
            assert ledgers["second"].examples == {
                "duplicate": altered(first[0])[:200],
                "near duplicate": altered(first[1])[:200],
            }
        else:
            assert kept == {"first": sorted(first[3:]), "second": sorted([*second, *map(altered, first[:3])])}
            assert [ledgers[name].dropped for name in names] == [
                {"near duplicate": 1},
                {"duplicate": 1, "near duplicate": 3},
            ]


def test_near_duplicates_of_a_source_that_keeps_them(tmp_path: Path) -> None:
    """It is not looked at: it neither loses documents nor takes any from others. Equal documents are dropped."""
    texts = prose("text", 12)
    sources = {
        "keeps": text_source(tmp_path / "keeps", [*texts, altered(texts[0]), texts[1]], near_duplicates="keep"),
        "drops": text_source(tmp_path / "drops", [*map(altered, texts[1:]), altered(texts[0]), *texts[:2]]),
    }
    ledgers = collect_documents(sources, DataSettings(), 0, tmp_path / "out")
    assert [ledger.dropped for ledger in ledgers.values()] == [{"duplicate": 1}, {"duplicate": 3}]


def test_the_threshold_of_near_duplicates(tmp_path: Path) -> None:
    """Of 76 shingles, the other last word changes one: 75 of 77 are shared."""
    texts = prose("text", 12)
    for threshold, dropped in ((75 / 77, {"near duplicate": 1}), (0.98, {})):
        source = text_source(tmp_path / "in", [*texts, altered(texts[0])])
        settings = DataSettings(near_duplicate_threshold=threshold)
        assert collect_documents({"mine": source}, settings, 0, tmp_path)["mine"].dropped == dropped


def everything_wrong(folder: Path) -> tuple[dict[str, AnySource], DataSettings]:
    """Two sources of several files with every fate that a document can have."""
    questions = write_lines(folder / "questions.jsonl", [{"question": QUESTION}])
    web = [prose(f"web {i}", 15) for i in range(4)]
    mirror = folder / "mirror"
    hub = hub_source(
        mirror,
        {
            "0.parquet": [*web[0], None, "", f"so: {QUESTION.upper()}?", None],
            "1.parquet": [*web[1], web[0][2], altered(web[1][0]), "short", "\ufffd" * 100],
            "2.parquet": web[2] * 2,
            "3.parquet": [*web[3], altered(web[0][1])],
            "4.parquet": prose("not read", 5),
        },
        max_documents=15 + 17 + 10 + 14,
    )
    break_parquet(mirror / "datasets/someone/some/2.parquet", web[2] * 2)
    mine = text_source(folder / "mine", [*prose("mine", 20), web[3][3], altered(web[2][4]), QUESTION, "!" * 60])
    return {"web": hub, "mine": mine}, DataSettings(evaluation_sets=(str(questions),), on_broken_file="skip")


def add_up(ledger: Ledger) -> None:
    assert ledger.documents_read == sum(ledger.documents.values()) + sum(ledger.dropped.values())


def test_every_fate_is_counted(tmp_path: Path) -> None:
    sources, settings = everything_wrong(tmp_path)
    ledgers = collect_documents(sources, settings, 0, tmp_path / "out", mirror=tmp_path / "mirror")
    for name, ledger in ledgers.items():
        add_up(ledger)
        kept = texts_of(tmp_path / "out" / name)
        assert (len(kept), num_bytes(kept)) == (sum(ledger.documents.values()), sum(ledger.bytes.values()))
        assert ledger.evaluation_sets == [str(tmp_path / "questions.jsonl")]
    web, mine = ledgers.values()
    # Of the broken file, its first 10 rows are kept; the limit then leaves 14 of the 16 of the next one.
    assert web.dropped == {
        "broken row: null": 2,
        "empty": 1,
        "contaminated": 1,
        "short": 1,
        "control": 1,
        "unreadable": 20,
        "duplicate": 1,
        "near duplicate": 1,
        "beyond the limit": 2,
    }
    assert mine.dropped == {"duplicate": 1, "near duplicate": 1, "contaminated": 1, "symbols": 1}


def error_of(sources: dict[str, AnySource], folder: Path) -> str:
    with pytest.raises(ShardError) as caught:
        collect_documents(sources, DataSettings(), 0, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_source_of_one_document_cannot_be_split(tmp_path: Path) -> None:
    message = error_of({"mine": text_source(tmp_path / "in", ["only one"])}, tmp_path)
    assert message.startswith("sources.mine: 1 document")
    assert "give it more text" in message
    assert not (tmp_path / "mine" / LEDGER).exists()


def test_two_documents_are_enough(tmp_path: Path) -> None:
    ledger = collect_documents({"mine": text_source(tmp_path / "in", ["one", "two"])}, DataSettings(), 0, tmp_path)
    assert ledger["mine"].documents == {"train": 1, "heldout": 1}


def test_a_source_without_text(tmp_path: Path) -> None:
    message = error_of({"mine": text_source(tmp_path / "in", ["", " "])}, tmp_path)
    assert message.startswith("sources.mine: no text was found (2 documents read)")


def test_a_source_whose_path_is_missing(tmp_path: Path) -> None:
    message = error_of({"mine": TextSource(kind="text", path=str(tmp_path / "gone"))}, tmp_path)
    assert message.startswith(f"{tmp_path / 'gone'} does not exist")


def test_a_source_of_the_hub_says_what_to_do(tmp_path: Path) -> None:
    source = HubSource(kind="hub", repository="someone/some-text", files="*.parquet", columns=["text"])
    (tmp_path / "mirror/datasets/someone/other").mkdir(parents=True)
    with pytest.raises(ShardError, match=r"has no datasets/someone/some-text, only someone/other: put") as caught:
        collect_documents({"web": source}, DataSettings(), 0, tmp_path / "out", mirror=tmp_path / "mirror")
    assert "\n" not in str(caught.value)
    assert content_of(tmp_path / "out") == {}


def test_a_source_that_fails_halfway_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def read(file: Path, name: str, column: str, is_lone: bool) -> Iterator[Document]:
        yield Document("a document", "a")
        raise ShardError("the file is broken")

    monkeypatch.setattr(units, "read_text_file", read)
    source = text_source(tmp_path / "in", ["a", "b"])
    assert error_of({"mine": source}, tmp_path / "out") == "the file is broken"
    assert content_of(tmp_path / "out") == {}


@pytest.mark.parametrize("end", ["parquet", "npy"])
@pytest.mark.parametrize("change", [lambda content: content[: len(content) // 2], lambda content: b"", None])
def test_a_unit_that_was_damaged_is_named(end: str, change: Any, tmp_path: Path) -> None:
    collect_documents({"mine": text_source(tmp_path / "in", numbered("text", 30))}, DataSettings(), 0, tmp_path)
    path = tmp_path / "mine" / DOCUMENTS / f"00000.{end}"
    content = path.read_bytes()
    path.unlink()
    if change is not None:
        path.write_bytes(change(content))
    with pytest.raises(ShardError, match=r"00000\.parquet is missing or damaged .*: run `shard data` again") as info:
        list(read_unit(path.with_suffix(".parquet"), ON_TRAIN))
    assert "\n" not in str(info.value)


def test_units_of_text_that_is_gone_are_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A start with less text after one that was killed, or was refused, leaves no documents of the earlier one."""
    monkeypatch.setattr(inventory, "UNIT_BYTES", 1)
    texts = numbered("text", 60)
    for i in range(3):
        write_lines(tmp_path / "in" / f"{i}.jsonl", [{"text": text} for text in texts[20 * i : 20 * i + 20]])
    source = TextSource(kind="text", path=str(tmp_path / "in"))
    ledger = collect_documents({"mine": source}, DataSettings(), 0, tmp_path / "out")["mine"]
    assert len(ledger.units) == 3 and sorted(texts_of(tmp_path / "out" / "mine")) == sorted(texts)
    for gone in (2, 1):  # of several units, and of one that is left
        (tmp_path / "in" / f"{gone}.jsonl").unlink()
        collect_documents({"mine": source}, DataSettings(), 0, tmp_path / "out")
        assert sorted(texts_of(tmp_path / "out" / "mine")) == sorted(texts[: 20 * gone])


# A process that is killed


@pytest.mark.parametrize("was_there", [False, True])
def test_killed_anywhere_it_leaves_no_ledger_without_its_files_and_a_redo_gives_the_same_bytes(
    tmp_path: Path, was_there: bool
) -> None:
    """At every rename and every removal in turn: where files were made before, and where none were."""
    given = {name: [*numbered(name, 20), *prose(name, 2)] for name in ("one", "two")}
    given["two"] += [altered(given["one"][-1]), given["one"][0]]
    sources = {name: text_source(tmp_path / "text" / name, texts) for name, texts in given.items()}
    # Of other text, by the same names.
    old = {name: text_source(tmp_path / "old" / name, numbered(f"old {name}", 30)) for name in sources}
    collect_documents(sources, DataSettings(), 0, tmp_path / "whole")
    whole = content_of(tmp_path / "whole")
    assert len(whole) == 10
    with moments() as state:

        def first(folder: Path) -> None:
            if was_there:
                collect_documents(old, DataSettings(), 1, folder)

        first(tmp_path / "counted")
        count = state.watch(lambda: collect_documents(sources, DataSettings(), 0, tmp_path / "counted"))
        assert count > 12
        for moment in range(1, count + 1):
            folder = tmp_path / f"killed-{moment}"
            first(folder)
            state.kill(moment, lambda: collect_documents(sources, DataSettings(), 0, folder))  # noqa: B023
            for name in sources:
                if (folder / name / LEDGER).is_file():
                    for which, expected in read_ledger(folder / name)["sha256"].items():
                        assert sha256_of(folder / name / which) == expected, (moment, name)
            collect_documents(sources, DataSettings(), 0, folder)
            left = content_of(folder)
            assert {name: content for name, content in left.items() if ".tmp" not in name} == whole, moment
