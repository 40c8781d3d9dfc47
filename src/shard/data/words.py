"""The words of a batch of texts as 64-bit hashes: what deduplication and decontamination compare.

A word is a maximal run of letters, digits and underscores (`str.isalnum`, after lower-casing), so that case, white
space and punctuation make no difference. Two kinds of run are cut, for they would be one word as long as a sentence:

- Scripts that put no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese): each character is a word.
  A cut every few characters would move with every character that is inserted before it.
- A run of more than 64 bytes (base64, DNA, minified code) is cut every 64 bytes of UTF-8.

Lower-casing goes character by character, and only to characters of as many bytes, so that it can be done in place:
all of ASCII, Latin-1, Greek and Cyrillic; what is left out (the dotted capital I, say) stays as it is.

Everything is numpy on the concatenated UTF-8 of the batch, read 8 bytes at a time where a word starts; the hashes
are the same in every process and on every little-endian machine, for one version of Unicode in Python.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Offsets = NDArray[np.int64]

LONGEST_WORD = 64  # bytes
CHUNK_BYTES = 2**18  # hashed at once: the arrays of a chunk stay in the processor's cache

SEPARATOR, LETTER, LONE = 0, 1, 2  # kinds of characters; a lone one is a word by itself
UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x312F),  # kana, bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x9FFF),  # ideographs
    (0xF900, 0xFAFF),
    (0x20000, 0x323FF),
)
NUM_CHARACTERS = 0x32400  # beyond, no character is a letter

# Of each ASCII byte: the small letter, the digit or the underscore, or zero for what separates words.
_FOLD = bytes(ord(chr(i).lower()) if chr(i).isalnum() or chr(i) == "_" else 0 for i in range(128)) + bytes(
    range(128, 256)
)
_FIRST_BYTES = np.array([2 ** (8 * i) - 1 for i in range(9)], dtype=np.uint64)  # masks
_BASE = 0x9E3779B97F4A7C15  # of the polynomial of an n-gram: odd, 2**64 divided by the golden ratio


@dataclass(frozen=True, slots=True)
class WordHashes:
    """The words of text i, in order: hashes[offsets[i] : offsets[i + 1]]."""

    hashes: Hashes  # [num_words]
    offsets: Offsets  # [num_texts + 1]


@dataclass(frozen=True, slots=True)
class NgramHashes:
    """The runs of n consecutive words of text i, in order: hashes[offsets[i] : offsets[i + 1]]."""

    hashes: Hashes  # [num_ngrams]
    offsets: Offsets  # [num_texts + 1]


def word_hashes(texts: Sequence[str]) -> WordHashes:
    """The hash of every word of every text, repeated words included. A lone surrogate separates words.

    Memory: 8 bytes for each word (some 1.5 for each byte of text), twice while they are put together; and some 15 for
    each byte of the longest text.
    """
    parts = [_hash_chunk(chunk) for chunk in _chunks(texts)]
    counts = [count for _, count in parts]
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum(np.concatenate([np.zeros(0, np.int64), *counts]), out=offsets[1:])
    return WordHashes(np.concatenate([np.zeros(0, np.uint64), *(hashes for hashes, _ in parts)]), offsets)


def ngram_hashes(words: WordHashes, n: int) -> NgramHashes:
    """The hash of each run of n words within a text; a text of fewer words has none.

    The hash of words w_0..w_{n-1} is the polynomial sum of w_i base**(n-1-i) modulo 2**64.
    """
    lengths = np.diff(words.offsets)
    counts = np.maximum(lengths - (n - 1), 0)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    if not offsets[-1]:
        return NgramHashes(np.zeros(0, np.uint64), offsets)
    hashes = window_hashes(words.hashes, n)
    inside = np.ones(len(words.hashes), dtype=bool)  # whether the n words from here on are of one text
    for i in range(1, n):
        inside[words.offsets[1:][lengths >= i] - i] = False
    return NgramHashes(hashes[inside[: len(hashes)]], offsets)


def window_hashes(words: Hashes, n: int) -> Hashes:
    """The hash of each n consecutive words, as `ngram_hashes` has them but whatever texts they belong to:
    [num_words - n + 1], none for fewer words. By doubling: log n passes, not n.
    """
    result, size = words, 1  # the hashes of `size` words
    for bit in bin(n)[3:]:
        result, size = result[:-size] * np.uint64(pow(_BASE, size, 2**64)) + result[size:], 2 * size
        if bit == "1":
            result, size = result[:-1] * np.uint64(_BASE) + words[size:], size + 1
    return result


def ngrams_at(words: WordHashes, starts: Offsets, n: int) -> Hashes:
    """The hashes of the n words from each place of `starts` on, as `ngram_hashes` has them."""
    hashes = np.zeros(len(starts), dtype=np.uint64)
    for i in range(n):
        hashes = hashes * np.uint64(_BASE) + words.hashes[starts + i]
    return hashes


def mix(x: Hashes) -> Hashes:
    """A bijection of 64 bits after which each bit depends on all (the finaliser of splitmix64: Steele, Lea and
    Flood, "Fast splittable pseudorandom number generators", 2014).
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _chunks(texts: Sequence[str]) -> Iterator[list[bytes]]:
    """The texts in UTF-8, in groups of about CHUNK_BYTES."""
    chunk: list[bytes] = []
    size = 0
    for text in texts:
        chunk.append(text.encode("utf-8", "replace"))
        size += len(chunk[-1])
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _hash_chunk(texts: list[bytes]) -> tuple[Hashes, Offsets]:
    """The hashes of the words of all texts [num_words], and how many each text has [num_texts]."""
    # A line end after each text ends its last word; 8 bytes more, so that 8 can be read anywhere.
    data = bytearray(b"\n".join([*texts, bytes(8)]))
    is_ascii = data.isascii()
    data = data.translate(_FOLD)
    text = np.frombuffer(data, dtype=np.uint8)
    lone = np.zeros(0, np.int64) if is_ascii else _fold_characters(text)
    inside = text != 0
    is_start = inside.copy()
    is_start[1:] &= ~inside[:-1]
    is_start[lone] = inside[lone]
    starts = np.flatnonzero(is_start)
    ends = np.flatnonzero(inside[:-1] & (~inside[1:] | is_start[1:])) + 1
    starts, lengths = _cut_long(starts, ends - starts)
    borders = np.cumsum([len(text) + 1 for text in texts])
    counts = np.diff(np.searchsorted(starts, borders), prepend=0)
    return _hash_words(data, starts, lengths), counts


