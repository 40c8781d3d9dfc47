"""A hub on 127.0.0.1 that takes a model: making a repository, the upload of files with Git LFS, commits; and failures
on demand. What is not in LFS comes inside the commit.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "hf_the_token_of_the_test"
SIGNATURE = "signed-by-the-storage"

Fault = Callable[["Handler"], bool]
"""Answers a request in its own way and gives True, or leaves it as it is with False."""


class Handler(BaseHTTPRequestHandler):
    server: "UploadServer"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.body = b"".join(self.chunks())
        else:
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        self.server.requests.append((self.command, url.path))
        if self.server.faults and self.server.faults[0](self):
            self.server.faults.pop(0)
            return None
        if url.path.startswith("/storage/"):
            # A signed address is its own right: no token goes there.
            assert parse_qs(url.query) == {"signature": [SIGNATURE]} and "Authorization" not in self.headers
            return self.store(url.path.removeprefix("/storage/"))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send(401, {"error": "Invalid username or password."})
        match url.path.strip("/").split("/"):
            case ["api", "repos", "create"]:
                return self.create(json.loads(self.body))
            case ["api", "validate-yaml"]:
                return self.send(200, {"errors": [], "warnings": []})
            case ["api", "models", owner, name, "preupload", "main"]:
                return self.preupload(f"{owner}/{name}", json.loads(self.body))
            case [owner, name, "info", "lfs", "objects", "batch"]:
                return self.batch(json.loads(self.body))
            case ["api", "models", owner, name, "commit", "main"]:
                return self.commit(f"{owner}/{name}", [json.loads(line) for line in self.body.splitlines()])
            case ["api", "models", owner, name] | ["api", "models", owner, name, "revision", "main"]:
                if f"{owner}/{name}" not in self.server.repositories:
                    return self.send(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                return self.send(200, {"id": f"{owner}/{name}", "sha": self.server.head(f"{owner}/{name}")})
        return self.send(404, {"error": f"no such place: {self.command} {self.path}"})

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def send(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def create(self, asked: dict[str, Any]) -> None:
        if asked["organization"] not in self.server.writable:
            return self.send(403, {"error": f"You may not write to {asked['organization']}"})
        repository = f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.url}/{repository}"
        if repository in self.server.repositories:
            return self.send(409, {"error": "You already created this model repo", "url": url})
        self.server.repositories[repository] = {}
        self.server.visibility[repository] = asked.get("visibility")
        return self.send(200, {"url": url, "name": repository})

    def preupload(self, repository: str, asked: dict[str, Any]) -> None:
        there = self.server.repositories[repository]
        files = []
        for file in asked["files"]:
            is_large = file["path"].rpartition(".")[2] in ("pt", "gguf", "safetensors")
            entry = {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            if file["path"] in there:
                content = there[file["path"]]
                entry["oid"] = (
                    hashlib.sha256(content).hexdigest()
                    if is_large
                    else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                )
            files.append(entry)
        self.send(200, {"files": files})

    def batch(self, asked: dict[str, Any]) -> None:
        assert asked["operation"] == "upload"
        objects = []
        for entry in asked["objects"]:
            told = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.server.storage:
                address = f"{self.server.url}/storage/{entry['oid']}?signature={SIGNATURE}"
                told["actions"] = {"upload": {"href": address, "header": {}}}
            objects.append(told)
        self.send(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.storage[oid] = self.body
        self.send(200, {})

    def commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        assert lines[0]["key"] == "header"
        files = dict(self.server.repositories[repository])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile" and len(self.server.storage[value["oid"]]) == value["size"]
                files[value["path"]] = self.server.storage[value["oid"]]
        self.server.repositories[repository] = files
        oid = self.server.head(repository)
        self.send(200, {"commitUrl": f"{self.server.url}/{repository}/commit/{oid}", "commitOid": oid})


class UploadServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.writable = {"me"}
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.visibility: dict[str, str | None] = {}
        self.storage: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        """The first is offered every request until it answers one."""

    def head(self, repository: str) -> str:
        """A commit hash that follows from the files."""
        files = sorted(
            (path, hashlib.sha1(content).hexdigest()) for path, content in self.repositories[repository].items()
        )
        return hashlib.sha1(repr(files).encode()).hexdigest()

    def sent(self, method: str, start: str) -> list[str]:
        return [path for verb, path in self.requests if verb == method and path.startswith(start)]


def answers(status: int, method: str, part: str) -> Fault:
    """One answer of this status, to the next request of this method whose path holds `part`."""

    def fault(handler: Handler) -> bool:
        if handler.command == method and part in handler.path:
            handler.send(status, {"error": f"as the test wants it: {status}"})
            return True
        return False

    return fault


@contextmanager
def running() -> Iterator[UploadServer]:
    server = UploadServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
