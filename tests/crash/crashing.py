"""Runs in processes of their own that are stopped at a chosen moment, and the comparison of what they leave behind."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shard.run import STAGES

ENVIRONMENT = os.environ | {"SHARD_DEVICE": "cpu"}
PATIENCE = 300.0
"""Seconds after which a process that should have ended is a failure. `Life.patience` is it where models are large."""
POLL = 0.002

# What a clock or the memory of the machine decides. That these files are there is compared, their bytes are not.
MEASURED = {".lock", "manifest.json", "benchmark.json", "events.jsonl", "README.md", "SHA256SUMS", "report.html"}
MEASURED_KEYS = {"timing", "seconds", "environment"}


def write_text_folder(folder: Path, num_files: int, num_words: int = 200) -> Path:
    """Files of made-up words, a kilobyte each."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 7))) for _ in range(num_words)]
    for i in range(num_files):
        lines = (" ".join(rng.choices(words, k=10)) for _ in range(20))
        (folder / f"{i:04}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def shard(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    command = [sys.executable, "-m", "shard", *(str(argument) for argument in arguments)]
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)


@dataclass
class Life:
    """One run folder, and the same command started again and again until it is finished."""

    folder: Path
    recipe: Sequence[str]
    patience: float = PATIENCE
    verb: str = "run"
    whole_group: bool = True
    """Whether the signals go to all processes of a start, or to the first one only, as a person sends them."""
    threads: int = 1
    """Of torch: one is enough for a tiny model, and several wait for each other where the machine is busy."""
    moments: list[str] = field(default_factory=list)
    """Where each disturbance fell."""
    seconds: float = 0.0
    """Of the last start, from the first moment to the last."""
    errors: str = ""
    """What the last start wrote on stderr."""
    environment: dict[str, str] = field(default_factory=dict)
    """What of it is not as everywhere."""
    groups: list[int] = field(default_factory=list)
    """The process groups of all starts."""

    @property
    def log(self) -> Path:
        """What the last start wrote on stderr. Beside the folder, which has to be empty at first."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def arguments(self) -> list[str]:
        """Of the one command, which is the same each time."""
        return [self.verb, *self.recipe, "--out", str(self.folder)]

    @property
    def manifest(self) -> dict[str, Any]:
        """The stages of manifest.json. It is read whole at any moment, or the test fails here."""
        path = self.folder / "manifest.json"
        stages: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["stages"] if path.exists() else {}
        return stages

    @property
    def place(self) -> str:
        """Where the run stands: in a stage, after one, or before the first."""
        done = "start"
        for stage in STAGES:
            status = self.manifest.get(stage, {}).get("status")
            if status in ("running", "interrupted"):
                return stage
            if status == "done":
                done = f"after {stage}"
        return done

    def start(self, **options: Any) -> subprocess.Popen[bytes]:
        """The command, as the leader of a process group of its own."""
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "shard", *self.arguments],
                env=ENVIRONMENT | {"OMP_NUM_THREADS": str(self.threads)} | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                **options,
            )

    def disturb(
        self, wait: Callable[[], bool], delay: float, signals: Sequence[int], gap: float = 0.0, **options: Any
    ) -> int | None:
        """Start the command; `delay` after `wait` is true, send it the signals, `gap` apart.

        The exit code as a shell shows it, or None where the command ended by itself before, and did so well.
        """
        begun = time.monotonic()
        process = self.start(**options)
        self.groups.append(process.pid)
        try:
            while process.poll() is None and not wait():
                assert time.monotonic() - begun < self.patience, "waited in vain for the moment"
                time.sleep(POLL)
            time.sleep(delay)
            alive = process.poll() is None
            for number in signals if alive else ():
                (os.killpg if self.whole_group else os.kill)(process.pid, number)  # not yet waited for: still ours
                time.sleep(gap)
            code = process.wait(timeout=self.patience)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.seconds = time.monotonic() - begun
        self.errors = self.log.read_text(encoding="utf-8", errors="replace")
        code = code if code >= 0 else 128 - code
        if code == 0:  # a signal that came in its last moments may have found nothing left to stop
            return None
        assert alive, f"failed by itself with {code}, after {self.moments}:\n{self.errors}"
        self.moments.append(self.place)
        return code

    def finish(self) -> None:
        """Start the command and let it come to its end."""
        code = self.disturb(lambda: True, 0.0, ())
        assert code is None

    def running(self, stage: str) -> bool:
        """Whether a stage has begun. True also when it is over: a moment that was missed is not waited for."""
        return self.manifest.get(stage, {}).get("status") is not None

    def steps(self, stage: str) -> int:
        """The lines of a stage's metrics."""
        path = self.folder / stage / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0


def content(path: Path) -> bytes | str:
    """What has to be equal in two runs: all bytes, but for times and sizes that were measured."""
    if path.name not in ("metrics.jsonl", "state.json"):
        return path.read_bytes()
    text = path.read_text(encoding="utf-8")
    values = [json.loads(part) for part in (text.splitlines() if path.suffix == ".jsonl" else [text])]
    return "\n".join(json.dumps({k: v for k, v in value.items() if k not in MEASURED_KEYS}) for value in values)


def files(folder: Path) -> dict[str, Path]:
    """Every file of a run by its name in it."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def differences(run: Path, reference: Path) -> list[str]:
    """Every file that only one of two finished runs has, or whose content is not the same in both, and leftovers."""
    ours, theirs = files(run), files(reference)
    found = [f"{name} is only in the {'one' if name in ours else 'reference'}" for name in ours.keys() ^ theirs.keys()]
    found += [f"{path.relative_to(run)} is left over" for path in run.rglob("*") if ".tmp" in path.name]
    for name in sorted(ours.keys() & theirs.keys()):
        if Path(name).name not in MEASURED and content(ours[name]) != content(theirs[name]):
            found.append(f"{name} differs")
    return found


def assert_same(run: Path, reference: Path) -> None:
    """A run is what an undisturbed one is, and every stage of it is done."""
    assert differences(run, reference) == []
    stages = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["stages"]
    assert {stage: entry["status"] for stage, entry in stages.items()} == dict.fromkeys(STAGES, "done")
