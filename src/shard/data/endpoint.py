"""An OpenAI-compatible endpoint: one question at a time or many, in its own pace, and tried again where that may help.

429, 5xx, time-outs and connections that break are tried again, after what Retry-After asks for, else after a wait
that doubles; a 429 or 503 holds back all requests. Whatever else is wrong is raised. The key is sent in a header, and
appears in no message.
"""

import asyncio
import email.utils
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from shard.data.settings import TeacherSource

FIRST_WAIT, LONGEST_WAIT = 1.0, 120.0
"""Seconds before the second attempt, and at most before any; each wait is twice the one before, with jitter."""
LONGEST_ASKED_WAIT = 3600.0
"""Seconds that a Retry-After is heeded for, at most."""
_PASSING = frozenset({408, 409, 425, 429})
_FOR_ALL = frozenset({429, 503})


class EndpointError(Exception):
    """What an endpoint refused, or failed at too often."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back. `input` and `output` are tokens; None where the endpoint does not say."""

    text: str
    model: str
    finish_reason: str | None
    input: int | None
    output: int | None


class Endpoint:
    """A connection; use it in `async with`."""

    def __init__(self, source: TeacherSource, key: str | None) -> None:
        self._source, self._key = source, key
        self._next = 0.0
        """When the next request may go out, on the clock of time.monotonic()."""

    async def __aenter__(self) -> Self:
        import httpx2

        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        limits = httpx2.Limits(max_connections=self._source.concurrency)
        # Redirects are not followed: they could lead the key elsewhere.
        self._client = httpx2.AsyncClient(headers=headers, timeout=self._source.timeout_seconds, limits=limits)
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *arguments: Any) -> None:
        await self._client.__aexit__(*arguments)

    def parameters(self, seed: int) -> dict[str, Any]:
        """What decides an answer beside model and prompt."""
        source = self._source
        return {
            "temperature": source.temperature,
            "top_p": source.top_p,
            "max_tokens": source.max_document_tokens,
            "seed": seed,
        }

    async def ask(self, prompt: str, seed: int, send: Callable[[], object], refused: Callable[[], object]) -> Answer:
        """The answer to a prompt. `send` is called before each attempt, `refused` after one that the endpoint says it
        did not serve; after a time-out neither is known. EndpointError where it does not answer.
        """
        import httpx2

        reason = ""
        for attempt in range(self._source.attempts):
            await self._wait_for_turn()
            send()
            asked: float | None = None
            try:
                response = await self._client.post(self._url(), json=self._body(prompt, seed))
                status = response.status_code
                if status == 200:
                    return _read(response.json())
                reason = self._hide_key(f"HTTP {status} {response.text[:200]!r}")
                refused()
                if status not in _PASSING and status < 500:
                    raise EndpointError(f"it refuses: {reason}")
                asked = _retry_after(response.headers.get("Retry-After"))
                if status in _FOR_ALL and asked is not None:
                    self._next = max(self._next, time.monotonic() + asked)
            except httpx2.ConnectError as error:
                reason = self._hide_key(f"no connection ({error})")
                refused()
            except (httpx2.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
                reason = self._hide_key(f"{type(error).__name__} {error}".strip()[:200])
            if attempt + 1 < self._source.attempts:
                wait = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1)
                await asyncio.sleep(wait if asked is None else asked)
        raise EndpointError(f"no answer after {self._source.attempts} attempts, the last one: {reason}")

    async def _wait_for_turn(self) -> None:
        """Until the pace allows one more request."""
        gap = 60 / self._source.requests_per_minute if self._source.requests_per_minute else 0.0
        while (wait := self._next - time.monotonic()) > 0:
            if gap:  # each has a turn of its own
                self._next += gap
            await asyncio.sleep(wait)
            if gap:
                return
        if gap:
            self._next = time.monotonic() + gap

    def _url(self) -> str:
        route = "chat/completions" if self._source.route == "chat" else "completions"
        return f"{self._source.endpoint.rstrip('/')}/{route}"

    def _body(self, prompt: str, seed: int) -> dict[str, Any]:
        body = {"model": self._source.model, "stream": False, **self.parameters(seed)}
        if self._source.route == "completions":
            return body | {"prompt": prompt}
        system = [] if self._source.system is None else [{"role": "system", "content": self._source.system}]
        return body | {"messages": [*system, {"role": "user", "content": prompt}]}

    def _hide_key(self, text: str) -> str:
        return text if not self._key else text.replace(self._key, "***")


def _read(answer: dict[str, Any]) -> Answer:
    """ValueError, KeyError, IndexError or TypeError for what is no answer."""
    choice = answer["choices"][0]
    text = choice["message"].get("content") if "message" in choice else choice["text"]
    usage = answer.get("usage") or {}
    counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
    given, made = (count if isinstance(count, int) and count >= 0 else None for count in counts)
    if text is not None and not isinstance(text, str):
        raise TypeError(f"the text is a {type(text).__name__}")
    reason = choice.get("finish_reason")
    return Answer(
        text=text or "",
        model=str(answer.get("model", "")),
        finish_reason=None if reason is None else str(reason),
        input=given,
        output=made,
    )


def _retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After asks for, as a number or as a date; None where it asks for nothing."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(max(0.0, seconds), LONGEST_ASKED_WAIT)
