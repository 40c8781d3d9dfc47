"""The tables [tokenizer], [data] and [sources.NAME] of a recipe."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shard.units import Size


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


class Source(Table):
    """What every kind of source has."""

    license: str = "unknown"
    """Shown in the ledger and the card."""
    max_bytes: Annotated[Size, Field(ge=1)] | None = None
    """Read at most so much text."""


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


class HubSource(Source):
    """A dataset repository of the Hugging Face hub. Not read in this version: `--data PATH` trains on local text."""

    kind: Literal["hub"]
    repository: str
    files: str
    columns: Annotated[list[str], Field(min_length=1)]


AnySource = Annotated[InstalledSource | GeneratedSource | TextSource | HubSource, Field(discriminator="kind")]
