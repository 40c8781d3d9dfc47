"""What the report page shows, as plain values for its script: curves, marks, the sentinel's looks, samples, tables."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from shard.provenance import describe_difference, flatten
from shard.report.history import STAGES, Column, RunHistory, StageHistory
from shard.report.thin import ThinCurves, thin
from shard.units import format_count, format_duration, format_size

MOST_POINTS = 2000
"""Buckets of a curve: two for each pixel of a wide screen, and room to zoom in."""
MOST_MARKS = 1000
"""Of each kind."""
MOST_LOOKS = 120
"""Columns of the sentinel's map."""
MOST_SAMPLES = 60
"""Steps whose samples are shown."""

MARKS = {
    "skipped": "step skipped",
    "overflow": "loss scale overflow",
    "rollback": "rollback",
    "restart": "restart",
    "out_of_memory": "out of memory",
    "environment": "machine changed",
}


def page_content(runs: Sequence[RunHistory]) -> dict[str, Any]:
    """Everything for page.js; runs of one name are told apart by their folders."""
    labels = [run.name for run in runs]
    for folders in ([run.folder.resolve().name for run in runs], [str(run.folder) for run in runs]):
        if len(set(labels)) < len(labels):
            labels = folders
    return {
        "marks": MARKS,
        "runs": [_run_content(run, label) for run, label in zip(runs, labels, strict=True)],
        "differences": recipe_differences(runs),
    }


def recipe_differences(runs: Sequence[RunHistory]) -> list[dict[str, Any]]:
    """The keys of the recipes, and what of device and versions, in which the runs are not all alike."""
    tables = []
    for run in runs:
        environment = _environment(run)
        surroundings = {key: environment.get(key) for key in ("device", "threads", "versions", "code_revision")}
        tables.append(flatten(run.recipe | {"environment": surroundings}))
    keys = dict.fromkeys(key for table in tables for key in table)
    missing = object()
    return [
        {"key": key, "values": ["" if key not in table else _shown(table[key]) for table in tables]}
        for key in keys
        if any(table.get(key, missing) != tables[0].get(key, missing) for table in tables)
    ]


def _run_content(run: RunHistory, label: str) -> dict[str, Any]:
    return {
        "label": label,
        "description": str(run.recipe.get("description", "")),
        "states": {stage: str(run.entry(stage).get("status", "")) for stage in _known_stages(run)},
        "figures": _figures(run),
        "stages": [_stage_content(stage) for stage in run.stages.values()],
        "marks": _marks(run),
        "sentinel": sentinel_maps(run),
        "samples": _samples(run),
        "data": _data(run),
        "evaluation": run.evaluation,
        "benchmark": run.benchmark,
        "recipe": {key: _shown(value) for key, value in flatten(run.recipe).items()},
    }


def _known_stages(run: RunHistory) -> list[str]:
    order = ("tokenizer", "data", "teach", *STAGES, "evaluate", "bench", "release")
    return [stage for stage in order if run.entry(stage)]


def _figures(run: RunHistory) -> list[list[str]]:
    """The numbers at the top: name and value."""
    figures: list[list[str]] = []
    if run.num_parameters is not None:
        figures.append(["parameters", format_count(run.num_parameters)])
    for name, stage in run.stages.items():
        if steps := stage.settings.get("steps"):
            figures.append([name, f"{stage.step:,} of {steps:,} steps"])
    latest = next((stage for stage in reversed(run.stages.values()) if len(stage.every_step)), None)
    if latest is not None:
        curves = latest.every_step
        figures.append(["tokens", format_count(curves.tokens[-1])])
        losses = curves.values["loss"][~np.isnan(curves.values["loss"])]
        if len(losses):
            figures.append(["last loss", f"{losses[-1]:.4f}"])
        figures.append(["trained for", format_duration(curves.seconds[-1])])
        speed = np.nanmedian(curves.values["tokens_per_second"][-200:]) if len(curves) else np.nan
        if np.isfinite(speed):
            figures.append(["tokens/s", f"{speed:,.0f}"])
    events = [event for stage in run.stages.values() for event in stage.events]
    for text, count in (
        ("skipped steps", sum(stage.num_skipped for stage in run.stages.values())),
        ("rollbacks", sum(event["event"] == "rollback" for event in events)),
        ("restarts", sum(mark["kind"] == "restart" for mark in _all_marks(run))),
    ):
        if run.stages:
            figures.append([text, f"{count:,}"])
    if times := [str(event["time"]) for event in events if "time" in event]:
        figures.append(["last event", max(times).replace("T", " ").replace("Z", " UTC")])
    if device := _environment(run).get("device"):
        figures.append(["device", str(device)])
    return figures


