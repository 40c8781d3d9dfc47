"""The table [release] of a recipe."""

from typing import Annotated, Literal

from pydantic import Field

from shard.data.settings import Table


class ReleaseSettings(Table):
    """[release]: what the card says besides what the run measured."""

    title: str | None = None
    """The model's name in its card; the recipe's name unless given."""
    license: str = "apache-2.0"
    """Of weights and code. One that the Hugging Face hub has no identifier for becomes `other` with this name."""
    teacher_licences: tuple[str, ...] = ()
    """Licences of teachers that bind their students (Gemma's, Llama's), in spite of which you release under `license`:
    you have read them, and say that you may."""
    language: Annotated[tuple[Annotated[str, Field(pattern="^[a-z]{2,3}$")], ...], Field(min_length=1)] = ("en",)
    """Languages of the text, as ISO 639 codes."""
    authors: str = "the person who ran the recipe"
    prompts: tuple[str, ...] = (
        "The capital of France is",
        "To compute 12 plus 7, we can",
        "Question: What is 23 + 19? Answer:",
        "def fibonacci(n):",
        "Once upon a time, in a small village,",
        "Solve: 17 * 23 = ?",
    )
    """Prompts of the table of sampled outputs (temperature 0.7, top-p 0.9, fixed seed)."""
    gguf: tuple[Literal["bf16", "q8_0", "f32"], ...] = ("bf16", "q8_0", "f32")
    """The GGUF files of the bundle; empty: none."""
    price_per_hour: Annotated[float, Field(ge=0)] | None = None
    """What an hour of the device costs; the card then says what the run cost."""
    currency: str = "USD"
    """Of price_per_hour."""
    watts: Annotated[float, Field(ge=0)] | None = None
    """What the device draws; the card then says what energy that makes."""
