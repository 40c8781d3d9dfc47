"""`shard data --stats`: what each source gave and lost, as one page without scripts or links: data/stats.html.

Numbers are those of the ledgers; lengths and samples are read from the token shards, as the model will see them.
"""

import html
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shard.data import documents, shards
from shard.data.shards import TokenStream
from shard.files import read_json, write_text
from shard.run import Run
from shard.tokenizer import load_tokenizer
from shard.train import separator_id
from shard.units import format_count, format_size

NUM_SAMPLES = 5
SAMPLE_TOKENS = 200
MOST_TOKENS = 50_000_000
"""Tokens of a source whose documents' lengths are counted, from its beginning."""
PAGE = "stats.html"

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1d2330 }
table { border-collapse: collapse; margin: .5rem 0 1rem } td, th { padding: .2rem .8rem .2rem 0; text-align: right }
td:first-child, th:first-child { text-align: left } th { font-weight: 600; border-bottom: 1px solid #ccd }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f6fa;
      padding: .6rem .8rem; border-radius: 4px; font-size: 13px }
h2 { margin-top: 2.5rem; border-top: 1px solid #dde; padding-top: 1rem } small { color: #667 }
mark { background: #dfe8ff; color: #345; border-radius: 3px; padding: 0 .2rem }
"""


def data_stats(run: Run) -> dict[str, Any]:
    """By source: what its ledgers say, a histogram of its documents' lengths in tokens, and samples."""
    tokenizer, separator = load_tokenizer(run.tokenizer_path), separator_id(run)
    stats = {}
    for name, source in run.recipe.sources.items():
        folder = run.data / name
        ledger = documents.read_ledger(folder)
        tokens = read_json(folder / shards.LEDGER, f"run `shard data {run.folder}`")
        stream = TokenStream.open(folder)
        edges, counts = length_histogram(stream, separator)
        rng = np.random.default_rng(run.recipe.seed)
        starts = rng.integers(0, max(1, stream.num_tokens - SAMPLE_TOKENS), NUM_SAMPLES)
        stats[name] = {
            "kind": source.kind,
            "license": ledger["license"],
            "origin": ledger["origin"],
            "read": ledger["documents_read"],
            "dropped": ledger["dropped"],
            "examples": ledger["examples"],
            "train": {"documents": ledger["documents"]["train"], "bytes": ledger["bytes"]["train"]},
            "heldout": {"documents": ledger["documents"]["heldout"], "bytes": ledger["bytes"]["heldout"]},
            "tokens": tokens["tokens"],
            "bytes_per_token": tokens["bytes_per_token"],
            "evaluation_sets": ledger["evaluation_sets"],
            "length_histogram": {"edges": edges.tolist(), "documents": counts.tolist()},
            "samples": [
                _as_seen(stream.read(start, min(start + SAMPLE_TOKENS, stream.num_tokens)), tokenizer, separator)
                for start in starts.tolist()
            ],
        }
    return stats


def length_histogram(stream: TokenStream, separator: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Powers of two as edges [n + 1] and the documents [n] whose length in tokens lies between two of them."""
    ends: list[NDArray[np.int64]] = [np.array([-1])]
    for start in range(0, min(stream.num_tokens, MOST_TOKENS), 2**20):
        piece = stream.read(start, min(start + 2**20, stream.num_tokens))
        ends.append(np.flatnonzero(piece == separator) + start)
    lengths = np.diff(np.concatenate(ends)) - 1
    edges = 2 ** np.arange(0, max(2, int(lengths.max(initial=1)).bit_length() + 1))
    return edges, np.histogram(lengths, edges)[0]


def write_page(run: Run, stats: dict[str, Any]) -> Path:
    """data/stats.html, and where it is."""
    path = run.data / PAGE
    total = sum(source["tokens"] for source in stats.values())
    rows = [
        [
            name,
            f"{s['read']:,}",
            _share(sum(s["dropped"].values()), s["read"]),
            _share(s["dropped"].get("duplicate", 0) + s["dropped"].get("near duplicate", 0), s["read"]),
            f"{s['train']['documents']:,}",
            format_size(s["train"]["bytes"]),
            format_count(s["tokens"]),
            f"{100 * s['tokens'] / max(1, total):.1f}%",
            f"{s['bytes_per_token']:.2f}",
            format_size(s["heldout"]["bytes"]),
            s["license"],
        ]
        for name, s in stats.items()
    ]
    columns = [
        "source",
        "read",
        "dropped",
        "of them duplicates",
        "train on",
        "text",
        "tokens",
        "share",
        "bytes/token",
        "held out",
        "licence",
    ]
    body = [f"<h1>Data of {html.escape(run.recipe.name)}</h1>", _table(columns, rows)]
    checked = next(iter(stats.values()))["evaluation_sets"]
    body.append(
        "<p>No document holds a question of: " + html.escape(", ".join(checked)) + ".</p>"
        if checked
        else "<p>The documents were not compared with any test questions.</p>"
    )
    for name, s in stats.items():
        origin = ", ".join(f"{key} {value}" for key, value in s["origin"].items())
        body.append(
            f"<h2>{html.escape(name)}</h2><p><small>{html.escape(s['kind'])}; {html.escape(origin)}</small></p>"
        )
        body.append(
            "<h3>Length of documents, in tokens</h3>"
            + _bars(_labels(s["length_histogram"]["edges"]), s["length_histogram"]["documents"])
        )
        if s["dropped"]:
            reasons = sorted(s["dropped"], key=lambda reason: -s["dropped"][reason])
            body.append("<h3>Dropped</h3>" + _bars(reasons, [s["dropped"][reason] for reason in reasons]))
            body += [
                f"<p><small>{html.escape(reason)}:</small></p><pre>{html.escape(s['examples'][reason])}</pre>"
                for reason in reasons
                if reason in s["examples"]
            ]
        body.append("<h3>As the model sees it</h3>")
        body += [f"<pre>{_mark(sample)}</pre>" for sample in s["samples"]]
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>Data</title><style>{_STYLE}</style>{''.join(body)}"
    write_text(path, page + "</html>\n")
    return path


def _as_seen(ids: NDArray[np.int64], tokenizer: Any, separator: int) -> list[str]:
    """The texts between the separators of a piece of the stream."""
    borders = np.flatnonzero(ids == separator)
    return [tokenizer.decode(part[part != separator].tolist()) for part in np.split(ids, borders)]


def _mark(pieces: list[str]) -> str:
    return "<mark>next document</mark>".join(html.escape(piece) for piece in pieces)


def _labels(edges: list[int]) -> list[str]:
    return [f"{low:,} to {high - 1:,}" if high - 1 > low else f"{low:,}" for low, high in pairwise(edges)]


def _share(count: int, total: int) -> str:
    return f"{count:,} ({100 * count / max(1, total):.1f}%)" if count else "0"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{lines}</table>"


def _bars(labels: list[str], values: list[int]) -> str:
    """Horizontal bars with their labels and numbers, as SVG."""
    most, height, left, width = max(1, *values) if values else 1, 22, 190, 420
    lines = []
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        y = i * height
        length = max(1 if value else 0, round(width * value / most))
        lines.append(
            f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{html.escape(label)}</text>'
            f'<rect x="{left}" y="{y + 3}" width="{length}" height="{height - 7}" fill="#5b7fd6"/>'
            f'<text x="{left + length + 6}" y="{y + 15}">{value:,}</text>'
        )
    size = f'width="{left + width + 110}" height="{len(values) * height}"'
    return f'<svg {size} font-size="13" font-family="system-ui, sans-serif" fill="#1d2330">{"".join(lines)}</svg>'
