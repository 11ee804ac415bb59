"""What scores, grades and decisions mean for the users scored: tables of the evaluation.

A frame here has one row a user as of a time: `score`, `grade`, `pd`, `outcome` (1 default, 0 none,
null unknown), the structs `weights` and `decision`.
"""

import numpy as np
import polars as pl

from models.data.strict import Strict
from models.scoring.curves import Number, Value, wilson
from models.scoring.policy import REVIEW_LEVELS, Action
from models.scoring.scorecard import GRADES, Grade

SCORE_BIN = 5.0
ACTIONS: tuple[Action, ...] = ("approve", "review", "decline")


class Group(Strict):
    """A group of users: how many, the mean PD, and the default rate of the known outcomes."""

    users: int
    share: float
    mean_pd: Number
    known: int
    default_rate: Value


class GradeRow(Strict):
    """A grade. `approval_rate`: share approved if this grade and all better ones were."""

    grade: Grade
    group: Group
    approval_rate: float


class DecisionRow(Strict):
    """An action, for a review with its level. `mean_limit` of the users who have a limit."""

    action: Action
    review_level: str | None
    group: Group
    mean_limit: Number


class TierRow(Strict):
    """A member tier."""

    tier: str
    users: int
    share: float


class Histogram(Strict):
    """Users by score and outcome; bin k reaches from `edges[k]` to `edges[k + 1]`."""

    edges: tuple[float, ...]
    positive: tuple[int, ...]
    negative: tuple[int, ...]
    unknown: tuple[int, ...]


class ModalityRow(Strict):
    """The attention that a modality gets: over all users, and the spread of those who have it.

    `present`: share of users with a weight above 0; a masked modality has weight 0.
    """

    modality: str
    mean: float
    present: float
    p10: Number
    median: Number
    p90: Number


def grade_table(frame: pl.DataFrame) -> tuple[GradeRow, ...]:
    """All ten grades from AAA to D, empty ones too."""
    rows = []
    approved = 0
    for grade in GRADES:
        part = frame.filter(pl.col("grade") == grade)
        approved += part.height
        share = approved / max(frame.height, 1)
        rows.append(GradeRow(grade=grade, group=_group(part, frame.height), approval_rate=share))
    return tuple(rows)


def decision_table(frame: pl.DataFrame) -> tuple[DecisionRow, ...]:
    """Approve, review by level from light to deep, decline; empty ones too."""
    action, level = _field("decision", "action"), _field("decision", "review_level")
    wanted: list[tuple[Action, str | None]] = [
        (a, each) for a in ACTIONS for each in (REVIEW_LEVELS if a == "review" else (None,))
    ]
    rows = []
    for name, review_level in wanted:
        part = frame.filter((action == name) & level.eq_missing(pl.lit(review_level)))
        limit = part.select(_field("decision", "limit").cast(pl.Float64).mean()).item()
        rows.append(
            DecisionRow(
                action=name,
                review_level=review_level,
                group=_group(part, frame.height),
                mean_limit=limit,
            )
        )
    return tuple(rows)


def tier_table(frame: pl.DataFrame) -> tuple[TierRow, ...]:
    """Member tiers, the most frequent first."""
    counts = (
        frame.group_by(_field("decision", "tier").alias("tier"))
        .agg(users=pl.len())
        .sort("users", "tier", descending=[True, False])
    )
    return tuple(
        TierRow(tier=tier, users=users, share=users / frame.height)
        for tier, users in counts.iter_rows()
    )


def score_histogram(frame: pl.DataFrame) -> Histogram:
    """Users by score in steps of `SCORE_BIN`, by outcome."""
    edges = np.arange(0.0, 100.0 + SCORE_BIN, SCORE_BIN)
    outcome = pl.col("outcome")

    def counts(which: pl.Expr) -> tuple[int, ...]:
        scores = frame.filter(which)["score"].to_numpy()
        return tuple(np.histogram(scores, edges)[0].tolist())

    return Histogram(
        edges=tuple(edges.tolist()),
        positive=counts(outcome == 1),
        negative=counts(outcome == 0),
        unknown=counts(outcome.is_null()),
    )


def modality_table(frame: pl.DataFrame) -> tuple[ModalityRow, ...]:
    """The fields of the struct `weights`, in order."""
    weights = frame.select("weights").unnest("weights")
    rows = []
    for name in weights.columns:
        values = weights[name].cast(pl.Float64).fill_null(0.0)
        has = values.filter(values > 0)
        rows.append(
            ModalityRow(
                modality=name,
                mean=float(np.mean(values.to_numpy())) if frame.height else 0.0,
                present=has.len() / max(frame.height, 1),
                p10=has.quantile(0.1, "linear"),
                median=has.quantile(0.5, "linear"),
                p90=has.quantile(0.9, "linear"),
            )
        )
    return tuple(rows)


def _group(part: pl.DataFrame, users: int) -> Group:
    known = part["outcome"].drop_nulls()
    return Group(
        users=part.height,
        share=part.height / max(users, 1),
        mean_pd=part.select(pl.col("pd").mean()).item(),
        known=known.len(),
        default_rate=wilson(int(known.sum()), known.len()),
    )


def _field(struct: str, name: str) -> pl.Expr:
    return pl.col(struct).struct.field(name)
