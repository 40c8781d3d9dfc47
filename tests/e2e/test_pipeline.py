"""From text to a release and back: what a run leaves behind, that it repeats itself, that its bundle works alone."""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import shard as package
from shard.release.card.loading import LOADING
from shard.run import STAGES

Shard = Callable[..., Any]

STEP_KEYS = {
    *("step", "tokens", "loss", "cross_entropy_nats", "z_loss", "grad_norm", "lr_muon", "lr_embedding", "timing"),
}
PUBLISHED_FILES = ("config.py", "model.py", "tokenizer.py", "muon.py")
PUBLISHED_LINES = """\
import sys, torch
sys.path.insert(0, 'code')
from config import Config
from model import ToyLM
from tokenizer import load_tokenizer
ck = torch.load('models/model.pt', map_location='cpu', weights_only=False)
cfg = Config(**ck['cfg']) if isinstance(ck['cfg'], dict) else ck['cfg']
model = ToyLM(cfg).cuda().to(torch.bfloat16)
model.load_state_dict(ck['model'])
model.eval()
tok = load_tokenizer('models/tokenizer.json')
ids = torch.tensor([tok.encode('The capital of France is').ids], device='cuda')
with torch.no_grad():
    for _ in range(40):
        logits, _ = model(ids)
        nxt = logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, nxt], 1)
print(tok.decode(ids[0].tolist()))
"""
"""DESIGN section 2, word for word; without a GPU, `.cuda()` and `device='cuda'` are left out."""
ON_THE_CPU = PUBLISHED_LINES.replace(".cuda()", "").replace(", device='cuda'", "")


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and time of change of every file."""
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"  # which says who works here
    }


def metrics(run: Path, stage: str, timing: bool = False) -> list[dict[str, Any]]:
    """The steps of a stage, without what a clock decides."""
    steps = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
    return steps if timing else [{k: v for k, v in step.items() if k != "timing"} for step in steps]


def checkpoint(run: Path, stage: str, step: int, file: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / stage / "checkpoints" / f"step-{step:08d}" / f"{file}.safetensors")


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "copy"))


@pytest.fixture
def bundle(finished_run: Path) -> Path:
    return finished_run / "release"


# The run folder.


def test_the_run_folder_holds_what_the_design_promises(finished_run: Path) -> None:
    for name in (
        *("recipe.toml", "manifest.json", "decisions.json", "evaluation.json", "benchmark.json"),
        *("tokenizer/tokenizer.json", "data/text/documents.json", "data/text/tokens.json"),
        *("data/text/train-00000.bin", "data/text/heldout.jsonl"),
        *(f"data/text/documents/00000.{end}" for end in ("parquet", "npy", "json")),
        *("pretrain/metrics.jsonl", "pretrain/events.jsonl", "anneal/metrics.jsonl", "anneal/events.jsonl"),
        *(
            f"{stage}/checkpoints/step-0000000{step}/{file}"
            for stage, step in (("pretrain", 4), ("anneal", 3))
            for file in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
        ),
    ):
        assert (finished_run / name).is_file(), name
    leftovers = [p for p in finished_run.rglob("*") if "tmp" in p.name or p.suffix in (".pkl", ".pickle")]
    assert leftovers == []
    pickles = [p for p in finished_run.rglob("*.pt") if p.relative_to(finished_run).parts[0] != "release"]
    assert pickles == [], "a .pt file belongs into a bundle only"


def test_the_manifest_tells_of_every_stage(finished_run: Path) -> None:
    stages = json.loads((finished_run / "manifest.json").read_text())["stages"]
    assert list(stages) == list(STAGES)
    for stage in stages.values():
        assert stage["status"] == "done"
        assert {"started", "ended", "seconds", "inputs"} <= stage.keys()
    for stage in ("pretrain", "anneal"):
        assert {"device", "versions", "code_revision"} <= stages[stage]["environment"].keys()


def test_metrics_have_one_object_a_step_with_the_keys_of_the_contract(finished_run: Path) -> None:
    for stage, num_steps, tokens_before in (("pretrain", 4, 0), ("anneal", 3, 512)):
        steps = metrics(finished_run, stage, timing=True)
        assert [step["step"] for step in steps] == list(range(1, num_steps + 1))
        assert [step["tokens"] for step in steps] == [tokens_before + 128 * i for i in range(1, num_steps + 1)]
        for step in steps:
            assert step.keys() >= STEP_KEYS
            assert step["timing"].keys() >= {"seconds", "tokens_per_second", "memory_bytes"}
            assert step["loss"] == pytest.approx(step["cross_entropy_nats"] + step["z_loss"])
            assert ("bits_per_byte" in step) == (step["step"] in (2, num_steps))
        assert set(steps[-1]["bits_per_byte"]) == {"text"}
    assert metrics(finished_run, "anneal")[-1]["loss"] < metrics(finished_run, "pretrain")[0]["loss"]


def test_a_second_run_changes_no_file_and_says_so(shard: Shard, finished_run: Path, tiny: list[str]) -> None:
    before = snapshot(finished_run)
    for arguments in ([finished_run], [*tiny, "--out", finished_run]):
        outcome = shard("run", *arguments)
        assert outcome.code == 0
        for stage in STAGES:
            assert f"{stage}: done already" in outcome.err
    assert snapshot(finished_run) == before


def test_a_lost_result_is_made_again_and_nothing_else(shard: Shard, copied_run: Path) -> None:
    before = snapshot(copied_run)
    (copied_run / "evaluation.json").unlink()
    assert shard("run", copied_run).code == 0
    after = snapshot(copied_run)
    assert {name for name in before if before[name] != after[name]} <= {"evaluation.json", "manifest.json"}
    assert after["evaluation.json"][0] == before["evaluation.json"][0], "the same numbers"


@pytest.mark.parametrize(
    "lost",
    ["data/text/train-00000.bin", "data/text/tokens.json", "data/text/documents.json", "tokenizer/tokenizer.json"],
)
def test_a_lost_file_of_the_data_is_made_again_by_its_stage(shard: Shard, copied_run: Path, lost: str) -> None:
    """Errors say "run `shard data` again": that has to help, though the manifest says that the stage is done."""
    before = (copied_run / lost).read_bytes()
    (copied_run / lost).unlink()
    outcome = shard("data", copied_run)
    assert outcome.code == 0, outcome.err
    assert (copied_run / lost).read_bytes() == before
    assert "pretrain: done already" in shard("pretrain", copied_run).err


# Repeating and resuming.


def test_a_run_repeats_bit_for_bit(shard: Shard, finished_run: Path, tiny: list[str], tmp_path: Path) -> None:
    for verb in ("pretrain", "anneal"):
        assert shard(verb, *tiny, "--out", tmp_path / "again").code == 0
    for stage, step in (("pretrain", 4), ("anneal", 3)):
        assert metrics(tmp_path / "again", stage) == metrics(finished_run, stage)
        for file in ("model", "optimizer"):
            assert_equal(checkpoint(tmp_path / "again", stage, step, file), checkpoint(finished_run, stage, step, file))


def test_a_stopped_run_goes_on_to_the_same_bits(
    shard: Shard, finished_run: Path, tokenized_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tokenized_run, tmp_path / "run"))
    stopped = shard("pretrain", run, "--until", 2, "--json")
    assert stopped.code == 0
    assert json.loads(stopped.out)["step"] == 2
    assert json.loads(shard("status", run, "--json").out)[0]["stages"]["pretrain"] == "stopped"
    assert len(metrics(run, "pretrain")) == 2
    # A process that was killed later than its last checkpoint leaves more lines, the last one cut off.
    with (run / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 0.0}\n{"step": 4, "lo')
    outcome = shard("pretrain", run)
    assert outcome.code == 0
    assert "continues after step 2" in outcome.err
    assert metrics(run, "pretrain") == metrics(finished_run, "pretrain")
    for file in ("model", "optimizer"):
        assert_equal(checkpoint(run, "pretrain", 4, file), checkpoint(finished_run, "pretrain", 4, file))


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    shard: Shard, finished_run: Path, copied_run: Path
) -> None:
    damaged = copied_run / "pretrain" / "checkpoints" / "step-00000004" / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    manifest = json.loads((copied_run / "manifest.json").read_text())
    manifest["stages"]["pretrain"]["status"] = "running"
    (copied_run / "manifest.json").write_text(json.dumps(manifest))
    outcome = shard("pretrain", copied_run)
    assert outcome.code == 0
    assert f"{damaged} is damaged" in outcome.err
    assert "continues after step 3" in outcome.err
    assert_equal(checkpoint(copied_run, "pretrain", 4), checkpoint(finished_run, "pretrain", 4))
    assert metrics(copied_run, "pretrain") == metrics(finished_run, "pretrain")


def test_an_anneal_starts_at_the_last_pretrain_weights(finished_run: Path) -> None:
    """Its first step moves each weight by at most what one step can; a fresh model would be elsewhere."""
    state = json.loads((finished_run / "anneal/checkpoints/step-00000001/state.json").read_text())
    assert state["branched_from"] == {"stage": "pretrain", "step": 4, "tokens": 512}
    start, after = checkpoint(finished_run, "pretrain", 4), checkpoint(finished_run, "anneal", 1)
    fresh = checkpoint(finished_run, "pretrain", 1)
    for name, weight in start.items():
        assert (after[name] - weight).abs().max() < 0.1
    table = "embedding.weight"
    assert (after[table] - start[table]).norm() < (after[table] - fresh[table]).norm()


def test_an_anneal_from_an_earlier_step(shard: Shard, copied_run: Path, finished_run: Path) -> None:
    shutil.rmtree(copied_run / "anneal")
    outcome = shard("anneal", copied_run, "--from-step", 2)
    assert outcome.code == 0, outcome.err
    state = json.loads((copied_run / "anneal/checkpoints/step-00000003/state.json").read_text())
    assert state["branched_from"] == {"stage": "pretrain", "step": 2, "tokens": 256}
    steps = metrics(copied_run, "anneal")
    assert [step["tokens"] for step in steps] == [384, 512, 640]
    assert steps != metrics(finished_run, "anneal")


def test_a_pretraining_that_was_stopped_and_annealed_is_released_as_it_is(
    shard: Shard, tokenized_run: Path, tmp_path: Path
) -> None:
    """`--until`, anneal, then `shard run`: the rest of the stages, not the rest of the pretraining."""
    run = tmp_path / "run"
    shutil.copytree(tokenized_run, run)
    assert shard("pretrain", run, "--until", 2).code == 0
    assert shard("anneal", run).code == 0
    outcome = shard("run", run)
    assert outcome.code == 0, outcome.err
    assert "left at step 2" in outcome.err
    assert len(metrics(run, "pretrain")) == 2
    card = (run / "release" / "README.md").read_text()
    assert "pretrain was stopped at step 2 of 4" in card


def test_an_anneal_goes_on_from_where_it_began(shard: Shard, copied_run: Path) -> None:
    """Not from the newest pretrain checkpoint, which another command may have made since."""
    shutil.rmtree(copied_run / "anneal")
    assert shard("anneal", copied_run, "--from-step", 2).code == 0
    assert "done already" in shard("anneal", copied_run).err
    assert "began from pretrain step 2, not 4" in shard("anneal", copied_run, "--from-step", 4).err


# Datasets.

SHRUNK = {
    "model": "{vocab_size = 300, hidden_size = 32, num_layers = 2, num_heads = 2, head_dim = 16, "
    "intermediate_size = 64, max_sequence_length = 128, sliding_window = 8}",
    "tokenizer.sample_bytes": "100kB",
    "pretrain.sequence_length": "32",
    "anneal.sequence_length": "32",
}
QUESTION = "Which of the following gases is most of the air that people breathe in every day"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seven repositories of the reference recipe, of thirty documents each."""
    folder, rng = tmp_path_factory.mktemp("mirror"), random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(500)]

    def texts(count: int = 30) -> list[str]:
        return [" ".join(rng.choices(words, k=30)) for _ in range(count)]

    def questions(first: str) -> dict[str, list[Any]]:
        choices = [{"text": texts(4), "label": ["A", "B", "C", "D"]} for _ in range(30)]
        return {"id": texts(), "question": [first, *texts(29)], "choices": choices, "answerKey": ["C"] * 30}

    def write(path: str, columns: dict[str, list[Any]]) -> None:
        target = folder / "datasets" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        if target.suffix == ".parquet":
            pq.write_table(pa.table(columns), target)
        elif target.suffix == ".json":
            target.write_text(json.dumps(rows))
        else:
            target.write_text("".join(json.dumps(row) + "\n" for row in rows))

    tested = f"{texts(1)[0]} {QUESTION.upper()}! {texts(1)[0]}"
    write("open-web-math/open-web-math/data/a.parquet", {"url": texts(), "text": texts()})
    write("HuggingFaceFW/fineweb-edu/sample/10BT/000.parquet", {"text": [tested, *texts(29)]})
    write("HuggingFaceFW/fineweb-edu/sample/10BT/001.parquet", {"id": texts(), "text": texts()})
    write("HuggingFaceFW/fineweb-edu/data/other.parquet", {"text": ["no part of the sample"]})
    write("AI-MO/NuminaMath-CoT/data/train-0.parquet", {"problem": texts(), "solution": texts(), "messages": texts()})
    write("AI-MO/NuminaMath-CoT/data/test-0.parquet", {"problem": texts(), "solution": texts()})
    write("meta-math/MetaMathQA/MetaMathQA-395K.json", {"query": texts(), "response": texts(), "type": texts()})
    write("togethercomputer/RedPajama-Data-1T-Sample/arxiv_sample.jsonl", {"text": texts(), "meta": texts()})
    write("HuggingFaceTB/cosmopedia/data/stories/train-0.parquet", {"prompt": texts(), "text": texts()})
    write("allenai/ai2_arc/ARC-Easy/train-0.parquet", questions(texts(1)[0]))
    write("allenai/ai2_arc/ARC-Easy/test-0.parquet", questions(QUESTION))
    write("allenai/ai2_arc/ARC-Easy/validation-0.parquet", questions(texts(1)[0]))
    return folder


