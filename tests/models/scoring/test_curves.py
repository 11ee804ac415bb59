"""Curves keep the shape of what they thin out; bins agree with the metrics of the same rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.scoring.bootstrap import Interval
from models.scoring.curves import (
    POINTS,
    Curve,
    Value,
    amount_bins,
    precision_recall,
    rate_bins,
    roc,
    wilson,
)
from models.scoring.metrics import ece, measure

probabilities = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.01, 0.2, 0.5, 0.99, 1.0])),
    min_size=2,
    max_size=60,
).filter(lambda rows: len({y for y, _ in rows}) == 2)


def columns(rows: list[tuple[bool, float]]) -> tuple[np.ndarray, np.ndarray]:
    y, p = zip(*rows, strict=True)
    return np.array(y, dtype=np.float64), np.array(p)


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    p = rng.beta(1, 6, 4000)
    return (rng.random(4000) < p).astype(float), p


@given(probabilities)
def test_roc_climbs_from_corner_to_corner(rows: list[tuple[bool, float]]) -> None:
    curve = roc(*columns(rows))
    assert (curve.x[0], curve.y[0]) == (0, 0) and (curve.x[-1], curve.y[-1]) == (1, 1)
    assert (np.diff(curve.x) >= 0).all() and (np.diff(curve.y) >= 0).all()


@given(probabilities)
def test_precision_recall_starts_where_everyone_is_flagged(rows: list[tuple[bool, float]]) -> None:
    y, p = columns(rows)
    curve = precision_recall(y, p)
    assert curve.x[0] == 1 and curve.y[0] == pytest.approx(y.mean())
    assert (np.diff(curve.x) <= 0).all() and curve.x[-1] >= 0


def test_thinning_keeps_the_area(sample: tuple[np.ndarray, np.ndarray]) -> None:
    curve = roc(*sample)
    assert 2 < len(curve.x) <= POINTS + 1
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(measure("auc", *sample), abs=2e-3)


@pytest.mark.parametrize("curve", [roc, precision_recall])
def test_one_class_has_no_curve(curve: object) -> None:
    assert callable(curve)
    assert curve(np.ones(3), np.array([0.1, 0.2, 0.3])) == Curve()


def test_rate_bins_are_those_of_the_ece(sample: tuple[np.ndarray, np.ndarray]) -> None:
    y, p = sample
    bins = rate_bins(y, p)
    assert sum(b.rows for b in bins) == len(y) and len(bins) == 10
    gaps = [b.rows * abs((b.observed.value or 0) - b.predicted) for b in bins]
    assert sum(gaps) / len(y) == pytest.approx(ece(y, p))
    inside = [
        b.expected is not None and b.expected.low <= b.observed.value <= b.expected.high
        for b in bins
    ]
    assert sum(inside) >= 8  # the outcomes were drawn with these probabilities


def test_rate_bins_of_one_user() -> None:
    (only,) = rate_bins(np.array([1.0]), np.array([0.3]))
    assert only.rows == 1 and only.observed.value == 1
    assert only.expected == Value(value=0.3, low=0, high=1)


def test_amount_bins() -> None:
    predicted = np.arange(100.0)
    bins = amount_bins(2 * predicted, predicted)
    assert [b.rows for b in bins] == [10] * 10
    assert [b.observed.value for b in bins] == pytest.approx([2 * b.predicted for b in bins])
    (only,) = amount_bins(np.array([5.0]), np.array([4.0]))
    assert only.observed == Value(value=5)  # a single row has no interval


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share(counts: tuple[int, int]) -> None:
    share = wilson(*counts)
    assert share.low is not None and share.high is not None and share.value is not None
    assert -1e-12 <= share.low <= share.value + 1e-12 <= share.high + 2e-12 <= 1 + 3e-12


def test_what_cannot_be_computed_is_null() -> None:
    assert wilson(0, 0) == Value(value=None)
    nothing = Value.of(Interval(float("nan"), float("nan"), float("inf")))
    assert nothing.model_dump_json() == '{"value":null,"low":null,"high":null}'
