"""Quantities with units: what is read, what is refused, and how numbers are shown."""

import pytest
from pydantic import TypeAdapter, ValidationError

from shard.data.settings import Size
from shard.units import format_count, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("512KiB", 524_288),
        ("2MB", 2_000_000),
        ("2mb", 2_000_000),
        ("1.5 GiB", 1_610_612_736),
        (" 7 ", 7),
        ("0", 0),
        ("3B", 3),
        ("1TB", 10**12),
        ("1tib", 2**40),
    ],
)
def test_a_size_is_read(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "MB", "2 megabytes", "-1MB", "1,5MB", "2MB2", "1e3", "inf", "nan", "0x10"])
def test_what_is_not_a_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size: write .*'512KiB'"):
        parse_size(text)


@pytest.mark.parametrize("value", [17, 1.5, None, True])
def test_what_is_not_a_string_passes_through_for_pydantic_to_judge(value: object) -> None:
    assert parse_size(value) is value
    assert parse_duration(value) is value


def test_the_size_of_a_recipe_is_a_whole_number_that_is_not_negative() -> None:
    size = TypeAdapter(Size)
    assert size.validate_python("512KiB") == 524_288
    assert size.validate_python(5) == 5
    for wrong in (-1, 1.5, "x", None, "99999999TB"):
        with pytest.raises(ValidationError):
            size.validate_python(wrong)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h55m", 10_500), ("45s", 45), ("1d", 86_400), ("0.5h", 1_800), ("1h 30m", 5_400), ("1d2h3m4s", 93_784)],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2h5", "2 hours", "-1h", "1w", "h2"])
def test_what_is_not_a_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration: write .*'2h55m'"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (999_600, "1 MB"), (5e15, "5e+03 TB")],
)
def test_sizes_are_shown_as_disks_are_sold(num_bytes: float, text: str) -> None:
    assert format_size(num_bytes) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1000, "1K"), (54_538_752, "54.5M"), (1.31e10, "13.1B"), (2e12, "2T")]
)
def test_counts_are_shown_with_three_digits(number: float, text: str) -> None:
    assert format_count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0s"),
        (5.2, "5s"),
        (59.6, "1m00s"),
        (75, "1m15s"),
        (3599.4, "59m59s"),
        (3725, "1h02m"),
        (86_399, "23h59m"),
        (90_000, "1d01h"),
    ],
)
def test_durations_are_shown_with_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
