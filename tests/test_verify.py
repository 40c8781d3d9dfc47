"""`shard verify`: an undamaged folder has no problem, and each damaged file is named, all in one pass."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shard.cli import main
from shard.errors import ShardError
from shard.verify import Problem, verify


def problems_of(path: Path) -> list[Problem]:
    return verify(path).problems


TINY = {
    "model": "{vocab_size = 300, hidden_size = 32, num_layers = 1, num_heads = 2, head_dim = 16, "
    "intermediate_size = 64, max_sequence_length = 128, sliding_window = 8}",
    "tokenizer.sample_bytes": "50kB",
    "data.shard_bytes": "16kB",
    "pretrain.steps": "3",
    "pretrain.sequence_length": "32",
    "pretrain.tokens_per_step": "64",
    "pretrain.warmup_steps": "1",
    "pretrain.micro_batch": "2",
    "pretrain.compile": "off",
    "pretrain.precision": "fp32",
    "pretrain.checkpoint_every": "1",
    "pretrain.keep_last": "10",
    "pretrain.evaluate_bytes": "1kB",
    "pretrain.sample_prompts": '["The "]',
    "anneal.steps": "2",
    "anneal.sequence_length": "32",
    "release.prompts": '["a b"]',
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went through every stage."""
    folder = tmp_path_factory.mktemp("verify")
    source = random.Random(0)
    words = ["".join(source.choices("abcdefghij", k=source.randint(2, 7))) for _ in range(200)]
    (folder / "text").mkdir()
    for i in range(30):
        lines = (" ".join(source.choices(words, k=10)) for _ in range(20))
        (folder / "text" / f"{i:02}.txt").write_text("\n".join(lines), encoding="utf-8")
    sets = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARD_DEVICE", "cpu")
        with pytest.raises(SystemExit) as end:
            main(["run", "quickstart", "--data", str(folder / "text"), *sets, "--out", str(folder / "run")])
    assert end.value.code == 0
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def named(folder: Path, root: Path | None = None) -> set[str]:
    return {Path(problem.path).relative_to(root or folder).as_posix() for problem in problems_of(folder)}


# What is whole


@pytest.mark.parametrize(
    ("part", "kind", "least"),
    [
        (".", "run", 38),
        ("pretrain/checkpoints/step-00000002", "checkpoint", 4),
        ("data", "data", 7),
        ("data/text", "data", 7),
        ("release", "bundle", 10),
    ],
)
def test_what_is_whole_has_no_problem(finished: Path, part: str, kind: str, least: int) -> None:
    report = verify(finished / part)
    assert report.problems == [] == problems_of(finished / part)
    assert report.kind == kind and report.files_checked >= least
    assert report.describe() == [f"{finished / part}: {report.files_checked} files checked, none damaged"]
    assert json.loads(json.dumps(report.to_dict()))["problems"] == []


def test_every_file_of_a_run_is_looked_at(finished: Path) -> None:
    files = [path for path in finished.rglob("*") if path.is_file() and not path.name.startswith(".")]
    files.remove(finished / "report.html")  # written anew at any time from the others
    assert verify(finished).files_checked == len(files)


# What is damaged


def hashed_files(run: Path) -> list[Path]:
    """Those whose hash stands in another file."""
    without = {"decisions.json", "sample.json", "metrics.jsonl", "events.jsonl", "documents.json", "manifest.json"}
    without.add("report.html")
    without.add("00000.json")  # of a unit: beside its documents, whose hash it gives
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name not in without]
    manifest = json.loads((run / "manifest.json").read_text())
    return [p for p in files if p.name != ".lock" and (p != run / "recipe.toml" or "recipe_sha256" in manifest)]


def test_one_flipped_bit_is_found_in_each_file(run: Path) -> None:
    files = hashed_files(run)
    assert len(files) > 25
    for path in files:
        whole = path.read_bytes()
        flip(path)
        assert path.relative_to(run).as_posix() in named(run), path
        path.write_bytes(whole)
    assert problems_of(run) == []


