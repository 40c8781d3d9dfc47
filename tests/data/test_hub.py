"""Listing and downloading against a small hub of our own, through the real client: right bytes, or one clear line."""

import hashlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_server import HubServer, Repository, answers, cuts_at, running, sends

from shard.data import hub
from shard.data.hub import MIRROR, Listing, RemoteFile, Retry, fetch, list_files
from shard.errors import ShardError

NAME = "someone/some-text"
CONTENT = random.Random(0).randbytes(300_000)
FILES = {
    "README.md": b"# Some text",
    "data/b.parquet": b"b" * 1000,
    "data/a.parquet": CONTENT,
    "data/deep/c.parquet": b"c",
    "other.jsonl": b"{}",
    "empty.md": b"",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
        server.repositories[NAME] = Repository()
        server.repositories[NAME].commit(FILES)
        yield server


class Waits(list[float]):
    """Instead of sleeping: the delays that were asked for."""

    def retry(self, attempts: int = 4) -> Retry:
        return Retry(attempts=attempts, sleep=self.append)


@pytest.fixture
def waits() -> Waits:
    return Waits()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def listing(pattern: str | list[str] = "data/a.parquet") -> Listing:
    return list_files(NAME, None, pattern)


def get(folder: Path, waits: Waits, file: RemoteFile | None = None, attempts: int = 4) -> Path:
    found = listing()
    return fetch(NAME, found.revision, file or found.files[0], folder, retry=waits.retry(attempts))


def one_line(error: pytest.ExceptionInfo[ShardError]) -> str:
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


# Listing


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("data/*.parquet", ["data/a.parquet", "data/b.parquet"]),
        ("data/**", ["data/a.parquet", "data/b.parquet", "data/deep/c.parquet"]),
        ("**/*.parquet", ["data/a.parquet", "data/b.parquet", "data/deep/c.parquet"]),
        ("*", ["README.md", "empty.md", "other.jsonl"]),
        ("data/?.parquet", ["data/a.parquet", "data/b.parquet"]),
        ("data/[!b].parquet", ["data/a.parquet"]),
        (["**/[b-c].parquet", "*.jsonl", "*.jsonl"], ["data/b.parquet", "data/deep/c.parquet", "other.jsonl"]),
    ],
)
def test_patterns_over_several_pages(server: HubServer, pattern: str | list[str], paths: list[str]) -> None:
    assert [file.path for file in listing(pattern).files] == paths


def test_a_listing_has_sizes_and_hashes_and_the_commit(server: HubServer) -> None:
    found = listing(["data/b.parquet", "README.md"])
    assert found.revision in server.repositories[NAME].commits
    assert found.files == [
        RemoteFile("README.md", 11, None),
        RemoteFile("data/b.parquet", 1000, sha256(b"b" * 1000)),
    ]


def test_no_match_names_what_there_is(server: HubServer) -> None:
    with pytest.raises(ShardError) as error:
        listing("dta/*.parquet")
    assert "'dta/*.parquet'" in one_line(error) and "data/a.parquet" in one_line(error)


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        ("someone/else", None, ["no dataset someone/else", "HF_TOKEN"]),
        (NAME, "v9", ["no revision 'v9'"]),
        ("nonsense", None, ["'nonsense'", "owner/name"]),
        ("../etc/x", None, ["owner/name"]),
        ("a--b/c..d", None, ["owner/name"]),
        ("a--b/c", None, ["a--b/c"]),
    ],
)
def test_what_does_not_exist_is_one_line(server: HubServer, name: str, revision: str | None, words: list[str]) -> None:
    with pytest.raises(ShardError) as error:
        list_files(name, revision, "*")
    assert all(word in one_line(error) for word in words)


