"""lm-evaluation-harness on a Shard model, offline, with tasks of local files. Left out where it is not installed."""

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

# Before datasets is imported: nothing here may ask a network.
os.environ["HF_DATASETS_OFFLINE"] = "1"
pytest.importorskip("lm_eval", reason="the extra `eval` is not installed: make test-eval")

import lm_eval
from lm_eval.tasks import TaskManager

from shard.config import Config
from shard.console import Reporter
from shard.errors import ShardError, UsageError
from shard.evaluation import lm_eval_adapter
from shard.evaluation.lm_eval_adapter import ShardHarnessLM, evaluate_tasks
from shard.inference.sampling import generate_ids
from shard.model import ShardLM
from shard.tokenizer import train_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and of what it imports

WORDS = "the river runs down to the sea and the wind blows over the hills where a road goes on"
CHOICES = """\
task: local_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choices.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 3}}
"""
GENERATION = """\
task: local_generation
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choices.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["e"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match}}]
metadata: {{version: 1}}
"""
ROLLING = """\
task: local_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choices.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{long}}}}"
metric_list: [{{metric: bits_per_byte}}]
metadata: {{version: 1}}
"""


@pytest.fixture(scope="module")
def loaded() -> SimpleNamespace:
    torch.manual_seed(5)
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "head_dim": 16, "intermediate_size": 32}
    model = ShardLM(Config(vocab_size=300, max_sequence_length=64, sliding_window=8, **shape))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    return SimpleNamespace(
        model=model.eval(), tokenizer=train_tokenizer([WORDS] * 9, 300), separator_id=0, origin="random"
    )


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks and their data."""
    folder = tmp_path_factory.mktemp("tasks")
    words = WORDS.split()
    rows = [
        {
            "question": " ".join(words[: 1 + i]),
            "choices": [words[(i + j) % len(words)] + " now" * j for j in range(1 + 3)],
            "answer": i % 4,
            "long": f"{WORDS} {i} " * 3,
        }
        for i in range(12)
    ]
    (folder / "choices.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for text in (CHOICES, GENERATION, ROLLING):
        (folder / f"{text.split()[1]}.yaml").write_text(text.format(folder=folder))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left in the home of who runs the tests."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    # The harness's own tasks take it ten seconds to list.
    monkeypatch.setattr(lm_eval_adapter, "TaskManager", partial(TaskManager, include_defaults=False))


def samples(model: object, tasks: Path, name: str) -> list:
    found = lm_eval.simple_evaluate(
        model=model, tasks=[name], task_manager=TaskManager(include_path=str(tasks), include_defaults=False)
    )
    return sorted(found["samples"][name], key=lambda sample: sample["doc_id"])


@torch.no_grad()
def plain(loaded: SimpleNamespace, context: str, continuation: str) -> float:
    encode = loaded.tokenizer.encode
    ids, first = encode(context + continuation).ids, len(encode(context).ids)
    if not context:
        ids, first = [0, *ids], 1
    logits = torch.log_softmax(loaded.model(torch.tensor([ids[:-1]]))[0][0].double(), dim=-1)
    return sum(logits[i - 1, ids[i]].item() for i in range(first, len(ids)))


def test_log_likelihoods_of_every_item(loaded, tasks):
    got = samples(ShardHarnessLM(loaded), tasks, "local_choices")
    assert len(got) == 12
    for sample in got:
        expected = [plain(loaded, sample["doc"]["question"], f" {choice}") for choice in sample["doc"]["choices"]]
        assert [float(response[0][0]) for response in sample["resps"]] == pytest.approx(expected, rel=1e-5)
        assert sample["acc"] == float(expected.index(max(expected)) == sample["doc"]["answer"])


def test_a_long_text_in_windows(loaded, tasks):
    got = samples(ShardHarnessLM(loaded), tasks, "local_rolling")
    model, length = ShardHarnessLM(loaded), 64
    for sample in got[:3]:
        ids = model.tok_encode(sample["doc"]["long"])
        assert len(ids) > length
        expected, done = 0.0, 0
        with torch.no_grad():
            while done < len(ids):  # windows of 64 predictions, the last one full too
                stop = min(done + length, len(ids))
                start = max(0, stop - length)
                window = [0, *ids] if start == 0 else ids
                inputs = window[:length] if start == 0 else ids[start - 1 : stop - 1]
                logits = torch.log_softmax(loaded.model(torch.tensor([inputs]))[0][0].double(), dim=-1)
                expected += sum(logits[i - start, ids[i]].item() for i in range(done, stop))
                done = stop
        assert float(sample["resps"][0][0]) == pytest.approx(expected, rel=1e-5)


def test_generation_stops_where_it_is_told(loaded, tasks):
    got = samples(ShardHarnessLM(loaded), tasks, "local_generation")
    for sample in got:
        ids = loaded.tokenizer.encode(sample["doc"]["question"]).ids
        new = list(generate_ids(loaded.model, ids[-52:], 12, stop_id=0, use_cache=False))
        assert sample["resps"][0][0] == loaded.tokenizer.decode(new).split("e")[0]


def test_generation_by_other_arguments(loaded):
    model = ShardHarnessLM(loaded)

    def generate(context: str, **how: object) -> str:
        (text,) = model.generate_until([SimpleNamespace(args=(context, how))])
        return text

    free = generate("the river", max_gen_toks=20)
    assert generate("the river", max_gen_toks=20, until=[]) == free
    assert generate("the river", max_gen_toks=20, until=free[3]) == free[: free.index(free[3])]
    assert generate("the river", max_gen_toks=20, until=[free[5], free[3]]) == free[: min(map(free.index, free[3:6:2]))]
    assert generate("", max_gen_toks=5)
    assert generate(WORDS * 9, max_gen_toks=1000) == generate(WORDS * 9), "the context is what there is"
    assert generate("the river", max_gen_toks=20, do_sample=True, temperature=2.0) != free


def test_it_is_registered(loaded, monkeypatch):
    monkeypatch.setattr(lm_eval_adapter, "load_model", lambda path, dtype, device: loaded)
    model = lm_eval.api.registry.get_model("shard").create_from_arg_string("pretrained=runs/mine", {"batch_size": 4})
    assert isinstance(model, ShardHarnessLM) and model.loaded is loaded
    assert model.loglikelihood_rolling([SimpleNamespace(args=("",))]) == [0.0]


def test_a_run_keeps_the_results(loaded, tasks, tmp_path, monkeypatch, capsys):
    there = SimpleNamespace(**vars(loaded) | {"origin": str(tmp_path / "pretrain/checkpoints/step-00000002")})
    monkeypatch.setattr(lm_eval_adapter, "load_model", lambda *_: there)
    (tmp_path / "recipe.toml").touch()
    first = evaluate_tasks(tmp_path, [str(tasks / "local_choices.yaml")], 8, Reporter())
    assert first["lm_eval"] == lm_eval.__version__
    task = first["tasks"]["local_choices"]
    assert (task["version"], task["items"], task["num_fewshot"], task["limit"]) == (3, 8, 0, 8)
    assert (task["checkpoint"], task["precision"]) == ("pretrain/checkpoints/step-00000002", "fp32")
    acc, acc_norm = task["results"]
    assert (acc["metric"], acc_norm["metric"]) == ("acc", "acc_norm")
    assert acc["standard_error"] == pytest.approx(math.sqrt(acc["value"] * (1 - acc["value"]) / 7))
    assert "local_choices: acc_norm" in capsys.readouterr().err
    evaluate_tasks(tmp_path, [str(tasks / "local_rolling.yaml")], None, Reporter())
    kept = json.loads((tmp_path / "lm_eval.json").read_text())["tasks"]
    assert set(kept) == {"local_choices", "local_rolling"} and kept["local_choices"] == task
    (tmp_path / "SHA256SUMS").touch()
    (tmp_path / "lm_eval.json").unlink()
    evaluate_tasks(tmp_path, [str(tasks / "local_choices.yaml")], 2, Reporter())
    assert not (tmp_path / "lm_eval.json").exists(), "a bundle stays as it was"


def test_what_cannot_be_run_is_one_line(loaded, tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(lm_eval_adapter, "load_model", lambda *_: loaded)
    with pytest.raises(UsageError, match="has no task 'hellaswagg'"):
        evaluate_tasks(tmp_path, ["hellaswagg"], None, Reporter())
    broken = tmp_path / "broken.yaml"
    broken.write_text(CHOICES.format(folder=tmp_path / "nowhere"))
    with pytest.raises(ShardError, match=r"^--tasks .*broken.yaml: lm-evaluation-harness cannot load it: "):
        evaluate_tasks(tmp_path, [str(broken)], None, Reporter())


def test_a_data_set_that_cannot_be_downloaded_is_one_line(loaded, tmp_path):
    """In a process of its own, since the hub's client learns when it is imported that there is no network."""
    program = (
        "from shard.console import Reporter; from shard.evaluation import lm_eval_adapter as a\n"
        "from shard.errors import ShardError\n"
        "a.load_model = lambda *_: None\n"
        "try: a.evaluate_tasks(None, ['arc_easy'], None, Reporter())\n"
        "except ShardError as error: print(error)"
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | offline, capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("--tasks arc_easy: lm-evaluation-harness cannot load it: ")


def test_the_backend_of_transformers_finds_the_same(loaded, tasks, tmp_path):
    """On the Hugging Face export of the model: log-likelihoods of every item, and generated texts."""
    pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    pytest.importorskip("accelerate", reason="which the backend needs")
    hugging_face = pytest.importorskip("shard.release.hugging_face")
    from lm_eval.models.huggingface import HFLM

    loaded.tokenizer.save(str(tmp_path / "tokenizer.json"))
    hugging_face.export_hugging_face(
        dict(loaded.model.state_dict()), loaded.model.config, tmp_path / "tokenizer.json", tmp_path / "hf", "fp32"
    )
    theirs = HFLM(pretrained=str(tmp_path / "hf"), dtype="float32", device="cpu", batch_size=4)
    ours = ShardHarnessLM(loaded)
    assert (ours.max_length, ours.eot_token_id) == (theirs.max_length, theirs.eot_token_id)
    for name in ("local_choices", "local_rolling", "local_generation"):
        pairs = zip(samples(ours, tasks, name), samples(theirs, tasks, name), strict=True)
        for mine, other in pairs:
            if name == "local_generation":
                assert mine["resps"] == other["resps"]
                continue
            values = [
                [float(response[0][0] if name == "local_choices" else response[0]) for response in sample["resps"]]
                for sample in (mine, other)
            ]
            assert values[0] == pytest.approx(values[1], abs=1e-3)