def test_all_of_them_are_named_in_one_pass(run: Path) -> None:
    leaves = [path for path in hashed_files(run) if path.name not in ("tokens.json", "SHA256SUMS")]
    for path in leaves:
        flip(path)
    assert named(run) == {path.relative_to(run).as_posix() for path in leaves}
    report = verify(run)
    assert report.describe()[0] == f"{run}: {report.files_checked} files checked, {len(leaves)} damaged"
    assert len(report.describe()) == 1 + len(leaves) and not any("\n" in line for line in report.describe())


def test_every_missing_file_is_named(run: Path) -> None:
    gone = ["evaluation.json", "data/text/heldout.jsonl", "data/text/train-00001.bin", "release/code/muon.py"]
    gone += ["pretrain/checkpoints/step-00000002/optimizer.safetensors", "tokenizer/tokenizer.json", "recipe.toml"]
    gone += ["anneal/checkpoints/step-00000002/manifest.json", "anneal/metrics.jsonl"]
    gone += [f"data/text/documents/00000.{end}" for end in ("parquet", "npy", "json")]
    for name in gone:
        (run / name).unlink()
    problems = problems_of(run)
    assert {Path(problem.path).relative_to(run).as_posix() for problem in problems} == set(gone)
    assert {problem.what for problem in problems} == {"is missing"}


def test_every_unexpected_file_is_named_but_leftovers_are_not(run: Path) -> None:
    beside_the_data = [f"data/text/{name}" for name in ("train-00099.bin", "train.jsonl", "documents/00001.parquet")]
    beside_the_data += [f"data/text/documents/{name}" for name in ("00001.json", "00000.txt", "more.npy")]
    for name in (*beside_the_data, "release/more.txt", "release/code/x.py", "tokenizer/y"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("x")
    (run / "pretrain/checkpoints/step-00000001/more.safetensors").write_text("x")
    (run / "pretrain/checkpoints/old").mkdir()
    for name in ("data/text/.heldout.jsonl.tmp", "data/text/documents/.00001.parquet.tmp", "release/.cache", ".lock"):
        (run / name).write_text("x")
    (run / "pretrain/checkpoints/.tmp-step-00000007").mkdir()
    (run / "notes.txt").write_text("what a user writes beside it is no business of ours")
    expected = {*beside_the_data, "release/more.txt", "release/code/x.py", "tokenizer/y"}
    expected |= {"pretrain/checkpoints/step-00000001/more.safetensors", "pretrain/checkpoints/old"}
    assert named(run) == expected
    assert all(problem.what.startswith("is unexpected") for problem in problems_of(run))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", "{"),
        ("manifest.json", "[" * 100_000),
        ("data/text/documents.json", "[]"),
        ("data/text/documents.json", '{"sha256": 3}'),
        ("data/text/documents/00000.json", "["),
        ("data/text/documents/00000.json", "[]"),
        ("data/text/documents/00000.json", "{}"),
        ("data/text/listing.json", "["),
        ("data/text/listing.json", "{}"),
        ("data/text/listing.json", '{"files": ["x"]}'),
        ("data/text/listing.json", '{"files": [{"path": "../../../recipe.toml"}]}'),
        ("data/text/tokens.json", '{"dtype": "<u2", "shards": [{"file": "../../x"}]}'),
        ("decisions.json", "nothing"),
        ("tokenizer/sample.json", ""),
        ("pretrain/checkpoints/step-00000001/manifest.json", '{"sha256": []}'),
        ("release/SHA256SUMS", "x"),
        ("pretrain/events.jsonl", "{\n"),
    ],
)
def test_a_ledger_that_cannot_be_read(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    problems = problems_of(run)
    assert name in {Path(problem.path).relative_to(run).as_posix() for problem in problems}
    assert not any("\n" in problem.what or len(problem.what) > 500 for problem in problems)


def test_a_checkpoint_a_source_and_a_bundle_by_themselves(run: Path) -> None:
    checkpoint = run / "pretrain/checkpoints/step-00000001"
    flip(checkpoint / "state.json")
    (checkpoint / "model.safetensors").unlink()
    assert named(checkpoint) == {"state.json", "model.safetensors"}
    flip(run / "data/text/train-00000.bin")
    assert named(run / "data") == {"text/train-00000.bin"}
    assert named(run / "data/text") == {"train-00000.bin"}
    flip(run / "release/models/model.pt")
    (run / "release/README.md").unlink()
    assert named(run / "release") == {"models/model.pt", "README.md"}


def change_ledger(run: Path, change: Callable[[dict[str, str]], object]) -> None:
    """Change the hashes of documents.json, unseen by the manifest."""
    path = run / "data/text/documents.json"
    ledger = json.loads(path.read_text())
    change(ledger["sha256"])
    path.write_text(json.dumps(ledger))


@pytest.mark.parametrize(
    "name",
    [
        *("../../../etc/passwd", "/etc/passwd", "documents/../../../recipe.toml", "documents/x/00000.parquet"),
        *("train-00000.bin", "documents/00000.json", "documents/0.npy", "documents/00000.parquet\n", ""),
    ],
)
def test_a_ledger_that_lists_what_is_no_document(run: Path, name: str) -> None:
    change_ledger(run, lambda hashes: hashes.update({name: "0" * 64}))
    (problem,) = problems_of(run / "data")
    expected = "is damaged: it lists a path that is none of a source"
    assert problem == Problem(path=str(run / "data/text/documents.json"), what=expected)


@pytest.mark.parametrize("name", ["heldout.jsonl", "documents/00000.npy", "documents/00000.parquet"])
def test_a_ledger_that_leaves_a_document_out(run: Path, name: str) -> None:
    """A file without a hash has not been checked, whatever lies beside it."""
    change_ledger(run, lambda hashes: hashes.pop(name))
    assert f"text/{name}" in named(run / "data")


def test_a_ledger_that_leaves_a_unit_out(run: Path) -> None:
    change_ledger(run, lambda hashes: [hashes.pop(f"documents/00000.{end}") for end in ("npy", "parquet")])
    assert named(run / "data") == {f"text/documents/00000.{end}" for end in ("json", "npy", "parquet")}


def test_a_unit_whose_ledger_is_of_other_documents(run: Path) -> None:
    path = run / "data/text/documents/00000.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": "0" * 64}))
    (problem,) = problems_of(run)
    assert problem.path == str(path) and "is not the one in documents.json" in problem.what


