"""The tokenizer: byte-level BPE without a normalizer, digits one by one, one special token.

The pre-tokenizer is the one of Qwen2 (known to llama.cpp as "qwen2"). Every byte has a token, so that every Unicode
string is encoded and comes back the same, the literal text of the separator included: `load_tokenizer` gives a
tokenizer that never turns text into the special token.
"""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike, fspath

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SEPARATOR = "<|endoftext|>"
"""Document separator, beginning and end of sequence: id 0."""

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 cuts text before merging: words with their leading space, single digits, punctuation, white space."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE of at most `vocab_size` tokens; the same texts in the same order give the same tokenizer.

    Fewer tokens come out where the texts have no more pairs that occur twice.
    """
    if vocab_size < 257:
        raise ValueError(f"vocab_size must be at least 257 (the separator and 256 bytes), not {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: str | PathLike[str]) -> Tokenizer:
    """Load a tokenizer.json. The text "<|endoftext|>" is encoded as the characters that it is, never as id 0."""
    tokenizer = Tokenizer.from_file(fspath(path))
    tokenizer.encode_special_tokens = True
    return tokenizer
