"""From sources to documents: nothing leaks over the split, nothing is lost from the ledger."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shard.data import documents
from shard.data.document import Document
from shard.data.documents import HELDOUT, LEDGER, TRAIN, collect_documents, read_documents, read_ledger
from shard.data.settings import AnySource, DataSettings, HubSource, InstalledSource, TextSource
from shard.errors import ShardError
from shard.files import sha256_of


def text_source(folder: Path, texts: list[str], **options: Any) -> TextSource:
    """A source of one .jsonl file with a document a line."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "lines.jsonl").write_text(lines, encoding="utf-8")
    return TextSource(kind="text", path=str(folder), **options)


def numbered(name: str, count: int) -> list[str]:
    """Documents of different lengths, with characters of more than one byte."""
    return [f"{name} Nº {i} " + "é\u2028" * (i % 7) for i in range(count)]


def records(folder: Path, which: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / which).read_text(encoding="utf-8").split("\n")[:-1]]


def num_bytes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, AnySource]:
    """Two sources that share the names of their modules; the second has some more, and larger documents."""

    def read(packages: list[str], content: str) -> Iterator[Document]:
        count, size = (60, 10) if content == "documentation" else (90, 50)
        for i in range(count):
            yield Document(f"{content} of module {i}: " + "x" * size, f"package.module_{i}")

    monkeypatch.setattr(documents, "read_installed", read)
    monkeypatch.setattr(documents, "package_versions", lambda packages: dict.fromkeys(packages, "1.2.3"))
    return {
        name: InstalledSource(kind="installed", content=name, packages=["package"])
        for name in ("documentation", "code")
    }


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_on_both_sides_over_all_sources(installed: dict[str, AnySource], seed: int, tmp_path: Path) -> None:
    collect_documents(installed, DataSettings(heldout_bytes=200), seed, tmp_path)
    sides = {
        which: {record["group"] for name in installed for record in records(tmp_path / name, which)}
        for which in (TRAIN, HELDOUT)
    }
    assert not sides[TRAIN] & sides[HELDOUT]
    assert sides[TRAIN] | sides[HELDOUT] == {f"package.module_{i}" for i in range(90)}
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
    kept = {
        name: sorted(text for which in (TRAIN, HELDOUT) for text in read_documents(tmp_path / "out" / name, which))
        for name in sources
    }
    assert kept == {"first": sorted(shared), "second": sorted(own)}
    assert [ledger.dropped for ledger in ledgers.values()] == [{"duplicate": 5}, {"duplicate": 21}]


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
        assert ledger["sha256"][which] == sha256_of(folder / which)
    assert sum(ledger["documents"].values()) == ledger["documents_read"] - sum(ledger["dropped"].values())
    assert sum(ledger["bytes"].values()) == num_bytes(texts)
    assert sorted(path.name for path in folder.iterdir()) == sorted([TRAIN, HELDOUT, LEDGER])


def test_documents_keep_their_text_and_order(tmp_path: Path) -> None:
    texts = [*numbered("text", 30), "lines\r\nand\rmore\n\u2028\x85\x0c\0", "a lone surrogate \ud800"]
    collect_documents({"mine": text_source(tmp_path / "in", texts)}, DataSettings(), 0, tmp_path)
    expected = [text.replace("\ud800", "\ufffd") for text in texts]
    for which in (TRAIN, HELDOUT):
        kept = list(read_documents(tmp_path / "mine", which))
        assert kept == [text for text in expected if text in kept]


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
        written.append(
            {path.relative_to(tmp_path / run): path.read_bytes() for path in (tmp_path / run).rglob("*.json*")}
        )
    assert len(written[0]) == 9
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
        sides.append({r["group"]: ledger.heldout_threshold for r in records(tmp_path / name, HELDOUT)})
    least = min(threshold for side in sides for threshold in side.values())
    below = [{group for group in side if documents.position(0, group) < least} for side in sides]
    old = {group for group in below[1] if int(group.split("#")[1]) <= len(texts)}
    assert below[0] == old and old


def test_max_bytes_is_not_exceeded(tmp_path: Path) -> None:
    texts = numbered("text", 100)
    limit = num_bytes(texts[:40]) + 3
    source = text_source(tmp_path / "in", texts, max_bytes=limit)
    ledger = collect_documents({"mine": source}, DataSettings(), 0, tmp_path)["mine"]
    assert sum(ledger.bytes.values()) == num_bytes(texts[:40])
    assert ledger.documents_read == sum(ledger.documents.values()) == 40


def test_dropped_text_does_not_count_towards_max_bytes(tmp_path: Path) -> None:
    texts = numbered("text", 30)
    source = text_source(tmp_path / "in", [*(texts[:1] * 50), *texts], max_bytes=num_bytes(texts))
    ledger = collect_documents({"mine": source}, DataSettings(), 0, tmp_path)["mine"]
    assert sum(ledger.documents.values()) == 30
    assert Counter(ledger.dropped) == {"duplicate": 50}


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
    message = error_of({"web": source}, tmp_path)
    assert message.startswith("sources.web: ") and "someone/some-text" in message and "--data PATH" in message


def test_a_source_that_fails_halfway_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def read(path: Path, column: str) -> Iterator[Document]:
        yield Document("a document", "a")
        raise ShardError("the file is broken")

    monkeypatch.setattr(documents, "read_text_files", read)
    assert error_of({"mine": TextSource(kind="text", path="anywhere")}, tmp_path) == "the file is broken"
    assert list((tmp_path / "mine").iterdir()) == []


# A process that is killed


class Killed(BaseException):
    """Stands for a kill: nothing catches it but the test."""


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("was_there", [False, True])
def test_killed_anywhere_it_leaves_no_ledger_without_its_files_and_a_redo_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_there: bool
) -> None:
    """At every rename and every removal in turn: where files were made before, and where none were."""
    sources = {name: text_source(tmp_path / "text" / name, numbered(name, 30)) for name in ("one", "two")}
    collect_documents(sources, DataSettings(), 0, tmp_path / "whole")
    whole = content_of(tmp_path / "whole")
    assert len(whole) == 6
    calls, killed_at = 0, -1
    replace, unlink = Path.replace, Path.unlink

    def counted(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == killed_at:
                raise Killed
            return None if 0 < killed_at < calls else real(*arguments, **options)  # the dead change nothing

        return call

    monkeypatch.setattr(Path, "replace", counted(replace))
    monkeypatch.setattr(Path, "unlink", counted(unlink))
    collect_documents(sources, DataSettings(), 0, tmp_path / "counted")
    for moment in range(1, calls + 1):
        folder = tmp_path / f"killed-{moment}"
        if was_there:  # of other text, by the same names
            calls, killed_at = 0, -1
            old = {name: text_source(tmp_path / "old" / name, numbered(f"old {name}", 40)) for name in sources}
            collect_documents(old, DataSettings(), 1, folder)
        calls, killed_at = 0, moment
        with pytest.raises(Killed):
            collect_documents(sources, DataSettings(), 0, folder)
        for name in sources:
            if (folder / name / LEDGER).is_file():
                for which, expected in read_ledger(folder / name)["sha256"].items():
                    assert sha256_of(folder / name / which) == expected, (moment, name)
        killed_at = -1
        collect_documents(sources, DataSettings(), 0, folder)
        left = content_of(folder)
        assert {name: content for name, content in left.items() if ".tmp" not in name} == whole, moment