def _environment(run: RunHistory) -> dict[str, Any]:
    for stage in reversed(STAGES):
        environment = run.entry(stage).get("environment")
        if isinstance(environment, dict):
            return environment
    return {}


# Curves and marks.


def _stage_content(stage: StageHistory) -> dict[str, Any]:
    steps = stage.settings.get("steps")
    return {
        "name": stage.name,
        "offset": stage.offset,
        "end": stage.offset + steps if isinstance(steps, int) else None,
        "every_step": _curves(thin(stage.every_step, MOST_POINTS)),
        "heldout": _curves(thin(stage.heldout, MOST_POINTS)),
    }


def _curves(curves: ThinCurves) -> dict[str, Any]:
    """{"step": [...], "tokens": ..., "seconds": ..., "values": {name: {"mean": [...], "low": ..., "high": ...}}}."""
    values = {}
    for name, curve in curves.values.items():
        values[name] = {"mean": _rounded(curve.mean)}
        if not np.array_equal(curve.low, curve.high, equal_nan=True):
            values[name] |= {"low": _rounded(curve.low), "high": _rounded(curve.high)}
    return {
        "bucket": curves.bucket,
        "step": [int(step) for step in curves.steps],
        "tokens": _rounded(curves.tokens, 9),
        "seconds": _rounded(curves.seconds, 7),
        "values": values,
    }


def _rounded(column: Column, digits: int = 5) -> list[float | int | None]:
    """JSON numbers of so many digits, None for what is not finite."""
    found: list[float | int | None] = []
    for value in column.tolist():
        if not np.isfinite(value):
            found.append(None)
            continue
        short = float(f"{value:.{digits}g}")
        found.append(int(short) if short.is_integer() else short)
    return found


