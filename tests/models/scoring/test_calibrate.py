import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, PoissonRegressor

from models.data.schema import UserError
from models.scoring.calibrate import (
    KINDS,
    AmountCalibrator,
    BinaryCalibrator,
    FloatArray,
    fit_amount,
    fit_binary,
)

WEIGHTS = {"platt": 1, "beta": 2, "spline": 4}


@st.composite
def calibrators(draw: st.DrawFn) -> BinaryCalibrator:
    kind = draw(st.sampled_from(KINDS))
    count = WEIGHTS[kind]
    weights = draw(st.lists(st.floats(1e-3, 5), min_size=count, max_size=count))
    knots = st.lists(st.integers(-80, 80), min_size=count, max_size=count, unique=True)
    return BinaryCalibrator(
        kind=kind,
        intercept=draw(st.floats(-5, 5)),
        weights=tuple(weights),
        knots=tuple(sorted(k / 10 for k in draw(knots))) if kind == "spline" else (),
    )


def outcomes(true_logit: FloatArray, seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.random(len(true_logit)) < expit(true_logit), dtype=np.float64)


def logits(rows: int, seed: int = 1) -> FloatArray:
    return np.random.default_rng(seed).normal(-2.5, 1.3, rows)


@given(calibrators())
@settings(max_examples=60, deadline=None)
def test_json_gives_the_same_bits_back(calibrator: BinaryCalibrator) -> None:
    z = np.linspace(-12, 12, 101)
    for again in (
        BinaryCalibrator.model_validate_json(calibrator.model_dump_json()),
        BinaryCalibrator.model_validate(json.loads(json.dumps(calibrator.model_dump()))),
    ):
        assert again == calibrator
        assert again.apply(z).tobytes() == calibrator.apply(z).tobytes()


@given(calibrators())
@settings(max_examples=60, deadline=None)
def test_rises_strictly_and_without_jumps(calibrator: BinaryCalibrator) -> None:
    z = np.linspace(-9, 9, 2001)
    p = calibrator.apply(z)
    logit = np.log(p) - np.log1p(-p)
    inside = np.abs(logit) < 20  # further out neighbouring floats are too far apart
    steps = np.diff(logit)[inside[1:] & inside[:-1]]
    assert (steps > 0).all()
    assert (steps < 2 * max(calibrator.weights) * 2 * (z[1] - z[0])).all()
    assert ((p > 0) & (p < 1)).all()


@given(calibrators(), st.integers(0, 40), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_a_value_does_not_depend_on_its_batch(
    calibrator: BinaryCalibrator, start: int, size: int
) -> None:
    z = logits(97)
    whole = calibrator.apply(z)
    assert calibrator.apply(z[start : start + size]).tobytes() == (
        whole[start : start + size].tobytes()
    )
    assert calibrator.apply(z[::-1]).tobytes() == whole[::-1].tobytes()
    assert calibrator.apply(z[start : start + 1]).tobytes() == whole[start : start + 1].tobytes()


def test_platt_is_the_unpenalised_regression_when_there_are_many_rows() -> None:
    z = logits(20_000)
    y = outcomes(0.4 + 0.7 * z)
    ours = fit_binary(z, y, seed=3)
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(z[:, None], y)
    assert ours.kind == "platt"
    assert ours.weights[0] == pytest.approx(reference.coef_[0, 0], abs=1e-4)
    assert ours.intercept == pytest.approx(reference.intercept_[0], abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "distorted"),
    [
        ("platt", lambda z: 0.3 + 1.4 * z),
        ("beta", lambda z: -1 - 0.3 * np.logaddexp(0, -z) + 2.5 * np.logaddexp(0, z)),
        ("spline", lambda z: -1 + 0.5 * z + 1.5 * np.tanh(1.2 * (z + 2))),
    ],
)
def test_takes_the_kind_that_the_data_call_for(
    kind: str, distorted: Callable[[FloatArray], FloatArray]
) -> None:
    z = np.random.default_rng(1).normal(-1.5, 1.8, 6000)
    truth = distorted(z)
    fitted = fit_binary(z, outcomes(truth), seed=0)
    assert fitted.kind == kind
    assert set(fitted.cv_log_loss) == set(KINDS)
    p = fitted.apply(z)
    assert np.abs(p - expit(truth)).mean() < 0.015


