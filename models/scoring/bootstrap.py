"""Metrics of weighted rows, and the bootstrap as weights: a resample is a count for each row.

Every metric here takes `weights` (R, N), R resamples of N rows, and returns (R,). Rows are sorted
once for all resamples, so that no resample is ever ranked again.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.scoring.clusters import own_of

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
MetricName = Literal[
    "auc", "ks", "pr_auc", "brier", "log_loss", "rmse", "mae", "spearman", "calibration_ratio"
]
WeightedMetric = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]

CELLS = 4_000_000  # of a block of weights: 32 MB, whatever the number of rows
EPSILON = 1e-15  # nearest to 0 and 1 that a log sees


@dataclass(frozen=True)
class Interval:
    """An estimate with a 95 % interval; NaN where it cannot be computed."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def weighted_auc(y: FloatArray, score: FloatArray, weights: FloatArray) -> FloatArray:
    """P(score of a positive > score of a negative), ties half (Hanley and McNeil 1982)."""
    positive, negative = _class_weights(y, score, weights)
    below = np.cumsum(negative, axis=1) - negative
    won = np.sum(positive * (below + 0.5 * negative), axis=1)
    return _ratio(won, positive.sum(axis=1) * negative.sum(axis=1))


def weighted_ks(y: FloatArray, score: FloatArray, weights: FloatArray) -> FloatArray:
    """The largest gap of the two classes' distributions (Kolmogorov-Smirnov statistic)."""
    positive, negative = _class_weights(y, score, weights)
    share_p = _ratio(np.cumsum(positive, axis=1), positive.sum(axis=1, keepdims=True))
    share_n = _ratio(np.cumsum(negative, axis=1), negative.sum(axis=1, keepdims=True))
    return np.asarray(np.max(np.abs(share_p - share_n), axis=1), dtype=np.float64)


def weighted_pr_auc(y: FloatArray, score: FloatArray, weights: FloatArray) -> FloatArray:
    """Average precision: the sum over thresholds of precision times the recall gained there.

    The step-wise area of Davis and Goadrich (2006), not the optimistic trapezoid.
    """
    positive, negative = _class_weights(y, score, weights)
    caught = np.cumsum(positive[:, ::-1], axis=1)
    alarms = caught + np.cumsum(negative[:, ::-1], axis=1)
    precision = np.divide(caught, alarms, out=np.zeros_like(caught), where=alarms > 0)
    gained = np.sum(precision * positive[:, ::-1], axis=1)
    return np.where(negative.sum(axis=1) > 0, _ratio(gained, positive.sum(axis=1)), np.nan)


def weighted_brier(y: FloatArray, p: FloatArray, weights: FloatArray) -> FloatArray:
    """The mean squared difference of probability and outcome (Brier 1950)."""
    return _mean((p - y) ** 2, weights)


def weighted_log_loss(y: FloatArray, p: FloatArray, weights: FloatArray) -> FloatArray:
    """The mean negative log-likelihood of the outcomes (Good 1952), in nats."""
    held = np.clip(p, EPSILON, 1 - EPSILON)
    return _mean(-np.where(y == 1, np.log(held), np.log1p(-held)), weights)


def weighted_rmse(y: FloatArray, predicted: FloatArray, weights: FloatArray) -> FloatArray:
    """The root of the mean squared error, in the unit of y."""
    return np.asarray(np.sqrt(_mean((predicted - y) ** 2, weights)), dtype=np.float64)


def weighted_mae(y: FloatArray, predicted: FloatArray, weights: FloatArray) -> FloatArray:
    """The mean absolute error, in the unit of y."""
    return _mean(np.abs(predicted - y), weights)


def weighted_ratio(y: FloatArray, predicted: FloatArray, weights: FloatArray) -> FloatArray:
    """Actual over expected: sum of y / sum of predicted. Above 1 the model expects too little."""
    return _ratio(_sum(y, weights), _sum(predicted, weights))


