"""What is done about repeated trouble: which batches are passed over, and from where the stage goes on.

All of it is a function of the steps that were skipped, so that a run that was killed does the same again.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shard.training.settings import TROUBLE_WINDOW


def batch_index(step: int, passed_over: Sequence[int]) -> int:
    """The batch of a step: batch(index) with the passed-over indices (ascending) left out."""
    index = step
    for passed in passed_over:
        if passed > index:
            break
        index += 1
    return index


def recent(skipped: Sequence[int], step: int) -> list[int]:
    """The skipped steps among the last TROUBLE_WINDOW up to `step`, which is counted from 1."""
    return [s for s in skipped if s > step - TROUBLE_WINDOW]


@dataclass(frozen=True)
class Rollback:
    """One return to an earlier state."""

    step: int
    """Where the trouble was."""
    checkpoint: int
    """The step that the stage went back to; 0 is its beginning."""
    passed_over: list[int]
    """The batches that are left out from then on, besides those of earlier rollbacks."""

    def to_dict(self) -> dict[str, Any]:
        """For state.json, events.jsonl and the card."""
        return asdict(self)


def plan_rollback(
    step: int, skipped: Sequence[int], checkpoint: int, passed_over: Sequence[int], earlier: Sequence[Rollback]
) -> Rollback:
    """The first time from a checkpoint, the batches of the skipped steps are passed over. Where trouble comes again
    from the same checkpoint, the state was bad before: all batches since that checkpoint are.
    """
    if any(rollback.checkpoint == checkpoint for rollback in earlier):
        steps = range(checkpoint + 1, step + 1)
    else:
        steps = [s for s in recent(skipped, step) if s > checkpoint]  # type: ignore[assignment]
    return Rollback(step, checkpoint, [batch_index(s - 1, passed_over) for s in steps])
