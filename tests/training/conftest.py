"""Data of the tiny stage, made once, and torch's switches put back after each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_stage import write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token shards of two sources, and a tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(autouse=True)
def _restore_torch_switches() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
