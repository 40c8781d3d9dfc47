"""What "auto" means, written down once, and what a smaller memory changes of it."""

import json
from dataclasses import replace

import pytest
import torch

from shard.environment import NO_COMPILER
from shard.errors import ShardError
from shard.training import cpu_attention as cpu_attention_module
from shard.training import decisions as decisions_module
from shard.training.decisions import Decisions, decide, halve_micro_batch, save_decisions, without_what_is_lost
from shard.training.settings import StageSettings

CPU = torch.device("cpu")


def settings(**changes: object) -> StageSettings:
    values = {"steps": 1, "sequence_length": 64, "tokens_per_step": 64 * 96, "mix": {"a": 1.0}, "compile": "off"}
    return StageSettings(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_without_bf16_computes_in_fp16(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    """bf16 that is only emulated is slow: it does not count."""
    from shard.environment import choose_precision

    asked = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    precision, reason = choose_precision(torch.device("cuda"))
    assert precision == expected
    assert "bf16" in reason
    assert asked == [False]
    assert Decisions(expected, expected, False, 1, False, {}).dtype == getattr(
        torch, {"bf16": "bfloat16", "fp16": "float16"}[expected]
    )


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_the_recipe_may_ask_for_any_precision(tmp_path, precision: str) -> None:
    assert decide("pretrain", settings(precision=precision), CPU, tmp_path / "a.json").precision == precision


def test_smaller_micro_batches_are_written_beside_other_stages(tmp_path) -> None:
    path = tmp_path / "decisions.json"
    first = decide("pretrain", settings(precision="fp32"), CPU, path)
    other = decide("anneal", settings(precision="fp32"), CPU, path)
    smaller = halve_micro_batch(first, 96)
    assert (first.micro_batch, smaller.micro_batch) == (48, 24)
    save_decisions("pretrain", CPU, path, smaller)
    assert decide("pretrain", settings(), CPU, path) == smaller
    assert decide("anneal", settings(), CPU, path) == other
    assert set(json.loads(path.read_text())) == {"pretrain on cpu", "anneal on cpu"}


@pytest.mark.parametrize(
    ("micro_batch", "rows", "half"), [(48, 96, 24), (8, 12, 4), (7, 7, 1), (6, 9, 3), (1, 5, None)]
)
def test_half_a_micro_batch_divides_the_rows(micro_batch: int, rows: int, half: int | None) -> None:
    decisions = Decisions("fp32", "fp32", False, micro_batch, False, {"micro_batch": "", "compile": "because"})
    smaller = halve_micro_batch(decisions, rows)
    if half is None:
        assert smaller is None
        return
    assert smaller.micro_batch == half
    assert rows % half == 0
    assert smaller.reasons == {
        "micro_batch": f"{micro_batch} sequences did not fit into memory",
        "compile": "because",
    }
    assert decisions.reasons["micro_batch"] == "", "what was there is not changed in place"


@pytest.mark.parametrize("text", ["[]", "{", '{"pretrain on cpu": {"precision": "fp32"}}'])
def test_damaged_decisions_are_named(tmp_path, text: str) -> None:
    path = tmp_path / "decisions.json"
    path.write_text(text)
    with pytest.raises(ShardError, match=r"decisions\.json is damaged.*made anew"):
        decide("pretrain", settings(), CPU, path)


def test_what_needs_a_compiler_is_given_up_where_there_is_none(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes on where it was carried to; only what the recipe asks for by name is an error."""
    decided = replace(decide("pretrain", settings(), CPU, tmp_path / "a.json"), compile=True, cpu_attention=True)
    monkeypatch.setattr(decisions_module, "cpp_compiler", lambda: "/usr/bin/c++")
    monkeypatch.setattr(cpu_attention_module, "load_cpu_attention", lambda: (True, "built"))
    assert without_what_is_lost("pretrain", decided, settings(), CPU) == (decided, [])
    monkeypatch.setattr(decisions_module, "cpp_compiler", lambda: None)
    monkeypatch.setattr(cpu_attention_module, "load_cpu_attention", lambda: (False, NO_COMPILER))
    fewer, lost = without_what_is_lost("pretrain", decided, settings(), CPU)
    assert not fewer.compile and not fewer.cpu_attention and len(lost) == 2
    assert fewer.reasons["compile"] == fewer.reasons["cpu_attention"] == NO_COMPILER
    assert without_what_is_lost("pretrain", fewer, settings(), CPU) == (fewer, [])
    with pytest.raises(ShardError, match=r'pretrain.compile is "on", but no C\+\+ compiler was found'):
        without_what_is_lost("pretrain", decided, settings(compile="on"), CPU)
