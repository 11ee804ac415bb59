import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.schema import UserError
from models.scoring.scorecard import GRADES, Anchor, ScorecardConfig, grade, score

CARD = ScorecardConfig()


def test_anchors_are_met_exactly() -> None:
    assert score([0.08, 0.02], CARD).tolist() == [70.0, 90.0]


def test_is_the_scaled_log_odds() -> None:
    pd = np.linspace(0.011, 0.6, 50)
    expected = CARD.offset + CARD.factor * np.log((1 - pd) / pd)
    np.testing.assert_allclose(score(pd, CARD), expected, atol=1e-9)


def test_is_clipped_at_both_ends() -> None:
    assert score([0.0, 1e-300, 0.99999, 1.0], CARD).tolist() == [100.0, 100.0, 0.0, 0.0]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_a_higher_pd_never_scores_or_grades_better(pds: list[float]) -> None:
    pd = np.sort(pds)
    points = score(pd, CARD)
    assert (np.diff(points) <= 0).all()
    assert ((points >= 0) & (points <= 100)).all()
    positions = [GRADES.index(name) for name in grade(pd, CARD)]
    assert positions == sorted(positions)


def test_a_value_does_not_depend_on_its_batch() -> None:
    pd = np.random.default_rng(0).beta(1, 15, 101)
    alone = np.concatenate([score(pd[i : i + 1], CARD) for i in range(len(pd))])
    assert score(pd, CARD).tobytes() == alone.tobytes()
    assert score(pd[::-1], CARD).tobytes() == alone[::-1].tobytes()


def test_each_bound_belongs_to_the_better_grade() -> None:
    bounds = np.array(CARD.grade_upper_pd)
    assert grade(bounds, CARD).tolist() == list(GRADES[:-1])
    assert grade(np.nextafter(bounds, 1), CARD).tolist() == list(GRADES[1:])
    assert grade([0.0, 1.0], CARD).tolist() == ["AAA", "D"]


def test_nobody_to_score() -> None:
    assert score([], CARD).shape == (0,)
    assert grade([], CARD).shape == (0,)


@pytest.mark.parametrize("pd", [np.nan, -0.01, 8.0, np.inf])
def test_refuses_what_is_no_probability(pd: float) -> None:
    for function in (score, grade):
        with pytest.raises(UserError, match="pd: row 1"):
            function([0.5, pd], CARD)


def test_own_anchors_in_either_order() -> None:
    anchors = (Anchor(pd=0.01, score=80), Anchor(pd=0.10, score=40))
    for pair in (anchors, anchors[::-1]):
        card = ScorecardConfig(anchors=pair)
        assert score([0.01, 0.10], card) == pytest.approx([80, 40])
        assert card.factor > 0


@pytest.mark.parametrize(
    "fields",
    [
        {"anchors": [{"pd": 0.08, "score": 90}, {"pd": 0.02, "score": 70}]},
        {"anchors": [{"pd": 0.08, "score": 90}, {"pd": 0.08, "score": 70}]},
        {"anchors": [{"pd": 0.08, "score": 90}]},
        {"anchors": [{"pd": 0.0, "score": 90}, {"pd": 0.08, "score": 70}]},
        {"grade_upper_pd": [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.08]},
        {"grade_upper_pd": [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08]},
        {"grade_upper_pd": [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 1.0]},
        {"grades": ["A", "B"]},
    ],
)
def test_refuses_a_scorecard_that_does_not_order(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        ScorecardConfig.model_validate(fields)


def test_json_gives_the_scorecard_back() -> None:
    assert ScorecardConfig.model_validate_json(CARD.model_dump_json()) == CARD