def test_a_private_repository_needs_the_token(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repositories[NAME].token = "hf_secret"
    with pytest.raises(ShardError, match="set HF_TOKEN"):
        listing()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.requests.clear()
    assert listing().files[0].path == "data/a.parquet"
    assert {request.headers.get("authorization") for request in server.requests} == {"Bearer hf_secret"}


def test_a_gated_repository_says_where_to_accept(server: HubServer) -> None:
    server.repositories[NAME].gated = True
    with pytest.raises(ShardError, match=f"{server.url}/datasets/{NAME}"):
        listing()


@pytest.mark.parametrize("where", ["/api/datasets/someone/some-text/revision", "/api/datasets/someone/some-text/tree"])
def test_listing_is_tried_again(server: HubServer, waits: Waits, where: str) -> None:
    server.faults = [answers(503, where=where), answers(429, {"Retry-After": "7"}, where=where)]
    found = list_files(NAME, "main", "data/*.parquet", retry=waits.retry())
    assert len(found.files) == 2 and len(waits) == 2 and waits[1] == 7


def test_nobody_there_is_one_line(waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ShardError) as error:
        list_files(NAME, None, "*", retry=waits.retry(5))
    assert "5 tries in a row failed" in one_line(error) and "http://127.0.0.1:9" in one_line(error)
    assert len(waits) == 4
    for i, delay in enumerate(waits):  # doubles, with jitter below
        assert 2**i / 2 <= delay < 2**i


def test_offline_mode_is_one_line(
    server: HubServer, tmp_path: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = listing()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ShardError, match="HF_HUB_OFFLINE"):
        listing()
    with pytest.raises(ShardError, match="HF_HUB_OFFLINE"):
        fetch(NAME, found.revision, found.files[0], tmp_path, retry=waits.retry())
    assert waits == []


# Downloading


def test_a_file_is_downloaded_once(server: HubServer, tmp_path: Path, waits: Waits) -> None:
    path = get(tmp_path, waits)
    assert path == tmp_path / "data/a.parquet" and path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["a.parquet"]
    assert get(tmp_path, waits) == path
    assert [request.sent for request in server.content_requests()] == [len(CONTENT)]
    assert waits == []


def test_a_file_without_a_hash_and_one_without_bytes(server: HubServer, tmp_path: Path, waits: Waits) -> None:
    for file in listing(["README.md", "empty.md"]).files:
        assert get(tmp_path, waits, file).read_bytes() == FILES[file.path]


def test_a_damaged_file_on_the_disk_is_replaced(server: HubServer, tmp_path: Path, waits: Waits) -> None:
    get(tmp_path, waits).write_bytes(b"x" * len(CONTENT))
    assert get(tmp_path, waits).read_bytes() == CONTENT


def test_a_cut_connection_is_continued(server: HubServer, tmp_path: Path, waits: Waits) -> None:
    server.faults = [cuts_at(100_000), cuts_at(100_000 + 1), cuts_at(250_000)]
    assert get(tmp_path, waits, attempts=2).read_bytes() == CONTENT  # each brought bytes: no two failures in a row
    requests = server.content_requests()
    assert [request.headers.get("range") for request in requests] == [
        None,
        "bytes=100000-",
        "bytes=100001-",
        "bytes=250000-",
    ]
    assert sum(request.sent for request in requests) == len(CONTENT)
    assert len(waits) == 3 and max(waits) <= 1


def test_a_second_start_asks_for_the_rest_only(server: HubServer, tmp_path: Path, waits: Waits) -> None:
    server.faults = [cuts_at(200_000), answers(500)]
    with pytest.raises(ShardError) as error:
        get(tmp_path, waits, attempts=2)
    assert "data/a.parquet: 2 tries in a row failed (Server error '500" in one_line(error).replace("\\", "")
    assert "continues where this stopped" in one_line(error)
    server.requests.clear()
    assert get(tmp_path, waits).read_bytes() == CONTENT
    assert [request.headers["range"] for request in server.content_requests()] == ["bytes=200000-"]
    assert [request.sent for request in server.content_requests()] == [100_000]


def test_a_callback_that_stops_leaves_the_partial_file(server: HubServer, tmp_path: Path, waits: Waits) -> None:
    class StopError(Exception):
        pass

    def stop(num_bytes: int) -> None:
        raise StopError

    found = listing()
    with pytest.raises(StopError):
        fetch(NAME, found.revision, found.files[0], tmp_path, on_bytes=stop)
    assert [path.name[:14] for path in (tmp_path / "data").iterdir()] == [".a.parquet." + found.revision[:3]]
    path = fetch(NAME, found.revision, found.files[0], tmp_path, retry=waits.retry())
    assert path.read_bytes() == CONTENT
    assert server.content_requests()[-1].headers["range"].startswith("bytes=")


def test_pieces_are_counted(server: HubServer, tmp_path: Path) -> None:
    found, got = listing(), list[int]()
    fetch(NAME, found.revision, found.files[0], tmp_path, on_bytes=got.append)
    assert sum(got) == len(CONTENT)


def test_a_server_without_ranges_starts_anew(server: HubServer, tmp_path: Path, waits: Waits) -> None:
    server.knows_ranges = False
    server.faults = [cuts_at(100_000)]
    assert get(tmp_path, waits).read_bytes() == CONTENT
    assert [request.sent for request in server.content_requests()] == [100_000, len(CONTENT)]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_failing_server_is_asked_again(server: HubServer, tmp_path: Path, waits: Waits, status: int) -> None:
    server.faults = [answers(status), answers(status, where="/datasets/")]
    assert get(tmp_path, waits).read_bytes() == CONTENT
    assert len(waits) == 2


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry-After": "33"}, 33),
        ({"ratelimit": '"api";r=0;t=44', "ratelimit-policy": '"fixed window";"api";q=500;w=300'}, 44),
        ({"Retry-After": "99999999"}, 600),
        ({"Retry-After": "soon"}, None),
    ],
)
def test_the_wait_that_a_server_asks_for(
    server: HubServer, tmp_path: Path, waits: Waits, headers: dict[str, str], expected: float | None
) -> None:
    server.faults = [answers(429, headers)]
    get(tmp_path, waits)
    assert waits == [expected] if expected else 0 < waits[0] <= 1


