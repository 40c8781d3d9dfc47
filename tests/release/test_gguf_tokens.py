"""llama.cpp cuts text into the same tokens, under the pre-tokenizer that it calls qwen2; what differs is named."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from llama_server import WINDOWED, LlamaCpp, make_model, run, write_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from shard.model import ShardLM
from shard.release.gguf import export_gguf
from shard.tokenizer import SEPARATOR, SPLIT_PATTERN, load_tokenizer, train_tokenizer

HARD = [
    "",
    " ",
    "  ",
    "a" + " " * 40 + "b",
    " " * 7,
    "\t\t\tx\t y",
    "\n",
    "\n\n\n  \n x",
    "a\r\nb\r\n\r\nc\rd \r\n ",
    "\u00a0x\u00a0\u00a0y \u00a0",
    "\u3000日\u2028本\u2029\u0085\x0b\x0c\x1c\x1f z\u200b\u200d\ufeff",
    "0 12 345 6789 3.14159 -1e-10 1,000,000",
    "٣٤٥ १२३ ①② ½²³ Ⅳ Ⅻ ⅷ \u3007",
    "🙂👍🏽👩‍👩‍👧‍👦🇩🇪 x😀y",
    "漢字かなカナ한국어 中文。「引用」",
    "مرحبا بالعالم، ١٢٣ שָׁלוֹם",
    "e\u0301 a\u0308\u0323 n\u0303o \u0301x क्षि",
    "def f(x):\n\treturn {'a': x[0]**2, \"b\": `c`}  # 100%\n\n\n",
    "if(a&&b||!c){d+=e->f;}//g\r\n/* h */ #include <i.h>",
    "I'm I'M you're YOU'RE we'Ve they'LL it'S don'T he'D 'tis '' 's's'S",
    "IT'S O'Reilly rock'n'roll 'sx 'Llama",
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|> <|endof",
    "[unused 405] [PAD5] <unk> <s> </s>",
    "x" * 5000,
    "Donaudampfschifffahrtsgesellschaftskapitän" * 30,
    "!?" * 700 + "\n",
    "ﬁ ﬆ ß ẞ İ \u0131 ǆ Ω",
    "\x00\x01\x7f\x80\x9f",
    "\U0010ffff\ue000\ufdd0",
]


def test_hard_strings_have_the_same_ids(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(path)
    model = make_model(WINDOWED, tokenizer)
    with run(export_gguf(model.state_dict(), WINDOWED, path, tmp_path / "m.gguf", "f32", "m")) as llama:
        for text in HARD:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            assert llama.encode(text) == ids, text[:80]
            assert 0 not in ids
            assert llama.ask("/detokenize", tokens=ids)["content"] == text


BYTES = pre_tokenizers.ByteLevel.alphabet()


def byte_characters(text: str) -> str:
    """The characters by which byte-level BPE names the bytes of a text."""
    return "".join(piece for piece, _ in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(text))


def revealing(path: Path, pairs: list[str]) -> Tokenizer:
    """A tokenizer with a merge for each of these pairs, so that its ids show where text was cut between them."""
    vocabulary = {SEPARATOR: 0}
    for token in [*sorted(BYTES), *pairs]:
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(pair[0], pair[1]) for pair in pairs]))
    split = json.loads(train_tokenizer([], 257).to_str())["pre_tokenizer"]
    assert split["pretokenizers"][0]["pattern"] == {"Regex": SPLIT_PATTERN}
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([SEPARATOR])
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(json.loads(tokenizer.to_str()) | {"pre_tokenizer": split}))
    return load_tokenizer(path)


def different(llama: LlamaCpp, tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    """The texts whose ids differ: all are asked for at once, line by line, and halved where something does."""
    joined = "\n".join(texts)
    if llama.encode(joined) == tokenizer.encode(joined, add_special_tokens=False).ids:
        return []
    if len(texts) == 1:
        return texts
    half = len(texts) // 2
    return different(llama, tokenizer, texts[:half]) + different(llama, tokenizer, texts[half:])


@contextmanager
def run_tokenizer(folder: Path, pairs: list[str]) -> Iterator[tuple[LlamaCpp, Tokenizer]]:
    tokenizer = revealing(folder / "tokenizer" / "tokenizer.json", pairs)
    config = replace(WINDOWED, vocab_size=tokenizer.get_vocab_size(), num_layers=1)
    path = folder / "tokenizer" / "tokenizer.json"
    weights = ShardLM(config).state_dict()
    with run(export_gguf(weights, config, path, folder / "t.gguf", "f32", "t")) as llama:
        yield llama, tokenizer


CHARACTERS = "xX!1 \t\n\r'sStTrReEvVmMlLdD.,\x0b\x0c\x1c\x85\u00a0\u200b\u200d\u2028\u3000é日本ⅣǺ😀ع١٢½²ß\u0301ﬆ"


def test_random_texts_are_cut_alike(tmp_path: Path) -> None:
    """Every two bytes of these characters merge, in random order, so that a cut anywhere shows."""
    rng = random.Random(3)
    known = sorted(set(byte_characters(CHARACTERS)))
    pairs = [a + b for a in known for b in known]
    rng.shuffle(pairs)
    with run_tokenizer(tmp_path, pairs) as (llama, tokenizer):
        texts = ["".join(rng.choices(CHARACTERS, k=rng.randint(1, 16))) for _ in range(6000)]
        assert not different(llama, tokenizer, texts)


def test_what_is_known_to_be_cut_otherwise(tmp_path: Path) -> None:
    """docs/export.md names these. Where llama.cpp has learned one, the page can be shortened."""
    pairs = [byte_characters(text) for text in ("x\u1c89", "\u017fx", "'s", "sx")]
    pairs = [pairs[0][:2], pairs[1][1:], *pairs[2:]]
    with run_tokenizer(tmp_path, pairs) as (llama, tokenizer):
        assert different(llama, tokenizer, ["'\u017fx"]), "an apostrophe, a long s and a letter"
        assert different(llama, tokenizer, ["x\u1c89"]), "a letter of Unicode 16"
        assert not different(llama, tokenizer, ["'sx", "'Sx", "\u017fx", "x'\u017f"])


LETTERS_OF_UNICODE_16, DIGITS_OF_UNICODE_16 = 4302, 80


@pytest.mark.slow
def test_every_character_is_of_the_same_kind(tmp_path: Path) -> None:
    """Minutes. After x a letter goes on and all else is cut off; after ! and before x only a digit is."""
    firsts = sorted(BYTES)
    pairs = [*("x" + byte for byte in firsts), *("!" + byte for byte in firsts)]
    pairs += [byte + "x" for byte in firsts if byte + "x" not in pairs]
    characters = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    found: dict[str, set[str]] = {"x{}": set(), "!{}": set(), "{}x": set()}
    with run_tokenizer(tmp_path, pairs) as (llama, tokenizer):
        for start in range(0, len(characters), 4096):
            for pattern, others in found.items():
                texts = [pattern.format(character) for character in characters[start : start + 4096]]
                others.update(max(text) for text in different(llama, tokenizer, texts))
    print({pattern: len(others) for pattern, others in found.items()})
    assert found["!{}"] == found["{}x"]
    assert len(found["!{}"]) == DIGITS_OF_UNICODE_16
    assert len(found["x{}"]) == LETTERS_OF_UNICODE_16
    assert min(found["x{}"]) == "\u1c89"
