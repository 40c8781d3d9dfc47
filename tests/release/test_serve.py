"""`transformers serve` on an export, without a network: completions through the OpenAI client, whole and streamed.

Slow, and it needs the extra `serve`: `make test-serve`.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_release import Exported

from shard.inference.sampling import generate_ids
from shard.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow

PROMPT = "The quick brown"
TOKENS = 40


@pytest.fixture(scope="module")
def served(ascii_export: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    """A client of the served model, and the model's name there: its path."""
    openai = pytest.importorskip("openai")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(ascii_export.fp32)]
    host, port = address.split(":")
    # A proxy that cannot be reached: whatever asks for another host fails.
    nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "all")} | {"no_proxy": "127.0.0.1"}
    environment = os.environ | nowhere | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "--device", "cpu", "--host", host, "--port", port],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        for _ in range(240):
            assert server.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"http://{address}/health", timeout=5) as answer:
                    assert answer.status == 200
                break
            except OSError:
                time.sleep(0.5)
        with openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as client:
            yield client, str(ascii_export.fp32)
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def expected(ascii_export: Exported) -> str:
    tok = load_tokenizer(ascii_export.tokenizer)
    return tok.decode(list(generate_ids(ascii_export.model, tok.encode(PROMPT).ids, TOKENS)))


def test_the_model_is_listed(served: tuple[Any, str]) -> None:
    client, name = served
    assert name in [model.id for model in client.models.list()]


def test_a_completion_is_our_greedy_text(served: tuple[Any, str], expected: str) -> None:
    client, name = served
    answer = client.completions.create(model=name, prompt=PROMPT, max_tokens=TOKENS, temperature=0)
    assert answer.choices[0].text == expected
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == TOKENS


def test_a_streamed_completion_comes_in_pieces_and_is_the_same(served: tuple[Any, str], expected: str) -> None:
    client, name = served
    stream = client.completions.create(model=name, prompt=PROMPT, max_tokens=TOKENS, temperature=0, stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert sum(bool(chunk.choices[0].text) for chunk in chunks) > 5
    assert chunks[-1].choices[0].finish_reason == "length"
