"""Tests of the goals: what is met, and by which end of which interval."""

import math

import numpy as np
import pytest

from models.scoring.comparison import MODEL, BinaryTask, compare_binary
from models.scoring.curves import Value
from models.scoring.evaluation import LIKELY
from models.scoring.stack import NETWORK
from tests.bench.parts.contenders import with_contender
from tests.bench.parts.goals import TUNED, Check, checks_of, mean, over_folds, withheld_checks

ROWS = 1500
USERS = np.arange(ROWS)


def task_of(seed: int, rival: str, *, rival_is_better: bool = False) -> BinaryTask:
    """A model that knows the probabilities, beside a rival that hardly does, or the reverse."""
    rng = np.random.default_rng(seed)
    true = 1 / (1 + np.exp(-rng.normal(size=ROWS)))
    y = (rng.random(ROWS) < true).astype(np.float64)
    blurred = 1 / (1 + np.exp(-rng.normal(size=ROWS)))
    model, other = (blurred, true) if rival_is_better else (true, blurred)
    task = compare_binary(y, {MODEL: model}, (LIKELY,), users=USERS, seed=1, resamples=50)
    more = with_contender(task, rival, y, model, other, USERS, seed=1)
    assert isinstance(more, BinaryTask)
    return more


def by_figure(checks: list[Check]) -> dict[str, Check]:
    return {check.figure: check for check in checks}


def test_a_better_model_meets_its_goals() -> None:
    checks = by_figure(checks_of("online_retail", [task_of(1, "coles"), task_of(2, "coles")]))
    assert checks["auc, model − coles"].met
    assert checks["auc, model − coles"].goal == "lower end ≥ -0.003"
    assert checks["calibration slope"].met
    assert checks["calibration intercept"].met
    assert checks["ECE"].met


def test_a_worse_model_does_not() -> None:
    checks = by_figure(checks_of("online_retail", [task_of(1, "coles", rival_is_better=True)]))
    assert checks["auc, model − coles"].met is False
    assert checks["calibration slope"].met is False
    assert checks["ECE"].met is False


def test_only_a_rival_has_a_goal() -> None:
    assert by_figure(checks_of("clothing", [task_of(1, "coles")]))["auc, model − coles"].met is None


def test_a_network_that_is_the_model_differs_by_nothing() -> None:
    p = np.random.default_rng(2).random(ROWS)
    y = (np.random.default_rng(3).random(ROWS) < p).astype(np.float64)
    model = compare_binary(y, {MODEL: p}, (LIKELY,), users=USERS, seed=1, resamples=50)
    apart, alone = task_of(1, NETWORK), with_contender(model, NETWORK, y, p, p, USERS, 1)
    checks = by_figure(checks_of("clothing", [apart, alone]))
    whole = by_figure(checks_of("clothing", [apart]))
    found, one = checks["auc, model − network"].value, whole["auc, model − network"].value
    assert found.value == pytest.approx((one.value or 0.0) / 2)


def test_folds_together_are_surer_than_each() -> None:
    folds = [[task_of(seed, TUNED)] for seed in range(4)]
    (one,) = over_folds(folds[:1])
    (several,) = over_folds(folds)
    assert one.met and several.met
    wide, narrow = ((c.value.high or 0.0) - (c.value.low or 0.0) for c in (one, several))
    assert narrow == pytest.approx(wide / 2, rel=0.2)


def test_shares_of_seeds_are_averaged() -> None:
    def of(share: float) -> dict[str, dict[str, Value]]:
        part = Value(value=0.1, low=0.05, high=0.2)
        return {"text": {"model": part, "oracle": part, "share": Value(value=share, low=0, high=1)}}

    (met,) = withheld_checks([of(0.85), of(0.97)])
    (missed,) = withheld_checks([of(0.85), of(0.9)])
    assert met.met and met.value.value == pytest.approx(0.91)
    assert missed.met is False


def test_what_cannot_be_computed_meets_no_goal() -> None:
    unknown = mean([Value(value=1.0, low=0.0, high=2.0), Value(value=math.nan)])
    assert unknown == Value(value=None)
    part = {"model": unknown, "oracle": unknown, "share": unknown}
    assert withheld_checks([{"text": part}])[0].met is False
