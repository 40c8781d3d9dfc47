"""What there is to read: the same units whoever asks, pinned at the first look."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from corpora import QUESTION, hub_source, prose, text_source, write_lines, write_parquet
from hub_server import HubServer, Repository, running

from shard.data import inventory
from shard.data.inventory import LISTING, Inventory
from shard.data.settings import AnySource, DataSettings, GeneratedSource, HubSource, InstalledSource, TextSource
from shard.data.units import prepare_unit
from shard.errors import ShardError
from shard.files import read_json, sha256_of


def take(
    sources: dict[str, AnySource], folder: Path, mirror: Path | None = None, seed: int = 0, **settings: Any
) -> Inventory:
    return Inventory.take(sources, DataSettings(**settings), seed, folder / "data", mirror)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
        yield server


def commit(server: HubServer, folder: Path, repository: str, *names: str) -> str:
    """Files with a row each, as a new commit."""
    held = server.repositories.setdefault(repository, Repository())
    return held.commit({name: write_parquet(folder / "made" / name, prose(name, 1)).read_bytes() for name in names})


WEB = HubSource(kind="hub", repository="someone/some", files="data/*.parquet", columns=("text",))


# Units


def test_local_files_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.txt", "a.txt", "deep/c.txt", "d.txt", "deep/e.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name * 10)  # 50 or 100 bytes
    source = TextSource(kind="text", path=str(tmp_path / "in"))
    for size, expected in (
        (2**26, [["a.txt", "b.txt", "d.txt", "deep/c.txt", "deep/e.txt"]]),
        (100, [["a.txt", "b.txt"], ["d.txt", "deep/c.txt"], ["deep/e.txt"]]),
        (1, [["a.txt"], ["b.txt"], ["d.txt"], ["deep/c.txt"], ["deep/e.txt"]]),
    ):
        monkeypatch.setattr(inventory, "UNIT_BYTES", size)
        units = take({"mine": source}, tmp_path).units["mine"]
        assert [[name for _, name in unit.files] for unit in units] == expected
        assert [unit.number for unit in units] == list(range(len(units)))
        assert [unit.name for unit in units] == [
            names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "") for names in expected
        ]
        assert not any(unit.is_lone for unit in units)


def test_the_one_file_of_a_source_is_known_as_that(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a line\n\n" * 4000)
    source = TextSource(kind="text", path=str(tmp_path / "one.txt"))
    (unit,) = take({"mine": source}, tmp_path).units["mine"]
    assert unit.is_lone and prepare_unit(unit).documents_read > 1


def test_every_file_of_a_repository_is_a_unit_and_others_are_one(tmp_path: Path) -> None:
    sources: dict[str, AnySource] = {
        "web": hub_source(tmp_path, {name: prose(name, 1) for name in ("b.parquet", "a.parquet")}),
        "mine": text_source(tmp_path / "in", ["text"]),
        "made": GeneratedSource(kind="generated"),
        "code": InstalledSource(kind="installed", content="code", packages=["pytest"]),
    }
    found = take(sources, tmp_path, tmp_path)
    assert {name: [unit.name for unit in units] for name, units in found.units.items()} == {
        "web": ["a.parquet", "b.parquet"],
        "mine": ["lines.jsonl"],
        "made": ["made"],
        "code": ["code"],
    }
    assert found.origins == {
        "web": {"repository": "someone/some", "revision": "mirror"},
        "mine": {},
        "made": {},
        "code": {"pytest": pytest.__version__},
    }
    again = take(sources, tmp_path, tmp_path)
    assert again.units == found.units
    paths = [unit.path for units in found.units.values() for unit in units]
    assert len(set(paths)) == len(paths)
    assert paths[1] == tmp_path / "data/web/documents/00001.parquet"
    inputs = [unit.inputs for units in found.units.values() for unit in units]
    assert len(set(inputs)) == len(inputs)


def test_another_version_of_a_package_is_another_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a start after an upgrade would keep the old text under the new version's name."""
    source = InstalledSource(kind="installed", content="code", packages=["pytest"])
    inputs = []
    for version in ("1.0", "1.0", "1.1"):
        monkeypatch.setattr(inventory, "package_versions", lambda packages: {"pytest": version})  # noqa: B023
        inputs.append(take({"code": source}, tmp_path).units["code"][0].inputs)
    assert inputs[0] == inputs[1] != inputs[2]


def test_of_a_source_with_a_limit_every_folder_gives_some(tmp_path: Path) -> None:
    names = ["a/0.parquet", "a/1.parquet", "a/2.parquet", "b/0.parquet", "c/d/0.parquet", "c/d/1.parquet"]
    source = hub_source(tmp_path, {name: prose(name, 1) for name in names})
    source = source.model_copy(update={"files": "**/*.parquet"})
    orders = {
        limit: [unit.name for unit in take({"web": source.model_copy(update=changed)}, tmp_path, tmp_path).units["web"]]
        for limit, changed in {"none": {}, "tokens": {"max_tokens": 10}, "bytes": {"max_bytes": 9}}.items()
    }
    assert orders["none"] == names
    in_turns = ["a/0.parquet", "b/0.parquet", "c/d/0.parquet", "a/1.parquet", "c/d/1.parquet", "a/2.parquet"]
    assert orders["tokens"] == orders["bytes"] == in_turns


