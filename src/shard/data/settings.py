"""The tables [tokenizer], [data] and [sources.NAME] of a recipe."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from shard.units import parse_size

MOST_BYTES_PER_TOKEN = 8
"""More text than a token of any vocabulary holds on average: 3.7 bytes of English for 8,192 tokens, 4.6 for 262,144."""

Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0, le=10**16)]
"""A number of bytes."""


class Table(BaseModel):
    """A table of a recipe: unknown keys are errors, numbers are finite, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_a_boolean_for_a_number(cls, values: Any) -> Any:
        """pydantic would make 1 of true; as text it is refused, with the words and the place of any wrong value."""
        return {key: cls._as_text(key, value) for key, value in values.items()} if isinstance(values, dict) else values

    @classmethod
    def _as_text(cls, key: str, value: Any) -> Any:
        kinds = list(_kinds(cls.model_fields[key].annotation)) if key in cls.model_fields else []
        if bool in kinds or not (int in kinds or float in kinds):
            return value
        if isinstance(value, dict):
            return {inner: str(held).lower() if isinstance(held, bool) else held for inner, held in value.items()}
        return str(value).lower() if isinstance(value, bool) else value


def _kinds(annotation: Any) -> Iterator[Any]:
    """The plain types that a type is made of: int and str of `dict[str, Annotated[int, ...]] | None`."""
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif arguments := get_args(annotation):
        for argument in arguments:
            yield from _kinds(argument)
    else:
        yield annotation


class TokenizerSettings(Table):
    """[tokenizer]: the vocabulary's size is model.vocab_size."""

    sample_bytes: Annotated[Size, Field(ge=1000, le=4 * 10**9)] = 10**9
    """Text that the tokenizer is trained on, at most, drawn from each source by its share in all training tokens."""
    adopt: str | None = None
    """A tokenizer.json, its folder, or owner/name on the hub, to take as it is instead of training one."""
    separator: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """The special token of an adopted tokenizer that ends a document; <|endoftext|> unless given."""

    @model_validator(mode="after")
    def _check_separator(self) -> Self:
        if self.separator is not None and self.adopt is None:
            raise ValueError("separator: belongs to an adopted tokenizer; set tokenizer.adopt too, or leave it out")
        return self


class DataSettings(Table):
    """[data]: what is common to all sources."""

    heldout_bytes: Annotated[Size, Field(ge=1)] = 500_000
    """Text held out from each source, at least (see `heldout_share`)."""
    heldout_share: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Most that is held out of a source: a small corpus gives this share, whatever heldout_bytes says."""
    shard_bytes: Annotated[Size, Field(ge=1024, le=2**34)] = 2**28
    """Size of a token shard."""
    mixture_block: Annotated[int, Field(ge=1, le=2**20)] = 1000
    """Sequences in which the weights of a mix are exact, to one sequence a source."""
    near_duplicate_threshold: Annotated[float, Field(ge=0.5, le=1)] = 0.8
    """Of sources with near_duplicates = "drop", documents whose set of word 5-grams is so similar (Jaccard) to that of
    an earlier one are dropped."""
    evaluation_sets: tuple[str, ...] = ("allenai/ai2_arc",)
    """What no document may hold questions of: dataset repositories that are known for it, .jsonl and .parquet files."""
    on_broken_file: Literal["stop", "skip"] = "stop"
    """A file of a dataset that cannot be read to its end: stop and name it, or keep what was read before."""
    keep_raw: bool = False
    """Keep downloaded files after their documents have been taken out of them."""


class CleanSettings(Table):
    """What a text is repaired of, and what it is dropped for (see cleaning.py). null switches a rule off."""

    repair_unicode: bool = True
    """Undo wrong decoding (mojibake) with ftfy."""
    min_characters: Annotated[int, Field(ge=1)] = 50
    """"short": fewer."""
    max_control_share: Annotated[float, Field(ge=0, le=1)] | None = 0.02
    """"control": a greater share of control characters, non-characters and U+FFFD. What is kept is without them."""
    max_line_characters: Annotated[int, Field(ge=1)] | None = 2000
    """A line that is longer, and whose words are more than 20 characters on average, is not text: base64, say."""
    max_long_line_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """"long lines": a greater share of characters in such lines."""
    max_symbol_share: Annotated[float, Field(ge=0, le=1)] | None = 0.75
    """"symbols": a greater share of ASCII punctuation in what is not white space."""
    max_duplicate_share: Annotated[float, Field(ge=0, le=1)] | None = 0.6
    """"repetition": a greater share of characters in lines and sentences that the text has already."""
    max_ngram_share: Annotated[float, Field(ge=0, le=1)] | None = 0.3
    """"repetition": a greater share of characters in one sequence of 2, 3 or 4 words."""
    language: Literal["en"] | None = None
    """"language": not English, by its script and its most frequent words; for prose, not for mathematics or code."""


class Source(Table):
    """What every kind of source has."""

    license: str = "unknown"
    """Shown in the ledger and the card."""
    max_bytes: Annotated[Size, Field(ge=1)] | None = None
    """Keep at most so much text, before duplicates are dropped."""
    max_documents: Annotated[int, Field(ge=1, le=2**40)] | None = None
    """Keep at most so many documents, before duplicates are dropped."""
    max_tokens: Annotated[int, Field(ge=1, le=2**60)] | None = None
    """Write at most so many tokens, and read no more than MOST_BYTES_PER_TOKEN times as many bytes of text for them."""
    max_epochs: Annotated[float, Field(gt=0, le=2**20)] | None = None
    """Refuse to train where all stages together would read it more often."""
    clean: CleanSettings | Literal["off"] = "off"
    """How its text is cleaned."""
    near_duplicates: Literal["drop", "keep"] = "keep"
    """Whether documents that are nearly equal to an earlier one are dropped; equal ones always are."""

    @property
    def shard_tokens(self) -> int | None:
        """Tokens to write at most."""
        return self.max_tokens

    @property
    def most_bytes(self) -> int | None:
        """Text to keep at most, by max_bytes and max_tokens."""
        limits = [self.max_bytes, None if self.shard_tokens is None else self.shard_tokens * MOST_BYTES_PER_TOKEN]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def is_limited(self) -> bool:
        """Whether reading may end before all of it is read."""
        return self.most_bytes is not None or self.max_documents is not None

    def has_enough(self, documents: int, num_bytes: int) -> bool:
        """Whether so many documents with so much text reach a limit."""
        return documents >= (self.max_documents or math.inf) or num_bytes >= (self.most_bytes or math.inf)


class InstalledSource(Source):
    """Documentation or code of Python packages that are on the disk already."""

    kind: Literal["installed"]
    content: Literal["documentation", "code"]
    packages: Annotated[list[str], Field(min_length=1)]


class GeneratedSource(Source):
    """Worked mathematics problems, correct by construction."""

    kind: Literal["generated"]
    max_bytes: Annotated[Size, Field(ge=1, le=10**11)] | None = 4_000_000
    seed: int = 0


class TextSource(Source):
    """A file or a folder of .txt, .md, .jsonl and .parquet."""

    kind: Literal["text"]
    path: str
    text_column: str = "text"
    """The field of a .jsonl line, or the column of a .parquet file, that holds the text."""
    columns: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Instead of text_column: columns that make a document, an empty line between them."""
    template: str | None = None
    """Instead of text_column: a text with {column} in it."""
    clean: CleanSettings | Literal["off"] = CleanSettings(min_characters=1)
    near_duplicates: Literal["drop", "keep"] = "drop"


