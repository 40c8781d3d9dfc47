"""TensorBoard and W&B: copies of the metrics, besides metrics.jsonl, for who wants to look at them there.

Each sink has a thread of its own, which a step hands its numbers to and never waits for. A sink that fails anywhere, or
falls too far behind, is dropped with one line; training goes on. W&B stays offline unless WANDB_MODE says otherwise.
"""

import os
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from shard.errors import UsageError
from shard.provenance import fingerprint, flatten

MOST_BEHIND = 10_000
"""Steps that wait for a sink, at most."""
CLOSE_SECONDS = 30.0
"""A sink that takes longer to write what it still has is given up."""


class Sink(Protocol):
    """Where metrics go."""

    def begin(self, step: int) -> None:
        """Steps after `step` follow; what was logged of them before counts no more."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """The numbers of one step."""

    def close(self) -> None:
        """No more follows."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What is being trained, for a sink to name it."""

    run: str
    """The recipe's name."""
    created: str
    stage: str
    folder: Path
    """Of the stage: what a sink writes lies below it."""
    settings: Mapping[str, Any]
    """The recipe, flat."""


class TensorBoard:
    """Event files in `tensorboard/` of the stage: `tensorboard --logdir runs` shows all stages of all runs."""

    def __init__(self, origin: Origin) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open: Callable[..., Any] = SummaryWriter
        self._folder = str(origin.folder / "tensorboard")
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """A new file, which takes back what files before it say of later steps."""
        self.close()
        self._writer = self._open(self._folder, purge_step=step + 1)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """One point a number."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the file."""
        if self._writer is not None:
            self._writer.close()


class Wandb:
    """A W&B run for each stage, offline in `wandb/` of the stage: `wandb sync` uploads it."""

    def __init__(self, origin: Origin) -> None:
        online = os.environ.setdefault("WANDB_MODE", "offline") in ("online", "shared")
        if not online:
            os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        if online and not wandb.login(prompt=False):
            raise RuntimeError("WANDB_MODE is online and there is no API key: run `wandb login`")
        origin.folder.mkdir(parents=True, exist_ok=True)
        self._end_service: Callable[[], None] = wandb.teardown
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "shard"),
            group=origin.run,
            name=f"{origin.run} {origin.stage}",
            # The same at every start, so that a run that was stopped goes on in the same charts.
            id=fingerprint(origin.run, origin.created, origin.stage),
            resume="allow" if online else None,
            dir=str(origin.folder),
            config=dict(origin.settings),
            settings=wandb.Settings(console="off", silent=True),
        )
        # Its own count of steps takes none back; a rollback has to.
        self._run.define_metric("*", step_metric="step")

    def begin(self, step: int) -> None:
        """Points of later steps are drawn anew, over those that are there."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """One row."""
        self._run.log({"step": step, **scalars})

    def close(self) -> None:
        """End the run, so that it is whole on disk: W&B's process writes on after `finish`, until it is told to end."""
        self._run.finish()
        self._end_service()


SINKS: dict[str, Callable[[Origin], Sink]] = {"tensorboard": TensorBoard, "wandb": Wandb}


def sink_names(names: list[str] | None) -> tuple[str, ...]:
    """What `--track` was given, each once. UsageError for a name that is none of SINKS."""
    for name in names or ():
        if name not in SINKS:
            raise UsageError(f"--track {name}: there is {' and '.join(SINKS)}")
    return tuple(dict.fromkeys(names or ()))


class _Feed:
    """One sink and its thread. What went wrong in the thread stands in `failure`."""

    def __init__(self, open_sink: Callable[[], Sink]) -> None:
        self._open = open_sink
        self._queue: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(MOST_BEHIND)
        self.failure: str | None = None
        # A daemon: a sink that hangs does not keep the process.
        self._thread = threading.Thread(target=self._work, name="sink", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            sink = self._open()
            while (action := self._queue.get()) is not None:
                action(sink)
            sink.close()
        except BaseException as error:  # another package's: it may raise anything, SystemExit too
            self.failure = _describe(error)

    def put(self, action: Callable[[Sink], None] | None) -> None:
        """Leave something to do; None is the end."""
        try:
            self._queue.put_nowait(action)
        except queue.Full:
            self.failure = self.failure or f"it is {MOST_BEHIND:,} steps behind"

    def finish(self) -> None:
        """Let it write what it has, for a while."""
        self.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self.failure = f"it did not end within {CLOSE_SECONDS:.0f} s"


class Sinks:
    """The sinks of one stage, each as long as it works; none unless named. Closed by `with`."""

    def __init__(self, opens: Mapping[str, Callable[[], Sink]] | None = None, warn: Callable[[str], None] = print):
        self._opens, self._warn = dict(opens or {}), warn
        self._feeds: dict[str, _Feed] | None = None

    @classmethod
    def named(cls, names: tuple[str, ...], origin: Origin, warn: Callable[[str], None]) -> "Sinks":
        """Those of SINKS."""
        return cls({name: (lambda open_sink=SINKS[name]: open_sink(origin)) for name in names}, warn)  # type: ignore[misc]

    def begin(self, step: int) -> None:
        """The stage stands at `step`: a start, or a return to it."""
        if self._feeds is None:
            self._feeds = {name: _Feed(open_sink) for name, open_sink in self._opens.items()}
        self._put(lambda sink: sink.begin(step))

    def log(self, record: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl: its numbers, by names such as loss and bits_per_byte/code."""
        if self._feeds:
            step, scalars = record["step"], scalars_of(record)
            self._put(lambda sink: sink.log(step, scalars))

    def _put(self, action: Callable[[Sink], None]) -> None:
        for feed in (self._feeds or {}).values():
            feed.put(action)
        self._drop_failed()

    def _drop_failed(self) -> None:
        for name, feed in list((self._feeds or {}).items()):
            if feed.failure is not None and self._feeds:
                self._warn(f"track: {name} was dropped: {feed.failure}; the training goes on, metrics.jsonl has it all")
                del self._feeds[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for feed in (self._feeds or {}).values():
            feed.finish()
        self._drop_failed()
        self._feeds = None


def scalars_of(record: Mapping[str, Any]) -> dict[str, float]:
    """{"loss": 3.2, "bits_per_byte": {"code": 1.1}} -> {"loss": 3.2, "bits_per_byte/code": 1.1}; numbers only."""
    numbers = {key: value for key, value in flatten(record).items() if key != "step" and isinstance(value, int | float)}
    return {key.replace(".", "/"): float(value) for key, value in numbers.items()}


def _describe(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: pip install 'shard-lm[track]'"
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}{f': {first[:200]}' if first else ''}"
