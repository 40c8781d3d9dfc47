"""What data will take is said before it starts: sizes as they are listed, limits as they are read."""

from pathlib import Path

import pytest
from corpora import hub_source, prose, text_source

from shard.data.price import Price, disk_in_all, list_sizes, measure_data_speed, price, price_source
from shard.data.settings import DataSettings, GeneratedSource, HubSource

SETTINGS = DataSettings()


def hub(**limits: object) -> HubSource:
    return HubSource(kind="hub", repository="someone/some", files="**/*.parquet", columns=("text",), **limits)


def test_files_of_a_dataset_are_counted_in_full() -> None:
    sizes = [("a.parquet", 1000), ("b.jsonl", 500)]
    whole = price_source(hub(), sizes, SETTINGS, is_download=True, token_bytes=2)
    assert (whole.files, whole.download_bytes, whole.largest_file) == (2, 1500, 1000)
    assert whole.text_bytes == 2600 + 500  # zstd parquet holds 2.6 times its size
    assert whole.tokens == round(3100 / 3.5)
    mirrored = price_source(hub(), sizes, SETTINGS, is_download=False, token_bytes=2)
    assert (mirrored.download_bytes, mirrored.largest_file) == (0, 0)
    assert mirrored.text_bytes == whole.text_bytes and mirrored.disk_bytes == whole.disk_bytes
    wide = price_source(hub(), sizes, SETTINGS, is_download=True, token_bytes=4)
    assert wide.disk_bytes - whole.disk_bytes == pytest.approx(2 * 2 * whole.tokens, abs=4)


@pytest.mark.parametrize(
    ("limits", "files", "text"),
    [
        ({"max_bytes": 2600}, 1, 2600),
        ({"max_bytes": 2601}, 2, 2601),
        ({"max_bytes": 1}, 1, 1),
        ({"max_documents": 2}, 2, 5200),  # of 2,000 bytes each, about
        ({"max_tokens": 900}, 3, 7200),  # 8 bytes of text a token, at most
        ({"max_bytes": 10**9}, 4, 10400),
    ],
)
def test_no_more_files_are_counted_than_a_limit_is_likely_to_need(
    limits: dict[str, int], files: int, text: int
) -> None:
    one = price_source(hub(**limits), [(f"{i}.parquet", 1000) for i in range(4)], SETTINGS, True, 2)
    assert (one.files, one.download_bytes, one.text_bytes) == (files, 1000 * files, text)
    assert one.tokens <= limits.get("max_tokens", 10**9)


def test_the_disk_holds_what_each_worker_is_reading() -> None:
    prices = {
        name: Price(files=1, download_bytes=size, largest_file=size, text_bytes=0, tokens=0, disk_bytes=10)
        for name, size in (("a", 700), ("b", 900))
    }
    assert disk_in_all(prices, SETTINGS, workers=3) == 20 + 3 * 900
    assert disk_in_all(prices, DataSettings(keep_raw=True), workers=3) == 20  # there they are in each price


def test_sizes_are_those_of_the_mirror_in_the_order_of_reading(tmp_path: Path) -> None:
    names = ["a/0.parquet", "a/1.parquet", "b/0.parquet"]
    source = hub_source(tmp_path, {name: prose(name, 3) for name in names}).model_copy(update={"files": "*/*.parquet"})
    found = list_sizes(source, tmp_path)
    assert [name for name, _ in found] == names
    assert all(size == (tmp_path / "datasets/someone/some" / name).stat().st_size for name, size in found)
    limited = list_sizes(source.model_copy(update={"max_documents": 5}), tmp_path)
    assert [name for name, _ in limited] == ["a/0.parquet", "b/0.parquet", "a/1.parquet"]
    mine = list_sizes(text_source(tmp_path / "in", prose("mine", 3)), None)
    assert mine == [("lines.jsonl", (tmp_path / "in/lines.jsonl").stat().st_size)]
    assert list_sizes(GeneratedSource(kind="generated", max_bytes=1234), None) == [("", 1234)]


def test_the_whole_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shard.data.price.measure_data_speed", lambda: 100.0)
    source = hub_source(tmp_path, {"a.parquet": prose("a", 3)})
    result = price({"web": source, "made": GeneratedSource(kind="generated", max_bytes=500)}, SETTINGS, tmp_path, 2)
    text = sum(one["text_bytes"] for one in result["sources"].values())
    assert result["text_bytes"] == text > 500 and result["download_bytes"] == 0
    assert result["seconds"] == round(text / (100 * result["workers"]))


def test_the_speed_is_that_of_real_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of documents that go all the way to tokens."""
    monkeypatch.setattr("shard.data.price.PROBE_BYTES", 100_000)
    assert 10**4 < measure_data_speed() < 10**9
