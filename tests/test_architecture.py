"""What imports what, read from the source: the order of the layers, and the four files that are published."""

import ast
import sys
from pathlib import Path

import pytest

import shard

SOURCE = Path(shard.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

LAYERS = [
    {"config", "model", "tokenizer", "muon"},
    {"units", "files", "errors", "console", "environment", "settings", "provenance", "lock", "signals"},
    {"kernels"},
    {"data", "training", "inference", "evaluation", "report", "distillation"},
    {"recipe"},
    {"run"},
    {
        "release",
        "status",
        "plan",
        "epochs",
        "verify",
        "fork",
        "resources",
        "train",
        "teach",
        "data_report",
        "ranks",
        "adopt",
    },
    {"stages"},
    {"cli"},
    {"__main__"},
]
"""From the bottom up. A file imports from its own layer and from those below, never from one above.

`settings` are the files of that name, wherever they lie: tables of a recipe, without torch.
"""

ALLOWED = {
    # The bits per byte of held-out text are a part of training, and evaluation uses training's loss.
    "data": {"data"},
    "training": {"training", "data", "evaluation", "inference"},
    "inference": {"inference", "training"},
    "evaluation": {"evaluation", "data", "inference", "training"},
    "report": {"report", "training"},
    "distillation": {"distillation", "training", "data"},
}
"""Within the fourth layer: which of its packages each may import."""

LAZY = {("run", "inference")}
"""Imports inside a function that reach across: run.py finds the newest checkpoint only when it is asked for."""


def unit_of(module: str) -> str:
    """ "shard.data.loader" -> "data"; "shard.data.settings" -> "settings"; "shard" -> ""."""
    parts = module.split(".")
    return "settings" if parts[-1] == "settings" else (parts[1] if len(parts) > 1 else "")


def module_of(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(file: Path, with_type_checking: bool = True) -> set[str]:
    """The modules that a file names in import statements, at any depth; relative imports are refused."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    if not with_type_checking:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                skipped |= {inner for statement in node.body for inner in ast.walk(statement)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            module = node.module or ""
            # `from shard.data import documents` imports the module shard.data.documents.
            for alias in node.names:
                path = SOURCE.parent / Path(*module.split("."), f"{alias.name}.py")
                found.add(f"{module}.{alias.name}" if path.is_file() else module)
    return found


def layer(unit: str) -> int:
    for number, units in enumerate(LAYERS):
        if unit in units:
            return number
    raise AssertionError(f"{unit} has no place in LAYERS yet: give it one")


def test_every_file_is_in_a_layer() -> None:
    assert len(FILES) > 30
    for file in FILES:
        if unit := unit_of(module_of(file)):
            layer(unit)


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_no_file_imports_upward(file: Path) -> None:
    here = unit_of(module_of(file))
    for module in imports_of(file):
        there = unit_of(module)
        if module.split(".")[0] != "shard" or not there or not here:
            continue
        if (here, there) in LAZY:
            continue
        assert layer(there) <= layer(here), f"{module_of(file)} imports {module}, which lies above it"
        if here in ALLOWED and there in set().union(*ALLOWED.values()):
            assert there in ALLOWED[here], f"{module_of(file)} imports {module}: {here} stands below {there}"


def test_nothing_below_imports_the_command_line_or_the_stages() -> None:
    for file in FILES:
        if unit_of(module_of(file)) not in ("cli", "__main__"):
            assert not {"shard.cli"} & imports_of(file), file
        if unit_of(module_of(file)) not in ("cli", "__main__", "stages"):
            assert not {"shard.stages"} & imports_of(file), file


def test_data_knows_nothing_of_training_and_does_not_need_torch() -> None:
    for file in (SOURCE / "data").rglob("*.py"):
        for module in imports_of(file):
            assert module.split(".")[0] != "torch", f"{file} imports torch"
            assert not module.startswith("shard.training"), file


@pytest.mark.parametrize("name", ["config", "model", "tokenizer", "muon"])
def test_the_published_four_need_only_torch_and_tokenizers(name: str) -> None:
    """They are copied into every release as they are, and run there without Shard."""
    outside = {
        module.split(".")[0]
        for module in imports_of(SOURCE / f"{name}.py", with_type_checking=False)
        if module.split(".")[0] not in sys.stdlib_module_names
    }
    assert outside <= {"torch", "tokenizers"}


def test_what_the_command_line_imports_at_its_top_is_light() -> None:
    """Everything heavy is imported inside the verb that needs it, so that --help answers at once."""
    tree = ast.parse((SOURCE / "cli.py").read_text(encoding="utf-8"))
    top = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {module for module in top if module and module.startswith("shard")} <= {
        "shard",
        "shard.console",
        "shard.environment",
        "shard.errors",
        "shard.signals",
        "shard.units",
    }


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_file_has_one_idea(file: Path) -> None:
    assert file.name not in ("utils.py", "util.py", "helpers.py", "misc.py", "common.py")
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 500


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_file_says_what_it_is_for(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
