"""A decode step on CUDA as one graph: its hundreds of small kernels are launched at once.

`tests/inference/test_cuda_graph.py` compares it with the eager step where there is a GPU; it passed on an H200.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class GraphedStep:
    """step(ids_B, batch) -> logits_BV, captured anew for each batch and each number of slots that it reads.

    The first step of either runs as it is, which also warms up what a capture may not contain; the second is captured.
    The logits lie in one place and are overwritten by the next step.
    """

    def __init__(self, step: Callable[[Tensor, Any], Tensor]) -> None:
        self._step = step
        self._batch: Any = None
        self._num_read = -1
        self._graph: torch.cuda.CUDAGraph | None = None
        self._ids_B = self._logits_BV = torch.empty(0)

    def __call__(self, ids_B: Tensor, batch: Any) -> Tensor:
        if batch is not self._batch or batch.num_read != self._num_read:
            self._batch, self._num_read, self._graph = batch, batch.num_read, None
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                logits_BV = self._step(ids_B, batch)
            torch.cuda.current_stream().wait_stream(stream)
            return logits_BV
        if self._graph is None:
            self._ids_B = ids_B.clone()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._logits_BV = self._step(self._ids_B, batch)
            self._graph = graph
        self._ids_B.copy_(ids_B)
        self._graph.replay()
        return self._logits_BV
