"""Checkpoints are whole and verified, or named as damaged; saving that fails leaves nothing behind."""

import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest
import torch

from shard.errors import ShardError
from shard.training import checkpoint as checkpoint_module
from shard.training.checkpoint import (
    FILES,
    MANIFEST,
    checkpoint_path,
    clear_leftovers,
    delete,
    list_steps,
    load_checkpoint,
    load_newest,
    prune,
    read_state,
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
    with pytest.raises(ShardError, match=r"step-00000005/manifest\.json is (missing or )?damaged"):
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
    real = checkpoint_module.write_tensors

    def failing(path, tensors):
        calls.append(path)
        digest = real(path, tensors)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")
        return digest

    monkeypatch.setattr(checkpoint_module, "write_tensors", failing)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert load_newest(tmp_path, pytest.fail).step == 1


def test_a_save_that_fails_keeps_the_one_it_would_replace(tmp_path, monkeypatch):
    save(tmp_path, 1, value=5.0)
    monkeypatch.setattr(checkpoint_module, "write_tensors", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
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
    ("kept", "left"),
    [
        (set(), [60]),
        ({60}, [60]),
        ({50}, [50, 60]),
        ({10, 30, 999}, [10, 30, 60]),
        (set(range(100)), [10, 20, 30, 40, 50, 60]),
    ],
)
def test_prune_keeps_what_it_is_told_and_the_newest(tmp_path, kept, left):
    for step in range(10, 70, 10):
        checkpoint_path(tmp_path, step).mkdir()
        (checkpoint_path(tmp_path, step) / "model.safetensors").write_text("")
    prune(tmp_path, kept)
    assert list_steps(tmp_path) == left
    assert len(list(tmp_path.iterdir())) == len(left), "nothing half-deleted stays"


def test_prune_an_empty_folder(tmp_path):
    prune(tmp_path, set())
    prune(tmp_path / "absent", {1})


def test_random_numbers_continue_where_they_stopped():
    torch.manual_seed(11)
    torch.rand(5)
    state = json.loads(json.dumps(rng_state()))
    expected = torch.rand(100), torch.randn(7)
    torch.manual_seed(0)
    set_rng_state(state)
    assert torch.equal(torch.rand(100), expected[0])
    assert torch.equal(torch.randn(7), expected[1])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_flipped_bit_anywhere_is_detected_and_named(tmp_path, name, seed):
    path = save(tmp_path, 5)
    content = bytearray((path / name).read_bytes())
    rng = random.Random(seed)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    (path / name).write_bytes(content)
    # A flip within the manifest may show as a hash that is not that of the file: the line says where that hash stands.
    with pytest.raises(ShardError, match=re.escape(f"step-00000005/{name} is") if name in FILES else "manifest"):
        load_checkpoint(path)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_file_cut_off_anywhere_is_detected_and_named(tmp_path, name, seed):
    path = save(tmp_path, 5)
    content = (path / name).read_bytes()
    # The last byte of the manifest is the end of its line, without which it is still whole.
    cut = random.Random(seed).randrange(len(content) - 1)
    (path / name).write_bytes(content[:cut])
    with pytest.raises(ShardError, match=re.escape(f"step-00000005/{name} is ")):
        load_checkpoint(path)


def test_a_folder_under_the_name_of_another_step_is_named(tmp_path):
    save(tmp_path, 5).rename(tmp_path / "step-00000006")
    with pytest.raises(ShardError, match=r"step-00000006/state\.json is not of this checkpoint: its step is 5"):
        load_checkpoint(tmp_path / "step-00000006")
    save(tmp_path, 4)
    warnings = []
    assert load_newest(tmp_path, warnings.append).step == 4
    assert len(warnings) == 1


def test_a_folder_under_a_name_of_its_own_may_hold_any_step(tmp_path):
    """As a release does."""
    save(tmp_path, 5).rename(tmp_path / "checkpoint")
    assert load_checkpoint(tmp_path / "checkpoint").step == 5


@pytest.mark.parametrize("step", [None, "5", 5.0])
def test_a_state_without_a_step_is_named(tmp_path, step):
    path = save(tmp_path, 5)
    (path / "state.json").write_text(json.dumps({"step": step} if step else {}))
    with pytest.raises(ShardError, match=r"state\.json is not of this checkpoint"):
        read_state(path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_checkpoint_is_named(tmp_path, name):
    here, there = save(tmp_path, 5), save(tmp_path, 6)
    shutil.copy(there / name, here / name)
    with pytest.raises(ShardError, match=re.escape(f"step-00000005/{name} is damaged")):
        load_checkpoint(here)


def test_a_json_file_of_absurd_size_is_not_read(tmp_path, monkeypatch):
    path = save(tmp_path, 5)
    monkeypatch.setattr(checkpoint_module, "LARGEST_JSON", 50)
    with pytest.raises(ShardError, match=r"manifest\.json is missing or damaged: it has more than 50 bytes"):
        load_checkpoint(path)


@pytest.mark.parametrize("half_of_the_new_one", [False, True])
def test_a_checkpoint_that_was_being_replaced_comes_back(tmp_path, half_of_the_new_one):
    """Killed between the two renames: the old one lies under a temporary name only."""
    save(tmp_path, 1)
    save(tmp_path, 2, value=5.0).rename(tmp_path / ".tmp-replaced-step-00000002")
    if half_of_the_new_one:
        (tmp_path / ".tmp-step-00000002").mkdir()
        (tmp_path / ".tmp-step-00000002" / "model.safetensors").write_text("half")
    assert load_newest(tmp_path, pytest.fail).model["w"][0, 0] == 5.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_what_kills_left_is_cleared(tmp_path):
    """A half-written one, a half-pruned one, and an old one whose successor is in place."""
    save(tmp_path, 2, value=6.0)
    for name in (".tmp-step-00000003", ".tmp-pruned-step-00000001", ".tmp-replaced-step-00000002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    clear_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]
    assert load_checkpoint(checkpoint_path(tmp_path, 2)).model["w"][0, 0] == 6.0


def test_a_deletion_that_is_cut_off_leaves_nothing_that_looks_damaged(tmp_path, monkeypatch):
    for step in (1, 2):
        save(tmp_path, step)
    monkeypatch.setattr(checkpoint_module.shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        delete(tmp_path, [2])
    monkeypatch.undo()
    assert list_steps(tmp_path) == [1]
    assert load_newest(tmp_path, pytest.fail).step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("fails_at", range(1, 7))
def test_a_flush_that_fails_leaves_one_whole_checkpoint(tmp_path, monkeypatch, fails_at):
    """A disk that gives an error at each fsync in turn, while a checkpoint of the same step is replaced: before the
    renames the old one stays, after them (the sixth) the new one is there.
    """
    save(tmp_path, 1, value=5.0)
    calls, fsync = [], os.fsync

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) == fails_at:
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        save(tmp_path, 1, value=6.0)
    monkeypatch.undo()
    assert load_newest(tmp_path, pytest.fail).model["w"][0, 0] == (6.0 if fails_at == 6 else 5.0)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("moment", [1, 2])
def test_a_rename_that_fails_leaves_one_whole_checkpoint(tmp_path, monkeypatch, moment):
    save(tmp_path, 1, value=5.0)
    calls, rename = [], Path.rename

    def failing(path, target):
        calls.append(path)
        if len(calls) == moment:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output error"):
        save(tmp_path, 1, value=6.0)
    monkeypatch.undo()
    assert load_newest(tmp_path, pytest.fail).model["w"][0, 0] == 5.0
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_only_the_wanted_are_looked_at(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    (checkpoint_path(tmp_path, 3) / "state.json").unlink()
    assert load_newest(tmp_path, pytest.fail, lambda step: step < 3).step == 2
    assert load_newest(tmp_path, pytest.fail, lambda step: step > 9) is None
