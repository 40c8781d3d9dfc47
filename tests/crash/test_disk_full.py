"""A disk that is full, for real: training says so and ends, and the same command goes on once there is room."""

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from crashing import POLL, Life, assert_same, shard

from shard.training.checkpoint import list_steps, load_newest

STOP = 4
"""The step of the checkpoint that is there before the disk is full."""


def start_stopped(life: Life) -> None:
    """Train to STOP, after the stages before."""
    outcome = shard("pretrain", *life.recipe, "--out", life.folder, "--until", STOP)
    assert outcome.returncode == 0, outcome.stderr


def assert_said(code: int, errors: str, reason: str) -> None:
    """The system's reason is named, the last line says that the run ended, and nothing is a traceback."""
    assert code == 1, errors
    assert "Traceback" not in errors
    assert reason in errors, errors
    assert errors.splitlines()[-1].startswith("shard: "), errors


def assert_old_checkpoint_is_good(life: Life, least: int) -> None:
    """The newest one loads without a warning, and no half of another takes room."""
    folder = life.folder / "pretrain" / "checkpoints"
    assert [path.name for path in folder.iterdir() if ".tmp" in path.name] == []
    newest = load_newest(folder, pytest.fail)
    assert newest is not None
    assert newest.step == list_steps(folder)[-1] >= least


@pytest.mark.slow
def test_files_that_may_not_grow_stop_the_training_and_nothing_is_lost(reference: Life, tmp_path: Path) -> None:
    """RLIMIT_FSIZE: a write beyond it fails as it does on a full disk, but for the number of the error."""
    life = Life(tmp_path / "run", reference.recipe)
    start_stopped(life)
    newest = life.folder / "pretrain" / "checkpoints" / f"step-{STOP:08d}"
    limit = (newest / "model.safetensors").stat().st_size - 1000

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    outcome = shard(*life.arguments, preexec_fn=limited)
    assert_said(outcome.returncode, outcome.stderr, "File too large")
    assert_old_checkpoint_is_good(life, least=STOP)
    life.finish()
    assert_same(life.folder, reference.folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own, of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root may mount a small disk")
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"this machine lets root mount no tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_during_training_stops_it_and_nothing_is_lost(reference: Life, small_disk: Path) -> None:
    """Filled when the training has begun: before that, Shard would find too little room and refuse."""
    life = Life(small_disk / "run", reference.recipe)
    start_stopped(life)
    filler = small_disk / "filler"
    process = life.start()
    try:
        while process.poll() is None and life.manifest["pretrain"]["status"] != "running":
            time.sleep(POLL)
        # To the last byte, again and again: what a failed write frees is filled, too.
        with filler.open("wb", buffering=0) as file:
            while process.poll() is None:
                try:
                    file.write(bytes(2**16))
                except OSError:
                    time.sleep(POLL)
        code = process.wait(timeout=life.patience)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    errors = life.log.read_text(encoding="utf-8", errors="replace")
    filler.unlink()
    assert_said(code, errors, "No space left")
    assert_old_checkpoint_is_good(life, least=STOP)
    life.finish()
    assert_same(life.folder, reference.folder)
