"""The suite as a whole: its names, what it says of a model that is too small, and the pins in the documents."""

import dataclasses
import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

from shard.console import Reporter
from shard.evaluation.mini_suite import TASKS, can_measure_more, run_suite
from shard.evaluation.settings import EvaluateSettings, TaskName
from shard.evaluation.tasks import arc, arithmetic, code_prompts, passkey
from shard.evaluation.tasks.form import Subject, hash_items
from shard.model import ShardLM
from shard.tokenizer import train_tokenizer

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")


@pytest.fixture
def subject(tiny_config):
    """A context of 96 tokens, and every byte is one."""
    model = ShardLM(dataclasses.replace(tiny_config, vocab_size=257)).eval()
    tokenizer = train_tokenizer(["a"], 257)
    return Subject(SimpleNamespace(model=model, tokenizer=tokenizer, separator_id=0, origin="tiny"), 96)


def test_a_recipe_knows_the_names():
    assert list(get_args(TaskName)) == list(TASKS) == list(EvaluateSettings().tasks)
    assert all(name == task.name for name, task in TASKS.items())


def test_a_model_that_nothing_fits(subject, capsys):
    """Nothing fails; all but arithmetic say why they were not measured."""
    results = run_suite(subject, list(TASKS), None, Reporter())
    reasons = {name: result["not_measured"] for name, result in results.items() if name != "arithmetic"}
    assert {reasons.pop(name) for name in list(reasons) if name.startswith("arc")} == {"files not at hand"}
    assert "the context is 96" in reasons["passkey"] and "the context is 96" in reasons["code"]
    assert "fewer than 8" in reasons["position"]
    err = capsys.readouterr().err
    assert "passkey: not measured: its shortest text has 512 tokens" in err


def test_every_result_has_the_form(subject, capsys):
    (result,) = run_suite(subject, ["arithmetic"], 11, Reporter()).values()
    assert set(result) == {"version", "sha256", "results"} and len(result["results"]) == 12
    assert all(set(s) == {"metric", "value", "standard_error", "chance", "items"} for s in result["results"])
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("arithmetic: exact match  ") for line in lines)
    assert any(line.startswith("  exact match, multiplication of 3 digits  ") for line in lines), "in 80 columns"


def test_what_can_be_measured_once_files_are_there(tmp_path):
    path = tmp_path / arc.REPOSITORY / "ARC-Easy" / "validation-0.parquet"
    lacking = {"version": 1, "not_measured": arc.NOT_AT_HAND}
    evaluation = {"tasks": {"arc_easy_cloze": lacking, "arc_challenge_cloze": lacking}}
    assert not can_measure_more(evaluation, [tmp_path])
    path.parent.mkdir(parents=True)
    path.touch()
    assert can_measure_more(evaluation, [tmp_path])
    assert not can_measure_more(
        {"tasks": {"arc_challenge_cloze": lacking, "arc_easy_cloze": {"version": 1}}}, [tmp_path]
    )
    assert not can_measure_more({"tasks": {}}, [tmp_path])


def test_the_document_names_every_task_with_its_version():
    table = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", DOCUMENT, flags=re.MULTILINE))
    assert table == {name: str(task.version) for name, task in TASKS.items()}


@pytest.mark.parametrize(
    ("name", "items"),
    [
        ("arithmetic", [asdict(item) for item in arithmetic.make_items()]),
        ("code", code_prompts.PROMPTS),
        (
            "passkey",
            {
                "items": [asdict(item) for item in passkey.make_items()],
                "filler": passkey.FILLER,
                "question": passkey.QUESTION,
            },
        ),
    ],
)
def test_the_items_are_those_of_the_document(name, items):
    """A change of the items is a change of the version: both stand in the document."""
    (pinned,) = re.findall(rf"^\| `{name}` \|.*`([0-9a-f]{{64}})`", DOCUMENT, flags=re.MULTILINE)
    assert hash_items(items) == pinned
