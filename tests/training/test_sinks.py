"""Copies of the metrics: TensorBoard's and W&B's own files read back, and sinks that fail or hang."""

import json
import os
import struct
import sys
import threading
import time
import types
from collections.abc import Mapping
from pathlib import Path

import pytest
from tiny_stage import assert_same_end, make_trainer, metrics

from shard.errors import UsageError
from shard.training import sinks as sinks_module
from shard.training.sinks import Origin, Sinks, scalars_of, sink_names


class Recorder:
    """A sink that remembers; it raises where it is told to."""

    def __init__(self, fails_in: str = "", at: int = 0) -> None:
        self.calls: list[tuple[object, ...]] = []
        self._fails_in, self._at = fails_in, at
        if fails_in == "start":
            raise ValueError("no start\nand a second line")

    def _note(self, what: str, step: int, *more: object) -> None:
        self.calls.append((what, step, *more))
        if what == self._fails_in and step >= self._at:
            raise ValueError(f"no {what}")

    def begin(self, step: int) -> None:
        self._note("begin", step)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._note("log", step, dict(scalars))

    def close(self) -> None:
        self._note("close", 0)


def origin(folder: Path) -> Origin:
    return Origin(run="tiny", created="2026-11-25", stage="pretrain", folder=folder, settings={"pretrain.steps": 20})


def test_numbers_by_the_names_of_metrics_jsonl() -> None:
    record = {"step": 3, "loss": 2.5, "skipped": "loss", "grad_norm": None, "bits_per_byte": {"a": 1.5}}
    assert scalars_of(record) == {"loss": 2.5, "bits_per_byte/a": 1.5}


def test_names_are_checked_before_any_work() -> None:
    assert sink_names(None) == ()
    assert sink_names(["wandb", "tensorboard", "wandb"]) == ("wandb", "tensorboard")
    with pytest.raises(UsageError, match="--track tensorbord: there is tensorboard and wandb"):
        sink_names(["tensorbord"])


def test_every_step_arrives_in_order_and_a_return_is_told() -> None:
    sink = Recorder()
    with Sinks({"it": lambda: sink}) as sinks:
        sinks.begin(0)
        for step in (1, 2, 3):
            sinks.log({"step": step, "loss": step / 2})
        sinks.begin(1)
        sinks.log({"step": 2, "loss": 7.0})
    logged = [("log", step, {"loss": step / 2}) for step in (1, 2, 3)]
    assert sink.calls == [("begin", 0), *logged, ("begin", 1), ("log", 2, {"loss": 7.0}), ("close", 0)]


@pytest.mark.parametrize("where", ["start", "begin", "log", "close"])
def test_a_sink_that_raises_is_dropped_with_one_line(where: str) -> None:
    warnings: list[str] = []
    good = Recorder()
    with Sinks({"bad": lambda: Recorder(where, at=0), "good": lambda: good}, warnings.append) as sinks:
        sinks.begin(0)
        for step in range(1, 30):
            sinks.log({"step": step, "loss": 1.0})
    assert len(warnings) == 1
    assert warnings[0].startswith(f"track: bad was dropped: ValueError: no {where}; the training goes on")
    assert [call[:2] for call in good.calls[1:-1]] == [("log", step) for step in range(1, 30)]


def test_a_sink_that_exits_does_not_end_the_run() -> None:
    def leave() -> Recorder:
        raise SystemExit(3)

    warnings: list[str] = []
    with Sinks({"bad": leave}, warnings.append) as sinks:
        sinks.begin(0)
        sinks.log({"step": 1, "loss": 1.0})
    assert len(warnings) == 1 and "SystemExit: 3" in warnings[0]


def test_a_sink_that_hangs_costs_the_steps_nothing_and_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks_module, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(sinks_module, "MOST_BEHIND", 50)
    held = threading.Event()

    def hang() -> Recorder:
        held.wait(20)
        return Recorder()

    warnings: list[str] = []
    begun = time.monotonic()
    with Sinks({"slow": hang}, warnings.append) as sinks:
        sinks.begin(0)
        for step in range(40):
            sinks.log({"step": step, "loss": 1.0})
    assert [line.split(";")[0] for line in warnings] == ["track: slow was dropped: it did not end within 0 s"]
    with Sinks({"slow": hang}, warnings.append) as sinks:
        for step in range(100):
            sinks.begin(0)
            sinks.log({"step": step, "loss": 1.0})
    held.set()
    assert len(warnings) == 2 and "it is 50 steps behind" in warnings[1]
    assert time.monotonic() - begun < 5


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    warnings: list[str] = []
    with Sinks.named(("wandb",), origin(tmp_path), warnings.append) as sinks:
        sinks.begin(0)
    (line,) = warnings
    assert line.startswith("track: wandb was dropped: wandb is not installed: pip install 'shard-lm[track]'")


