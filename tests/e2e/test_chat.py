"""`shard generate -i` on a real terminal: a pseudo-terminal, with the keys that a person presses."""

import os
import select
import signal
import sys
import time
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="pseudo-terminals are POSIX")
pytest.importorskip("readline", reason="editing needs readline")

LEFT, CTRL_C, CTRL_D, UP = "\x1b[D", "\x03", "\x04", "\x1b[A"


class Terminal:
    """A program on a terminal of its own: what it shows, and keys for it."""

    def __init__(self, *arguments: str) -> None:
        self.shown = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # whatever a test before it left behind
            environment = {**os.environ, "TERM": "dumb", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
            os.execve(sys.executable, [sys.executable, "-m", "shard", *arguments], environment)

    def press(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """What is shown up to and with the next `text`; the rest is kept for the next call."""
        deadline = time.monotonic() + seconds
        while text not in self.shown and time.monotonic() < deadline:
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self.fd, 65536).decode("utf-8", "replace")
                except OSError:  # the program has ended
                    break
        before, found, self.shown = self.shown.partition(text)
        assert found, f"{text!r} was not shown, but {before!r}"
        return before + found

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_conversation_with_its_keys(finished_run: Path) -> None:
    terminal = Terminal("generate", str(finished_run), "-i", "--max-tokens", "3")
    terminal.wait_for("Ctrl-D ends.")
    terminal.wait_for("> ")
    terminal.press(f"abé東{LEFT}{LEFT}X\r")
    terminal.wait_for("\nabXé東")  # the edited line, given back with its continuation
    terminal.wait_for("> ")
    terminal.press("thrown away")
    terminal.wait_for("thrown away")
    time.sleep(0.5)  # Python's readline overlooks a signal that comes between what it shows and its wait for a key
    terminal.press(CTRL_C)
    terminal.wait_for("\r\n> ")
    terminal.press(f"{UP}\r")
    terminal.wait_for("\nabXé東")
    terminal.wait_for("> ")
    terminal.press("12 " * 200 + "\r")
    terminal.wait_for("the model's context is 128: shorten it")
    terminal.wait_for("> ")
    terminal.press(CTRL_D)
    assert terminal.exit_code() == 0
