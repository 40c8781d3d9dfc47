"""What a person sees: lines always; on a terminal also one live line that is overwritten."""

import time

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

LIVE_LINE_SECONDS = 0.2
PLAIN_LINE_SECONDS = 15.0


class Reporter:
    """Prints lines to stderr (stdout belongs to results) and shows progress: live on a terminal, else now and then."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self._status: Status | None = None
        self._shown_at = 0.0

    def line(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A line that stays and stands out."""
        self.console.print(f"! {text}", markup=False, style="yellow")

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A small table; all columns but the first are numbers."""
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    @property
    def live_width(self) -> int | None:
        """Characters of the live line; None where there is no terminal to show one."""
        return max(10, self.console.width - 3) if self.console.is_terminal else None

    @property
    def shows_blocks(self) -> bool:
        """Whether the terminal's encoding has more than ASCII."""
        return not self.console.options.ascii_only

    def progress(self, text: str) -> None:
        """Where the work stands: overwrites itself on a terminal, else a line every so many seconds."""
        now = time.monotonic()
        if self.console.is_terminal:
            if now - self._shown_at >= LIVE_LINE_SECONDS:
                shown = Text(text, no_wrap=True, overflow="ellipsis")
                if self._status is None:
                    self._status = self.console.status(shown, spinner="dots" if self.shows_blocks else "line")
                    self._status.start()
                self._status.update(shown)
                self._shown_at = now
        elif now - self._shown_at >= PLAIN_LINE_SECONDS:
            self.line(text)
            self._shown_at = now

    def end_progress(self) -> None:
        """Take the live line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None
        self._shown_at = 0.0
