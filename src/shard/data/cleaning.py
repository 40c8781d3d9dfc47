"""Cleaning: a text is repaired where it is damaged, and dropped where it is no text, for a reason that has a name.

Repaired are line ends, control characters (only "\\n" and "\\t" stay), byte order marks, characters that UTF-8 or
Unicode do not allow, and, with `ftfy`, what was decoded with the wrong encoding ("doesnâ€™t"). Nothing else changes:
quotes, ligatures, HTML entities and white space within the text are as they were.

The rules that drop a text are those of large web corpora (Gopher, FineWeb), set so that LaTeX, code, tables and logs
pass. All of them are pure functions of the text, so that the same text is judged the same everywhere.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from shard.data.settings import CleanSettings

EMPTY, SHORT, CONTROL, LONG_LINES = "empty", "short", "control", "long lines"
SYMBOLS, REPETITION, LANGUAGE = "symbols", "repetition", "language"
REASONS = (EMPTY, SHORT, CONTROL, LONG_LINES, SYMBOLS, REPETITION, LANGUAGE)
"""In the order in which they are looked for, cheap ones first; the names stand in ledgers."""

LINE_ENDS = re.compile("\r\n?|[\v\f\u2028\u2029]")
BROKEN = "\x00-\x08\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufeff\ufffe\uffff\ud800-\udfff"
CONTROLS = re.compile(f"[{BROKEN}]")
REPLACEMENT = "\ufffd"  # is where a decoder met what it could not read
UNREADABLE = re.compile(f"[{BROKEN}{REPLACEMENT}]")
MOJIBAKE = re.compile("[\x1b\x80-\x9fÃÂÐÑ]|â€|ðŸ|ï[¿¬»]|[äåæçéè][\u0080-\u00bf]")
"""Marks of UTF-8 that was read as Latin-1 or Windows-1252, and of the codes that colour terminals."""
SUSPICIOUS = re.compile(f"[{BROKEN}{REPLACEMENT}\r\v\f\u2028\u2029]|{MOJIBAKE.pattern}")
NUM_REPAIRS = 10  # at most: what a removed character had separated may be damage again
BLANK_LINES = re.compile(r"(?:[^\S\n]*\n)+")

PUNCTUATION = bytes(byte for byte in range(0x21, 0x7F) if not chr(byte).isalnum())
SPACES = b" \t\n"
ORDINARY = bytes(range(0x20, 0x7F)) + b"\t\n"
WORD_CHARACTERS = 20  # longer on average than in any language or code
NGRAMS = (2, 3, 4)
MIN_NGRAMS = 10  # what a short text says a few times is its subject
NUM_STRIPES, STRIPE_CHARACTERS = 4, 128  # looked at first, spread over the text
MAX_DISTINCT_SHARE = 0.55  # of some 80 words of prose, 0.75 are different ones

STOP_WORDS = frozenset(re.findall(r"\w+", "the of and to that with is was are this from by which it you for have how"))
MIN_STOP_WORD_SHARE = 0.02  # English prose has 0.2, lists of names and ingredients 0.05, other languages 0.01
MIN_WORDS = 20  # of fewer words, only the script is looked at
MAX_FOREIGN_SHARE = 0.3  # bytes of UTF-8 beyond one a character: accents make 0.1, Cyrillic 0.8, Chinese 2


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A repaired text, and why it is dropped: one of REASONS, None where it is kept."""

    text: str
    reason: str | None = None


def unusual(text: str) -> str:
    """All but printable ASCII, "\\n" and "\\t": little or nothing of most texts, so that searching it takes no time."""
    return text.encode("utf-8", "surrogatepass").translate(None, ORDINARY).decode("utf-8", "surrogatepass")


