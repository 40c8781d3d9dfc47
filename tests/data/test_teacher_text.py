"""Documents that an endpoint writes: what is sent, kept and tried again, and that no budget is overdrawn."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from teacher_server import KEY, Reply, TeacherServer, running

from shard.data import endpoint
from shard.data.documents import collect_documents
from shard.data.settings import DataSettings, TeacherSource
from shard.data.teacher_text import ANSWERS, JOURNAL, LEDGER, ask_teacher, read_answers, read_prompts
from shard.errors import ShardError, UsageError
from shard.files import read_json

PROMPTS = tuple(f"thing number {i}" for i in range(12))
BOUND = len(PROMPTS[0]) + 64 + 50  # what one request may take


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[TeacherServer]:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    with running() as server:
        yield server


def source(server: TeacherServer, **changes: Any) -> TeacherSource:
    values = {
        "kind": "teacher",
        "endpoint": server.url,
        "model": "big",
        "licence": "apache-2.0",
        "prompts": PROMPTS,
        "max_document_tokens": 50,
        "max_tokens": 100_000,
        "concurrency": 4,
        "timeout_seconds": 5.0,
    }
    return TeacherSource(**{**values, **changes})


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ANSWERS).read_text().splitlines()]


def test_every_record_has_its_prompt_model_and_parameters(server: TeacherServer, tmp_path: Path) -> None:
    asked = source(server, documents_per_prompt=2, system="Be brief.", temperature=0.7, top_p=0.9, seed=100)
    server.seconds = 0.1  # long enough that requests meet
    ask_teacher("text", asked, tmp_path)
    got = records(tmp_path)
    assert [record["number"] for record in got] == list(range(24))
    assert sorted(server.seeds()) == list(range(100, 124))
    assert set(server.paths) == {"/v1/chat/completions"}
    assert 1 < server.most_under_way <= 4
    assert server.requests[0] == {
        "model": "big",
        "stream": False,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 50,
        "seed": server.seeds()[0],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": PROMPTS[server.seeds()[0] - 100]},
        ],
    }
    thirteenth = got[13]
    assert thirteenth.pop("text").startswith("Sentence 0 of 113 about thing number 1.")
    assert thirteenth == {
        "number": 13,
        "prompt": "thing number 1",
        "system": "Be brief.",
        "model": "big-2026",
        "parameters": {
            "temperature": 0.7, "top_p": 0.9, "max_tokens": 50, "seed": 113, "model": "big", "route": "chat"
        },
        "finish_reason": "stop",
        "usage": {"input": 11, "output": 30, "is_measured": True},
    }  # fmt: skip
    ledger = read_json(tmp_path / LEDGER, "")
    assert ledger["answers"] == ledger["requests"] == 24
    assert ledger["tokens"] == {"input": sum(r["usage"]["input"] for r in got), "output": 24 * 30}
    assert ledger["stopped_by"] is None
    assert not (tmp_path / JOURNAL).exists()


def test_what_is_there_is_not_asked_for_again(server: TeacherServer, tmp_path: Path) -> None:
    path = ask_teacher("text", source(server), tmp_path)
    before = path.stat().st_mtime_ns
    assert len(server.requests) == 12
    ask_teacher("text", source(server, concurrency=1), tmp_path)
    assert len(server.requests) == 12
    assert path.stat().st_mtime_ns == before
    path.write_text("{}")
    with pytest.raises(
        ShardError, match=r"answers\.jsonl is not what answers\.json lists, and its answers were paid for"
    ):
        ask_teacher("text", source(server), tmp_path)


def test_answers_to_other_prompts_are_not_thrown_away(server: TeacherServer, tmp_path: Path) -> None:
    """Neither whole ones, nor those of a journal."""
    prompts = tmp_path / "prompts.txt"
    asked = source(server, prompts=(), prompts_file=str(prompts), concurrency=1)
    for replies in ([Reply(), Reply(400)], []):
        prompts.write_text("one\ntwo\n")
        server.replies = list(replies)
        if replies:
            with pytest.raises(ShardError, match="it refuses"):
                ask_teacher("text", asked, tmp_path / "run")
        else:
            ask_teacher("text", asked, tmp_path / "run")
        before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        prompts.write_text("one\nthree\n")
        with pytest.raises(ShardError, match="is of other prompts or settings than the recipe now has, and"):
            ask_teacher("text", asked, tmp_path / "run")
        assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_completions_continue_the_prompt(server: TeacherServer, tmp_path: Path) -> None:
    asked = source(server, route="completions", keep_prompt=True)
    ask_teacher("text", asked, tmp_path)
    assert set(server.paths) == {"/v1/completions"}
    assert next(read_answers(asked, tmp_path)).text.startswith("thing number 0Sentence 0")


def test_documents_of_one_prompt_are_one_group(server: TeacherServer, tmp_path: Path) -> None:
    asked = source(server, documents_per_prompt=3)
    ask_teacher("text", asked, tmp_path)
    groups = [document.group for document in read_answers(asked, tmp_path)]
    assert groups == [f"prompt {i}" for i in range(12)] * 3


def test_429_and_5xx_and_garbage_are_tried_again(server: TeacherServer, tmp_path: Path) -> None:
    server.replies = [
        Reply(429, {"Retry-After": "0"}),
        Reply(500),
        Reply(200, body=b"<html>not JSON"),
        Reply(200, body=b'{"choices": []}'),
        Reply(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        Reply(429),
    ]
    ask_teacher("text", source(server), tmp_path)
    assert [record["number"] for record in records(tmp_path)] == list(range(12))
    assert len(server.requests) == 18
    ledger = read_json(tmp_path / LEDGER, "")
    assert ledger["sent_and_not_answered"] == 2, "what was no answer may have been billed"


def test_retry_after_holds_back_all_requests(server: TeacherServer, tmp_path: Path) -> None:
    server.replies = [Reply(429, {"Retry-After": "0.6"})]
    ask_teacher("text", source(server, concurrency=1), tmp_path)
    assert server.times[1] - server.times[0] >= 0.6
    # The other two come later than the refusal, so that none is followed by a new one before it is read.
    server.replies, server.times = [Reply(429, {"Retry-After": "0.6"}), Reply(seconds=0.3), Reply(seconds=0.3)], []
    ask_teacher("text", source(server, concurrency=3, seed=1), tmp_path / "more")
    # The others that were out already; nothing new is sent until the wait is over.
    assert sum(t < server.times[0] + 0.55 for t in server.times) <= 3


def test_a_time_out_is_tried_again_and_counted(server: TeacherServer, tmp_path: Path) -> None:
    server.replies = [Reply(seconds=1.5)]
    ask_teacher("text", source(server, timeout_seconds=0.4), tmp_path)
    got = records(tmp_path)
    assert len(got) == 12
    ledger = read_json(tmp_path / LEDGER, "")
    assert ledger["sent_and_not_answered"] == 1
    assert ledger["tokens"]["output"] == 12 * 30 + 50


def test_requests_per_minute_is_kept(server: TeacherServer, tmp_path: Path) -> None:
    """One each tenth of a second, though eight may be under way."""
    ask_teacher("text", source(server, requests_per_minute=600.0, prompts=PROMPTS[:8], concurrency=8), tmp_path)
    assert server.times[-1] - server.times[0] >= 0.4, "seven gaps, less what a busy machine is late by"


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_what_cannot_help_is_not_tried_again_and_keeps_the_key_to_itself(
    server: TeacherServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    server.replies = [Reply(status, {"Location": "http://127.0.0.1:9/"}, f"wrong key {KEY}".encode())]
    with pytest.raises(
        ShardError, match=rf"sources\.text: 127.*it refuses: HTTP {status} 'wrong key \*\*\*'; \d+ of 12"
    ) as error:
        ask_teacher("text", source(server, api_key_env="TEACHER_KEY", concurrency=1), tmp_path)
    assert len(server.requests) == 1
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(error.value)
    ask_teacher("text", source(server, api_key_env="TEACHER_KEY"), tmp_path)
    assert len(records(tmp_path)) == 12
    for path in tmp_path.iterdir():
        assert KEY.encode() not in path.read_bytes()


def test_after_too_many_attempts_what_came_is_kept(server: TeacherServer, tmp_path: Path) -> None:
    ask = source(server, concurrency=1, attempts=3)
    server.replies = [Reply(), Reply(), Reply(500), Reply(502), Reply(429)]
    with pytest.raises(
        ShardError, match=r"no answer after 3 attempts, the last one: HTTP 429.*2 of 12 answers are kept"
    ):
        ask_teacher("text", ask, tmp_path)
    assert not (tmp_path / LEDGER).exists()
    before = len(server.requests)
    ask_teacher("text", ask, tmp_path)
    assert sorted(server.seeds()[before:]) == list(range(2, 12))


def test_no_server_is_one_line(tmp_path: Path, server: TeacherServer) -> None:
    nobody = source(server, endpoint="http://127.0.0.1:9/v1", attempts=2)
    with pytest.raises(ShardError, match=r"127\.0\.0\.1:9: no answer after 2 attempts, the last one: no connection"):
        ask_teacher("text", nobody, tmp_path)


def test_a_missing_key_is_named_before_anything_is_sent(
    server: TeacherServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(ShardError, match="environment variable TEACHER_KEY is not set"):
        ask_teacher("text", source(server, api_key_env="TEACHER_KEY"), tmp_path)
    assert not server.requests


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_budget_of_tokens_is_never_overdrawn(server: TeacherServer, tmp_path: Path, concurrency: int) -> None:
    """Every answer takes 11 + 30; the last request must leave room for all that it may take."""
    budget = 5 * 41 + BOUND - 1
    ask_teacher("text", source(server, max_tokens=budget, concurrency=concurrency), tmp_path)
    ledger = read_json(tmp_path / LEDGER, "")
    assert ledger["answers"] == len(server.requests) == 5
    assert ledger["stopped_by"] == "max_tokens"
    assert sum(ledger["tokens"].values()) <= budget


def test_the_budget_of_money_is_never_overdrawn(server: TeacherServer, tmp_path: Path) -> None:
    per_answer = (11 * 2 + 30 * 10) / 1e6
    per_request = ((BOUND - 50) * 2 + 50 * 10) / 1e6
    budget = 3 * per_answer + per_request * 0.99
    asked = source(server, max_tokens=None, max_cost=budget, price_input=2.0, price_output=10.0)
    ask_teacher("text", asked, tmp_path)
    ledger = read_json(tmp_path / LEDGER, "")
    assert (ledger["answers"], ledger["stopped_by"]) == (3, "max_cost")
    assert ledger["cost"] == pytest.approx(3 * per_answer)


def test_time_outs_are_paid_for_by_the_budget(server: TeacherServer, tmp_path: Path) -> None:
    server.replies = [Reply(seconds=0.8)] * 2
    asked = source(server, timeout_seconds=0.3, concurrency=1, max_tokens=2 * BOUND + 41 + 10)
    with pytest.raises(ShardError, match="max_tokens is less than one request may take"):
        ask_teacher("text", asked, tmp_path)
    assert len(server.requests) == 2, "a third might have overdrawn it"


def test_an_endpoint_that_counts_nothing_is_counted_in_full(server: TeacherServer, tmp_path: Path) -> None:
    server.change = lambda answer: {key: value for key, value in answer.items() if key != "usage"}
    ask_teacher("text", source(server, max_tokens=3 * BOUND, prompts=PROMPTS[:10]), tmp_path)
    ledger = read_json(tmp_path / LEDGER, "")
    assert ledger["answers"] == 3
    assert {record["usage"]["is_measured"] for record in records(tmp_path)} == {False}


def test_a_journal_that_was_cut_off_goes_on_after_its_last_whole_line(server: TeacherServer, tmp_path: Path) -> None:
    server.replies = [Reply()] * 3 + [Reply(400)]
    with pytest.raises(ShardError):
        ask_teacher("text", source(server, concurrency=1), tmp_path)
    journal = (tmp_path / JOURNAL).read_bytes()
    lines = journal.splitlines(keepends=True)
    ends = [sum(map(len, lines[: i + 1])) for i in range(len(lines))]
    for number, cut in enumerate([ends[2] - 1, ends[2] - 20, ends[2], ends[4] + 5, 3]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / JOURNAL).write_bytes(journal[:cut])
        ask_teacher("text", source(server), folder)
        assert [record["number"] for record in records(folder)] == list(range(12))


def test_a_kill_in_the_middle_loses_no_answer_and_pays_for_none_twice(tmp_path: Path) -> None:
    """kill -9, twice; who asks ends with what an undisturbed one has, but for what was under way."""
    program = (
        "import sys, json; from pathlib import Path; from shard.data.settings import TeacherSource; "
        "from shard.data.teacher_text import ask_teacher; "
        "ask_teacher('text', TeacherSource(**json.loads(sys.argv[1])), Path(sys.argv[2]))"
    )
    command = [sys.executable, str(Path(__file__).with_name("teacher_server.py")), "0.03"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        try:
            assert served.stdout is not None
            url = served.stdout.readline().strip()
            with running() as unused:
                asked = source(unused, endpoint=url, concurrency=2, documents_per_prompt=8)
            for kill in range(3):
                process = subprocess.Popen(
                    [sys.executable, "-c", program, asked.model_dump_json(exclude_none=True), str(tmp_path / "killed")]
                )
                journal, wanted = tmp_path / "killed" / JOURNAL, 25 * (kill + 1)
                while kill < 2 and process.poll() is None:
                    if journal.exists() and journal.read_bytes().count(b'"text"') >= wanted:
                        os.kill(process.pid, signal.SIGKILL)
                        break
                    time.sleep(0.005)
                assert process.wait() == (-signal.SIGKILL if kill < 2 else 0)
            ask_teacher("text", asked, tmp_path / "whole")
        finally:
            served.kill()
    assert (tmp_path / "killed" / ANSWERS).read_bytes() == (tmp_path / "whole" / ANSWERS).read_bytes()
    ledger = read_json(tmp_path / "killed" / LEDGER, "")
    assert ledger["sent_and_not_answered"] <= 2 * 2
    assert not (tmp_path / "killed" / JOURNAL).exists()


def test_answers_become_documents(server: TeacherServer, tmp_path: Path) -> None:
    asked = source(server, documents_per_prompt=4, near_duplicates="keep")
    ledgers = collect_documents({"text": asked}, DataSettings(evaluation_sets=()), 0, tmp_path)
    assert ledgers["text"].documents_read == 48
    assert sum(ledgers["text"].documents.values()) == 48
    assert ledgers["text"].origin == {"endpoint": server.url, "model": "big"}
    assert (tmp_path / "text" / ANSWERS).is_file()
    collect_documents({"text": asked}, DataSettings(evaluation_sets=()), 0, tmp_path)
    assert len(server.requests) == 48


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": None}, "a teacher needs a budget"),
        ({"max_cost": 1.0}, "it takes price_input and price_output"),
        ({"prompts": ()}, "give either prompts or a prompts_file"),
        ({"prompts_file": "a.txt"}, "give either prompts or a prompts_file"),
        ({"api_key_env": "sk-123"}, "api_key_env"),
        ({"endpoint": "https://user:word@host/v1"}, "endpoint"),
        ({"endpoint": "host/v1"}, "endpoint"),
        ({"route": "completions", "system": "x"}, "completions has no place for it"),
    ],
)
def test_a_wrong_table_is_refused(server: TeacherServer, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        source(server, **changes)


def test_prompts_from_files(server: TeacherServer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "one\\nmore"}\n{"prompt": "two"}\n')
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "d.txt").write_text("\n")
    read = [source(server, prompts=(), prompts_file=str(tmp_path / name)) for name in ("a.txt", "b.jsonl")]
    assert [read_prompts(one) for one in read] == [["one", "two"], ["one\nmore", "two"]]
    for name, message in (("c.jsonl", "give a .txt"), ("d.txt", "holds no prompt"), ("e.txt", "give a .txt")):
        with pytest.raises(UsageError, match=message):
            read_prompts(source(server, prompts=(), prompts_file=str(tmp_path / name)))
