"""Stacks: what helps is weighed in, what does not is left out, values are combined row by row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from models.data.tasks import Kind
from models.scoring.stack import ALONE, NETWORK, choose, combine, fit_weights

N = 3000
EACH = np.arange(N)  # each row is of another user
LIGHTGBM = "lightgbm"
Floats = np.ndarray


def world(kind: Kind, network: float, lightgbm: float) -> tuple[dict[str, Floats], Floats]:
    """Two parts of what can be known; each source sees one, the more the less its noise."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, N))
    seen = [a + rng.normal(0, network, N), b + rng.normal(0, lightgbm, N)]
    if kind == "binary":
        y = (rng.random(N) < expit(a + b - 1)).astype(float)
        return {NETWORK: seen[0], LIGHTGBM: seen[1]}, y
    y = np.where(rng.random(N) < 0.7, np.exp(3 + a + b), 0.0)
    return {NETWORK: np.exp(2 + seen[0]), LIGHTGBM: np.exp(2 + seen[1])}, y


@pytest.mark.parametrize("kind", ["binary", "amount"])
def test_sources_that_know_different_things_share_the_weight(kind: Kind) -> None:
    values, y = world(kind, 0.1, 0.1)
    weights = fit_weights(kind, values, y)
    assert sum(weights.values()) == pytest.approx(1)
    assert weights[NETWORK] == pytest.approx(0.5, abs=0.08)
    better, loss = choose(kind, values, y, EACH, seed=1)
    assert better and loss["stack"] < loss["network"]


@pytest.mark.parametrize("kind", ["binary", "amount"])
def test_a_source_that_knows_nothing_has_little_weight_and_is_not_chosen(kind: Kind) -> None:
    values, y = world(kind, 0.1, 0.1)
    values[LIGHTGBM] = np.random.default_rng(9).permutation(values[LIGHTGBM])
    assert fit_weights(kind, values, y).get(LIGHTGBM, 0.0) < 0.1
    assert not choose(kind, values, y, EACH, seed=1)[0]


def test_a_source_that_is_wrong_has_no_weight_at_all() -> None:
    values, y = world("binary", 0.1, 0.1)
    assert fit_weights("binary", {**values, LIGHTGBM: -values[LIGHTGBM]}, y) == ALONE


def test_the_same_source_twice_is_not_better_than_once() -> None:
    values, y = world("binary", 0.1, 0.1)
    twice = {**values, LIGHTGBM: values[NETWORK]}
    assert not choose("binary", twice, y, EACH, seed=1)[0]
    weights = fit_weights("binary", twice, y)
    np.testing.assert_allclose(combine("binary", weights, twice), values[NETWORK])


def test_with_few_outcomes_the_network_stays_alone() -> None:
    values, y = world("binary", 0.1, 0.1)
    rare = np.zeros(N)
    rare[:4] = 1
    assert choose("binary", values, rare, EACH, seed=1) == (False, {})
    assert choose("binary", {NETWORK: values[NETWORK]}, y, EACH, seed=1) == (False, {})


@pytest.mark.parametrize("zeros", [0, 1, 4])
def test_amounts_need_no_zeros_to_be_stacked(zeros: int) -> None:
    values, y = world("amount", 0.1, 0.1)
    bought = y > 0
    own = {source: value[bought] for source, value in values.items()}
    y = np.where(np.arange(bought.sum()) < zeros, 0.0, y[bought])
    better, loss = choose("amount", own, y, EACH[bought], seed=1)
    assert better and loss["stack"] < loss["network"]
    rare = np.where(np.arange(len(y)) < 4, 20.0, 0.0)
    assert choose("amount", own, rare, EACH[bought], seed=1) == (False, {})


def test_nobody_knows_anything() -> None:
    rng = np.random.default_rng(1)
    y = (rng.random(N) < 0.5).astype(float)
    values = {NETWORK: 2.0 - 4 * y, LIGHTGBM: 1.0 - 2 * y}
    assert fit_weights("binary", values, y) == ALONE


def test_amounts_of_nothing_are_finite() -> None:
    values, y = world("amount", 0.1, 0.1)
    values[LIGHTGBM] = np.where(np.arange(N) % 3 == 0, 0.0, values[LIGHTGBM])
    weights = fit_weights("amount", values, y)
    assert np.isfinite(combine("amount", {NETWORK: 0.5, LIGHTGBM: 0.5}, values)).all()
    assert np.isfinite(list(weights.values())).all()


@given(st.lists(st.tuples(st.floats(-9, 20), st.floats(-9, 20)), min_size=1), st.floats(0, 1))
def test_a_combination_lies_between_and_row_by_row(
    rows: list[tuple[float, float]], share: float
) -> None:
    network, lightgbm = np.array(rows).T
    weights = {NETWORK: 1 - share, LIGHTGBM: share}
    for kind, values in (
        ("binary", {NETWORK: network, LIGHTGBM: lightgbm}),
        ("amount", {NETWORK: np.exp(network), LIGHTGBM: np.exp(lightgbm)}),
    ):
        whole = combine(kind, weights, values)  # type: ignore[arg-type]
        low, high = np.minimum(*values.values()), np.maximum(*values.values())
        assert (whole >= low - 1e-9 * np.abs(low)).all()
        assert (whole <= high + 1e-9 * np.abs(high)).all()
        one = combine(kind, weights, {n: v[-1:] for n, v in values.items()})  # type: ignore[arg-type]
        assert one[0] == whole[-1]


def test_the_network_alone_keeps_its_bits() -> None:
    values, _ = world("amount", 0.1, 0.1)
    assert combine("amount", ALONE, values) is values[NETWORK]