@pytest.mark.parametrize("seed", range(4))
def test_mean_probability_is_the_default_rate(seed: int) -> None:
    z = logits(700, seed)
    y = outcomes(np.sin(z) - 1, seed)
    assert fit_binary(z, y, seed=seed).apply(z).mean() == pytest.approx(y.mean(), abs=1e-6)


def test_is_the_same_for_the_same_seed_and_improves_the_raw_logit() -> None:
    z = logits(1500)
    y = outcomes(2.0 + 0.5 * z)
    first, second = fit_binary(z, y, seed=9), fit_binary(z, y, seed=9)
    assert first == second

    def log_loss(p: FloatArray) -> float:
        return float(-np.where(y == 1, np.log(p), np.log1p(-p)).mean())

    assert log_loss(first.apply(z)) < log_loss(expit(z)) - 0.1


@pytest.mark.parametrize(
    ("z", "y"),
    [
        (np.array([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0]), np.array([0, 0, 0, 1, 1, 1])),  # separated
        (np.array([3.0, 2.0, 1.0, -1.0, -2.0, -3.0]), np.array([0, 0, 0, 1, 1, 1])),  # inverted
        (np.full(40, -1.5), np.arange(40) % 4 == 0),  # one value of the logit
        (np.repeat([-2.0, 1.0], 30), np.arange(60) % 3 == 0),  # two values
        (np.array([-1e6, 1e6, 0.0, 5.0]), np.array([0, 1, 1, 0])),  # saturated network
        (np.array([0.5, -0.5]), np.array([1, 0])),  # two rows
    ],
)
def test_hostile_rows_give_finite_rising_probabilities(z: FloatArray, y: FloatArray) -> None:
    fitted = fit_binary(z, y, seed=0)
    p = fitted.apply(np.linspace(-8, 8, 50))
    assert np.isfinite(p).all()
    assert (np.diff(p) >= 0).all()
    assert fitted.apply(z).mean() == pytest.approx(np.mean(y), abs=1e-3)


def test_extreme_missing_and_no_logits() -> None:
    fitted = fit_binary(logits(300), outcomes(logits(300)), seed=0)
    p = fitted.apply(np.array([-np.inf, -1e300, np.nan, 1e300, np.inf]))
    assert np.isnan(p[2])
    assert p[0] == p[1] < p[3] == p[4]
    assert p[0] > 0 and p[4] < 1
    assert fitted.apply(np.array([])).shape == (0,)


