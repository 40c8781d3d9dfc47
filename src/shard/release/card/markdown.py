"""Markdown of a card: tables, text of a model in them, pictures."""

from pathlib import Path


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A table with a head."""
    head = f"| {' | '.join(columns)} |\n|{'|'.join(' --- ' for _ in columns)}|\n"
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def cell(text: str) -> str:
    """Model text inside a table: one line, no bar, shown as it is."""
    return "`" + text.replace("`", "'").replace("|", "\\|").replace("\r", " ").replace("\n", " ⏎ ") + "`"


def bullets(lines: list[str]) -> str:
    """A list; nothing where there are no lines."""
    return "".join(f"- {line}\n" for line in lines)


PICTURES = "pictures"


def picture(bundle: Path, name: str, title: str) -> str:
    """A picture of the bundle with an empty line before it; nothing where it is not there."""
    path = f"{PICTURES}/{name}.svg"
    return f"\n![{title}]({path})\n" if (bundle / path).is_file() else ""
