"""Whichever write, flush or rename fails: what was there before is there, or what was to come, and never a mixture."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from crashing import ENVIRONMENT

from shard.tokenizer import train_tokenizer

# Scenario -> operations that it has at least; with fewer, the injection would have missed how the code writes.
OPERATIONS = {
    "checkpoint": 12,
    "replaced checkpoint": 12,
    "shards": 20,
    "file": 5,
    "new run": 3,
    "manifest": 3,
    "journal": 3,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What inject.py found, in one process for all scenarios."""
    work = tmp_path_factory.mktemp("injection")
    # Made here: inject.py must not start threads, and training a tokenizer does.
    train_tokenizer(["lorem ipsum document " * 9], 300).save(str(work / "tokenizer.json"))
    command = [sys.executable, str(Path(__file__).with_name("inject.py")), str(work)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("scenario", OPERATIONS)
def test_no_failed_operation_loses_or_damages_anything(results: dict[str, Any], scenario: str) -> None:
    assert results[scenario]["failures"] == []
    assert len(results[scenario]["operations"]) >= OPERATIONS[scenario], results[scenario]["operations"]


@pytest.mark.parametrize("operation", ["write", "fsync", "re"])
def test_every_kind_of_operation_of_a_checkpoint_was_injected(results: dict[str, Any], operation: str) -> None:
    assert any(line.startswith(operation) for line in results["checkpoint"]["operations"])
