"""A run folder: the resolved recipe, the manifest of its stages, and where everything lies.

    recipe.toml  manifest.json  decisions.json  tokenizer/  data/  pretrain/  anneal/
    evaluation.json  benchmark.json  release/

A stage is skipped when it is finished and its inputs are what they were. A folder made with another recipe is refused.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shard.data import documents, shards
from shard.data.settings import HubSource
from shard.errors import ShardError
from shard.files import fingerprint, read_json, sha256_of, write_json, write_text
from shard.recipe import Recipe

STAGES = ("tokenizer", "data", "pretrain", "anneal", "evaluate", "bench", "release")


class Run:
    """One run folder. `Run.open` finds or makes it."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe

    @classmethod
    def open(cls, folder: Path, recipe: Recipe | None = None) -> "Run":
        """The run in `folder`; with a recipe it is made if it is not there, and refused if it is of another recipe."""
        path = folder / "recipe.toml"
        if not path.is_file():
            if recipe is None:
                raise ShardError(
                    f"{folder} is not a run folder (it has no recipe.toml): start one with `shard run RECIPE`"
                )
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise ShardError(f"{folder} is neither empty nor a run folder: choose another --out")
            for name, source in recipe.sources.items():
                if isinstance(source, HubSource):  # before there is a folder that would hold on to this recipe
                    documents.refuse_hub_source(name, source)
            write_text(path, recipe.to_toml())
            return cls(folder, recipe)
        there = Recipe.load(str(path))
        if recipe is not None and recipe != there:
            raise ShardError(
                f"{folder} was made with another recipe ({_difference(there, recipe)}): choose another --out, "
                f"or go on with the old one by naming the folder instead of the recipe"
            )
        return cls(folder, there)

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

    # The manifest.

    @property
    def manifest(self) -> dict[str, Any]:
        """manifest.json as it stands."""
        path = self.folder / "manifest.json"
        if not path.exists():
            return {"recipe": self.recipe.name, "created": _now(), "stages": {}}
        manifest: dict[str, Any] = read_json(path, "restore it, or start again with another --out")
        return manifest

    def record(self, stage: str, **values: Any) -> None:
        """Add to what the manifest says of a stage."""
        manifest = self.manifest
        manifest["stages"].setdefault(stage, {}).update(values)
        write_json(self.folder / "manifest.json", manifest)

    def inputs(self, stage: str) -> str:
        """A fingerprint of everything that decides the result of a stage."""
        r = self.recipe
        documents_of = [sha for name in r.sources for sha in self._document_hashes(name)]
        tables = r.model_dump(mode="json")
        match stage:
            case "tokenizer":
                # What was collected is an output of this stage; what it is made from is in the recipe.
                keys = ("seed", "model", "tokenizer", "data", "sources")
                return fingerprint([tables[key] for key in keys], tables["pretrain"]["mix"], tables["anneal"]["mix"])
            case "data":
                return fingerprint(documents_of, sha256_of(self.tokenizer_path), tables["data"])
            case "pretrain" | "anneal":
                return fingerprint(
                    r.seed, r.config.to_dict(), tables[stage], self._token_hashes(), sha256_of(self.tokenizer_path)
                )
            case _:
                from shard.training.checkpoint import newest_checkpoint

                checkpoint = newest_checkpoint(self.folder)
                return fingerprint(
                    stage, sha256_of(checkpoint / "manifest.json"), tables["evaluate"], tables["release"], documents_of
                )

    def _document_hashes(self, source: str) -> list[str]:
        folder = self.data / source
        return list(documents.read_ledger(folder)["sha256"].values()) if (folder / documents.LEDGER).exists() else []

    def _token_hashes(self) -> list[str]:
        hashes = []
        for source in self.recipe.sources:
            ledger = read_json(self.data / source / shards.LEDGER, f"run `shard data {self.folder}`")
            hashes += [shard["sha256"] for shard in ledger["shards"]]
        return hashes

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
                return [self.tokenizer_path]
            case "data":
                return [self.data / name / shards.LEDGER for name in self.recipe.sources]
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
            self.record(name, status="interrupted")
            raise
        finally:
            # Seconds add up over interruptions.
            self.record(name, seconds=round(before + time.monotonic() - begun, 1))
        if self.manifest["stages"][name]["status"] == "running":
            hashes = {path.relative_to(self.folder).as_posix(): sha256_of(path) for path in self.outputs(name)}
            self.record(name, status="done", ended=_now(), inputs=self.inputs(name), outputs=hashes)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _difference(there: Recipe, here: Recipe) -> str:
    """The keys in which two recipes differ, the first few with both values."""
    a, b = _flat(there.model_dump(mode="json")), _flat(here.model_dump(mode="json"))
    keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    shown = [f"{key} is {a.get(key)!r} there and {b.get(key)!r} here" for key in keys[:3]]
    return ", ".join(shown) + (f", and {len(keys) - 3} more" if len(keys) > 3 else "")


def _flat(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
