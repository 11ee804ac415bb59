"""Model, baselines and oracle on the same rows: what is compared, and on which rows."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.scoring.comparison import (
    BinaryTask,
    Cut,
    Difference,
    Truth,
    compare_amount,
    compare_binary,
)
from models.scoring.curves import Value
from models.scoring.metrics import measure

N = 800
USERS = np.arange(N)
CUTS = (Cut("declined", 0.3, 70.0), Cut("not approved", 0.1, 90.0))
Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def world() -> tuple[Floats, Floats, Floats]:
    """Outcomes, their true probabilities, and a noisy model of these."""
    rng = np.random.default_rng(11)
    z = rng.normal(-1, 1.3, N)
    p = 1 / (1 + np.exp(-z))
    model = 1 / (1 + np.exp(-(z + rng.normal(0, 0.8, N))))
    return (rng.random(N) < p).astype(float), p, model


def truth(p: Floats, y: Floats, hidden: NDArray[np.bool_] | None = None) -> Truth:
    none = np.zeros(N, dtype=bool) if hidden is None else hidden
    return Truth(expected=p, value=y, hidden=none, withheld={"without_text": np.full(N, 0.2)})


def compare(y: Floats, predictions: dict[str, Floats], told: Truth | None = None) -> BinaryTask:
    users = np.arange(len(y))
    return compare_binary(y, predictions, CUTS, users=users, seed=1, resamples=60, truth=told)


def test_the_oracle_reaches_all_of_itself(world: tuple[Floats, Floats, Floats]) -> None:
    y, p, _ = world
    result = compare(y, {"model": p}, truth(p, y)).oracle
    assert result is not None and result.rows == N
    assert result.share == Value(value=1, low=1, high=1)
    assert result.regret == Value(value=0, low=0, high=0)
    assert result.withheld["without_text"].value == 0.5


def test_share_and_regret(world: tuple[Floats, Floats, Floats]) -> None:
    y, p, model = world
    result = compare(y, {"model": model}, truth(p, y)).oracle
    assert result is not None and result.share.value is not None
    lifts = [measure("auc", y, x) - 0.5 for x in (model, p)]
    assert result.share.value == pytest.approx(lifts[0] / lifts[1])
    assert result.share.low < result.share.value < result.share.high
    losses = [measure("log_loss", y, x) for x in (model, p)]
    assert result.regret.value == pytest.approx(losses[0] - losses[1])


def test_everyone_is_measured_on_the_known_rows(world: tuple[Floats, Floats, Floats]) -> None:
    y, p, model = world
    some = np.where(np.arange(N) % 4 == 0, np.nan, y)
    known = np.isfinite(some)
    result = compare(some, {"model": model, "constant": np.full(N, 0.3)}, truth(p, y))
    assert (result.rows, result.known) == (N, known.sum())
    assert [c.name for c in result.contenders] == ["model", "constant", "oracle"]
    auc = result.contenders[0].scores.auc.value
    assert auc == pytest.approx(measure("auc", y[known], model[known]))
    assert {c.scores.rows for c in result.contenders} == {known.sum()}
    assert sum(b.rows for b in result.calibration) == known.sum()
    assert result.through_the_door == ()  # nothing was hidden: the outcomes are just not there


def test_through_the_door_has_the_hidden_outcomes(world: tuple[Floats, Floats, Floats]) -> None:
    y, p, model = world
    hidden = model > 0.4
    seen = np.where(hidden, np.nan, y)
    result = compare(seen, {"model": model}, truth(p, y, hidden))
    accepted, everyone = result.contenders[0].scores, result.through_the_door[0].scores
    assert (accepted.rows, everyone.rows) == ((~hidden).sum(), N)
    assert everyone.base_rate == pytest.approx(y.mean())
    assert accepted.base_rate < everyone.base_rate
    assert [c.name for c in result.through_the_door] == ["model", "oracle"]


def test_an_oracle_that_speaks_of_some_rows(world: tuple[Floats, Floats, Floats]) -> None:
    y, p, model = world
    half = np.where(np.arange(N) < N // 2, p, np.nan)
    result = compare(y, {"model": model}, truth(half, np.where(np.isnan(half), np.nan, y)))
    assert [c.name for c in result.contenders] == ["model"]
    assert result.oracle is not None and result.oracle.rows == N // 2


def test_thresholds_flag_what_they_say(world: tuple[Floats, Floats, Floats]) -> None:
    y, _, model = world
    declined, not_approved = compare(y, {"model": model}).thresholds
    assert declined.flagged == pytest.approx((model >= 0.3).mean())
    assert declined.precision == pytest.approx(y[model >= 0.3].mean())
    assert (declined.score, not_approved.score) == (70, 90)
    assert not_approved.recall >= declined.recall


def test_one_class_and_no_class(world: tuple[Floats, Floats, Floats]) -> None:
    _, p, model = world
    single = compare(
        np.zeros(N), {"model": model, "constant": np.full(N, 0.3)}, truth(p, np.zeros(N))
    )
    scores = single.contenders[0].scores
    assert scores.auc.value is None and scores.recall is None and scores.log_loss.value is not None
    assert single.contenders[0].roc.x == ()
    assert single.oracle is not None and single.oracle.share.value is None
    assert single.differences[0].verdict == "unknown"
    assert compare(np.full(N, np.nan), {"model": model}) == BinaryTask(rows=N, known=0)


def test_one_user() -> None:
    result = compare(np.array([1.0]), {"model": np.array([0.4])})
    assert result.contenders[0].scores.brier.value == pytest.approx(0.36)


def test_amounts(world: tuple[Floats, Floats, Floats]) -> None:
    rng = np.random.default_rng(2)
    mean = np.exp(rng.normal(3, 1, N))
    y = np.where(rng.random(N) < 0.2, np.nan, mean * rng.lognormal(0, 0.5, N))
    told = Truth(
        expected=mean,
        value=np.nan_to_num(y),
        hidden=np.isnan(y),
        withheld={"without_text": rng.permutation(mean)},
    )
    predictions = {"model": mean * 1.1, "constant": np.full(N, 30.0)}
    result = compare_amount(y, predictions, users=USERS, seed=1, resamples=60, truth=told)
    assert [c.name for c in result.contenders] == ["model", "constant", "oracle"]
    assert result.oracle is not None and result.oracle.share.value == pytest.approx(1)
    assert abs(result.oracle.withheld["without_text"].value) < 0.2
    by_metric = {d.metric: d for d in result.differences}
    assert by_metric["rmse"].verdict == "better"  # the lower the better
    assert by_metric["spearman"].verdict == "unknown"  # a constant ranks nobody
    assert sum(b.rows for b in result.deciles) == np.isfinite(y).sum()
    nobody = compare_amount(np.full(N, np.nan), predictions, users=USERS, seed=1, resamples=60)
    assert nobody.known == 0 and nobody.contenders == ()


@pytest.mark.parametrize(
    ("metric", "low", "high", "verdict"),
    [
        ("auc", 0.01, 0.02, "better"),
        ("auc", -0.02, -0.01, "worse"),
        ("log_loss", -0.02, -0.01, "better"),
        ("log_loss", 0.01, 0.02, "worse"),
        ("auc", -0.01, 0.02, "no clear difference"),
        ("auc", 0.0, 0.0, "no clear difference"),
        ("auc", None, None, "unknown"),
    ],
)
def test_verdict(metric: str, low: float | None, high: float | None, verdict: str) -> None:
    value = Value(value=0.0, low=low, high=high)
    assert Difference(against="x", metric=metric, difference=value).verdict == verdict