class HubSource(Source):
    """A dataset repository of the Hugging Face hub, or of a mirror of it (--mirror). Of the repositories that are known
    (see data/adapters.py), files and columns need not be said.
    """

    kind: Literal["hub"]
    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$", max_length=200)]
    revision: str | None = None
    """A branch, a tag or a commit; none: the main branch. The commit that it names is pinned at the first look."""
    files: tuple[str, ...] | str | None = None
    """Patterns of the files to read: * and ? stay within a folder, ** does not."""
    columns: tuple[str, ...] | None = None
    """Columns that make a document, an empty line between them."""
    template: str | None = None
    """Instead of columns: a text with {column} in it."""
    rows: Literal["multiple_choice"] | None = None
    """Instead of columns: question, lettered choices and answer, as in ARC."""
    clean: CleanSettings | Literal["off"] = CleanSettings()
    near_duplicates: Literal["drop", "keep"] = "drop"


class TeacherSource(Source):
    """Documents that a model behind an OpenAI-compatible endpoint writes from prompts: sequence-level distillation."""

    kind: Literal["teacher"]
    endpoint: Annotated[str, Field(pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$", max_length=500)]
    """Its base address, as in https://api.example.org/v1."""
    model: Annotated[str, Field(min_length=1, max_length=300)]
    licence: Annotated[str, Field(min_length=1, max_length=100)]
    """Of that model, or the terms of who serves it. One that binds students binds `shard release`."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$", max_length=100)] | None = None
    """The environment variable that holds the key. The key itself is never written anywhere."""

    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    prompts_file: str | None = None
    """Instead of prompts: a .txt with one a line, or a .jsonl with a field "prompt"."""
    documents_per_prompt: Annotated[int, Field(ge=1, le=10**6)] = 1
    system: str | None = None
    route: Literal["chat", "completions"] = "chat"
    """chat/completions, or the older completions, which continues the prompt as text."""
    keep_prompt: bool = False
    """Whether the document begins with its prompt."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_document_tokens: Annotated[int, Field(ge=1, le=2**20)] = 1024
    """Tokens of an answer, at most."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Request n asks for seed + n, which not every endpoint heeds."""

    max_tokens: Annotated[int, Field(ge=1, le=2**60)] | None = None
    """The budget, of this kind of source: tokens of the endpoint's own, prompts and answers together."""
    max_cost: Annotated[float, Field(gt=0)] | None = None
    """The budget in money, in the currency of the prices."""
    price_input: Annotated[float, Field(ge=0)] | None = None
    """Of a million tokens of prompts."""
    price_output: Annotated[float, Field(ge=0)] | None = None
    """Of a million tokens of answers."""

    concurrency: Annotated[int, Field(ge=1, le=1000)] = 8
    """Requests that are under way at once."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    timeout_seconds: Annotated[float, Field(gt=0, le=86400)] = 120.0
    attempts: Annotated[int, Field(ge=1, le=100)] = 8
    """Of a request, at 429, 5xx, a time-out or a connection that breaks."""
    clean: CleanSettings | Literal["off"] = CleanSettings(min_characters=1)
    near_duplicates: Literal["drop", "keep"] = "drop"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.prompts) == (self.prompts_file is not None):
            raise ValueError("prompts: give either prompts or a prompts_file")
        if self.max_tokens is None and self.max_cost is None:
            raise ValueError("max_tokens: a teacher needs a budget: max_tokens, max_cost or both")
        if self.max_cost is not None and (self.price_input is None or self.price_output is None):
            raise ValueError("max_cost: it takes price_input and price_output, of a million tokens")
        if self.route == "completions" and self.system is not None:
            raise ValueError("system: completions has no place for it: write it into the prompts")
        return self

    @property
    def shard_tokens(self) -> int | None:
        """max_tokens is a budget of the endpoint's tokens here."""
        return None


AnySource = Annotated[
    InstalledSource | GeneratedSource | TextSource | HubSource | TeacherSource, Field(discriminator="kind")
]
