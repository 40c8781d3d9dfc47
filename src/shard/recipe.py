"""A recipe: one TOML file that holds every stage of one model, validated before any work.

The tables are declared where they are used (model: config.py, data/settings.py, training/settings.py, ...); this
file puts them together, applies `--set` and `--data`, checks what concerns several tables, and words the errors.
"""

import difflib
import json
import math
import tomllib
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from shard.config import LARGEST, Config
from shard.data.settings import AnySource, DataSettings, Table, TeacherSource, TextSource, TokenizerSettings
from shard.distillation.settings import DistillationSettings
from shard.errors import UsageError
from shard.evaluation.settings import EvaluateSettings
from shard.release.settings import ReleaseSettings
from shard.training.settings import StageSettings

NOT_INHERITED = {"steps", "warmup_steps", "decay_steps", "mix", "muon_momentum_warmup_steps"}
"""Keys that [anneal] does not take over from [pretrain]."""


class Recipe(Table):
    """Everything that decides a run. `Recipe.load` reads one; `to_toml` writes the resolved one."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    model: Annotated[dict[str, Any], Field(default_factory=dict)]
    tokenizer: TokenizerSettings = TokenizerSettings()
    data: DataSettings = DataSettings()
    sources: Annotated[dict[str, AnySource], Field(min_length=1)]
    pretrain: StageSettings
    anneal: StageSettings
    distillation: DistillationSettings | None = None
    evaluate: EvaluateSettings = EvaluateSettings()
    release: ReleaseSettings = ReleaseSettings()

    @property
    def config(self) -> Config:
        """The model's shape."""
        return Config(**self.model)

    @model_validator(mode="after")
    def _check_across_tables(self) -> Self:
        known = {field.name for field in fields(Config)}
        for key in self.model:
            if key not in known:
                raise ValueError(f"model.{key}: unknown key{_nearest(key, known)}")
        vocab_size = self.model.get("vocab_size")
        if isinstance(vocab_size, int) and not 257 <= vocab_size <= LARGEST["vocab_size"]:
            raise ValueError(f"model.vocab_size: must lie between 257 and {LARGEST['vocab_size']}, not {vocab_size}")
        try:
            config = self.config
        except (TypeError, ValueError) as error:
            raise ValueError(f"model: {error}") from None
        for name in self.sources:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"sources.{name}: a name is made of letters, digits, - and _, since it names a folder")
        for table in ("pretrain", "anneal"):
            self._check_stage(table, getattr(self, table), config)
        if self.distillation is not None and self.distillation.width > config.vocab_size:
            raise ValueError(
                f"distillation.{self.distillation.width_key}: {self.distillation.width} is beyond model.vocab_size = "
                f"{config.vocab_size}"
            )
        return self

    def _check_stage(self, table: str, stage: StageSettings, config: Config) -> None:
        for source in stage.mix:
            if source not in self.sources:
                raise ValueError(f"{table}.mix.{source}: no such source{_nearest(source, set(self.sources))}")
        if not sum(stage.mix.values()) > 0 or not math.isfinite(sum(stage.mix.values())):
            raise ValueError(f"{table}.mix: at least one weight must be above zero")
        if stage.sequence_length > config.max_sequence_length:
            raise ValueError(
                f"{table}.sequence_length: {stage.sequence_length} is beyond model.max_sequence_length = "
                f"{config.max_sequence_length}"
            )
        if stage.tokens_per_step % stage.sequence_length:
            raise ValueError(
                f"{table}.tokens_per_step: {stage.tokens_per_step} is not a multiple of "
                f"{table}.sequence_length = {stage.sequence_length}"
            )
        if stage.decay_steps > stage.steps:
            raise ValueError(f"{table}.decay_steps: {stage.decay_steps} is more than steps = {stage.steps}")

    @classmethod
    def load(cls, name_or_path: str, overrides: list[str] | None = None, data: Path | None = None) -> Self:
        """Read a packaged recipe by its name, or a file by its path; `overrides` are "a.b=value", `data` replaces the
        sources by local text. Raises UsageError, one line, for anything that is not valid.
        """
        origin, text = _read(name_or_path)
        try:
            tables = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # tomllib lets int() and deep nesting fail in their own way
            raise UsageError(f"{origin}: not valid TOML: {error}") from None
        for override in overrides or []:
            _apply_override(tables, override)
        if data is not None:
            if not data.exists():
                raise UsageError(f"--data {data} does not exist: give a file or folder of text")
            tables["sources"] = {"text": {"kind": "text", "path": str(data.absolute())}}
            for stage in ("pretrain", "anneal"):
                if isinstance(tables.get(stage), dict):
                    tables[stage]["mix"] = {"text": 1.0}
        _inherit(tables)
        try:
            recipe = cls.model_validate(tables)
        except ValidationError as error:
            raise UsageError(f"{origin}: {_one_line(error)}") from None
        return recipe._with_absolute_paths(Path(origin).parent if Path(origin).is_file() else Path.cwd())

    def _with_absolute_paths(self, folder: Path) -> Self:
        """A path in a recipe file is relative to that file; the run folder must not depend on where it was read."""
        sources = dict(self.sources)
        for name, source in self.sources.items():
            if isinstance(source, TextSource):
                path = str((folder / Path(source.path).expanduser()).absolute())
                sources[name] = source.model_copy(update={"path": path})
            elif isinstance(source, TeacherSource) and source.prompts_file is not None:
                path = str((folder / Path(source.prompts_file).expanduser()).absolute())
                sources[name] = source.model_copy(update={"prompts_file": path})
        changes: dict[str, Any] = {"sources": sources}
        if self.distillation is not None:
            teacher = str((folder / Path(self.distillation.teacher).expanduser()).absolute())
            changes["distillation"] = self.distillation.model_copy(update={"teacher": teacher})
        return self.model_copy(update=changes)

    def to_toml(self) -> str:
        """The resolved recipe, complete, as TOML that `load` reads back to an equal one."""
        return _to_toml(self.model_dump(mode="json", exclude_none=True))


