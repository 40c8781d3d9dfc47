"""Token shards: the fast encoder gives the ids of `tokenizers`, and the stream comes back over every border."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shard.data import shards
from shard.data.shards import LEDGER, BulkEncoder, TokenStream, token_dtype, write_shards
from shard.errors import ShardError
from shard.files import sha256_of
from shard.tokenizer import SEPARATOR, load_tokenizer, train_tokenizer

# Where pre-tokenizers go wrong: odd white space, marks, digits of other scripts, contractions, emoji.
ALPHABET = [
    *"aAsStdDlLmrRvVeE012.,!?<|>_-'\" \n\r\t\0\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2028\u202f\u3000",
    *"\u0301\u200b\u200d\ufeff\ufffd\u180e\u017féßǅʰ²½Ⅷ٣Ⓐ\u3007\U0001f130あ日אب🙂\U0010ffff",
    *["\r\n", " \n", "\n \n", "'ll", "'RE", SEPARATOR],
]

HARD = [
    "",
    " ",
    "\n",
    SEPARATOR,
    f"before{SEPARATOR}after {SEPARATOR}{SEPARATOR}\n",
    "<|endoftext",
    "\tif (x):\n\t\treturn 'x'\n\t<b>\t_name\t@dec\t\t\"quoted\"",
    "l\xa0été : «\xa0oui\xa0» 10\u202f000",
    "a\n \nb\n\t\nc\r\n \r\nd\n  \n\ne \n",
    "日本語\u3000の 文章",
    "DON'T i'\u017f 'll'\u017fa '",
    "١٢٣ ½ ² Ⅷ 1234",
    "é e\u0301 \u0301 👩‍👩‍👧 🇩🇪",
    "NUL\0 \ufeff \ufffd \U0010ffff \x85 \x1c \x1f",
]


def draw(seed: int, count: int, length: int) -> list[str]:
    """Random strings of ALPHABET."""
    source = random.Random(seed)
    return ["".join(source.choices(ALPHABET, k=source.randint(0, length))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer trained on the hard alphabet itself: every pair there has merges, so that a wrong cut shows."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer([*draw(1, 4000, 60), *HARD * 3], 4000).save(str(path))
    return path


@pytest.fixture(scope="module")
def encoder(tokenizer_path: Path) -> BulkEncoder:
    return BulkEncoder(tokenizer_path)


def expected_ids(tokenizer_path: Path, texts: list[str]) -> list[list[int]]:
    tokenizer = load_tokenizer(tokenizer_path)
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def encoded(encoder: BulkEncoder, texts: list[str]) -> list[list[int]]:
    return [ids.tolist() for ids in encoder.encode(texts)]


def write(
    texts: list[str], encoder: BulkEncoder, folder: Path, *, vocab_size: int = 4000, shard_bytes: int = 64
) -> dict[str, object]:
    return write_shards(iter(texts), encoder, vocab_size, 0, shard_bytes, folder)


# The encoder


@pytest.mark.parametrize("text", HARD, ids=ascii)
def test_hard_text_is_encoded_as_tokenizers_does(encoder: BulkEncoder, tokenizer_path: Path, text: str) -> None:
    ids = encoded(encoder, ["x", text])[1]  # the first document is checked by the encoder itself, this one is not
    assert ids == expected_ids(tokenizer_path, [text])[0]
    assert 0 not in ids


def test_a_batch_is_encoded_in_order(encoder: BulkEncoder, tokenizer_path: Path) -> None:
    texts = [*HARD, "plain words", *HARD[::-1]]
    assert encoded(encoder, texts) == expected_ids(tokenizer_path, texts)


def test_random_text_is_encoded_as_tokenizers_does(encoder: BulkEncoder, tokenizer_path: Path) -> None:
    texts = draw(2, 6000, 8)
    assert encoded(encoder, texts) == expected_ids(tokenizer_path, texts)


def test_characters_are_letters_where_tokenizers_says_so(tmp_path: Path) -> None:
    """Each between letters and between signs, in a tokenizer that knows each of those words as one token."""
    characters = {chr(code) for code in random.Random(5).sample([*range(0x80, 0xD800), *range(0xE000, 0x40000)], 2000)}
    characters |= set("ⅧⅷⒶⓩ²½٣ʰǅ\u3007\u3021\u303a\u16ee\ua6e6\u088f\u0897\U00010140\U0001f130\U00012400\U000323b0🙂")
    texts = [text for c in sorted(characters) for text in (f"x{c}y", f"!{c}?")]
    train_tokenizer(texts * 2, 100_000).save(str(tmp_path / "tokenizer.json"))
    encoder = BulkEncoder(tmp_path / "tokenizer.json")
    assert encoded(encoder, ["x", *texts])[1:] == expected_ids(tmp_path / "tokenizer.json", texts)


def test_most_plain_text_goes_the_fast_way(encoder: BulkEncoder) -> None:
    """What sends text to the slow encoder is rare: else the fast one would be no use."""
    texts = ["def f(x):\n    return x * 2\n\n\nprint('é', f(3))\n", "One.\r\n\r\nTwo.", "\tname = 3", "日本語。"]
    assert not [text for text in texts if encoder._needs_reference(text)]


@settings(deadline=None)
@given(st.lists(st.text(), max_size=5))
def test_any_text_is_encoded_as_tokenizers_does(encoder: BulkEncoder, tokenizer_path: Path, texts: list[str]) -> None:
    assert encoded(encoder, ["x", *texts])[1:] == expected_ids(tokenizer_path, texts)


def test_no_texts(encoder: BulkEncoder) -> None:
    assert encoder.encode([]) == []


class WrongEncoder:
    """Gives id 7 for each character."""

    def encode_batch_flat(
        self, texts: list[str], add_special_tokens: bool
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
        lengths = np.array([len(text) for text in texts], dtype=np.uint64)
        return np.full(int(lengths.sum()), 7, dtype=np.uint32), lengths


def test_a_difference_in_the_sample_stops(tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = BulkEncoder(tokenizer_path)
    monkeypatch.setattr(encoder, "_fast", WrongEncoder())
    for texts in (["some words"], [SEPARATOR, "a\xa0b", "some words"]):  # those before go the slow way: not a sample
        with pytest.raises(ShardError, match=r"tokie and tokenizers .* differently \('some words'\.\.\.\)") as caught:
            encoder.encode(texts)
        assert "\n" not in str(caught.value)


def test_a_difference_stops_the_writing_without_a_ledger(
    tokenizer_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = BulkEncoder(tokenizer_path)
    write(["some words"], encoder, tmp_path)
    monkeypatch.setattr(encoder, "_fast", WrongEncoder())
    with pytest.raises(ShardError):
        write(["some words"], encoder, tmp_path)
    with pytest.raises(ShardError, match=r"tokens\.json is missing"):
        TokenStream.open(tmp_path)


# The shards


@pytest.mark.parametrize(("vocab_size", "dtype"), [(300, "<u2"), (65536, "<u2"), (65537, "<u4"), (262144, "<u4")])
def test_the_smallest_type_that_holds_every_id(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == dtype
    assert vocab_size - 1 <= np.iinfo(np.dtype(dtype)).max


@pytest.mark.parametrize(("vocab_size", "dtype"), [(4000, "<u2"), (70000, "<u4")])
@pytest.mark.parametrize("shard_bytes", [64, 100, 4096, 2**28])
def test_the_stream_is_every_document_and_a_separator(
    encoder: BulkEncoder, tokenizer_path: Path, tmp_path: Path, vocab_size: int, dtype: str, shard_bytes: int
) -> None:
    texts = [*HARD, *draw(3, 700, 12)]  # more than one batch of the encoder
    ledger = write(texts, encoder, tmp_path, vocab_size=vocab_size, shard_bytes=shard_bytes)
    stream = TokenStream.open(tmp_path)
    expected = [token for ids in expected_ids(tokenizer_path, texts) for token in [*ids, 0]]
    assert stream.read(0, stream.num_tokens).tolist() == expected
    assert stream.num_tokens == len(expected) and expected.count(0) == len(texts)

    num_bytes = sum(len(text.encode()) for text in texts)
    assert ledger == json.loads((tmp_path / LEDGER).read_text(encoding="utf-8"))
    assert (ledger["dtype"], ledger["documents"], ledger["bytes"]) == (dtype, len(texts), num_bytes)
    assert ledger["tokens"] == len(expected)
    assert ledger["bytes_per_token"] == pytest.approx(num_bytes / len(expected), abs=1e-4)

    capacity, sizes = shard_bytes // np.dtype(dtype).itemsize, [shard["tokens"] for shard in ledger["shards"]]
    assert set(sizes[:-1]) <= {capacity} and 0 < sizes[-1] <= capacity
    for shard in ledger["shards"]:
        path = tmp_path / shard["file"]
        assert shard["sha256"] == sha256_of(path)
        assert np.fromfile(path, dtype=dtype).size == shard["tokens"]


def test_reads_over_every_border(encoder: BulkEncoder, tmp_path: Path) -> None:
    write(["one two three"] * 10, encoder, tmp_path, shard_bytes=16)
    stream = TokenStream.open(tmp_path)
    whole = stream.read(0, stream.num_tokens)
    assert len(stream.shards) > 5 and whole.dtype == np.int64
    for start in range(stream.num_tokens):
        for stop in range(start + 1, stream.num_tokens + 1):
            assert np.array_equal(stream.read(start, stop), whole[start:stop])


def test_shards_of_an_earlier_larger_write_are_removed(encoder: BulkEncoder, tmp_path: Path) -> None:
    write(["many words in here"] * 50, encoder, tmp_path)
    (tmp_path / "train.jsonl").write_text("not a shard")
    ledger = write(["few words"], encoder, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LEDGER, "train-00000.bin", "train.jsonl"]
    assert TokenStream.open(tmp_path).num_tokens == ledger["tokens"]


def test_two_writes_are_equal(encoder: BulkEncoder, tmp_path: Path) -> None:
    texts = draw(4, 100, 12)
    for folder in ("first", "second"):
        write(texts, encoder, tmp_path / folder)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / f).iterdir()} for f in ("first", "second"))
    assert first == second and len(first) > 3


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"\0\0", None])
def test_a_shard_that_was_cut_or_lost(encoder: BulkEncoder, tmp_path: Path, change: object) -> None:
    write(["many words in here"] * 20, encoder, tmp_path)
    path = tmp_path / "train-00001.bin"
    content = path.read_bytes()
    path.unlink()
    if callable(change):
        path.write_bytes(change(content))
    with pytest.raises(ShardError, match=r"train-00001\.bin is missing or is not 64 bytes.*: run `shard data` again"):
        TokenStream.open(tmp_path)


@pytest.mark.parametrize(("content", "message"), [(None, "is missing"), ("{", "is damaged")])
def test_a_ledger_that_is_gone_or_damaged(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / LEDGER).write_text(content)
    with pytest.raises(ShardError, match=rf"tokens\.json {message}.*: run `shard data` again"):
        TokenStream.open(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda ledger: ledger.update(dtype="<u8"),
        lambda ledger: ledger.update(dtype="O"),
        lambda ledger: ledger.update(dtype=["<u2"]),
        lambda ledger: ledger.pop("dtype"),
        lambda ledger: ledger.update(shards={}),
        lambda ledger: ledger.update(tokens=ledger["tokens"] + 1),
        lambda ledger: ledger["shards"].append(3),
        lambda ledger: (
            ledger["shards"].append(ledger["shards"][0]),
            ledger.update(tokens=ledger["tokens"] + ledger["shards"][0]["tokens"]),
        ),
        lambda ledger: ledger["shards"][0].update(tokens=0),
        lambda ledger: ledger["shards"][0].update(tokens=-32),
        lambda ledger: ledger["shards"][0].update(tokens=True),
        lambda ledger: ledger["shards"][0].update(tokens=32.0),
        lambda ledger: ledger["shards"][0].update(tokens=10**400),
        lambda ledger: ledger["shards"][0].update(file="../text/train-00000.bin"),
        lambda ledger: ledger["shards"][0].update(file="/train-00000.bin"),
        lambda ledger: ledger["shards"][0].update(file=7),
        lambda ledger: ledger["shards"][0].pop("sha256"),
    ],
)
def test_a_ledger_that_says_what_no_write_does(
    encoder: BulkEncoder, tmp_path: Path, change: Callable[..., object]
) -> None:
    folder = tmp_path / "text"
    ledger = write(["many words in here"] * 20, encoder, folder)
    change(ledger)
    (folder / LEDGER).write_text(json.dumps(ledger))
    with pytest.raises(ShardError, match=r"tokens\.json is damaged: .*: run `shard data` again$"):
        TokenStream.open(folder)


def test_the_sample_is_taken_from_every_batch(tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One document in `_CHECK_EVERY` is encoded twice."""
    encoder = BulkEncoder(tokenizer_path)
    checked = []
    reference = encoder._reference

    class Counting:
        def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> object:
            checked.extend(texts)
            return reference.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(encoder, "_reference", Counting())
    texts = [f"word{'a' * i}" for i in range(200)]
    encoder.encode(texts)
    assert checked == texts[:: shards._CHECK_EVERY]


