"""A task's sources — the network, its experts — combined into one value, to be calibrated.

Stacked generalisation (Wolpert 1992) with one weight a source: the weighted mean of their logits,
or of the logarithms of their expected amounts. Weights are maximum likelihood of the calibrate
role's labels with no weight below 0 (Breiman 1996, "Stacked regressions"), and an expert has one
only where cross-validation shows that it helps. Shapes: S sources, N rows.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import minimize
from scipy.special import expit

from models.data.strict import Strict
from models.data.tasks import Kind
from models.scoring.calibrate import (
    PRIOR_PRECISION,
    AmountCalibrator,
    BinaryCalibrator,
)
from models.scoring.clusters import IntArray, count_of, standard_error, stratified_folds

FloatArray = NDArray[np.float64]
Values = Mapping[str, FloatArray]  # source → raw values: logits, or amounts
Weights = Mapping[str, float]  # source → its share

NETWORK = "network"
ALONE: Weights = {NETWORK: 1.0}
LEAST_AMOUNT = 1e-6  # ln 0 has no place in a mean of logarithms
FOLDS = 5


class TaskStack(Strict):
    """How a task's value is made of its sources.

    `weights` sum to 1; `replicates`: those of the bootstrap samples whose calibrators give a
    probability its interval. `cv_loss`: what the network alone and the stack reached. `alone`:
    each source's own calibrator, for comparison; no score contains it.
    """

    weights: Weights
    replicates: tuple[Weights, ...] = ()
    cv_loss: Mapping[str, float] = Field(default_factory=dict)
    alone: Mapping[str, BinaryCalibrator | AmountCalibrator] = Field(default_factory=dict)

    @property
    def sources(self) -> set[str]:
        """All that have a weight in the value or in its interval."""
        return {source for weights in (self.weights, *self.replicates) for source in weights}


def combine(kind: Kind, weights: Weights, values: Values) -> FloatArray:
    """(N,) weighted mean: of logits, or of the logarithms of amounts; row by row the same bits.

    A source without weight need have no values.
    """
    (first, *others) = [(weight, values[name]) for name, weight in weights.items() if weight]
    if not others:
        return first[1]
    # a sum in fixed order: a matrix product may round differently for other batch sizes
    total = first[0] * _linear(kind, first[1])
    for weight, value in others:
        total = total + weight * _linear(kind, value)
    return total if kind == "binary" else np.exp(total)


def fit_weights(kind: Kind, values: Values, y_N: FloatArray) -> Weights:
    """Each source's share of the maximum likelihood coefficients."""
    coefficients = _fit(kind, _stacked(kind, values), y_N)[1:]
    total = float(coefficients.sum())
    if not total:  # nobody knows anything: the network is as good as any
        return ALONE
    shares = zip(values, (coefficients / total).tolist(), strict=True)
    return {source: share for source, share in shares if share}


def choose(
    kind: Kind, values: Values, y_N: FloatArray, users: IntArray, seed: int
) -> tuple[bool, dict[str, float]]:
    """Whether the stack is better than the network alone, and the cross-validated loss of both.

    The loss is that of the likelihood; the network stays alone unless it is behind by more than
    one standard error of the paired difference (the one-standard-error rule, as for the family of
    a calibrator). `users`: (N,) whose rows they are, never in two folds. With too few to tell, it
    stays alone: of a probability each fold needs both outcomes, of an amount one above 0.
    """
    some, none = count_of(users, y_N != 0), count_of(users, y_N == 0)
    enough = (some if kind == "amount" else min(some, none)) >= FOLDS
    if len(values) == 1 or not enough:
        return False, {}
    above = (y_N > 0).astype(np.float64)
    fold = stratified_folds(above, users, FOLDS, np.random.default_rng(seed))
    x_SN = _stacked(kind, values)
    alone = _held_out(kind, x_SN[:1], y_N, fold)
    stack = _held_out(kind, x_SN, y_N, fold)
    gain = alone - stack
    better = gain.mean() > standard_error(gain, users)
    return bool(better), {"network": float(alone.mean()), "stack": float(stack.mean())}


def _linear(kind: Kind, value: FloatArray) -> FloatArray:
    """A source's value on the scale where it is weighted."""
    return value if kind == "binary" else np.log(np.maximum(value, LEAST_AMOUNT))


def _stacked(kind: Kind, values: Values) -> FloatArray:
    return np.stack([_linear(kind, value) for value in values.values()])


def _held_out(kind: Kind, x_SN: FloatArray, y_N: FloatArray, fold: NDArray[np.int64]) -> FloatArray:
    """The loss of each row under the coefficients fitted without its fold."""
    loss = np.empty(len(y_N))
    for k in range(int(fold.max()) + 1):
        held = fold == k
        theta = _fit(kind, x_SN[:, ~held], y_N[~held])
        loss[held] = _loss(kind, theta[0] + theta[1:] @ x_SN[:, held], y_N[held])
    return loss


def _loss(kind: Kind, eta: FloatArray, y_N: FloatArray) -> FloatArray:
    """Cross-entropy; or the Poisson quasi-likelihood, which asks only that the mean be right."""
    rise = np.logaddexp(0.0, eta) if kind == "binary" else np.exp(eta)
    return np.asarray(rise - y_N * eta, dtype=np.float64)


def _fit(kind: Kind, x_SN: FloatArray, y_N: FloatArray) -> FloatArray:
    """Intercept and coefficients >= 0, with a weak normal prior around equal shares."""
    count, rows = x_SN.shape
    scale = 1.0 if kind == "binary" else max(float(y_N.mean()), LEAST_AMOUNT)
    y_N = y_N / scale
    mean_S = x_SN.mean(axis=1)
    off_SN = x_SN - mean_S[:, None]

    def loss(theta: FloatArray) -> tuple[float, FloatArray]:
        eta = theta[0] + np.einsum("s,sn->n", theta[1:], off_SN)
        away = theta[1:] - 1 / count
        residual = (expit(eta) if kind == "binary" else np.exp(eta)) - y_N
        value = float(_loss(kind, eta, y_N).sum() + 0.5 * PRIOR_PRECISION * (away @ away))
        slope_S = np.einsum("sn,n->s", off_SN, residual) + PRIOR_PRECISION * away
        return value / rows, np.r_[residual.sum(), slope_S] / rows

    rate = float(y_N.mean())
    start = np.log(rate / (1 - rate)) if kind == "binary" else 0.0
    result = minimize(
        loss,
        np.r_[start, np.full(count, 1 / count)],
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None), *[(0.0, None)] * count],
        options={"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-9},
    )
    theta = np.asarray(result.x, dtype=np.float64)
    theta[0] += np.log(scale) - theta[1:] @ mean_S
    return theta
