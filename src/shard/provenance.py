"""What something was made from: flat tables, their fingerprint, and the words for where two of them differ."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def fingerprint(*values: Any) -> str:
    """A short hash of JSON values: equal values, equal fingerprint, in every process."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def flatten(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Each key in which two flat tables differ, with both values; a key that one of them lacks is None in it."""
    keys = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    return [f"{key} is {there.get(key)!r} there and {here.get(key)!r} here" for key in keys]


def describe_difference(there: Mapping[str, Any], here: Mapping[str, Any], most: int = 3) -> str:
    """The first differences of two flat tables, and how many more there are."""
    found = differences(there, here)
    return ", ".join(found[:most]) + (f", and {len(found) - most} more" if len(found) > most else "")
