"""The goals of `make bench-quality`, and whether they were met.

A figure is the mean over seeds, and so are the two ends of its 95 % interval; a goal is judged by
these.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from models.scoring.comparison import (
    MODEL,
    AmountTask,
    BinaryContender,
    BinaryTask,
    Difference,
)
from models.scoring.curves import Value

Task = BinaryTask | AmountTask
RETAIL, SIMULATED, TAIWAN = "online_retail", "simulated", "taiwan"
TENTH = "tenth"  # of the labels
CHINESE = "chinese"
MULTILINGUAL = "chinese_multilingual"  # by an imported encoder
CHINESE_TENTH = "chinese_tenth"  # of the labels
TUNED = "tuned lightgbm"
UNPRETRAINED = "not pretrained"
COLES, COLES_AND_FEATURES = "coles", "coles, features"

# What others reached, or what issue and README promise; of the last of these figures.
REACHED = {
    "clothing": {"pr_auc": 0.992, "f1": 0.957},
    "clothing_rating": {"pr_auc": 0.995, "f1": 0.968},
    CHINESE: {"auc": 0.965},
    MULTILINGUAL: {"auc": 0.965},
}
LIFT, WITHHELD = 0.97, 0.9  # of the oracle's
BEHIND = -0.003  # of a stack that is as good as another, at worst
# Data → whom the model is to be as good as, the least that the difference (or its lower end) is.
RIVALS: Mapping[str, tuple[tuple[str, ...], float, bool]] = {
    RETAIL: (("lightgbm", COLES, COLES_AND_FEATURES), BEHIND, True),
    TAIWAN: ((TUNED,), 0.0, False),
    TENTH: ((UNPRETRAINED,), 0.0, True),
    CHINESE_TENTH: ((UNPRETRAINED,), 0.0, True),
    CHINESE: (("tfidf",), 0.0, False),
    MULTILINGUAL: (("tfidf",), 0.0, False),
}


@dataclass(frozen=True)
class Check:
    """A figure with its interval, the goal in words, and whether it is met; None: only shown."""

    figure: str
    value: Value
    goal: str = ""
    met: bool | None = None


def checks_of(data: str, runs: Sequence[Task]) -> list[Check]:
    """All that there is to check of a task, of one run a seed."""
    return [
        *_oracle(runs),
        *_reached(data, runs),
        *_differences(data, runs),
        *_calibration([run for run in runs if isinstance(run, BinaryTask)]),
    ]


def withheld_checks(runs: Sequence[Mapping[str, Mapping[str, Value]]]) -> list[Check]:
    """Of `tests.bench.parts.withheld.losses`, one a seed."""
    checks = []
    for modality in runs[0]:
        of = {part: mean([run[modality][part] for run in runs]) for part in runs[0][modality]}
        ours, best = (f"{_number(of[part].value):.4f}" for part in ("model", "oracle"))
        name = f"AUC lost without {modality} ({ours}), of the oracle's ({best})"
        checks.append(_at_least(name, of["share"], WITHHELD))
    return checks


def over_folds(folds: Sequence[Sequence[Task]]) -> list[Check]:
    """The model's difference from each rival of Taiwan, the mean over folds with its interval.

    The test rows of folds are disjoint, so their errors are independent and the variance of the
    mean is that of a fold by their number.
    """
    names, least, _ = RIVALS[TAIWAN]
    checks = []
    for name in names:
        values = [mean(_of(runs, name)) for runs in folds]
        middle = statistics.mean(_number(value.value) for value in values)
        half = [(_number(value.high) - _number(value.low)) / 2 for value in values]
        wide = math.sqrt(sum(h * h for h in half)) / len(half)
        value = Value(value=middle, low=middle - wide, high=middle + wide)
        checks.append(_at_least(f"auc, model − {name}, {len(folds)} folds", value, least))
    return checks


def mean(values: Sequence[Value]) -> Value:
    """The mean of estimates, and of both ends of their intervals."""

    def of(end: Callable[[Value], float | None]) -> float:
        return statistics.mean(_number(end(value)) for value in values)

    return Value(value=of(lambda v: v.value), low=of(lambda v: v.low), high=of(lambda v: v.high))


def _oracle(runs: Sequence[Task]) -> list[Check]:
    known = [run.oracle for run in runs if run.oracle is not None]
    if not known:
        return []
    loss = "log-loss" if isinstance(runs[0], BinaryTask) else "RMSE"
    lift = "AUC lift" if isinstance(runs[0], BinaryTask) else "Spearman"
    name = f"share of the oracle's {lift}, {known[0].rows} rows"
    share = mean([one.share for one in known])
    return [
        _at_least(name, share, LIFT) if loss == "log-loss" else Check(name, share),
        Check(f"{loss} above the oracle's", mean([one.regret for one in known])),
    ]


def _reached(data: str, runs: Sequence[Task]) -> list[Check]:
    checks = []
    for figure, goal in REACHED.get(data, {}).items():
        found = [getattr(_model(run).scores, figure) for run in runs if isinstance(run, BinaryTask)]
        values = [one if isinstance(one, Value) else Value(value=one) for one in found]
        checks.append(_at_least(figure, mean(values), goal))
    return checks


def _differences(data: str, runs: Sequence[Task]) -> list[Check]:
    """From every contender by the rank metric; with a goal from those that are rivals."""
    rivals, least, lower = RIVALS.get(data, ((), 0.0, False))
    rank = "auc" if isinstance(runs[0], BinaryTask) else "spearman"
    checks = []
    for name in dict.fromkeys(d.against for d in runs[0].differences if d.of == MODEL):
        value = mean(_of(runs, name))
        figure = f"{rank}, model − {name}"
        if name in rivals:
            checks.append(_at_least(figure, value, least, lower=lower))
        elif name != "constant":
            checks.append(Check(figure, value))
    return checks


def _of(runs: Sequence[Task], name: str) -> list[Value]:
    """Each run's difference of the model from a contender, by AUC or Spearman's correlation."""

    def wanted(d: Difference) -> bool:
        return d.of == MODEL and d.against == name and d.metric in ("auc", "spearman")

    return [next(d.difference for d in run.differences if wanted(d)) for run in runs]


def _calibration(runs: Sequence[BinaryTask]) -> list[Check]:
    if not runs:
        return []
    scores = [_model(run).scores for run in runs]
    slope = mean([one.calibration_slope for one in scores])
    intercept = mean([one.calibration_intercept for one in scores])
    ece = statistics.mean(_number(one.ece) for one in scores)
    band = mean([one.ece_band for one in scores])
    return [
        Check("calibration slope", slope, "covers 1", _covers(slope, 1.0)),
        Check("calibration intercept", intercept, "covers 0", _covers(intercept, 0.0)),
        Check("ECE", Value(value=ece), f"≤ {_number(band.high):.4f}", ece <= _number(band.high)),
    ]


def _model(run: BinaryTask) -> BinaryContender:
    return next(one for one in run.contenders if one.name == MODEL)


def _covers(value: Value, point: float) -> bool:
    return _number(value.low) <= point <= _number(value.high)


def _at_least(figure: str, value: Value, goal: float, lower: bool = False) -> Check:
    """`lower`: it is the lower end of the interval that is to be so large."""
    counts = _number(value.low if lower else value.value)
    return Check(figure, value, f"{'lower end ' if lower else ''}≥ {goal:g}", counts >= goal)


def _number(value: float | None) -> float:
    """NaN, which meets no goal, of what cannot be computed."""
    return math.nan if value is None else value
