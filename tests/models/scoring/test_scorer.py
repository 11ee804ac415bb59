"""The scorer: what it answers, and that company, order and storage of events change nothing."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from scipy.stats import lognorm

from models.data.batch import Tokenizer
from models.data.history import History, HistoryConfig, build_baseline, extend_baseline, no_events
from models.data.rows import number
from models.data.tasks import Roles
from models.nets.fusion import MODALITIES
from models.nets.heads import spread
from models.nets.network import Network
from models.scoring import predict, scorecard
from models.scoring.artifact import Artifact, ModelSpec
from models.scoring.calibrate import AmountCalibrator
from models.scoring.reasons import TYPE
from models.scoring.scorer import Scorer

AmountsOf = Callable[..., dict[str, float]]
TIME = pl.Datetime("us", "UTC")
JUNE, MAY = datetime(2024, 6, 1, tzinfo=UTC), datetime(2024, 5, 1, tzinfo=UTC)
PROBABILITY = pl.Struct({"probability": pl.Float64, "low": pl.Float64, "high": pl.Float64})
SCHEMA = {
    "row": pl.UInt32,
    "user_key": pl.Int64,
    "as_of": TIME,
    "baseline_date": TIME,
    "graph_date": TIME,
    "saturated": pl.Boolean,
    "default": PROBABILITY,
    "fraud": PROBABILITY,
    "spend": pl.Struct({"amount": pl.Float64, "low": pl.Float64, "high": pl.Float64}),
    "score": pl.Float64,
    "grade": pl.String,
    "weights": pl.Struct(dict.fromkeys(MODALITIES, pl.Float64)),
    "reasons": pl.List(TYPE),
    "decision": pl.Struct(
        {"action": pl.String, "review_level": pl.String, "limit": pl.Float64, "tier": pl.String}
    ),
    "model_sha256": pl.String,
}


@pytest.fixture(scope="module")
def scores(scorer: Scorer, history: History, rows: pl.DataFrame) -> pl.DataFrame:
    return scorer.score(history, rows)


def assert_same(one: pl.DataFrame, two: pl.DataFrame, *leave_out: str) -> None:
    """Equal within 1e-6; what is cut from numbers (grade, decision) exactly."""
    out = ["row", "reasons", *leave_out]
    assert_frame_equal(one.drop(out), two.drop(out), abs_tol=1e-6, rel_tol=1e-6)
    for a, b in zip(one["reasons"].to_list(), two["reasons"].to_list(), strict=True):
        assert [r["effect"] for r in a] == pytest.approx([r["effect"] for r in b], abs=1e-5)


def asking(rows: pl.DataFrame, amount: float | None, category: str | None = None) -> pl.DataFrame:
    return rows.with_columns(
        proposed_amount=pl.lit(amount, pl.Float64), proposed_category=pl.lit(category, pl.String)
    )


def with_network(
    spec: ModelSpec, network: Network, tokenizer: Tokenizer, **changes: object
) -> Scorer:
    return Scorer(Artifact("0" * 64, spec.model_copy(update=changes), network, tokenizer))


def test_the_columns_are_those_of_the_contract(scores: pl.DataFrame, rows: pl.DataFrame) -> None:
    assert dict(scores.schema) == SCHEMA
    assert_frame_equal(scores.select("row", "user_key", "as_of"), rows)
    assert scores["baseline_date"].unique().to_list() == [JUNE]
    assert scores["graph_date"].unique().to_list() == [JUNE]
    # only what was not estimated, or does not apply, is null
    assert scores.drop("decision").null_count().sum_horizontal().item() == 0
    assert scores["decision"].struct.unnest().drop("review_level").null_count().row(0) == (0, 0, 0)


def test_every_number_is_finite_and_in_its_range(scores: pl.DataFrame) -> None:
    for task in ("default", "fraud"):
        own = scores[task].struct.unnest()
        assert own["probability"].is_between(0, 1, closed="none").all()
        assert (own["low"] > 0).all() and (own["high"] < 1).all()
    assert scores["spend"].struct.field("amount").is_finite().all()
    assert scores["score"].is_between(0, 100).all()


def test_intervals_hold_the_value(scores: pl.DataFrame) -> None:
    for task, field in (("default", "probability"), ("fraud", "probability"), ("spend", "amount")):
        own = scores[task].struct.unnest()
        assert (own["low"] <= own[field]).all() and (own[field] <= own["high"]).all(), task
        assert (own["low"] < own["high"]).all(), task
    assert (scores["spend"].struct.field("low") >= 0).all()


def test_score_and_grade_follow_from_the_probability(scores: pl.DataFrame, spec: ModelSpec) -> None:
    pd = scores["default"].struct.field("probability").to_numpy()
    assert scores["score"].to_numpy() == pytest.approx(scorecard.score(pd, spec.scorecard))
    assert scores["grade"].to_list() == scorecard.grade(pd, spec.scorecard).tolist()
    assert scores["grade"].n_unique() > 2
    declined = scores["decision"].struct.field("action") == "decline"
    assert declined.any() and not declined.all()
    assert (declined | (scores["score"] >= spec.policy.decline_below)).all()


def test_weights_are_over_what_is_known(
    scores: pl.DataFrame, history: History, rows: pl.DataFrame
) -> None:
    weights = scores["weights"].struct.unnest()
    assert weights.sum_horizontal().to_list() == pytest.approx([1.0] * scores.height, abs=1e-6)
    wrote = history.recent.filter(pl.col("text").is_not_null())["user_key"]
    assert history.social is not None
    for name, users in (
        ("text", wrote),
        ("behaviour", history.recent["user_key"]),
        ("social", history.social["user_key"]),
        ("tabular", rows["user_key"]),
    ):
        there = rows["user_key"].is_in(users.unique().implode())
        assert ((weights[name] > 0) == there).all(), name


def test_reasons_are_few_and_the_largest_first(scores: pl.DataFrame) -> None:
    lists = scores["reasons"].to_list()
    for reasons in lists:
        effects = [r["effect"] for r in reasons]
        assert len(reasons) <= 4
        assert effects == sorted(effects, reverse=True)
        assert all(e >= 0.02 for e in effects)
        assert len({r["code"] for r in reasons}) == len(reasons)
        assert all(r["text"] for r in reasons)
    assert max(map(len, lists)) == 4


def test_the_order_of_rows_changes_nothing(
    scorer: Scorer, history: History, rows: pl.DataFrame, scores: pl.DataFrame, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(rows.height)
    shuffled = number(rows.drop("row")[order])
    assert_same(scorer.score(history, shuffled), scores[order])


def test_a_user_is_scored_the_same_alone_and_in_company(
    saved: Path, history: History, rows: pl.DataFrame, scores: pl.DataFrame
) -> None:
    """With a new scorer, so that no encoding is left from the company."""
    fresh = Scorer.load(str(saved))
    for k in (0, 7, 23, rows.height - 1):
        user = pl.col("user_key") == rows["user_key"][k]
        own = replace(history, recent=history.recent.filter(user))
        assert_same(fresh.score(own, number(rows.drop("row")[k : k + 1])), scores[k : k + 1])


def test_the_size_of_a_batch_changes_nothing(
    scorer: Scorer,
    history: History,
    rows: pl.DataFrame,
    scores: pl.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predict, "ROWS", 10)
    assert_same(scorer.score(history, rows), scores)


def test_no_rows_give_no_scores_of_the_same_columns(
    scorer: Scorer, history: History, rows: pl.DataFrame
) -> None:
    for asked in (rows.head(0), asking(rows.head(0), 1.0)):
        none = scorer.score(history, asked)
        assert none.height == 0
        assert dict(none.schema) == SCHEMA


def test_a_user_of_whom_nothing_is_known(scorer: Scorer, rows: pl.DataFrame) -> None:
    """No event, no profile, no tie, and not even tables of them."""
    (one,) = scorer.score(History(no_events()), rows.head(1)).to_dicts()
    assert one["weights"] == {"text": 0, "behaviour": 0, "tabular": 1, "social": 0}
    assert 0 < one["default"]["probability"] < 1
    assert one["spend"]["low"] <= one["spend"]["amount"] <= one["spend"]["high"]
    assert one["decision"]["action"] in ("approve", "review", "decline")
    assert one["saturated"] is False


def test_a_stranger_among_known_users_is_scored_as_alone(
    scorer: Scorer, rows: pl.DataFrame, scores: pl.DataFrame
) -> None:
    alone = scorer.score(History(no_events()), rows.tail(1).with_columns(row=pl.lit(0, pl.UInt32)))
    assert_same(alone, scores.tail(1))


@pytest.mark.parametrize("date", [JUNE, MAY, datetime(2024, 1, 1, tzinfo=UTC)])
def test_a_baseline_and_recent_events_score_as_all_events_do(
    scorer: Scorer,
    history: History,
    rows: pl.DataFrame,
    scores: pl.DataFrame,
    date: datetime,
    seed: int,
) -> None:
    """Recent events in any order, with repeats, and some that the baseline has counted."""
    config = scorer.spec.features.history
    baseline = build_baseline(history.recent, date, config)
    since = history.recent.filter(pl.col("event_time") >= date - timedelta(days=9))
    recent = pl.concat([since, since.head(40)]).sample(fraction=1.0, shuffle=True, seed=seed)
    split = replace(history, recent=recent, baseline=baseline)
    found = scorer.score(split, rows)
    assert found["baseline_date"].unique().to_list() == [date]
    assert_same(found, scores, "baseline_date")


def test_a_baseline_moved_forward_scores_the_same(
    scorer: Scorer, history: History, rows: pl.DataFrame, scores: pl.DataFrame
) -> None:
    config: HistoryConfig = scorer.spec.features.history
    since = history.recent.filter((pl.col("event_time") >= MAY) | (pl.col("available_at") > MAY))
    moved = extend_baseline(build_baseline(history.recent, MAY, config), since, JUNE, config)
    recent = history.recent.filter(pl.col("event_time") >= JUNE)
    assert_same(scorer.score(replace(history, recent=recent, baseline=moved), rows), scores)


def test_what_happened_later_or_was_known_later_moves_nothing(
    scorer: Scorer, history: History, rows: pl.DataFrame, scores: pl.DataFrame
) -> None:
    as_of = rows["as_of"][0]
    fresh = pl.col("event_id") + 10**6
    future = history.recent.with_columns(
        event_id=fresh, event_time=pl.lit(as_of).cast(TIME), available_at=pl.lit(as_of).cast(TIME)
    )
    late = history.recent.with_columns(
        event_id=2 * fresh, available_at=pl.lit(as_of + timedelta(microseconds=1)).cast(TIME)
    )
    more = replace(history, recent=pl.concat([history.recent, future, late]))
    assert_same(scorer.score(more, rows), scores)


def test_a_user_as_of_two_times_is_two_rows(
    scorer: Scorer, history: History, rows: pl.DataFrame, scores: pl.DataFrame
) -> None:
    earlier = rows.with_columns(as_of=pl.lit(JUNE + timedelta(days=1)).cast(TIME))
    both = number(pl.concat([rows, earlier]).drop("row"))
    found = scorer.score(history, both)
    assert_same(found.head(rows.height), scores)
    assert_same(found.tail(rows.height), scorer.score(history, earlier))
    assert (found["score"].head(rows.height) != found["score"].tail(rows.height)).any()


def test_a_proposed_transaction_is_judged_on_its_amount(
    scorer: Scorer, history: History, rows: pl.DataFrame, scores: pl.DataFrame,
    spec: ModelSpec, trained: Network, tokenizer: Tokenizer,
) -> None:  # fmt: skip
    assert_same(scorer.score(history, asking(rows, None)), scores)
    # a model that suspects nobody of fraud, under rules that do not hang on its scores
    rules = spec.policy.model_copy(update={"approve_at": 1.0, "decline_below": 0.0})
    roles = Roles(pd="default", spend="spend")
    lenient = with_network(spec, trained, tokenizer, roles=roles, policy=rules)
    small, large = (lenient.score(history, asking(rows, x, "c1")) for x in (1.0, 1e6))
    assert "approve" in small["decision"].struct.field("action")
    assert "approve" not in large["decision"].struct.field("action")
    pd, with_large = (f["default"].struct.field("probability") for f in (scores, large))
    assert ((pd - with_large).abs() > 1e-6).all()
    limits = small["decision"].struct.field("limit")
    approved = small["decision"].struct.field("action") == "approve"
    assert (limits.filter(approved) >= 1.0).all() and approved.any()


def test_one_row_with_a_proposal_leaves_the_others_alone(
    scorer: Scorer, history: History, rows: pl.DataFrame, scores: pl.DataFrame
) -> None:
    amounts = pl.Series([99.5] + [None] * (rows.height - 1), dtype=pl.Float64)
    found = scorer.score(history, asking(rows, None).with_columns(proposed_amount=amounts))
    assert_same(found[1:], scores[1:])
    assert found["default"][0] != scores["default"][0]
    money = amounts.cast(pl.Decimal(18, 4))
    exact = scorer.score(history, asking(rows, None).with_columns(proposed_amount=money))
    assert_same(exact, found)


def test_a_hostile_history_is_scored(scorer: Scorer, rows: pl.DataFrame, history: History) -> None:
    """Unknown types and categories, huge and negative amounts, texts of any sort."""
    texts = ["", " ", "\x00", "🙂" * 3000, "money " * 5000, "[MASK] [PAD]", "钱不够", "ﷺ"]
    odd = history.recent.head(len(texts)).with_columns(
        event_type=pl.lit("never seen"),
        category=pl.lit("[PAD]"),
        amount=pl.Series([10**10, -(10**10), 0, 1, -1, None, 5, 7]).cast(pl.Decimal(18, 4)),
        text=pl.Series(texts),
    )
    found = scorer.score(History(odd), rows)
    assert dict(found.schema) == SCHEMA
    assert found["score"].is_finite().all()
    assert np.isfinite(found["spend"].struct.unnest().to_numpy()).all()


def test_tasks_without_a_role_are_answered_and_have_no_say(
    spec: ModelSpec, trained: Network, tokenizer: Tokenizer, history: History, rows: pl.DataFrame,
    scores: pl.DataFrame,
) -> None:  # fmt: skip
    lone = with_network(spec, trained, tokenizer, roles=Roles(pd="default"), replicates={})
    found = lone.score(history, rows)
    assert_same(found, scores, "default", "fraud", "decision", "model_sha256")
    assert found["decision"].struct.field("limit").to_list().count(None) > 0
    for task in ("default", "fraud"):
        own = found[task].struct.unnest()
        assert (own["low"] == own["probability"]).all()
        assert (own["high"] == own["probability"]).all()


@pytest.fixture(scope="module")
def amounts_of(
    spec: ModelSpec,
    make_network: Callable[..., Network],
    tokenizer: Tokenizer,
    history: History,
    rows: pl.DataFrame,
) -> AmountsOf:
    """The answer of a network that gives everyone the same amount parameters."""

    def answer(some: float, mean: float, raw: float, scale: float = 1.0) -> dict[str, float]:
        network = make_network()
        head = network.heads.heads["spend"]
        assert isinstance(head, torch.nn.Sequential) and isinstance(head[2], torch.nn.Linear)
        torch.nn.init.zeros_(head[2].weight)
        with torch.no_grad():
            head[2].bias.copy_(torch.tensor([some, mean, raw]))
        scaled = AmountCalibrator(scale=scale, exponent=1.0, reference=1.0, floor=1e-9)
        calibrators = spec.calibrators | {"spend": scaled}
        scorer = with_network(spec, network, tokenizer, calibrators=calibrators)
        result: dict[str, float] = scorer.score(history, rows.head(1))["spend"][0]
        return result

    return answer


def test_an_amounts_interval_holds_four_outcomes_in_five(
    amounts_of: AmountsOf, spec: ModelSpec
) -> None:
    some, mean, raw = 3.0, 0.3, -0.7
    found, target = amounts_of(some, mean, raw), spec.stats.targets["spend"]
    sigma = target.log_std * float(spread(torch.tensor(raw)))
    own = lognorm(s=sigma, scale=np.exp(target.log_mean + target.log_std * mean))
    p = 1 / (1 + np.exp(-some))
    for field, share in (("low", 0.1), ("high", 0.9)):
        assert 1 - p + p * own.cdf(found[field]) == pytest.approx(share, abs=1e-6)
    assert found["amount"] == pytest.approx(p * own.mean(), rel=1e-5)
    doubled = amounts_of(some, mean, raw, scale=2.0)
    assert doubled == pytest.approx({field: 2 * value for field, value in found.items()})


@pytest.mark.parametrize(
    ("some", "mean", "raw"),
    [(-4.0, 0.0, 0.0), (9.0, 0.0, 9.0), (0.0, 40.0, 9.0), (9.0, 40.0, -9.0), (-40.0, -40.0, 0.0)],
)
def test_an_amounts_interval_holds_its_mean_however_odd_the_distribution(
    amounts_of: AmountsOf,
    some: float, mean: float, raw: float,
) -> None:  # fmt: skip
    found = amounts_of(some, mean, raw)
    assert 0 <= found["low"] <= found["amount"] <= found["high"]
    assert np.isfinite(found["high"])
