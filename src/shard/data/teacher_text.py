"""Source kind `teacher`: documents that a model behind an OpenAI-compatible endpoint writes from the recipe's prompts.

    data/<source>/answers.part.jsonl   while it is asked: what was sent and what came back, line by line, on the disk
                  answers.jsonl        one record an answer, in the order of requests: text, prompt, model, parameters
                  answers.json         what was asked and spent, and the hash of the answers; last

Request n is prompt n modulo their number. A restart asks only for what is missing. The budget holds over restarts and
for the worst: before a request is sent, the most that it can use is set aside, and a request of which nothing is known
(a time-out, a kill) counts as that. With answers.json there, nothing is asked anymore.
"""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from shard.data.document import Document
from shard.data.endpoint import Answer, Endpoint, EndpointError
from shard.data.settings import TeacherSource
from shard.errors import ShardError, UsageError
from shard.files import atomic_open, read_json, sha256_of, write_json
from shard.provenance import fingerprint

ANSWERS, LEDGER, JOURNAL = "answers.jsonl", "answers.json", "answers.part.jsonl"
TEMPLATE_TOKENS = 64
"""Tokens that an endpoint's chat template may add to a prompt, at most."""
_BYTES_PER_TOKEN = 5
# What changes no answer that is there already.
_WITHOUT_EFFECT = {
    "license",
    "licence",
    "api_key_env",
    "concurrency",
    "requests_per_minute",
    "timeout_seconds",
    "attempts",
}


@dataclass
class Spent:
    """Tokens by what they cost, and money."""

    source: TeacherSource
    input: int = 0
    output: int = 0

    def add(self, tokens: tuple[int, int], sign: int = 1) -> None:
        """Count (input, output) tokens, or take them back."""
        self.input, self.output = self.input + sign * tokens[0], self.output + sign * tokens[1]

    @property
    def cost(self) -> float:
        """In the currency of the prices; 0 without."""
        return (self.input * (self.source.price_input or 0) + self.output * (self.source.price_output or 0)) / 1e6

    def exceeded(self) -> str | None:
        """The key of the budget that is overdrawn."""
        if self.source.max_tokens is not None and self.input + self.output > self.source.max_tokens:
            return "max_tokens"
        # A rounding error is not money.
        return (
            "max_cost" if self.source.max_cost is not None and self.cost > self.source.max_cost * (1 + 1e-9) else None
        )