def test_the_reference_recipe_reads_its_seven_datasets_from_a_mirror(
    shard: Shard, mirror: Path, tmp_path: Path
) -> None:
    sets = [word for key, value in SHRUNK.items() for word in ("--set", f"{key}={value}")]
    run, again = tmp_path / "run", tmp_path / "again"
    arguments = ["data", "shard-40m-v1", *sets, "--mirror", mirror]
    outcome = shard(*arguments, "--workers", 1, "--out", run)
    assert outcome.code == 0, outcome.err
    ledgers = {path.parent.name: json.loads(path.read_text()) for path in run.glob("data/*/documents.json")}
    assert len(ledgers) == 7
    for name, ledger in ledgers.items():
        assert ledger["origin"]["revision"] == "mirror"
        assert ledger["documents_read"] == (60 if name == "fineweb-edu" else 30)
        assert sum(ledger["documents"].values()) + sum(ledger["dropped"].values()) == ledger["documents_read"]
        assert ledger["documents"]["train"] >= 20 and ledger["documents"]["heldout"] > 0
        assert len(ledger["evaluation_sets"]) == 2
    dropped = {name: ledger["dropped"] for name, ledger in ledgers.items() if ledger["dropped"]}
    assert dropped == {"fineweb-edu": {"contaminated": 1}}
    for name, start in (("numina-math", "Problem: "), ("meta-math", "Question: ")):
        lines = (run / f"data/{name}/heldout.jsonl").read_text().splitlines()
        assert all(json.loads(line)["text"].startswith(start) for line in lines)
    assert not list(run.rglob("raw")) and not (run / "evaluation-sets").exists(), "a mirror is read where it is"
    assert shard("verify", run).code == 0

    # By several processes, in another folder: the same, but for the folder's own name.
    assert shard(*arguments, "--workers", 2, "--out", again).code == 0
    assert content_of(again / "data") == content_of(run / "data")
    assert "data: done already" in shard("data", run).err, "what reads the documents is no part of the result"

    outcome = shard("data", run, "--set", "pretrain.lr_muon=0.01", "--fork", tmp_path / "fork")
    assert outcome.code == 2, "data takes no --fork"
    shard("pretrain", run, "--set", "pretrain.lr_muon=0.01", "--fork", tmp_path / "fork", "--max-time", "1s")
    assert content_of(tmp_path / "fork" / "data") == content_of(run / "data")
    assert json.loads((tmp_path / "fork/manifest.json").read_text())["mirror"] == str(mirror)


