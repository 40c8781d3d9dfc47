"""Adopting a tokenizer that exists, in place of training one: a tokenizer.json, its folder, or a repository of the hub.

What is kept is how it cuts text into ids, exactly. What it would add to a text or cut off (post-processor, truncation,
padding) is taken out, since Shard puts nothing before a prompt; so are added tokens beyond the model's vocabulary.
"""

import json
from pathlib import Path
from typing import Any

from shard.data.hub import endpoint
from shard.errors import ShardError, UsageError
from shard.files import sha256_of, write_text
from shard.inference.load import read_tokenizer
from shard.tokenizer import SEPARATOR

FILE = "tokenizer.json"


def adopt_tokenizer(origin: str, separator: str | None, vocab_size: int, path: Path) -> dict[str, Any]:
    """Write the tokenizer of `origin` to `path`; the record of it. ShardError where it is none that Shard can keep
    exactly, or lacks the separator.
    """
    source = find_tokenizer(origin)
    try:
        parts = json.loads(source.read_text(encoding="utf-8"))
        added = parts["added_tokens"]
        beyond = [token["content"] for token in added if token["id"] >= vocab_size]
        parts["added_tokens"] = [token for token in added if token["id"] < vocab_size]
        special = {token["content"] for token in parts["added_tokens"] if token["special"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ShardError(f"tokenizer.adopt: {source} is no tokenizer.json ({error!r:.100}): name another") from None
    parts |= {"post_processor": None, "truncation": None, "padding": None}
    wanted = SEPARATOR if separator is None else separator
    if wanted not in special:
        some = ", ".join(sorted(special)[:6]) or "none"
        raise UsageError(
            f"{origin} has no special token {wanted!r:.60} to end a document: set tokenizer.separator to one of "
            f"its own ({some})"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(parts, ensure_ascii=False))
    try:
        tokenizer = read_tokenizer(path, vocab_size)
    except ShardError:
        path.unlink()
        raise
    return {
        "adopted": origin,
        "origin_sha256": sha256_of(source),
        "vocab_size": tokenizer.get_vocab_size(),
        "separator": wanted,
        "separator_id": tokenizer.token_to_id(wanted),
        "left_out": beyond,
    }


def find_tokenizer(origin: str) -> Path:
    """The file that a path, a folder or owner/name names; one of the hub is downloaded."""
    path = Path(origin).expanduser()
    if path.is_dir():
        path = path / FILE
    if path.is_file():
        return path
    if origin.count("/") != 1 or origin.startswith((".", "/", "~")):
        raise UsageError(f"tokenizer.adopt: {origin} is neither a {FILE}, nor a folder with one, nor owner/name")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(origin, FILE, endpoint=endpoint()))
    except Exception as error:  # of the network, of the hub, of its answer: many classes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ShardError(
            f"the tokenizer of {origin} cannot be had ({reason[:160]}): check its name and HF_TOKEN, or give a path"
        ) from None