def test_wrong_content_is_downloaded_again(server: HubServer, tmp_path: Path, waits: Waits) -> None:
    server.faults = [sends(b"x" * len(CONTENT))]
    assert get(tmp_path, waits).read_bytes() == CONTENT


def test_content_that_stays_wrong_is_one_line(server: HubServer, tmp_path: Path, waits: Waits) -> None:
    server.faults = [sends(b"x" * len(CONTENT)), sends(b"y" * len(CONTENT))]
    with pytest.raises(ShardError) as error:
        get(tmp_path, waits)
    assert "data/a.parquet" in one_line(error) and "SHA-256" in one_line(error)
    assert list((tmp_path / "data").iterdir()) == []


def test_too_much_content_is_wrong_too(server: HubServer, tmp_path: Path, waits: Waits) -> None:
    server.listed_sizes["README.md"] = 5
    with pytest.raises(ShardError, match="with 11 bytes instead of 5, twice"):
        get(tmp_path, waits, listing("README.md").files[0])


def test_a_damaged_partial_file_is_replaced(server: HubServer, tmp_path: Path, waits: Waits) -> None:
    revision = listing().revision
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f".a.parquet.{revision[:12]}.part").write_bytes(b"damaged" * 100)
    assert get(tmp_path, waits).read_bytes() == CONTENT
    assert [request.headers.get("range") for request in server.content_requests()] == ["bytes=700-", None]


def test_a_file_that_vanished_is_one_line(server: HubServer, tmp_path: Path, waits: Waits) -> None:
    found = listing()
    del server.repositories[NAME].commits[found.revision]["data/a.parquet"]
    with pytest.raises(ShardError) as error:
        fetch(NAME, found.revision, found.files[0], tmp_path, retry=waits.retry())
    assert "data/a.parquet" in one_line(error) and found.revision in one_line(error)
    assert waits == []


@pytest.mark.parametrize(("status", "words"), [(403, "HF_TOKEN"), (410, "answered 410")])
def test_refusals_are_not_tried_again(server: HubServer, tmp_path: Path, waits: Waits, status: int, words: str) -> None:
    server.faults = [answers(status)]
    with pytest.raises(ShardError) as error:
        get(tmp_path, waits)
    assert words in one_line(error) and waits == []


def test_the_pinned_commit_is_asked_for(server: HubServer, tmp_path: Path, waits: Waits) -> None:
    found = listing()
    newer = server.repositories[NAME].commit({"data/a.parquet": b"new"})
    path = fetch(NAME, found.revision, found.files[0], tmp_path)
    assert path.read_bytes() == CONTENT
    assert all(found.revision in request.path for request in server.requests if "/resolve/" in request.path)
    assert listing().revision == newer != found.revision
    assert get(tmp_path, waits).read_bytes() == b"new"  # over the old one: size and hash differ
    assert list_files(NAME, found.revision, "data/a.parquet") == found


