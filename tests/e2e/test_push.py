"""`shard release --push`: the real client against a server of this test; what arrives, is refused, is kept."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import huggingface_hub.utils._http
import pytest
import torch
from upload_server import SIGNATURE, TOKEN, UploadServer, answers, running

from shard.release.hugging_face_import import is_hugging_face
from shard.verify import read_sums, verify

Shard = Callable[..., Any]
NAME = "me/tiny"

# The client itself sends files in a way that its HTTP library deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[UploadServer]:
    """What the client asks. Its waits take no time here; files go by LFS, not by the hub's Xet store."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
    huggingface_hub.utils._http.close_session()


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def downloaded(server: UploadServer, shard: Shard, run: Path, tmp_path: Path) -> Path:
    """The repository, as the hub would give it back."""
    assert shard("release", run, "--push", NAME).code == 0
    folder = tmp_path / "downloaded"
    for path, content in server.repositories[NAME].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def tree(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file but the lock, whose content is the process."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_bytes_arrive(server: UploadServer, shard: Shard, run: Path) -> None:
    outcome = shard("release", run, "--push", NAME, "--private", "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)["push"]
    there, bundle = server.repositories[NAME], run / "release"
    assert result["status"] == "pushed" and result["commit"] == server.head(NAME)
    assert [(file["path"], file["bytes"]) for file in result["files"]] == sorted((p, len(c)) for p, c in there.items())
    for name in read_sums(bundle):
        if name != "README.md":
            assert there[name.removeprefix("hf/")] == (bundle / name).read_bytes()
    assert len(there) == len(read_sums(bundle)) + 1, "and SHA256SUMS; nothing fell on something else"
    assert server.visibility == {NAME: "private"}
    assert json.loads((run / "manifest.json").read_text())["stages"]["release"]["pushed"] == {
        "repository": NAME,
        "commit": server.head(NAME),
    }
    # Only the large files went to the storage.
    assert len(server.sent("PUT", "/storage/")) == len(
        [p for p in there if p.endswith((".pt", ".gguf", "safetensors"))]
    )


def test_the_repository_is_a_model_for_transformers_and_a_bundle(
    downloaded: Path, shard: Shard, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    card = (downloaded / "README.md").read_text()
    assert f"model='{NAME}'" in card and "`hf/`" not in card and "`model.safetensors`" in card
    assert verify(downloaded).problems == [] and verify(downloaded).kind == "bundle"
    assert not is_hugging_face(downloaded)
    model = transformers.AutoModelForCausalLM.from_pretrained(downloaded, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(downloaded)
    ids = tokenizer("The ", return_tensors="pt")
    theirs = tokenizer.decode(model.generate(**ids, max_new_tokens=10, do_sample=False)[0])
    assert shard("generate", downloaded, "The ", "--greedy", "--max-tokens", 10).out == theirs + "\n"
    outcome = shard("import", downloaded, "--out", tmp_path / "imported", "--json")
    assert json.loads(outcome.out)["step"] == 4, "with its optimizer, as a bundle is imported"


def test_a_dry_run_sends_nothing_and_changes_nothing(server: UploadServer, shard: Shard, run: Path) -> None:
    before = tree(run)
    outcome = shard("release", run, "--push", NAME, "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    assert server.requests == [] and server.repositories == {}
    assert "nothing was sent" in outcome.err and tree(run) == before
    listed = {file["path"]: file["bytes"] for file in json.loads(outcome.out)["push"]["files"]}
    assert listed["model.safetensors"] == (run / "release/hf/model.safetensors").stat().st_size
    assert "config.json" in outcome.err and "models/model.pt" in outcome.err


def test_no_secret_is_kept(server: UploadServer, shard: Shard, run: Path) -> None:
    server.faults = [answers(403, "PUT", "/storage/")] * 4
    outcomes = [shard("release", run, "--push", NAME) for _ in range(2)]
    assert {outcome.code for outcome in outcomes} <= {0, 1} and outcomes[0].code == 1
    for path in run.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert TOKEN.encode() not in content and SIGNATURE.encode() not in content, path
    for outcome in outcomes:
        assert TOKEN not in outcome.err + outcome.out and SIGNATURE not in outcome.err + outcome.out


def test_a_500_of_the_storage_is_asked_again(server: UploadServer, shard: Shard, run: Path) -> None:
    server.faults = [answers(503, "POST", "/preupload/"), answers(500, "PUT", "/storage/")]
    outcome = shard("release", run, "--push", NAME)
    assert outcome.code == 0 and SIGNATURE not in outcome.err
    assert server.faults == [] and "model.safetensors" in server.repositories[NAME]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (answers(401, "POST", "/repos/create"), "does not know this token"),
        (answers(500, "POST", "/commit/"), "answered 500"),
        (answers(429, "POST", "/repos/create"), "answered 429"),
        (answers(400, "POST", "/commit/"), "answered 400"),
    ],
)
def test_a_refusal_is_one_line_and_nothing_is_visible(
    server: UploadServer, shard: Shard, run: Path, fault: Any, words: str
) -> None:
    server.faults = [fault]
    outcome = shard("release", run, "--push", NAME)
    assert outcome.code == 1 and words in outcome.err.splitlines()[-1], outcome.err
    assert "Traceback" not in outcome.err and outcome.err.splitlines()[-1].startswith("shard: --push me/tiny")
    assert server.repositories.get(NAME, {}) == {}
    assert "pushed" not in json.loads((run / "manifest.json").read_text())["stages"]["release"]


def test_another_ones_account(server: UploadServer, shard: Shard, run: Path) -> None:
    outcome = shard("release", run, "--push", "you/tiny")
    assert outcome.code == 1 and "may not write there (403)" in outcome.err and server.repositories == {}


def test_an_upload_that_broke_is_finished_by_the_same_command(server: UploadServer, shard: Shard, run: Path) -> None:
    """What reached the storage is not sent again; a third time sends nothing at all."""
    server.faults = [answers(500, "POST", "/commit/")]
    assert shard("release", run, "--push", NAME).code == 1
    stored = set(server.storage)
    assert stored and server.repositories[NAME] == {}
    server.requests.clear()
    assert shard("release", run, "--push", NAME).code == 0
    assert server.sent("PUT", "/storage/") == [] and set(server.storage) == stored
    head = server.head(NAME)
    server.requests.clear()
    assert shard("release", run, "--push", NAME).code == 0
    assert server.head(NAME) == head and not [path for _, path in server.requests if "/commit/" in path]


def test_without_a_token_or_a_network(
    server: UploadServer, shard: Shard, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    outcome = shard("release", run, "--push", NAME)
    assert outcome.code == 1 and "the same command again sends what is missing" in outcome.err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    outcome = shard("release", run, "--push", NAME)
    assert outcome.code == 1 and "HF_HUB_OFFLINE forbids" in outcome.err
    monkeypatch.delenv("HF_TOKEN")
    outcome = shard("release", run, "--push", NAME)
    assert outcome.code == 1 and "set HF_TOKEN" in outcome.err
    assert server.requests == []


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "me/", "/tiny", "me/ti ny", "me/../x", "me/tiny.git", ""])
def test_a_name_that_is_none_is_refused_before_any_work(shard: Shard, tmp_path: Path, name: str) -> None:
    outcome = shard("release", tmp_path / "no-run", "--push", name)
    assert outcome.code == 2 and "ORG/NAME" in outcome.err and len(outcome.err.splitlines()) == 1


def test_its_options_belong_to_push(shard: Shard, run: Path) -> None:
    for option in ("--private", "--dry-run"):
        outcome = shard("release", run, option)
        assert outcome.code == 2 and "--push ORG/NAME" in outcome.err
