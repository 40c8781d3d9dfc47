"""A run folder: the resolved recipe, the manifest of its stages, and where everything lies.

    recipe.toml  manifest.json  decisions.json  tokenizer/  data/  pretrain/  anneal/
    evaluation.json  benchmark.json  release/  .lock

A stage is skipped when it is finished and its inputs are what they were. A folder made with another recipe is refused,
and so is one in which another process works.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from shard.data import documents, shards
from shard.data.adapters import format_of, pattern_of
from shard.data.settings import HubSource, TeacherSource, TextSource
from shard.data.teacher_text import read_prompts
from shard.data.workers import Workers
from shard.distillation import cache
from shard.errors import ShardError, UsageError
from shard.files import read_json, remove_leftovers, sha256_of, sync_folder, temporary_path, write_json, write_text
from shard.lock import LOCK_FILE, RunLock
from shard.provenance import describe_difference, fingerprint, flatten
from shard.recipe import Recipe

STAGES = ("tokenizer", "data", "pretrain", "anneal", "evaluate", "bench", "release")
"""Of every recipe; `stages_of` adds "teach" where the targets of a teacher are cached."""

RECIPE = "recipe.toml"
MANIFEST = "manifest.json"

# What a process that was killed while it made a run leaves in the folder.
_BEGUN = {LOCK_FILE, temporary_path(Path(RECIPE)).name}
# ... and what a run holds whose stages have made nothing.
_EMPTY = {LOCK_FILE, RECIPE, MANIFEST}

# Keys of a training stage that change no bit of its result: what is kept, and what is looked at.
_WITHOUT_EFFECT = {"keep_last", "keep_every", "sample_every", "sample_prompts", "sentinel_every"}
# The same of [distillation]; what the teacher is, its hash says.
_TEACHER_WITHOUT_EFFECT = {"teacher", "gguf_file", "licence", "unit_tokens"}


def stages_of(recipe: Recipe) -> tuple[str, ...]:
    """The stages that a run of this recipe has, in order."""
    first = STAGES.index("pretrain")
    teaches = recipe.distillation is not None and recipe.distillation.is_cached
    return (*STAGES[:first], "teach", *STAGES[first:]) if teaches else STAGES


def training_settings(recipe: Recipe, stage: str) -> dict[str, Any]:
    """What of a recipe decides the result of pretrain or anneal, beside the tokenizer and the data."""
    table = getattr(recipe, stage).model_dump(mode="json")
    teacher: dict[str, Any] = {}
    if recipe.distillation is not None and stage == "pretrain":
        keys = recipe.distillation.model_dump(mode="json")
        teacher["distillation"] = {key: value for key, value in keys.items() if key not in _TEACHER_WITHOUT_EFFECT}
    return flatten(
        {
            **teacher,
            "seed": recipe.seed,
            "model": recipe.config.to_dict(),
            stage: {key: value for key, value in table.items() if key not in _WITHOUT_EFFECT},
            # The order of sequences follows the order of the sources in the mix, which a table of keys does not show.
            f"{stage}.mix (order)": list(table["mix"]),
            "data.mixture_block": recipe.data.mixture_block,
        }
    )


class Run:
    """One run folder, locked until `close`. `Run.open` finds or makes it; `with` closes it."""

    def __init__(self, folder: Path, recipe: Recipe, lock: RunLock | None = None) -> None:
        """A run for reading; only `open` and `build` give one that holds the lock."""
        self.folder, self.recipe, self._lock = folder, recipe, lock
        self.workers = Workers.auto()
        """Who reads and tokenises documents."""
        self.track: tuple[str, ...] = ()
        """What else training copies its metrics to: see training/sinks.py."""

    @classmethod
    def open(cls, folder: Path, recipe: Recipe | None = None) -> "Run":
        """The run in `folder`; with a recipe it is made if it is not there, and refused if it is of another recipe.
        Where no stage has made anything the run takes the new one: a mistake in it was mended.
        """
        path = folder / RECIPE
        if not path.is_file():
            if recipe is None:
                raise ShardError(
                    f"{folder} is not a run folder (it has no recipe.toml): start one with `shard run RECIPE`"
                )
            if folder.exists() and (not folder.is_dir() or {entry.name for entry in folder.iterdir()} - _BEGUN):
                raise ShardError(f"{folder} is neither empty nor a run folder: choose another --out")
            _check_sources(recipe)
            folder.mkdir(parents=True, exist_ok=True)
        run_lock = RunLock(folder)
        try:
            remove_leftovers(folder)
            # Looked for again: another process may have made it before this one had the lock.
            there = Recipe.load(str(path)) if recipe is None or path.is_file() else None
            if there is not None and (recipe is None or recipe == there):
                return cls(folder, there, run_lock)
            assert recipe is not None
            if there is not None:
                if {entry.name for entry in folder.iterdir()} - _EMPTY:
                    difference = describe_difference(_flat(there), _flat(recipe))
                    raise ShardError(
                        f"{folder} was made with another recipe ({difference}): choose another --out, go on with the "
                        "old one by naming the folder instead of the recipe, or branch from it with --fork NEW"
                    )
                _check_sources(recipe)
                (folder / MANIFEST).unlink(missing_ok=True)
            run = cls(folder, recipe, run_lock)
            run._write_recipe()
            return run
        except BaseException:
            run_lock.release()
            raise

    @classmethod
    @contextmanager
    def build(cls, folder: Path, recipe: Recipe) -> Iterator["Run"]:
        """A new run that the block fills under a temporary name, and that takes its own when the block ends without
        an error: a kill in between leaves nothing in the way. It stays open, as after `open`.
        """
        final = folder.resolve()
        if final == Path.cwd() or (final.exists() and (not final.is_dir() or any(final.iterdir()))):
            raise ShardError(f"{folder} is not empty, or is the current folder: give the name of a new one")
        _check_sources(recipe)
        temporary = temporary_path(final)
        temporary.mkdir(parents=True, exist_ok=True)
        run = cls(temporary, recipe, RunLock(temporary))
        try:
            for leftover in temporary.iterdir():
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                elif leftover.name != LOCK_FILE:
                    leftover.unlink()
            yield run
            run._write_recipe()
            temporary.rename(final)
            sync_folder(final.parent)
            run.folder = folder
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            run.close()
            raise

    def close(self) -> None:
        """End the workers, and let other processes work in the folder."""
        self.workers.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_recipe(self) -> None:
        """What makes a folder a run."""
        path = self.folder / RECIPE
        write_text(path, self.recipe.to_toml())
        self.annotate(recipe_sha256=sha256_of(path))

    # Where things lie.

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer of the run."""
        return self.folder / "tokenizer" / "tokenizer.json"

    @property
    def data(self) -> Path:
        """One folder a source below it."""
        return self.folder / "data"

    @property
    def decisions_path(self) -> Path:
        """What probes decided."""
        return self.folder / "decisions.json"

    @property
    def mirror(self) -> Path | None:
        """A folder in the hub's layout that is read instead of the hub; the run remembers it."""
        mirror = self.manifest.get("mirror")
        return None if mirror is None else Path(mirror)

    @property
    def question_folders(self) -> list[Path]:
        """Where repositories of test questions may lie, as <owner>/<name>/<path>."""
        downloaded = self.folder / "evaluation-sets"
        return [downloaded] if self.mirror is None else [downloaded, self.mirror / "datasets"]

    def read_with(self, mirror: Path | None, workers: int | None, ray_address: str | None) -> None:
        """Say where documents are read from and who reads them, as far as is known; none of it changes the result."""
        if mirror is not None:
            if not (mirror / "datasets").is_dir():
                self.close()
                raise UsageError(f"--mirror {mirror}: it has no folder datasets, as DIR/datasets/<owner>/<name>/<path>")
            self.annotate(mirror=str(mirror.resolve()))
        if workers is not None or ray_address is not None:
            self.workers = Workers(count=workers or Workers.auto().count, ray_address=ray_address)

    # The manifest.

    @property
    def manifest(self) -> dict[str, Any]:
        """manifest.json as it stands."""
        path = self.folder / MANIFEST
        if not path.exists():
            return {"recipe": self.recipe.name, "created": _now(), "stages": {}}
        manifest: dict[str, Any] = read_json(path, "restore it, or start again with another --out")
        return manifest

    def record(self, stage: str, **values: Any) -> None:
        """Add to what the manifest says of a stage."""
        manifest = self.manifest
        manifest["stages"].setdefault(stage, {}).update(values)
        write_json(self.folder / MANIFEST, manifest)

    def annotate(self, **values: Any) -> None:
        """Add to what the manifest says of the run as a whole."""
        write_json(self.folder / MANIFEST, self.manifest | values)

    def inputs(self, stage: str) -> str:
        """A fingerprint of everything that decides the result of a stage."""
        return fingerprint(self.identity(stage))

    def identity(self, stage: str) -> dict[str, Any]:
        """Everything that decides the result of a stage, flat, by keys that a person can read."""
        r, tables = self.recipe, self.recipe.model_dump(mode="json")
        match stage:
            case "tokenizer":
                # What was collected is an output of this stage; what it is made from is in the recipe.
                weights = ("mix", "steps", "tokens_per_step")
                return flatten(
                    {key: tables[key] for key in ("seed", "tokenizer", "data", "sources")}
                    | {"sources (order)": list(r.sources), "model.vocab_size": r.config.vocab_size}
                    | {name: {key: tables[name][key] for key in weights} for name in ("pretrain", "anneal")}
                )
            case "data":
                settings = flatten({"data": tables["data"], "model.vocab_size": r.config.vocab_size})
                return settings | self._document_hashes() | self._tokenizer_hash()
            case "teach":
                return self._target_identity() | self._tokenizer_hash() | self._token_hashes("pretrain")
            case "pretrain" | "anneal":
                data = self._tokenizer_hash() | self._token_hashes(stage)
                return training_settings(r, stage) | data | (self._teacher_hashes() if stage == "pretrain" else {})
            case _:
                from shard.training.checkpoint import newest_checkpoint

                checkpoint = sha256_of(newest_checkpoint(self.folder) / "manifest.json")
                settings = flatten({"evaluate": tables["evaluate"], "release": tables["release"]})
                evaluation = self.folder / "evaluation.json"
                if stage == "release" and evaluation.is_file():
                    settings["evaluation (sha256)"] = sha256_of(evaluation)
                return settings | self._document_hashes() | {"checkpoint (sha256)": checkpoint}

    def _tokenizer_hash(self) -> dict[str, Any]:
        return {"tokenizer (sha256)": sha256_of(self.tokenizer_path)}

    def _document_hashes(self) -> dict[str, Any]:
        return {
            f"documents.{name} (sha256)": fingerprint(documents.read_ledger(self.data / name)["sha256"])
            for name in self.recipe.sources
            if (self.data / name / documents.LEDGER).exists()
        }

    def _token_hashes(self, stage: str) -> dict[str, Any]:
        """One hash over the shards of each source that a training stage reads."""
        hashes = {}
        for name, weight in getattr(self.recipe, stage).mix.items():
            if weight > 0:
                ledger = shards.read_token_ledger(self.data / name)
                hashes[f"data.{name} (sha256)"] = fingerprint([shard["sha256"] for shard in ledger["shards"]])
        return hashes

    # The teacher.

    def teacher_sha256(self) -> str:
        """Of the teacher's files; where they are gone, what the manifest keeps of them."""
        from shard.distillation.folder import teacher_sha256

        assert self.recipe.distillation is not None
        try:
            return teacher_sha256(self.recipe.distillation)
        except ShardError:
            if known := self.manifest.get("teacher", {}).get("sha256"):
                return str(known)
            raise

    def taught(self) -> list[str]:
        """The sources whose tokens pretraining reads, and a teacher is asked about."""
        return [name for name, weight in self.recipe.pretrain.mix.items() if weight > 0]

    def _target_identity(self) -> dict[str, Any]:
        r = self.recipe
        assert r.distillation is not None
        return cache.target_identity(r.distillation, self.teacher_sha256(), r.pretrain.sequence_length, r.seed)

    def _teacher_hashes(self) -> dict[str, Any]:
        """What decides the teacher's part of pretraining, beside the settings."""
        if self.recipe.distillation is None:
            return {}
        if not self.recipe.distillation.is_cached:
            return {"teacher (sha256)": self.teacher_sha256()}
        return {f"targets.{name} (sha256)": cache.targets_hash(self.data / name) for name in self.taught()}

    def is_done(self, stage: str) -> bool:
        """Whether a stage is finished with the inputs that it would have now, and its result is still there."""
        entry = self.manifest["stages"].get(stage, {})
        if entry.get("status") == "imported":
            return True
        try:
            is_current = entry.get("status") == "done" and entry.get("inputs") == self.inputs(stage)
            return is_current and self._has_result(stage)
        except (ShardError, OSError):
            return False

    def outputs(self, stage: str) -> list[Path]:
        """The files that stand for the result of a stage: each names, with its hash, the others that belong to it."""
        match stage:
            case "tokenizer":
                beside = [self.data / name / documents.LEDGER for name in self.recipe.sources]
                beside.append(self.tokenizer_path.with_name("sample.json"))
                return [self.tokenizer_path, *filter(Path.is_file, beside)]
            case "data":
                return [self.data / name / shards.LEDGER for name in self.recipe.sources]
            case "teach":
                return [self.data / name / cache.LEDGER for name in self.taught()]
            case "pretrain" | "anneal":
                checkpoints = sorted((self.folder / stage / "checkpoints").glob("step-*"))
                return [checkpoints[-1] / "manifest.json"] if checkpoints else []
            case "evaluate":
                return [self.folder / "evaluation.json"]
            case "bench":
                return [self.folder / "benchmark.json"]
            case _:
                return [self.folder / "release" / "SHA256SUMS"]

    def _has_result(self, stage: str) -> bool:
        """Whether the result of a stage is there: it may have been lost, or moved away to begin anew."""
        if stage == "data":
            for name in self.recipe.sources:
                shards.TokenStream.open(self.data / name)
        if stage == "teach":
            for name in self.taught():
                cache.TargetStream(self.data / name).check_files()
        outputs = self.outputs(stage)
        return bool(outputs) and all(path.is_file() for path in outputs)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record the start, the end and the time of a stage."""
        begun = time.monotonic()
        before = self.manifest["stages"].get(name, {}).get("seconds", 0.0)
        self.record(name, status="running", started=_now())
        try:
            yield
        except BaseException:
            with suppress(OSError):  # on a full disk, what stopped the stage is what must be said
                self.record(name, status="interrupted", seconds=round(before + time.monotonic() - begun, 1))
            raise
        # Seconds add up over interruptions.
        self.record(name, seconds=round(before + time.monotonic() - begun, 1))
        if self.manifest["stages"][name]["status"] == "running":
            hashes = {path.relative_to(self.folder).as_posix(): sha256_of(path) for path in self.outputs(name)}
            self.record(name, status="done", ended=_now(), inputs=self.inputs(name), outputs=hashes)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _flat(recipe: Recipe) -> dict[str, Any]:
    return flatten(recipe.model_dump(mode="json"))


def _check_sources(recipe: Recipe) -> None:
    """Before there is a folder that would hold on to this recipe."""
    for source in recipe.sources.values():
        if isinstance(source, HubSource | TextSource):
            format_of(source)
        if isinstance(source, HubSource):
            pattern_of(source)
        if isinstance(source, TeacherSource):
            read_prompts(source)
