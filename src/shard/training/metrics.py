"""metrics.jsonl (one object a step: the truth) and events.jsonl (what happened, when): append-only, one JSON a line."""

import json
import os
import time
from pathlib import Path
from typing import Any

from shard.files import atomic_open


class Journal:
    """Both files of one stage. Lines are written at once, so that a killed run has all but its last line."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.metrics_path = folder / "metrics.jsonl"
        self.events_path = folder / "events.jsonl"

    def resume(self, step: int) -> int:
        """Cut the metrics of steps after `step` (they will be written again), and any half-written line. Returns how
        many steps up to `step` are missing.
        """
        kept = 0
        for path in (self.metrics_path, self.events_path):
            if path.exists():
                lines = [x for x in read_jsonl(path) if path == self.events_path or x["step"] <= step]
                kept = len(lines) if path == self.metrics_path else kept
                with atomic_open(path, "w") as file:
                    file.writelines(json.dumps(line) + "\n" for line in lines)
        return max(0, step - kept)

    def metric(self, **values: Any) -> None:
        """Append one step to metrics.jsonl."""
        self._append(self.metrics_path, values)

    def event(self, kind: str, **values: Any) -> None:
        """Append to events.jsonl what happened, with the time in UTC."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._append(self.events_path, {"time": now, "event": kind, **values})

    def flush(self) -> None:
        """Bring both files to the disk: a checkpoint must not be newer than the metrics before it."""
        for path in (self.metrics_path, self.events_path):
            if path.exists():
                with path.open("rb") as file:
                    os.fsync(file.fileno())

    @staticmethod
    def _append(path: Path, values: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, allow_nan=False) + "\n")


class SilentJournal(Journal):
    """Of a rank that writes nothing down."""

    def __init__(self, folder: Path) -> None:
        self.metrics_path, self.events_path = folder / "metrics.jsonl", folder / "events.jsonl"

    def resume(self, step: int) -> int:
        """Nothing is missing."""
        return 0

    @staticmethod
    def _append(path: Path, values: dict[str, Any]) -> None:
        pass


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a last line that was cut off by a crash is left out."""
    if not path.is_file():
        return []
    values = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            break
        if isinstance(value, dict):
            values.append(value)
    return values
