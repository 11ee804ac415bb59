"""Evaluation of probabilities and amounts on the test role, with 95 % intervals.

Labels and predictions are columns (N,); `users` (N,) says whose the rows are (None: each
another's), and intervals take users whole. The ECE's band alone takes rows for independent: how
alike a user's outcomes are, probabilities do not say. Rank metrics of one class only are NaN; no
rows, or values out of range, raise UserError.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from models.data.schema import UserError
from models.scoring.bootstrap import (
    CELLS,
    EPSILON,
    FloatArray,
    Interval,
    MetricName,
    bootstrap,
    interval,
    once,
)
from models.scoring.clusters import IntArray, numbered, own_of, repeat

NAN = float("nan")
Z_95 = 1.959963984540054
BINARY: tuple[MetricName, ...] = ("auc", "ks", "pr_auc", "brier", "log_loss")
AMOUNT: tuple[MetricName, ...] = ("rmse", "mae", "spearman", "calibration_ratio")


@dataclass(frozen=True)
class BinaryMetrics:
    """What `binary_metrics` returns. `ece_band` is what a perfectly calibrated model shows."""

    rows: int
    positives: int
    base_rate: float
    mean_predicted: float
    auc: Interval
    ks: Interval
    pr_auc: Interval
    brier: Interval
    log_loss: Interval
    calibration_slope: Interval
    calibration_intercept: Interval
    ece: float
    ece_band: Interval
    threshold: float
    precision: float
    recall: float
    f1: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class AmountMetrics:
    """What `amount_metrics` returns; rmse, mae and means in the unit of the amounts."""

    rows: int
    mean_actual: float
    mean_predicted: float
    rmse: Interval
    mae: Interval
    spearman: Interval
    calibration_ratio: Interval
    calibration_slope: Interval

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def binary_metrics(
    y: ArrayLike,
    p: ArrayLike,
    *,
    threshold: float,
    seed: int,
    users: IntArray | None = None,
    resamples: int = 300,
    bins: int = 10,
) -> BinaryMetrics:
    """All metrics of a binary task. y: 0 and 1. p: probabilities. threshold: flagged if p >= it."""
    target, probability = _checked(y, p, binary=True, probability=True)
    draws = bootstrap(BINARY, target, (probability,), seed=seed, resamples=resamples, users=users)
    intercept, slope = calibration_line(target, probability, users)
    precision, recall, f1 = at_threshold(target, probability, threshold)
    ranged = {name: interval(once(name, target, probability), draws[name][0]) for name in BINARY}
    return BinaryMetrics(
        rows=len(target),
        positives=int(target.sum()),
        base_rate=float(target.mean()),
        mean_predicted=float(probability.mean()),
        **ranged,
        calibration_slope=slope,
        calibration_intercept=intercept,
        ece=ece(target, probability, bins=bins),
        ece_band=ece_band(probability, bins=bins, seed=seed),
        threshold=threshold,
        precision=precision,
        recall=recall,
        f1=f1,
    )


def amount_metrics(
    y: ArrayLike,
    predicted: ArrayLike,
    *,
    seed: int,
    users: IntArray | None = None,
    resamples: int = 300,
) -> AmountMetrics:
    """All metrics of an amount task. y, predicted: amounts in one unit."""
    target, amount = _checked(y, predicted, binary=False, probability=False)
    draws = bootstrap(AMOUNT, target, (amount,), seed=seed, resamples=resamples, users=users)
    ranged = {name: interval(once(name, target, amount), draws[name][0]) for name in AMOUNT}
    return AmountMetrics(
        rows=len(target),
        mean_actual=float(target.mean()),
        mean_predicted=float(amount.mean()),
        **ranged,
        calibration_slope=amount_calibration_slope(target, amount, users),
    )


def measure(metric: MetricName, y: ArrayLike, score: ArrayLike) -> float:
    """One metric of the rows as they are; definitions in `models.scoring.bootstrap`."""
    return once(metric, *_for_metric(metric, y, score))


def paired_difference(
    metric: MetricName,
    y: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    *,
    seed: int,
    users: IntArray | None = None,
    resamples: int = 1000,
) -> Interval:
    """metric(first) - metric(second), with the percentile interval of the paired bootstrap."""
    target, a = _for_metric(metric, y, first)
    _, b = _for_metric(metric, y, second)
    draws = bootstrap((metric,), target, (a, b), seed=seed, resamples=resamples, users=users)
    difference = once(metric, target, a) - once(metric, target, b)
    return interval(difference, draws[metric][0] - draws[metric][1])


def calibration_line(
    y: ArrayLike, p: ArrayLike, users: IntArray | None = None
) -> tuple[Interval, Interval]:
    """(intercept, slope) of the logistic regression of y on logit p (Cox 1958); ideal 0 and 1.

    A slope below 1: predictions too extreme. Wald intervals, by the model's variance or, where
    users have several rows, by the sandwich over users (Liang and Zeger 1986). NaN if all outcomes
    or all predictions are equal, or the outcomes are separated.
    """
    target, probability = _checked(y, p, binary=True, probability=True)
    held = np.clip(probability, EPSILON, 1 - EPSILON)
    own = own_of(users, len(target))
    sandwich = own if repeat(own) else None
    return _line(np.log(held) - np.log1p(-held), target, "logistic", sandwich)


def amount_calibration_slope(
    y: ArrayLike, predicted: ArrayLike, users: IntArray | None = None
) -> Interval:
    """b of ln E[y] = a + b·ln(predicted), rows with predicted > 0; ideal 1.

    Poisson quasi-likelihood with the sandwich variance (Gourieroux, Monfort and Trognon 1984) over
    users, as amounts vary more than counts. NaN where there is nothing to fit.
    """
    target, amount = _checked(y, predicted, binary=False, probability=False)
    usable = amount > 0
    if not usable.any():
        return Interval(NAN, NAN, NAN)
    mean = float(np.abs(target[usable]).mean()) or 1.0  # free of the currency's unit
    sandwich = numbered(own_of(users, len(target))[usable])
    return _line(np.log(amount[usable]), target[usable] / mean, "poisson", sandwich)[1]


def ece(y: ArrayLike, p: ArrayLike, *, bins: int = 10) -> float:
    """Expected calibration error: sum over bins of share * |observed rate - mean probability|.

    Naeini, Cooper and Hauskrecht (2015), with bins of equal mass; equal probabilities are never
    split over two bins.
    """
    target, probability = _checked(y, p, binary=True, probability=True)
    order, starts = equal_mass(probability, bins)
    gap = np.add.reduceat((target - probability)[order], starts)
    return float(np.abs(gap).sum() / len(target))


def ece_band(p: ArrayLike, *, bins: int = 10, seed: int, simulations: int = 500) -> Interval:
    """Mean and 95 % band of the ECE if every probability were true (y ~ Bernoulli(p)).

    The consistency resampling of Bröcker and Smith (2007).
    """
    probability = _column("p", p)
    _within_unit(probability)
    order, starts = equal_mass(probability, bins)
    ordered = probability[order]
    rng = np.random.default_rng(seed)
    block = max(1, CELLS // len(ordered))
    errors = []
    for start in range(0, simulations, block):
        shape = (min(block, simulations - start), len(ordered))
        gap = np.add.reduceat((rng.random(shape) < ordered) - ordered, starts, axis=1)
        errors.append(np.abs(gap).sum(axis=1) / len(ordered))
    simulated = np.concatenate(errors)
    return interval(float(simulated.mean()), simulated)


def at_threshold(y: ArrayLike, p: ArrayLike, threshold: float) -> tuple[float, float, float]:
    """(precision, recall, F1) of the flag p >= threshold; NaN where a denominator is 0."""
    target, score = _checked(y, p, binary=True, probability=False)
    flagged = score >= threshold
    hits, positives = float(target[flagged].sum()), float(target.sum())
    precision = hits / flagged.sum() if flagged.any() else NAN
    recall = hits / positives if positives else NAN
    either = float(flagged.sum()) + positives
    return float(precision), recall, 2 * hits / either if either else NAN


def equal_mass(p: FloatArray, bins: int) -> tuple[IntArray, IntArray]:
    """The ascending order of p, and where in it each bin starts; ties share a bin."""
    order = np.argsort(p, kind="stable")
    ordered = p[order]
    edges = ordered[np.arange(bins) * len(p) // bins]
    return order, np.unique(np.searchsorted(ordered, edges, side="left"))


def _line(
    x: FloatArray,
    y: FloatArray,
    family: Literal["logistic", "poisson"],
    sandwich: IntArray | None,
) -> tuple[Interval, Interval]:
    """(intercept, slope) of E[y] = g(a + b·x): Newton's method with halved steps.

    `sandwich`: the users, from 0, over whom the variance is taken; None: the model's variance.
    """
    unknown = Interval(NAN, NAN, NAN)
    if np.ptp(x) == 0 or _unbounded(x, y, family):
        return unknown, unknown
    centre, spread = float(x.mean()), float(x.std())
    design = np.stack([np.ones_like(x), (x - centre) / spread], axis=1)
    theta = np.array([_link(float(y.mean()), family), 0.0])
    value = _deviance(design @ theta, y, family)
    for _ in range(100):
        mean, variance = _moments(design @ theta, family)
        information = _gram(design, variance)
        if np.linalg.cond(information) > 1 / np.finfo(np.float64).eps:
            return unknown, unknown
        gradient = np.einsum("ni,n->i", design, y - mean)
        step = np.linalg.solve(information, gradient)
        if gradient @ step < 1e-12:
            break
        while (proposed := _deviance(design @ (theta + step), y, family)) > value:
            step = step / 2
        theta, value = theta + step, proposed
    else:
        return unknown, unknown
    covariance = np.linalg.inv(information)
    if sandwich is not None:
        score = design * (y - mean)[:, None]
        sums = np.zeros((int(sandwich.max()) + 1, 2))
        np.add.at(sums, sandwich, score)
        covariance = covariance @ _gram(sums, np.ones(len(sums))) @ covariance
    back = np.array([[1.0, -centre / spread], [0.0, 1.0 / spread]])
    estimate, error = back @ theta, np.sqrt(np.diag(back @ covariance @ back.T))
    intercept, slope = (
        Interval(float(v), float(v - Z_95 * e), float(v + Z_95 * e))
        for v, e in zip(estimate, error, strict=True)
    )
    return intercept, slope


def _gram(design: FloatArray, weight: FloatArray) -> FloatArray:
    return np.asarray(np.einsum("ni,nj->ij", design * weight[:, None], design), dtype=np.float64)


def _unbounded(x: FloatArray, y: FloatArray, family: str) -> bool:
    """Whether the best line is infinitely steep or low: one outcome, or x separates them."""
    if family == "logistic":
        no, yes = x[y == 0], x[y == 1]
        return not (no.size and yes.size) or bool(no.max() <= yes.min() or yes.max() <= no.min())
    paid = x[y != 0]
    return bool(y.sum() <= 0 or paid.min() == x.max() or paid.max() == x.min())


def _link(mean: float, family: str) -> float:
    return float(np.log(mean / (1 - mean)) if family == "logistic" else np.log(mean))


def _moments(eta: FloatArray, family: str) -> tuple[FloatArray, FloatArray]:
    if family == "logistic":
        mean = np.asarray(expit(eta), dtype=np.float64)
        return mean, mean * (1 - mean)
    mean = np.exp(eta)
    return mean, mean


def _deviance(eta: FloatArray, y: FloatArray, family: str) -> float:
    """Half the deviance up to a constant: the convex function that the fit minimises."""
    with np.errstate(over="ignore"):
        log_partition = np.logaddexp(0.0, eta) if family == "logistic" else np.exp(eta)
    return float(np.sum(log_partition - y * eta))


def _for_metric(
    metric: MetricName, y: ArrayLike, score: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    probability = metric in ("brier", "log_loss")
    return _checked(y, score, binary=metric in BINARY, probability=probability)


def _checked(
    y: ArrayLike, score: ArrayLike, *, binary: bool, probability: bool
) -> tuple[FloatArray, FloatArray]:
    target, prediction = _column("y", y), _column("prediction", score)
    assert target.shape == prediction.shape, (target.shape, prediction.shape)
    if binary:
        odd = np.flatnonzero((target != 0) & (target != 1))
        if odd.size:
            raise UserError(f"metrics: y: row {odd[0]}: {target[odd[0]]:g}; 0 or 1 was expected")
    if probability:
        _within_unit(prediction)
    return target, prediction


def _column(name: str, values: ArrayLike) -> FloatArray:
    column = np.asarray(values, dtype=np.float64)
    assert column.ndim == 1, column.shape
    if not len(column):
        raise UserError(f"metrics: {name}: no rows to evaluate")
    bad = np.flatnonzero(~np.isfinite(column))
    if bad.size:
        raise UserError(f"metrics: {name}: row {bad[0]}: {column[bad[0]]}, not finite")
    return column


def _within_unit(p: FloatArray) -> None:
    bad = np.flatnonzero((p < 0) | (p > 1))
    if bad.size:
        raise UserError(f"metrics: p: row {bad[0]}: {p[bad[0]]:g}; 0 to 1 was expected")
