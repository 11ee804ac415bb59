import json

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_fscore_support

from models.data.schema import UserError
from models.scoring.bootstrap import FloatArray
from models.scoring.metrics import (
    amount_calibration_slope,
    amount_metrics,
    at_threshold,
    binary_metrics,
    calibration_line,
    ece,
    ece_band,
    measure,
    paired_difference,
)


def credit(rows: int = 3000, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """Outcomes and their true probabilities."""
    rng = np.random.default_rng(seed)
    p = expit(rng.normal(-2.2, 1.2, rows))
    return (rng.random(rows) < p).astype(np.float64), p


def test_all_binary_metrics_of_a_calibrated_model() -> None:
    y, p = credit()
    result = binary_metrics(y, p, threshold=0.3, seed=1, resamples=100)
    assert result.rows == 3000 and result.positives == y.sum()
    for name in ("auc", "ks", "pr_auc", "brier", "log_loss"):
        found = getattr(result, name)
        assert found.low < found.value < found.high
        assert found.value == measure(name, y, p)
    assert result.calibration_slope.low < 1 < result.calibration_slope.high
    assert result.calibration_intercept.low < 0 < result.calibration_intercept.high
    assert result.ece_band.low < result.ece < result.ece_band.high
    again = json.loads(json.dumps(result.to_dict()))
    assert again["auc"]["value"] == result.auc.value
    assert binary_metrics(y, p, threshold=0.3, seed=1, resamples=100) == result


def test_overconfidence_is_seen() -> None:
    y, p = credit()
    too_sure = expit(2 * np.log(p / (1 - p)))
    result = binary_metrics(y, too_sure, threshold=0.3, seed=1, resamples=50)
    assert result.calibration_slope.high < 0.6
    assert result.ece > result.ece_band.high
    assert result.auc.value == pytest.approx(measure("auc", y, p), abs=1e-12)


def test_calibration_line_is_the_logistic_regression() -> None:
    y, p = credit()
    x = 0.5 + 1.7 * np.log(p / (1 - p))
    intercept, slope = calibration_line(y, expit(x))
    fit = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000).fit(x[:, None], y)
    assert slope.value == pytest.approx(fit.coef_[0, 0], abs=1e-5)
    assert intercept.value == pytest.approx(fit.intercept_[0], abs=1e-5)


def test_calibration_intervals_hold_the_truth_95_times_in_100() -> None:
    held = 0
    for seed in range(200):
        intercept, slope = calibration_line(*credit(800, seed))
        held += (slope.low < 1 < slope.high) + (intercept.low < 0 < intercept.high)
    assert 0.92 < held / 400 < 0.98


@pytest.mark.parametrize(
    ("y", "p"),
    [
        ([0, 0, 0], [0.1, 0.2, 0.3]),
        ([1, 1, 1], [0.1, 0.2, 0.3]),
        ([0, 1, 0], [0.2, 0.2, 0.2]),
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]),
        ([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4]),
        ([0, 1], [0.0, 1.0]),
        ([1], [0.4]),
    ],
)
def test_degenerate_outcomes_give_nan_never_an_exception(y: list[int], p: list[float]) -> None:
    result = binary_metrics(y, p, threshold=0.5, seed=0, resamples=20)
    assert np.isnan(result.calibration_slope.value)
    assert np.isfinite(result.brier.value) and np.isfinite(result.log_loss.value)
    assert np.isnan(result.auc.value) == (len(set(y)) == 1)


def test_certain_and_wrong_has_a_finite_log_loss() -> None:
    y, p = credit(500)
    p[:2] = [0.0, 1.0]
    y[:2] = [1.0, 0.0]
    assert np.isfinite(measure("log_loss", y, p))
    assert np.isfinite(calibration_line(y, p)[1].value)


def test_ece_by_hand_and_in_any_row_order() -> None:
    y = np.array([0.0, 1.0, 0.0, 1.0])
    p = np.array([0.1, 0.3, 0.6, 0.8])
    # two bins: |0.5 - 0.2| and |0.5 - 0.7|
    assert ece(y, p, bins=2) == pytest.approx(0.25)
    assert ece(y[::-1], p[::-1], bins=2) == pytest.approx(0.25)


def test_a_constant_is_one_bin_however_the_rows_are_sorted() -> None:
    y = np.repeat([0.0, 1.0], 50)
    assert ece(y, np.full(100, 0.5)) == pytest.approx(0)
    assert ece(y, np.full(100, 0.3)) == pytest.approx(0.2)


