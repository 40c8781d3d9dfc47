"""Checkpoints written beside the training: what is written is the state at save(), and failures come through."""

import threading
from collections.abc import Callable

import pytest
import torch

from shard.training import writer as writer_module
from shard.training.checkpoint import checkpoint_path, list_steps, load_checkpoint, save_checkpoint
from shard.training.writer import CheckpointWriter

PATIENCE = 20.0
"""Seconds that a thread is waited for, where waiting longer would mean a deadlock."""


def nothing() -> None:
    pass


def make(folder, before: Callable[[], None] = nothing, after: Callable[[], None] = nothing) -> CheckpointWriter:
    return CheckpointWriter(folder, before, after)


def tensors(value: float) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    model = {"w": torch.full((3, 2), value), "t": torch.full((2, 3), value).T}
    return model, {"w": torch.full((4,), -value), "adam_step": torch.tensor(value)}


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """Writing begins when it is opened."""
    opened = threading.Event()

    def blocked(*arguments):
        assert opened.wait(PATIENCE)
        return save_checkpoint(*arguments)

    monkeypatch.setattr(writer_module, "save_checkpoint", blocked)
    yield opened
    opened.set()


def test_what_is_written_is_the_state_at_save(tmp_path, gate):
    """The training changes the weights in place while the files are written, and save() does not wait for them."""
    writer, (model, optimizer) = make(tmp_path), tensors(1.0)
    state = {"tokens": 3, "skipped": [5], "guard": {"losses": [1.0]}}
    writer.save(1, model, optimizer, state)
    assert list_steps(tmp_path) == []
    assert writer.take_finished() == []
    for tensor in [*model.values(), *optimizer.values()]:
        tensor.fill_(77.0)
    state["skipped"].append(6)
    state["guard"]["losses"].append(2.0)
    state["tokens"] = 4
    gate.set()
    writer.wait()
    (saved,) = writer.take_finished()
    assert (saved.step, saved.error) == (1, None)
    assert saved.stall_seconds >= 0
    assert saved.write_seconds > 0
    loaded = load_checkpoint(checkpoint_path(tmp_path, 1))
    assert loaded.state == {"tokens": 3, "skipped": [5], "guard": {"losses": [1.0]}, "step": 1}
    for part, expected in zip((loaded.model, loaded.optimizer), tensors(1.0), strict=True):
        assert part.keys() == expected.keys()
        assert all(torch.equal(part[name], expected[name]) for name in part)


def test_a_second_save_waits_for_the_first(tmp_path, gate):
    """And does not touch the copy that is still being written."""
    writer = make(tmp_path)
    writer.save(1, *tensors(1.0), {})
    done = threading.Event()
    second = threading.Thread(target=lambda: (writer.save(2, *tensors(2.0), {}), done.set()))
    second.start()
    assert not done.wait(0.2)
    gate.set()
    second.join(PATIENCE)
    assert done.is_set()
    writer.wait()
    for step in (1, 2):
        assert load_checkpoint(checkpoint_path(tmp_path, step)).model["w"][0, 0] == step
    assert [saved.step for saved in writer.take_finished()] == [1, 2]
    assert writer.take_finished() == [], "each is told once"


def test_buffers_are_made_once(tmp_path):
    """Checkpoint after checkpoint takes no more memory than one."""
    writer = make(tmp_path)
    writer.save(1, *tensors(1.0), {})
    writer.wait()
    places = {name: buffer.data_ptr() for name, buffer in writer._buffers.items()}
    assert len(places) == 4, "a weight and its momentum have a copy each"
    writer.save(2, *tensors(2.0), {})
    writer.wait()
    assert {name: buffer.data_ptr() for name, buffer in writer._buffers.items()} == places


def test_before_comes_before_the_files_and_after_when_they_are_there(tmp_path):
    seen = []
    writer = make(
        tmp_path,
        lambda: seen.append(("before", list_steps(tmp_path))),
        lambda: seen.append(("after", list_steps(tmp_path))),
    )
    writer.save(1, *tensors(1.0), {})
    writer.wait()
    assert seen == [("before", []), ("after", [1])]


@pytest.mark.parametrize("where", ["before", "save"])
def test_a_full_disk_is_reported_and_the_older_checkpoint_stays(tmp_path, monkeypatch, where):
    full = False

    def fail_when_full(*arguments):
        if full:
            raise OSError(28, "No space left on device")
        return save_checkpoint(*arguments) if arguments else None

    pruned = []
    if where == "save":
        monkeypatch.setattr(writer_module, "save_checkpoint", fail_when_full)
    writer = make(tmp_path, fail_when_full if where == "before" else nothing, lambda: pruned.append(1))
    writer.save(1, *tensors(1.0), {})
    writer.wait()
    full = True
    writer.save(2, *tensors(2.0), {})
    writer.wait()
    good, bad = writer.take_finished()
    assert (good.step, good.error) == (1, None)
    assert bad.step == 2
    assert "No space left" in str(bad.error)
    assert pruned == [1], "nothing is deleted for a checkpoint that is not there"
    assert list_steps(tmp_path) == [1]
    full = False
    writer.save(3, *tensors(3.0), {})
    writer.wait()
    assert [(saved.step, saved.error) for saved in writer.take_finished()] == [(3, None)]
    assert list_steps(tmp_path) == [1, 3]


def test_a_mistake_of_ours_reaches_the_main_thread(tmp_path):
    writer = make(tmp_path)
    writer.save(1, *tensors(1.0), {"x": float("nan")})
    writer.wait()
    with pytest.raises(ValueError, match="not JSON compliant"):
        writer.take_finished()
    assert list(tmp_path.iterdir()) == []


def test_waiting_for_nothing(tmp_path):
    writer = make(tmp_path)
    writer.wait()
    assert writer.take_finished() == []


def test_a_thread_that_hangs_does_not_keep_the_process(tmp_path, gate):
    """A second Ctrl-C ends the process at once."""
    writer = make(tmp_path)
    writer.save(1, *tensors(1.0), {})
    (thread,) = [t for t in threading.enumerate() if t.name == "checkpoint"]
    assert thread.daemon
    gate.set()
    writer.wait()
