"""report.html: one page about one or more runs that opens from disk, without a network and without other files.

Its script, its style and the values that it shows stand in it. The same runs give the same bytes.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from shard.errors import ShardError
from shard.files import write_text
from shard.report.content import page_content
from shard.report.history import read_run

PAGE = "report.html"
SCRIPTS = ("format.js", "chart.js", "heatmap.js", "page.js")


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of these runs to `out`, by default report.html in the first of them; returns where it is.
    A page that is there already and would be the same is left as it is. ShardError where a folder is no run.
    """
    path = out or folders[0] / PAGE
    if path.is_dir():
        raise ShardError(f"{path} is a folder: give --out a file")
    page = render_page(page_content([read_run(folder) for folder in folders]))
    if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != page:
        write_text(path, page)
    return path


def render_page(content: dict[str, Any]) -> str:
    """The page. Whatever text the runs hold, it stays text: the values are JSON without <, > and &, the page allows no
    script but its own, and that one writes text, not HTML.
    """
    script, style = "\n".join(_read(name) for name in SCRIPTS), _read("page.css")
    return Template(_read("page.html")).substitute(
        title=html.escape(", ".join(run["label"] for run in content["runs"])),
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}",
        style=style,
        script=script,
        content=_json(content),
    )


def _read(name: str) -> str:
    return resources.files("shard.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a content security policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is no text