class Cleaner:
    """Cleans text by text; holds no state but its settings."""

    def __init__(self, settings: CleanSettings) -> None:
        self.settings = settings

    def clean(self, text: str) -> Cleaned:
        """Repair a text and judge it. Never raises; cleaning what was kept changes nothing."""
        reason, rest = None, unusual(text)
        if SUSPICIOUS.search(rest):
            limit = self.settings.max_control_share
            if limit is not None and len(UNREADABLE.findall(rest)) > limit * len(text):
                reason = CONTROL
            text, is_whole = self._repair(text)
            reason = reason or (None if is_whole else CONTROL)
        text = _strip(text)
        return Cleaned(text, reason or self._judge(text))

    def _repair(self, text: str) -> tuple[str, bool]:
        """The text without damage, and whether it came to that."""
        for _ in range(NUM_REPAIRS):
            repaired, rest = text, unusual(text)
            if LINE_ENDS.search(rest):
                repaired = LINE_ENDS.sub("\n", repaired)
            if self.settings.repair_unicode and MOJIBAKE.search(rest):
                repaired = _undo_wrong_decoding(repaired)
            if CONTROLS.search(rest):
                repaired = CONTROLS.sub("", repaired)
            repaired = _strip(repaired)
            if repaired == text:
                return text, True
            text = repaired
        return text, False

    def _judge(self, text: str) -> str | None:
        settings = self.settings
        if not text:
            return EMPTY
        if len(text) < settings.min_characters:
            return SHORT
        # Also where a repair brought it to light.
        if settings.max_control_share is not None and text.count(REPLACEMENT) > settings.max_control_share * len(text):
            return CONTROL
        data = text.encode()
        if settings.max_line_characters is not None and self._has_long_lines(text, settings.max_line_characters):
            return LONG_LINES
        if settings.max_symbol_share is not None:
            num_others, least = len(data.translate(None, SPACES + PUNCTUATION)), 1 - settings.max_symbol_share
            # The second count is needed only where white space decides.
            if num_others < least * len(data) and num_others < least * len(data.translate(None, SPACES)):
                return SYMBOLS
        if settings.max_duplicate_share is not None and duplicate_share(text) > settings.max_duplicate_share:
            return REPETITION
        if settings.max_ngram_share is not None and has_frequent_ngram(text, settings.max_ngram_share):
            return REPETITION
        if settings.language is not None and not is_english(text):
            return LANGUAGE
        return None

    def _has_long_lines(self, text: str, limit: int) -> bool:
        if len(text) <= limit or max(map(len, lines := text.split("\n"))) <= limit:
            return False
        # ASCII only: languages without spaces have lines that look like one word.
        num_long = sum(
            len(line)
            for line in lines
            if len(line) > limit and line.isascii() and len(line) > WORD_CHARACTERS * len(line.split())
        )
        return num_long > self.settings.max_long_line_share * len(text)


def duplicate_share(text: str) -> float:
    """The share of characters in lines and sentences that stood before in the text."""
    parts = text.replace(". ", "\n").split("\n")
    if len(set(parts)) > len(parts) - max(1, parts.count("")):  # no two alike but empty ones
        return 0.0
    return sum(len(part.strip()) * (count - 1) for part, count in Counter(parts).items() if count > 1) / len(text)


def has_frequent_ngram(text: str, limit: float) -> bool:
    """Whether one sequence of 2, 3 or 4 words makes a greater share of the characters, white space apart."""
    # To count all words takes longer than all other rules together. What makes so much of a text shows in a sample.
    step = max(STRIPE_CHARACTERS, len(text) // NUM_STRIPES)
    sample = " ".join([text[i * step : i * step + STRIPE_CHARACTERS] for i in range(NUM_STRIPES)]).split()
    if len(set(sample)) > MAX_DISTINCT_SHARE * len(sample):
        return False
    words = text.split()
    total = sum(map(len, words))
    # A sequence makes no more of a text than its words together; to count all sequences takes longest.
    heaviest = max((count * len(word) for word, count in Counter(words).items() if count >= MIN_NGRAMS), default=0)
    for n in NGRAMS:
        if n * heaviest <= limit * total:
            continue
        for sequence, count in Counter(zip(*(words[i:] for i in range(n)), strict=False)).most_common(1):
            if count >= MIN_NGRAMS and count * sum(map(len, sequence)) > limit * total:
                return True
    return False


def is_english(text: str) -> bool:
    """A cheap guess: Latin script, and the words without which no English text gets far."""
    if len(text.encode()) - len(text) > MAX_FOREIGN_SHARE * len(text):
        return False
    words = text.lower().split()
    return len(words) < MIN_WORDS or sum(map(STOP_WORDS.__contains__, words)) >= MIN_STOP_WORD_SHARE * len(words)


def _strip(text: str) -> str:
    """Without empty lines at its start, where indentation counts, and without white space at its end."""
    start = BLANK_LINES.match(text)
    return text[start.end() if start else 0 :].rstrip()


def _undo_wrong_decoding(text: str) -> str:
    """Line by line, as ftfy goes about it. It is slow, and a text is long: only lines with a mark are given to it."""
    import ftfy  # imported here: few texts need it

    settings = _ftfy_settings()
    return "\n".join(ftfy.fix_text(line, settings) if MOJIBAKE.search(line) else line for line in text.split("\n"))


def _ftfy_settings() -> Any:
    """Encodings only: what else ftfy tidies up is how people write."""
    import ftfy

    return ftfy.TextFixerConfig(
        unescape_html=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        remove_control_chars=False,  # done here, for all texts alike
        normalization=None,
        explain=False,
    )
