"""How a row of a file becomes a document: by its columns, by a template, or as a question with choices."""

import string
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from shard.data.settings import Table

Row = Mapping[str, Any]


class RowError(Exception):
    """A row without text: `reason` to count it under, and what exactly is wrong."""

    def __init__(self, reason: str, words: str | None = None) -> None:
        super().__init__(words or reason)
        self.reason = reason


class RowFormat(Table):
    """How a row becomes a document: by one of `columns`, `template` and `kind`."""

    columns: list[str] | None = Field(default=None, min_length=1)
    """These columns, an empty line between them."""
    template: str | None = None
    """A text with {column} in it; {{ and }} are braces."""
    kind: Literal["multiple_choice"] | None = None
    """The columns question, choices (text, label) and answerKey, as in ARC: written out, with the right answer."""

    @model_validator(mode="after")
    def _check(self) -> "RowFormat":
        if sum(way is not None for way in (self.columns, self.template, self.kind)) != 1:
            raise ValueError("a row needs one of columns, template and kind")
        if self.template is not None and not any(name for _, name in _parse_template(self.template)):
            raise ValueError(f"template {self.template!r} has no {{column}} in it")
        return self

    def needed(self) -> list[str]:
        """The columns to read."""
        if self.kind is not None:
            return ["question", "choices", "answerKey"]
        if self.columns is not None:
            return list(dict.fromkeys(self.columns))
        return list(dict.fromkeys(name for _, name in _parse_template(self.template or "") if name))

    def writer(self) -> Callable[[Row], str]:
        """The function that makes a document of a row; it raises RowError."""
        if self.kind is not None:
            return write_multiple_choice
        if self.columns is not None:
            columns = self.columns
            return lambda row: "\n\n".join(_text(row, name) for name in columns)
        parts = _parse_template(self.template or "")
        return lambda row: "".join(literal + (_text(row, name) if name else "") for literal, name in parts)


def _parse_template(template: str) -> list[tuple[str, str]]:
    """(literal text, column after it or "") of a template. ValueError for all that str.format would do beyond that."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template {template!r}: {error}: write {{{{ and }}}} for braces") from None
    for _, name, spec, conversion in parts:
        if name is not None and (not name or spec or conversion or any(mark in name for mark in ".[]{}")):
            raise ValueError(f"template {template!r}: only a {{column}} may stand in braces: {{{{ and }}}} give braces")
    return [(literal, name or "") for literal, name, _, _ in parts]


def _text(row: Row, name: str) -> str:
    if name not in row:
        raise RowError("no column", f"no column {name!r}")
    value = row[name]
    if value is None:
        raise RowError("null", f"column {name!r} is null")
    if not isinstance(value, str):
        raise RowError("not a string", f"column {name!r} holds {type(value).__name__}")
    return value


def write_multiple_choice(row: Row) -> str:
    """A question, its choices behind their labels as the file has them (A, B, ... or 1, 2, ...), and the answer."""
    question, key, choices = _text(row, "question"), _text(row, "answerKey"), row.get("choices")
    texts, labels = [_strings(choices, name) for name in ("text", "label")]
    if not texts or len(texts) != len(labels):
        raise RowError("choices", "column 'choices' does not hold as many labels as texts")
    if labels.count(key) != 1:
        raise RowError("no answer", f"the answer {key!r} is not one of {', '.join(labels)}")
    lines = [f"{label}. {text}" for label, text in zip(labels, texts, strict=True)]
    return f"{question}\n\n" + "\n".join(lines) + f"\n\nAnswer: {lines[labels.index(key)]}"


def _strings(struct: Any, name: str) -> list[str]:
    """A list of strings in a struct; empty where there is none."""
    values = struct.get(name) if isinstance(struct, Mapping) else None
    return values if isinstance(values, list) and all(isinstance(value, str) for value in values) else []


TEXT = RowFormat(columns=["text"])
