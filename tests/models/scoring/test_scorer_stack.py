"""A stack is scored as a network is: one artifact, one scorer, the same answer in any company."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from scipy.special import expit, logit

from models.data.features import Features
from models.data.history import History
from models.data.rows import number
from models.scoring import predict, scorecard
from models.scoring.scorer import Scorer
from models.scoring.stack import NETWORK, combine
from models.scoring.trees import TreeExpert


@pytest.fixture(scope="module")
def scores(stacked: Scorer, history: History, rows: pl.DataFrame) -> pl.DataFrame:
    return stacked.score(history, rows)


def probability(scores: pl.DataFrame, task: str = "default") -> np.ndarray:
    return scores[task].struct.field("probability").to_numpy()


def test_the_final_value_is_the_calibrated_mean_of_the_sources(
    stacked: Scorer, known: Features
) -> None:
    network = stacked.predictor.raw(known)
    found = stacked.score_features(known)
    for name, field in (("default", "probability"), ("spend", "amount")):
        values = {NETWORK: network[name]}
        for source, expert in stacked.experts.items():
            values[source] = expert.raw(name, expert.read(known.frame))
        weights = stacked.spec.stack[name].weights
        assert len(weights) == 3
        value = combine(stacked.spec.tasks[name].kind, weights, values)
        expected = stacked.spec.calibrators[name].apply(value)
        np.testing.assert_allclose(found[name].struct.field(field), expected, rtol=1e-6)
        assert np.abs(expected - stacked.spec.calibrators[name].apply(network[name])).max() > 1e-3


def test_log_odds_are_those_of_the_final_probability(stacked: Scorer, known: Features) -> None:
    scores = stacked.score_features(known)
    for task in ("default", "fraud"):
        found = expit(stacked.log_odds(known, task))
        np.testing.assert_allclose(found, probability(scores, task), rtol=1e-9)
    nobody = replace(known, frame=known.frame.head(0))
    assert stacked.log_odds(nobody, "default").shape == (0,)


def test_a_task_whose_network_is_alone_is_scored_without_the_expert(
    scorer: Scorer, scores: pl.DataFrame, history: History, rows: pl.DataFrame
) -> None:
    alone = scorer.score(history, rows)
    assert_frame_equal(scores.select("fraud"), alone.select("fraud"))
    assert not scores["default"].equals(alone["default"])


def test_score_grade_and_intervals_are_of_the_stack(stacked: Scorer, scores: pl.DataFrame) -> None:
    pd = probability(scores)
    assert scores["score"].to_numpy() == pytest.approx(scorecard.score(pd, stacked.spec.scorecard))
    for task, field in (("default", "probability"), ("spend", "amount")):
        own = scores[task].struct.unnest()
        assert (own["low"] <= own[field]).all() and (own[field] <= own["high"]).all()
        assert (own["low"] < own["high"]).all()


def test_alone_in_company_and_in_other_batches(
    stacked: Scorer,
    history: History,
    rows: pl.DataFrame,
    scores: pl.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predict, "ROWS", 7)
    assert probability(stacked.score(history, rows)) == pytest.approx(probability(scores), abs=1e-6)
    for k in (0, 11, rows.height - 1):
        user = pl.col("user_key") == rows["user_key"][k]
        own = replace(history, recent=history.recent.filter(user))
        one = stacked.score(own, number(rows.drop("row")[k : k + 1]))
        assert probability(one) == pytest.approx(probability(scores)[k : k + 1], abs=1e-6)


def test_no_rows_have_the_same_columns(
    stacked: Scorer, history: History, rows: pl.DataFrame, scores: pl.DataFrame
) -> None:
    assert stacked.score(history, rows.head(0)).schema == scores.schema


def test_each_source_alone_is_calibrated_by_itself(
    stacked: Scorer, scorer: Scorer, known: Features
) -> None:
    alone = stacked.alone(known)
    assert alone.columns == ["default", "fraud", "spend"]
    for name, field in (("default", "probability"), ("fraud", "probability"), ("spend", "amount")):
        sources = alone[name].struct.unnest()
        assert sources.columns == [NETWORK, "lightgbm", "tfidf"]
        plain = scorer.score_features(known)[name].struct.field(field)
        np.testing.assert_allclose(sources[NETWORK], plain, rtol=1e-6)
        y = known.frame[f"y_{name}"]
        for source in sources.drop(NETWORK).iter_columns():
            assert source.filter(y.is_not_null()).mean() == pytest.approx(y.mean(), rel=0.02)
    assert scorer.alone(known).is_empty()


@pytest.mark.parametrize("code", ["profile", "event:late"])
def test_a_reason_is_a_part_of_the_final_log_odds(
    stacked: Scorer, known: Features, code: str
) -> None:
    """A row whose columns of a reason are at the median already has no effect of it; moving them
    there changes the final log odds by just that effect, also where the median is tied."""
    trees = stacked.experts["lightgbm"]
    assert isinstance(trees, TreeExpert)
    reason = next(r for r in stacked._reasons if r.code == code)
    medians = [pl.lit(trees.medians[k]).alias(known.tabular[k]) for k in reason.columns]
    levels = [pl.lit(1).alias(known.categorical[k]) for k in reason.categories]
    at_median = replace(known, frame=known.frame.with_columns(*medians, *levels))
    before, after = (stacked.score_features(f) for f in (known, at_median))
    rise = logit(probability(before)) - logit(probability(after))
    told = [{r["code"]: r["effect"] for r in reasons}.get(code) for reasons in before["reasons"]]
    assert any(told)
    for effect, moved in zip(told, rise, strict=True):
        if effect is not None:
            assert effect == pytest.approx(moved, abs=1e-5)
    assert not any(code in [r["code"] for r in reasons] for reasons in after["reasons"])
