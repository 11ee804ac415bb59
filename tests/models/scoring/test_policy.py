import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.schema import UserError
from models.scoring.policy import Decisions, LimitRule, PolicyConfig, Tier, decide
from models.scoring.scorecard import GRADES, ScorecardConfig, grade, score

POLICY = PolicyConfig()
CARD = ScorecardConfig()
NAN = float("nan")


def one(  # a user in the middle of everything, one thing changed
    points: float = 95.0,
    name: str = "A",
    pd: float = 0.008,
    fraud: float = 0.01,
    spend: float = 400.0,
    proposed: float | None = None,
    cfg: PolicyConfig = POLICY,
) -> dict[str, object]:
    amount = None if proposed is None else [proposed]
    decisions = decide([points], [name], [pd], [fraud], [spend], cfg, proposed=amount)
    return decisions.to_frame().row(0, named=True)


@pytest.mark.parametrize(
    ("points", "action", "level"),
    [
        (100.0, "approve", None),
        (90.0, "approve", None),
        (np.nextafter(90.0, 0), "review", "light"),
        (84.0, "review", "light"),
        (83.9, "review", "standard"),
        (76.0, "review", "standard"),
        (75.9, "review", "deep"),
        (70.0, "review", "deep"),
        (np.nextafter(70.0, 0), "decline", None),
        (0.0, "decline", None),
    ],
)
def test_score_bands(points: float, action: str, level: str | None) -> None:
    decision = one(points)
    assert (decision["action"], decision["review_level"]) == (action, level)


@pytest.mark.parametrize(
    ("points", "fraud", "action", "level"),
    [
        (95.0, 0.29, "approve", None),
        (95.0, 0.30, "review", "standard"),
        (80.0, 0.30, "review", "deep"),
        (71.0, 0.30, "review", "deep"),
        (95.0, 0.80, "decline", None),
        (95.0, NAN, "approve", None),
        (80.0, NAN, "review", "standard"),
        (60.0, NAN, "decline", None),
    ],
)
def test_fraud_is_an_axis_of_its_own(
    points: float, fraud: float, action: str, level: str | None
) -> None:
    decision = one(points, fraud=fraud)
    assert (decision["action"], decision["review_level"]) == (action, level)


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        ({}, 800.0),  # 400 × 2
        ({"name": "AAA", "pd": 0.002}, 1200.0),
        ({"spend": 404.9}, 800.0),  # rounded down
        ({"spend": 1e7}, 5000.0),  # the cap
        ({"spend": 1e7, "pd": 0.04, "name": "BB"}, 2500.0),  # expected loss of 100
        ({"spend": 1e7, "pd": 0.0}, 5000.0),
        ({"spend": 0.0}, 0.0),
        ({"spend": -50.0}, 0.0),  # more returned than bought
        ({"spend": NAN}, None),
        ({"points": 60.0}, 0.0),
        ({"points": 60.0, "spend": NAN}, 0.0),
        ({"points": 75.0, "name": "D"}, 0.0),
    ],
)
def test_limits(change: dict[str, float], limit: float | None) -> None:
    assert one(**change)["limit"] == limit  # type: ignore[arg-type]


def test_a_step_is_not_lost_to_rounding() -> None:
    cfg = PolicyConfig(limit=LimitRule(step=0.1))
    assert one(spend=0.15, cfg=cfg)["limit"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("points", "spend", "proposed", "action"),
    [
        (95.0, 400.0, 800.0, "approve"),
        (95.0, 400.0, 800.01, "review"),
        (95.0, 400.0, float("inf"), "review"),
        (95.0, 400.0, NAN, "approve"),  # no proposed transaction
        (95.0, NAN, 1.0, "review"),  # within no known limit
        (95.0, NAN, NAN, "approve"),
        (60.0, 400.0, 1.0, "decline"),
        (80.0, 400.0, 1.0, "review"),
    ],
)
def test_an_amount_above_the_limit_is_reviewed(
    points: float, spend: float, proposed: float, action: str
) -> None:
    decision = one(points, spend=spend, proposed=proposed)
    assert decision["action"] == action
    assert (decision["review_level"] is None) == (action != "review")


@pytest.mark.parametrize(
    ("points", "spend", "tier"),
    [
        (95.0, 1000.0, "platinum"),
        (95.0, 999.0, "gold"),
        (89.0, 5000.0, "gold"),
        (95.0, 0.0, "silver"),
        (95.0, NAN, "silver"),
        (50.0, 9999.0, "basic"),
        (50.0, -3.0, "basic"),
    ],
)
def test_tiers(points: float, spend: float, tier: str) -> None:
    assert one(points, spend=spend)["tier"] == tier