def weighted_spearman(y: FloatArray, predicted: FloatArray, weights: FloatArray) -> FloatArray:
    """Pearson's correlation of the mid-ranks (Spearman 1904); NaN if a side has one value."""
    a, b = _mid_ranks(y, weights), _mid_ranks(predicted, weights)
    total = weights.sum(axis=1, keepdims=True)
    a -= np.sum(weights * a, axis=1, keepdims=True) / total
    b -= np.sum(weights * b, axis=1, keepdims=True) / total
    covariance = np.sum(weights * a * b, axis=1)
    spread = np.sum(weights * a * a, axis=1) * np.sum(weights * b * b, axis=1)
    return _ratio(covariance, np.sqrt(spread))


WEIGHTED: dict[MetricName, WeightedMetric] = {
    "auc": weighted_auc,
    "ks": weighted_ks,
    "pr_auc": weighted_pr_auc,
    "brier": weighted_brier,
    "log_loss": weighted_log_loss,
    "rmse": weighted_rmse,
    "mae": weighted_mae,
    "spearman": weighted_spearman,
    "calibration_ratio": weighted_ratio,
}


def once(metric: MetricName, y: FloatArray, score: FloatArray) -> float:
    """The metric of the rows as they are."""
    return float(WEIGHTED[metric](y, score, np.ones((1, len(y))))[0])


def bootstrap(
    metrics: tuple[MetricName, ...],
    y: FloatArray,
    scores: tuple[FloatArray, ...],
    *,
    seed: int,
    resamples: int,
    users: IntArray | None = None,
) -> dict[MetricName, FloatArray]:
    """Each metric of each score vector over the same resamples: name → (scores, resamples).

    Rows are drawn with replacement as pairs (Efron and Tibshirani 1993, chapter 6), all rows of a
    user together (`models.scoring.clusters`; None: each row is another's). All scores see the same
    draw, so their differences are paired.
    """
    own = own_of(users, len(y))
    blocks: dict[MetricName, list[FloatArray]] = {name: [] for name in metrics}
    for weights in _resampled(own, seed, resamples):
        for name in metrics:
            values = [WEIGHTED[name](y, score, weights) for score in scores]
            blocks[name].append(np.stack(values))
    return {name: np.concatenate(values, axis=1) for name, values in blocks.items()}


def interval(value: float, replicates: FloatArray) -> Interval:
    """The 95 % percentile interval of the replicates that could be computed."""
    known = replicates[~np.isnan(replicates)]
    if not len(known):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _resampled(own: IntArray, seed: int, resamples: int) -> Iterator[FloatArray]:
    """Blocks of (r, rows) counts, r summing to `resamples`; `own`: which user, from 0, a row is."""
    rng = np.random.default_rng(seed)
    users = int(own.max()) + 1
    block = max(1, CELLS // len(own))
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn = rng.integers(0, users, size=(count, users))
        drawn += np.arange(count)[:, None] * users
        counts = np.bincount(drawn.ravel(), minlength=count * users)
        yield counts.reshape(count, users)[:, own].astype(np.float64)


def _ties(values: FloatArray) -> tuple[IntArray, IntArray]:
    """The ascending order, and where in it each group of equal values starts."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    return order, np.flatnonzero(first)


def _class_weights(
    y: FloatArray, score: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Weight of positives and of negatives at each distinct score, ascending: (R, groups)."""
    order, starts = _ties(score)
    ordered = weights[:, order]
    positive = np.add.reduceat(ordered * y[order], starts, axis=1)
    return positive, np.add.reduceat(ordered, starts, axis=1) - positive


def _mid_ranks(values: FloatArray, weights: FloatArray) -> FloatArray:
    """The mid-rank of each row among the weighted rows: (R, N)."""
    order, starts = _ties(values)
    group = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(group, axis=1) - 0.5 * (group - 1)
    sizes = np.diff(np.append(starts, len(values)))
    ranks = np.empty_like(weights)
    ranks[:, order] = np.repeat(middle, sizes, axis=1)
    return ranks


def _mean(loss: FloatArray, weights: FloatArray) -> FloatArray:
    return np.asarray(_sum(loss, weights) / weights.sum(axis=1), dtype=np.float64)


def _sum(values: FloatArray, weights: FloatArray) -> FloatArray:
    # not a matrix product: its last bits depend on the number of threads
    return np.asarray(np.einsum("rn,n->r", weights, values), dtype=np.float64)


def _ratio(top: FloatArray, bottom: FloatArray) -> FloatArray:
    """top / bottom; NaN where bottom is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(bottom == 0, np.nan, top / bottom), dtype=np.float64)
