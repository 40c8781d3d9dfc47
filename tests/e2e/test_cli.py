"""The command line: verbs and options are frozen, and a mistake is one line with an exit code, never a traceback."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from shard import __version__
from shard.cli import app
from shard.inference.kernels import choose_kernels
from shard.model import ShardLM
from shard.run import STAGES, Run

Shard = Callable[..., Any]

STAGE = ["--data", "--json", "--out", "--set", "recipe"]
READING = ["--mirror", "--ray", "--workers"]
VERBS = {
    "run": [*STAGE, *READING, "--fork", "--max-time", "--track"],
    "tokenizer": [*STAGE, *READING],
    "data": [*STAGE, *READING, "--stats"],
    "teach": STAGE,
    "pretrain": [*STAGE, "--fork", "--max-time", "--track", "--until"],
    "anneal": [*STAGE, "--fork", "--from-step", "--max-time", "--track"],
    "evaluate": [*STAGE, "--limit", "--mirror", "--tasks"],
    "bench": STAGE,
    "release": sorted([*STAGE, "--dry-run", "--private", "--push"]),
    "generate": [
        *("--dtype", "--greedy", "--interactive", "-i", "--json", "--max-tokens", "--no-cache", "--seed"),
        *("--compile", "--prompts", "--stop", "--temperature", "--top-p", "model", "prompt"),
    ],
    "import": ["--data", "--json", "--out", "--recipe", "--set", "bundle"],
    "export": ["--dtype", "--json", "--out", "--to", "model"],
    "plan": ["--data", "--hub", "--json", "--mirror", "--no-probe", "--probe", "--set", "recipe"],
    "status": ["--json", "folder"],
    "report": ["--json", "--out", "runs"],
    "verify": ["--json", "path"],
    "doctor": ["--json"],
    "recipes": [],
}
"""What scripts of users rely on. A verb or an option may be added here; one that is taken away breaks somebody."""


def one_line(outcome: Any, code: int) -> str:
    """The message of a mistake: one line on stderr beside what progress was printed, and nothing on stdout."""
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert outcome.err.endswith("\n")
    last = outcome.err.splitlines()[-1]
    assert last.startswith("shard: ")
    assert outcome.err.count("shard: ") == 1
    return last


def test_the_verbs_and_their_options_are_frozen() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = {}
    for name, command in commands.items():
        names = [n for p in command.params for n in ([*p.opts, *p.secondary_opts] if p.opts[0][0] == "-" else [p.name])]
        found[name] = sorted(names)
    assert found == {name: sorted(options) for name, options in VERBS.items()}


def test_help_lists_every_verb(shard: Shard) -> None:
    outcome = shard("--help")
    assert outcome.code == 0
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", outcome.out)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(shard: Shard, verb: str) -> None:
    outcome = shard(verb, "-h")
    assert outcome.code == 0
    assert "Usage" in outcome.out


def test_help_imports_nothing_heavy() -> None:
    """`shard --help` answers in under half a second: importing torch takes longer, and the tables
    of a recipe (pydantic) as long as all the rest. A clock would judge the machine, so the imports are looked at. For
    the help of a verb typer itself needs pydantic.
    """
    code = """
import sys
from shard.cli import main
def imported_by(*commands):
    for arguments in commands:
        try:
            main(arguments)
        except SystemExit:
            pass
    heavy = {"torch", "numpy", "tokenizers", "tokie", "pyarrow", "safetensors", "transformers", "huggingface_hub"}
    return (heavy | {"pydantic", "shard.recipe"}) & sys.modules.keys()