def test_without_its_ledger_no_document_is_called_unexpected(run: Path) -> None:
    (run / "data/text/documents.json").unlink()
    assert named(run) == {"data/text/documents.json"}
    change_manifest(run, lambda stages: [stages[name].update(status="running") for name in stages])
    assert problems_of(run) == [], "they are being read again"


# Downloads


@pytest.fixture
def hub_source(run: Path) -> Path:
    """A source of a repository of three files, of which two are kept."""
    folder = run / "data/text"
    kept = {"data/a.jsonl": b"large", "README.md": b"small"}
    for name, content in kept.items():
        (folder / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "raw" / name).write_bytes(content)
    files = [
        {"path": "data/a.jsonl", "size": 5, "sha256": hashlib.sha256(b"large").hexdigest()},
        {"path": "README.md", "size": 5, "sha256": None},
        {"path": "data/b.jsonl", "size": 5, "sha256": "0" * 64},
    ]
    (folder / "listing.json").write_text(json.dumps({"repository": "a/b", "revision": "c" * 40, "files": files}))
    return folder


def test_downloads_are_compared_with_the_listing(hub_source: Path) -> None:
    report = verify(hub_source)
    assert report.problems == []
    assert report.files_checked == sum(path.is_file() for path in hub_source.rglob("*"))
    flip(hub_source / "raw/data/a.jsonl")
    (hub_source / "raw/README.md").write_text("smaller")
    (problem, other) = problems_of(hub_source)
    assert problem.path == str(hub_source / "raw/README.md") and "its size" in problem.what
    assert other.path == str(hub_source / "raw/data/a.jsonl") and "SHA-256 is not the one in listing" in other.what


