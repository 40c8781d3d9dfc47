"""Quantities with units in recipes and on the command line: "512KiB", "2MB", "2h55m"."""

import re
import time

from shard.errors import UsageError

_BYTES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_size(value: object) -> object:
    """ "512KiB" -> 524288. Anything but a string passes through. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", value)
    if not match or match[2].lower() not in _BYTES:
        raise ValueError(
            f"{value!r} is not a size: write a number of bytes, or one with a unit, as in '512KiB' or '2MB'"
        )
    return round(float(match[1]) * _BYTES[match[2].lower()])


def parse_duration(value: object) -> object:
    """ "2h55m" -> 10500 seconds. Anything but a string passes through. Raises ValueError."""
    if not isinstance(value, str):
        return value
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)([smhd])", value.replace(" ", ""))
    if not parts or "".join(number + unit for number, unit in parts) != value.replace(" ", ""):
        raise ValueError(f"{value!r} is not a duration: write it as in '45s', '30m' or '2h55m'")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def deadline_after(duration: str | None) -> float | None:
    """When "2h55m" from now is over, on the clock of time.monotonic(). UsageError where it is no duration."""
    if duration is None:
        return None
    try:
        return time.monotonic() + float(str(parse_duration(duration)))
    except ValueError as error:
        raise UsageError(f"--max-time {error}") from None


def format_size(num_bytes: float) -> str:
    """1234567 -> "1.2 MB" (powers of ten, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(num_bytes) < 999.5 or unit == "TB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    raise AssertionError


def format_count(number: float) -> str:
    """54538752 -> "54.5M"."""
    for unit in ("", "K", "M", "B", "T"):
        if abs(number) < 999.5 or unit == "T":
            return f"{number:.3g}{unit}"
        number /= 1000
    raise AssertionError


def format_duration(seconds: float) -> str:
    """3725 -> "1h02m"; 75 -> "1m15s"; 5.2 -> "5s"."""
    whole = max(0, round(seconds))
    if whole >= 86400:
        return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
