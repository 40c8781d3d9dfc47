"""Being asked to stop: once means after this step, twice means now."""

import os
import signal
import threading

import pytest

from shard.signals import InterruptedRunError, StopFlag, stop_on_sigterm

BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def handlers() -> object:
    """Handlers of our own, to see that they come back; whatever a test leaves, the old ones come back."""
    before = {number: signal.getsignal(number) for number in BOTH}
    ours = {number: lambda *_: None for number in BOTH}
    for number, handler in ours.items():
        signal.signal(number, handler)
    yield ours
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", BOTH)
def test_the_first_signal_is_remembered(handlers, number):
    with StopFlag() as stop:
        assert stop.signal_number is None
        send(number)
        assert stop.signal_number == number
    assert {n: signal.getsignal(n) for n in BOTH} == handlers
    send(number)  # goes to the handler from before
    assert stop.signal_number == number


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_one_stops_at_once(handlers, first, second, code):
    with pytest.raises(InterruptedRunError, match="last checkpoint is untouched") as raised, StopFlag():
        send(first)
        send(second)
    assert raised.value.exit_code == code
    assert {n: signal.getsignal(n) for n in BOTH} == handlers


def test_handlers_come_back_after_any_error(handlers):
    with pytest.raises(ZeroDivisionError), StopFlag():
        raise ZeroDivisionError
    assert {n: signal.getsignal(n) for n in BOTH} == handlers


def test_outside_of_the_main_thread_nothing_is_caught(handlers):
    seen = []

    def body() -> None:
        with StopFlag() as stop:
            seen.append((stop.signal_number, {n: signal.getsignal(n) for n in BOTH}))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(None, handlers)]


def test_sigterm_ends_what_is_not_training(handlers):
    with pytest.raises(InterruptedRunError, match="the same command goes on") as raised, stop_on_sigterm():
        assert signal.getsignal(signal.SIGINT) is handlers[signal.SIGINT], "Ctrl-C is Python's own affair"
        send(signal.SIGTERM)
    assert raised.value.exit_code == 143
    assert {n: signal.getsignal(n) for n in BOTH} == handlers


def test_code_that_answers_errors_lets_it_pass():
    def answers_all() -> None:
        try:
            send(signal.SIGTERM)
        except Exception:
            pytest.fail("taken for an error")

    with pytest.raises(InterruptedRunError), stop_on_sigterm():
        answers_all()


def test_one_within_the_other(handlers):
    """Training within a run of all stages: the inner one answers, then the outer one again."""
    with pytest.raises(InterruptedRunError), stop_on_sigterm():
        with StopFlag() as stop:
            send(signal.SIGTERM)
            assert stop.signal_number == signal.SIGTERM
        send(signal.SIGTERM)
    assert {n: signal.getsignal(n) for n in BOTH} == handlers
