"""The table [evaluate] of a recipe."""

from typing import Annotated

from pydantic import Field

from shard.data.settings import Table


class EvaluateSettings(Table):
    """[evaluate]: how held-out text is scored."""

    context: Annotated[int, Field(ge=2, le=2**20)] | None = None
    """Tokens of a window; the model's max_sequence_length unless given."""
    stride_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A long document is read in windows that advance by this share of the context: 0.5 scores every token (but the
    first of a document) with at least half a context before it; 1.0 is fastest."""
