"""Checkpoints are whole and verified, or named as damaged; saving that fails leaves nothing behind."""

import json

import pytest
import torch

from shard.errors import ShardError
from shard.training import checkpoint as checkpoint_module
from shard.training.checkpoint import (
    FILES,
    checkpoint_path,
    list_steps,
    load_checkpoint,
    load_newest,
    prune,
    rng_state,
    save_checkpoint,
    set_rng_state,
)


def save(folder, step: int, value: float | None = None):
    value = float(step) if value is None else value
    model = {"w": torch.full((3, 2), value), "t": torch.arange(6.0).view(2, 3).T}
    optimizer = {"momentum.w": torch.full((3, 2), -value), "adam_step": torch.tensor(value)}
    return save_checkpoint(folder, step, model, optimizer, {"tokens": 10 * step, "note": "é"})


def test_comes_back_as_it_was(tmp_path):
    path = save(tmp_path / "new" / "checkpoints", 7)
    assert path == tmp_path / "new" / "checkpoints" / "step-00000007"
    loaded = load_checkpoint(path)
    assert (loaded.step, loaded.path) == (7, path)
    assert loaded.state == {"tokens": 70, "note": "é", "step": 7}
    assert torch.equal(loaded.model["w"], torch.full((3, 2), 7.0))
    assert torch.equal(loaded.model["t"], torch.arange(6.0).view(2, 3).T), "a transposed tensor keeps its order"
    assert torch.equal(loaded.optimizer["momentum.w"], torch.full((3, 2), -7.0))
    assert loaded.optimizer["adam_step"].shape == ()
    assert sorted(p.name for p in path.iterdir()) == sorted([*FILES, "manifest.json"])
    assert [p.name for p in path.parent.iterdir()] == ["step-00000007"]


def test_a_bf16_tensor_and_special_values_keep_their_bits(tmp_path):
    tensor = torch.tensor([float("inf"), -0.0, 1e-40, 3.14159]).bfloat16()
    fp32 = torch.tensor([float("-inf"), float("nan"), 1e-42, -0.0])
    path = save_checkpoint(tmp_path, 1, {"a": tensor, "b": fp32}, {}, {})
    loaded = load_checkpoint(path).model
    assert torch.equal(loaded["a"].view(torch.int16), tensor.view(torch.int16))
    assert torch.equal(loaded["b"].view(torch.int32), fp32.view(torch.int32))


