"""A mixture of experts from a text to a bundle: trained, resumed from its middle, released, loaded with the lines of
its card.
"""

import io
import resource
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from pytest import MonkeyPatch
from safetensors import safe_open

from shard.release.card.loading import LOADING
from shard.training.checkpoint import checkpoint_path
from shard.training.metrics import read_jsonl

PRETRAIN = """
import sys
from pathlib import Path
from shard.console import Reporter
from shard.recipe import Recipe
from shard.run import Run
from shard.stages import pretrain
with Run.open(Path(sys.argv[1]), Recipe.load(sys.argv[2], sys.argv[4:])) as run:
    pretrain(run, Reporter(quiet=True), int(sys.argv[3]))
"""
RELEASE = """
import sys
from pathlib import Path
from shard.release.bundle import write_bundle
from shard.run import Run
with Run.open(Path(sys.argv[1])) as run:
    print(write_bundle(run)["left_out"])
"""


@dataclass(frozen=True)
class Outcome:
    """What a whole run left."""

    folder: Path
    text: str
    """What the published lines printed."""
    peak_bytes: int
    """Of the largest process."""
    left_out: str


def call(program: str, *arguments: object, folder: Path | None = None) -> str:
    """What a program printed, in a fresh interpreter."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def call_here(program: str, *arguments: object) -> str:
    """The same in this process, which starts at once."""
    printed = io.StringIO()
    with MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(sys, "argv", ["-c", *map(str, arguments)])
        exec(program, {"__name__": "__main__"})
    return printed.getvalue()


def assert_equal_files(one: Path, other: Path) -> None:
    """Two safetensors files hold the same bits; read tensor by tensor."""
    with safe_open(one, framework="pt") as a, safe_open(other, framework="pt") as b:
        assert set(a.keys()) == set(b.keys())
        for name in a.keys():  # noqa: SIM118
            assert torch.equal(a.get_tensor(name), b.get_tensor(name)), name


def run_mixture(
    folder: Path, recipe: str, sets: list[str], steps: int, new_tokens: int = 40, fresh: bool = False
) -> Outcome:
    """Train `steps` steps (twice as many are planned), then the second half once more from the checkpoint of the first:
    the same bits. Then the bundle, which the published lines load and continue a prompt with, in an interpreter of
    their own; `fresh`: the rest, too, so that the peak of memory is theirs.
    """
    execute = call if fresh else call_here
    half = steps // 2
    sets = [*sets, f"pretrain.steps={2 * steps}", f"pretrain.checkpoint_every={half}", "pretrain.decay_steps=0"]
    execute(PRETRAIN, folder, recipe, steps, *sets)
    checkpoints = folder / "pretrain" / "checkpoints"
    last, whole = checkpoint_path(checkpoints, steps), folder / "uninterrupted"
    before = [{**line, "timing": None} for line in read_jsonl(folder / "pretrain" / "metrics.jsonl")]
    last.rename(whole)
    execute(PRETRAIN, folder, recipe, steps, *sets)
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert_equal_files(whole / name, last / name)
    after = [{**line, "timing": None} for line in read_jsonl(folder / "pretrain" / "metrics.jsonl")]
    assert after == before and len(after) == steps
    left_out = execute(RELEASE, folder)
    program = f"import sys\nsys.modules['shard'] = None\n{LOADING}".replace("range(40)", f"range({new_tokens})")
    text = call(program, folder=folder / "release")
    peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return Outcome(folder, text, peak, left_out)
