"""Grades, decisions, scores and weights of a set of users add up."""

import polars as pl
import pytest

from models.scoring.portfolio import (
    decision_table,
    grade_table,
    modality_table,
    score_histogram,
    tier_table,
)
from models.scoring.scorecard import GRADES

ROWS = [  # score, grade, pd, outcome, (text, social), (action, level, limit, tier)
    (100.0, "AAA", 0.001, 0.0, (0.7, 0.3), ("approve", None, 500.0, "gold")),
    (95.0, "A", 0.008, None, (0.0, 1.0), ("approve", None, None, "gold")),
    (72.0, "B", 0.07, 1.0, (0.4, 0.6), ("review", "deep", 100.0, "silver")),
    (0.0, "D", 0.6, 1.0, (0.0, 1.0), ("decline", None, 0.0, "basic")),
]


@pytest.fixture
def users() -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "score": score,
                "grade": grade,
                "pd": pd,
                "outcome": outcome,
                "weights": dict(zip(("text", "social"), weights, strict=True)),
                "decision": dict(
                    zip(("action", "review_level", "limit", "tier"), decision, strict=True)
                ),
            }
            for score, grade, pd, outcome, weights, decision in ROWS
        ]
    )


def test_grades_add_up(users: pl.DataFrame) -> None:
    table = {row.grade: row for row in grade_table(users)}
    assert tuple(table) == GRADES
    assert sum(row.group.users for row in table.values()) == users.height
    assert [table[g].approval_rate for g in ("AAA", "AA", "A", "B", "C", "D")] == [
        0.25, 0.25, 0.5, 0.75, 0.75, 1.0,
    ]  # fmt: skip
    assert table["D"].group.default_rate.value == 1
    assert (table["A"].group.known, table["A"].group.default_rate.value) == (0, None)
    assert table["CC"].group.mean_pd is None


def test_decisions_add_up(users: pl.DataFrame) -> None:
    table = {(row.action, row.review_level): row for row in decision_table(users)}
    assert list(table) == [
        ("approve", None),
        ("review", "light"),
        ("review", "standard"),
        ("review", "deep"),
        ("decline", None),
    ]
    assert sum(row.group.users for row in table.values()) == users.height
    assert table["approve", None].mean_limit == 500  # of those who have one
    assert table["review", "light"].mean_limit is None
    assert [(t.tier, t.users) for t in tier_table(users)] == [
        ("gold", 2), ("basic", 1), ("silver", 1),
    ]  # fmt: skip


def test_histogram_holds_both_ends(users: pl.DataFrame) -> None:
    scores = score_histogram(users)
    assert (scores.edges[0], scores.edges[-1]) == (0, 100)
    assert len(scores.positive) == len(scores.edges) - 1
    assert (sum(scores.positive), sum(scores.negative), sum(scores.unknown)) == (2, 1, 1)
    assert scores.positive[0] == 1 and scores.negative[-1] == 1


def test_weights_of_those_who_have_the_modality(users: pl.DataFrame) -> None:
    text, social = modality_table(users)
    assert (text.modality, text.present, social.present) == ("text", 0.5, 1.0)
    assert text.mean == pytest.approx(0.275)
    assert text.median == pytest.approx(0.55)


def test_one_user_and_nobody(users: pl.DataFrame) -> None:
    assert grade_table(users.head(1))[0].approval_rate == 1
    nobody = users.clear()
    assert [row.group.users for row in grade_table(nobody)] == [0] * len(GRADES)
    assert sum(row.group.users for row in decision_table(nobody)) == 0
    assert tier_table(nobody) == ()
    assert sum(score_histogram(nobody).unknown) == 0
    assert [(row.mean, row.median) for row in modality_table(nobody)] == [(0.0, None)] * 2
