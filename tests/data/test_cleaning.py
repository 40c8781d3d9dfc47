"""Cleaning: what is repaired, what is dropped for which reason, and what must pass untouched."""

# ruff: noqa: RUF001 - characters that look like others are what this is about

import base64
import random
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shard.data.cleaning import REASONS, Cleaned, Cleaner, duplicate_share, has_frequent_ngram, is_english
from shard.data.settings import CleanSettings

ANY_LENGTH = Cleaner(CleanSettings(min_characters=1))
DEFAULT = Cleaner(CleanSettings())
ENGLISH = Cleaner(CleanSettings(language="en"))

PROSE = """Water boils at 100 degrees Celsius at sea level, because there its vapour pressure reaches that of the air.
On a mountain, where the air is thinner, it boils at a lower temperature, which is why an egg takes longer to cook.
Salt dissolved in the water raises the boiling point, though a pinch of it makes hardly any difference to a cook.
"""


# Repairs


@pytest.mark.parametrize(
    ("damaged", "repaired"),
    [
        ("one\r\ntwo\rthree\n", "one\ntwo\nthree"),
        ("a\fb\vc\u2028d\u2029e", "a\nb\nc\nd\ne"),
        ("\ufeffmark", "mark"),
        ("a\0b\x07c\x7fd", "abcd"),
        ("a\ufffeb\uffffc\ufdd0d\ud800e", "abcde"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("It doesnâ€™t matter", "It doesn’t matter"),
        ("schÃ¶n, trÃ¨s joli", "schön, très joli"),
        ("Ã‚Â£20", "£20"),
        ("l\x92eau \x93x\x94", "l’eau “x”"),
        ("doesnâ\0€™t", "doesn’t"),
        ("ðŸ˜€", "😀"),
        ("kept \ufffd here", "kept \ufffd here"),
        ("\n \n\t\n    indented:\n  code\n\n", "    indented:\n  code"),
        ("", ""),
        (" \u2003\xa0\n", ""),
    ],
)
def test_repairs(damaged: str, repaired: str) -> None:
    cleaner = Cleaner(CleanSettings(min_characters=1, max_control_share=None, max_symbol_share=None))
    assert cleaner.clean(damaged) == Cleaned(repaired, None if repaired else "empty")


def test_other_lines_stay_as_they_are_beside_a_repaired_one() -> None:
    assert ANY_LENGTH.clean("naïve – fine\nnaÃ¯ve\n“quotes”").text == "naïve – fine\nnaïve\n“quotes”"


@pytest.mark.parametrize(
    "text",
    [
        "“Quotes” ‘are’ kept, ﬁ too, and &amp; and <b>tags</b>, fullwidth ＡＢＣ, e\u0301, AÇÃO",  # which has a mark
        "São Paulo, ÁÉÍÓÚ, Ñandú, Âge, ÇÃO, Đà Nẵng, Ελλάδα, Привет, 日本語, שלום, 👩\u200d🔬, soft\u00adhyphen",
        r"Let $\hat{x} \in \mathbb{R}^n$ with $\|x\|_2 \le 1$; then \[ \sum_{i=1}^n x_i^2 \le 1. \]",
    ],
)
def test_what_is_not_damaged_is_not_touched(text: str) -> None:
    assert DEFAULT.clean(text) == Cleaned(text)


def test_only_lines_with_a_mark_are_given_to_ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("ftfy.fix_text", lambda line, settings: seen.append(line) or line)
    ANY_LENGTH.clean("plain\r\nÃ line\nna\u00efve\0")
    assert set(seen) == {"Ã line"}


def test_unicode_repair_can_be_switched_off() -> None:
    cleaner = Cleaner(CleanSettings(min_characters=1, repair_unicode=False))
    assert cleaner.clean("schÃ¶n\r\n\0l\x92eau").text == "schÃ¶n\nleau"


def test_many_repairs_end() -> None:
    text = "é" * 30
    for _ in range(6):
        text = text.encode().decode("latin-1")
    assert ANY_LENGTH.clean(text + " as it was written, long ago").text == "é" * 30 + " as it was written, long ago"


# Reasons


def noise(num_bytes: int) -> bytes:
    return random.Random(0).randbytes(num_bytes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \t\r\n\u2003", "empty"),
        ("\0\0\0", "control"),
        ("Too short.", "short"),
        (PROSE + "\x01\x02\x03\x1f\0" * 4, "control"),
        (PROSE + "�" * 20, "control"),
        ("".join(map(chr, random.Random(0).choices([*range(32), *range(127, 160)], k=300))), "control"),
        (base64.b64encode(noise(3000)).decode(), "long lines"),
        (PROSE + "\n" + noise(4000).hex(), "long lines"),
        ("https://tracker.example/?" + "&".join(f"k{i}={i:08x}" for i in range(300)), "long lines"),
        ("function(){" + "var a=b.c(d,e);f[g]={h:i};" * 200 + "}", "long lines"),
        ("-=" * 500 + "\n" + "=" * 500, "symbols"),
        ("!?*#$ " * 40, "symbols"),
        ("Buy it now! " * 50, "repetition"),
        ("buy it now " * 50, "repetition"),
        (PROSE + "cheap watches online " * 30, "repetition"),
        (PROSE * 4, "repetition"),
        ("Home\nAbout us\nContact\n" * 20, "repetition"),
        (PROSE.replace("\n", " ") * 4, "repetition"),
        ("0.0000 0.0000 0.0000\n" * 30, "repetition"),
    ],
)
def test_reasons(text: str, reason: str) -> None:
    assert DEFAULT.clean(text).reason == reason
    assert reason in REASONS


