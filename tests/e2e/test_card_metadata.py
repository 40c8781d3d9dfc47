"""The metadata of a card, as huggingface_hub reads it. `ModelCard.validate` asks the hub; what it does without a
network is done here: parse, read into its classes, write again, and the same result; types and known keys.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from shard.recipe import Recipe
from shard.release.card.facts import Facts
from shard.release.card.metadata import license_fields, repositories
from shard.release.card.write import render_card
from shard.run import Run

Shard = Callable[..., Any]

KNOWN = {
    *("license", "license_name", "language", "library_name", "pipeline_tag", "tags", "datasets", "model-index"),
}
ARC = {"metric": "acc_norm", "value": 0.27018, "standard_error": 0.0185, "chance": 0.2501, "items": 570}


def load(folder: Path) -> Run:
    return Run(folder, Recipe.load(str(folder / "recipe.toml")))


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_the_card_of_a_run_is_valid(finished_run: Path) -> None:
    card = ModelCard.load(finished_run / "release" / "README.md")
    data = card.data
    assert isinstance(data, ModelCardData)
    assert (data.license, data.language, data.library_name) == ("apache-2.0", ["en"], "transformers")
    assert data.pipeline_tag == "text-generation" and {"shard", "muon"} <= set(data.tags or [])
    assert data.datasets is None, "local text is no dataset of the hub"
    written = data.to_dict()
    assert written.keys() <= KNOWN
    again = ModelCard(f"---\n{data.to_yaml()}\n---\n{card.text}")
    assert again.data.to_dict() == written


def test_its_model_index_is_the_evaluation(run: Path) -> None:
    path = run / "evaluation.json"
    evaluation = json.loads(path.read_text())
    tasks = {
        "arc_easy_cloze": {"version": 1, "sha256": "0", "results": [ARC]},
        "code": {"version": 1, "not_measured": "x"},
    }
    path.write_text(json.dumps({**evaluation, "tasks": tasks}))
    card = ModelCard(render_card(load(run), run / "release"))
    results = card.data.eval_results
    found = {(r.dataset_type, r.dataset_config, r.dataset_split, r.metric_type): r.metric_value for r in results}
    assert found == {
        ("text", None, "held-out", "bits_per_byte"): evaluation["sources"]["text"]["bits_per_byte"],
        ("allenai/ai2_arc", "ARC-Easy", "validation", "acc_norm"): 0.27018,
    }
    index = eval_results_to_model_index(card.data.model_name, results)
    assert index == card.data.to_dict()["model-index"]
    assert model_index_to_eval_results(index) == (card.data.model_name, results)


@pytest.mark.parametrize(
    ("license", "fields"),
    [
        ("apache-2.0", ("apache-2.0", None)),
        ("MIT", ("mit", None)),
        ("My Own Licence, v2", ("other", "my-own-licence-v2")),
        ("???", ("other", "unnamed")),
    ],
)
def test_licences(license: str, fields: tuple[str, str | None]) -> None:
    assert license_fields(license) == fields


def test_hostile_texts_stay_texts(run: Path) -> None:
    """A title, a licence and languages of a recipe become values of the YAML, not keys."""
    sets = [
        'release.title="a: b\\n---\\nlicense: mit # \'"',
        'release.license="x: [y]"',
        'release.language=["no", "en"]',
    ]
    recipe = Recipe.load(str(run / "recipe.toml"), sets)
    data = ModelCard(render_card(Run(run, recipe), run / "release")).data
    assert (data.license, data.license_name, data.language) == ("other", "x-y", ["no", "en"])
    assert data.model_name == "a: b\n---\nlicense: mit # '"


def test_what_is_not_there_is_not_claimed(run: Path) -> None:
    """Without hf/ no transformers, without an evaluation no results."""
    shutil.rmtree(run / "release" / "hf")
    (run / "evaluation.json").unlink()
    text = render_card(load(run), run / "release")
    data = ModelCard(text).data
    assert data.library_name == "shard" and data.eval_results is None and "model-index" not in data.to_dict()
    assert "> **This run is not finished:** evaluate was not run." in text


def test_repositories_of_the_reference(tmp_path: Path) -> None:
    recipe = Recipe.load("shard-40m-v1")
    facts = Facts.read(Run(tmp_path, recipe), tmp_path)
    assert repositories(facts)[0] == "HuggingFaceFW/fineweb-edu" and "allenai/ai2_arc" in repositories(facts)
    assert len(set(repositories(facts))) == len(repositories(facts)) == 7


def test_an_unfinished_run_says_so_at_its_top(shard: Shard, tokenized_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tokenized_run, tmp_path / "run"))
    assert shard("pretrain", run, "--until", 2).code == 0
    outcome = shard("release", run)
    assert outcome.code == 0, outcome.err
    card = (run / "release" / "README.md").read_text()
    top = card.split("\n---\n", 1)[1].split("## ")[0]
    assert (
        "This run is not finished:** pretrain was stopped at step 2 of 4; anneal was not run (3 steps planned)." in top
    )
    assert ModelCard(card).data.eval_results


def test_a_finished_run_says_nothing_of_it(finished_run: Path) -> None:
    assert "not finished" not in (finished_run / "release" / "README.md").read_text()


def test_pictures_are_shown_where_they_are(run: Path) -> None:
    folder = run / "release" / "pictures"
    shutil.rmtree(folder, ignore_errors=True)
    assert "](pictures/" not in render_card(load(run), run / "release")
    folder.mkdir()
    names = ("loss", "learning_rate", "bits_per_byte", "sentinel")
    for name in names:
        (folder / f"{name}.svg").write_text("<svg/>")
    card = render_card(load(run), run / "release")
    assert all(card.count(f"](pictures/{name}.svg)") == 1 for name in names) and "`pictures/`" in card