def test_ece_band_narrows_with_the_rows_and_holds_a_true_model() -> None:
    small = ece_band(credit(300)[1], seed=0, simulations=200)
    large = ece_band(credit(30_000)[1], seed=0, simulations=200)
    assert large.high < small.low
    inside = 0
    for seed in range(60):
        y, p = credit(400, seed)
        band = ece_band(p, seed=seed, simulations=150)
        inside += band.low <= ece(y, p) <= band.high
    assert inside >= 52


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.6])
def test_threshold_metrics_agree_with_scikit_learn(threshold: float) -> None:
    y, p = credit()
    expected = precision_recall_fscore_support(y, p >= threshold, average="binary")[:3]
    assert at_threshold(y, p, threshold) == pytest.approx(expected)


def test_threshold_metrics_without_a_denominator() -> None:
    assert np.isnan(at_threshold([0, 1], [0.1, 0.2], 0.9)[0])
    assert np.isnan(at_threshold([0, 0], [0.1, 0.95], 0.9)[1])
    assert np.isnan(at_threshold([0, 0], [0.1, 0.2], 0.9)).all()


def test_paired_difference_sees_what_single_intervals_hide() -> None:
    y, p = credit(2000)
    noisy = expit(np.log(p / (1 - p)) + np.random.default_rng(3).normal(0, 0.5, len(p)))
    for metric, sign in (("auc", 1), ("log_loss", -1), ("spearman", 1)):
        found = paired_difference(metric, y, p, noisy, seed=0, resamples=200)  # type: ignore[arg-type]
        assert found.value == pytest.approx(
            measure(metric, y, p) - measure(metric, y, noisy)  # type: ignore[arg-type]
        )
        assert sign * found.low > 0 and sign * found.high > 0
        swapped = paired_difference(metric, y, noisy, p, seed=0, resamples=200)  # type: ignore[arg-type]
        assert swapped.value == -found.value
        assert swapped.low == pytest.approx(-found.high)
    same = paired_difference("auc", y, p, p, seed=0, resamples=20)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_rank_difference_needs_no_probabilities() -> None:
    y, p = credit(300)
    found = paired_difference("auc", y, 40 * p - 7, p, seed=0, resamples=20)
    assert found.value == pytest.approx(0)


def spending(rows: int = 4000) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(0)
    mean = rng.lognormal(3, 1, rows)
    paid = rng.random(rows) < 0.5
    return np.where(paid, mean * 2 * rng.lognormal(-0.125, 0.5, rows), 0.0), mean


def test_all_amount_metrics() -> None:
    y, mean = spending()
    result = amount_metrics(y, mean, seed=0, resamples=100)
    assert result.calibration_ratio.low < 1 < result.calibration_ratio.high
    assert result.calibration_slope.low < 1 < result.calibration_slope.high
    assert 0.1 < result.spearman.low < result.spearman.value < result.spearman.high < 1
    assert result.mae.value < result.rmse.value
    assert json.loads(json.dumps(result.to_dict()))["rows"] == 4000

    doubled = amount_metrics(y, 2 * mean, seed=0, resamples=100)
    assert doubled.calibration_ratio.value == pytest.approx(result.calibration_ratio.value / 2)
    assert doubled.calibration_slope.value == pytest.approx(result.calibration_slope.value)


def test_amount_slope_finds_the_exponent_in_any_unit() -> None:
    y, mean = spending()
    for unit in (1e-3, 1.0, 1e5):
        slope = amount_calibration_slope(unit * y, unit * mean**2)
        assert slope.low < 0.5 < slope.high
        assert slope.value == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    ("y", "predicted"),
    [
        ([0.0, 0.0], [1.0, 2.0]),
        ([1.0, 3.0], [0.0, 0.0]),
        ([1.0, 3.0], [2.0, 2.0]),
        ([0.0, 3.0], [1.0, 2.0]),
        ([-5.0, 3.0], [1.0, 2.0]),
        ([4.0], [4.0]),
    ],
)
def test_degenerate_amounts_give_nan_never_an_exception(
    y: list[float], predicted: list[float]
) -> None:
    result = amount_metrics(y, predicted, seed=0, resamples=20)
    assert np.isnan(result.calibration_slope.value)
    assert np.isfinite(result.rmse.value)


def test_equal_amounts_have_slope_zero() -> None:
    found = amount_calibration_slope([5.0, 5.0, 5.0, 5.0], [1.0, 2.0, 3.0, 9.0])
    assert found.value == pytest.approx(0)


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        ([], [], "no rows"),
        ([0, 2], [0.1, 0.2], "row 1: 2; 0 or 1"),
        ([0, 1], [0.1, np.nan], "row 1: nan"),
        ([0, 1], [0.1, 1.2], "p: row 1: 1.2"),
        ([0, np.inf], [0.1, 0.2], "y: row 1: inf"),
    ],
)
def test_refuses_what_cannot_be_evaluated(y: list[float], p: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        binary_metrics(y, p, threshold=0.5, seed=0, resamples=5)