def test_equal_content_gives_equal_files(tmp_path):
    a, b = save(tmp_path / "a", 3), save(tmp_path / "b", 3)
    for name in (*FILES, "manifest.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["flip first", "flip middle", "flip last", "truncate", "extend", "empty", "delete"])
def test_damage_is_detected_and_named(tmp_path, name, harm):
    path = save(tmp_path, 5)
    file = path / name
    data = bytearray(file.read_bytes())
    if harm.startswith("flip"):
        data[{"first": 0, "middle": len(data) // 2, "last": -1}[harm.split()[1]]] ^= 1
    file.write_bytes({"truncate": data[:-1], "extend": data + b"\0", "empty": b""}.get(harm, data))
    if harm == "delete":
        file.unlink()
    with pytest.raises(ShardError, match=f"step-00000005/{name} is (damaged|missing)"):
        load_checkpoint(path)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"sha256": 3}', '{"sha256": []}', "\udcff"])
def test_a_missing_or_damaged_manifest_is_named(tmp_path, text):
    path = save(tmp_path, 5)
    if text is None:
        (path / "manifest.json").unlink()
    else:
        (path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ShardError, match=r"step-00000005/manifest\.json is missing or damaged"):
        load_checkpoint(path)


def test_a_manifest_that_names_too_few_files_is_refused(tmp_path):
    path = save(tmp_path, 5)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]["optimizer.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match=r"optimizer\.safetensors is damaged"):
        load_checkpoint(path)


def test_newest_is_loaded(tmp_path):
    for step in (1, 30, 4):
        save(tmp_path, step)
    warnings = []
    assert load_newest(tmp_path, warnings.append).step == 30
    assert warnings == []


def test_falls_back_to_the_newest_good_one_and_says_so(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    (checkpoint_path(tmp_path, 3) / "manifest.json").unlink()
    (checkpoint_path(tmp_path, 2) / "model.safetensors").write_bytes(b"")
    warnings = []
    assert load_newest(tmp_path, warnings.append).step == 1
    assert len(warnings) == 2
    assert "step-00000003/manifest.json" in warnings[0]
    assert "step-00000002/model.safetensors is damaged" in warnings[1]
    assert all("older checkpoint" in text for text in warnings)


def test_nothing_to_load(tmp_path):
    warnings = []
    assert load_newest(tmp_path / "absent", warnings.append) is None
    assert load_newest(tmp_path, warnings.append) is None
    assert warnings == []
    save(tmp_path, 1)
    (checkpoint_path(tmp_path, 1) / "state.json").unlink()
    assert load_newest(tmp_path, warnings.append) is None
    assert len(warnings) == 1


def test_half_written_folders_are_not_checkpoints(tmp_path):
    save(tmp_path, 100_000_000)
    save(tmp_path, 2)
    for name in (".tmp-step-00000009", "step-9", "step-00000009.bak", "notes"):
        (tmp_path / name).mkdir()
    assert list_steps(tmp_path) == [2, 100_000_000]


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_save_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, fails_at):
    """A full disk: the error comes through, the older checkpoint stays good, and no half of a new one takes room."""
    save(tmp_path, 1)
    calls = []
    real = checkpoint_module.save_file

    def failing(tensors, path):
        calls.append(path)
        real(tensors, path)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", failing)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert load_newest(tmp_path, pytest.fail).step == 1


def test_a_save_that_fails_keeps_the_one_it_would_replace(tmp_path, monkeypatch):
    save(tmp_path, 1, value=5.0)
    monkeypatch.setattr(checkpoint_module, "save_file", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 1, value=6.0)
    assert load_checkpoint(checkpoint_path(tmp_path, 1)).model["w"][0, 0] == 5.0
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_replaces_one_of_the_same_step_and_what_a_killed_save_left(tmp_path):
    save(tmp_path, 1, value=5.0)
    (tmp_path / ".tmp-step-00000001").mkdir()
    (tmp_path / ".tmp-step-00000001" / "junk").write_text("half")
    save(tmp_path, 1, value=6.0)
    assert load_checkpoint(checkpoint_path(tmp_path, 1)).model["w"][0, 0] == 6.0
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "pinned", "left"),
    [
        (1, None, set(), [60]),
        (2, None, set(), [50, 60]),
        (9, None, set(), [10, 20, 30, 40, 50, 60]),
        (1, 20, set(), [20, 40, 60]),
        (1, 30, {10}, [10, 30, 60]),
        (2, None, {30, 999}, [30, 50, 60]),
    ],
)
def test_prune(tmp_path, keep_last, keep_every, pinned, left):
    for step in range(10, 70, 10):
        checkpoint_path(tmp_path, step).mkdir()
        (checkpoint_path(tmp_path, step) / "model.safetensors").write_text("")
    prune(tmp_path, keep_last, keep_every, pinned)
    assert list_steps(tmp_path) == left


def test_prune_an_empty_folder(tmp_path):
    prune(tmp_path, 2, None, set())
    prune(tmp_path / "absent", 2, None, set())


def test_random_numbers_continue_where_they_stopped():
    torch.manual_seed(11)
    torch.rand(5)
    state = json.loads(json.dumps(rng_state()))
    expected = torch.rand(100), torch.randn(7)
    torch.manual_seed(0)
    set_rng_state(state)
    assert torch.equal(torch.rand(100), expected[0])
    assert torch.equal(torch.randn(7), expected[1])
