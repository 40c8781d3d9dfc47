"""The folder of a teacher, looked at without loading the model: what it is, its vocabulary, its licence."""

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from shard.distillation.settings import DistillationSettings
from shard.errors import ShardError, UsageError
from shard.files import sha256_of
from shard.provenance import fingerprint

_DECIDING = ("*.safetensors", "*.bin", "config.json")
CARD = "README.md"


def teacher_folder(settings: DistillationSettings) -> Path:
    """Where the teacher is; ShardError where there is none."""
    folder = Path(settings.teacher)
    wanted = folder / (settings.gguf_file or "config.json")
    if not wanted.is_file():
        raise ShardError(
            f"distillation.teacher: there is no {wanted}: give a folder with a model as transformers saves it "
            "(`hf download ORG/NAME --local-dir FOLDER` makes one)"
        )
    return folder


def teacher_sha256(settings: DistillationSettings) -> str:
    """One hash over the files that decide what a teacher says."""
    folder = teacher_folder(settings)
    if settings.gguf_file is not None:
        files = [folder / settings.gguf_file]
    else:
        files = sorted({path for pattern in _DECIDING for path in folder.glob(pattern)})
    return fingerprint([(path.name, _sha256(path, path.stat().st_size, path.stat().st_mtime_ns)) for path in files])


def count_weights(settings: DistillationSettings) -> int:
    """How many weights the teacher has, by the headers of its files; of torch's own format at least so many."""
    folder = teacher_folder(settings)
    if settings.gguf_file is not None:
        return sum(int(tensor.n_elements) for tensor in _gguf(folder / settings.gguf_file).tensors)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return sum(path.stat().st_size for path in folder.glob("*.bin")) // 4
    return sum(_count_in(path) for path in files)


def _count_in(path: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise ShardError(f"distillation.teacher: {path} is damaged ({error})") from None


@lru_cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Gigabytes: once in a process, while the file stays as it is."""
    return sha256_of(path)


def card_licence(settings: DistillationSettings) -> str | None:
    """The licence that the teacher's own card or file names; None where it has none that can be read."""
    folder = teacher_folder(settings)
    if settings.gguf_file is not None:
        found = gguf_field(folder / settings.gguf_file, "general.license")
    elif (folder / CARD).is_file():
        from huggingface_hub import metadata_load

        try:
            metadata = metadata_load(folder / CARD) or {}
        except Exception:  # a card is text by anybody
            return None
        found = metadata.get("license_name") if metadata.get("license") == "other" else metadata.get("license")
    else:
        found = None
    return found if isinstance(found, str) else None


def check_licence(settings: DistillationSettings) -> str | None:
    """What the teacher's card says, if it has one; UsageError where the recipe says something else."""
    found = card_licence(settings)
    if found is not None and found.strip().lower() != settings.licence.strip().lower():
        raise UsageError(
            f"distillation.licence: the recipe says {settings.licence!r} and the teacher's own card says {found!r}: "
            "write what the card says"
        )
    return found


def check_vocabulary(settings: DistillationSettings, tokenizer: Path) -> None:
    """ShardError where a token of the student's has another id in the teacher's vocabulary, or none."""
    ours = _vocabulary(json.loads(tokenizer.read_text(encoding="utf-8")))
    theirs = _teacher_vocabulary(settings)
    for token_id, token in sorted(ours.items()):
        if theirs.get(token_id) != token:
            raise ShardError(
                f"distillation.teacher: {settings.teacher} has another vocabulary than this run: token {token_id} is "
                f"{token!r:.40} here and {theirs.get(token_id)!r:.40} there; a teacher of logits needs a run that "
                "adopts its tokenizer"
            )


def _vocabulary(tokenizer: dict[str, Any]) -> dict[int, str]:
    """Id -> token of a tokenizer.json."""
    added = {int(token["id"]): str(token["content"]) for token in tokenizer.get("added_tokens", [])}
    return {int(token_id): str(token) for token, token_id in tokenizer["model"]["vocab"].items()} | added


def _teacher_vocabulary(settings: DistillationSettings) -> dict[int, str]:
    folder = teacher_folder(settings)
    if settings.gguf_file is not None:
        return dict(enumerate(gguf_field(folder / settings.gguf_file, "tokenizer.ggml.tokens") or []))
    path = folder / "tokenizer.json"
    try:
        return _vocabulary(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShardError(
            f"distillation.teacher: {path} is missing or damaged ({type(error).__name__}): the vocabulary is compared "
            "by it"
        ) from None


def gguf_field(path: Path, name: str) -> Any:
    """A value of a GGUF file's metadata; None where it has none of this name."""
    field = _gguf(path).fields.get(name)
    return None if field is None else field.contents()


def _gguf(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ShardError(f"{path.name} needs the package gguf ({error}): pip install 'shard-lm[gguf]'") from None
    try:
        return GGUFReader(path)
    except Exception as error:  # the reader trusts what it reads
        raise ShardError(f"{path} is not a GGUF file that can be read ({type(error).__name__})") from None
