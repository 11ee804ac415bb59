"""The decision policy: from score, PD, fraud and expected spend to an action, a limit, a tier.

Credit risk (score, PD, grade) and fraud are two axes. Fraud may send a user to review or decline
them; it never moves the score.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from models.data.schema import UserError
from models.data.strict import Strict
from models.scoring.scorecard import GRADES, Grade

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
StrArray = NDArray[np.str_]
Action = Literal["approve", "review", "decline"]
ReviewLevel = Literal["light", "standard", "deep"]
LEAST_PD = 1e-12  # in the expected-loss limit: PD 0 would divide by 0
REVIEW_LEVELS: tuple[ReviewLevel, ...] = get_args(ReviewLevel)


class LimitRule(Strict):
    """limit = expected 30-day spend * multiple of the grade, capped, rounded down to `step`.

    Amounts are in the currency of the spend task. A user's PD * limit stays within
    `max_expected_loss` (expected loss = PD * LGD * EAD, with LGD 1).
    """

    multiple: Mapping[Grade, float] = Field(
        default_factory=lambda: dict(
            zip(GRADES, (3.0, 2.5, 2.0, 1.5, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0), strict=True)
        )
    )
    cap: float = Field(default=5000.0, ge=0)
    max_expected_loss: float = Field(default=100.0, ge=0)
    step: float = Field(default=10.0, gt=0)

    @model_validator(mode="after")
    def _multiples_fall(self) -> "LimitRule":
        missing = [grade for grade in GRADES if grade not in self.multiple]
        if missing:
            raise ValueError(f"multiple: grade {missing[0]} is missing")
        falling = [*(self.multiple[grade] for grade in GRADES), 0.0]
        if any(better < worse for better, worse in pairwise(falling)):
            raise ValueError("multiple: from AAA to D multiples of 0 or more must not rise")
        return self


class Tier(Strict):
    """A member tier and the least score and expected 30-day spend that reach it."""

    name: str = Field(min_length=1)
    min_score: float = Field(default=0.0, ge=0, le=100)
    min_spend: float = Field(default=0.0, ge=0)


class PolicyConfig(Strict):
    """Thresholds of the decision. Scores are 0-100, fraud thresholds are probabilities.

    The review band reaches from `decline_below` (0) to `approve_at` (1): from its part
    `light_review_from` on a review is light, below `deep_review_below` deep. Tiers are listed from
    the highest; the last admits everyone.
    """

    approve_at: float = Field(default=90.0, ge=0, le=100)
    decline_below: float = Field(default=70.0, ge=0, le=100)
    light_review_from: float = Field(default=0.7, ge=0, le=1)
    deep_review_below: float = Field(default=0.3, ge=0, le=1)
    fraud_review_at: float = Field(default=0.30, gt=0, le=1)
    fraud_decline_at: float = Field(default=0.80, gt=0, le=1)
    limit: LimitRule = LimitRule()
    tiers: tuple[Tier, ...] = (
        Tier(name="platinum", min_score=90, min_spend=1000),
        Tier(name="gold", min_score=80, min_spend=300),
        Tier(name="silver", min_score=70),
        Tier(name="basic"),
    )

    @model_validator(mode="after")
    def _ordered(self) -> "PolicyConfig":
        for low, high in (
            ("decline_below", "approve_at"),
            ("deep_review_below", "light_review_from"),
            ("fraud_review_at", "fraud_decline_at"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low}: must not be above {high}")
        names = [tier.name for tier in self.tiers]
        if not names or self.tiers[-1].min_score > 0 or self.tiers[-1].min_spend > 0:
            raise ValueError("tiers: the last must admit everyone (min_score 0, min_spend 0)")
        if len(set(names)) < len(names):
            raise ValueError("tiers: names must differ")
        return self

    @property
    def version(self) -> str:
        """The first 12 hex digits of the SHA-256 of the content: equal rules, equal version."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Decisions:
    """One row a user, columns of equal length.

    action: approve, review or decline. review_level: light, standard or deep; "" unless review.
    limit: in the currency of the spend task; 0 when declined, NaN when spend is not estimated;
    for a review what is granted on approval. tier: the name of the member tier.
    """

    action: StrArray
    review_level: StrArray
    limit: FloatArray
    tier: StrArray

    def to_frame(self) -> pl.DataFrame:
        """The same columns; null instead of "" and NaN."""
        return pl.DataFrame(
            {
                "action": self.action.tolist(),
                "review_level": [level or None for level in self.review_level.tolist()],
                "limit": pl.Series(self.limit, dtype=pl.Float64).fill_nan(None),
                "tier": self.tier.tolist(),
            },
            schema_overrides={name: pl.String for name in ("action", "review_level", "tier")},
        )


