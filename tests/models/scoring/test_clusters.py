"""Users are taken whole; with one row each nothing is other than for independent rows."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.scoring.bootstrap import bootstrap, interval
from models.scoring.clusters import (
    count_of,
    numbered,
    repeat,
    resampled,
    standard_error,
    stratified_folds,
)
from models.scoring.metrics import amount_calibration_slope, calibration_line

Numbers = NDArray[Any]
SEED = st.integers(0, 2**32 - 1)
KEYS = st.lists(st.integers(-5, 5), min_size=1, max_size=40).map(np.array)


@given(KEYS)
def test_numbers_follow_the_order_of_appearance(keys: Numbers) -> None:
    own = numbered(keys)
    places: dict[int, int] = {}
    assert own.tolist() == [places.setdefault(key, len(places)) for key in keys.tolist()]
    assert repeat(keys) == (len(places) < len(keys))
    assert count_of(keys, keys > 0) == sum(key > 0 for key in places)


@given(KEYS, SEED)
def test_a_resample_holds_all_of_a_user_or_nothing(keys: Numbers, seed: int) -> None:
    rows, draws = resampled(keys, np.random.default_rng(seed))
    for draw in np.unique(draws):
        (key,) = set(keys[rows[draws == draw]].tolist())
        assert sorted(rows[draws == draw]) == np.flatnonzero(keys == key).tolist()
    times = np.bincount(rows, minlength=len(keys))
    drawn = {}
    for key in np.unique(keys):
        (drawn[key],) = set(times[keys == key].tolist())
    assert sum(drawn.values()) == len(drawn)


def test_of_one_row_each_a_resample_is_of_rows() -> None:
    rows, draws = resampled(np.array([9, 2, 5, 7]), np.random.default_rng(3))
    assert draws.tolist() == [0, 1, 2, 3]
    assert rows.tolist() == np.random.default_rng(3).integers(0, 4, 4).tolist()


@given(st.data(), KEYS, SEED)
@settings(max_examples=200)
def test_folds_keep_users_and_leave_both_outcomes(
    data: st.DataObject, keys: Numbers, seed: int
) -> None:
    bits = st.lists(st.integers(0, 1), min_size=len(keys), max_size=len(keys))
    y = np.array(data.draw(bits), dtype=np.float64)
    rarer = min(count_of(keys, y == outcome) for outcome in (0, 1))
    if rarer < 2:
        return
    folds = min(5, rarer)
    fold = stratified_folds(y, keys, folds, np.random.default_rng(seed))
    for key in np.unique(keys):
        assert len(set(fold[keys == key].tolist())) == 1
    for one in range(folds):
        assert set(y[fold != one].tolist()) == {0.0, 1.0}
    users = [len(np.unique(keys[fold == one])) for one in range(folds)]
    assert max(users) - min(users) <= 2


def test_the_error_of_a_mean_is_that_of_the_users() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=200)
    once = standard_error(values, np.arange(200))
    assert once == pytest.approx(values.std(ddof=1) / np.sqrt(200))
    # a user's rows that say the same say it once
    assert standard_error(np.repeat(values, 3), np.repeat(np.arange(200), 3)) == pytest.approx(once)


def test_rows_that_repeat_make_no_interval_narrower() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(-0.5, 1, 600)
    p = 1 / (1 + np.exp(-z))
    y = (rng.random(600) < p).astype(float)
    users = np.arange(600)
    many, of = {"y": np.repeat(y, 4), "p": np.repeat(p, 4)}, np.repeat(users, 4)

    def width(y: Numbers, p: Numbers, users: Numbers) -> list[float]:
        draws = bootstrap(("auc", "brier"), y, (p,), seed=2, resamples=400, users=users)
        found = [interval(0.0, draws["auc"][0]), interval(0.0, draws["brier"][0])]
        found += [*calibration_line(y, p, users), amount_calibration_slope(y * p, p, users)]
        return [one.high - one.low for one in found]

    once = width(y, p, users)
    assert width(many["y"], many["p"], of) == pytest.approx(once, rel=0.1)
    blind = width(many["y"], many["p"], np.arange(2400))
    assert blind == pytest.approx([one / 2 for one in once], rel=0.15)
