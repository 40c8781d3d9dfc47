"""Both kinds of teacher: what they say of a batch, what is kept on the disk, and how that is resumed and refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_teacher import VOCAB, save_teacher

from shard.config import Config
from shard.data.loader import BatchLoader
from shard.distillation import cache
from shard.distillation.causal import CausalTeacher, load_teacher
from shard.distillation.folder import check_licence, check_vocabulary, count_weights, teacher_sha256
from shard.distillation.loss import SparseTargets, dense_log_probabilities
from shard.distillation.settings import DistillationSettings
from shard.distillation.teach import TargetWriter
from shard.distillation.teacher import CachedTeacher
from shard.errors import ShardError, UsageError
from shard.files import write_json
from shard.resources import check_memory
from shard.tokenizer import train_tokenizer
from shard.training.cost import checkpoint_bytes, state_bytes

LENGTH, ROWS = 16, 4
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of 300 ids, its card and its tokenizer.json."""
    folder = tmp_path_factory.mktemp("teacher")
    save_teacher(folder)
    train_tokenizer([f"Text {i} of some words." for i in range(50)], VOCAB).save(str(folder / "tokenizer.json"))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A teacher\n")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Token shards of two sources."""
    for name, size, seed in (("a", 700, 0), ("b", 90, 1)):
        tokens = np.random.default_rng(seed).integers(0, VOCAB, size).astype("<u2")
        (tmp_path / "data" / name).mkdir(parents=True)
        tokens.tofile(tmp_path / "data" / name / "train-00000.bin")
        shard = {"file": "train-00000.bin", "tokens": size, "sha256": f"{seed}"}
        write_json(tmp_path / "data" / name / "tokens.json", {"dtype": "<u2", "tokens": size, "shards": [shard]})
    return tmp_path / "data"


def settings(folder: Path, **changes: Any) -> DistillationSettings:
    values = {
        "teacher": str(folder),
        "licence": "apache-2.0",
        "precision": "fp32",
        "targets": "cached",
        "unit_tokens": 100,
    }
    return DistillationSettings(**{**values, **changes})


def loader(data: Path) -> BatchLoader:
    return BatchLoader(data, {"a": 0.75, "b": 0.25}, LENGTH, LENGTH * ROWS, 4, seed=1)


def writer(wanted: DistillationSettings, model: CausalTeacher | None = None, seed: int = 5) -> TargetWriter:
    def load() -> CausalTeacher:
        assert model is not None, "no unit is missing: the teacher is not needed"
        return model

    return TargetWriter(load, wanted, {"sha256": "x"}, LENGTH, VOCAB, seed, CPU)


@pytest.fixture(scope="module")
def model(folder: Path) -> CausalTeacher:
    return load_teacher(settings(folder), folder / "tokenizer.json", CPU)


def files(data: Path) -> dict[str, bytes]:
    return {str(p.relative_to(data)): p.read_bytes() for p in sorted(data.rglob("*")) if p.is_file()}