def content_of(folder: Path) -> dict[str, str]:
    """Every file and its hash."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# The bundle.


def test_the_bundle_holds_its_files_and_their_sums(bundle: Path) -> None:
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    expected = {"README.md", "recipe.toml", "models/model.pt", "models/pretrain.pt", "models/tokenizer.json"}
    expected |= {f"code/{name}" for name in PUBLISHED_FILES}
    expected |= {f"gguf/quickstart-{dtype}.gguf" for dtype in ("bf16", "f32", "q8_0")}
    expected |= {f"hf/{name}.json" for name in ("config", "generation_config", "tokenizer", "tokenizer_config")}
    expected |= {"hf/model.safetensors"}
    expected |= {f"pictures/{name}.svg" for name in ("loss", "learning_rate", "bits_per_byte", "sentinel")}
    assert files == {*expected, "SHA256SUMS"}
    sums = dict(reversed(line.split("  ", 1)) for line in (bundle / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in expected}


def test_the_code_of_the_bundle_is_that_of_shard(bundle: Path) -> None:
    for name in PUBLISHED_FILES:
        assert (bundle / "code" / name).read_bytes() == (Path(package.__file__).parent / name).read_bytes()


def is_plain(value: object) -> bool:
    """Tensors and primitives, and dicts and lists of them."""
    if isinstance(value, dict):
        return type(value) is dict and all(type(k) is str and is_plain(v) for k, v in value.items())
    return type(value) in (torch.Tensor, int, float, str, type(None))


@pytest.mark.parametrize("weights_only", [True, False])
def test_the_bundle_holds_only_tensors_and_primitives(bundle: Path, finished_run: Path, weights_only: bool) -> None:
    model = torch.load(bundle / "models" / "model.pt", weights_only=weights_only)
    pretrain = torch.load(bundle / "models" / "pretrain.pt", weights_only=weights_only)
    assert set(model) == {"model", "cfg"}
    assert set(pretrain) == {"model", "optimizer", "step", "tokens", "cfg"}
    assert (pretrain["step"], pretrain["tokens"]) == (4, 512)
    assert is_plain(model)
    assert is_plain(pretrain)
    for content, stage, step in ((model, "anneal", 3), (pretrain, "pretrain", 4)):
        weights = checkpoint(finished_run, stage, step)
        assert_equal(content["model"], {name: weight.bfloat16() for name, weight in weights.items()})


@pytest.fixture
def without_shard(tmp_path: Path) -> dict[str, str]:
    """An environment for a fresh interpreter in which `import shard` fails."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['shard'] = None\n")
    return os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}


