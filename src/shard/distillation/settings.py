"""The table [distillation] of a recipe: whose distributions pretraining follows, and how far."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shard.data.settings import Table

Share = Annotated[float, Field(ge=0, le=1)]


class DistillationSettings(Table):
    """[distillation]: a teacher with the student's vocabulary, for [pretrain]. Without the table there is none."""

    teacher: Annotated[str, Field(min_length=1)]
    """A folder with a causal model as transformers saves it. Nothing is downloaded."""
    gguf_file: str | None = None
    """The file in that folder, where the model is a GGUF file: transformers reads it with the package accelerate."""
    licence: Annotated[str, Field(min_length=1, max_length=100)]
    """Of the teacher, as its card names it; shown in ours. One that binds students binds `shard release`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """What the teacher computes in: "auto" is bf16 where it is fast, else fp32."""
    bos_id: Annotated[int, Field(ge=0)] | None = None
    """A token before every sequence, for the teacher only: some (Gemma) predict badly without it."""

    weight: Share = 0.5
    """The teacher's share w of the loss, (1 - w) * cross-entropy + w * temperature^2 * KL, at the first step."""
    weight_end: Share | None = None
    """The share after `weight_steps`; unless given it stays as it is. A teacher of share 0 is not asked."""
    weight_steps: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Steps from `weight` to `weight_end`, linear; unless given those of [pretrain]."""
    temperature: Annotated[float, Field(ge=0.1, le=20)] = 1.0
    """Both distributions are softmax(logits / temperature)."""

    targets: Literal["online", "cached"] = "online"
    """Ask the teacher at each step, or once, by `shard teach`, which keeps sparse targets of every token."""
    form: Literal["sampled", "top_k"] = "sampled"
    """What is kept: draws from the distribution, without bias, or its likeliest ids and the mass of the others."""
    samples: Annotated[int, Field(ge=1, le=4096)] = 64
    """Draws a token, of form "sampled"."""
    top_k: Annotated[int, Field(ge=1, le=4096)] = 32
    """Ids a token, of form "top_k"."""
    unit_tokens: Annotated[int, Field(ge=2, le=2**30)] = 2**18
    """Tokens in a file of cached targets: what a kill costs at most."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.weight_steps is not None and self.weight_end is None:
            raise ValueError("weight_steps: it says when weight_end is reached: give that too")
        return self

    @property
    def width(self) -> int:
        """Targets of a token, at most."""
        return self.samples if self.form == "sampled" else self.top_k

    @property
    def width_key(self) -> str:
        """The key that says so."""
        return "samples" if self.form == "sampled" else "top_k"

    @property
    def is_cached(self) -> bool:
        """Whether there is a stage that asks the teacher before pretraining."""
        return self.targets == "cached"

    def weight_at(self, step: int, steps: int) -> float:
        """The teacher's share at `step` (0-based) of a stage of so many steps."""
        if self.weight_end is None:
            return self.weight
        return self.weight + (self.weight_end - self.weight) * min(1.0, step / (self.weight_steps or steps))