def decide(
    score: ArrayLike,
    grade: ArrayLike,
    pd: ArrayLike,
    fraud: ArrayLike,
    spend: ArrayLike,
    cfg: PolicyConfig,
    *,
    proposed: ArrayLike | None = None,
) -> Decisions:
    """Decide for N users.

    score: (N,) 0-100. grade: (N,) of GRADES. pd: (N,) probability of default. fraud: (N,)
    probability, NaN: not estimated, and then without effect. spend: (N,) expected 30-day spend,
    NaN: not estimated, and then there is no limit and the tier counts 0. proposed: (N,) amount of
    the proposed transaction, NaN: none; one that is not within the limit turns approve into
    review.

    Raises UserError for a score or PD that is missing or out of range, or an unknown grade.
    """
    points = _within("score", score, 0.0, 100.0)
    risk = _within("pd", pd, 0.0, 1.0)
    grades = _known_grades(grade)
    suspicion = np.asarray(fraud, dtype=np.float64)
    expected = np.asarray(spend, dtype=np.float64)
    amount = np.full(len(points), np.nan) if proposed is None else np.asarray(proposed, np.float64)
    columns = (points, grades, risk, suspicion, expected, amount)
    assert len({column.shape for column in columns}) == 1, [column.shape for column in columns]

    declined = (points < cfg.decline_below) | (suspicion >= cfg.fraud_decline_at)
    suspicious = suspicion >= cfg.fraud_review_at
    limit = np.where(declined, 0.0, _limits(grades, risk, expected, cfg.limit))
    over_limit = ~np.isnan(amount) & ~(amount <= limit)  # a limit of NaN cannot be kept either
    approved = ~declined & (points >= cfg.approve_at) & ~suspicious & ~over_limit
    action = np.select([declined, approved], ["decline", "approve"], default="review")
    level = np.asarray(REVIEW_LEVELS)[_review_depths(points, suspicious, cfg)]
    return Decisions(
        action=action,
        review_level=np.where(action == "review", level, ""),
        limit=limit,
        tier=_tiers(points, expected, cfg.tiers),
    )


def _limits(grade: StrArray, pd: FloatArray, spend: FloatArray, rule: LimitRule) -> FloatArray:
    multiple = np.zeros(len(spend))
    for name in GRADES:
        multiple[grade == name] = rule.multiple[name]
    bearable = rule.max_expected_loss / np.maximum(pd, LEAST_PD)
    # np.minimum keeps NaN: spend that is not estimated gives no limit
    limit = np.minimum(np.maximum(spend, 0.0) * multiple, np.minimum(rule.cap, bearable))
    # without the tolerance 0.3 / 0.1 = 2.9999999999999996 would lose a step
    return np.asarray(np.floor(limit / rule.step + 1e-9) * rule.step, dtype=np.float64)


def _review_depths(score: FloatArray, suspicious: BoolArray, cfg: PolicyConfig) -> IntArray:
    """0 light, 1 standard, 2 deep: by place in the review band, one deeper for suspected fraud."""
    height = score - cfg.decline_below
    band = cfg.approve_at - cfg.decline_below
    light, standard = height >= cfg.light_review_from * band, height >= cfg.deep_review_below * band
    depth = np.select([light, standard], [0, 1], 2)
    return np.asarray(np.minimum(depth + suspicious, len(REVIEW_LEVELS) - 1), dtype=np.int64)


def _tiers(score: FloatArray, spend: FloatArray, tiers: tuple[Tier, ...]) -> StrArray:
    known = np.nan_to_num(np.maximum(spend, 0.0), nan=0.0)
    reached = [(score >= tier.min_score) & (known >= tier.min_spend) for tier in tiers]
    return np.select(reached, [tier.name for tier in tiers], default="")


def _within(name: str, values: ArrayLike, low: float, high: float) -> FloatArray:
    column = np.asarray(values, dtype=np.float64)
    bad = np.flatnonzero(~((column >= low) & (column <= high)))
    if bad.size:
        raise UserError(
            f"{name}: row {bad[0]}: {column[bad[0]]:g}; {low:g} to {high:g} was expected"
        )
    return column


def _known_grades(grade: ArrayLike) -> StrArray:
    column = np.asarray(grade, dtype=np.str_)
    bad = np.flatnonzero(~np.isin(column, GRADES))
    if bad.size:
        raise UserError(f"grade: row {bad[0]}: {str(column[bad[0]])!r}; one of {', '.join(GRADES)}")
    return column
