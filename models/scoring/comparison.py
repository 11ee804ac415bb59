"""One task's model beside its baselines and, where the truth is known, the oracle.

The arguments are columns (N,) of the test rows; a label is NaN where the outcome is unknown, and
`users` says whose each row is (`models.scoring.clusters`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.data.strict import Strict
from models.scoring.bootstrap import MetricName, bootstrap, interval
from models.scoring.clusters import IntArray
from models.scoring.curves import (
    Bin,
    Curve,
    Number,
    Value,
    amount_bins,
    precision_recall,
    rate_bins,
    roc,
)
from models.scoring.expert import NAMES
from models.scoring.metrics import (
    amount_metrics,
    at_threshold,
    binary_metrics,
    measure,
    paired_difference,
)
from models.scoring.stack import NETWORK

FloatArray = NDArray[np.float64]
MODEL, ORACLE = "model", "oracle"
HIGHER_IS_BETTER: dict[MetricName, bool] = {
    "auc": True, "log_loss": False, "spearman": True, "rmse": False,
}  # fmt: skip


class BinaryScores(Strict):
    """`models.scoring.metrics.BinaryMetrics`, JSON-ready."""

    rows: int
    positives: int
    base_rate: float
    mean_predicted: float
    auc: Value
    ks: Value
    pr_auc: Value
    brier: Value
    log_loss: Value
    calibration_slope: Value
    calibration_intercept: Value
    ece: Number
    ece_band: Value
    threshold: float
    precision: Number
    recall: Number
    f1: Number


class AmountScores(Strict):
    """`models.scoring.metrics.AmountMetrics`, JSON-ready."""

    rows: int
    mean_actual: float
    mean_predicted: float
    rmse: Value
    mae: Value
    spearman: Value
    calibration_ratio: Value
    calibration_slope: Value


class BinaryContender(Strict):
    """The model, a baseline or the oracle on a binary task."""

    name: str
    scores: BinaryScores
    roc: Curve
    pr: Curve


class AmountContender(Strict):
    """The model, a baseline or the oracle on an amount task."""

    name: str
    scores: AmountScores


class Difference(Strict):
    """metric(`of`) − metric(`against`) on the same rows, paired bootstrap."""

    of: str = MODEL
    against: str
    metric: MetricName
    difference: Value

    @property
    def verdict(self) -> Literal["better", "worse", "no clear difference", "unknown"]:
        """Of the first: better or worse where the interval leaves out 0."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None:
            return "unknown"
        if low <= 0 <= high:
            return "no clear difference"
        return "better" if (low > 0) == HIGHER_IS_BETTER[self.metric] else "worse"


class AgainstOracle(Strict):
    """How much of what can be known the model knows.

    `share`: of the oracle's AUC lift over 0.5, or of its Spearman. `regret`: log-loss, or RMSE,
    above the oracle's. `withheld`: the oracle's AUC, or Spearman, with one modality's part
    replaced by its mean.
    """

    rows: int
    share: Value
    regret: Value
    withheld: dict[str, Value]


class Threshold(Strict):
    """A cut of the policy: who is flagged, and how rightly. `score`: the same cut as a score."""

    name: str
    score: float | None = None
    probability: float
    flagged: float
    precision: Number
    recall: Number
    f1: Number


