"""One tiny run, trained once for all tests: what it leaves behind is read by many of them and changed by none."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_run import TINY, call


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="session")
def on_the_cpu() -> Iterator[None]:
    """The same device on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARD_DEVICE", "cpu")
        yield


@pytest.fixture
def shard(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`shard("run", folder)`: the command in this process, with what it printed."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = call(*arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty files of made-up words."""
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 7))) for _ in range(200)]
    for i in range(40):
        lines = (" ".join(rng.choices(words, k=10)) for _ in range(20))
        (folder / f"{i:02}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny(text_folder: Path) -> list[str]:
    """The arguments of the tiny recipe: put them after a verb, with an --out."""
    sets = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    return ["quickstart", "--data", str(text_folder), *sets]


@pytest.fixture(scope="session")
def finished_run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that went through every stage. Copy it before changing anything."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert call("run", *tiny, "--out", folder) == 0
    return folder


@pytest.fixture(scope="session")
def tokenized_run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run before its pretraining. Copy it before changing anything."""
    folder = tmp_path_factory.mktemp("tokenized") / "run"
    assert call("data", *tiny, "--out", folder) == 0
    return folder