def test_only_the_lines_that_need_it_go_the_slow_way(tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the ids are those of the whole text, wherever it is cut."""
    encoder = BulkEncoder(tokenizer_path)
    slow: list[str] = []
    reference = encoder._reference

    class Counting:
        def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> object:
            slow.extend(texts)
            return reference.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(encoder, "_reference", Counting())
    text = "one\ntwo  \nl\xa0été\n  «\xa0oui\xa0»\nthree\r\n\n four\n\tfive\n"
    assert encoded(encoder, ["x", text])[1] == expected_ids(tokenizer_path, [text])[0]
    assert slow == ["l\xa0été\n  «\xa0oui\xa0»\n", "x"]  # and the sample
    texts = ["\n".join(lines) for lines in zip(*(draw(seed, 500, 6) for seed in range(3, 9)), strict=True)]
    assert encoded(encoder, texts) == expected_ids(tokenizer_path, texts)
    assert len("".join(slow)) < 0.9 * len("".join(texts))


@pytest.mark.parametrize("size", [1, 7, 40])
def test_long_hard_text_is_encoded_in_pieces(
    encoder: BulkEncoder, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Their ids are those of the whole, wherever the borders fall."""
    monkeypatch.setattr(shards, "_PIECE_CHARACTERS", size)
    texts = [" ".join(words) for words in zip(*(draw(seed, 400, 5) for seed in range(10, 20)), strict=True)]
    texts += [*HARD, "a b\xa0c d  e f\n\ng h's I'LL x 'll y", "x" * 100]
    assert "".join(shards._pieces(texts[0])) == texts[0]
    assert sum(len(list(shards._pieces(text))) for text in texts) > len(texts)
    assert encoded(encoder, texts) == expected_ids(tokenizer_path, texts)
