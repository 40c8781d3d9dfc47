"""notebooks/colab.ipynb: run on a CPU with a tiny recipe, cut off, and run again; kept clean."""

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).parent.parent.parent / "notebooks" / "colab.ipynb"
SOURCE = Path(__file__).parent.parent.parent / "src"

# Of the libraries that drive a kernel.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def execute(folder: Path) -> dict[str, str]:
    """Run all cells in `folder`; what each printed, by its id."""
    notebook = read()
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return {
        cell.id: "".join(output.get("text", "") or str(output.get("data", "")) for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


@pytest.fixture
def environment(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, *options = tiny
    values = {
        "SHARD_RECIPE": recipe,
        "SHARD_OPTIONS": shlex.join(options),
        "SHARD_FOLDER": "drive",
        "SHARD_NAME": "tiny",
        "SHARD_INSTALL": "",
        "PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")]),
        # Nothing of the person who runs the tests.
        **{name: str(tmp_path / name) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")},
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("environment")
def test_a_session_that_is_cut_off_and_one_that_goes_on(
    tokenized_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drive holds a run whose session ended; the same cells begin nothing when there is no time, and finish it."""
    run = tmp_path / "drive" / "tiny"
    shutil.copytree(tokenized_run, run)
    monkeypatch.setenv("SHARD_MAX_TIME", "0s")
    printed = execute(tmp_path)
    assert "data: done already" in printed["train"] and "paused before pretrain" in printed["train"]
    assert "drive/tiny" in printed["drive"]
    assert "no checkpoint yet" in printed["sample"] and "no release yet" in printed["download"]
    assert "srcdoc=" in printed["report"]

    monkeypatch.setenv("SHARD_MAX_TIME", "10m")
    printed = execute(tmp_path)
    assert "data: done already" in printed["train"] and "pretrain 4/4" in printed["train"]
    assert json.loads((run / "manifest.json").read_text())["stages"]["release"]["status"] == "done"
    assert "To add 23 and 19, " in printed["sample"]
    assert (tmp_path / "tiny-release.zip").stat().st_size > 10_000


def test_it_starts_a_run_where_there_is_none_and_names_a_failure(tmp_path: Path) -> None:
    """The cell under Train, with the command itself replaced: a new run gets the recipe, a begun one its folder."""
    cells = {cell.id: cell.source for cell in read().cells if cell.cell_type == "code"}
    calls: list[list[str]] = []
    names: dict[str, Any] = {
        "run": tmp_path / "run",
        "shard": lambda *arguments: calls.append([str(argument) for argument in arguments]),
    }
    names |= {"RECIPE": "quickstart", "OPTIONS": ["--data", "texts"], "MAX_TIME": "3h"}
    exec(cells["train"], names)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").touch()
    exec(cells["train"], names)
    folder = str(tmp_path / "run")
    assert calls == [
        ["run", "quickstart", "--data", "texts", "--out", folder, "--max-time", "3h"],
        ["run", folder, "--max-time", "3h"],
    ]


def test_it_is_valid_and_clean() -> None:
    notebook = read()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None), cell.id
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert notebook.metadata.kernelspec.name == "python3" and "widgets" not in notebook.metadata
    for cell in notebook.cells:
        if cell.cell_type == "code":
            compile(cell.source, cell.id, "exec")