def make_gpt2() -> Any:
    """Another family: learned positions, layer norms."""
    import transformers

    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=24, n_layer=1, n_head=2)
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("kind", ["tied", "untied", "gpt2"])
def test_hidden_states_and_the_matrix_make_the_logits(tmp_path: Path, kind: str) -> None:
    plain = make_gpt2() if kind == "gpt2" else save_teacher(tmp_path, tie_word_embeddings=kind == "tied")
    inputs = torch.randint(VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    soft = CausalTeacher(plain).targets(inputs)
    assert soft.table is not None
    assert soft.hidden.shape == (3 * LENGTH, 24)
    with torch.no_grad():
        expected = plain(inputs).logits.flatten(0, 1).log_softmax(dim=-1)
    torch.testing.assert_close(dense_log_probabilities(soft, VOCAB, 1.0), expected, rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in plain.parameters())


def test_a_cap_is_found(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=VOCAB, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=12, final_logit_softcapping=2.0, initializer_range=0.5,
    )  # fmt: skip
    plain = transformers.Gemma2ForCausalLM(config).eval()
    inputs = torch.randint(VOCAB, (2, LENGTH))
    soft = CausalTeacher(plain).targets(inputs)
    assert (soft.table is not None, soft.cap) == (True, 2.0)
    with torch.no_grad():
        expected = plain(inputs).logits.flatten(0, 1).log_softmax(dim=-1)
    torch.testing.assert_close(dense_log_probabilities(soft, VOCAB, 1.0), expected, rtol=1e-4, atol=1e-4)


def test_logits_that_are_made_in_another_way_are_held_for_a_micro_batch(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CohereConfig(
        vocab_size=VOCAB, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, logit_scale=0.3,
    )  # fmt: skip
    plain = transformers.CohereForCausalLM(config).eval()
    inputs = torch.randint(VOCAB, (2, LENGTH))
    soft = CausalTeacher(plain).targets(inputs)
    assert (soft.table, soft.hidden.shape) == (None, (2 * LENGTH, VOCAB))
    with torch.no_grad():
        torch.testing.assert_close(soft.hidden, plain(inputs).logits.flatten(0, 1))


def test_a_token_before_each_sequence_is_the_teachers_only(folder: Path, model: CausalTeacher) -> None:
    inputs = torch.randint(VOCAB, (2, LENGTH))
    with_bos = CausalTeacher(model.model, bos_id=7).targets(inputs)
    longer = torch.cat([torch.full((2, 1), 7), inputs], dim=1)
    expected = model.targets(longer).hidden.unflatten(0, (2, LENGTH + 1))[:, 1:].flatten(0, 1)
    torch.testing.assert_close(with_bos.hidden, expected)


# The cache.


@pytest.mark.parametrize("changes", [{"samples": 20}, {"form": "top_k", "top_k": 7}, {"samples": 300}])
def test_cached_targets_are_those_of_the_teacher(
    folder: Path, data: Path, model: CausalTeacher, changes: dict[str, Any]
) -> None:
    """For every row of some batches: of top-k the very probabilities, of draws none more than one off."""
    wanted = settings(folder, temperature=1.5, **changes)
    for name in ("a", "b"):
        writer(wanted, model).write(data / name)
    batches = loader(data)
    cached = CachedTeacher(batches)
    for index in (0, 3):
        inputs = torch.from_numpy(batches.batch(index))[:, :-1]
        p = dense_log_probabilities(model.targets(inputs), VOCAB, 1.5).exp()
        whole = cached.targets(index, 0, inputs)
        assert isinstance(whole, SparseTargets)
        assert whole.ids.shape == whole.probs.shape == (ROWS * LENGTH, wanted.width)
        if wanted.form == "top_k":
            torch.testing.assert_close(whole.probs, p.gather(1, whole.ids), rtol=5e-3, atol=1e-5)
            torch.testing.assert_close(whole.tail, 1 - whole.probs.sum(-1), rtol=1e-3, atol=1e-3)
        else:
            kept = torch.zeros_like(p).scatter_add(1, whole.ids, whole.probs)
            assert (kept - p).abs().max() * wanted.samples < 1.001
            assert whole.entropy is not None
            torch.testing.assert_close(whole.entropy, torch.special.entr(p).sum(-1), rtol=2e-3, atol=2e-3)
        part = cached.targets(index, 2, inputs[2:3])
        torch.testing.assert_close(part.ids, whole.ids[2 * LENGTH : 3 * LENGTH])
    batches.close()


def test_a_kill_between_any_two_writes_ends_in_the_same_bytes(
    folder: Path, data: Path, model: CausalTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with units of other sizes the targets are the same."""
    wanted = settings(folder, samples=12)
    writer(wanted, model).write(data / "a")
    expected = files(data)
    assert len([name for name in expected if name.endswith(".safetensors")]) == 8
    writes = 0
    for stop in range(0, 18, 5):
        for path in (data / "a").glob("targets*"):
            if path.is_dir():
                for file in path.iterdir():
                    file.unlink()
            else:
                path.unlink()
        writes, real = 0, cache.write_json

        def failing(path: Path, value: Any, stop: int = stop, real: Any = real) -> None:
            nonlocal writes
            writes += 1
            if writes == stop + 1:
                raise KeyboardInterrupt
            real(path, value)

        with monkeypatch.context() as patch:
            patch.setattr(cache, "write_json", failing)
            if stop < 9:
                with pytest.raises(KeyboardInterrupt):
                    writer(wanted, model).write(data / "a")
                assert not (data / "a" / cache.LEDGER).exists()
        second = writer(wanted, model)
        second.write(data / "a")
        assert files(data) == expected
    third = writer(wanted)
    third.write(data / "a")
    assert third.tokens == 0
    other = settings(folder, samples=12, unit_tokens=1000)
    before = [cache.TargetStream(data / "a").read(i) for i in range(43)]
    writer(other, model).write(data / "a")
    assert len(list((data / "a" / "targets").iterdir())) == 2
    stream = cache.TargetStream(data / "a")
    for i in range(43):
        for a, b in zip(stream.read(i), before[i], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_damaged_unit_is_made_anew_and_named_before(folder: Path, data: Path, model: CausalTeacher) -> None:
    wanted = settings(folder, samples=12)
    writer(wanted, model).write(data / "a")
    expected = files(data)
    path = data / "a" / "targets" / "00003.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    writer(wanted, model).write(data / "a")
    assert files(data) == expected
    path.write_bytes(content[:200])
    with pytest.raises(ShardError, match=r"00003\.safetensors is missing or damaged .*: run `shard teach` again"):
        cache.TargetStream(data / "a").read(20)


def test_a_deadline_pauses_between_units(folder: Path, data: Path, model: CausalTeacher) -> None:
    assert writer(settings(folder), model).write(data / "a", deadline=0.0) is None
    assert not (data / "a" / cache.LEDGER).exists()


def test_targets_of_other_tokens_or_lengths_are_refused(folder: Path, data: Path, model: CausalTeacher) -> None:
    for name in ("a", "b"):
        writer(settings(folder), model).write(data / name)
    with pytest.raises(ShardError, match=r"is of sequences of 16 tokens and the stage has 8: run `shard teach` again"):
        CachedTeacher(BatchLoader(data, {"a": 1.0}, 8, 16, 4, seed=1))
    ledger = json.loads((data / "a" / "tokens.json").read_text())
    ledger["shards"][0]["sha256"] = "other"
    write_json(data / "a" / "tokens.json", ledger)
    with pytest.raises(ShardError, match=r"targets\.json belongs to other tokens"):
        CachedTeacher(loader(data))


def test_the_size_is_predicted(folder: Path, data: Path, model: CausalTeacher) -> None:
    """Of top-k exactly but for the header and the starts; of draws never more than the most."""
    for changes in ({"form": "top_k", "top_k": 9}, {"samples": 12}):
        wanted = settings(folder, unit_tokens=10_000, **changes)
        ledger = writer(wanted, model).write(data / "a")
        assert ledger is not None
        about, most = cache.predict_bytes(wanted, ledger["tokens"], VOCAB)
        overhead = 8 * (ledger["sequences"] + 1) + 400
        assert ledger["bytes"] <= most + overhead
        if wanted.form == "top_k":
            assert about == most
            assert ledger["bytes"] > most


# What is refused.


def test_another_vocabulary_is_one_line(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer.json"
    train_tokenizer(["entirely different words here, and more of them"] * 20, VOCAB).save(str(other))
    check_vocabulary(settings(folder), folder / "tokenizer.json")
    with pytest.raises(ShardError, match=r"has another vocabulary than this run: token \d+ is '.*' here and"):
        check_vocabulary(settings(folder), other)


def test_no_teacher_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"distillation\.teacher: there is no .*config\.json: give a folder"):
        load_teacher(settings(tmp_path / "none"), tmp_path / "tokenizer.json", CPU)


def test_a_licence_is_compared_with_the_card(folder: Path, tmp_path: Path) -> None:
    assert check_licence(settings(folder, licence="Apache-2.0")) == "apache-2.0"
    with pytest.raises(UsageError, match=r"the recipe says 'mit' and the teacher's own card says 'apache-2\.0'"):
        check_licence(settings(folder, licence="mit"))
    (tmp_path / "config.json").write_text("{}")
    assert check_licence(settings(tmp_path, licence="anything")) is None
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: gemma-terms\n---\n")
    assert check_licence(settings(tmp_path, licence="gemma-terms")) == "gemma-terms"


def test_the_hash_is_of_the_weights(folder: Path, tmp_path: Path) -> None:
    save_teacher(tmp_path)
    assert teacher_sha256(settings(tmp_path)) == teacher_sha256(settings(folder))
    save_teacher(tmp_path, seed=1)
    assert teacher_sha256(settings(tmp_path)) != teacher_sha256(settings(folder))


@pytest.mark.parametrize(
    ("changes", "step", "expected"),
    [
        ({"weight": 0.4}, 7, 0.4),
        ({"weight": 1.0, "weight_end": 0.0}, 0, 1.0),
        ({"weight": 1.0, "weight_end": 0.0}, 25, 0.75),
        ({"weight": 0.0, "weight_end": 0.5, "weight_steps": 10}, 5, 0.25),
        ({"weight": 0.0, "weight_end": 0.5, "weight_steps": 10}, 90, 0.5),
    ],
)
def test_the_schedule_of_the_weight(changes: dict[str, Any], step: int, expected: float) -> None:
    assert settings(Path("x"), **changes).weight_at(step, 100) == pytest.approx(expected)


def test_the_weights_of_a_teacher_count_where_memory_is_checked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An online one is held beside the student by each rank; a cached one is gone by then. Neither is loaded for it."""
    weights = load_teacher(settings(folder), folder / "tokenizer.json", CPU).num_parameters
    assert count_weights(settings(folder)) == weights
    config = Config(vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=2, head_dim=16, intermediate_size=48)
    alone = 2 * state_bytes(config) + checkpoint_bytes(config)
    monkeypatch.setattr("shard.environment.total_memory", lambda: alone + 2 * 4 * weights - 1)
    for targets, is_held in (("online", True), ("cached", False)):
        recipe = SimpleNamespace(config=config, distillation=settings(folder, targets=targets))
        run: Any = SimpleNamespace(recipe=recipe)
        check_memory(run, CPU, num_ranks=2)
        if is_held:
            with pytest.raises(ShardError, match="the teacher and a copy for a checkpoint take"):
                check_memory(run, CPU, num_ranks=2, with_teacher=True)
            check_memory(run, torch.device("cuda"), num_ranks=2, with_teacher=True)  # it lies on the GPU
        else:
            check_memory(run, CPU, num_ranks=2, with_teacher=True)
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ShardError, match="damaged"):
        count_weights(settings(damaged))