def packaged_recipes() -> dict[str, str]:
    """Name -> text of the recipes that come with Shard."""
    folder = resources.files("shard") / "recipes"
    return {
        entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8")
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".toml")
    }


def _read(name_or_path: str) -> tuple[str, str]:
    """Where a recipe came from, and its text."""
    recipes = packaged_recipes()
    if name_or_path in recipes:
        return name_or_path, recipes[name_or_path]
    path = Path(name_or_path)
    if path.is_file():
        try:
            return str(path), path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read as a recipe: {error}") from None
    raise UsageError(
        f"no recipe {name_or_path!r}{_nearest(name_or_path, set(recipes))}; packaged are {', '.join(recipes)}, "
        "or give the path of a .toml file"
    )


def _apply_override(tables: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UsageError(f"--set {override}: write it as table.key=value, as in --set pretrain.steps=200")
    try:
        literal = tomllib.loads(f"x = {value}")
    except (ValueError, RecursionError):
        literal = {}
    # More keys than x: the value has line breaks, and is text.
    parsed = literal["x"] if literal.keys() == {"x"} else value.strip()
    table = tables
    for name in path[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {override}: {name} is not a table")
    table[path[-1]] = parsed


def _inherit(tables: dict[str, Any]) -> None:
    pretrain, anneal = tables.get("pretrain"), tables.get("anneal")
    if isinstance(pretrain, dict) and isinstance(anneal, dict):
        for key, value in pretrain.items():
            if key not in NOT_INHERITED:
                anneal.setdefault(key, value)
        anneal.setdefault("mix", pretrain.get("mix", {}))
        anneal.setdefault("muon_momentum_warmup_steps", 0)  # the momentum itself comes from pretrain, warmed up
        steps, warmup_steps = anneal.get("steps"), anneal.get("warmup_steps", 0)
        if isinstance(steps, int) and isinstance(warmup_steps, int):
            anneal.setdefault("decay_steps", max(0, steps - warmup_steps))


def _nearest(name: str, known: set[str]) -> str:
    matches = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else f" (known: {', '.join(sorted(known))})"


def _fields_at(location: tuple[str | int, ...]) -> set[str]:
    """The keys that the table at `location` of a validation error takes."""
    tables: list[type[BaseModel]] = [Recipe]
    for part in location:
        found: list[type[BaseModel]] = []
        for table in tables:
            field = table.model_fields.get(str(part))
            kinds = () if field is None else (field.annotation, *get_args(field.annotation))
            found += [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not found and location[0] == "sources" and len(location) > 2:
            kinds = AnySource.__origin__.__args__  # type: ignore[attr-defined]
            found = [kind for kind in kinds if kind.model_fields["kind"].annotation.__args__[0] == location[2]]
            tables = found
            break
        tables = found
    return {name for table in tables for name in table.model_fields}


def _one_line(error: ValidationError) -> str:
    """Every mistake of a validation, joined into one line, with its place."""
    lines = []
    for mistake in error.errors():
        location = mistake["loc"]
        # The branch of a union (a source's kind, micro_batch) stands in the location, but not in the file.
        is_union = location[:1] == ("sources",) or location[1:2] == ("micro_batch",)
        shown = [part for i, part in enumerate(location) if not (i == 2 and is_union)]
        place = ".".join(str(part) for part in shown)
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden":
            message = f"unknown key{_nearest(str(location[-1]), _fields_at(location[:-1]))}"
        elif mistake["type"] == "missing":
            message = "is missing"
        elif "input" in mistake and isinstance(mistake["input"], str | int | float | bool):
            message = f"{message}, not {mistake['input']!r}" if "not " not in message else message
        # What [anneal] took over from [pretrain] is one mistake, not two.
        if place.startswith("anneal.") and f"pretrain.{place.removeprefix('anneal.')}: {message}" in lines:
            continue
        lines.append(f"{place}: {message}" if place else message)
    return "; ".join(dict.fromkeys(lines))


def _to_toml(tables: dict[str, Any], prefix: str = "") -> str:
    """TOML of nested dicts of strings, numbers, booleans and lists: JSON's notation of these is valid TOML."""
    plain = {key: value for key, value in tables.items() if not isinstance(value, dict)}
    lines = [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in plain.items()]
    text = "\n".join(lines) + "\n" if lines else ""
    for key, value in tables.items():
        if isinstance(value, dict):
            path = f"{prefix}{_toml_key(key)}"
            text += f"\n[{path}]\n{_to_toml(value, path + '.').lstrip(chr(10))}"
    return text


def _toml_key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else json.dumps(key)


def _toml_value(value: Any) -> str:
    # TOML knows no \/ and no surrogate pairs: ensure_ascii=False keeps characters as they are. DEL must be escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