def test_the_token_goes_to_the_hub_and_not_to_another_host(
    server: HubServer, tmp_path: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repositories[NAME].token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with running() as storage:
        found = listing()
        get(tmp_path / "warm", waits)  # so that the content is in storage
        storage.storage = server.storage
        server.url = storage.url  # redirects lead to the other server now
        fetch(NAME, found.revision, found.files[0], tmp_path, retry=waits.retry())
        assert {request.headers.get("authorization") for request in storage.requests} == {None}
    asked = [request for request in server.requests if "/resolve/" in request.path]
    assert {request.headers.get("authorization") for request in asked} == {"Bearer hf_secret"}


def test_nothing_is_told_but_the_versions_of_the_client(server: HubServer, tmp_path: Path, waits: Waits) -> None:
    get(tmp_path, waits)
    assert not [request for request in server.requests if "agent-harnesses" in request.path]
    assert not [request for request in server.requests if "torch" in request.headers["user-agent"]]


def test_files_come_in_parallel(server: HubServer, tmp_path: Path) -> None:
    found = listing("**/*.parquet")
    server.faults = [cuts_at(10), answers(503), cuts_at(5)]
    retry = Retry(sleep=lambda seconds: None)
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda file: fetch(NAME, found.revision, file, tmp_path, retry=retry), found.files))
    assert [path.read_bytes() for path in paths] == [FILES[file.path] for file in found.files]


def test_a_wait_can_be_ended_by_another_thread(server: HubServer, tmp_path: Path) -> None:
    server.faults = [answers(429, {"Retry-After": "300"})]
    ended = threading.Event()
    ended.set()
    found = listing()
    assert fetch(NAME, found.revision, found.files[0], tmp_path, retry=Retry(sleep=ended.wait)).exists()


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    for name in ("../x", "/etc/x", "a/../../x", "a\\..\\x"):
        with pytest.raises(ShardError, match="leads out of the folder"):
            fetch(NAME, "main", RemoteFile(name, 1), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_line(server: HubServer, tmp_path: Path, waits: Waits) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ShardError, match="Permission denied"):
        get(tmp_path, waits)


def test_a_file_in_the_place_of_the_folder_is_one_line(server: HubServer, tmp_path: Path, waits: Waits) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(ShardError) as error:
        get(tmp_path, waits)
    assert str(tmp_path) in one_line(error)


def test_nothing_is_imported_before_it_is_needed() -> None:
    code = "import sys, shard.data.hub; sys.exit('huggingface_hub' in sys.modules or 'httpx2' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Mirrors


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "mirror/datasets" / NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "mirror"


def test_a_mirror_is_read_where_it_lies(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "client", None)  # asked, it would fail
    found = list_files(NAME, "v9", ["data/*.parquet", "**/c.parquet"], mirror)
    assert found.revision == MIRROR
    assert found.files[0] == RemoteFile("data/a.parquet", len(CONTENT), None)
    for file in found.files:
        path = fetch(NAME, found.revision, file, Path("/nowhere"), mirror)
        assert path == mirror / "datasets" / NAME / file.path


def test_what_a_mirror_lacks_is_one_line(mirror: Path) -> None:
    with pytest.raises(ShardError) as error:
        list_files("someone/else", None, "*", mirror)
    assert str(mirror) in one_line(error) and NAME in one_line(error)
    with pytest.raises(ShardError, match=r"only such as other\.jsonl"):
        list_files(NAME, None, "*.json", mirror)
    file = list_files(NAME, None, "other.jsonl", mirror).files[0]
    path = mirror / "datasets" / NAME / "other.jsonl"
    path.write_bytes(b"{} {}")
    with pytest.raises(ShardError, match="has changed"):
        fetch(NAME, MIRROR, file, Path(), mirror)
    path.unlink()
    with pytest.raises(ShardError, match="no longer has"):
        fetch(NAME, MIRROR, file, Path(), mirror)