def test_the_published_lines_print_what_shard_generate_prints(
    shard: Shard, bundle: Path, tmp_path: Path, without_shard: dict[str, str]
) -> None:
    """Word for word, in a fresh interpreter that has no Shard; and the lines of the card, which load weights only.

    Seven steps of training give a model that says the same after any text. So the published lines also get one
    with random weights, in which every token of the context counts.
    """
    blocked = subprocess.run(
        [sys.executable, "-c", "import shard"], env=without_shard, capture_output=True, check=False
    )
    assert blocked.returncode == 1
    random = Path(shutil.copytree(bundle, tmp_path / "random"))
    content = torch.load(random / "models" / "model.pt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for weight in content["model"].values():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    torch.save(content, random / "models" / "model.pt")
    for folder, lines in ((random, ON_THE_CPU), (bundle, LOADING)):
        command = [sys.executable, "-W", "error", "-c", lines]
        done = subprocess.run(command, cwd=folder, env=without_shard, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        options = ["--greedy", "--no-cache", "--dtype", "bf16", "--max-tokens", 40]
        assert shard("generate", folder, "The capital of France is", *options).out == done.stdout
        assert done.stdout.startswith("The capital of France is")


def test_the_loading_lines_of_the_card_are_the_published_ones(bundle: Path) -> None:
    """But for weights_only, which is safer, and the comments."""
    block, _ = re.findall(r"```python\n(.*?)```", (bundle / "README.md").read_text(), flags=re.DOTALL)
    code = re.sub(r"\s+#.*", "", block)
    assert code == ON_THE_CPU.replace("weights_only=False", "weights_only=True")


def test_the_card_has_its_sections_and_quotes_what_was_measured(bundle: Path, finished_run: Path) -> None:
    card = (bundle / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlanguage:")
    sections = re.findall(r"^## (.+)$", card, flags=re.MULTILINE)
    assert sections == [
        *("Architecture", "Training", "Data", "Evaluation", "Benchmark", "Sampled outputs", "Files", "How to load it"),
        *("What it proves", "What it cannot do", "Licence", "Citation"),
    ]
    evaluation = json.loads((finished_run / "evaluation.json").read_text())["sources"]["text"]
    assert f"| text | {evaluation['bytes']:,} | {evaluation['bits_per_byte']:.4f} |" in card
    assert f"{evaluation['xz_bits_per_byte']:.4f}" in card
    decode = json.loads((finished_run / "benchmark.json").read_text())["inference"]["fp32"]["decode_tokens_per_second"]
    assert f"{decode['median']:,.0f} ({decode['min']:,.0f} to {decode['max']:,.0f})" in card
    for stage, num_steps in (("pretrain", 4), ("anneal", 3)):
        last = metrics(finished_run, stage)[-1]["cross_entropy_nats"]
        assert re.search(rf"\| {stage} \| {num_steps} of {num_steps} \| .* \| {last:.4f} \|", card)
    weights = checkpoint(finished_run, "anneal", 3)
    assert f"| Parameters | {sum(weight.numel() for weight in weights.values()):,} |" in card
    assert not re.search(r"\bNone\b|\bnan\b|\binf\b|Not measured in this run|[{}]", card.split("## Sampled outputs")[0])


def test_the_card_follows_the_files_of_the_run(shard: Shard, copied_run: Path) -> None:
    """A number in a file that changes is another number in the card: none is written by hand."""
    path = copied_run / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["sources"]["text"]["bits_per_byte"] = 1.23456
    path.write_text(json.dumps(evaluation))
    (copied_run / "release" / "SHA256SUMS").unlink()
    assert shard("release", copied_run).code == 0
    assert "1.2346" in (copied_run / "release" / "README.md").read_text()


# The way back in.


def test_a_bundle_is_imported_and_annealed_from_its_step(
    shard: Shard, bundle: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "imported"
    outcome = shard("import", bundle, "--out", run, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out) == {"run": str(run), "step": 4, "tokens": 512}
    theirs = checkpoint(finished_run, "pretrain", 4)
    assert_equal(checkpoint(run, "pretrain", 4), {name: weight.bfloat16().float() for name, weight in theirs.items()})
    assert "done already" in shard("pretrain", run).err
    assert shard("anneal", run).code == 0
    state = json.loads((run / "anneal/checkpoints/step-00000003/state.json").read_text())
    assert state["branched_from"] == {"stage": "pretrain", "step": 4, "tokens": 512}
    ours, original = metrics(run, "anneal"), metrics(finished_run, "anneal")
    assert ours[0]["loss"] == pytest.approx(original[0]["loss"], rel=0.02), "bf16 rounds, and no more"
    assert shard("run", run).code == 0
    assert "imported from another bundle at step 4" in (run / "release" / "README.md").read_text()


def test_an_import_with_another_anneal_and_refusals(
    shard: Shard, bundle: Path, tiny: list[str], tmp_path: Path
) -> None:
    other = shard("import", bundle, "--recipe", *tiny, "--set", "anneal.steps=2", "--out", tmp_path / "a")
    assert other.code == 0
    shape = shard("import", bundle, "--recipe", *tiny, "--set", "model.sliding_window=4", "--out", tmp_path / "b")
    assert shape.code == 1
    assert "sliding_window is 8 there, 4 here" in shape.err
    again = shard("import", bundle, "--out", tmp_path / "a")
    assert again.code == 1
    assert "is not empty" in again.err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["models/model.pt", "models/pretrain.pt", "code/model.py", "README.md"])
def test_a_flipped_byte_in_the_bundle_is_refused_by_name(shard: Shard, bundle: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    outcome = shard("import", copy, "--out", tmp_path / "run")
    assert outcome.code == 1
    assert outcome.err == f"shard: {copy / name} is damaged: its SHA-256 is not the one in SHA256SUMS\n"
    assert not (tmp_path / "run").exists()


def test_a_path_out_of_the_bundle_and_a_missing_file_are_refused(shard: Shard, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (copy / "models" / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in shard("import", copy, "--out", tmp_path / "run").err
    (copy / "SHA256SUMS").write_text("0" * 64 + "  ../secret\n")
    assert "outside the bundle" in shard("import", copy, "--out", tmp_path / "run").err
