"""The table [evaluate] of a recipe."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from shard.data.settings import Table

TaskName = Literal[
    "arc_easy_cloze",
    "arc_easy_letters",
    "arc_challenge_cloze",
    "arc_challenge_letters",
    "arithmetic",
    "passkey",
    "position",
    "code",
]


class EvaluateSettings(Table):
    """[evaluate]: how held-out text is scored, and which tasks of the mini-suite are measured."""

    context: Annotated[int, Field(ge=2, le=2**20)] | None = None
    """Tokens of a window; the model's max_sequence_length unless given."""
    stride_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A long document is read in windows that advance by this share of the context: 0.5 scores every token (but the
    first of a document) with at least half a context before it; 1.0 is fastest."""
    tasks: tuple[TaskName, ...] = get_args(TaskName)
    """Tasks of the mini-suite; one that does not fit the model, or whose files are not at hand, says so."""
    max_items: Annotated[int, Field(ge=1)] | None = None
    """Items of each task, at most (passkey: of each length); none: all."""