def _all_marks(run: RunHistory) -> list[dict[str, Any]]:
    """{"kind", "step", "text"} of what happened, each once: a run that was killed writes some of it again."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, stage in run.stages.items():
        has_started = False
        for event in stage.events:
            kind, step = event["event"], event["step"]
            text, key = "", (name, kind, step, "")
            if kind == "start":
                kind, text, has_started = "restart" if has_started else "", f"{name} went on", True
            elif kind == "skipped":
                reason = str(event.get("reason"))
                kind = reason if reason == "overflow" else kind
                text = f"{reason}: loss {_shown(event.get('loss'))}, gradient norm {_shown(event.get('grad_norm'))}"
                key = (name, kind, step, str(event.get("batch")))
            elif kind == "rollback":
                passed = event.get("passed_over")
                count = len(passed) if isinstance(passed, list) else 0
                text = f"back to step {event.get('checkpoint')} of {name}, past {count} batches"
                key = (name, kind, step, str(passed))
            elif kind == "out_of_memory":
                text = f"micro-batches of {event.get('micro_batch')} from here on"
            elif kind == "environment":
                before, now = (event.get(side) for side in ("before", "now"))
                if isinstance(before, dict) and isinstance(now, dict):
                    text = describe_difference(before, now)
            if kind in MARKS:
                found[key] = {"kind": kind, "step": step, "text": text}
    return list(found.values())


def _marks(run: RunHistory) -> list[dict[str, Any]]:
    marks = _all_marks(run)
    return [mark for kind in MARKS for mark in _evenly([m for m in marks if m["kind"] == kind], MOST_MARKS)]


def _evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of them, from the first to the last."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


# The sentinel: rows are matrices, columns are looks. Of several looks in one column the worst counts.


def sentinel_maps(run: RunHistory, most: int = MOST_LOOKS) -> dict[str, Any] | None:
    """{"steps": [[first, last], ...] of each column, "maps": {what: {"rows": names, measure: [row][column]}}}."""
    looks: dict[int, dict[tuple[str, str], dict[str, Any]]] = {}
    for stage in run.stages.values():
        for event in stage.events:
            if event["event"] == "sentinel" and isinstance(event.get("spectra"), list):
                looks[event["step"]] = {(str(s.get("what")), str(s.get("name"))): s for s in event["spectra"]}
    if not looks:
        return None
    steps = sorted(looks)
    names = list(dict.fromkeys(key for look in looks.values() for key in look))
    starts = np.arange(0, len(steps), -(-len(steps) // most))
    maps: dict[str, Any] = {}
    for what in dict.fromkeys(what for what, _ in names):
        rows = [name for of, name in names if of == what]
        maps[what] = {"rows": rows}
        for measure, worst in (("lost", np.fmax), ("ratio", np.fmin), ("stable_rank", np.fmin)):
            table = np.array([[_measure(looks[step].get((what, row)), measure) for step in steps] for row in rows])
            maps[what][measure] = [_rounded(row, 4) for row in worst.reduceat(table, starts, axis=1)]
    ends = [*(starts[1:] - 1), len(steps) - 1]
    return {"steps": [[steps[i], steps[j]] for i, j in zip(starts, ends, strict=True)], "maps": maps}


def _measure(spectrum: dict[str, Any] | None, key: str) -> float:
    if spectrum is None:
        return float("nan")
    if key == "lost":
        return float(spectrum.get("num_lost", 0)) / max(1, spectrum.get("num_values", 1))
    value = spectrum.get(key)
    return float(value) if isinstance(value, int | float) else float("nan")


# Samples, data, tables.


def _samples(run: RunHistory) -> list[dict[str, Any]]:
    """By prompt: {"prompt", "texts": [[step, continuation], ...]}."""
    found: dict[str, dict[int, str]] = {}
    for stage in run.stages.values():
        for event in stage.events:
            if event["event"] == "sample":
                prompt, text = str(event.get("prompt")), str(event.get("text"))
                found.setdefault(prompt, {})[event["step"]] = text.removeprefix(prompt)
    return [
        {"prompt": prompt, "texts": [[step, texts[step]] for step in _evenly(sorted(texts), MOST_SAMPLES)]}
        for prompt, texts in found.items()
    ]


def _data(run: RunHistory) -> list[dict[str, Any]]:
    """By source: its share of each stage, how often it is read, and what its ledgers say."""
    rows = []
    for name, source in run.recipe.get("sources", {}).items():
        documents, tokens = run.documents[name], run.tokens[name]
        shares, epochs = {}, {}
        for stage in STAGES:
            settings = run.recipe.get(stage, {})
            mix = settings.get("mix", {})
            if not mix:
                continue
            shares[stage] = mix.get(name, 0) / sum(mix.values())
            read = shares[stage] * settings.get("steps", 0) * settings.get("tokens_per_step", 0)
            if tokens.get("tokens"):
                epochs[stage] = round(read / tokens["tokens"], 3)
        kept, size = documents.get("documents", {}), documents.get("bytes", {})
        rows.append(
            {
                "source": name,
                "kind": source.get("kind", ""),
                "license": documents.get("license", source.get("license", "")),
                "shares": shares,
                "epochs": epochs,
                "read": documents.get("documents_read"),
                "dropped": documents.get("dropped", {}),
                "documents": kept.get("train"),
                "text": format_size(size["train"]) if "train" in size else None,
                "heldout": format_size(size["heldout"]) if "heldout" in size else None,
                "tokens": tokens.get("tokens"),
            }
        )
    return rows


def _shown(value: Any) -> str:
    """A value of a recipe or an event, in few characters."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return _joined(value)
    return "none" if value is None else str(value)


def _joined(values: Iterable[Any]) -> str:
    return ", ".join(_shown(value) for value in values)
