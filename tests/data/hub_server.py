"""A small hub on 127.0.0.1: the part of the API that reading a dataset, or a file of a model, takes, and failures on
demand.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    sent: int = 0
    """Bytes of content that were sent in answer."""


@dataclass
class Repository:
    """The files of each commit, by path. The newest commit is `main`."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    token: str | None = None
    """What a request must bear, where the repository is private."""
    gated: bool = False

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        return sha

    def resolve(self, revision: str) -> str | None:
        return [*self.commits][-1] if revision == "main" else revision if revision in self.commits else None


Fault = Callable[["Handler"], bool]
"""Answers a request for content in its own way and gives True, or leaves it as it is with False."""


class Handler(BaseHTTPRequestHandler):
    server: "HubServer"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a head and its body are 40 ms apart

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.request_seen = Request(
            self.command, self.path, {name.lower(): value for name, value in self.headers.items()}
        )
        self.server.requests.append(self.request_seen)
        if self.server.faults and self.server.faults[0](self):
            self.server.faults.pop(0)
            return
        match unquote(url.path).strip("/").split("/"):
            case ["api", "datasets", owner, name, "revision", revision]:
                if found := self.find(f"{owner}/{name}", revision):
                    self.send_json({"id": f"{owner}/{name}", "sha": found[0]})
            case ["api", "datasets", owner, name, "tree", revision]:
                if found := self.find(f"{owner}/{name}", revision):
                    self.send_tree(found[1], parse_qs(url.query))
            case ["datasets", owner, name, "resolve", revision, *path]:
                if found := self.find(f"{owner}/{name}", revision):
                    self.redirect(found, f"{owner}/{name}", "/".join(path))
            case [owner, name, "resolve", revision, *path]:  # of a model; what is not in LFS comes at once
                if found := self.find(f"{owner}/{name}", revision):
                    self.send_file(found, "/".join(path))
            case ["storage", digest]:
                self.send_content(self.server.storage[digest])
            case _:
                self.send_error_code(404, "Unknown", "no such place")

    def find(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit's hash and files; where there is none, the answer is sent."""
        held = self.server.repositories.get(repository)
        bearer = self.headers.get("Authorization")
        if held is None or (held.token is not None and bearer != f"Bearer {held.token}"):
            # So does the hub, to whoever may not know that a repository exists.
            self.send_error_code(401, "RepoNotFound", "Repository not found")
        elif held.gated and bearer is None:
            self.send_error_code(401, "GatedRepo", "Access is restricted")
        elif (sha := held.resolve(revision)) is None:
            self.send_error_code(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return sha, held.commits[sha]
        return None

    def send_tree(self, files: dict[str, bytes], query: dict[str, list[str]]) -> None:
        """Folders too, as the hub has them, and not all on the first page."""
        start = int(query.get("cursor", ["0"])[0])
        entries: list[dict[str, object]] = [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
            for path in sorted({path.rpartition("/")[0] for path in files} - {""})
        ]
        for path, content in files.items():
            entry: dict[str, object] = {"type": "file", "oid": "1" * 40, "size": len(content), "path": path}
            if path in self.server.listed_sizes:
                entry["size"] = self.server.listed_sizes[path]
            if not path.endswith(".md"):  # what is small is not in LFS
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        page, more = entries[start : start + 3], entries[start + 3 :]
        headers = {}
        if more:
            headers["Link"] = f'<{self.server.url}{urlsplit(self.path).path}?cursor={start + 3}>; rel="next"'
        self.send_json(page, headers)

    def redirect(self, found: tuple[str, dict[str, bytes]], repository: str, path: str) -> None:
        """LFS files lie elsewhere: the answer is a redirect to signed storage that tells what will come."""
        sha, files = found
        if path not in files:
            self.send_error_code(404, "EntryNotFound", "Entry not found")
            return
        digest = hashlib.sha256(files[path]).hexdigest()
        self.server.storage[digest] = files[path]
        self.send_response(302)
        for name, value in {
            "Location": f"{self.server.url}/storage/{digest}",
            "X-Repo-Commit": sha,
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(files[path])),
            "Content-Length": "0",
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def send_file(self, found: tuple[str, dict[str, bytes]], path: str) -> None:
        sha, files = found
        if path not in files:
            self.send_error_code(404, "EntryNotFound", "Entry not found")
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", sha)
        self.send_header("ETag", f'"{hashlib.sha1(files[path]).hexdigest()}"')
        self.send_header("Content-Length", str(len(files[path])))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(files[path])

    def send_content(self, content: bytes, until: int | None = None) -> None:
        """What the Range asks for. With `until`, the connection is cut before that byte."""
        start = 0
        if self.server.knows_ranges and (asked := self.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error_code(416, "Range", "nothing there")
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:until])
            self.wfile.flush()
            self.request_seen.sent = len(content[start:until])
        if until is not None:
            self.close_connection = True

    def send_json(self, value: object, headers: dict[str, str] | None = None, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def send_error_code(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self.send_json(
            {"error": message}, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}, status
        )


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.storage: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        """Each is offered every request until it answers one."""
        self.listed_sizes: dict[str, int] = {}
        self.knows_ranges = True

    def content_requests(self) -> list[Request]:
        return [request for request in self.requests if request.path.startswith("/storage/")]


def answers(status: int, headers: dict[str, str] | None = None, where: str = "/storage/") -> Fault:
    """One answer of this status, to the next request below `where`."""

    def fault(handler: Handler) -> bool:
        if handler.path.startswith(where):
            handler.send_error_code(status, "Fault", f"as the test wants it: {status}", headers)
            return True
        return False

    return fault


def cuts_at(num_bytes: int) -> Fault:
    """The next content ends before byte `num_bytes`, and the connection with it."""

    def fault(handler: Handler) -> bool:
        if handler.path.startswith("/storage/"):
            handler.send_content(handler.server.storage[handler.path.removeprefix("/storage/")], num_bytes)
            return True
        return False

    return fault


def sends(content: bytes) -> Fault:
    """The next content is another one."""

    def fault(handler: Handler) -> bool:
        if handler.path.startswith("/storage/"):
            handler.send_content(content)
            return True
        return False

    return fault


@contextmanager
def running() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
