"""Summaries of a column that add up: quantiles from weighted points, moments from sums.

A `Sketch` of up to `POINTS` distinct values is those values, counted: its quantiles are exact. More
are gathered into `POINTS` groups of about equal weight, each moved to its weighted median. That
moves the rank of a value by at most n / `POINTS`, whatever the data, and the sketch adds up what
its groups really moved (`error`). Merging sketches adds their errors, as ranks add; merged two by
two (`pairwise`), the sketches of B parts are off by at most (2 + log2 B) · n / `POINTS`: of 1,024
parts 0.3 % of all ranks. It is a deterministic summary in the line of Munro and Paterson (1980) and
of Manku, Rajagopalan and Lindsay (1998): the same parts in the same order give the same bits. The
KLL of Apache DataSketches draws bits that its Python package cannot seed, and a t-digest has no
bound.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
S = TypeVar("S")

POINTS = 4096


@dataclass(frozen=True)
class Sketch:
    """The values of a column in ascending order, each with how many values stand there.

    The lowest and the highest are always kept. `error`: by how many places the rank of any value
    may be off; 0 where every value was counted.
    """

    values: Floats
    weights: Ints
    error: int = 0

    @classmethod
    def of(cls, column: pl.Series) -> "Sketch":
        """The sketch of the known values of a numeric column."""
        known = column.drop_nulls()
        ordered = (known.drop_nans() if known.dtype.is_float() else known).sort().to_numpy()
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)])
        weights = np.diff(np.r_[starts, len(ordered)]).astype(np.int64)
        return _compact(ordered[starts].astype(np.float64) + 0.0, weights, 0)  # no −0.0

    def merge(self, other: "Sketch") -> "Sketch":
        """The sketch of both columns together."""
        values = np.r_[self.values, other.values]
        order = np.argsort(values, kind="stable")
        values, weights = values[order], np.r_[self.weights, other.weights][order]
        starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]][: len(values)])
        sums = np.add.reduceat(weights, starts) if len(starts) else weights
        return _compact(values[starts], sums, self.error + other.error)

    @property
    def n(self) -> int:
        """How many values there were."""
        return int(self.weights.sum())

    def quantiles(self, at: Floats) -> Floats:
        """Quantiles as `numpy.quantile` has them, which they equal where `error` is 0.

        `at`: shares from 0 to 1. There must be a value.
        """
        ends = np.cumsum(self.weights)
        place = at * (ends[-1] - 1)
        below = np.floor(place).astype(np.int64)
        part = place - below
        low = self.values[np.searchsorted(ends, below, side="right")]
        above = np.minimum(below + 1, ends[-1] - 1)
        high = self.values[np.searchsorted(ends, above, side="right")]
        step = high - low
        between = np.where(part < 0.5, low + step * part, high - step * (1 - part))
        return np.asarray(between, dtype=np.float64)


def _compact(values: Floats, weights: Ints, error: int) -> Sketch:
    """The points as they are, or gathered where there are more than `POINTS`."""
    if len(values) <= POINTS:
        return Sketch(values, weights, error)
    ends = np.cumsum(weights)
    cell = (2 * ends - weights) * POINTS // (2 * ends[-1])  # by the middle of each value's ranks
    cell[0], cell[-1] = -1, POINTS
    first = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]])
    last = np.r_[first[1:], len(values)] - 1
    start = ends[first] - weights[first]
    total = ends[last] - start
    median = np.searchsorted(ends, start + (total + 1) // 2)
    moved_up = ends[median] - weights[median] - start
    moved_down = ends[last] - ends[median]
    moved = int(max(moved_up.max(), moved_down.max()))
    return Sketch(values[median], total, error + moved)


@dataclass(frozen=True)
class Moments:
    """The labels of a task: how many are known, how many positive, and of the logarithms of these
    the mean and the sum of squared deviations."""

    known: int = 0
    positive: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, labels: pl.Series) -> "Moments":
        """The moments of a column of labels."""
        known = labels.drop_nulls()
        logs = known.filter(known > 0).log().to_numpy()
        mean = math.fsum(logs) / max(len(logs), 1)
        return cls(len(known), len(logs), mean, math.fsum((logs - mean) ** 2))

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both together (Chan, Golub and LeVeque 1979)."""
        n = self.positive + other.positive
        if n == 0:
            return Moments(self.known + other.known)
        apart = other.mean - self.mean
        share = other.positive / n
        return Moments(
            known=self.known + other.known,
            positive=n,
            mean=self.mean + apart * share,
            squares=self.squares + other.squares + apart**2 * self.positive * share,
        )


def pairwise(parts: Iterable[S], merge: Callable[[S, S], S]) -> S | None:
    """All parts merged in their order, two of a size at a time as a binary counter carries, so
    that no part goes through more than 1 + log2 B merges and no more than that many are held."""
    waiting: list[S] = []
    for count, part in enumerate(parts, 1):
        merged = part
        for _ in range((count & -count).bit_length() - 1):
            merged = merge(waiting.pop(), merged)
        waiting.append(merged)
    whole = waiting.pop() if waiting else None
    while waiting and whole is not None:
        whole = merge(waiting.pop(), whole)
    return whole
