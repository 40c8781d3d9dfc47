"""The table [release] of a recipe."""

from typing import Literal

from shard.data.settings import Table


class ReleaseSettings(Table):
    """[release]: what the card says besides what the run measured."""

    title: str | None = None
    """The model's name in its card; the recipe's name unless given."""
    license: str = "apache-2.0"
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