@dataclass
class Journal:
    """What was sent and what came back, of this process and of those before it; every line is on the disk at once."""

    path: Path
    source: TeacherSource
    inputs: str
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)
    unknown: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """By request: what was set aside for each time that it was sent and nothing is known of."""
    _file: IO[bytes] | None = None

    def open(self) -> None:
        """Read what is there, drop a line that was cut off, and go on after it. ShardError where it was begun with
        other prompts or settings: its answers were paid for.
        """
        kept = 0
        if self.path.exists():
            with self.path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n") or not self._take(line):
                        break
                    kept += len(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        self._file.truncate(kept)
        if kept == 0:
            self._write({"requests": self.inputs})

    def _take(self, line: bytes) -> bool:
        """One line; False where it is none of ours, so that it and what follows is asked for again."""
        try:
            entry = json.loads(line)
            match entry:
                case {"requests": inputs}:
                    if inputs != self.inputs:
                        raise ShardError(_asked_otherwise(self.path))
                case {"sent": number, "input": most_input, "output": most_output}:
                    self.unknown.setdefault(int(number), []).append((int(most_input), int(most_output)))
                case {"not_billed": number}:
                    self.unknown[int(number)].pop()
                case {"number": number, "text": str(), "usage": {"input": int(), "output": int()}}:
                    self.unknown[int(number)].pop()
                    self.answers[int(number)] = entry
                case _:
                    return False
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            return False
        return True

    def spent(self) -> Spent:
        """What is known to be used, and all that may be."""
        total = Spent(self.source)
        for record in self.answers.values():
            total.add((record["usage"]["input"], record["usage"]["output"]))
        for sent in self.unknown.values():
            for most in sent:
                total.add(most)
        return total

    def send(self, number: int, most: tuple[int, int]) -> None:
        """Before a request goes out."""
        self.unknown.setdefault(number, []).append(most)
        self._write({"sent": number, "input": most[0], "output": most[1]})

    def not_billed(self, number: int) -> None:
        """The endpoint refused the last request of this number."""
        self.unknown[number].pop()
        self._write({"not_billed": number})

    def answer(self, record: dict[str, Any]) -> None:
        """The endpoint answered."""
        self.unknown[record["number"]].pop()
        self.answers[record["number"]] = record
        self._write(record)

    def _write(self, entry: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            self._file.close()


def read_prompts(source: TeacherSource) -> list[str]:
    """The prompts of a recipe. UsageError where their file cannot be read or holds none."""
    if source.prompts_file is None:
        return list(source.prompts)
    path = Path(source.prompts_file)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        if path.suffix.lower() == ".jsonl":
            prompts = [str(json.loads(line)["prompt"]) for line in lines if line.strip()]
        else:
            prompts = [line.strip() for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f'prompts_file {path}: {error!r:.200}: give a .txt with a prompt a line, or a .jsonl with a field "prompt"'
        ) from None
    if not (prompts := [prompt for prompt in prompts if prompt]):
        raise UsageError(f"prompts_file {path} holds no prompt")
    return prompts


def likely_answer_bytes(source: TeacherSource) -> int:
    """Text that the answers may be, at most about."""
    tokens = len(read_prompts(source)) * source.documents_per_prompt * source.max_document_tokens
    return min(tokens, source.max_tokens or tokens) * _BYTES_PER_TOKEN


def read_answers(source: TeacherSource, folder: Path) -> Iterator[Document]:
    """The documents of a source's folder. Those of one prompt are one group, so that none of them is held out alone."""
    num_prompts = len(read_prompts(source))
    with (folder / ANSWERS).open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            text = f"{record['prompt']}{record['text']}" if source.keep_prompt else record["text"]
            yield Document(text, f"prompt {record['number'] % num_prompts}")


def ask_teacher(
    name: str, source: TeacherSource, folder: Path, progress: Callable[[str], object] = lambda text: None
) -> Path:
    """The file of answers of one source, asked for as far as it is not there. ShardError where the endpoint refuses, or
    fails too often: what came before is kept.
    """
    prompts = read_prompts(source)
    settings = {k: v for k, v in source.model_dump(mode="json").items() if k not in _WITHOUT_EFFECT}
    inputs = fingerprint(settings, prompts)
    path = folder / ANSWERS
    if (folder / LEDGER).exists():
        ledger = read_json(folder / LEDGER, "delete it: what is missing is asked for again")
        if ledger.get("inputs") != inputs:
            raise ShardError(_asked_otherwise(folder / LEDGER))
        if not path.is_file() or sha256_of(path) != ledger.get("sha256"):
            raise ShardError(
                f"{path} is not what {LEDGER} lists, and its answers were paid for: put it back, or delete "
                f"{folder / LEDGER} to ask again"
            )
        (folder / JOURNAL).unlink(missing_ok=True)
        return path
    journal = Journal(folder / JOURNAL, source, inputs)
    journal.open()
    try:
        asking = _Asking(name, source, prompts, journal, _key(name, source), progress)
        stopped = asyncio.run(asking.run())
    finally:
        journal.close()
    if not journal.answers:
        raise ShardError(
            f"sources.{name}: {stopped} is less than one request may take: raise it, or lower max_document_tokens"
        )
    with atomic_open(path) as file:
        for number in sorted(journal.answers):
            file.write(json.dumps(journal.answers[number], ensure_ascii=False).encode() + b"\n")
    spent = journal.spent()
    write_json(
        folder / LEDGER,
        {
            "endpoint": source.endpoint,
            "model": source.model,
            "licence": source.licence,
            "requests": asking.total,
            "answers": len(journal.answers),
            "stopped_by": stopped,
            "tokens": {"input": spent.input, "output": spent.output},
            "cost": round(spent.cost, 6) if source.price_input is not None else None,
            "sent_and_not_answered": sum(map(len, journal.unknown.values())),
            "inputs": inputs,
            "sha256": sha256_of(path),
        },
    )
    (folder / JOURNAL).unlink()
    return path


def _asked_otherwise(path: Path) -> str:
    return (
        f"{path} is of other prompts or settings than the recipe now has, and its answers were paid for: put these "
        "back, or delete it to ask anew"
    )


def _key(name: str, source: TeacherSource) -> str | None:
    if source.api_key_env is None:
        return None
    if not (key := os.environ.get(source.api_key_env, "").strip()):
        raise ShardError(f"sources.{name}: the environment variable {source.api_key_env} is not set: put the key there")
    return key


class _Asking:
    """All requests of a source, so many at a time."""

    def __init__(
        self,
        name: str,
        source: TeacherSource,
        prompts: list[str],
        journal: Journal,
        key: str | None,
        progress: Callable[[str], object],
    ) -> None:
        self.name, self.source, self.prompts, self.journal, self.progress = name, source, prompts, journal, progress
        self.total = len(prompts) * source.documents_per_prompt
        self._key, self._spent = key, journal.spent()

    async def run(self) -> str | None:
        """Ask for all that is missing. The key of the budget that ended it early, or None."""
        missing = [number for number in range(self.total) if number not in self.journal.answers]
        under_way: set[asyncio.Task[None]] = set()
        stopped = None
        async with Endpoint(self.source, self._key) as endpoint:
            try:
                for number in missing:
                    while len(under_way) >= self.source.concurrency or (under_way and self._too_much(number)):
                        under_way = await _first_done(under_way)
                    if stopped := self._too_much(number):
                        break
                    under_way.add(asyncio.create_task(self._answer(endpoint, number)))
                    await asyncio.sleep(0)  # so that it sets aside what it takes before the next is looked at
                while under_way:
                    under_way = await _first_done(under_way)
            except EndpointError as error:
                # What is under way is paid for: let it arrive.
                await asyncio.gather(*under_way, return_exceptions=True)
                host, kept = urlsplit(self.source.endpoint).netloc, len(self.journal.answers)
                raise ShardError(
                    f"sources.{self.name}: {host}: {error}; {kept} of {self.total} answers are kept: the same command "
                    "goes on from there"
                ) from None
            except _OutOfBudgetError as error:
                await asyncio.gather(*under_way, return_exceptions=True)
                stopped = str(error)
        return stopped

    def _most(self, number: int) -> tuple[int, int]:
        """(input, output) tokens that a request may take: a token is at least a byte."""
        text = self.prompts[number % len(self.prompts)] + (self.source.system or "")
        return len(text.encode()) + TEMPLATE_TOKENS, self.source.max_document_tokens

    def _too_much(self, number: int) -> str | None:
        """The key of the budget that this request may overdraw."""
        after = Spent(self.source, self._spent.input, self._spent.output)
        after.add(self._most(number))
        return after.exceeded()

    async def _answer(self, endpoint: Endpoint, number: int) -> None:
        prompt, most = self.prompts[number % len(self.prompts)], self._most(number)
        seed = self.source.seed + number

        def send() -> None:
            if key := self._too_much(number):
                raise _OutOfBudgetError(key)
            self._spent.add(most)
            self.journal.send(number, most)

        def refused() -> None:
            self._spent.add(most, -1)
            self.journal.not_billed(number)

        answer: Answer = await endpoint.ask(prompt, seed, send, refused)
        used = (most[0] if answer.input is None else answer.input, most[1] if answer.output is None else answer.output)
        self._spent.add(most, -1)
        self._spent.add(used)
        record = {
            "number": number,
            "text": answer.text,
            "prompt": prompt,
            "system": self.source.system,
            "model": answer.model,
            "parameters": endpoint.parameters(seed) | {"model": self.source.model, "route": self.source.route},
            "finish_reason": answer.finish_reason,
            "usage": {"input": used[0], "output": used[1], "is_measured": answer.output is not None},
        }
        self.journal.answer(record)
        self.progress(
            f"{self.name}, {len(self.journal.answers):,} of {self.total:,} answers, "
            f"{self._spent.input + self._spent.output:,} tokens"
            + (f", cost {self._spent.cost:.4g}" if self.source.price_input is not None else "")
        )


class _OutOfBudgetError(Exception):
    """A further attempt may overdraw the budget."""


async def _first_done(tasks: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Those that are not done when the first is; what it raised is raised."""
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    failure: BaseException | None = None
    for task in done:
        raised = task.exception()  # asked of each, or asyncio complains
        failure = failure or raised
    tasks -= done
    if failure is not None:
        raise failure
    return pending
