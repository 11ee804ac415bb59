"""What is fitted on the fit role and travels with the model: vocabulary, quantiles, base rates."""

import math
from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import ndtri

from models.data.features import Features
from models.data.schema import UserError
from models.data.strict import Strict
from models.data.tasks import Task
from models.data.vocabulary import Vocabulary

QUANTILES = 65
TAIL = 0.005  # scores are those of the quantiles clipped to [TAIL, 1 − TAIL]: ± 2.58


class Scale(Strict):
    """A monotone map of a column to about a standard normal: knots, and the score at each."""

    knots: tuple[float, ...]
    scores: tuple[float, ...]

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores by linear interpolation, flat beyond the ends; NaN stays NaN."""
        if not self.knots:
            return np.where(np.isnan(values), np.nan, 0.0)
        return np.asarray(np.interp(values, self.knots, self.scores), dtype=np.float64)


class Target(Strict):
    """The base rate of a task: the share of positives, and the logarithm of positive amounts."""

    rate: float
    log_mean: float = 0.0
    log_std: float = 1.0


class Stats(Strict):
    """Fitted on the fit role only; converts new data exactly as it did the training data."""

    vocabulary: Vocabulary
    tabular: dict[str, Scale]
    social: dict[str, Scale]
    amount: Scale
    targets: dict[str, Target]


def fit_stats(
    vocabulary: Vocabulary, fit: Features, labels: pl.DataFrame, tasks: Mapping[str, Task]
) -> Stats:
    """Stats of the fit role's features; `labels` holds `y_<task>` with nulls, row by row."""
    amounts = fit.frame["events_amount"].explode().drop_nulls().cast(pl.Float64)
    return Stats(
        vocabulary=vocabulary,
        tabular={c: fit_scale(fit.frame[c]) for c in fit.tabular},
        social={c: fit_scale(fit.frame[c]) for c in fit.social},
        amount=fit_scale(amounts),
        targets={name: fit_target(name, task, labels[f"y_{name}"]) for name, task in tasks.items()},
    )


def fit_scale(values: pl.Series) -> Scale:
    """Knots at the quantiles of the known values; tied quantiles share their mean score."""
    known = values.drop_nulls().to_numpy()
    if len(known) == 0:
        return Scale(knots=(), scores=())
    at = np.linspace(0.0, 1.0, QUANTILES)
    scores = ndtri(np.clip(at, TAIL, 1 - TAIL))
    knots, which = np.unique(np.quantile(known, at), return_inverse=True)
    if len(knots) == 1:
        return Scale(knots=(), scores=())
    mean = np.bincount(which, weights=scores) / np.bincount(which)
    return Scale(knots=tuple(knots.tolist()), scores=tuple(mean.tolist()))


def fit_target(name: str, task: Task, labels: pl.Series) -> Target:
    """The base rate of a task. Raises UserError when there is nothing to learn."""
    known = labels.drop_nulls()
    if known.is_empty():
        raise UserError(f"tasks.{name}: no label in the fit role")
    rate = int((known > 0).sum()) / known.len()
    if task.kind == "binary":
        if rate in (0.0, 1.0):
            raise UserError(f"tasks.{name}: only one class in the fit role (all {int(rate)})")
        return Target(rate=rate)
    positive = known.filter(known > 0).log()
    if positive.len() < 2:
        raise UserError(f"tasks.{name}: fewer than two positive amounts in the fit role")
    std = positive.std()
    assert isinstance(std, float)
    mean = positive.mean()
    assert isinstance(mean, float)
    return Target(rate=min(rate, 1 - 1e-6), log_mean=mean, log_std=max(std, 1e-3))


def logit(rate: float) -> float:
    """Log odds of a rate."""
    return math.log(rate / (1 - rate))
