"""The command in several processes, as torchrun starts it: a rank that is killed, signals, and what is said."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from crashing import ENVIRONMENT, PATIENCE, POLL, content, shard

from shard.training.metrics import read_jsonl

TRAINING = ["--set", "pretrain.steps=120", "--set", "pretrain.checkpoint_every=20", "--set", "pretrain.keep_last=100"]


@dataclass
class Launch:
    """torchrun on a run folder; each rank's stderr in a file of its own."""

    folder: Path
    size: int
    verb: Sequence[str] = ("pretrain",)
    restarts: int = 0
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.logs = self.folder.with_name(f"{self.folder.name}-logs-{time.monotonic_ns()}")
        options = ["--standalone", f"--nproc-per-node={self.size}", f"--max-restarts={self.restarts}"]
        logs = ["--log-dir", str(self.logs), "--redirects", "3"]
        environment = {key: value for key, value in ENVIRONMENT.items() if key != "OMP_NUM_THREADS"}
        with self.folder.with_name("torchrun.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    *options,
                    *logs,
                    "-m",
                    "shard",
                    *self.verb,
                    self.folder,
                ],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def rank(self, index: int) -> int:
        """The process of a rank: torchrun starts them in their order."""
        task = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        commands = {pid: Path(f"/proc/{pid}/environ").read_bytes() for pid in map(int, task.read_text().split())}
        (pid,) = (pid for pid, there in commands.items() if f"\0RANK={index}\0".encode() in b"\0" + there)
        return pid

    def wait_for(self, moment: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not moment():
            assert self.process.poll() is None, f"ended by itself: {self.said()}"
            assert time.monotonic() < end, "waited in vain for the moment"
            time.sleep(POLL)

    def end(self) -> int:
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.stop()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def said(self) -> list[str]:
        """Every line on the stderr of every rank, in all attempts."""
        logs = sorted(self.logs.rglob("stderr.log"))
        return [line for log in logs for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]

    def errors(self) -> list[str]:
        """What the ranks say of the end; there is no traceback among it."""
        lines = self.said()
        assert not [line for line in lines if "Traceback" in line or "Error" in line], lines
        return [line for line in lines if line.startswith("shard: ")]


def num_steps(folder: Path) -> int:
    path = folder / "pretrain" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def assert_same_training(run: Path, reference: Path) -> None:
    """Every file of every checkpoint, and the metrics."""
    for folder in (run, reference):
        assert len(list((folder / "pretrain" / "checkpoints").iterdir())) == 6
    for path in sorted((reference / "pretrain" / "checkpoints").rglob("*")):
        # A manifest holds the hash of state.json, in which there are times.
        if path.is_file() and path.name != "manifest.json":
            assert content(run / path.relative_to(reference)) == content(path), path
    ours, theirs = (read_jsonl(folder / "pretrain" / "metrics.jsonl") for folder in (run, reference))
    assert [{**m, "timing": 0} for m in ours] == [{**m, "timing": 0} for m in theirs]


@pytest.fixture(scope="module")
def prepared(recipe: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data are there."""
    folder = tmp_path_factory.mktemp("prepared") / "run"
    outcome = shard("data", *recipe, *TRAINING, "--out", folder)
    assert outcome.returncode == 0, outcome.stderr
    return folder


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by two ranks to the end."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(prepared, folder)
    launch = Launch(folder, 2)
    assert launch.end() == 0, launch.said()
    assert any("pretrain: 2 ranks, " in line for line in launch.said())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("index", [1, 0])
def test_a_killed_rank_restarts_all_and_ends_as_the_undisturbed_run(
    prepared: Path, undisturbed: Path, tmp_path: Path, index: int
) -> None:
    """torchrun --max-restarts=1: the rank that is killed takes the others with it, and all go on from a checkpoint."""
    folder = tmp_path / "run"
    shutil.copytree(prepared, folder)
    launch = Launch(folder, 2, restarts=1)
    try:
        launch.wait_for(lambda: num_steps(folder) >= 50)
        os.kill(launch.rank(index), signal.SIGKILL)
        assert launch.end() == 0, launch.said()
    finally:
        launch.stop()
    (said,) = launch.errors()
    assert "another rank ended or does not answer" in said
    assert "the same command goes on from what is saved" in said
    assert any("continues after step " in line for line in launch.said())
    assert_same_training(folder, undisturbed)


@pytest.mark.slow
def test_four_ranks_one_killed_end_as_one_process_within_rounding(prepared: Path, tmp_path: Path) -> None:
    folder, alone = tmp_path / "run", tmp_path / "alone"
    shutil.copytree(prepared, folder)
    shutil.copytree(prepared, alone)
    outcome = shard("pretrain", str(alone))
    assert outcome.returncode == 0, outcome.stderr
    launch = Launch(folder, 4, restarts=1)
    try:
        launch.wait_for(lambda: num_steps(folder) >= 50)
        os.kill(launch.rank(3), signal.SIGKILL)
        assert launch.end() == 0, launch.said()
    finally:
        launch.stop()
    assert len(launch.errors()) == 1
    ours, theirs = (read_jsonl(path / "pretrain" / "metrics.jsonl") for path in (folder, alone))
    assert len(ours) == len(theirs) == 120
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True)) < 0.02


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_the_same_command_goes_on(
    prepared: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(prepared, folder)
    launch = Launch(folder, 2)
    try:
        launch.wait_for(lambda: num_steps(folder) >= 50)
        os.kill(launch.process.pid, signal.SIGTERM)
        assert launch.end() != 0
    finally:
        launch.stop()
    (said,) = launch.errors()
    assert "pretrain: interrupted after step " in said
    step = int(said.split("after step ")[1].split()[0])
    saved = folder / "pretrain" / "checkpoints" / f"step-{step:08d}"
    assert saved.is_dir()
    again = Launch(folder, 2)
    assert again.end() == 0, again.said()
    if step % 20:
        shutil.rmtree(saved, ignore_errors=True)  # the one that the stop has left between two
    assert_same_training(folder, undisturbed)


@pytest.mark.slow
def test_a_whole_run_with_two_ranks_and_a_mistake(recipe: list[str], tmp_path: Path) -> None:
    """The other stages are the first rank's; a mistake is one line, whoever sees it."""
    launch = Launch(tmp_path / "run", 2, ("run", *recipe, "--out"))
    assert launch.end() == 0, launch.said()
    assert (tmp_path / "run" / "release" / "README.md").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
    launch = Launch(tmp_path / "another", 8, ("pretrain", *recipe, "--out"))
    assert launch.end() != 0
    (said,) = launch.errors()
    assert "8 ranks are more than the 4 sequences of a step" in said
