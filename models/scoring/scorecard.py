"""The scorecard: probability of default (PD) to a 0-100 score and one of ten grades."""

from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from models.data.schema import UserError
from models.data.strict import Strict

FloatArray = NDArray[np.float64]
Grade = Literal["AAA", "AA", "A", "BBB", "BB", "B", "CCC", "CC", "C", "D"]
GRADES: tuple[Grade, ...] = get_args(Grade)


class Anchor(Strict):
    """A PD and the score that it must get."""

    pd: float = Field(gt=0, lt=1)
    score: float = Field(ge=0, le=100)


class ScorecardConfig(Strict):
    """Two anchors fix the score; the upper PD bounds of AAA to C fix the grades (D has none).

    A PD equal to a bound gets the better grade.
    """

    anchors: tuple[Anchor, Anchor] = (Anchor(pd=0.08, score=70), Anchor(pd=0.02, score=90))
    grade_upper_pd: tuple[float, float, float, float, float, float, float, float, float] = (
        0.0025,
        0.005,
        0.01,
        0.02,
        0.04,
        0.08,
        0.15,
        0.25,
        0.40,
    )

    @model_validator(mode="after")
    def _ordered(self) -> "ScorecardConfig":
        riskier, safer = sorted(self.anchors, key=lambda anchor: -anchor.pd)
        if not (riskier.pd > safer.pd and riskier.score < safer.score):
            raise ValueError("anchors: two PDs were expected, the lower PD with the higher score")
        bounds = (0.0, *self.grade_upper_pd, 1.0)
        if any(low >= high for low, high in pairwise(bounds)):
            raise ValueError("grade_upper_pd: bounds between 0 and 1 must ascend from AAA to C")
        return self

    @property
    def factor(self) -> float:
        """Points for each unit of ln(odds of not defaulting)."""
        first, second = self.anchors
        span = _log_odds(np.array([second.pd])) - _log_odds(np.array([first.pd]))
        return (second.score - first.score) / float(span[0])

    @property
    def offset(self) -> float:
        """The score at even odds, before clipping."""
        first = self.anchors[0]
        return first.score - self.factor * float(_log_odds(np.array([first.pd]))[0])


def score(pd: ArrayLike, cfg: ScorecardConfig) -> FloatArray:
    """offset + factor · ln((1 - pd) / pd), clipped to 0-100; the higher, the safer.

    Siddiqi, "Credit Risk Scorecards" (2006), chapter 6: scaling by points to double the odds,
    here factor · ln 2. Evaluated as the line through both anchors, which meets them exactly: a
    policy threshold at an anchor's score is then the same cut as the anchor's PD.

    pd: (N,) in [0, 1]. Raises UserError for anything else.
    """
    first, second = cfg.anchors
    start, end = _log_odds(np.array([first.pd]))[0], _log_odds(np.array([second.pd]))[0]
    share = (_log_odds(_checked(pd)) - start) / (end - start)
    points = first.score + (second.score - first.score) * share
    return np.asarray(np.clip(points, 0.0, 100.0), dtype=np.float64)


def grade(pd: ArrayLike, cfg: ScorecardConfig) -> NDArray[np.str_]:
    """The grade of each PD, one of GRADES. pd: (N,) in [0, 1]; UserError for anything else."""
    position = np.searchsorted(np.asarray(cfg.grade_upper_pd), _checked(pd), side="left")
    return np.asarray(GRADES)[position]


def _log_odds(pd: FloatArray) -> FloatArray:
    """ln((1 - pd) / pd): infinite at 0 and 1, which the score clips."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log1p(-pd) - np.log(pd), dtype=np.float64)


def _checked(pd: ArrayLike) -> FloatArray:
    values = np.ascontiguousarray(pd, dtype=np.float64)
    bad = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if bad.size:
        raise UserError(f"pd: row {bad[0]}: {values.flat[bad[0]]:g}; 0 to 1 was expected")
    return values
