"""A second start compiles nothing: it finds what the first one left, and computes the same bits.

The first start takes most of a minute, for which it is slow: `make test-crash` has it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from shard.training.cpu_attention import load_cpu_attention

SCRIPT = Path(__file__).with_name("compiled_start.py")


def start(folder: Path, attention: str) -> dict[str, Any]:
    """One start in a process of its own."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_CACHE_DIR", None)
    command = [sys.executable, str(SCRIPT), str(folder), attention]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["flash_window", "cpu_attention"])
def test_a_second_process_finds_what_the_first_compiled(tmp_path: Path, attention: str) -> None:
    """Both caches: that of the code, and that of the graphs, which saves tracing the backward pass."""
    if attention == "cpu_attention" and not load_cpu_attention()[0]:
        pytest.skip(load_cpu_attention()[1])
    cold, warm = start(tmp_path, attention), start(tmp_path, attention)
    assert cold["found"]["fxgraph_cache_miss"] > 0
    assert "fxgraph_cache_hit" not in cold["found"]
    assert warm["found"]["fxgraph_cache_hit"] == cold["found"]["fxgraph_cache_miss"]
    assert warm["found"]["autograd_cache_hit"] == cold["found"]["autograd_cache_miss"] > 0
    for found in (cold["found"], warm["found"]):
        assert "autograd_cache_bypass" not in found
    assert not {"fxgraph_cache_miss", "fxgraph_cache_bypass", "autograd_cache_miss"} & warm["found"].keys()
    assert warm["gradients"] == cold["gradients"]


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.sin()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * 2


class _Thrice(_Twice):
    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * 3


def test_the_cache_tells_functions_apart_that_differ_in_their_backward_pass_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch leaves out of its cache unless told otherwise (environment.set_process_defaults)."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found = []
    with torch._functorch.config.patch(autograd_cache_allow_custom_autograd_functions=True):
        for function, expected in ((_Twice, 2.0), (_Thrice, 3.0), (_Twice, 2.0)):
            torch._dynamo.reset()
            counters.clear()
            x = torch.ones(4, requires_grad=True)
            torch.compile(function.apply)(x).sum().backward()
            assert x.grad is not None
            assert x.grad.tolist() == [expected] * 4
            found.append({key: n for key, n in counters["aot_autograd"].items() if key.startswith("autograd_cache")})
    torch._dynamo.reset()
    assert [("autograd_cache_hit" in f, "autograd_cache_miss" in f) for f in found] == [
        (False, True),
        (False, True),
        (True, False),
    ]
