"""Small charts as SVG files without a script: on a ground of their own, light or dark as the reader's system is."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from shard.report.history import Column
from shard.units import format_count

WIDTH, HEIGHT = 760, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 52, 40
SHADES = 10

_STYLE = """
.ground{fill:#fff;stroke:#dde0e7}.grid{stroke:#e4e7ed}.text{fill:#5b6475;font-size:13px}.title{fill:#1c2230;font-size:16px;font-weight:600}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.band{opacity:.18}.border{stroke:#5b6475;stroke-dasharray:3 3}
.c0{--c:#2f62d0}.c1{--c:#d9670b}.c2{--c:#14855a}.c3{--c:#a53bb8}.c4{--c:#0a7f9e}.c5{--c:#c02a5c}.c6{--c:#7a6a00}.c7{--c:#5b5f6b}
.line{stroke:var(--c)}.band,.dot{fill:var(--c)}.cell{fill:#a81028}.cells{fill:#e8edf7}
text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
@media (prefers-color-scheme:dark){
.ground{fill:#191d26;stroke:#313847}.grid{stroke:#2b3140}.text{fill:#9aa4b8}.title{fill:#e7eaf1}.border{stroke:#9aa4b8}
.c0{--c:#7ea6ff}.c1{--c:#ff9e52}.c2{--c:#4fcf9b}.c3{--c:#d78be8}.c4{--c:#4cc4e0}.c5{--c:#ff7ea5}.c6{--c:#d9c34a}.c7{--c:#a9b0c0}
.cell{fill:#ff5c5c}.cells{fill:#262e3e}}
"""


@dataclass(frozen=True)
class Line:
    """Points of one color; NaN is a gap. Lines of one name have one entry in the legend."""

    name: str
    color: int
    x: Column
    y: Column
    low: Column | None = None
    high: Column | None = None


def line_chart(
    title: str, lines: Sequence[Line], x_title: str, borders: Sequence[tuple[float, str]] = (), zero: bool = False
) -> str:
    """A chart of lines over a common axis from 0; `borders` are (x, text)."""
    last = max((float(line.x[-1]) for line in lines if len(line.x)), default=1.0) or 1.0
    low, high, is_cut = _vertical_range(lines, zero)
    legend, extra = _legend(lines)
    top, height = TOP + extra, HEIGHT + extra
    right, bottom = WIDTH - RIGHT, height - BOTTOM

    def place_x(value: float) -> float:
        return LEFT + value / last * (right - LEFT)

    def place_y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    parts = [f'<clipPath id="c"><rect x="{LEFT}" y="{top}" width="{right - LEFT}" height="{bottom - top}"/></clipPath>']
    for value in ticks(low, high, 5):
        y = place_y(value)
        parts.append(f'<path class="grid" d="M{LEFT},{y:.1f}H{right}"/>')
        parts.append(_text(LEFT - 8, y + 4, format_tick(value), anchor="end"))
    for value in ticks(0, last, 6):
        parts.append(
            _text(place_x(value), bottom + 20, format_tick(value), anchor="middle" if value < 0.95 * last else "end")
        )
    parts.append(_text(right, height - 6, x_title, anchor="end"))
    for value, text in borders:
        x = place_x(value)
        parts.append(f'<path class="border" d="M{x:.1f},{top}V{bottom}"/>')
        parts.append(_text(x - 5, bottom - 7, text, anchor="end") if x > WIDTH / 2 else _text(x + 5, bottom - 7, text))
    parts.append('<g clip-path="url(#c)">')
    for line in lines:
        points = [(place_x(x), place_y(y)) for x, y in zip(line.x, line.y, strict=True)]
        if line.low is not None and line.high is not None:
            edge = [(place_x(x), place_y(y)) for x, y in zip(line.x, line.high, strict=True) if not math.isnan(y)]
            edge += [(place_x(x), place_y(y)) for x, y in zip(line.x, line.low, strict=True) if not math.isnan(y)][::-1]
            parts.append(
                f'<polygon class="band c{line.color % 8}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in edge)}"/>'
            )
        parts.append(f'<path class="line c{line.color % 8}" d="{_path(points)}"/>')
        if (points and (points[-1][0] - points[0][0]) / len(points) > 12) or len(points) == 1:
            parts += [
                f'<circle class="dot c{line.color % 8}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
                for x, y in points
                if not math.isnan(y)
            ]
    parts.append("</g>")
    parts.append(legend)
    return _picture(title + (" (first values cut off)" if is_cut else ""), parts, height, LEFT)


def heat_map(
    title: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[float]], note: str
) -> str:
    """A map of shares from 0 to 1 (NaN: empty): the more of a cell's color, the greater."""
    left, height = 190, 14 if len(rows) <= 30 else 8
    width = (WIDTH - RIGHT - left) / max(1, len(columns))
    bottom = TOP + height * len(rows)
    parts = [f'<rect class="cells" x="{left}" y="{TOP}" width="{WIDTH - RIGHT - left}" height="{bottom - TOP}"/>']
    every = max(1, math.ceil(12 / height))
    shades: dict[int, list[str]] = {}
    for i, row in enumerate(rows):
        if i % every == 0:
            parts.append(_text(left - 8, TOP + i * height + height / 2 + 4, row, anchor="end", size=11))
        for j, value in enumerate(cells[i]):
            if value > 0:
                place = f"M{left + j * width:.1f},{TOP + i * height}h{width - 0.6:.1f}v{height - 1}h-{width - 0.6:.1f}z"
                shades.setdefault(max(1, math.ceil(min(1.0, value) * SHADES)), []).append(place)
    for shade, places in sorted(shades.items()):
        parts.append(f'<path class="cell" fill-opacity="{shade / SHADES:.2g}" d="{"".join(places)}"/>')
    step = max(1, math.ceil(len(columns) / 8))
    for j in range(0, len(columns), step):
        parts.append(_text(left + (j + 0.5) * width, bottom + 17, columns[j], anchor="middle"))
    parts.append(_text(WIDTH - RIGHT, bottom + 34, note, anchor="end"))
    return _picture(title, parts, bottom + 42, 20)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from low to high, about so many."""
    raw = (high - low) / max(1, count)
    if not raw > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(base * power for base in (1, 2, 5, 10, 20) if base * power >= raw * 0.999)
    return [float(f"{i * step:.10g}") for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def format_tick(value: float) -> str:
    """20000 -> "20K"; 0.005 -> "0.005"."""
    return format_count(value) if abs(value) >= 1000 else f"{value:.6g}"


def _vertical_range(lines: Sequence[Line], zero: bool) -> tuple[float, float, bool]:
    """From the least to the greatest value, with a margin; a fall at the beginning that would hide the rest is cut."""
    values = sorted(float(y) for line in lines for y in line.y if not math.isnan(y))
    if not values:
        return 0.0, 1.0, False
    low, high, is_cut = (min(0.0, values[0]) if zero else values[0]), values[-1], False
    usual = values[int((len(values) - 1) * 0.97)]
    if not zero and len(values) > 100 and usual > low and high - low > 2 * (usual - low):
        high, is_cut = usual + 0.3 * (usual - low), True
    margin = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return (low if zero and low == 0 else low - margin), high + margin, is_cut


def _path(points: Sequence[tuple[float, float]]) -> str:
    path, pen = "", "M"
    for x, y in points:
        if math.isnan(y):
            pen = "M"
        else:
            path, pen = f"{path}{pen}{x:.1f},{y:.1f}", "L"
    return path


def _legend(lines: Sequence[Line]) -> tuple[str, int]:
    """The names and colors of the lines, and the height of its rows but the first; nothing for one name."""
    colors: dict[str, int] = {}
    for line in lines:
        colors.setdefault(line.name, line.color)
    if len(colors) < 2:
        return "", 0
    parts, x, y = [], float(LEFT), 45
    for name, color in colors.items():
        width = 32 + 7.2 * len(name)
        if x + width > WIDTH and x > LEFT:
            x, y = float(LEFT), y + 18
        parts.append(f'<circle class="dot c{color % 8}" cx="{x + 5:.0f}" cy="{y - 4}" r="5"/>{_text(x + 15, y, name)}')
        x += width
    return "".join(parts), y - 45


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 13) -> str:
    small = "" if size == 13 else f' style="font-size:{size}px"'
    return f'<text class="text" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{small}>{html.escape(text)}</text>'


def _picture(title: str, parts: Sequence[str], height: float, left: float) -> str:
    escaped = html.escape(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" role="img" aria-label="{escaped}"><title>{escaped}</title><style>{_STYLE}</style>'
        f'<rect class="ground" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="10"/>'
        f'<text class="title" x="{left}" y="27">{escaped}</text>{"".join(parts)}</svg>\n'
    )
