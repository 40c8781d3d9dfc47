"""The documents say what the code does: keys and defaults, links, verbs, and a test for each promise."""

import ast
import dataclasses
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic import BaseModel, TypeAdapter

from shard.cli import app
from shard.config import Config
from shard.data.settings import (
    AnySource,
    CleanSettings,
    DataSettings,
    GeneratedSource,
    HubSource,
    InstalledSource,
    Source,
    TeacherSource,
    TextSource,
    TokenizerSettings,
)
from shard.distillation.settings import DistillationSettings
from shard.evaluation.settings import EvaluateSettings
from shard.recipe import NOT_INHERITED, Recipe
from shard.release.settings import ReleaseSettings
from shard.training.settings import StageSettings

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPE_TEXT = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")

TABLES: dict[str, type] = {
    "Top level": Recipe,
    "[model]": Config,
    "[tokenizer]": TokenizerSettings,
    "[data]": DataSettings,
    "[sources.NAME]": Source,
    "[sources.NAME.clean]": CleanSettings,
    'kind = "installed"': InstalledSource,
    'kind = "generated"': GeneratedSource,
    'kind = "text"': TextSource,
    'kind = "hub"': HubSource,
    'kind = "teacher"': TeacherSource,
    "[distillation]": DistillationSettings,
    "[pretrain] and [anneal]": StageSettings,
    "[evaluate]": EvaluateSettings,
    "[release]": ReleaseSettings,
}
"""Heading in docs/recipe.md -> the class whose keys the table below it lists."""

Row = list[str]


def rows(section: str) -> list[Row]:
    """The cells of every row of the tables in a section, without their heads."""
    found: list[Row] = []
    lines = [line for line in section.splitlines() if line.startswith("|")]
    for i, line in enumerate(lines):
        is_head = i + 1 < len(lines) and re.fullmatch(r"[| -]+", lines[i + 1])
        if not is_head and not re.fullmatch(r"[| -]+", line):
            found.append([cell.strip() for cell in line.strip().strip("|").split(" | ")])
    return found


