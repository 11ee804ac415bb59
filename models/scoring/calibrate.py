"""Continuous calibration of probabilities and expected amounts, fitted on the `calibrate` role.

Every probability map is c + sum_j w_j · basis_j(logit) on the logit scale with w_j > 0 and rising
basis functions, so it is continuous and strictly increasing: it never changes who ranks above
whom. Fitting is maximum likelihood with a weak normal prior that centres the weights on the
identity (standard deviation 10), which keeps separable data finite and leaves c free, so that
the mean probability of the fitted rows equals their default rate.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator
from scipy.optimize import brentq, minimize
from scipy.special import expit, logsumexp, softmax

from models.data.schema import UserError
from models.data.strict import Strict
from models.scoring.clusters import IntArray, count_of, own_of, standard_error, stratified_folds

FloatArray = NDArray[np.float64]
Kind = Literal["platt", "beta", "spline"]
KINDS: tuple[Kind, ...] = ("platt", "beta", "spline")  # from the simplest on

LOGIT_LIMIT = 30.0  # a probability stays 1e-13 away from 0 and 1, so that its log is finite
MIN_WEIGHT = 1e-3  # of a basis function: flat would not be strictly increasing
PRIOR_PRECISION = 0.01  # of a weight or exponent around 1
SMOOTHNESS = 1.0  # precision of the difference of neighbouring spline slopes around 0
KNOTS = 6
MAX_EXPONENT = 10.0  # of the amount map: a handful of rows could ask for any steepness
AMOUNT_FLOOR = 1e-4  # of the mean prediction: ln 0 has no place in a log-linear map


class BinaryCalibrator(Strict):
    """A calibrated probability from a logit; JSON (`model_dump_json`) gives the same bits back.

    `weights` belong to the basis functions of `kind`:
    - platt: z (Platt 1999);
    - beta: ln p and -ln(1 - p) (Kull, Silva Filho and Flach 2017, "Beta calibration");
    - spline: one a knot, the slope of the map there; between the knots the slope is linear, beyond
      them constant, so the map is a quadratic I-spline (Ramsay 1988) with straight tails.

    `cv_log_loss` holds what each kind reached in cross-validation (empty: too few rows to tell).
    """

    kind: Kind
    intercept: float
    weights: tuple[float, ...]
    knots: tuple[float, ...] = ()
    cv_log_loss: Mapping[Kind, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _increasing(self) -> "BinaryCalibrator":
        expected = {"platt": 1, "beta": 2, "spline": len(self.knots)}[self.kind]
        if len(self.weights) != expected or not expected:
            raise ValueError(f"weights: {expected} were expected, not {len(self.weights)}")
        if min(self.weights) <= 0:
            raise ValueError("weights: each must be above 0")
        if self.kind == "spline" and (len(self.knots) < 2 or min(np.diff(self.knots)) <= 0):
            raise ValueError("knots: at least two, ascending, were expected")
        return self

    def apply(self, logit: ArrayLike) -> FloatArray:
        """Probabilities strictly between 0 and 1; NaN (not estimated) stays NaN.

        Element by element: a value gives the same bits alone and in any batch.
        """
        return np.asarray(expit(self.log_odds(logit)), dtype=np.float64)

    def log_odds(self, logit: ArrayLike) -> FloatArray:
        """The logits of `apply`."""
        z = np.clip(np.asarray(logit, dtype=np.float64), -LOGIT_LIMIT, LOGIT_LIMIT)
        calibrated = np.full(z.shape, self.intercept)
        # a sum in fixed order: a matrix product may round differently for other batch sizes
        for weight, basis in zip(self.weights, _basis(self.kind, z, self.knots), strict=True):
            calibrated += weight * basis
        return np.asarray(np.clip(calibrated, -LOGIT_LIMIT, LOGIT_LIMIT), dtype=np.float64)


class AmountCalibrator(Strict):
    """Calibrated expected amounts: scale · (max(predicted, floor) / reference) ** exponent.

    That is ln E[y] = a + b·ln(predicted) with b = exponent and a = ln scale - b·ln reference;
    written so that scale 0 (nobody paid anything) needs no infinite a.
    """

    scale: float = Field(ge=0)
    exponent: float = Field(ge=0, le=MAX_EXPONENT)
    reference: float = Field(gt=0)
    floor: float = Field(gt=0)

    def apply(self, predicted: ArrayLike) -> FloatArray:
        """Amounts in the unit of `predicted`; NaN (not estimated) stays NaN."""
        amount = np.ascontiguousarray(predicted, dtype=np.float64)
        log_ratio = np.log(np.maximum(amount, self.floor) / self.reference)
        return np.asarray(self.scale * np.exp(self.exponent * log_ratio), dtype=np.float64)


def fit_binary(
    logit: ArrayLike, y: ArrayLike, *, users: IntArray | None = None, seed: int, folds: int = 5
) -> BinaryCalibrator:
    """Fit each kind, keep the simplest within one standard error of the best.

    logit: (N,) finite. y: (N,) of 0 and 1. users: (N,) whose rows they are, never in two folds
    (None: each another's). The standard error is that of the paired difference of the rows'
    cross-validated log-loss (the one-standard-error rule of Breiman et al. 1984); folds are
    stratified and seeded. With fewer than two users of an outcome Platt is taken unseen.

    Raises UserError for no rows, one outcome only, other labels, values that are not finite.
    """
    z, target = _checked_binary(logit, y)
    own = own_of(users, len(z))
    rarer = min(count_of(own, target == outcome) for outcome in (0, 1))
    if rarer < 2:
        return _fit_kind("platt", z, target)
    fold = stratified_folds(target, own, min(folds, rarer), np.random.default_rng(seed))
    losses = {kind: _cross_validated(kind, z, target, fold) for kind in KINDS}
    means = {kind: float(loss.mean()) for kind, loss in losses.items()}
    best = min(KINDS, key=lambda kind: means[kind])
    for kind in KINDS:
        behind = losses[kind] - losses[best]
        if behind.mean() <= standard_error(behind, own):
            break
    return _fit_kind(kind, z, target).model_copy(update={"cv_log_loss": means})


def fit_platt(logit: ArrayLike, y: ArrayLike) -> BinaryCalibrator:
    """Platt scaling alone. Raises UserError as `fit_binary` does."""
    return _fit_kind("platt", *_checked_binary(logit, y))


def fit_amount(predicted: ArrayLike, y: ArrayLike) -> AmountCalibrator:
    """Fit ln E[y] = a + b·ln(predicted), b >= 0, by Poisson quasi-likelihood.

    predicted, y: (N,) in one unit, >= 0. The quasi-likelihood asks only that the mean be right
    (Gourieroux, Monfort and Trognon 1984), so zeros and heavy tails are allowed, and the total of
    the fitted rows equals the total of y. The scale has a closed form given b, which leaves one
    equation in b. If every y is 0, so is every calibrated amount.

    Raises UserError for no rows, negative amounts, values that are not finite.
    """
    amount, target = _pair(predicted, y, what="amount")
    if amount.min() < 0 or target.min() < 0:
        raise UserError("calibrate: amounts must be 0 or more")
    floor = AMOUNT_FLOOR * float(amount.mean()) or 1.0
    log_amount = np.log(np.maximum(amount, floor))
    centre = float(log_amount.mean())
    x = log_amount - centre
    reference = float(np.exp(centre))
    total = float(target.sum())
    if total == 0:
        return AmountCalibrator(scale=0.0, exponent=1.0, reference=reference, floor=floor)
    wanted = float(np.sum(target * x)) / total

    def slope_of_loss(b: float) -> float:
        return float(np.sum(softmax(b * x) * x)) - wanted + PRIOR_PRECISION * (b - 1) / len(x)

    if slope_of_loss(0.0) >= 0:
        exponent = 0.0
    elif slope_of_loss(MAX_EXPONENT) <= 0:
        exponent = MAX_EXPONENT
    else:
        exponent = float(brentq(slope_of_loss, 0.0, MAX_EXPONENT, xtol=1e-12))
    scale = float(np.exp(np.log(total) - logsumexp(exponent * x)))
    return AmountCalibrator(scale=scale, exponent=exponent, reference=reference, floor=floor)


def _basis(kind: Kind, z: FloatArray, knots: tuple[float, ...]) -> list[FloatArray]:
    """The increasing functions of the logit whose weighted sum is the calibrated logit."""
    if kind == "platt":
        return [z]
    if kind == "beta":
        return [-np.logaddexp(0.0, -z), np.logaddexp(0.0, z)]
    integrals = []
    last = len(knots) - 1
    for j, knot in enumerate(knots):
        # the integral of a hat function that is 1 at this knot and 0 at its neighbours
        area = np.minimum(z - knot, 0.0) if j == 0 else np.zeros_like(z)
        if j > 0:
            rise = np.clip(z, knots[j - 1], knot) - knots[j - 1]
            area += rise * rise / (2 * (knot - knots[j - 1]))
        if j < last:
            fall = np.clip(z, knot, knots[j + 1]) - knot
            area += fall - fall * fall / (2 * (knots[j + 1] - knot))
        else:
            area += np.maximum(z - knot, 0.0)
        integrals.append(area)
    return integrals


def _fit_kind(kind: Kind, z: FloatArray, y: FloatArray) -> BinaryCalibrator:
    knots: tuple[float, ...] = ()
    if kind == "spline":
        low, high = np.percentile(z, [1, 99])
        if high - low < 1e-6:  # one value of the logit: any interval around it will do
            low, high = low - 1, high + 1
        knots = tuple(np.linspace(low, high, KNOTS).tolist())
    basis = np.stack(_basis(kind, np.clip(z, -LOGIT_LIMIT, LOGIT_LIMIT), knots))
    intercept, weights = _maximum_likelihood(basis, y, smooth=kind == "spline")
    return BinaryCalibrator(
        kind=kind, intercept=intercept, weights=tuple(weights.tolist()), knots=knots
    )


def _maximum_likelihood(
    basis: FloatArray, y: FloatArray, *, smooth: bool
) -> tuple[float, FloatArray]:
    """Penalised logistic regression with weights >= MIN_WEIGHT: convex, so one optimum.

    basis: (K, N). The penalty pulls the weights to 1 and, if `smooth`, to each other (a first
    difference penalty, Eilers and Marx 1996). Sums go through einsum, whose order, unlike that
    of a matrix product, does not depend on the number of threads.
    """
    count, rows = basis.shape
    mean = basis.mean(axis=1)
    x = basis - mean[:, None]  # without the correlation with the intercept the search is short
    difference = np.diff(np.eye(count), axis=0)
    pull = SMOOTHNESS * difference.T @ difference if smooth else np.zeros((count, count))

    def loss(theta: FloatArray) -> tuple[float, FloatArray]:
        eta = theta[0] + np.einsum("k,kn->n", theta[1:], x)
        off = theta[1:] - 1
        penalty = PRIOR_PRECISION * off + pull @ off
        residual = expit(eta) - y
        value = float(np.sum(np.logaddexp(0.0, eta) - y * eta) + 0.5 * (off @ penalty))
        gradient = np.concatenate([[residual.sum()], np.einsum("kn,n->k", x, residual) + penalty])
        return value / rows, gradient / rows

    rate = y.mean()
    start = np.concatenate([[np.log(rate / (1 - rate))], np.ones(count)])
    result = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None), *[(MIN_WEIGHT, None)] * count],
        options={"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-9},
    )
    weights = np.asarray(result.x[1:], dtype=np.float64)
    return float(result.x[0] - mean @ weights), weights


def _cross_validated(
    kind: Kind, z: FloatArray, y: FloatArray, fold: NDArray[np.int64]
) -> FloatArray:
    """The log-loss of each row under the calibrator fitted without its fold."""
    loss = np.empty(len(z))
    for k in range(int(fold.max()) + 1):
        held = fold == k
        p = _fit_kind(kind, z[~held], y[~held]).apply(z[held])
        loss[held] = -np.where(y[held] == 1, np.log(p), np.log1p(-p))
    return loss


def _checked_binary(logit: ArrayLike, y: ArrayLike) -> tuple[FloatArray, FloatArray]:
    z, target = _pair(logit, y, what="logit")
    odd = np.flatnonzero((target != 0) & (target != 1))
    if odd.size:
        raise UserError(f"calibrate: row {odd[0]}: label {target[odd[0]]:g}; 0 or 1 was expected")
    if target.min() == target.max():
        raise UserError(
            f"calibrate: all {len(target)} labels are {target[0]:g}; both outcomes are needed"
        )
    return z, target


def _pair(x: ArrayLike, y: ArrayLike, *, what: str) -> tuple[FloatArray, FloatArray]:
    """Both as contiguous float64 columns of one length, finite. Raises UserError."""
    first = np.ascontiguousarray(x, dtype=np.float64)
    second = np.ascontiguousarray(y, dtype=np.float64)
    assert first.ndim == 1 and first.shape == second.shape, (first.shape, second.shape)
    if not len(first):
        raise UserError("calibrate: no rows in the calibrate role")
    for name, column in ((what, first), ("label", second)):
        bad = np.flatnonzero(~np.isfinite(column))
        if bad.size:
            raise UserError(f"calibrate: row {bad[0]}: {name} is {column[bad[0]]}, not finite")
    return first, second
