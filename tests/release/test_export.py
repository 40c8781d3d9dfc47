"""`shard export`: from whatever holds a model, into a new folder that is whole or not there."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_release import SHAPE, Exported

from shard.errors import ShardError, UsageError
from shard.release import export
from shard.release.export import FORMATS, export_model


@pytest.fixture
def bundle(exported: Exported, tmp_path: Path) -> Path:
    """The part of a release bundle that is read."""
    folder = tmp_path / "bundle"
    (folder / "models").mkdir(parents=True)
    weights = {name: weight.bfloat16() for name, weight in exported.model.state_dict().items()}
    torch.save({"model": weights, "cfg": SHAPE.to_dict()}, folder / "models" / "model.pt")
    shutil.copyfile(exported.tokenizer, folder / "models" / "tokenizer.json")
    (folder / "recipe.toml").write_text("the recipe")
    return folder


def test_a_bundle_is_exported_with_its_recipe(bundle: Path, exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()  # an empty one is as good as none
    result = export_model(bundle, "hf", tmp_path / "out")
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert files.pop("recipe.toml") == b"the recipe"
    assert files == {path.name: path.read_bytes() for path in exported.bf16.iterdir()}
    num_bytes = sum(map(len, files.values())) + len("the recipe")
    assert result == {
        "export": str(tmp_path / "out"),
        "from": str(bundle),
        "format": "hf",
        "dtype": "bf16",
        "parameters": sum(p.numel() for p in exported.model.parameters()),
        "bytes": num_bytes,
    }


def test_a_wrong_format_dtype_or_folder_is_one_line(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--to onnx: choose one of hf"):
        export_model(bundle, "onnx", tmp_path / "out")
    with pytest.raises(UsageError, match="--dtype int4: hf has bf16, fp32"):
        export_model(bundle, "hf", tmp_path / "out", "int4")
    (tmp_path / "file").write_text("")
    for taken in (bundle, tmp_path / "file", Path()):
        with pytest.raises(ShardError, match="is not empty, or is the current folder"):
            export_model(bundle, "hf", taken)
    with pytest.raises(ShardError, match="does not exist"):
        export_model(tmp_path / "nothing", "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_fails_half_way_leaves_nothing(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(weights: Any, config: Any, tokenizer: Any, folder: Path, dtype: str) -> Any:
        (folder / "config.json").write_text("half")
        raise ShardError("no more room")

    monkeypatch.setitem(export.FORMATS, "hf", (fail, ("bf16",)))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ShardError, match="no more room"):
        export_model(bundle, "hf", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_every_format_has_a_default_dtype() -> None:
    assert FORMATS["hf"][1][0] == "bf16"
    assert all(dtypes for _, dtypes in FORMATS.values())