@pytest.mark.parametrize(
    ("z", "y", "message"),
    [
        ([], [], "no rows"),
        ([0.1, 0.2], [0, 0], "all 2 labels are 0"),
        ([0.1, 0.2], [1, 1], "all 2 labels are 1"),
        ([0.1, 0.2], [0, 0.5], "row 1: label 0.5"),
        ([0.1, np.nan], [0, 1], "row 1: logit is nan"),
        ([np.inf, 0.1], [0, 1], "row 0: logit is inf"),
        ([0.1, 0.2], [np.nan, 1], "row 0: label is nan"),
    ],
)
def test_refuses_what_cannot_be_calibrated(z: list[float], y: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_binary(np.array(z), np.array(y), seed=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "platt", "intercept": 0.0, "weights": [1.0, 2.0]},
        {"kind": "platt", "intercept": 0.0, "weights": [0.0]},
        {"kind": "platt", "intercept": float("nan"), "weights": [1.0]},
        {"kind": "spline", "intercept": 0.0, "weights": [1.0, 1.0], "knots": [1.0, 1.0]},
        {"kind": "spline", "intercept": 0.0, "weights": []},
        {"kind": "isotonic", "intercept": 0.0, "weights": [1.0]},
        {"kind": "platt", "intercept": 0.0, "weights": [1.0], "slope": 1.0},
    ],
)
def test_refuses_a_damaged_file(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        BinaryCalibrator.model_validate(fields)


def spending(rows: int, a: float, b: float) -> tuple[FloatArray, FloatArray]:
    """Zero-inflated amounts whose mean is exp(a) · predicted ** b."""
    rng = np.random.default_rng(2)
    predicted = rng.lognormal(3, 1, rows)
    mean = np.exp(a) * predicted**b
    paid = rng.random(rows) < 0.4
    return predicted, np.where(paid, mean / 0.4 * rng.lognormal(-0.18, 0.6, rows), 0.0)


def test_amount_map_is_the_poisson_regression() -> None:
    predicted, y = spending(20_000, 1.2, 0.7)
    fitted = fit_amount(predicted, y)
    reference = PoissonRegressor(alpha=0, tol=1e-9, max_iter=1000)
    reference.fit(np.log(predicted)[:, None], y)
    assert fitted.exponent == pytest.approx(reference.coef_[0], abs=1e-4)
    assert fitted.exponent == pytest.approx(0.7, abs=0.05)
    assert fitted.apply(predicted).sum() == pytest.approx(y.sum(), rel=1e-9)


@given(st.floats(1e-4, 1e6))
@settings(max_examples=30, deadline=None)
def test_amount_map_follows_the_unit(unit: float) -> None:
    predicted, y = spending(300, 0.0, 1.0)
    plain, scaled = fit_amount(predicted, y), fit_amount(unit * predicted, unit * y)
    np.testing.assert_allclose(
        scaled.apply(unit * predicted), unit * plain.apply(predicted), rtol=1e-6
    )


def test_amounts_survive_json_and_do_not_depend_on_their_batch() -> None:
    predicted, y = spending(101, 0.5, 1.1)
    fitted = fit_amount(predicted, y)
    again = AmountCalibrator.model_validate_json(fitted.model_dump_json())
    whole = again.apply(predicted)
    assert whole.tobytes() == fitted.apply(predicted).tobytes()
    alone = np.concatenate([fitted.apply(predicted[i : i + 1]) for i in range(len(predicted))])
    assert whole.tobytes() == alone.tobytes()
    assert whole[::2].tobytes() == fitted.apply(predicted[::2]).tobytes()


@pytest.mark.parametrize(
    ("predicted", "y", "expected"),
    [
        ([0.0, 0.0, 0.0], [1.0, 2.0, 6.0], [3.0, 3.0, 3.0]),  # nothing was expected
        ([1.0, 5.0, 9.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),  # nobody paid
        ([4.0], [8.0], [8.0]),  # one row
        ([1.0, 2.0, 3.0], [9.0, 5.0, 1.0], [5.0, 5.0, 5.0]),  # against the ranking: b = 0
    ],
)
def test_degenerate_amounts(predicted: list[float], y: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(fit_amount(predicted, y).apply(predicted), expected, rtol=1e-9)


def test_zero_predictions_and_steep_amounts_stay_finite_and_ordered() -> None:
    fitted = fit_amount([0.0, 0.0, 10.0, 20.0], [1.0, 0.0, 0.0, 1e9])
    applied = fitted.apply(np.array([0.0, 1e-9, 10.0, 20.0, 1e6, np.nan]))
    assert np.isfinite(applied[:-1]).all() and np.isnan(applied[-1])
    assert (np.diff(applied[:-1]) >= 0).all()


@pytest.mark.parametrize(
    ("predicted", "y", "message"),
    [
        ([], [], "no rows"),
        ([1.0], [-1.0], "0 or more"),
        ([1.0, np.inf], [1.0, 1.0], "row 1: amount is inf"),
        ([1.0], [np.nan], "row 0: label is nan"),
    ],
)
def test_refuses_amounts(predicted: list[float], y: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_amount(predicted, y)
