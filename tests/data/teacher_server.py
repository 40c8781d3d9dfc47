"""A small OpenAI-compatible endpoint on a loopback port that answers as a test wants it to.

Run as a program it serves until it is killed: for the tests that kill who asks.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-a-very-secret-key"


@dataclass(frozen=True)
class Reply:
    """What one request gets, after so many seconds."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    seconds: float = 0.0


def answer_to(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a prompt: a pure function of the request."""
    prompt = request["prompt"] if "prompt" in request else request["messages"][-1]["content"]
    text = " ".join(f"Sentence {i} of {request['seed']} about {prompt}." for i in range(6))
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    choice |= {"text": text} if "prompt" in request else {"message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": len(prompt.split()) + 8, "completion_tokens": 30, "total_tokens": 0}
    return {"id": "1", "model": f"{request['model']}-2026", "choices": [choice], "usage": usage}


class TeacherServer(ThreadingHTTPServer):
    """Remembers the requests; `replies` are given first, one each, then good answers."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies: list[Reply] = []
        self.change: Callable[[dict[str, Any]], dict[str, Any]] = lambda answer: answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.under_way = self.most_under_way = 0
        self.seconds = 0.0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def seeds(self) -> list[int]:
        return [request["seed"] for request in self.requests]

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: TeacherServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.headers.append(dict(self.headers))
            self.server.paths.append(self.path)
            self.server.times.append(time.monotonic())
            reply = self.server.replies.pop(0) if self.server.replies else Reply(seconds=self.server.seconds)
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
        time.sleep(reply.seconds)
        with self.server.lock:
            self.server.under_way -= 1
        content = reply.body
        if content is None:
            good = self.server.change(answer_to(body))
            content = json.dumps(good if reply.status == 200 else {"error": {"message": "no"}}).encode()
        self.send_response(reply.status)
        for name, value in ({"Content-Length": str(len(content))} | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def running() -> Iterator[TeacherServer]:
    server = TeacherServer()
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    served = TeacherServer()
    served.seconds = float(sys.argv[1])
    print(served.url, flush=True)
    served.serve_forever()