CODE = """def binary_search(values: list[int], wanted: int) -> int | None:
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if values[middle] == wanted:
            return middle
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return None
"""
TABLE = r"""\begin{tabular}{lrrrr}
\hline
Model & 1 & 2 & 3 & 4 \\ \hline
Linear & 0.12 & 0.13 & 0.11 & 0.12 \\
Cox & 0.22 & 0.21 & 0.25 & 0.20 \\
Frailty & 0.31 & 0.30 & 0.33 & 0.29 \\ \hline
\end{tabular}
"""
WORKED = r"""Problem: Compute $\gcd(1071, 462)$.

Solution: $1071 = 2 \cdot 462 + 147$, $462 = 3 \cdot 147 + 21$, $147 = 7 \cdot 21 + 0$.
The last remainder that is not zero is $21$. The answer is $\boxed{21}$.
"""
MATRIX = "\n".join(" & ".join(str((i * j) % 7) for j in range(12)) + r" \\" for i in range(12))


@pytest.mark.parametrize("text", [PROSE, CODE, TABLE, WORKED, MATRIX, PROSE + "�" * 3, "語" * 3000, CODE + "}\n" * 9])
def test_texts_that_pass(text: str) -> None:
    assert DEFAULT.clean(text) == Cleaned(text.rstrip())


def test_a_long_paragraph_passes() -> None:
    words = [f"word{i % 977}" for i in range(3000)]
    assert DEFAULT.clean(" ".join(words)).reason is None


def test_a_long_line_in_a_long_text_passes() -> None:
    text = "\n".join(f"Line {i}: {i * i} is the square of {i}, and {i**3} its cube." for i in range(1000))
    assert DEFAULT.clean(text + "\n" + noise(2000).hex()).reason is None


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        (PROSE, True),
        (PROSE.upper(), True),
        ("Das Wasser siedet bei hundert Grad, weil dort der Dampfdruck den der Luft erreicht; oben auf dem Berg "
         "ist die Luft dünner, und darum kocht ein Ei dort länger als unten im Tal.", False),
        ("El agua hierve a cien grados al nivel del mar, porque allí su presión de vapor alcanza la del aire; en la "
         "montaña, donde el aire es más ligero, hierve antes.", False),
        ("Вода кипит при ста градусах, потому что давление её пара достигает давления воздуха. " * 3, False),
        ("水在海平面上一百度沸腾，因为那里它的蒸气压达到空气的压力。" * 3, False),
    ],
)  # fmt: skip
def test_english(text: str, passes: bool) -> None:
    assert is_english(text) == passes
    cleaner = Cleaner(CleanSettings(language="en", max_duplicate_share=None))
    assert cleaner.clean(text).reason == (None if passes else "language")
    assert Cleaner(CleanSettings(max_duplicate_share=None)).clean(text).reason is None


