"""GGUF files of a whole run: in the bundle, by `shard export`, in llama.cpp."""

import json
import shutil
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shard.verify import read_sums, verify

gguf = pytest.importorskip("gguf")

Shard = Callable[..., Any]
FILES = [f"gguf/quickstart-{dtype}.gguf" for dtype in ("bf16", "f32", "q8_0")]


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def released_again(shard: Shard, run: Path) -> Any:
    (run / "release" / "SHA256SUMS").unlink()
    return shard("release", run)


def test_the_bundle_has_them_and_its_card_says_what_they_do_not_compute(finished_run: Path) -> None:
    bundle = finished_run / "release"
    assert sorted(name for name in read_sums(bundle) if name.startswith("gguf/")) == FILES
    card = (bundle / "README.md").read_text()
    for name in FILES:
        assert f"| `{name}` |" in card
    assert "llama-server -m gguf/quickstart-bf16.gguf" in card
    description = gguf.GGUFReader(bundle / FILES[0]).fields["general.description"].contents()
    assert "30 * tanh(x / 30)" in description and description.removeprefix("Trained with Shard. ") in card


def test_a_damaged_one_is_named(copied_run: Path) -> None:
    assert not verify(copied_run).problems
    path = copied_run / "release" / FILES[1]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert [problem.path for problem in verify(copied_run / "release").problems] == [str(path)]


def test_export_writes_the_files_of_the_bundle(shard: Shard, finished_run: Path, tmp_path: Path) -> None:
    for dtype in ("bf16", "q8_0", "f32"):
        outcome = shard("export", finished_run, "--to", "gguf", "--out", tmp_path / dtype, "--dtype", dtype)
        assert outcome.code == 0, outcome.err
        name = f"quickstart-{dtype}.gguf"
        assert (tmp_path / dtype / name).read_bytes() == (finished_run / "release" / "gguf" / name).read_bytes()


def test_a_bundle_exports_the_bits_that_it_has(shard: Shard, finished_run: Path, tmp_path: Path) -> None:
    bundle = finished_run / "release"
    assert shard("export", bundle, "--to", "gguf", "--out", tmp_path / "x").code == 0
    assert (tmp_path / "x" / "quickstart-bf16.gguf").read_bytes() == (bundle / FILES[0]).read_bytes()


def test_a_dtype_that_there_is_not(shard: Shard, finished_run: Path, tmp_path: Path) -> None:
    outcome = shard("export", finished_run, "--to", "gguf", "--out", tmp_path / "x", "--dtype", "q4_0")
    assert outcome.code == 2 and "q8_0" in outcome.err
    assert not (tmp_path / "x").exists()


def test_fewer_files_where_the_recipe_says_so(shard: Shard, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert shard("run", *tiny, "--set", 'release.gguf=["q8_0"]', "--out", run).code == 0
    assert [path.name for path in (run / "release" / "gguf").iterdir()] == ["quickstart-q8_0.gguf"]


def test_a_release_without_the_package(shard: Shard, copied_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr("shard.release.gguf.find_spec", lambda name: None)
    outcome = released_again(shard, copied_run)
    assert outcome.code == 0
    (line,) = (line for line in outcome.err.splitlines() if "GGUF" in line)
    assert "pip install 'shard-lm[gguf]'" in line and "shard export RUN --to gguf" in line
    assert not (copied_run / "release" / "gguf").exists()
    card = (copied_run / "release" / "README.md").read_text()
    assert "gguf" not in card
    assert not verify(copied_run / "release").problems


def test_llama_cpp_prints_what_shard_generate_prints(shard: Shard, finished_run: Path) -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(finished_run / "release" / "gguf" / "quickstart-f32.gguf")
    parameters.verbosity, parameters.warmup, parameters.ui, parameters.n_gpu_layers = -1, False, False, 0
    parameters.cpuparams.n_threads = 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(parameters)
    body = json.dumps({"prompt": "a b", "max_tokens": 40, "temperature": 0}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.listening_address}/v1/completions", body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        theirs = json.load(response)["choices"][0]["text"]
    del server
    ours = shard("generate", finished_run, "a b", "--max-tokens", "40", "--json")
    assert json.loads(ours.out)["text"] == "a b" + theirs
    assert len(theirs) > 20
