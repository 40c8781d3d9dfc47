"""What int8 costs is measured on the same text, and not where int8 is missing."""

import json
from pathlib import Path

import pytest
import torch

from shard.console import Reporter
from shard.data import documents
from shard.evaluation import int8_loss
from shard.evaluation.int8_loss import measure_int8_loss
from shard.evaluation.settings import EvaluateSettings
from shard.inference import quantize as quantize_module
from shard.inference.load import LoadedModel
from shard.model import ShardLM
from shard.tokenizer import train_tokenizer


def test_both_models_read_the_same_text(tiny_model: ShardLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer(["some words"] * 2, 259)
    wide = ShardLM(type(tiny_model.config)(**{**tiny_model.config.to_dict(), "vocab_size": 259}))
    with torch.no_grad():
        for name, p in wide.named_parameters():
            p.copy_(tiny_model.get_parameter(name)) if "embedding" not in name else p.normal_(std=0.1)
    monkeypatch.setattr(
        int8_loss, "load_model", lambda *_: LoadedModel(wide.eval(), tokenizer, 0, "here", Path("here"))
    )
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"text": f"{name} text {i} of words " * 5}) for i in range(3)]
        (tmp_path / name / documents.HELDOUT).write_text("\n".join(lines), encoding="utf-8")
    arguments = (tmp_path, tmp_path, ["first", "second"], EvaluateSettings(), Reporter(quiet=True))
    result = measure_int8_loss(*arguments)
    assert result is not None and set(result["sources"]) == {"first", "second"}
    for scores in result["sources"].values():
        fp32, int8 = scores["fp32_bits_per_byte"], scores["int8_bits_per_byte"]
        assert fp32 != int8 and abs(int8 / fp32 - 1) < 0.02
        assert scores["change_percent"] == pytest.approx(100 * (int8 / fp32 - 1), abs=0.01)
    monkeypatch.setattr(quantize_module, "choose_kernels", lambda: (False, "no compiler"))
    monkeypatch.delattr(torch, "_weight_int8pack_mm")
    assert measure_int8_loss(*arguments) is None
