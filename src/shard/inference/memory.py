"""The peak of memory that a computation takes, counted where torch hands it out."""

import os
from collections.abc import Callable

import torch


def peak_tensor_bytes(action: Callable[[], object], device: torch.device) -> int:
    """The most bytes that torch held at once during `action`, above what it held before.

    On the CPU from the profiler's record of every allocation, those inside torch's kernels included: resident memory
    would show what the allocator keeps from earlier work, and miss what fits into it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it prints that it starts and stops
    from torch.autograd.profiler import profile

    with profile(profile_memory=True) as record:
        action()
    events = record.kineto_results.events()
    sizes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, size in sizes:
        held += size
        peak = max(peak, held)
    return peak