def sections(text: str) -> dict[str, str]:
    """Heading -> what stands below it, to the next heading. Code blocks hold no headings."""
    parts = re.split(r"^#{1,3} (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def documented(heading: str) -> dict[str, Row]:
    """Key -> its row in a table of docs/recipe.md."""
    table = rows(sections(RECIPE_TEXT)[heading])
    keys = [row[0] for row in table]
    assert len(set(keys)) == len(keys), f"{heading}: a key stands there twice"
    for row in table:
        assert re.fullmatch(r"`\w+`", row[0]), f"{heading}: {row[0]} is not a key in backticks"
    return {row[0].strip("`"): row for row in table}


def real_keys(table: type) -> dict[str, tuple[Any, Any]]:
    """Key -> (its type, its default, or `...` where the recipe must say it)."""
    if issubclass(table, BaseModel):
        found: dict[str, tuple[Any, Any]] = {}
        for name, field in table.model_fields.items():
            default = ... if field.is_required() else field.get_default(call_default_factory=True)
            # With its metadata, the type of a size reads "1GB" as a recipe does.
            found[name] = (field.rebuild_annotation(), default)
        return found
    return {field.name: (field.type, field.default) for field in dataclasses.fields(table)}


def choices(kind: Any) -> Iterator[str]:
    """The strings of every Literal in a type."""
    for argument in get_args(kind):
        if isinstance(argument, str):
            yield argument
        else:
            yield from choices(argument)


def tables_in(table: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The tables that the keys of a table may hold."""
    for field in table.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield kind


CASES = [(heading, key) for heading, table in TABLES.items() for key in real_keys(table)]


@pytest.mark.parametrize(("heading", "key"), CASES)
def test_every_key_is_documented_with_its_default(heading: str, key: str) -> None:
    table = TABLES[heading]
    listed = documented(heading)
    if issubclass(table, Source) and table is not Source:
        listed = documented("[sources.NAME]") | listed
    kind, default = real_keys(table)[key]
    assert key in listed, f"docs/recipe.md, {heading}: {key} is missing"
    _, values, shown, *_ = listed[key]
    assert len(listed[key]) == 4
    if default is ...:
        assert shown == "required"
    elif isinstance(default, BaseModel):
        literal = tomllib.loads(f"x = {shown.strip('`')}")["x"]
        assert TypeAdapter(kind).validate_python(literal) == default
        assert literal == default.model_dump(exclude_defaults=True), "only what differs from the table's own"
    elif default is None:
        assert shown == "none"
    else:
        assert re.fullmatch("`.+`", shown), f"{key}: the default is {default!r}"
        literal = tomllib.loads(f"x = {shown.strip('`')}")["x"]
        read = literal if table is Config else TypeAdapter(kind).validate_python(literal)
        assert (read, type(read)) == (default, type(default))
        assert isinstance(literal, bool) == isinstance(default, bool), "pydantic would take 1 for true"
    for choice in choices(kind) if table is not Config else ():
        assert f'`"{choice}"`' in values, f"{key}: the choice {choice} is missing"


@pytest.mark.parametrize("heading", TABLES)
def test_every_documented_key_exists(heading: str) -> None:
    assert documented(heading).keys() <= real_keys(TABLES[heading]).keys()


def test_every_table_of_a_recipe_has_its_section() -> None:
    """A table or a kind of source that is added to the code has to be added here, and to the page."""
    kinds_of_keys = [(field.annotation, *get_args(field.annotation)) for field in Recipe.model_fields.values()]
    used = {kind for kinds in kinds_of_keys for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)}
    kinds = set(get_args(get_args(AnySource)[0]))
    inner = {table for kind in kinds for table in tables_in(kind)}
    assert set(TABLES.values()) == used | kinds | inner | {Recipe, Config, Source}


def test_what_anneal_does_not_take_over_is_documented() -> None:
    assert documented("What [anneal] takes over").keys() == NOT_INHERITED


def test_the_recipe_of_the_page_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "notes.toml"
    (block,) = re.findall(r"```toml\n(.*?)```", RECIPE_TEXT, flags=re.DOTALL)
    path.write_text(block, encoding="utf-8")
    recipe = Recipe.load(str(path))
    assert recipe.anneal.mix == recipe.pretrain.mix
    assert recipe.anneal.decay_steps == recipe.anneal.steps == 120


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_set_that_is_shown_is_valid(document: Path) -> None:
    blocks = re.findall(r"```console\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for line in "".join(blocks).splitlines():
        words = shlex.split(line, comments=True)
        sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        if sets:
            Recipe.load(next(word for word in words if word in ("quickstart", "shard-40m-v1")), sets)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_to_a_file(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    for target in targets:
        if not re.match(r"[a-z]+:|#", target):
            assert (document.parent / target.partition("#")[0]).exists(), f"{document.name}: {target}"


def test_the_verbs_of_the_readme_are_those_of_the_command_line() -> None:
    table = rows(sections((ROOT / "README.md").read_text(encoding="utf-8"))["The verbs"])
    listed = [verb for row in table for verb in re.findall(r"`shard (\w+)", row[0])]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert sorted(listed) == sorted(commands)


# What is promised.

PROMISES = rows((ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"))


def test_there_are_promises() -> None:
    assert len(PROMISES) >= 10


@pytest.mark.parametrize("row", PROMISES, ids=lambda row: row[0][:50])
def test_every_promise_is_kept_by_tests_that_exist(row: Row) -> None:
    promise, cell = row
    names = re.findall(r"`([^`]+)`", cell)
    assert names, f"{promise}: no test"
    for name in names:
        path, colons, function = name.partition("::")
        assert colons, f"{name}: write it as tests/test_x.py::test_y"
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in functions, f"{promise}: {name} does not exist"
        assert function.startswith("test_")