# The listing


def test_the_first_look_pins_revision_and_files(server: HubServer, tmp_path: Path) -> None:
    first = commit(server, tmp_path, "someone/some", "data/a.parquet", "data/b.parquet", "README.parquet")
    found = take({"web": WEB}, tmp_path, evaluation_sets=())
    num_requests = len(server.requests)
    second = commit(server, tmp_path, "someone/some", "data/a.parquet", "data/c.parquet")
    again = take({"web": WEB}, tmp_path, evaluation_sets=())
    assert again.units == found.units and len(server.requests) == num_requests  # not even asked
    assert [unit.name for unit in found.units["web"]] == ["data/a.parquet", "data/b.parquet"]
    assert {unit.revision for unit in found.units["web"]} == {first}
    assert found.origins["web"] == {"repository": "someone/some", "revision": first}
    listing = read_json(tmp_path / "data/web" / LISTING, "")
    assert listing["revision"] == first and len(listing["files"][0]["sha256"]) == 64
    assert prepare_unit(found.units["web"][1]).documents == 1  # which the newest commit no longer has
    other = take({"web": WEB}, tmp_path / "other", evaluation_sets=())
    assert other.origins["web"]["revision"] == second
    named = take({"web": WEB.model_copy(update={"revision": first})}, tmp_path / "named", evaluation_sets=())
    assert named.origins["web"]["revision"] == first


def test_a_damaged_listing(tmp_path: Path) -> None:
    source = hub_source(tmp_path, {"a.parquet": prose("text", 1)})
    take({"web": source}, tmp_path, tmp_path)
    (tmp_path / "data/web" / LISTING).write_text("{")
    with pytest.raises(ShardError, match=r"listing\.json is damaged .*: delete it: the repository is listed anew$"):
        take({"web": source}, tmp_path, tmp_path)


def test_a_mirror_without_a_repository_or_its_files(tmp_path: Path) -> None:
    source = hub_source(tmp_path, {"a.parquet": prose("text", 1)})
    for changed, message in (
        ({"repository": "someone/else"}, r"no datasets/someone/else, only someone/some: put its files there$"),
        (
            {"files": "*.jsonl"},
            r"someone/some has no files '\*\.jsonl' .* as a\.parquet: change the pattern$",
        ),
    ):
        with pytest.raises(ShardError, match=message) as caught:
            take({"web": source.model_copy(update=changed)}, tmp_path, tmp_path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


# Test questions


def test_questions_of_files_and_of_a_mirror(tmp_path: Path) -> None:
    mirror, arc = tmp_path / "mirror", "datasets/allenai/ai2_arc/ARC-Easy"
    source = hub_source(mirror, {"a.parquet": prose("text", 1)})
    mine = write_lines(tmp_path / "mine.jsonl", [{"question": QUESTION}])
    sets = {"evaluation_sets": ("allenai/ai2_arc", str(mine))}
    assert take({"web": source}, tmp_path / "0", mirror, **sets).checked == [str(mine)]  # the mirror has no ARC
    names = ("train-0.parquet", "test-0.parquet", "validation-0.parquet")
    paths = [write_parquet(mirror / arc / name, [name]) for name in names]
    found = take({"web": source}, tmp_path / "1", mirror, **sets)
    expected = [f"allenai/ai2_arc/ARC-Easy/{name} (mirror)" for name in names[1:]]
    assert found.checked == [*expected, str(mine)]
    given = [(str(path), sha256_of(path)) for path in (*paths[1:], mine)]
    assert all(unit.evaluation_sets == tuple(given) for unit in found.units["web"])


def test_questions_of_the_hub_are_downloaded_only_where_the_hub_is_used(server: HubServer, tmp_path: Path) -> None:
    commit(server, tmp_path, "someone/some", "data/a.parquet")
    revision = commit(server, tmp_path, "allenai/ai2_arc", "ARC-Easy/test-0.parquet", "ARC-Easy/train-0.parquet")
    assert take({"mine": text_source(tmp_path / "in", ["text"])}, tmp_path / "0").checked == []
    assert server.requests == []
    found = take({"web": WEB}, tmp_path / "1")
    assert found.checked == [f"allenai/ai2_arc/ARC-Easy/test-0.parquet ({revision[:12]})"]
    ((path, _),) = found.units["web"][0].evaluation_sets
    assert Path(path) == tmp_path / "1/evaluation-sets/allenai/ai2_arc/ARC-Easy/test-0.parquet" and Path(path).is_file()


@pytest.mark.parametrize("name", ["someone/unknown", "gone.jsonl", "a/b/c.parquet", "questions.txt"])
def test_questions_that_are_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "questions.txt").write_text("")
    with pytest.raises(ShardError, match=rf"evaluation_sets: '{name}' is neither .* nor one of allenai/ai2_arc$"):
        take({"mine": text_source(tmp_path / "in", ["text"])}, tmp_path, evaluation_sets=(name,))