def _hash_words(data: bytearray, starts: Offsets, lengths: Offsets) -> Hashes:
    """The hash of data[start : start + length] for each word: 8 bytes at a time, mixed after each."""
    eights: Hashes = np.ndarray(len(data) - 7, dtype="<u8", buffer=data, strides=(1,))  # those from each byte on
    hashes = eights[starts] & _FIRST_BYTES[np.minimum(lengths, 8)]
    longer, done = np.flatnonzero(lengths > 8), 8
    while len(longer):
        mask = _FIRST_BYTES[np.minimum(lengths[longer] - done, 8)]
        hashes[longer] = mix(hashes[longer]) ^ (eights[starts[longer] + done] & mask)
        done += 8
        longer = longer[lengths[longer] > done]
    return mix(hashes)


def _cut_long(starts: Offsets, lengths: Offsets) -> tuple[Offsets, Offsets]:
    """The same words, those of more than LONGEST_WORD bytes in pieces."""
    if not (lengths > LONGEST_WORD).any():
        return starts, lengths
    num_pieces = -(-lengths // LONGEST_WORD)
    before = np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    shift = LONGEST_WORD * (np.arange(num_pieces.sum()) - before)
    left = np.repeat(lengths, num_pieces) - shift
    return np.repeat(starts, num_pieces) + shift, np.minimum(left, LONGEST_WORD)


def _fold_characters(text: NDArray[np.uint8]) -> Offsets:
    """Do in place to the characters beyond ASCII what _FOLD did to ASCII. The borders of the lone ones: where each
    begins, and where what follows it does.
    """
    kinds, small_letters = _characters()
    borders = []
    # The leads of characters of 2, 3 and 4 bytes, and what a lead carries besides the character's highest bits.
    for size, (least, most) in zip((2, 3, 4), pairwise((0xC0, 0xE0, 0xF0, 0x100)), strict=True):
        places = np.flatnonzero((text >= least) & (text < most))
        if not len(places):
            continue
        codes = text[places].astype(np.int64) - least
        for i in range(1, size):
            codes = codes << 6 | (text[places + i] & 0x3F)
        codes = np.minimum(codes, NUM_CHARACTERS - 1)
        kind = kinds[codes]
        for i in range(size):
            text[places[kind == SEPARATOR] + i] = 0
        lone = places[kind == LONE]
        borders += [lone, lone + size]
        capital = small_letters[codes] != codes
        places, codes = places[capital], small_letters[codes[capital]]
        for i in reversed(range(1, size)):
            text[places + i] = 0x80 | codes & 0x3F
            codes >>= 6
        text[places] = least | codes
    return np.concatenate([np.zeros(0, np.int64), *borders])


@cache
def _characters() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Of each character: its kind, and its small letter where that has as many bytes, else itself."""
    characters = [chr(i) if not 0xD800 <= i < 0xE000 else "?" for i in range(NUM_CHARACTERS)]
    kinds = np.array([character.isalnum() for character in characters], dtype=np.uint8)
    for first, last in UNSPACED:
        kinds[first : last + 1] *= LONE
    small_letters = np.arange(NUM_CHARACTERS)
    for i, character in enumerate(characters):
        small = character.lower()
        if kinds[i] and small != character and len(small) == 1 and len(small.encode()) == len(character.encode()):
            small_letters[i] = ord(small)
    return kinds, small_letters
