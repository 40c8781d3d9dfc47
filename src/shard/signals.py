"""Being asked to stop: SIGINT (Ctrl-C) and SIGTERM, as a machine sends it before it is taken away."""

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, Self


class InterruptedRunError(BaseException):
    """A signal stopped the run. Exits with 128 + the signal's number.

    No Exception: it may come anywhere, and code that answers errors (of the network, of a damaged file) must not take
    it for one of them.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class _Handlers(AbstractContextManager["_Handlers"]):
    """Handlers for as long as the block lasts; none outside the main thread, where Python allows none."""

    def __init__(self, handle: Callable[[int], None], numbers: tuple[int, ...]) -> None:
        self._handle, self._numbers = handle, numbers
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> Self:
        try:
            for number in self._numbers:
                self._previous[number] = signal.signal(number, lambda number, _: self._handle(number))
        except ValueError:
            self._previous = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class StopFlag(_Handlers):
    """Remembers a signal until the step is done; a second one stops at once."""

    def __init__(self) -> None:
        super().__init__(self._remember, (signal.SIGINT, signal.SIGTERM))
        self.signal_number: int | None = None

    def _remember(self, number: int) -> None:
        if self.signal_number is not None:
            raise InterruptedRunError("stopped at once; the last checkpoint is untouched", number)
        self.signal_number = number


def stop_on_sigterm() -> AbstractContextManager[Any]:
    """SIGTERM ends what runs in the block by an error of one line; what is not finished is done again."""

    def stop(number: int) -> None:
        raise InterruptedRunError("interrupted; the same command goes on from what is done", number)

    return _Handlers(stop, (signal.SIGTERM,))
