"""What something was made from: its fingerprint, and the words for where two of them differ."""

import json

from shard.provenance import describe_difference, differences, fingerprint, flatten


def test_a_fingerprint_never_changes_between_versions() -> None:
    """Finished runs hold fingerprints: another value here would make every one of them start anew."""
    assert fingerprint({"b": [1, 2.5, None], "a": "é"}, 7) == "22b0d9890a855401"


def test_a_fingerprint_depends_on_the_values_and_not_on_the_order_of_keys() -> None:
    value = {"a": 1, "b": [1, 2]}
    assert fingerprint(value) == fingerprint(json.loads('{"b": [1, 2], "a": 1}'))
    others = [fingerprint({"a": 1, "b": [2, 1]}), fingerprint(value, value), fingerprint([value]), fingerprint()]
    assert len({fingerprint(value), *others}) == 5


def test_tables_become_flat_and_lists_stay() -> None:
    assert flatten({"a": 1, "b": {"c": {"d": [1, {"e": 2}]}, "f": None}}) == {
        "a": 1,
        "b.c.d": [1, {"e": 2}],
        "b.f": None,
    }
    assert flatten({"a": {"b": 1}}, "x.") == {"x.a.b": 1}


def test_differences_name_the_key_and_both_values() -> None:
    there, here = {"a": 1, "b": "x", "same": 0}, {"a": 2, "c": [3], "same": 0}
    assert differences(there, here) == [
        "a is 1 there and 2 here",
        "b is 'x' there and None here",
        "c is None there and [3] here",
    ]
    assert differences(here, dict(here)) == []


def test_many_differences_are_counted() -> None:
    numbers = {f"k{i}": i for i in range(6)}
    assert describe_difference(numbers, numbers) == ""
    assert describe_difference(numbers, numbers | {"k2": 0}) == "k2 is 2 there and 0 here"
    text = describe_difference(numbers, dict.fromkeys(numbers, -1))
    assert text.count(" there and ") == 3
    assert text.startswith("k0 is 0 there and -1 here, k1 ")
    assert text.endswith(", and 3 more")
    exactly = describe_difference(numbers, numbers | dict.fromkeys(("k1", "k2", "k3"), -1))
    assert "more" not in exactly
