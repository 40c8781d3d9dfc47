"""torch.compile is asked once: nothing that a stage does between its steps makes it compile again."""

from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_stage import make_trainer
from torch._dynamo.utils import counters


@pytest.mark.parametrize("changes", [{}, {"recompute": "layer"}, {"precision": "fp16"}], ids=str)
def test_no_recompilation_after_the_third_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]
) -> None:
    """Steps with other batches, rates and momenta, with evaluations, samples and checkpoints between them. What decides
    on compiling anew is the same whatever is made of the graph, so nothing is made of it here.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    every = dict.fromkeys(("checkpoint_every", "evaluate_every", "sample_every", "sentinel_every"), 2)
    trainer = make_trainer(data, tmp_path, compiled=True, micro_batch=4, **every, **changes)
    compiled = []
    for step in (3, 8):
        trainer.train(until=step)
        compiled.append(counters["stats"]["unique_graphs"])
        assert counters["graph_break"] == {}
    torch._dynamo.reset()
    assert compiled[0] > 0
    assert compiled[1] == compiled[0]