assert not (heavy := imported_by(["--version"], ["--help"], [])), heavy
assert (heavy := imported_by(["run", "--help"], ["generate", "--help"])) <= {"pydantic"}, heavy
assert (heavy := imported_by(["recipes"])) == {"pydantic", "shard.recipe"}, heavy
assert "torch" not in imported_by(["status", "/nowhere"], ["run", "typo"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_and_gives_its_exit_code() -> None:
    done = subprocess.run([sys.executable, "-m", "shard", "run", "typo"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_version(shard: Shard) -> None:
    assert shard("--version").out == f"{__version__}\n"


def test_recipes_are_listed(shard: Shard) -> None:
    lines = shard("recipes").out.splitlines()
    assert [line.split()[0] for line in lines] == ["quickstart", "shard-40m-v1", "shard-412m-moe"]


# Mistakes in the arguments and the recipe: 2, before any work.


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["run", "quikstart"], "did you mean quickstart?"),
        (["plan", "quikstart"], "did you mean quickstart?"),
        (["run", "quickstart", "--set", "pretrain.stps=5"], "did you mean steps?"),
        (["run", "quickstart", "--set", "pretrain.steps=-5"], "pretrain.steps"),
        (["run", "quickstart", "--set", "pretrain.steps=1e99"], "pretrain.steps"),
        (["run", "quickstart", "--set", "model.vocab_size=99999999999999999999"], "model.vocab_size"),
        (["run", "quickstart", "--set", "pretrain.precision=fp7"], "pretrain.precision"),
        (["run", "quickstart", "--set", "pretrain"], "table.key=value"),
        (["run", "quickstart", "--data", "no-such-folder"], "no-such-folder"),
        (["import", "no-such-bundle"], "no-such-bundle"),
    ],
)
def test_a_wrong_argument_or_recipe_is_found_before_any_work(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], fragment: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = shard(*arguments)
    assert fragment in one_line(outcome, 2)
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "nothing was made"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["generate"],
        ["import"],
        ["fly"],
        ["run", "quickstart", "--fast"],
        ["run", "quickstart", "--out"],
        ["run", "quickstart", "extra"],
        ["pretrain", "quickstart", "--until", "soon"],
        ["anneal", "quickstart", "--from-step", "1.5"],
        ["generate", "x", "--max-tokens", "0"],
        ["generate", "x", "--top-p", "2"],
        ["generate", "x", "--temperature", "-1"],
        ["generate", "x", "--seed", "-1"],
        ["generate", "x", "--seed", "99999999999999999999"],
    ],
)
def test_a_usage_error_of_the_parser_is_2(shard: Shard, arguments: list[str]) -> None:
    outcome = shard(*arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert "Error" in outcome.err


def test_greedy_with_a_temperature_is_refused(shard: Shard, finished_run: Path) -> None:
    assert "exclude" in one_line(shard("generate", finished_run, "x", "--greedy", "--temperature", "1"), 2)


def test_options_of_generate_that_exclude_each_other(shard: Shard, finished_run: Path, text_folder: Path) -> None:
    file = text_folder / "00.txt"
    for options in (["x", "--prompts", file], ["-i", "--prompts", file], ["x", "--compile", "--no-cache"]):
        assert "exclude each other" in one_line(shard("generate", finished_run, *options), 2)
    assert "--stop is empty" in one_line(shard("generate", finished_run, "x", "--stop", ""), 2)
    assert "No such file" in one_line(shard("generate", finished_run, "--prompts", "nowhere.txt"), 2)


def test_an_unknown_dtype_is_refused_with_the_choices(shard: Shard, finished_run: Path) -> None:
    assert "bf16, fp16, fp32, int8" in one_line(shard("generate", finished_run, "x", "--dtype", "fp7"), 2)


@pytest.mark.parametrize("options", [[], ["--no-cache"], ["--json"]])
def test_a_prompt_longer_than_the_context_is_refused(shard: Shard, finished_run: Path, options: list[str]) -> None:
    message = one_line(shard("generate", finished_run, "12 " * 200, *options), 2)
    assert "context is 128" in message


def test_until_beyond_the_steps_is_refused_before_any_work(shard: Shard, tiny: list[str], tmp_path: Path) -> None:
    for until in ("5", "0", "-1"):
        outcome = shard("pretrain", *tiny, "--out", tmp_path / "run", "--until", until)
        assert "steps 1 to 4" in one_line(outcome, 2)
        assert outcome.err.count("\n") == 1
    assert not (tmp_path / "run" / "data").exists()


def test_set_with_a_run_folder_is_refused(shard: Shard, finished_run: Path, text_folder: Path) -> None:
    for option, value in (("--set", "seed=1"), ("--data", text_folder), ("--out", "elsewhere")):
        assert "is a run folder and has its recipe" in one_line(shard("run", finished_run, option, value), 2)


# What is wrong outside the arguments: 1.


def test_a_run_folder_of_another_recipe_is_refused_with_the_key(
    shard: Shard, tiny: list[str], finished_run: Path
) -> None:
    outcome = shard("run", *tiny, "--set", "pretrain.lr_muon=0.5", "--out", finished_run)
    assert "pretrain.lr_muon is 0.02 there and 0.5 here" in one_line(outcome, 1)


def test_a_run_in_use_is_refused_by_what_writes_and_not_by_what_reads(
    shard: Shard, finished_run: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    with Run.open(folder):
        for verb in ("run", *STAGES):
            assert f"{folder} is in use by process {os.getpid()} on" in one_line(shard(verb, folder), 1)
        assert "is in use" in one_line(shard("run", folder, "--fork", tmp_path / "new"), 1)
        for verb, *options in (("status",), ("plan", "--no-probe"), ("generate", "--max-tokens", "1")):
            assert shard(verb, folder, *options).code == 0
    for _ in range(2):
        assert shard("run", folder).code == 0, "each command lets go of it"


def test_a_second_command_is_told_of_the_first(shard: Shard, tokenized_run: Path, tmp_path: Path) -> None:
    """Two real processes; the first is killed in the middle, and the folder is free at once."""
    folder = Path(shutil.copytree(tokenized_run, tmp_path / "run"))
    steps = [word for key in ("pretrain.steps", "anneal.steps") for word in ("--set", f"{key}=100000")]
    command = [sys.executable, "-m", "shard", "pretrain", str(folder), *steps, "--fork", str(tmp_path / "long")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        journal = tmp_path / "long" / "pretrain" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        try:
            while not journal.exists() and first.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            message = one_line(shard("pretrain", tmp_path / "long"), 1)
        finally:
            first.kill()
    assert f"is in use by process {first.pid} on" in message
    assert shard("data", tmp_path / "long").code == 0


def test_an_import_that_was_killed_does_not_refuse_the_second_try(
    shard: Shard, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shard.release import importer

    def keep(*_: object, **__: object) -> None:
        """A killed process cleans nothing up."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(importer, "save_checkpoint", die)
        patch.setattr("shard.run.shutil.rmtree", keep)
        assert shard("import", finished_run / "release", "--out", tmp_path / "run").code == 130
    assert [path.name for path in tmp_path.iterdir()] == [".run.tmp"]
    assert shard("import", finished_run / "release", "--out", tmp_path / "run").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert shard("anneal", tmp_path / "run").code == 0


def test_a_foreign_folder_and_a_file_are_refused_as_out(shard: Shard, tiny: list[str], text_folder: Path) -> None:
    assert "choose another --out" in one_line(shard("run", *tiny, "--out", text_folder), 1)
    assert "choose another --out" in one_line(shard("run", *tiny, "--out", text_folder / "00.txt"), 1)


def test_what_the_disk_refuses_is_one_line(shard: Shard, tiny: list[str], text_folder: Path) -> None:
    assert "00.txt" in one_line(shard("run", *tiny, "--out", text_folder / "00.txt" / "below"), 1)


@pytest.mark.parametrize(
    ("files", "fragments"),
    [
        ({}, ["holds no text files"]),
        ({"a.txt": b""}, ["sources.text", "no text was found"]),
        ({"a.bin": b"x"}, ["holds no text files"]),
        ({"a.txt": b"caf\xe9 " * 100, "b.txt": b"text"}, ["a.txt", "not UTF-8", "offset 3"]),
        ({"a.jsonl": b'{"text": "x"}\n{"text": '}, ["a.jsonl", "line 2", "not JSON"]),
        ({"a.parquet": b"PAR1 no"}, ["a.parquet", "broken parquet"]),
        ({"a.txt": b"one", "b.txt": b"two", "c.txt": b"three"}, ["smaller than one batch", "add text"]),
    ],
    ids=["empty folder", "empty file", "no text", "not UTF-8", "not JSON", "not parquet", "less than a batch"],
)
def test_data_that_cannot_be_trained_on_is_named(
    shard: Shard, tiny: list[str], tmp_path: Path, files: dict[str, bytes], fragments: list[str]
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    message = one_line(shard("pretrain", *tiny, "--data", folder, "--out", tmp_path / "run"), 1)
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("verb", ["run", "tokenizer", "data"])
def test_a_dataset_that_cannot_be_had_is_one_line(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = one_line(shard(verb, "shard-40m-v1", "--out", tmp_path / "run"), 1)
    assert "is on the hub, and HF_HUB_OFFLINE forbids to ask it: unset it, or use a mirror" in message
    assert "HF_HUB_OFFLINE" in one_line(shard(verb, tmp_path / "run"), 1), "the folder is a run, and goes on"


def test_a_mirror_without_the_dataset_is_one_line(shard: Shard, tmp_path: Path) -> None:
    (tmp_path / "mirror" / "datasets" / "a" / "b").mkdir(parents=True)
    arguments = ["data", "shard-40m-v1", "--mirror", tmp_path / "mirror", "--out", tmp_path / "run"]
    message = one_line(shard(*arguments), 1)
    assert f"{tmp_path / 'mirror'} has no datasets/HuggingFaceFW/fineweb-edu, only a/b: put its files there" in message
    assert "--mirror" in one_line(shard("data", tmp_path / "run", "--mirror", tmp_path), 2)
    assert message == one_line(shard("data", tmp_path / "run"), 1), "it is remembered"


@pytest.mark.parametrize("verb", ["run", "tokenizer", "data"])
def test_ray_that_is_not_installed_is_one_line(
    shard: Shard, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = one_line(shard(verb, *tiny, "--ray", "local", "--out", tmp_path / "run"), 1)
    assert message == "shard: --ray needs Ray: pip install 'shard-lm[ray]'"


@pytest.mark.parametrize("count", ["0", "-1", "x", "1.5"])
def test_a_number_of_workers_that_is_none_is_refused(shard: Shard, tiny: list[str], tmp_path: Path, count: str) -> None:
    outcome = shard("data", *tiny, "--workers", count, "--out", tmp_path / "run")
    assert outcome.code == 2 and "--workers" in outcome.err and not (tmp_path / "run").exists()


def test_generate_needs_a_model(shard: Shard, tokenized_run: Path, tmp_path: Path) -> None:
    assert "no checkpoint yet" in one_line(shard("generate", tokenized_run, "x"), 1)
    assert "no checkpoint yet" in one_line(shard("generate", tmp_path, "x"), 1)
    assert "does not exist" in one_line(shard("generate", tmp_path / "typo", "x"), 1)


@pytest.mark.parametrize("verb", ["evaluate", "bench", "release"])
def test_what_follows_training_needs_a_checkpoint(shard: Shard, tokenized_run: Path, tmp_path: Path, verb: str) -> None:
    run = Path(shutil.copytree(tokenized_run, tmp_path / "run"))
    assert "no checkpoint yet" in one_line(shard(verb, run), 1)


def test_anneal_needs_a_pretraining(shard: Shard, tokenized_run: Path) -> None:
    assert f"run `shard pretrain {tokenized_run}` first" in one_line(shard("anneal", tokenized_run), 1)


def test_from_step_has_to_exist(shard: Shard, finished_run: Path) -> None:
    message = one_line(shard("anneal", finished_run, "--from-step", "77"), 1)
    assert "no pretrain checkpoint of step 77; there are 1, 2, 3, 4" in message


def test_an_anneal_cannot_change_where_it_began(shard: Shard, finished_run: Path) -> None:
    message = one_line(shard("anneal", finished_run, "--from-step", "2"), 1)
    assert "began from pretrain step 4, not 2" in message


@pytest.mark.parametrize("folder", ["", "typo"])
def test_status_of_no_run(shard: Shard, tmp_path: Path, folder: str) -> None:
    assert "holds no run" in one_line(shard("status", tmp_path / folder), 1)


def test_import_of_what_is_no_bundle(shard: Shard, tiny: list[str], text_folder: Path) -> None:
    outcome = shard("import", text_folder, "--recipe", *tiny)
    assert "not a release bundle" in one_line(outcome, 1)


def test_a_prompt_that_is_no_unicode_is_one_line(shard: Shard, finished_run: Path) -> None:
    """What a terminal in another encoding hands over."""
    assert "prompt" in one_line(shard("generate", finished_run, "caf\udce9"), 2)


# Results.


def test_status_as_json_and_as_text(shard: Shard, finished_run: Path, tokenized_run: Path) -> None:
    (status,) = json.loads(shard("status", finished_run, "--json").out)
    assert status["stages"] == dict.fromkeys(STAGES, "done")
    assert (status["training_stage"], status["step"], status["steps"], status["seconds_left"]) == ("anneal", 3, 3, 0.0)
    assert set(status["bits_per_byte"]) == {"text"}
    text = shard("status", finished_run.parent).out
    assert text.startswith(f"{finished_run}: finished, anneal step 3 of 3, loss ")
    (status,) = json.loads(shard("status", tokenized_run, "--json").out)
    assert (status["stage"], status["status"]) == ("pretrain", "not started")


def test_plan_counts_the_reference_to_the_parameter(shard: Shard) -> None:
    plan = json.loads(shard("plan", "shard-40m-v1", "--no-probe", "--json").out)
    assert plan["parameters"] == 54_538_752
    assert sum(plan["parameters_by_role"].values()) == 54_538_752
    assert plan["stages"]["pretrain"]["tokens"] == 100_000 * 131_072
    assert plan["chinchilla_tokens"] == 20 * 54_538_752
    text = shard("plan", "shard-40m-v1", "--no-probe").out
    assert "54,538,752" in text
    assert "tokens/s" not in text, "nothing was measured"


@pytest.mark.parametrize(
    ("limit", "expected"), [(0.0, [(2, 32)] * 2), (1e9, [(2, 32), (8, 32), (32, 32), (32, 32)] * 2)]
)
def test_plan_probes_no_more_tokens_after_one_that_took_long(
    shard: Shard, tiny: list[str], monkeypatch: pytest.MonkeyPatch, limit: float, expected: list[tuple[int, int]]
) -> None:
    seen, hidden = [], ShardLM.hidden

    def remembered(model: ShardLM, ids: Any, **more: Any) -> Any:
        seen.append(tuple(ids.shape))
        return hidden(model, ids, **more)

    monkeypatch.setattr(ShardLM, "hidden", remembered)
    monkeypatch.setattr("shard.plan.PROBE_SECONDS", limit)
    plan = json.loads(shard("plan", *tiny, "--json").out)
    assert all(stage["tokens_per_second"] > 0 for stage in plan["stages"].values())
    assert seen == expected


def test_plan_measures_a_speed_and_makes_no_folder(
    shard: Shard, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = json.loads(shard("plan", *tiny, "--json").out)
    assert all(stage["tokens_per_second"] > 0 for stage in plan["stages"].values())
    assert list(tmp_path.iterdir()) == []


def test_plan_of_a_run_folder(shard: Shard, finished_run: Path) -> None:
    plan = json.loads(shard("plan", finished_run, "--no-probe", "--json").out)
    assert (plan["stages"]["pretrain"]["steps"], plan["stages"]["anneal"]["steps"]) == (4, 3)


def test_doctor_as_json_and_as_text(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shard.environment.choose_compile", lambda device: (False, "not tried in a test"))
    result = json.loads(shard("doctor", "--json").out)
    assert result["device_type"] == "cpu"
    assert result["precision"] in ("bf16", "fp32")
    assert {"shard", "torch", "python"} <= result["versions"].keys()
    assert min(result["memory_bytes"], result["free_disk_bytes"]) > 0
    text = shard("doctor").out
    assert "no: not tried in a test" in text


def test_every_result_on_stdout_is_json_alone(shard: Shard, finished_run: Path) -> None:
    for verb in ("run", *STAGES):
        outcome = shard(verb, finished_run, "--json")
        assert outcome.code == 0
        assert json.loads(outcome.out)
        assert "done already" in outcome.err


def test_generate_prints_the_prompt_and_its_continuation(shard: Shard, finished_run: Path) -> None:
    options = ["--max-tokens", "5"]
    text = shard("generate", finished_run, "abc", *options).out
    assert text.startswith("abc")
    as_json = json.loads(shard("generate", finished_run, "abc", *options, "--json").out)
    assert as_json == {"prompt": "abc", "text": text.removesuffix("\n")}
    assert shard("generate", finished_run, "abc", *options, "--greedy", "--no-cache").out[:4] == text[:4]
    checkpoint = finished_run / "anneal" / "checkpoints" / "step-00000003"
    assert shard("generate", checkpoint, "abc", *options).out == text


def test_generate_from_a_file_as_one_by_one(shard: Shard, finished_run: Path, tmp_path: Path) -> None:
    prompts = ["abc", "a longer one of words", "x"]
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(prompts), encoding="utf-8")
    options = ["--max-tokens", "8", "--stop", "q"]
    alone = [json.loads(shard("generate", finished_run, prompt, *options, "--json").out) for prompt in prompts]
    lines = shard("generate", finished_run, "--prompts", file, *options).out.splitlines()
    assert [json.loads(line) for line in lines] == alone
    assert json.loads(shard("generate", finished_run, "--prompts", file, *options, "--json").out) == alone


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_generate_in_other_precisions(shard: Shard, finished_run: Path, precision: str) -> None:
    outcome = shard("generate", finished_run, "abc", "--max-tokens", "5", "--dtype", precision)
    assert outcome.code == 0 and outcome.out.startswith("abc")


def test_int8_is_for_the_cpu(shard: Shard, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARD_DEVICE", "meta")
    message = one_line(shard("generate", finished_run, "abc", "--dtype", "int8"), 2)
    assert message == "shard: int8 is written for the CPU and this device is meta: choose bf16"


def test_without_a_compiler_generate_goes_on_without_it(
    shard: Shard, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shard.inference.session.choose_compile", lambda device: (False, "no C++ compiler was found"))
    options = ["abc", "--max-tokens", "5"]
    outcome = shard("generate", finished_run, *options, "--compile")
    assert outcome.err == "! no C++ compiler was found: decoding without it\n"
    assert outcome.out == shard("generate", finished_run, *options).out


def test_int8_without_a_compiler_says_that_it_is_slower(
    shard: Shard, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("session", "quantize", "decoder"):
        monkeypatch.setattr(f"shard.inference.{module}.choose_kernels", lambda: (False, "no C++ compiler was found"))
    outcome = shard("generate", finished_run, "abc", "--max-tokens", "5", "--dtype", "int8")
    assert outcome.code == 0 and outcome.out.startswith("abc")
    assert outcome.err == "! no C++ compiler was found: int8 runs on torch's slower kernel\n"


def test_bench_measures_each_precision_and_what_int8_costs(finished_run: Path) -> None:
    benchmark = json.loads((finished_run / "benchmark.json").read_text())
    assert list(benchmark["inference"]) == ["fp32", "bf16", "int8"]
    assert benchmark["published_loop_tokens_per_second"]["median"] > 0 and benchmark["threads"] >= 1
    assert abs(benchmark["int8"]["sources"]["text"]["change_percent"]) < 5
    assert benchmark["int8_kernels"] == choose_kernels()[1]


def test_sampling_follows_its_seed(shard: Shard, finished_run: Path) -> None:
    def draw(seed: int, top_p: float) -> str:
        options = ["--temperature", 1.5, "--max-tokens", 30, "--seed", seed, "--top-p", top_p]
        return shard("generate", finished_run, "abc", *options).out

    assert draw(1, 1.0) == draw(1, 1.0)
    assert draw(1, 1.0) != draw(2, 1.0)
    assert draw(1, 0.0) == draw(2, 0.0), "only the likeliest is left"
