"""`shard evaluate`: the tasks in evaluation.json, questions that come to hand later, the harness."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shard.evaluation.settings import EvaluateSettings
from shard.release.settings import ReleaseSettings
from shard.stages import CARD_SAMPLING

Shard = Callable[..., Any]


def tasks_of(run: Path) -> Any:
    return json.loads((run / "evaluation.json").read_text())["tasks"]


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """ARC-Easy with four short questions, in the hub's layout."""
    path = tmp_path / "mirror/datasets/allenai/ai2_arc/ARC-Easy/validation-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    choices = {"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]}
    rows = [{"id": str(i), "question": f"{i}?", "choices": choices, "answerKey": "ABCD"[i]} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return tmp_path / "mirror"


def test_a_run_measures_what_fits_it(finished_run: Path) -> None:
    """A vocabulary of 300 and a context of 128: arithmetic fits; all others say why they do not."""
    tasks = tasks_of(finished_run)
    assert list(tasks) == list(EvaluateSettings().tasks)
    assert {name for name, task in tasks.items() if "results" in task} == {"arithmetic"}
    assert tasks["arithmetic"]["results"][0]["items"] == 11
    assert tasks["arc_easy_cloze"]["not_measured"] == "files not at hand"
    assert all(task["version"] >= 1 and len(task.get("not_measured", "yes")) > 2 for task in tasks.values())


def test_questions_that_come_to_hand_later(shard: Shard, finished_run: Path, mirror: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    before = tasks_of(run)
    assert "evaluate: done already" in shard("evaluate", run).err
    outcome = shard("evaluate", run, "--mirror", mirror, "--json")
    assert outcome.code == 0 and "arc_easy_letters: acc" in outcome.err
    after = json.loads(outcome.out)["tasks"]
    assert after == tasks_of(run)
    measured = {name for name in after if "results" in after[name]}
    assert measured == {"arc_easy_cloze", "arc_easy_letters", "arithmetic"}
    assert after["arc_easy_cloze"]["results"][0]["items"] == 4
    assert {name: after[name] for name in before if not name.startswith("arc_easy")} == {
        name: task for name, task in before.items() if not name.startswith("arc_easy")
    }
    assert "evaluate: done already" in shard("evaluate", run).err, "what is still lacking is not looked for for ever"
    # The card quotes the evaluation.
    assert "release: done already" not in shard("release", run).err
    assert "release: done already" in shard("release", run).err
    assert shard("verify", run).code == 0


def test_an_unfinished_run_is_evaluated(shard: Shard, tiny: list[str], tmp_path: Path) -> None:
    assert shard("pretrain", *tiny, "--until", "2", "--out", tmp_path / "run").code == 0
    assert shard("evaluate", tmp_path / "run").code == 0
    evaluation = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert evaluation["checkpoint"].endswith("step-00000002")
    assert "results" in evaluation["tasks"]["arithmetic"]


def test_the_harness_is_an_extra(shard: Shard, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "shard.evaluation.lm_eval_adapter", raising=False)
    outcome = shard("evaluate", finished_run, "--tasks", "arc_easy")
    assert (outcome.code, outcome.out) == (1, "")
    assert "pip install 'shard-lm[eval]'" in outcome.err and "Traceback" not in outcome.err


def test_how_the_samples_of_the_card_are_drawn() -> None:
    assert ReleaseSettings().prompts == (
        "The capital of France is",
        "To compute 12 plus 7, we can",
        "Question: What is 23 + 19? Answer:",
        "def fibonacci(n):",
        "Once upon a time, in a small village,",
        "Solve: 17 * 23 = ?",
    )
    assert CARD_SAMPLING == {"max_tokens": 60, "temperature": 0.7, "top_p": 0.9, "seed": 0}
