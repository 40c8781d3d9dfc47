"""hf/ of a release: the lines of the card load it without Shard, and `shard import` makes a run of it again."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shard.release.hugging_face import their_name

Shard = Callable[..., Any]


@pytest.fixture
def bundle(finished_run: Path) -> Path:
    return finished_run / "release"


def test_the_lines_of_the_card_print_what_shard_generate_prints(shard: Shard, bundle: Path, tmp_path: Path) -> None:
    """In an interpreter without Shard, with no network. The weights become random ones, in which every token counts."""
    pytest.importorskip("transformers")
    random = Path(shutil.copytree(bundle, tmp_path / "random"))
    content = torch.load(random / "models" / "model.pt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for weight in content["model"].values():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    torch.save(content, random / "models" / "model.pt")
    assert shard("export", random, "--to", "hf", "--out", tmp_path / "new").code == 0
    shutil.rmtree(random / "hf")
    (tmp_path / "new").rename(random / "hf")
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['shard'] = None\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    _, lines = re.findall(r"```python\n(.*?)```", (bundle / "README.md").read_text(), flags=re.DOTALL)
    lines = lines.replace("model='hf'", "model='hf', dtype='float32'")
    command = [sys.executable, "-c", lines]
    done = subprocess.run(command, cwd=random, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    options = ["--greedy", "--dtype", "fp32", "--max-tokens", 40]
    assert shard("generate", random, "The capital of France is", *options).out == done.stdout
    assert done.stdout.startswith("The capital of France is")


def test_hf_holds_the_weights_of_the_bundle(bundle: Path) -> None:
    content = torch.load(bundle / "models" / "model.pt", weights_only=True)
    tensors = load_file(bundle / "hf" / "model.safetensors")
    assert tensors.keys() == {their_name(name) for name in content["model"]}
    assert all(torch.equal(tensors[their_name(name)], weight) for name, weight in content["model"].items())
    assert (bundle / "hf" / "tokenizer.json").read_bytes() == (bundle / "models" / "tokenizer.json").read_bytes()
    assert "| `hf/` |" in (bundle / "README.md").read_text()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_verify_covers_it(shard: Shard, bundle: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    assert shard("verify", copy).code == 0
    content = bytearray((copy / "hf" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "hf" / name).write_bytes(content)
    outcome = shard("verify", copy)
    assert outcome.code == 1
    assert f"{copy / 'hf' / name}: is damaged" in outcome.out


def test_an_import_is_evaluated_annealed_and_released(shard: Shard, finished_run: Path, tmp_path: Path) -> None:
    run, export = tmp_path / "imported", tmp_path / "export"
    outcome = shard("export", finished_run, "--to", "hf", "--out", export, "--dtype", "fp32", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["dtype"] == "fp32"
    outcome = shard("import", export, "--out", run, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out) == {"run": str(run), "step": 0, "tokens": 0, "optimizer": "fresh"}
    assert "the optimizer state and the count of steps begin afresh" in outcome.err
    weights = load_file(run / "pretrain" / "checkpoints" / "step-00000000" / "model.safetensors")
    theirs = load_file(finished_run / "anneal" / "checkpoints" / "step-00000003" / "model.safetensors")
    assert weights.keys() == theirs.keys() and all(torch.equal(weights[name], theirs[name]) for name in weights)

    assert "pretrain: done already" in shard("pretrain", run).err
    assert shard("evaluate", run).code == 0
    scores = [json.loads((folder / "evaluation.json").read_text())["sources"] for folder in (run, finished_run)]
    assert scores[0] == scores[1]
    assert shard("status", run).code == 0
    assert shard("run", run).code == 0
    state = json.loads((run / "anneal/checkpoints/step-00000003/state.json").read_text())
    assert state["branched_from"] == {"stage": "pretrain", "step": 0, "tokens": 0}
    assert "imported from a Hugging Face export" in (run / "release" / "README.md").read_text()
    assert shard("verify", run).code == 0
    # And what it released can be imported once more, in either way.
    for name, source in (("a", run / "release"), ("b", run / "release" / "hf")):
        outcome = shard("import", source, "--out", tmp_path / name)
        assert outcome.code == 0, outcome.err


def test_a_release_without_hf_where_it_would_not_be_exact(
    shard: Shard, tiny: list[str], text_folder: Path, tmp_path: Path
) -> None:
    model = next(word for word in tiny if word.startswith("model=")).replace("sliding_window = 8", "sliding_window = 1")
    outcome = shard("run", *tiny, "--set", model, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    reason = "no Hugging Face export: the cache of transformers is wrong for model.sliding_window = 1"
    assert f"release: {reason}" in outcome.err
    bundle = tmp_path / "run" / "release"
    assert not (bundle / "hf").exists()
    card = (bundle / "README.md").read_text()
    assert reason in card and "`hf/`" not in card
    outcome = shard("export", bundle, "--to", "hf", "--out", tmp_path / "out")
    assert (outcome.code, outcome.err) == (1, f"shard: {reason}\n")
