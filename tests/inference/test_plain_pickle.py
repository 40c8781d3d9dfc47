"""What torch.save writes of plain content is read; a file that asks for anything else is refused first."""

import collections
import io
import os
import pickle
import resource
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shard.errors import ShardError
from shard.inference import plain_pickle
from shard.inference.plain_pickle import load_plain


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def pack(
    path: Path, data: bytes, *, compression: int = zipfile.ZIP_STORED, storages: dict[str, bytes] | None = None
) -> Path:
    """A zip archive laid out as torch lays it out, around any pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/byteorder", "little")
        for name, content in (storages or {}).items():
            archive.writestr(f"a/data/{name}", content)
        archive.writestr("a/version", "3\n")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ShardError) as caught:
        load_plain(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600 and path.name in message
    return message


# What is read


def test_plain_content_comes_back(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    content = {
        "model": model.state_dict(),  # an OrderedDict with an attribute
        "bf16": torch.arange(6).bfloat16().view(2, 3),
        "others": [torch.tensor(7), torch.zeros(0), torch.ones(2, dtype=torch.bool)],
        "cfg": {"a": 1, "b": 1.5, "c": None, "d": True, "e": "é", "f": 2**40, "g": (1, 2, 3, 4)},
    }
    loaded = load_plain(save(content, tmp_path / "x.pt"))
    assert loaded["cfg"] == content["cfg"]
    assert torch.equal(loaded["bf16"], content["bf16"]) and loaded["bf16"].dtype == torch.bfloat16
    assert torch.equal(loaded["model"]["weight"], model.weight)
    assert [t.tolist() for t in loaded["others"]] == [7, [], [True, True]]


def test_storages_are_mapped_from_the_file_and_cannot_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real, options = save({"x": torch.ones(10)}, tmp_path / "x.pt"), torch.load, []
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: options.append(kwargs) or real(*args, **kwargs))
    assert not load_plain(path)["x"].untyped_storage().resizable()
    assert options == [{"map_location": "cpu", "weights_only": True, "mmap": True}]


def test_a_pickle_packed_here_is_read_as_those_of_torch_are(tmp_path: Path) -> None:
    """So that what is refused below is refused for its pickle."""
    assert load_plain(pack(tmp_path / "x.pt", pickle.dumps({"a": [1, "b"]}, 2))) == {"a": [1, "b"]}


# What would run code


class Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "content",
    [
        lambda mark: Call(os.system, f"touch {mark}"),
        lambda mark: {"model": {"w": [Call(os.system, f"touch {mark}")]}, "cfg": {}},
        lambda mark: collections.OrderedDict(a=Call(getattr, Call(__import__, "os"), "system")),
        lambda mark: Call(bytearray, 10**10),
        lambda mark: Call(eval, "1"),
    ],
)
def test_a_pickle_that_calls_is_refused_and_not_run(tmp_path: Path, content: Any, protocol: int) -> None:
    mark = tmp_path / "ran"
    message = refusal(pack(tmp_path / "model.pt", pickle.dumps(content(mark), protocol)))
    assert "its pickle" in message
    assert not mark.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "asks for os.system"),
        (b"\x80\x02ccollections\nOrderedDict\nq\0ctorch\nload\nq\1.", "asks for torch.load"),
        (b"(S'true'\nios\nsystem\n.", "instruction"),
        (b"(cos\nsystem\nS'true'\no.", "asks for os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "instruction"),
        (b"\x82\x01.", "instruction EXT1"),
        (b"Pkey\n.", "instruction PERSID"),
        (b"\x80\x02ctorch\nFloatStorage\nK\x09\x85R.", "calls what is no function"),
        (b"\x80\x02K\x01)R.", "calls what is no function"),
        (b"\x80\x02}}b.", "attributes of what is no OrderedDict"),
        (b"\x80\x02tt.", "damaged"),
        (b"\x80\x02(h\x07t.", "damaged"),
        (b"\x80\x02(\x85.", "takes more than it has"),
        (b"\x80\x02\x8e" + struct.pack("<Q", 2**40) + b".", "damaged"),
        (b"\x80\x02X\xff\xff\xff\x7f.", "damaged"),
        (b"", "damaged"),
    ],
)
def test_instructions_that_plain_content_does_not_need(tmp_path: Path, data: bytes, message: str) -> None:
    assert message in refusal(pack(tmp_path / "x.pt", data))


def test_a_tensor_gets_no_attributes_by_which_it_could_grow(tmp_path: Path) -> None:
    """`tensor.set_()` gives a storage that can be resized to anything."""
    data = save({"x": torch.ones(1)}, tmp_path / "x.pt")
    content = zipfile.ZipFile(data).read("x/data.pkl")
    grown = content.replace(b"s.", b")bs.").replace(b"u.", b")bu.")
    assert grown != content
    assert "no OrderedDict" in refusal(pack(tmp_path / "y.pt", grown, storages={"0": bytes(4)}))


@pytest.mark.parametrize("piece", [b"N", b"(t", b"("])
def test_a_pile_that_is_never_used(tmp_path: Path, piece: bytes) -> None:
    """To search it for its last mark, again and again, would take hours."""
    refusal(pack(tmp_path / "x.pt", b"\x80\x02" + piece * 1_000_000 + b"."))


# What would take memory


def test_a_compressed_entry(tmp_path: Path) -> None:
    """Ten gigabytes, or one, are a megabyte of zip."""
    path = pack(tmp_path / "bomb.pt", b"\x80\x02N." + bytes(50_000_000), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert "larger than the file" in refusal(path)
    assert "is compressed" in refusal(pack(tmp_path / "small.pt", b"\x80\x02N.", compression=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("tensor", [torch.ones(1).expand(10**9), torch.ones(4, 3).t(), torch.ones(8)[::2]])
def test_a_tensor_that_shows_more_than_it_has(tmp_path: Path, tensor: torch.Tensor) -> None:
    assert "is not stored as it is" in refusal(save({"x": tensor}, tmp_path / "x.pt"))


def test_tensors_that_share_their_memory(tmp_path: Path) -> None:
    whole = torch.ones(100)
    assert "share their memory" in refusal(save({"a": whole[:60], "b": whole[50:]}, tmp_path / "x.pt"))
    many = refusal(save([whole] * 1000, tmp_path / "y.pt"))
    assert "larger than the file" in many
    assert load_plain(save({"a": whole[:50], "b": whole[50:]}, tmp_path / "z.pt")).keys() == {"a", "b"}


def test_a_storage_that_claims_more_than_the_file_holds(tmp_path: Path) -> None:
    save({"x": torch.ones(300)}, tmp_path / "x.pt")
    archive = zipfile.ZipFile(tmp_path / "x.pt")
    content = archive.read("x/data.pkl")
    claimed = content.replace(struct.pack("<BH", ord("M"), 300), b"J" + struct.pack("<i", 10**9))
    assert claimed != content
    refusal(pack(tmp_path / "y.pt", claimed, storages={"0": archive.read("x/data/0")}))


def test_a_pickle_that_is_too_long_to_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_pickle, "MAX_PICKLE_BYTES", 100)
    assert "no data.pkl of at most 100 bytes" in refusal(pack(tmp_path / "x.pt", b"N" * 101))


# What two readers of zip files would read differently


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "a/data/../x", "b/data/7", "A/DATA.PKL", "a/data.pkl", "C:\\x"])
def test_entries_by_other_names(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / "x.pt", b"\x80\x02N.")
    with pytest.warns(UserWarning) if name == "a/data.pkl" else io.BytesIO(), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "x")
    assert "entr" in refusal(path)


@pytest.mark.parametrize(
    "change", [lambda b: b + b"x", lambda b: b"x" + b, lambda b: b[:-30], lambda b: b"", lambda b: b[:50]]
)
def test_an_archive_within_a_file(tmp_path: Path, change: Any) -> None:
    path = save({"x": torch.ones(3)}, tmp_path / "x.pt")
    path.write_bytes(change(path.read_bytes()))
    refusal(path)


def test_older_formats(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(3)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert "zip archive" in refusal(tmp_path / "x.pt")
    (tmp_path / "y.pt").write_bytes(pickle.dumps({}) + bytes(200))
    assert "zip archive" in refusal(tmp_path / "y.pt")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "is missing" in refusal(tmp_path / "x.pt")


# Anything


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = {"model": {f"w{i}": torch.ones(3, i) for i in range(4)}, "cfg": {"a": 1, "b": "c"}}
    return save(content, tmp_path_factory.mktemp("saved") / "x.pt")


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_a_mutated_file_is_read_or_refused_in_one_line(
    saved: Path, changes: list[tuple[float, int]], in_the_pickle: bool
) -> None:
    """Half of the changes lie in the pickle, with the zip around it made anew, so that its checksum holds."""
    archive = zipfile.ZipFile(saved)
    content = bytearray(archive.read("x/data.pkl") if in_the_pickle else saved.read_bytes())
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    path = saved.with_name("mutated.pt")
    if in_the_pickle:
        pack(path, bytes(content), storages={str(i): archive.read(f"x/data/{i}") for i in range(4)})
    else:
        path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load_plain(path)
    except ShardError as error:
        assert "\n" not in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10**6  # kilobytes
