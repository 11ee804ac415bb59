import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.features import FeatureConfig, Features, features
from models.data.history import History, view
from models.data.schema import UserError
from models.data.stats import (
    Scale,
    Stats,
    Summary,
    fit_scale,
    fit_stats,
    fit_target,
    logit,
    merged,
    stats_of,
)
from models.data.tasks import Task
from models.data.vocabulary import Vocabulary

Make = Callable[..., pl.DataFrame]

AS_OF = datetime(2024, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
BINARY, AMOUNT = Task(kind="binary"), Task(kind="amount")
FINITE = st.floats(-1e15, 1e15) | st.integers(-3, 3).map(float)


def numbers(*values: float | None) -> pl.Series:
    return pl.Series(values, dtype=pl.Float64)


@settings(max_examples=50)
@given(st.lists(FINITE, min_size=1, max_size=50), st.lists(FINITE, max_size=20))
def test_a_scale_is_monotone_and_bounded(fitted: list[float], applied: list[float]) -> None:
    scale = fit_scale(pl.Series(fitted))
    assert list(scale.knots) == sorted(set(scale.knots))
    values = np.sort(np.array([*fitted, *applied, -1e300, 1e300]))
    scores = scale.apply(values)
    assert (np.diff(scores) >= -1e-12).all()
    assert (np.abs(scores) < 2.6).all()


@given(st.permutations([0.0, 0.0, 0.0, 1.0, 5.0, 5.0, None, 90.0]))
def test_a_scale_is_free_of_order(values: list[float | None]) -> None:
    assert fit_scale(numbers(*values)) == fit_scale(numbers(*sorted(values, key=str)))


def test_scores_of_a_normal_are_its_standard_scores() -> None:
    z = np.random.default_rng(0).normal(size=20_000)
    scale = fit_scale(pl.Series(100 + 15 * z))
    inside = np.abs(z) < 2
    assert scale.apply(100 + 15 * z)[inside] == pytest.approx(z[inside], abs=0.1)


def test_ties_share_the_mean_of_their_scores() -> None:
    """Half the values are 0: its score is the mean of the lower half's, not the lowest."""
    values = np.r_[np.zeros(500), np.linspace(1, 2, 500)]
    scores = fit_scale(pl.Series(values)).apply(np.array([0.0, 2.0, -7.0]))
    assert scores[0] == pytest.approx(-math.sqrt(2 / math.pi), abs=0.05)
    assert scores[2] == scores[0]
    assert scores[1] == pytest.approx(2.576, abs=0.001)


@given(st.lists(st.integers(0, 3), min_size=1))
def test_a_median_keeps_its_score_where_it_is_tied(drawn: list[int]) -> None:
    scale = fit_scale(pl.Series(drawn, dtype=pl.Float64))
    assert scale.median == scale.apply(np.array([np.median(drawn)]))[0]


@pytest.mark.parametrize("values", [(), (None, None), (3.0,), (3.0, 3.0, None)])
def test_nothing_to_tell_apart_scores_zero(values: tuple[float | None, ...]) -> None:
    scale = fit_scale(numbers(*values))
    known = any(value is not None for value in values)
    assert scale == Scale(knots=(), scores=(), median=0.0 if known else None)
    scores = scale.apply(np.array([np.nan, 3.0, 4.0]))
    assert np.isnan(scores[0]) and scores[1:].tolist() == [0.0, 0.0]


def test_unknown_stays_unknown() -> None:
    scores = fit_scale(numbers(1.0, None, 2.0, 3.0)).apply(np.array([np.nan, 2.0]))
    assert np.isnan(scores).tolist() == [True, False]
    assert fit_scale(numbers(1.0, 2.0)).apply(np.array([])).shape == (0,)


def test_the_base_rate_is_of_the_known_labels() -> None:
    assert fit_target("t", BINARY, numbers(1.0, 0.0, 0.0, None, 0.0)).rate == 0.25
    target = fit_target("t", AMOUNT, numbers(0.0, math.e, math.e**3, None))
    assert target.rate == pytest.approx(2 / 3)
    assert target.log_mean == pytest.approx(2.0)
    assert target.log_std == pytest.approx(math.sqrt(2))


def test_amounts_all_positive_and_all_the_same_stay_finite() -> None:
    target = fit_target("t", AMOUNT, numbers(5.0, 5.0, 5.0))
    assert target.rate < 1 and target.log_std > 0
    assert math.isfinite(logit(target.rate))


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        (BINARY, (), "tasks.t: no label in the fit role"),
        (AMOUNT, (None,), "tasks.t: no label in the fit role"),
        (BINARY, (1.0, 1.0, None), "only one class in the fit role (all 1)"),
        (BINARY, (0.0,), "only one class in the fit role (all 0)"),
        (AMOUNT, (0.0, 7.0, -3.0), "fewer than two positive amounts"),
    ],
)
def test_nothing_to_learn_is_refused(
    task: Task, labels: tuple[float | None, ...], message: str
) -> None:
    with pytest.raises(UserError) as refused:
        fit_target("t", task, numbers(*labels))
    assert message in str(refused.value)