def test_training_with_a_sink_that_breaks_gives_the_same_bits(data: Path, tmp_path: Path) -> None:
    make_trainer(data, tmp_path / "plain").train()
    good, warnings = Recorder(), []
    sinks = Sinks({"good": lambda: good, "bad": lambda: Recorder("log", at=7)}, warnings.append)
    with sinks:
        make_trainer(data, tmp_path / "watched", stage={"sinks": sinks}).train()
    assert_same_end(tmp_path / "plain", tmp_path / "watched")
    assert len(warnings) == 1
    logged = [(call[1], call[2]["loss"]) for call in good.calls if call[0] == "log"]  # type: ignore[index]
    assert logged == [(line["step"], line["loss"]) for line in metrics(tmp_path / "watched")]


def test_tensorboard_reads_back_what_metrics_jsonl_says(data: Path, tmp_path: Path) -> None:
    """Stopped and resumed: the points of both starts are there once each."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for until in (12, None):
        sinks = Sinks.named(("tensorboard",), origin(tmp_path), pytest.fail)
        with sinks:
            make_trainer(data, tmp_path, stage={"sinks": sinks}).train(until)
    reader = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    lines = metrics(tmp_path)
    assert len(lines) == 20
    for name in ("loss", "grad_norm", "lr_muon", "tokens"):
        points = [(event.step, event.value) for event in reader.Scalars(name)]
        assert points == [(line["step"], pytest.approx(line[name])) for line in lines]
    scored = {line["step"]: line["bits_per_byte"]["a"] for line in lines if "bits_per_byte" in line}  # type: ignore[index]
    assert {e.step: e.value for e in reader.Scalars("bits_per_byte/a")} == pytest.approx(scored)
    assert {"timing/tokens_per_second", "timing/memory_bytes"} <= set(reader.Tags()["scalars"])


def read_wandb(path: Path) -> list[dict[str, float]]:
    """The rows of a .wandb file: records in the log format of LevelDB, after 7 bytes that say what it is."""
    from wandb.proto import wandb_internal_pb2

    content, block = path.read_bytes(), 2**15
    place, parts, rows = 7, b"", []
    while place + 7 <= len(content):
        if block - place % block < 7:
            place += block - place % block
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            if "step" in items:
                rows.append(items)
    return rows


def test_wandb_stays_offline_and_reads_back(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    sinks = Sinks.named(("wandb",), origin(tmp_path), pytest.fail)
    with sinks:
        make_trainer(data, tmp_path, stage={"sinks": sinks}).train()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    rows, lines = read_wandb(path), metrics(tmp_path)
    assert [(row["step"], row["loss"]) for row in rows] == [(line["step"], line["loss"]) for line in lines]
    assert [row["bits_per_byte/a"] for row in rows if "bits_per_byte/a" in row] == [
        line["bits_per_byte"]["a"]  # type: ignore[index]
        for line in lines
        if "bits_per_byte" in line
    ]


def fake_wandb(has_key: bool) -> tuple[types.ModuleType, list[dict[str, object]]]:
    """A module with the parts of wandb that are called, and what `init` was called with."""
    module, calls = types.ModuleType("wandb"), []

    def init(**arguments: object) -> Recorder:
        calls.append(arguments)
        run = Recorder()
        run.define_metric = lambda *_, **__: None  # type: ignore[attr-defined]
        run.log = lambda row: run.calls.append(("log", row))  # type: ignore[method-assign, assignment]
        run.finish = run.close  # type: ignore[attr-defined]
        return run

    module.init, module.Settings, module.login = init, dict, lambda prompt: has_key  # type: ignore[attr-defined]
    module.teardown = lambda: None  # type: ignore[attr-defined]
    return module, calls


def test_wandb_goes_online_only_where_the_user_says_so_and_never_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "")
    monkeypatch.delenv("WANDB_MODE")
    module, calls = fake_wandb(has_key=False)
    monkeypatch.setitem(sys.modules, "wandb", module)
    warnings: list[str] = []
    with Sinks.named(("wandb",), origin(tmp_path), warnings.append) as sinks:
        sinks.begin(0)
    assert len(calls) == 1 and warnings == []
    assert (os.environ["WANDB_MODE"], os.environ["WANDB_ERROR_REPORTING"]) == ("offline", "false")
    monkeypatch.setenv("WANDB_MODE", "online")
    with Sinks.named(("wandb",), origin(tmp_path), warnings.append) as sinks:
        sinks.begin(0)
    assert len(calls) == 1, "without a key nothing is begun"
    assert len(warnings) == 1 and "run `wandb login`" in warnings[0]
