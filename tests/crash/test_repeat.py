"""The same batch gives the same gradients, bit for bit, in every process, whatever else the machine is doing.

Gradients, not losses: a loss is one number, and agrees by luck.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from crashing import ENVIRONMENT

SCRIPT = Path(__file__).with_name("gradients.py")
COLD, WARM = 2, 3


@pytest.fixture
def busy_core() -> Iterator[None]:
    """A process that spins all the while: threads then come and go in another order each time."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        yield
        process.kill()


@pytest.mark.slow
@pytest.mark.usefixtures("busy_core")
def test_gradients_repeat_in_every_process_under_load_with_a_cold_and_a_warm_compiler_cache(tmp_path: Path) -> None:
    results = []
    for i in range(COLD + WARM):
        # The warm ones take turns with what the cold ones compiled: that, too, must be the same.
        cache = tmp_path / f"cache-{i if i < COLD else i % COLD}"
        environment = ENVIRONMENT | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TRITON_CACHE_DIR": str(cache / "triton")}
        command = [sys.executable, str(SCRIPT)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout.splitlines()[-1]))
        assert any(cache.rglob("*")), "nothing was compiled"
    assert results[0].pop("threads") == (os.cpu_count() or 1) or "OMP_NUM_THREADS" in os.environ
    for result in results[1:]:
        result.pop("threads")
        assert result == results[0]
