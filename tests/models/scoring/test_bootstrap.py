import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn import metrics as reference

from models.scoring.bootstrap import WEIGHTED, FloatArray, MetricName, bootstrap, interval, once

Column = list[tuple[int, int, int]]
# label, score in tenths (so that there are ties), weight
rows = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 9), st.integers(0, 3)), min_size=2)


def columns(sample: Column) -> tuple[FloatArray, FloatArray, FloatArray]:
    y, tenths, weights = np.array(sample, dtype=np.float64).T
    return y, tenths / 10, weights


@given(rows)
@settings(max_examples=80, deadline=None)
def test_a_weight_is_a_repetition(sample: Column) -> None:
    y, score, weights = columns(sample)
    if not weights.any():
        return
    times = weights.astype(int)
    for metric, weighted in WEIGHTED.items():
        repeated = once(metric, np.repeat(y, times), np.repeat(score, times))
        np.testing.assert_allclose(
            weighted(y, score, weights[None, :])[0], repeated, atol=1e-12, err_msg=metric
        )


@given(rows)
@settings(max_examples=80, deadline=None)
def test_agrees_with_scikit_learn_and_scipy(sample: Column) -> None:
    y, score, _ = columns(sample)
    assert once("brier", y, score) == pytest.approx(reference.brier_score_loss(y, score))
    assert once("log_loss", y, score) == pytest.approx(reference.log_loss(y, score, labels=[0, 1]))
    assert once("mae", y, score) == pytest.approx(reference.mean_absolute_error(y, score))
    assert once("rmse", y, score) == pytest.approx(reference.root_mean_squared_error(y, score))
    if len(set(y)) == 1:
        return
    assert once("auc", y, score) == pytest.approx(reference.roc_auc_score(y, score))
    assert once("pr_auc", y, score) == pytest.approx(reference.average_precision_score(y, score))
    fpr, tpr, _ = reference.roc_curve(y, score, drop_intermediate=False)
    expected = np.abs(tpr - fpr).max()
    assert once("ks", y, score) == pytest.approx(expected)
    if len(set(score)) > 1:
        assert once("spearman", y, score) == pytest.approx(spearmanr(y, score).statistic)


@pytest.mark.parametrize("metric", ["auc", "ks", "pr_auc", "spearman"])
@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_rank_metrics_of_one_class_are_nan(metric: MetricName, outcome: float) -> None:
    score = np.array([0.1, 0.4, 0.3])
    assert np.isnan(once(metric, np.full(3, outcome), score))


def test_all_scores_equal() -> None:
    y, score = np.array([0.0, 1.0, 1.0]), np.full(3, 0.5)
    assert once("auc", y, score) == 0.5
    assert once("ks", y, score) == 0
    assert once("pr_auc", y, score) == pytest.approx(2 / 3)
    assert np.isnan(once("spearman", y, score))


def test_nothing_expected_has_no_ratio() -> None:
    assert np.isnan(once("calibration_ratio", np.ones(2), np.zeros(2)))


def test_is_seeded_and_does_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    y, score = (rng.random(50) < 0.3).astype(float), rng.random(50)
    first = bootstrap(("auc", "brier"), y, (score,), seed=4, resamples=40)
    monkeypatch.setattr("models.scoring.bootstrap.CELLS", 150)
    second = bootstrap(("auc", "brier"), y, (score,), seed=4, resamples=40)
    other = bootstrap(("auc", "brier"), y, (score,), seed=5, resamples=40)
    for metric in ("auc", "brier"):
        np.testing.assert_allclose(first[metric], second[metric], rtol=1e-12)
        assert first[metric].shape == (1, 40)
    assert not np.array_equal(first["auc"], other["auc"])


def test_spread_is_that_of_the_normal_approximation() -> None:
    rng = np.random.default_rng(1)
    y = (rng.random(2000) < 0.3).astype(float)
    score = np.clip(rng.normal(0.4 + 0.1 * y, 0.15), 0, 1)
    draws = bootstrap(("auc", "mae"), y, (score,), seed=0, resamples=400)
    by_formula = np.abs(y - score).std() / np.sqrt(2000)
    assert draws["mae"][0].std() == pytest.approx(by_formula, rel=0.15)
    # Hanley and McNeil's standard error
    auc, n1, n0 = once("auc", y, score), y.sum(), (1 - y).sum()
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (n1 - 1) * (q1 - auc**2) + (n0 - 1) * (q2 - auc**2)
    assert draws["auc"][0].std() == pytest.approx(np.sqrt(variance / (n1 * n0)), rel=0.15)


def test_intervals_leave_out_what_could_not_be_computed() -> None:
    nan = float("nan")
    some = interval(0.5, np.array([nan, 0.4, 0.6, nan]))
    assert 0.4 <= some.low <= some.high <= 0.6
    none = interval(0.5, np.array([nan, nan]))
    assert none.value == 0.5 and np.isnan(none.low) and np.isnan(none.high)


def test_three_hundred_resamples_of_eight_thousand_rows_are_quick() -> None:
    rng = np.random.default_rng(0)
    y, score = (rng.random(8000) < 0.1).astype(float), rng.random(8000)
    started = time.process_time()
    bootstrap(("auc",), y, (score,), seed=0, resamples=300)
    assert time.process_time() - started < 2
