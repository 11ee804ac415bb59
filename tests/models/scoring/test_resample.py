"""Resampling: equal classes, nothing invented beyond what SMOTE says, a seed decides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.scoring.config import Resampling
from models.scoring.resample import log_odds_shift, resampled, synthetic

HOWS: tuple[Resampling, ...] = ("over", "under", "smote")


def rows(n: int, positives: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Two numbers, one of them sometimes unknown, and a category that goes with the class."""
    rng = np.random.default_rng(seed)
    y = np.r_[np.ones(positives), np.zeros(n - positives)]
    x = np.c_[rng.normal(y, 1.0), rng.normal(size=n), np.where(y == 1, 7, 2)].astype(np.float32)
    x[rng.random(n) < 0.1, 1] = np.nan
    return x, y


@given(st.integers(2, 60), st.integers(0, 60), st.sampled_from(HOWS))
def test_both_classes_are_equally_frequent(n: int, positives: int, how: Resampling) -> None:
    positives = min(positives, n)
    x, y = rows(n, positives)
    new_x, new_y = resampled(x, y, [2], how, seed=1)
    assert len(new_x) == len(new_y)
    if positives in (0, n):
        np.testing.assert_array_equal(new_x, x)
        np.testing.assert_array_equal(new_y, y)
    else:
        assert new_y.sum() * 2 == len(new_y)
        assert len(new_y) == 2 * (min if how == "under" else max)(positives, n - positives)


@pytest.mark.parametrize("how", ["over", "under"])
def test_rows_are_only_left_out_or_repeated(how: Resampling) -> None:
    x, y = rows(200, 30)
    new_x, new_y = resampled(x, y, [2], how, seed=1)
    known = {(*np.nan_to_num(row, nan=99), label) for row, label in zip(x, y, strict=True)}
    found = {(*np.nan_to_num(row, nan=99), label) for row, label in zip(new_x, new_y, strict=True)}
    assert found <= known
    assert len(found) == (60 if how == "under" else 200)


def test_the_rows_that_were_there_stay_in_front() -> None:
    x, y = rows(200, 30)
    new_x, new_y = resampled(x, y, [2], "smote", seed=1)
    np.testing.assert_array_equal(new_x[:200], x)
    np.testing.assert_array_equal(new_y[:200], y)


def test_the_seed_alone_decides() -> None:
    x, y = rows(200, 30)
    for how in HOWS:
        one, same, other = (resampled(x, y, [2], how, seed=s)[0] for s in (1, 1, 2))
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, other, equal_nan=True)


def test_synthetic_rows_lie_between_neighbours() -> None:
    """On a line of points a neighbour is near, so no new point lies far from both of two."""
    line = np.c_[np.arange(40), 2 * np.arange(40), np.zeros(40)].astype(np.float32)
    new = synthetic(line, [2], 500, np.random.default_rng(1))
    assert new[:, 0].min() >= 0 and new[:, 0].max() <= 39
    np.testing.assert_allclose(new[:, 1], 2 * new[:, 0], rtol=1e-5, atol=1e-5)
    assert len(np.unique(new[:, 0])) > 400


def test_a_category_is_that_of_most_neighbours() -> None:
    """Two groups far apart, each with a category of its own and one stray."""
    x = np.zeros((20, 2), dtype=np.float32)
    x[10:, 0] = 1000
    x[:, 1] = np.r_[np.full(10, 4), np.full(10, 5)]
    x[:10, 0] += np.arange(10)
    x[10:, 0] += np.arange(10)
    new = synthetic(x, [1], 300, np.random.default_rng(1))
    assert set(new[new[:, 0] < 500, 1]) == {4} and set(new[new[:, 0] > 500, 1]) == {5}


def test_what_is_unknown_stays_unknown() -> None:
    x = np.full((12, 2), np.nan, dtype=np.float32)
    x[:, 0] = np.arange(12)
    new = synthetic(x, [], 30, np.random.default_rng(1))
    assert np.isnan(new[:, 1]).all() and np.isfinite(new[:, 0]).all()


def test_one_row_of_a_class_can_only_be_repeated() -> None:
    x, y = rows(10, 1)
    new_x, _ = resampled(x, y, [2], "smote", seed=1)
    np.testing.assert_array_equal(new_x[10:], np.repeat(x[:1], 8, axis=0))


def test_the_shift_is_that_of_the_log_odds() -> None:
    before, after = np.r_[np.ones(20), np.zeros(80)], np.r_[np.ones(50), np.zeros(50)]
    assert log_odds_shift(before, after) == pytest.approx(np.log(4))
