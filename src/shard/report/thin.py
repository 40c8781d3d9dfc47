"""Long curves in few points that hide nothing: of each bucket of steps the mean, the least and the greatest value."""

from dataclasses import dataclass

import numpy as np

from shard.report.history import Column, Curves


@dataclass(frozen=True)
class ThinCurve:
    """One value by bucket; NaN where a bucket has none. Where buckets are of one step, all three are the same."""

    mean: Column
    low: Column
    high: Column


@dataclass(frozen=True)
class ThinCurves:
    """Curves in m buckets of `bucket` steps each (the last one may be of fewer); each stands at its middle step."""

    bucket: int
    steps: Column
    tokens: Column
    seconds: Column
    values: dict[str, ThinCurve]


def thin(curves: Curves, most: int) -> ThinCurves:
    """At most `most` buckets of equally many recorded steps, so that no peak is lost and no mean is moved."""
    count = len(curves)
    bucket = max(1, -(-count // most))
    starts = np.arange(0, count, bucket)
    ends = np.minimum(starts + bucket, count)
    middles = (starts + ends - 1) // 2
    return ThinCurves(
        bucket,
        curves.steps[middles],
        curves.tokens[middles],
        curves.seconds[middles],
        {name: _thin_column(column, starts, ends) for name, column in curves.values.items()},
    )


def _thin_column(column: Column, starts: np.ndarray, ends: np.ndarray) -> ThinCurve:
    if not len(starts):
        return ThinCurve(column, column, column)
    known = ~np.isnan(column)
    counts = np.add.reduceat(known, starts, dtype=np.int64)
    sums = np.add.reduceat(np.where(known, column, 0.0), starts)
    mean = np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)
    return ThinCurve(mean, np.fmin.reduceat(column, starts), np.fmax.reduceat(column, starts))
