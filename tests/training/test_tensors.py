"""Our writer of safetensors against the library's reader."""

import hashlib
import json
import os
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save

from shard.training import tensors as tensors_module
from shard.training.tensors import _TYPES, write_tensors

# Any text but what JSON cannot hold, and the name that the format keeps for itself.
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


def fill(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Random bits: every value that the type has, NaN and -0 among them; True and False for bool."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty((), dtype=dtype).element_size()
    high = 2 if dtype == torch.bool else 256
    count = int(torch.tensor(shape).prod()) if shape else 1
    content = torch.randint(high, (count * size,), generator=generator, dtype=torch.uint8)
    return content.view(dtype).reshape(shape)


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return tensor.dtype, tuple(tensor.shape), bytes(flat.tolist())


def check(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    digest = write_tensors(path, tensors)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_file(path)
    assert {n: bits(t) for n, t in loaded.items()} == {n: bits(t) for n, t in tensors.items()}


@pytest.mark.parametrize("dtype", list(_TYPES))
def test_every_type_is_read_back_to_the_bit(tmp_path, dtype):
    check(tmp_path / "x", {"a": fill((3, 5), dtype), "b": fill((), dtype, 1), "c": fill((0, 4), dtype)})


def test_metadata_stands_in_the_header_and_changes_no_tensor(tmp_path):
    tensors = {"a": fill((3, 5), torch.float32), "b": fill((7,), torch.bfloat16)}
    digest = write_tensors(tmp_path / "x", tensors, {"format": "pt"})
    assert digest == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    loaded = load_file(tmp_path / "x")
    assert {n: bits(t) for n, t in loaded.items()} == {n: bits(t) for n, t in tensors.items()}
    write_tensors(tmp_path / "y", tensors)
    with safe_open(tmp_path / "y", "pt") as file:
        assert file.metadata() is None


def test_odd_ones_together(tmp_path):
    base = fill((6, 8), torch.float32)
    tensors = {
        "transposed": base.T,
        "strided": base[::2, 1::3],
        "expanded": torch.arange(3.0).expand(4, 3),
        "view": base[2:4],
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "half a word": fill((3,), torch.bfloat16),
        "bytes": fill((5,), torch.uint8),
        "flag": torch.tensor(True),
        "wide": fill((1,), torch.float64),
        'é\n"\u2028': torch.zeros(1),
    }
    check(tmp_path / "x", tensors)


def test_nothing_at_all(tmp_path):
    check(tmp_path / "x", {})


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(list(_TYPES)), st.integers(0, 99)), max_size=6),
    st.randoms(use_true_random=False),
)
def test_any_names_and_shapes(tmp_path_factory, wanted, rng):
    folder = tmp_path_factory.mktemp("tensors")
    tensors = {name: fill(*values) for name, values in wanted.items()}
    check(folder / "x", tensors)
    mixed = list(tensors.items())
    rng.shuffle(mixed)
    write_tensors(folder / "y", dict(mixed))
    assert (folder / "x").read_bytes() == (folder / "y").read_bytes(), "the order of the dict does not matter"


def test_the_bytes_are_those_of_the_library(tmp_path):
    """For plain names, and with one type of each width: where two have one, the library has an order of its own."""
    types = (torch.float32, torch.uint8, torch.bfloat16, torch.float64, torch.float32)
    tensors = {name: fill((3, i), dtype, i) for i, (name, dtype) in enumerate(zip("dbcae", types, strict=True))}
    write_tensors(tmp_path / "x", tensors)
    assert (tmp_path / "x").read_bytes() == save(tensors)


@pytest.mark.parametrize("names", [["a"], ["ab"], ["a", "bcd"], ["x" * n for n in range(1, 9)]])
def test_tensors_are_aligned(tmp_path, names):
    write_tensors(
        tmp_path / "x", {name: fill((3,), torch.float64) for name in names} | {"odd": fill((3,), torch.uint8)}
    )
    data = (tmp_path / "x").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert (8 + length) % 8 == 0
    for entry in json.loads(data[8 : 8 + length]).values():
        if entry["dtype"] == "F64":
            assert entry["data_offsets"][0] % 8 == 0


def test_it_is_flushed_to_disk_when_it_is_whole(tmp_path, monkeypatch):
    sizes, fsync = [], os.fsync

    def recording(descriptor):
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(tensors_module.os, "fsync", recording)
    write_tensors(tmp_path / "x", {"a": torch.zeros(100)})
    assert sizes == [(tmp_path / "x").stat().st_size]


def test_no_copy_is_made_of_what_is_in_memory(tmp_path):
    tensors = {"a": torch.zeros(2**20), "b": torch.zeros(2**20)}
    tracemalloc.start()
    write_tensors(tmp_path / "x", tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20, "four MiB each"


def test_the_machine_stores_the_least_byte_first():
    """As the format does; the writer relies on it."""
    assert sys.byteorder == "little"
