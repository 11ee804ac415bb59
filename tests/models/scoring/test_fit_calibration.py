"""Calibrators of a network: each task's own rows, clear words when a task has too few."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from models.data.batch import Tokenizer
from models.data.features import FeatureConfig, Features
from models.data.schema import UserError
from models.data.stats import Stats
from models.data.tasks import Task
from models.nets.network import Network
from models.scoring.calibrate import AmountCalibrator, BinaryCalibrator
from models.scoring.expert import Experts
from models.scoring.fit_calibration import REPLICATES, Calibration, Judged, calibrators_of, judge
from models.scoring.predict import Predictor
from models.scoring.stack import ALONE, NETWORK, combine

TASKS = {"default": Task(kind="binary"), "spend": Task(kind="amount")}
ROWS = 400
LIGHTGBM = "lightgbm"


class Fixed:
    """A predictor whose raw values are given."""

    def __init__(self, raw: dict[str, NDArray[np.float64]]) -> None:
        self._raw = raw

    def raw(self, features: Features) -> dict[str, NDArray[np.float64]]:
        return self._raw


def world(**labels: list[float | None]) -> tuple[Predictor, Features]:
    """Logits that are one too high, amounts that are half of what is spent."""
    rng = np.random.default_rng(11)
    logit, amount = rng.normal(-1, 1, ROWS), rng.lognormal(3, 0.5, ROWS)
    frame = pl.DataFrame(
        {
            "user_key": np.arange(ROWS),
            "y_default": (rng.random(ROWS) < expit(logit - 1)).astype(float),
            "y_spend": 2 * amount * rng.binomial(1, 0.7, ROWS) / 0.7,
        }
    ).with_columns(**{f"y_{n}": pl.Series(v, dtype=pl.Float64) for n, v in labels.items()})
    features = Features(frame, tabular=(), categorical=(), social=())
    return cast(Predictor, Fixed({"default": logit, "spend": amount})), features


def calibrated(
    predictor: Predictor,
    rows: Features,
    tasks: Mapping[str, Task] = TASKS,
    experts: Experts | None = None,
    seed: int = 1,
) -> Calibration:
    """By one set of rows alone."""
    return calibrators_of([judge(predictor, rows, tasks, experts)], tasks, seed)


def test_the_calibrated_mean_is_the_mean_of_the_labels() -> None:
    predictor, rows = world()
    found = calibrated(predictor, rows)
    calibrators, replicates = found.calibrators, found.replicates
    assert found.stack == {}
    raw, y = predictor.raw(rows), rows.frame
    default, spend = calibrators["default"], calibrators["spend"]
    assert isinstance(default, BinaryCalibrator) and isinstance(spend, AmountCalibrator)
    assert default.apply(raw["default"]).mean() == pytest.approx(y["y_default"].mean(), abs=1e-4)
    # the logits of this world are one too high
    assert default.apply([-1.0, 1.0]) == pytest.approx(expit([-2.0, 0.0]), abs=0.12)
    assert spend.apply(raw["spend"]).sum() == pytest.approx(y["y_spend"].sum(), rel=1e-6)
    assert set(replicates) == {"default"}
    assert len(replicates["default"]) == REPLICATES
    spread = np.std([one.apply([-1.0])[0] for one in replicates["default"]])
    assert 0 < spread < 0.1


def test_rows_without_a_label_have_no_part_in_it() -> None:
    predictor, rows = world()
    known = np.arange(ROWS) % 3 > 0
    gaps = rows.frame.with_columns(pl.when(pl.Series(known)).then(pl.all()).name.keep())
    some = Features(gaps, (), (), ())
    raw = {name: values[known] for name, values in predictor.raw(rows).items()}
    only = cast(Predictor, Fixed(raw)), Features(rows.frame.filter(known), (), (), ())
    assert calibrated(predictor, some) == calibrated(*only)


def test_the_seed_alone_decides() -> None:
    predictor, rows = world()
    one, same, other = (calibrated(predictor, rows, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.replicates != other.replicates


def test_a_net_refund_counts_as_nothing_spent() -> None:
    refunds: list[float | None] = [0.0, 50.0, -500.0, 20.0] * (ROWS // 4)
    nothing = [max(v, 0.0) for v in refunds if v is not None]
    found = [
        calibrated(*world(spend=labels), {"spend": TASKS["spend"]})
        for labels in (refunds, list[float | None](nothing))
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("task", "label", "said"),
    [
        ("default", None, r"tasks\.default: role calibrate: .*no rows"),
        ("default", 0.0, r"tasks\.default: role calibrate: .*all 400 labels are 0"),
        ("spend", None, r"tasks\.spend: role calibrate: .*no rows"),
    ],
)
def test_a_task_that_cannot_be_calibrated_is_named(
    task: str, label: float | None, said: str
) -> None:
    predictor, rows = world(**{task: [label] * ROWS})
    with pytest.raises(UserError, match=said) as refused:
        calibrated(predictor, rows)
    assert "\n" not in str(refused.value)


def test_an_empty_role_is_named(
    make_network: Callable[..., Network],
    stats: Stats,
    tokenizer: Tokenizer,
    feature_config: FeatureConfig,
    known: Features,
    tasks: dict[str, Task],
) -> None:
    predictor = Predictor(make_network(), stats, tokenizer, feature_config.max_tokens)
    none = Features(known.frame.head(0), known.tabular, known.categorical, known.social)
    with pytest.raises(UserError, match=r"tasks\.default: role calibrate: .*no rows"):
        calibrated(predictor, none, tasks)


def test_one_row_of_a_class_still_gives_a_finite_interval() -> None:
    rare: list[float | None] = [float(row == 0) for row in range(ROWS)]
    found = calibrated(*world(default=rare))
    calibrators, replicates = found.calibrators, found.replicates
    assert 0 < calibrators["default"].apply([0.0])[0] < 1
    # samples that drew no positive are left out
    assert 0 < len(replicates["default"]) < REPLICATES
    assert all(np.isfinite(one.apply([0.0])).all() for one in replicates["default"])


def test_rows_in_parts_calibrate_as_in_one() -> None:
    """As where each fold was judged by another training: in the order of the parts."""
    whole = judge(*world(), TASKS)
    cut = ROWS // 3
    parts = [
        Judged(
            {n: {s: v[part] for s, v in own.items()} for n, own in whole.values.items()},
            {n: y[part] for n, y in whole.outcomes.items()},
            {n: np.arange(len(y[part])) for n, y in whole.outcomes.items()},
        )
        for part in (slice(0, cut), slice(cut, None))
    ]
    assert calibrators_of(parts, TASKS, 1) == calibrators_of([whole], TASKS, 1)


def test_a_user_of_several_rows_is_one() -> None:
    """Folds and bootstrap samples of rows that are there four times know no more than of one."""
    once = judge(*world(), TASKS)
    many = Judged(
        {n: {s: np.repeat(v, 4) for s, v in own.items()} for n, own in once.values.items()},
        {n: np.repeat(y, 4) for n, y in once.outcomes.items()},
        {n: np.repeat(users, 4) for n, users in once.users.items()},
    )

    def spread(judged: Judged) -> float:
        replicates = calibrators_of([judged], TASKS, 1).replicates["default"]
        return float(np.std([one.log_odds([-1.0])[0] for one in replicates]))

    blind = replace(many, users={n: np.arange(len(y)) for n, y in many.outcomes.items()})
    assert 0.7 < spread(many) / spread(once) < 1.4
    assert spread(blind) < 0.7 * spread(once)


class Hint:
    """An expert that says what a column says."""

    tasks = ("default",)

    def read(self, frame: pl.DataFrame) -> pl.Series:
        return frame["hint"]

    def raw(self, task: str, rows: pl.Series) -> NDArray[np.float64]:
        return rows.to_numpy()


@pytest.mark.parametrize("helps", [True, False])
def test_an_expert_has_a_say_where_it_helps(helps: bool) -> None:
    """The expert knows the half of the truth that the network does not, or nothing."""
    rng = np.random.default_rng(3)
    seen, unseen = rng.normal(size=(2, 4 * ROWS))
    said = unseen if helps else rng.permutation(unseen)
    y = (rng.random(4 * ROWS) < expit(seen + unseen - 1)).astype(float)
    frame = pl.DataFrame({"user_key": np.arange(len(y)), "y_default": y, "hint": said})
    rows = Features(frame, tabular=("hint",), categorical=(), social=())
    predictor = cast(Predictor, Fixed({"default": seen}))
    experts = cast(Experts, {LIGHTGBM: Hint()})
    found = calibrated(predictor, rows, {"default": TASKS["default"]}, experts)
    own = found.stack["default"]
    assert set(own.alone) == {NETWORK, LIGHTGBM}
    if not helps:
        assert own.weights == ALONE and set(map(str, own.replicates)) == {str(ALONE)}
        assert found.calibrators["default"] == own.alone[NETWORK]
        return
    assert own.weights[LIGHTGBM] == pytest.approx(0.5, abs=0.1)
    assert own.cv_loss["stack"] < own.cv_loss["network"]
    assert len(own.replicates) == len(found.replicates["default"])
    assert len({weights[LIGHTGBM] for weights in own.replicates}) > 1
    value = combine("binary", own.weights, {NETWORK: seen, LIGHTGBM: said})
    assert found.calibrators["default"].apply(value).mean() == pytest.approx(y.mean(), abs=1e-3)