def test_rules_can_be_switched_off() -> None:
    lenient = Cleaner(
        CleanSettings(
            min_characters=1,
            max_control_share=None,
            max_line_characters=None,
            max_symbol_share=None,
            max_duplicate_share=None,
            max_ngram_share=None,
        )
    )
    for text in ("x", "x\x01", noise(4000).hex(), "-=" * 50, PROSE * 5, "buy it now " * 50):
        assert lenient.clean(text).reason is None


def test_the_settings_decide() -> None:
    assert Cleaner(CleanSettings(min_characters=len(PROSE) + 1)).clean(PROSE).reason == "short"
    assert Cleaner(CleanSettings(max_symbol_share=0.01)).clean(PROSE).reason == "symbols"
    assert Cleaner(CleanSettings(max_line_characters=10)).clean(CODE).reason is None
    assert Cleaner(CleanSettings(max_line_characters=10)).clean("x" * 60).reason == "long lines"
    assert Cleaner(CleanSettings(max_duplicate_share=0.1)).clean(PROSE + PROSE[:114]).reason == "repetition"
    assert Cleaner(CleanSettings(max_control_share=0)).clean(PROSE + "\ufffd").reason == "control"


def test_shares() -> None:
    assert duplicate_share("a line\nanother\n\n\nthird") == 0
    assert duplicate_share("same\nsame\nother") == pytest.approx(4 / 15)
    assert duplicate_share("It is so. It is so. It is so") == pytest.approx(16 / 28)
    assert has_frequent_ngram("a b " * 20, 0.9)
    assert not has_frequent_ngram("a b " * 9, 0.3)  # fewer than ten times
    assert not has_frequent_ngram("a b " * 9 + "b " * 3, 0.7)
    assert not has_frequent_ngram(PROSE, 0.3)
    assert not has_frequent_ngram(" \n ", 0.3)


# Properties

PIECES = st.sampled_from([PROSE, *"Ã©™Â\xa0\x80\x92\0\r\n\ufeff\ud83d\ufffd a", "â€", "\x1b[0m", "ï¿½"])
TEXTS = st.one_of(
    st.text(), st.lists(PIECES, max_size=30).map("".join), st.text(st.characters(max_codepoint=0x17F), max_size=60)
)


@given(text=TEXTS)
@example("Ã\ud83d\xa0")  # what is damage once the space at its end is gone
@example("ï¿½")
@settings(max_examples=400, deadline=None)
def test_clean_is_idempotent_and_leaves_no_control_characters(text: str) -> None:
    for cleaner in (ENGLISH, ANY_LENGTH):
        cleaned = cleaner.clean(text)
        assert cleaned.reason is None or cleaned.reason in REASONS
        again = cleaner.clean(cleaned.text)
        assert again.text == cleaned.text
        if cleaned.reason is None:
            assert again.reason is None
            cleaned.text.encode()
        kinds = {unicodedata.category(character) for character in cleaned.text if character not in "\n\t"}
        assert not kinds & {"Cc", "Cs"} and "\ufeff" not in cleaned.text


@given(text=st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=50, max_size=300))
def test_printable_ascii_is_never_changed_but_at_its_ends(text: str) -> None:
    assert DEFAULT.clean(text).text == text.rstrip()