probability = st.floats(0, 1)
maybe = st.one_of(st.just(NAN), probability)
amounts = st.one_of(st.just(NAN), st.floats(0, 1e5))


@given(st.lists(st.tuples(probability, maybe, amounts, amounts), max_size=20))
def test_many_decide_as_each_alone(users: list[tuple[float, float, float, float]]) -> None:
    pd, fraud, spend, proposed = np.array(users).reshape(-1, 4).T

    def run(rows: slice) -> Decisions:
        risk = pd[rows]
        return decide(
            score(risk, CARD),
            grade(risk, CARD),
            risk,
            fraud[rows],
            spend[rows],
            POLICY,
            proposed=proposed[rows],
        )

    together = run(slice(None)).to_frame()
    for i in range(len(users)):
        assert run(slice(i, i + 1)).to_frame().equals(together[i])
    for row, user in zip(together.rows(named=True), users, strict=True):
        assert (row["review_level"] is not None) == (row["action"] == "review")
        limit = row["limit"]
        assert limit is None or 0 <= limit <= min(5000, 100 / max(user[0], 1e-9)) + 1e-6
        if row["action"] == "approve":
            assert np.isnan(user[3]) or user[3] <= limit


@given(probability, probability, maybe, amounts)
def test_a_safer_user_is_never_treated_worse(
    a: float, b: float, fraud: float, spend: float
) -> None:
    pd = np.sort([a, b])
    decisions = decide(
        score(pd, CARD), grade(pd, CARD), pd, [fraud] * 2, [spend] * 2, POLICY
    ).to_frame()
    safer, riskier = decisions.rows(named=True)
    severity = {"approve": 0, "review": 1, "decline": 2}
    assert severity[safer["action"]] <= severity[riskier["action"]]
    if None not in (safer["limit"], riskier["limit"]):
        assert safer["limit"] >= riskier["limit"]


def test_nobody_to_decide() -> None:
    frame = decide([], [], [], [], [], POLICY).to_frame()
    assert frame.height == 0
    assert frame.columns == ["action", "review_level", "limit", "tier"]
    assert frame.schema == decide([90], ["A"], [0.01], [0], [1], POLICY).to_frame().schema


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": NAN}, "score: row 0: nan"),
        ({"points": 101.0}, "score: row 0: 101"),
        ({"pd": NAN}, "pd: row 0: nan"),
        ({"pd": 1.5}, "pd: row 0: 1.5"),
        ({"name": "A+"}, "grade: row 0: 'A\\+'"),
    ],
)
def test_refuses_users_without_a_score(change: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        one(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"approve_at": 60},
        {"deep_review_below": 0.8},
        {"fraud_review_at": 0.9},
        {"approve_at": 101},
        {"approve_at": float("nan")},
        {"tiers": []},
        {"tiers": [{"name": "gold", "min_score": 80}]},
        {"tiers": [{"name": "x", "min_score": 80}, {"name": "x"}]},
        {"limit": {"step": 0}},
        {"limit": {"multiple": {"AAA": 1.0}}},
        {"limit": {"multiple": dict.fromkeys(GRADES, 1.0) | {"B": 2.0}}},
        {"limit": {"multiple": dict.fromkeys(GRADES, -1.0)}},
        {"limit": {"multiple": dict.fromkeys(GRADES, 1.0) | {"E": 1.0}}},
        {"approve": 90},
    ],
)
def test_refuses_a_policy_that_contradicts_itself(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        PolicyConfig.model_validate(fields)


def test_version_follows_the_content() -> None:
    assert PolicyConfig().version == PolicyConfig.model_validate({"approve_at": 90}).version
    assert PolicyConfig.model_validate_json(POLICY.model_dump_json()).version == POLICY.version
    others = [
        PolicyConfig(approve_at=91),
        PolicyConfig(limit=LimitRule(cap=1)),
        PolicyConfig(tiers=(Tier(name="all"),)),
    ]
    assert len({POLICY.version, *(other.version for other in others)}) == 4
    reordered = LimitRule(multiple={name: POLICY.limit.multiple[name] for name in GRADES[::-1]})
    assert PolicyConfig(limit=reordered).version == POLICY.version
