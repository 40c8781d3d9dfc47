"""The WSD schedule (warmup, stable, decay) and Muon's momentum warm-up: pure functions of the step, no state.

Source: Hu et al., "MiniCPM" (arXiv 2404.06395), for WSD; Hägele et al. (arXiv 2405.18392) for the 1 - sqrt shape.
"""

from typing import Literal

DecayShape = Literal["linear", "1-sqrt"]


def wsd(step: int, steps: int, warmup_steps: int, decay_steps: int, decay_shape: DecayShape) -> float:
    """The factor on every learning rate at `step` (0-based) of a stage of `steps` steps.

    Warm-up: (step + 1) / warmup_steps, so that the first step already moves. Stable: 1. Decay: over the last
    `decay_steps` steps, from 1 towards 0 with x = (step - first decay step) / decay_steps: linear is 1 - x, "1-sqrt"
    is 1 - sqrt(x). The step after the last one would have the factor 0.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    into_decay = step - (steps - decay_steps)
    if into_decay <= 0:
        return warmup
    x = into_decay / decay_steps
    return warmup * max(0.0, 1 - (x if decay_shape == "linear" else x**0.5))


def muon_momentum(step: int, start: float, end: float, warmup_steps: int) -> float:
    """Muon's momentum at `step`: from `start` to `end`, linear over `warmup_steps`."""
    return end if step >= warmup_steps else start + (end - start) * step / warmup_steps
