"""The tables [pretrain] and [anneal] of a recipe: how one stage trains."""

from typing import Annotated, Literal

from pydantic import Field

from shard.data.settings import Size, Table

TROUBLE_WINDOW = 10
"""Steps among which `rollback_after` skipped ones are repeated trouble."""

Steps = Annotated[int, Field(ge=0, le=10**9)]
PositiveSteps = Annotated[int, Field(ge=1, le=10**9)]
LearningRate = Annotated[float, Field(gt=0, le=10)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class StageSettings(Table):
    """A stage. A key that [anneal] leaves out has the value of [pretrain], save those with a reason of their own."""

    steps: PositiveSteps
    sequence_length: Annotated[int, Field(ge=2, le=2**20)]
    """Tokens of a training sequence."""
    tokens_per_step: Annotated[int, Field(ge=2, le=2**30)]
    """The global batch: a multiple of sequence_length."""
    mix: Annotated[dict[str, Annotated[float, Field(ge=0, le=10**6)]], Field(min_length=1)]
    """Weight in tokens of each source."""
    micro_batch: Annotated[int, Field(ge=1, le=2**20)] | Literal["auto"] = "auto"
    """Sequences computed at once. It changes memory and speed, not the batch."""

    warmup_steps: Steps = 0
    decay_steps: Steps = 0
    """In [anneal] all steps, unless given: it decays to zero."""
    decay_shape: Literal["linear", "1-sqrt"] = "linear"
    lr_muon: LearningRate = 0.02
    """Hidden matrices, in units of sqrt(max(1, rows / columns)) * orthogonal matrix."""
    lr_embedding: LearningRate = 0.03
    lr_norm: LearningRate = 0.03

    muon_method: Literal["polar_express", "quintic"] = "polar_express"
    muon_momentum: Fraction = 0.95
    muon_momentum_start: Fraction = 0.85
    muon_momentum_warmup_steps: Steps = 300
    muon_nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Decoupled, of hidden matrices, scaled by their learning rate."""
    cautious_decay: bool = True
    """Decay a weight only where its update does not grow it."""
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.95
    adam_eps: Annotated[float, Field(gt=0, le=1)] = 1e-10
    grad_clip: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the raw gradient, applied before Muon. None: never clipped, always recorded."""
    skip_sigma: Annotated[float, Field(gt=0, le=1000)] = 6.0
    """A step is skipped where its loss or gradient norm lies so many standard deviations above the mean of the last
    128 steps taken, or is not finite."""
    rollback_after: Annotated[int, Field(ge=1, le=TROUBLE_WINDOW)] = 3
    """Skipped steps among the last 10 that send the stage back to its last good checkpoint, past their batches."""
    max_rollbacks: Annotated[int, Field(ge=0, le=1000)] = 3
    """Rollbacks of a stage, at most; then it stops with a report."""
    rank_loss: Literal["record", "stop"] = "record"
    """What follows where the sentinel finds more than rank_loss_share of a matrix's singular values lost."""
    rank_loss_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    z_loss: Annotated[float, Field(ge=0, le=1)] = 1e-4

    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """What is computed in; weights and optimizer state are fp32. "auto" is bf16 where it is fast, fp16 with a loss
    scale on a GPU without bf16, else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    recompute: Literal["none", "layer"] = "none"
    """"layer" keeps only what goes into each layer, and computes the layer again in the backward pass: a third more
    work for a fraction of the activations' memory. The result is the same."""
    checkpoint_every: PositiveSteps = 1000
    keep_last: PositiveSteps = 2
    """Checkpoints kept, besides those of keep_every."""
    keep_every: PositiveSteps | None = None
    """Every checkpoint at a multiple of this is kept for good, to anneal from."""
    evaluate_every: PositiveSteps = 500
    evaluate_bytes: Size = 100_000
    """Held-out text of each source that is scored during training, at most."""
    sample_every: PositiveSteps = 1000
    sample_prompts: tuple[str, ...] = ("The ", "def ", "Question: What is 23 + 19? Answer:")
    sentinel_every: PositiveSteps = 500
    """Steps between looks at the singular values of the Muon matrices and of their momentum."""