def test_a_logit_is_undone_by_the_logistic_function() -> None:
    assert logit(0.5) == 0
    assert 1 / (1 + math.exp(-logit(0.08))) == pytest.approx(0.08)


@pytest.fixture
def fitted(make_events: Make, make_rows: Make) -> tuple[Vocabulary, Features]:
    """Four users, the first of whom did nothing."""
    vocabulary = Vocabulary(event_types=("buy",), relations=("device",), numeric=("income",))
    log = [
        {"user_key": user, "event_time": AS_OF - n * DAY, "amount": 10 * user}
        for user in (2, 3, 4)
        for n in range(1, user + 1)
    ]
    rows = make_rows([(user, AS_OF) for user in (1, 2, 3, 4)])
    config = FeatureConfig()
    seen = view(History(make_events(log)), rows, config.history)
    return vocabulary, features(seen, vocabulary, config)


def test_stats_cover_every_column_and_survive_json(fitted: tuple[Vocabulary, Features]) -> None:
    vocabulary, known = fitted
    labels = pl.DataFrame({"y_bad": [0.0, 1.0, None, 0.0], "y_spend": [0.0, 4.0, 2.0, None]})
    tasks = {"bad": BINARY, "spend": AMOUNT}
    stats = fit_stats(vocabulary, known, labels, tasks)
    assert tuple(stats.tabular) == known.tabular
    assert tuple(stats.social) == known.social
    assert stats.vocabulary == vocabulary
    assert stats.targets["bad"].rate == pytest.approx(1 / 3)
    assert stats.targets["spend"].rate == pytest.approx(2 / 3)
    scores = stats.tabular["n_30d"].apply(known.frame["n_30d"].to_numpy())
    assert (np.diff(scores) > 0).all()
    assert stats.tabular["income"].knots == () and stats.social["device_nodes"].knots == ()
    assert (stats.amount.knots[0], stats.amount.knots[-1]) == (20.0, 40.0)
    assert Stats.model_validate_json(stats.model_dump_json()) == stats


def test_summaries_of_parts_give_the_stats_of_the_whole(
    fitted: tuple[Vocabulary, Features],
) -> None:
    """Written to a frame and read again between, as the buckets of a snapshot are."""
    vocabulary, known = fitted
    labels = pl.DataFrame({"y_bad": [0.0, 1.0, None, 0.0], "y_spend": [0.0, 4.0, 2.0, None]})
    tasks = {"bad": BINARY, "spend": AMOUNT}
    whole = fit_stats(vocabulary, known, labels, tasks)
    for cuts in ([0, 4], [0, 1, 4], [0, 2, 2, 3, 4]):
        parts = [
            Summary.of(replace(known, frame=known.frame[low:high]), labels[low:high], tasks)
            for low, high in pairwise(cuts)
        ]
        nobody = replace(known, frame=known.frame.clear())
        frames = [part.to_frame() for part in parts]
        summary = merged(Summary.from_frame(frame, nobody, tasks) for frame in frames)
        assert summary is not None and summary.rank_error == 0
        assert summary.having == known.having()
        stats = stats_of(vocabulary, summary, tasks)
        assert stats.model_dump(exclude={"targets"}) == whole.model_dump(exclude={"targets"})
        spend, expected = stats.targets["spend"], whole.targets["spend"]
        assert stats.targets["bad"] == whole.targets["bad"] and spend.rate == expected.rate
        assert spend.log_mean == pytest.approx(expected.log_mean, abs=1e-12)
        assert spend.log_std == pytest.approx(expected.log_std, abs=1e-12)


def test_stats_of_users_without_events(make_events: Make, make_rows: Make) -> None:
    vocabulary, config = Vocabulary(event_types=("buy",)), FeatureConfig()
    seen = view(History(make_events([])), make_rows([(1, AS_OF), (2, AS_OF)]), config.history)
    known = features(seen, vocabulary, config)
    stats = fit_stats(vocabulary, known, pl.DataFrame({"y_bad": [0.0, 1.0]}), {"bad": BINARY})
    assert stats.amount.knots == ()
    assert stats.absent == ("text", "behaviour", "social")


def test_a_modality_is_absent_where_no_row_has_it(fitted: tuple[Vocabulary, Features]) -> None:
    vocabulary, known = fitted
    labels = pl.DataFrame({"y_bad": [0.0, 1.0, None, 0.0]})
    assert known.having() == {"text": 0, "behaviour": 3, "social": 0}
    assert fit_stats(vocabulary, known, labels, {"bad": BINARY}).absent == ("text", "social")
    last = pl.int_range(pl.len()) == pl.len() - 1
    written = pl.when(last).then(pl.lit(["refund"])).otherwise("texts")
    tied = pl.when(last).then(0.0).otherwise("device_nodes")
    frame = known.frame.with_columns(texts=written, device_nodes=tied)
    both = replace(known, frame=frame)
    assert both.having() == {"text": 1, "behaviour": 3, "social": 1}
    assert fit_stats(vocabulary, both, labels, {"bad": BINARY}).absent == ()
