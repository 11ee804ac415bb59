"""Merged from parts is as if whole: exactly while small, within the bound after."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.sketch import POINTS, Moments, Sketch, pairwise

AT = np.linspace(0.0, 1.0, 65)
FINITE = st.floats(-1e15, 1e15) | st.integers(-3, 3).map(float)
PARTS = st.lists(st.lists(FINITE | st.none(), max_size=30), min_size=1, max_size=9)
SHAPES = ("normal", "lognormal", "ties", "sorted", "alike", "spikes")


def numbers(values: Any) -> pl.Series:
    return pl.Series(values, dtype=pl.Float64)


def merged(parts: list[pl.Series]) -> Sketch:
    whole = pairwise([Sketch.of(part) for part in parts], Sketch.merge)
    assert whole is not None
    return whole


def drawn(shape: str, n: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=n)
    if shape == "lognormal":
        return np.exp(3 * normal)
    if shape == "ties":  # most stand at one value, which must not drag its neighbours along
        return np.where(rng.random(n) < 0.7, 0.0, normal)
    if shape == "sorted":  # each part from another range
        return np.sort(normal)
    if shape == "alike":
        return np.round(normal, 2)
    if shape == "spikes":
        return np.where(rng.random(n) < 0.3, np.round(normal), normal)
    return normal


@settings(max_examples=60)
@given(PARTS)
def test_few_values_are_exact_however_they_are_split(parts: list[list[float | None]]) -> None:
    known = [value for part in parts for value in part if value is not None]
    sketch = merged([numbers(part) for part in parts])
    assert sketch.error == 0 and sketch.n == len(known)
    if known:
        assert sketch.quantiles(AT).tolist() == np.quantile(np.array(known) + 0.0, AT).tolist()


@settings(max_examples=25)
@given(
    st.sampled_from(SHAPES),
    st.integers(2 * POINTS, 40 * POINTS),
    st.integers(1, 24),
    st.integers(0, 2**32 - 1),
)
def test_ranks_are_within_the_bound(shape: str, n: int, parts: int, seed: int) -> None:
    """Of each quantile q: the share of values below it, and up to it, lie around q."""
    values = drawn(shape, n, seed)
    sketch = merged([numbers(part) for part in np.array_split(values, parts)])
    assert sketch.n == n and len(sketch.values) <= POINTS + 2
    bound = (2 + math.log2(parts)) / POINTS
    assert sketch.error <= bound * n
    found, ordered = sketch.quantiles(AT), np.sort(values)
    place = AT * (n - 1)
    below = np.searchsorted(ordered, found, side="left")
    upto = np.searchsorted(ordered, found, side="right")
    slack = sketch.error + 1  # a quantile may lie between two places
    assert (below <= place + slack).all() and (upto >= place - slack).all()
    assert (found[0], found[-1]) == (ordered[0], ordered[-1])


def test_a_column_of_few_values_is_exact_at_any_length() -> None:
    counts = np.random.default_rng(5).poisson(3, 500_000).astype(np.float64)
    sketch = merged([numbers(part) for part in np.array_split(counts, 7)])
    assert sketch.error == 0
    assert sketch.quantiles(AT).tolist() == np.quantile(counts, AT).tolist()


def test_the_same_parts_give_the_same_bits_and_rows_may_stand_in_any_order() -> None:
    rng = np.random.default_rng(6)
    parts = [rng.normal(size=3 * POINTS) for _ in range(5)]
    one = merged([numbers(part) for part in parts])
    two = merged([numbers(rng.permutation(part)) for part in parts])
    assert one.error > 0  # or the test says nothing
    assert one.error == two.error
    assert one.values.tobytes() == two.values.tobytes()
    assert one.weights.tobytes() == two.weights.tobytes()


def test_a_value_that_most_have_stays_where_it_is() -> None:
    values = drawn("ties", 20 * POINTS, 7)
    sketch = Sketch.of(numbers(values))
    at = int(np.searchsorted(sketch.values, 0.0))
    assert sketch.values[at] == 0.0
    assert sketch.weights[at] >= (values == 0.0).sum()


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([], dtype=pl.Float64),
        pl.Series([None, None], dtype=pl.Float32),
        pl.Series([math.nan], dtype=pl.Float64),
    ],
)
def test_a_column_of_nothing_adds_nothing(column: pl.Series) -> None:
    nothing = Sketch.of(column)
    assert nothing.n == nothing.error == 0
    other = Sketch.of(pl.Series([3, 1, 1], dtype=pl.Int64))
    for both in (nothing.merge(other), other.merge(nothing)):
        assert (both.values.tolist(), both.weights.tolist()) == ([1.0, 3.0], [2, 1])


def test_both_zeros_are_one_value() -> None:
    sketch = merged([numbers([-0.0, 0.0]), numbers([-0.0])])
    assert sketch.weights.tolist() == [3]
    assert math.copysign(1.0, sketch.values[0]) == 1.0


@given(
    st.lists(
        st.lists(st.floats(-10, 1e9).map(lambda x: x if abs(x) > 1e-9 else 0.0), max_size=20),
        min_size=1,
        max_size=9,
    )
)
def test_moments_of_parts_are_those_of_the_whole(parts: list[list[float]]) -> None:
    moments = pairwise([Moments.of(numbers(part)) for part in parts], Moments.merge)
    assert moments is not None
    every = [value for part in parts for value in part]
    logs = np.log([value for value in every if value > 0])
    assert (moments.known, moments.positive) == (len(every), len(logs))
    if len(logs):
        assert moments.mean == pytest.approx(logs.mean(), abs=1e-9)
        assert moments.squares == pytest.approx(logs.var() * len(logs), rel=1e-9, abs=1e-9)


@given(st.lists(st.integers(0, 9), max_size=70))
def test_pairs_are_merged_in_order_and_few_are_held(parts: list[int]) -> None:
    """A text of the parts, and through how many merges the part that saw the most went."""
    deepest = 1 + math.log2(max(len(parts), 1))
    whole = pairwise(
        ((str(part), 0) for part in parts), lambda a, b: (a[0] + b[0], 1 + max(a[1], b[1]))
    )
    if not parts:
        assert whole is None
    else:
        assert whole is not None
        assert whole[0] == "".join(map(str, parts))
        assert whole[1] <= deepest
