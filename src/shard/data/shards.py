"""Token shards: plain little-endian arrays that numpy can memory-map, and the ledger beside them.

A source's stream is its documents in order, each followed by the separator, so that sequences are cut from whole
documents. uint16 while the vocabulary fits, else uint32.
"""

import hashlib
import json
import mmap
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, groupby, islice, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import tokie
from numpy.typing import NDArray

from shard.data.cleaning import unusual
from shard.errors import ShardError
from shard.files import atomic_open, read_json, write_json
from shard.tokenizer import SPLIT_PATTERN, load_tokenizer

LEDGER = "tokens.json"
REMEDY = "run `shard data` again"
DTYPES = ("<u2", "<u4")
_BATCH = 512  # documents encoded at once
_CHECK_EVERY = 256  # documents between those that are encoded by `tokenizers` as well
# Where tokie 0.1.4 cuts text in other places than Qwen2's pattern, found by comparing both on every character and on
# random text: white space other than spaces and line ends (a tab only before punctuation), blank lines that hold
# spaces, and what the two count as letters: Roman numerals, circled letters, the long s ('s), scripts of the newest
# Unicode (beyond U+FFFF by whole ranges; emoji and common ideographs stay with the fast encoder).
_CUT_DIFFERENTLY = re.compile(
    r"[\x0b\x0c\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    r"\u017f\u088f\u0897\u0c5c\u0cdc\u16ee-\u16f0\u2160-\u2188\u24b6-\u24e9\u3007\u3021-\u303a\ua6e6-\ua6ef\ua7ce-\ua7f1"
    r"\U00010000-\U0001f1ff\U0002a6e0-\U0010ffff]"
)
_TAB = re.compile(r"\t(?:(?![\s\w])|_)")
# No pattern reaches across the start of a line that begins with a sign, a letter or a digit of ASCII, nor between two
# words with one space between them.
_LINE_START = re.compile(r"(?<=\n)(?=[!-~])")
_BORDER = re.compile(_LINE_START.pattern + r"|(?<=[A-Za-z])(?= [A-Za-z])")
_PIECE_CHARACTERS = 2**16
_BLANK_LINE = re.compile(r"[\r\n][ \t]+[\r\n]")

_SHARD = re.compile(r"train-\d{5,9}\.bin")

Tokens = NDArray[np.uint16] | NDArray[np.uint32]


def token_dtype(vocab_size: int) -> str:
    """The type of a token on disk."""
    return DTYPES[vocab_size > 2**16]


def is_own_form(tokenizer_path: Path) -> bool:
    """Whether a tokenizer cuts text as those that Shard trains, for which tokie was found to be exact."""
    parts = json.loads(tokenizer_path.read_text(encoding="utf-8"))
    pieces = (parts.get("pre_tokenizer") or {}).get("pretokenizers", [])
    kinds = [piece["type"] for piece in pieces]
    is_ours = kinds == ["Split", "ByteLevel"] and pieces[0]["pattern"] == {"Regex": SPLIT_PATTERN}
    return is_ours and parts.get("normalizer") is None and not parts["model"].get("byte_fallback")


