"""A run with a teacher, from its targets to its card, through the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from teacher_server import KEY, TeacherServer, running
from tiny_run import TINY, call

from shard.console import Reporter
from shard.errors import ShardError
from shard.fork import open_run
from shard.recipe import Recipe
from shard.release.teachers import check_teacher_licences
from shard.training.metrics import read_jsonl

Shard = Callable[..., Any]


@pytest.fixture(scope="module")
def teacher(tokenized_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little Llama with the vocabulary of the tiny run."""
    transformers = pytest.importorskip("transformers")
    import torch

    folder = tmp_path_factory.mktemp("teachers") / "little-llama"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=304, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.5, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copy(tokenized_run / "tokenizer" / "tokenizer.json", folder)
    (folder / "README.md").write_text("---\nlicense: llama3.2\n---\n")
    return folder


def sets(teacher: Path, **changes: object) -> list[str]:
    values = {"teacher": teacher, "licence": "llama3.2", "weight": 0.8, "unit_tokens": 2048} | changes
    return [word for key, value in values.items() for word in ("--set", f"distillation.{key}={value}")]


@pytest.fixture(scope="module")
def taught_run(tokenized_run: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went through every stage with cached targets."""
    folder = tmp_path_factory.mktemp("taught") / "run"
    cached = sets(teacher, targets="cached", samples=200)
    accepted = ("--set", 'release.teacher_licences=["llama3.2"]')
    assert call("run", tokenized_run, "--fork", folder, *cached, *accepted) == 0
    return folder


def curve(run: Path, key: str = "cross_entropy_nats") -> list[float]:
    return [step[key] for step in read_jsonl(run / "pretrain" / "metrics.jsonl")]


def test_the_stages_and_the_metrics_say_what_was_taught(taught_run: Path) -> None:
    manifest = json.loads((taught_run / "manifest.json").read_text())
    assert manifest["stages"]["teach"]["status"] == "done"
    assert manifest["teacher"]["name"] == "little-llama"
    assert manifest["teacher"]["licence_checked"] is True
    assert curve(taught_run, "teacher_weight") == [0.8] * 4
    assert min(curve(taught_run, "teacher_kl_nats")) > 0
    assert all("teacher_weight" not in step for step in read_jsonl(taught_run / "anneal" / "metrics.jsonl"))


def test_the_card_names_the_teacher_and_its_licence(taught_run: Path) -> None:
    card = (taught_run / "release" / "README.md").read_text()
    assert "## Teachers" in card
    assert " |\n\n- Llama's licence wants" in card, "a list begins after an empty line, or some readers make it a row"
    assert (
        "| little-llama | llama3.2 | against its own card | pretrain: 0.8 of the loss, at temperature 1, by 200 draws"
        in card
    )
    assert "the recipe says that this release under apache-2.0 may be" in card


def test_a_second_run_does_nothing_and_verify_finds_everything(shard: Shard, taught_run: Path) -> None:
    outcome = shard("run", taught_run)
    assert outcome.code == 0
    assert "teach: done already" in outcome.err
    assert "pretrain: done already" in outcome.err
    assert shard("verify", taught_run).code == 0
    copied = shard("verify", taught_run / "data")
    assert copied.code == 0
    path = next((taught_run / "data" / "text" / "targets").glob("*.safetensors"))
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert f"{path}: is damaged: its SHA-256 is not the one in targets.json" in shard("verify", taught_run).out
    finally:
        path.write_bytes(content)


def test_the_run_goes_on_where_the_teacher_is_gone(shard: Shard, taught_run: Path, teacher: Path) -> None:
    """Targets are there, and so the teacher itself is not needed anymore."""
    away = teacher.rename(teacher.with_name("away"))
    try:
        assert "pretrain: done already" in shard("run", taught_run).err
    finally:
        away.rename(teacher)


def test_cached_targets_train_as_the_online_teacher(
    shard: Shard, taught_run: Path, tokenized_run: Path, teacher: Path, tmp_path: Path
) -> None:
    assert shard("pretrain", tokenized_run, "--fork", tmp_path / "online", *sets(teacher)).code == 0
    assert shard("pretrain", tokenized_run, "--fork", tmp_path / "alone").code == 0
    for key, apart in (("cross_entropy_nats", 0.03), ("teacher_kl_nats", 0.03)):
        assert curve(tmp_path / "online", key) == pytest.approx(curve(taught_run, key), abs=apart)
    assert curve(tmp_path / "alone")[-1] < curve(tmp_path / "online")[-1] - 0.03, (
        "a teacher that knows nothing misleads"
    )


def test_a_licence_that_binds_stops_the_release(shard: Shard, taught_run: Path, teacher: Path, tmp_path: Path) -> None:
    again, refused = tmp_path / "again", r"release\.license is 'apache-2\.0', but little-llama \(distillation\) taught"
    with open_run(str(taught_run), None, ["release.teacher_licences=[]"], None, again, Reporter(quiet=True)):
        pass
    with pytest.raises(ShardError, match=refused):
        check_teacher_licences(Recipe.load(str(again / "recipe.toml")))
    outcome = shard("release", again)
    assert outcome.code == 1
    assert "Llama's licence wants a model trained on its outputs to keep its terms" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("licence", "release", "accepted", "is_stopped"),
    [
        ("gemma", "apache-2.0", (), True),
        ("Gemma-3-terms", "mit", (), True),
        ("gemma", "gemma", (), False),
        ("gemma", "mit", ("gemma",), False),
        ("llama3.1", "mit", ("gemma",), True),
        ("meta-llama-3", "mit", (), True),
        ("apache-2.0", "mit", (), False),
    ],
)
@pytest.mark.parametrize("kind", ["distillation", "source"])
def test_which_licences_stop_a_release(
    kind: str, licence: str, release: str, accepted: tuple[str, ...], is_stopped: bool
) -> None:
    words = [f"release.license={release}", f"release.teacher_licences={json.dumps(accepted)}"]
    if kind == "distillation":
        words += ["distillation.teacher=x", f"distillation.licence={licence}"]
    else:
        table = {"kind": "teacher", "endpoint": "http://h/v1", "model": "m", "prompts": ["a"], "max_tokens": 9}
        keys = {**table, "licence": licence}
        words += [f"sources.written.{key}={json.dumps(value)}" for key, value in keys.items()]
        words.append("pretrain.mix.written=0.1")
    recipe = Recipe.load("quickstart", words)
    if is_stopped:
        with pytest.raises(ShardError, match=r"release\.license is .* taught this model under"):
            check_teacher_licences(recipe)
    else:
        check_teacher_licences(recipe)


def test_teach_without_a_teacher_is_one_line(shard: Shard, tokenized_run: Path) -> None:
    outcome = shard("teach", tokenized_run)
    assert outcome.code == 2
    assert 'write a table [distillation] with targets = "cached"' in outcome.err


def test_another_licence_or_vocabulary_is_found_before_training(
    shard: Shard, tokenized_run: Path, teacher: Path, tmp_path: Path
) -> None:
    outcome = shard("pretrain", tokenized_run, "--fork", tmp_path / "a", *sets(teacher, licence="mit"))
    assert outcome.code == 2
    assert "the recipe says 'mit' and the teacher's own card says 'llama3.2'" in outcome.err
    other = Path(shutil.copytree(teacher, tmp_path / "other"))
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"the":', '"eht":').replace('"Ġ":', '"Q9":'))
    outcome = shard("pretrain", tokenized_run, "--fork", tmp_path / "b", *sets(other))
    assert outcome.code == 1
    assert "has another vocabulary than this run" in outcome.err


def test_plan_predicts_the_targets(shard: Shard, tiny: list[str], teacher: Path) -> None:
    outcome = shard("plan", *tiny, *sets(teacher, targets="cached", form="top_k", top_k=10), "--json")
    targets = json.loads(outcome.out)["targets"]
    assert targets["tokens"] == 4 * 128
    assert targets["bytes"] == targets["most_bytes"] == 512 * (3 + 10 * 4)
    shown = shard("plan", *tiny, *sets(teacher, targets="cached")).out
    assert "teach       about" in shown


def test_killed_teaching_ends_as_the_undisturbed_one(
    taught_run: Path, tokenized_run: Path, teacher: Path, tmp_path: Path
) -> None:
    """kill -9 while units are written."""
    run = tmp_path / "run"
    cached = sets(teacher, targets="cached", samples=200, unit_tokens=64)
    environment = os.environ | {"SHARD_DEVICE": "cpu"}
    first = [sys.executable, "-m", "shard", "teach", str(tokenized_run), *cached]
    with open_run(str(tokenized_run), None, [w for w in cached if w != "--set"], None, run, Reporter(quiet=True)):
        pass
    targets = run / "data" / "text" / "targets"
    process = subprocess.Popen([*first[:4], str(run)], env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(targets.glob("*.json"))) < 3:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (targets.parent / "targets.json").exists()
    assert call("teach", run) == 0
    from shard.distillation.cache import TargetStream

    streams = [TargetStream(folder / "data" / "text") for folder in (run, taught_run)]
    assert streams[0].ledger["sequences"] == streams[1].ledger["sequences"]
    for i in range(streams[0].ledger["sequences"]):
        for a, b in zip(*(stream.read(i) for stream in streams), strict=True):
            assert (a == b).all()
    assert not list(targets.glob(".*"))


# A teacher of texts.


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    with running() as server:
        yield server


def test_texts_of_a_teacher_are_trained_on_and_accounted_for(
    shard: Shard, server: TeacherServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    written = {
        "kind": "teacher",
        "endpoint": server.url,
        "model": "big",
        "licence": "apache-2.0",
        "api_key_env": "TEACHER_KEY",
        "prompts": [f"thing {i}" for i in range(30)],
        "documents_per_prompt": 2,
        "max_document_tokens": 100,
        "max_tokens": 100_000,
        "near_duplicates": "keep",
    }
    tiny = {key: value for key, value in TINY.items() if key != "data"}
    recipe = tmp_path / "recipe.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in written.items()]
    recipe.write_text(
        'name = "t"\n[sources.written]\n' + "\n".join(lines) + "\n[pretrain]\nmix = {written = 1.0}\n"
        "steps = 1\nsequence_length = 32\ntokens_per_step = 128\n[anneal]\nsteps = 1\n"
    )
    arguments = [word for key, value in tiny.items() for word in ("--set", f"{key}={value}")]
    outcome = shard("run", recipe, "--out", tmp_path / "run", *arguments)
    assert outcome.code == 0, outcome.err
    assert len(server.requests) == 60
    card = (tmp_path / "run" / "release" / "README.md").read_text()
    assert "| big | apache-2.0 | as the recipe says | 60 texts of the source written" in card
    assert shard("verify", tmp_path / "run").code == 0
    assert shard("run", tmp_path / "run").code == 0
    assert len(server.requests) == 60
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    assert KEY not in outcome.err + outcome.out
