"""The pictures of a card: loss, learning rates, held-out bits per byte, and the sentinel, as SVG files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shard.files import write_text
from shard.report.content import sentinel_maps
from shard.report.history import RunHistory, StageHistory, read_run
from shard.report.svg import Line, format_tick, heat_map, line_chart
from shard.report.thin import thin

MOST_POINTS, MOST_LOOKS = 600, 60
LOST_SCALE = 0.05
"""The share of lost directions that has the full color, unless more is lost somewhere."""

RATES = {"lr_muon": "hidden matrices (Muon)", "lr_embedding": "token table (AdamW)", "lr_norm": "norms (AdamW)"}


def write_pictures(run: Path, folder: Path) -> list[Path]:
    """Write loss.svg, learning_rate.svg, bits_per_byte.svg and sentinel.svg, those for which the run folder has
    something to show; returns them in this order.
    """
    history = read_run(run)
    written = []
    for name, picture in _pictures(history):
        write_text(folder / name, picture)
        written.append(folder / name)
    return written


def _pictures(run: RunHistory) -> Iterator[tuple[str, str]]:
    stages = list(run.stages.values())
    borders = [(float(s.offset), s.name) for s in stages[1:] if len(s.every_step)]
    if lines := [line for stage in stages for line in _every_step(stage, "loss", "loss", 0)]:
        yield "loss.svg", line_chart("Training loss, nats a token", lines, "steps", borders)
    if lines := _rates(stages):
        yield "learning_rate.svg", line_chart("Learning rates", lines, "steps", borders, zero=True)
    if lines := _heldout(stages):
        yield "bits_per_byte.svg", line_chart("Held-out text, bits per byte", lines, "steps", borders)
    if (sentinel := sentinel_maps(run, MOST_LOOKS)) and "weight" in sentinel["maps"]:
        table = sentinel["maps"]["weight"]
        cells = np.array([[np.nan if x is None else x for x in row] for row in table["lost"]], np.float64)
        most = max(LOST_SCALE, float(np.nanmax(cells, initial=0.0)))
        rows = [row.removeprefix("blocks.").removesuffix(".weight") for row in table["rows"]]
        yield (
            "sentinel.svg",
            heat_map(
                "Sentinel: directions that Muon's weights lost",
                rows,
                [format_tick(last) for _, last in sentinel["steps"]],
                (cells / most).tolist(),
                f"steps; full color is {most:.1%} of a matrix's singular values",
            ),
        )


def _every_step(stage: StageHistory, value: str, name: str, color: int, band: bool = True) -> list[Line]:
    curves = thin(stage.every_step, MOST_POINTS)
    curve = curves.values.get(value)
    if curve is None or np.isnan(curve.mean).all():
        return []
    return [Line(name, color, curves.steps, curve.mean, *((curve.low, curve.high) if band else ()))]


def _rates(stages: list[StageHistory]) -> list[Line]:
    """Rates that are the same at every step share a line."""
    groups: dict[tuple[bytes, ...], list[str]] = {}
    for key in RATES:
        curves = [stage.every_step.values.get(key) for stage in stages]
        if any(curve is not None and len(curve) for curve in curves):
            groups.setdefault(tuple(b"" if c is None else c.tobytes() for c in curves), []).append(key)
    return [
        line
        for color, keys in enumerate(groups.values())
        for stage in stages
        for line in _every_step(stage, keys[0], ", ".join(RATES[key] for key in keys), color, band=False)
    ]


def _heldout(stages: list[StageHistory]) -> list[Line]:
    sources = list(dict.fromkeys(source for stage in stages for source in stage.heldout.values))
    lines = []
    for color, source in enumerate(sources):
        for stage in stages:
            curves = thin(stage.heldout, MOST_POINTS)
            if source in curves.values:
                lines.append(Line(source, color, curves.steps, curves.values[source].mean))
    return lines
