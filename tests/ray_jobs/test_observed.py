"""What a training is judged by."""

import math

import numpy as np
import polars as pl
import pytest
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score

from ray_jobs.observed import FEWEST, fairness_gap, groups_of, quality

NAN = math.nan


def test_quality_is_of_known_outcomes(seed: int) -> None:
    draw = np.random.default_rng(seed)
    logit = draw.normal(size=4000)
    y = (draw.random(4000) < expit(logit)).astype(float)
    figures = quality(y, logit)
    assert figures["auc"] == pytest.approx(roc_auc_score(y, logit))
    assert figures["log_loss"] == pytest.approx(log_loss(y, expit(logit)), abs=0.002)
    unknown = np.append(y, NAN), np.append(logit, 99.0)
    assert quality(*unknown) == pytest.approx(figures)


def test_what_calibration_puts_right_is_not_held_against_a_model(seed: int) -> None:
    draw = np.random.default_rng(seed)
    logit = draw.normal(size=1000)
    y = (draw.random(1000) < expit(logit)).astype(float)
    assert quality(y, 0.3 * logit + 2) == pytest.approx(quality(y, logit), abs=1e-3)


@pytest.mark.parametrize("y", [[0.0, 0.0], [1.0, NAN], [NAN, NAN], []])
def test_without_both_outcomes_there_is_nothing_to_say(y: list[float]) -> None:
    assert quality(np.array(y), np.full(len(y), 0.5)) == {}


def two_groups(worse: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Good users of two groups of the same size; a share of the second has high PDs."""
    n = 4 * FEWEST
    group = np.repeat(np.array(["a", "b"], dtype=object), n)
    p = np.concatenate([np.full(n, 0.1), np.where(np.arange(n) < worse * n, 0.9, 0.1)])
    return group, np.zeros(2 * n), p


@pytest.mark.parametrize("worse", [0.0, 0.25, 0.75])
def test_the_gap_is_between_the_groups_shares_in_the_better_half(worse: float) -> None:
    group, y, p = two_groups(worse)
    assert fairness_gap({"sex": group}, y, p) == pytest.approx(worse)
    assert fairness_gap({"none": np.full(len(y), None)}, y, p) == 0.0


def test_bad_outcomes_and_tiny_groups_do_not_count() -> None:
    group, y, p = two_groups(0.5)
    y[p > 0.5] = 1
    assert fairness_gap({"sex": group}, y, p) == 0.0
    group, y, p = two_groups(0.5)
    group[-FEWEST // 2 :] = "tiny"
    p[-FEWEST // 2 :] = 0.99
    assert fairness_gap({"sex": group}, y, p) < 0.6


def test_groups_are_in_the_order_of_the_users() -> None:
    protected = pl.DataFrame({"user_key": [1, 2], "sex": ["f", "m"]})
    groups = groups_of(pl.Series([2, 3, 1, 2]), protected)
    assert groups["sex"].tolist() == ["m", None, "f", "m"]
