"""The unit of every data source: one text, and the group that decides on which side of the split it falls."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One document.

    `group` names what the document belongs to (a module path, a file, a problem): all documents of one group,
    over all sources that share the namespace, are either trained on or held out, never both.
    """

    text: str
    group: str
