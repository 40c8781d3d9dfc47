"""From tokens to text as they come: whole characters only, and nothing of a stop string."""

from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Tokenizer


class TextStream:
    """The text of tokens that come one by one. A character whose bytes lie in several tokens waits for the last of
    them, and what may be the beginning of a stop string waits until it is one or is none.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        """Whether a stop string came: the text ends before it."""
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._ids: list[int] = []  # those whose text is not whole yet
        self._held = ""  # whole text that may yet belong to a stop string

    def begin(self, prompt_ids: Sequence[int]) -> str:
        """The text of the prompt, in which no stop string is looked for."""
        stops, self._stops = self._stops, ()
        shown = "".join(map(self.push, prompt_ids))
        self._stops = stops
        return shown

    def push(self, token: int) -> str:
        """What can be shown once this token is known; "" where something waits."""
        if self.stopped:
            return ""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        # Bytes that end within a character are shown as U+FFFD. Where a text ends whole, the next begins anew.
        if not text or text.endswith("\ufffd"):
            return ""
        self._ids = []
        return self._release(text)

    def finish(self) -> str:
        """What still waits when no more tokens come."""
        if self.stopped:
            return ""
        shown = self._release(self._tokenizer.decode(self._ids))
        rest, self._ids, self._held = self._held, [], ""
        return shown + rest

    def _release(self, text: str) -> str:
        text = self._held + text
        # Of several stop strings that which is complete first, however the text was cut into tokens.
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        num_shown = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[num_shown:]
        return text[:num_shown]


def stream_text(
    tokenizer: Tokenizer, prompt_ids: Sequence[int], new_ids: Iterable[int], stops: Sequence[str] = ()
) -> Iterator[str]:
    """The text of prompt and continuation in pieces that are not empty, up to the first stop string of the
    continuation, beyond which no token is asked for. Without one the pieces join to exactly the decoded ids.
    """
    stream = TextStream(tokenizer, stops)
    if piece := stream.begin(prompt_ids):
        yield piece
    for token in new_ids:
        if piece := stream.push(token):
            yield piece
        if stream.stopped:
            return
    if piece := stream.finish():
        yield piece


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that `stop` begins with, in characters; less than the whole of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