class BinaryTask(Strict):
    """All of a binary task. `contenders`: the model first; none where no outcome is known.

    `through_the_door`: the same contenders on all rows, those included whose outcome the lender
    never saw; empty where none was hidden or the truth is not known.
    """

    kind: Literal["binary"] = "binary"
    rows: int
    known: int
    contenders: tuple[BinaryContender, ...] = ()
    differences: tuple[Difference, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    calibration: tuple[Bin, ...] = ()
    oracle: AgainstOracle | None = None
    through_the_door: tuple[BinaryContender, ...] = ()


class AmountTask(Strict):
    """All of an amount task; as `BinaryTask`."""

    kind: Literal["amount"] = "amount"
    rows: int
    known: int
    contenders: tuple[AmountContender, ...] = ()
    differences: tuple[Difference, ...] = ()
    deciles: tuple[Bin, ...] = ()
    oracle: AgainstOracle | None = None


@dataclass(frozen=True)
class Truth:
    """What the simulator knows of the test rows, NaN where it says nothing.

    `expected`: the true probability or mean; `value`: the outcome; `hidden`: whether the lender
    never saw it; `withheld`: `expected` without one modality, by name.
    """

    expected: FloatArray
    value: FloatArray
    hidden: NDArray[np.bool_]
    withheld: Mapping[str, FloatArray]


@dataclass(frozen=True)
class Cut:
    """A named threshold: flagged if the probability is at least this."""

    name: str
    probability: float
    score: float | None = None


def compare_binary(
    y: FloatArray,
    predictions: Mapping[str, FloatArray],
    cuts: Sequence[Cut],
    *,
    users: IntArray,
    seed: int,
    resamples: int,
    truth: Truth | None = None,
) -> BinaryTask:
    """`predictions`: name → probabilities, `MODEL` among them. The first cut is the contenders'."""
    known = np.isfinite(y)
    if not known.any():
        return BinaryTask(rows=len(y), known=0)
    shown = _with_oracle(predictions, truth, known)
    target = y[known]
    p = predictions[MODEL][known]
    door: tuple[BinaryContender, ...] = ()
    if truth is not None and (~known & truth.hidden).any():
        whole = np.where(~known & truth.hidden, truth.value, y)
        seen = np.isfinite(whole)
        everyone = _with_oracle(predictions, truth, seen)
        door = tuple(
            _binary(name, whole[seen], values[seen], cuts[0], users[seen], seed, resamples)
            for name, values in everyone.items()
        )
    return BinaryTask(
        rows=len(y),
        known=int(known.sum()),
        contenders=tuple(
            _binary(name, target, values[known], cuts[0], users[known], seed, resamples)
            for name, values in shown.items()
        ),
        differences=_differences(y, predictions, ("auc", "log_loss"), users, seed, resamples),
        thresholds=tuple(_threshold(target, p, cut) for cut in cuts),
        calibration=rate_bins(target, p),
        oracle=_against_oracle(
            y, predictions[MODEL], truth, ("auc", "log_loss"), users, seed, resamples
        ),
        through_the_door=door,
    )


def compare_amount(
    y: FloatArray,
    predictions: Mapping[str, FloatArray],
    *,
    users: IntArray,
    seed: int,
    resamples: int,
    truth: Truth | None = None,
) -> AmountTask:
    """`predictions`: name → expected amounts, `MODEL` among them."""
    known = np.isfinite(y)
    if not known.any():
        return AmountTask(rows=len(y), known=0)
    contenders = []
    for name, values in _with_oracle(predictions, truth, known).items():
        metrics = amount_metrics(
            y[known], values[known], users=users[known], seed=seed, resamples=resamples
        )
        scores = AmountScores.model_validate(metrics.to_dict())
        contenders.append(AmountContender(name=name, scores=scores))
    return AmountTask(
        rows=len(y),
        known=int(known.sum()),
        contenders=tuple(contenders),
        differences=_differences(y, predictions, ("spearman", "rmse"), users, seed, resamples),
        deciles=amount_bins(y[known], predictions[MODEL][known]),
        oracle=_against_oracle(
            y, predictions[MODEL], truth, ("spearman", "rmse"), users, seed, resamples
        ),
    )


def _binary(
    name: str,
    y: FloatArray,
    p: FloatArray,
    cut: Cut,
    users: IntArray,
    seed: int,
    resamples: int,
) -> BinaryContender:
    metrics = binary_metrics(
        y, p, threshold=cut.probability, users=users, seed=seed, resamples=resamples
    )
    scores = BinaryScores.model_validate(metrics.to_dict())
    return BinaryContender(name=name, scores=scores, roc=roc(y, p), pr=precision_recall(y, p))


def _with_oracle(
    predictions: Mapping[str, FloatArray], truth: Truth | None, rows: NDArray[np.bool_]
) -> dict[str, FloatArray]:
    """The contenders, the oracle among them where it speaks of all these rows."""
    if truth is None or not np.isfinite(truth.expected[rows]).all():
        return dict(predictions)
    return {**predictions, ORACLE: truth.expected}


def _differences(
    y: FloatArray,
    predictions: Mapping[str, FloatArray],
    metrics: tuple[MetricName, ...],
    users: IntArray,
    seed: int,
    resamples: int,
) -> tuple[Difference, ...]:
    known = np.isfinite(y)
    pairs = [(MODEL, name) for name in predictions if name != MODEL]
    if NETWORK in predictions:  # a stack: its network beside its experts
        pairs += [(NETWORK, name) for name in NAMES if name in predictions]
    return tuple(
        Difference(
            of=one,
            against=other,
            metric=metric,
            difference=Value.of(
                paired_difference(
                    metric,
                    y[known],
                    predictions[one][known],
                    predictions[other][known],
                    users=users[known],
                    seed=seed,
                    resamples=resamples,
                )
            ),
        )
        for one, other in pairs
        for metric in metrics
    )


def _against_oracle(
    y: FloatArray,
    model: FloatArray,
    truth: Truth | None,
    metrics: tuple[MetricName, MetricName],
    users: IntArray,
    seed: int,
    resamples: int,
) -> AgainstOracle | None:
    if truth is None:
        return None
    rows = np.isfinite(y) & np.isfinite(truth.expected)
    if not rows.any():
        return None
    target, ours, best = y[rows], model[rows], truth.expected[rows]
    rank, loss = metrics
    chance = 0.5 if rank == "auc" else 0.0

    def drawn(*scores: FloatArray) -> FloatArray:
        return bootstrap(
            (rank,), target, scores, users=users[rows], seed=seed, resamples=resamples
        )[rank]

    draws = drawn(ours, best)
    reached, possible = measure(rank, target, ours), measure(rank, target, best)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.divide(reached - chance, possible - chance)
        replicates = np.divide(draws[0] - chance, draws[1] - chance)
    withheld = {}
    for name, values in truth.withheld.items():
        part = values[rows]
        withheld[name] = Value.of(interval(measure(rank, target, part), drawn(part)[0]))
    return AgainstOracle(
        rows=int(rows.sum()),
        share=Value.of(interval(float(value), replicates)),
        regret=Value.of(
            paired_difference(
                loss, target, ours, best, users=users[rows], seed=seed, resamples=resamples
            )
        ),
        withheld=withheld,
    )


def _threshold(y: FloatArray, p: FloatArray, cut: Cut) -> Threshold:
    precision, recall, f1 = at_threshold(y, p, cut.probability)
    return Threshold(
        name=cut.name,
        score=cut.score,
        probability=cut.probability,
        flagged=float(np.mean(p >= cut.probability)),
        precision=precision,
        recall=recall,
        f1=f1,
    )
