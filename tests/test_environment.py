"""What Shard chooses on a machine, and that it says why."""

import os
import shutil
from pathlib import Path

import pytest
import torch

import shard.environment
from shard.environment import (
    choose_compile,
    choose_precision,
    compiler_cache,
    memory_bytes,
    set_process_defaults,
    versions,
)
from shard.training.decisions import decide
from shard.training.settings import StageSettings

CPU = torch.device("cpu")


def settings(**changes: object) -> StageSettings:
    values = {"steps": 1, "sequence_length": 64, "tokens_per_step": 64 * 96, "mix": {"a": 1.0}, "compile": "off"}
    return StageSettings(**(values | changes))  # type: ignore[arg-type]


def test_without_a_compiler_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    works, reason = choose_compile(CPU)
    assert not works
    assert "no C++ compiler" in reason


def test_a_tool_chain_that_fails_at_the_first_call_means_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile itself never fails: what it returns does, when it is called."""

    def compile_to_failure(function: object) -> object:
        def call(x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("Python.h: No such file\nand a long trace")

        return call

    monkeypatch.setattr(torch, "compile", compile_to_failure)
    works, reason = choose_compile(CPU)
    assert not works
    assert "Python.h" in reason
    assert "\n" not in reason


@pytest.mark.parametrize(("amx", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_computes_in_bf16_only_with_amx(monkeypatch: pytest.MonkeyPatch, amx: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    precision, reason = choose_precision(CPU)
    assert precision == expected
    assert "AMX" in reason


def test_decisions_are_written_once_and_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that looks different after a restart does not change how a stage computes."""
    path = tmp_path / "decisions.json"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False})
    first = decide("pretrain", settings(), CPU, path)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert decide("pretrain", settings(), CPU, path) == first
    assert decide("anneal", settings(), CPU, path).precision == "bf16"


def test_the_micro_batch_divides_the_batch(tmp_path) -> None:
    """4,096 tokens at most on a CPU, in equal parts: 96 rows of 64 become 48 and 48, not 64 and 32."""
    assert decide("pretrain", settings(), CPU, tmp_path / "a.json").micro_batch == 48
    assert decide("pretrain", settings(micro_batch=1000), CPU, tmp_path / "b.json").micro_batch == 96


def test_the_recipe_has_the_last_word(tmp_path) -> None:
    decisions = decide("pretrain", settings(precision="bf16", compile="on"), CPU, tmp_path / "a.json")
    assert (decisions.precision, decisions.compile) == ("bf16", True)
    assert decisions.reasons["precision"] == "the recipe says so"


def test_facts_of_this_machine() -> None:
    assert memory_bytes(CPU) > 10**7
    assert versions()["torch"] == torch.__version__


def test_each_kind_of_processor_has_a_compiler_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder may be shared, and torch would load code with instructions that this processor lacks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    folders = []
    for flags in ("sse avx", "sse avx avx512f"):
        monkeypatch.setattr(shard.environment, "_cpuinfo", lambda flags=flags: [f"flags : {flags}", "cpu MHz : 2400"])
        folders.append(compiler_cache())
    assert {folder.parent for folder in folders if folder} == {tmp_path / "caches" / "shard" / "compiled"}
    assert folders[0] != folders[1]
    assert not (tmp_path / "caches").exists(), "asking makes nothing"


def test_without_a_place_to_write_torch_keeps_its_own_compiler_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert compiler_cache() is None
    set_process_defaults()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_a_compiler_cache_that_the_user_chose_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    set_process_defaults()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)
