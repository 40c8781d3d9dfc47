"""Two sides measured in turns in one process, and what their ratio is.

A machine that others use slows both sides of a pair, so that the ratio of a pair says more than two medians. The order
turns round from pair to pair. With OMP_NUM_THREADS=1 on a CPU the clock is that of the processor: what others take of
it does not count.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds of a call; on a GPU until the device is done."""
    is_alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.process_time if is_alone else time.perf_counter
    begun = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - begun


def kernel_seconds(work: Callable[[], object]) -> float:
    """Seconds of the kernels that a call queues on a GPU, however long the host takes to queue them."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize()
    kernels = [e for e in profiled.key_averages() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    return sum(e.self_device_time_total for e in kernels) / 1e6


def measure(
    sides: Mapping[str, Callable[[], Any]],
    pairs: int,
    warm_ups: int = 1,
    seconds_of: Callable[[Callable[[], Any]], float] = seconds_of,
) -> dict[str, list[float]]:
    """Seconds of every side, `pairs` times in turns, after calls that compile and touch fresh memory."""
    for name, work in sides.items():
        for _ in range(warm_ups):
            print(f"{name}: warmed up in {seconds_of(work):.1f} s", file=sys.stderr)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(pairs):
        for name in reversed(list(sides)) if i % 2 else sides:
            seconds[name].append(seconds_of(sides[name]))
        print(", ".join(f"{name} {times[-1]:.3f} s" for name, times in seconds.items()), file=sys.stderr)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Of each pair, then the spread of these."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def words(ratio: dict[str, Any]) -> str:
    """A ratio for people."""
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