class BulkEncoder:
    """Encodes many documents at once, as text without special tokens, and checks a sample of them. A tokenizer of
    another form than Shard's own is left to `tokenizers` alone.
    """

    def __init__(self, tokenizer_path: Path) -> None:
        self._reference = load_tokenizer(tokenizer_path)
        self._fast: Any = None  # its type stub lags behind its methods
        if is_own_form(tokenizer_path):
            self._fast = tokie.Tokenizer.from_json(str(tokenizer_path))
        self._added = [token.content for token in self._reference.get_added_tokens_decoder().values()]
        self._path = tokenizer_path

    def encode(self, texts: list[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text. ShardError where the fast encoder and `tokenizers` disagree."""
        if self._fast is None:
            return list(self._encode_exactly(texts))
        cut = [self._cut(text) for text in texts]
        fast = iter(self._encode_fast([piece for pieces in cut for piece, is_hard in pieces if not is_hard]))
        slow = self._encode_exactly(piece for pieces in cut for piece, is_hard in pieces if is_hard)
        encoded = [
            next(fast)
            if pieces == [(text, False)]
            else np.concatenate([next(slow if is_hard else fast) for _, is_hard in pieces])
            for text, pieces in zip(texts, cut, strict=True)
        ]
        some_fast = [i for i, pieces in enumerate(cut) if not all(is_hard for _, is_hard in pieces)]
        for i in some_fast[::_CHECK_EVERY]:
            start = next(_pieces(texts[i]), "")
            (expected,) = self._encode_exactly([start])
            if not np.array_equal(encoded[i][: len(expected)], expected):
                raise ShardError(
                    f"{self._path}: tokie and tokenizers encode a document differently ({texts[i][:60]!r}...): "
                    "please report it; other versions of tokie may agree (pip install 'tokie!=<this one>')"
                )
        return encoded

    def _encode_fast(self, texts: list[str]) -> list[NDArray[np.uint32]]:
        ids, lengths = self._fast.encode_batch_flat(texts, add_special_tokens=False)
        ends = np.cumsum(lengths.astype(np.int64)).tolist()
        return [ids[start:end] for start, end in pairwise([0, *ends])]

    def _encode_exactly(self, texts: Iterable[str]) -> Iterator[NDArray[np.uint32]]:
        """By `tokenizers`, which takes some 200 bytes for each byte of text: a little at a time."""
        waiting, size = [], 0
        for text in chain(texts, [None]):
            if text is not None:
                waiting.append(text)
                size += len(text)
            if text is None or size >= _PIECE_CHARACTERS:
                for encoding in self._reference.encode_batch_fast(waiting, add_special_tokens=False):
                    yield np.array(encoding.ids, dtype=np.uint32)
                waiting, size = [], 0

    def _cut(self, text: str) -> list[tuple[str, bool]]:
        """A text in pieces, and whether each needs the slow encoder: of a text that does, only some lines."""
        if not self._needs_reference(text):
            return [(text, False)]
        pieces: list[tuple[str, bool]] = []
        for is_hard, lines in groupby(_LINE_START.split(text), self._needs_reference):
            whole = "".join(lines)
            pieces += [(piece, True) for piece in _pieces(whole)] if is_hard else [(whole, False)]
        return pieces

    def _needs_reference(self, text: str) -> bool:
        """Whether tokie may be wrong: it also turns the literal text of an added token into its id."""
        # What most texts do not hold is looked for first: a pattern takes longer than all other work on a text.
        return bool(
            _CUT_DIFFERENTLY.search(unusual(text))
            or ("\t" in text and _TAB.search(text))
            or (("\n " in text or "\n\t" in text or "\r" in text) and _BLANK_LINE.search(text))
            or any(map(text.__contains__, self._added))
        )


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces whose ids are together those of the text: of _PIECE_CHARACTERS or more, up to the next line or
    word that no pattern reaches across.
    """
    start = 0
    while start < len(text):
        border = _BORDER.search(text, start + _PIECE_CHARACTERS)
        end = border.start() if border else len(text)
        yield text[start:end]
        start = end


class ShardWriter:
    """Writes a stream of tokens as `folder/train-00000.bin`... and, last, the ledger `folder/tokens.json`. Tokens go to
    the disk as they come: none are kept in memory.
    """

    def __init__(self, folder: Path, dtype: str, shard_bytes: int) -> None:
        self._folder, self._dtype = folder, np.dtype(dtype)
        self._capacity = shard_bytes // self._dtype.itemsize
        self._num_written = 0  # to the shard that is open
        self._open = ExitStack()
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self.shards: list[dict[str, Any]] = []
        for stale in (folder / LEDGER, *folder.glob("train-*.bin")):
            stale.unlink(missing_ok=True)

    def add(self, tokens: NDArray[Any]) -> None:
        """Append tokens of any integer type that hold ids of the vocabulary."""
        while len(tokens):
            if self._file is None:
                self._file = self._open.enter_context(atomic_open(self._folder / self._name()))
                self._digest, self._num_written = hashlib.sha256(), 0
            piece = tokens[: self._capacity - self._num_written].astype(self._dtype, order="C", copy=False)
            self._file.write(piece.data)
            self._digest.update(piece.data)
            self._num_written += len(piece)
            if self._num_written == self._capacity:
                self._close()
            tokens = tokens[len(piece) :]

    def finish(self, documents: int, num_bytes: int) -> dict[str, Any]:
        """Close the last shard and write the ledger, which is returned."""
        self._close()
        ledger = {
            "dtype": self._dtype.str,
            "documents": documents,
            "bytes": num_bytes,
            "tokens": sum(shard["tokens"] for shard in self.shards),
            "shards": self.shards,
        }
        ledger["bytes_per_token"] = round(num_bytes / ledger["tokens"], 4) if ledger["tokens"] else 0.0
        write_json(self._folder / LEDGER, ledger)
        return ledger

    def _name(self) -> str:
        return f"train-{len(self.shards):05d}.bin"

    def _close(self) -> None:
        if self._file is not None:
            self._open.close()  # flushed, and under its name
            self._file = None
            self.shards.append({"file": self._name(), "tokens": self._num_written, "sha256": self._digest.hexdigest()})


def write_shards(
    texts: Iterable[str], encoder: BulkEncoder, vocab_size: int, separator_id: int, shard_bytes: int, folder: Path
) -> dict[str, Any]:
    """The shards of some texts, in this process; the ledger. What tokens.py does over many, and its plain twin."""
    writer = ShardWriter(folder, token_dtype(vocab_size), shard_bytes)
    num_documents = num_bytes = 0
    for tokens, documents, size in encode_stream(texts, encoder, separator_id):
        writer.add(tokens)
        num_documents, num_bytes = num_documents + documents, num_bytes + size
    return writer.finish(num_documents, num_bytes)


def encode_stream(
    texts: Iterable[str], encoder: BulkEncoder, separator_id: int
) -> Iterator[tuple[NDArray[np.uint32], int, int]]:
    """The tokens of some documents, each followed by the separator, how many those are, and their bytes of text."""
    separator = np.array([separator_id], dtype=np.uint32)
    for batch in _batches(texts):
        pieces = [piece for ids in encoder.encode(batch) for piece in (ids, separator)]
        yield np.concatenate(pieces), len(batch), sum(len(text.encode()) for text in batch)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


def read_token_ledger(folder: Path) -> dict[str, Any]:
    """`folder/tokens.json`, every value that the shards are opened by checked. ShardError, one line, where it is
    missing or damaged.
    """
    path = folder / LEDGER
    ledger = read_json(path, REMEDY)
    if not isinstance(ledger, dict) or ledger.get("dtype") not in DTYPES or not isinstance(ledger.get("shards"), list):
        raise ShardError(f"{path} is damaged: it needs a dtype of {' or '.join(DTYPES)} and a list of shards: {REMEDY}")
    for shard in ledger["shards"]:
        if not isinstance(shard, dict) or not _SHARD.fullmatch(str(shard.get("file"))):
            raise ShardError(f"{path} is damaged: it lists what is no shard, {shard!r:.80}: {REMEDY}")
        if not _is_count(shard.get("tokens")) or not isinstance(shard.get("sha256"), str):
            raise ShardError(f"{path} is damaged: {shard['file']} has no number of tokens or no sha256: {REMEDY}")
    files = [shard["file"] for shard in ledger["shards"]]
    if len(set(files)) < len(files) or ledger.get("tokens") != sum(shard["tokens"] for shard in ledger["shards"]):
        raise ShardError(
            f"{path} is damaged: its shards do not add up to its {ledger.get('tokens')!r:.30} tokens: {REMEDY}"
        )
    return ledger


def _map(path: Path, dtype: np.dtype[Any]) -> Tokens:
    """A file of tokens in memory as far as it is read, here and there: what the system reads ahead of a random place is
    of no use, and of a corpus larger than memory it is most of what is read.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype=dtype)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**48


@dataclass(frozen=True)
class TokenStream:
    """All token shards of a source as one array, memory-mapped."""

    shards: tuple[Tokens, ...]
    starts: tuple[int, ...]
    num_tokens: int

    @classmethod
    def open(cls, folder: Path) -> "TokenStream":
        """Open the shards that the ledger lists. ShardError where one is missing or has another size."""
        ledger = read_token_ledger(folder)
        shards, starts, total = [], [], 0
        for shard in ledger["shards"]:
            path, dtype = folder / shard["file"], np.dtype(ledger["dtype"])
            expected = shard["tokens"] * dtype.itemsize
            if not path.is_file() or path.stat().st_size != expected:
                raise ShardError(f"{path} is missing or is not {expected} bytes long: {REMEDY}")
            shards.append(_map(path, dtype))
            starts.append(total)
            total += shard["tokens"]
        return cls(tuple(shards), tuple(starts), total)

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens start..stop-1, over shard borders."""
        first, last = bisect_right(self.starts, start) - 1, bisect_left(self.starts, stop)
        parts = [
            self.shards[i][max(0, start - self.starts[i]) : stop - self.starts[i]] for i in range(max(0, first), last)
        ]
        return np.concatenate(parts).astype(np.int64)