def test_a_download_that_leads_out_is_not_read(hub_source: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("large")
    for name in ("data/a.jsonl", "README.md"):
        (hub_source / "raw" / name).unlink()
        (hub_source / "raw" / name).symlink_to(tmp_path / "secret")
    assert ["leads out of" in problem.what for problem in problems_of(hub_source)] == [True, True]


# The metrics


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda lines: lines[:1] + lines[2:], "step 3 stands where 2 should"),
        (lambda lines: lines[1:], "step 2 stands where 1 should"),
        (lambda lines: [*lines, lines[-1]], "step 3 stands where 4 should"),
        (lambda lines: lines[:-1], "it ends at step 2, before the checkpoint of step 3"),
        (lambda lines: [], "it ends at step 0"),
        (lambda lines: [lines[0], "half a li\n", *lines[1:]], "line 2 is not a JSON object"),
        (lambda lines: [*lines, '{"step": 4, "lo'], "line 4 is not a JSON object"),
    ],
)
def test_metrics_run_from_one_without_a_hole(run: Path, change: Callable[[list[str]], list[str]], what: str) -> None:
    path = run / "pretrain" / "metrics.jsonl"
    with path.open() as file:
        lines = file.readlines()
    assert len(lines) == 3
    path.write_text("".join(change(lines)))
    (problem,) = problems_of(run)
    assert problem.path == str(path) and what in problem.what


def change_manifest(run: Path, change: Callable[[dict[str, dict[str, object]]], object]) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    change(manifest["stages"])
    (run / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("status", ["running", "interrupted", "stopped"])
def test_a_stage_that_is_not_finished_is_no_damage(run: Path, status: str) -> None:
    """Half a line of metrics, shards without a ledger, and a result that the manifest gave another hash before."""
    change_manifest(run, lambda stages: [stages[name].update(status=status) for name in stages])
    with (run / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    (run / "data/text/tokens.json").unlink()
    (run / "evaluation.json").write_text("{}")
    assert problems_of(run) == []


def test_a_run_that_has_only_begun(finished: Path, tmp_path: Path) -> None:
    shutil.copyfile(finished / "recipe.toml", tmp_path / "recipe.toml")
    assert problems_of(tmp_path) == [] and verify(tmp_path).files_checked == 1
    (tmp_path / "recipe.toml").write_text("[model")
    (problem,) = problems_of(tmp_path)
    assert problem.path == str(tmp_path / "recipe.toml") and "not valid TOML" in problem.what


# What leads out


def test_nothing_outside_the_folder_is_read(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(run / "data", outside / "data")
    shutil.copytree(run / "pretrain/checkpoints", outside / "checkpoints")
    shutil.copyfile(run / "release/README.md", outside / "README.md")
    for inside, target in (
        ("data/text/heldout.jsonl", outside / "data/text/heldout.jsonl"),
        ("data/text/documents", outside / "data/text/documents"),
        ("release/README.md", outside / "README.md"),
        ("anneal/checkpoints", outside / "checkpoints"),
        ("release/loop", run / "release/loop"),
    ):
        path = run / inside
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(target)
    problems = {Path(problem.path).relative_to(run).as_posix(): problem.what for problem in problems_of(run)}
    led_out = {f"data/text/documents/00000.{end}" for end in ("parquet", "npy", "json")}
    led_out |= {"data/text/heldout.jsonl", "anneal/checkpoints"}
    in_a_link = "anneal/checkpoints/step-00000002/manifest.json"  # an output of its stage
    assert problems.keys() == led_out | {in_a_link, "release/SHA256SUMS"}
    assert all("leads out of" in problems[name] for name in led_out)
    assert "lists a path outside the bundle: 'README.md'" in problems["release/SHA256SUMS"]


def test_a_manifest_that_lists_what_lies_outside(run: Path) -> None:
    change_manifest(run, lambda stages: stages["data"].update(outputs={"../../../etc/passwd": "0" * 64}))
    (problem,) = problems_of(run)
    assert problem == Problem(path=str(run / "manifest.json"), what="is damaged: it lists '../../../etc/passwd'")


def test_a_folder_that_is_none_of_these(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "is not a run, a checkpoint"), (tmp_path / "x", "is not a folder")):
        with pytest.raises(ShardError, match=message):
            problems_of(path)
