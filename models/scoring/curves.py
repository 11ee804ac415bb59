"""What is drawn of predictions: ROC and PR curves, calibration by bins; JSON-ready."""

import math
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator
from scipy.stats import binom, binomtest
from sklearn.metrics import precision_recall_curve, roc_curve

from models.data.strict import Strict
from models.scoring.bootstrap import Interval
from models.scoring.metrics import Z_95, equal_mass

FloatArray = NDArray[np.float64]
POINTS = 200  # of a curve: finer than a plot shows


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_known)]  # None: cannot be computed


class Value(Strict):
    """An estimate with its 95 % interval."""

    value: Number
    low: Number = None
    high: Number = None

    @classmethod
    def of(cls, interval: Interval) -> "Value":
        return cls(value=interval.value, low=interval.low, high=interval.high)


class Curve(Strict):
    """Points in drawing order; none where there is no curve."""

    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()


class Bin(Strict):
    """A bin of neighbouring predictions: the mean predicted, and what was observed.

    `expected` is where 95 % of the observed rates lie if the predictions are true; None for
    amounts, whose distribution is not predicted.
    """

    rows: int
    predicted: float
    observed: Value
    expected: Value | None = None


def roc(y: FloatArray, p: FloatArray) -> Curve:
    """x: share of negatives flagged, y: share of positives flagged; empty for one class."""
    if y.min() == y.max():
        return Curve()
    fpr, tpr, _ = roc_curve(y, p)
    return _thinned(fpr, tpr, along=fpr + tpr)


def precision_recall(y: FloatArray, p: FloatArray) -> Curve:
    """x: recall, y: precision, from the lowest threshold on; empty for one class.

    Without the point (0, 1) that scikit-learn adds: no threshold reaches it.
    """
    if y.min() == y.max():
        return Curve()
    precision, recall, _ = precision_recall_curve(y, p)
    return _thinned(recall[:-1], precision[:-1], along=-recall[:-1])


def rate_bins(y: FloatArray, p: FloatArray, *, bins: int = 10) -> tuple[Bin, ...]:
    """Bins of equal mass of probabilities; the same bins as the ECE.

    Observed rates with Wilson's interval (1927); the expected band is that of a binomial with
    the bin's mean probability, a little wider than the truth (Hoeffding 1956).
    """
    result = []
    for rows in _bins(p, bins):
        n, mean = len(rows), float(p[rows].mean())
        low, high = binom.ppf((0.025, 0.975), n, mean) / n
        result.append(
            Bin(
                rows=n,
                predicted=mean,
                observed=wilson(int(y[rows].sum()), n),
                expected=Value(value=mean, low=float(low), high=float(high)),
            )
        )
    return tuple(result)


def amount_bins(y: FloatArray, predicted: FloatArray, *, bins: int = 10) -> tuple[Bin, ...]:
    """Bins of equal mass of amounts; observed means with the normal interval."""
    result = []
    for rows in _bins(predicted, bins):
        n, mean = len(rows), float(y[rows].mean())
        error = Z_95 * float(y[rows].std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
        observed = Value(value=mean, low=mean - error, high=mean + error)
        result.append(Bin(rows=n, predicted=float(predicted[rows].mean()), observed=observed))
    return tuple(result)


def wilson(successes: int, n: int) -> Value:
    """A share with Wilson's score interval; all None for n = 0."""
    if not n:
        return Value(value=None)
    found = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return Value(value=successes / n, low=float(found.low), high=float(found.high))


def _bins(values: FloatArray, bins: int) -> list[NDArray[np.int64]]:
    order, starts = equal_mass(values, bins)
    return np.split(order, starts[1:])


def _thinned(x: FloatArray, y: FloatArray, *, along: FloatArray) -> Curve:
    """At most `POINTS` points, evenly spaced in the rising `along`; both ends are kept."""
    steps = np.linspace(along[0], along[-1], POINTS)
    at = np.unique(np.r_[0, np.searchsorted(along, steps).clip(0, len(x) - 1), len(x) - 1])
    return Curve(x=tuple(x[at].tolist()), y=tuple(y[at].tolist()))
