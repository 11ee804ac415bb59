"""Baselines learn what there is to learn, and nothing from unknown outcomes."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from models.data.tasks import ROLES, Role, Task
from models.scoring.baselines import Baselines, fit_baselines
from models.scoring.metrics import measure
from models.scoring.trees import Columns

TASKS = {"default": Task(kind="binary"), "spend": Task(kind="amount")}
COLUMNS = Columns(("income", "age"), ("city",), ("ties",))
ROWS = 600
WORDS = {
    "en": (("lost", "my", "job", "cannot", "pay"), ("great", "phone", "fast", "parcel", "thanks")),
    "zh": (("失业", "还不上", "欠债"), ("好评", "很快", "喜欢")),
}
Frames = dict[Role, pl.DataFrame]


def snapshot(rng: np.random.Generator, language: str = "en", rows: int = ROWS) -> pl.DataFrame:
    """Users whose default follows from income and texts, and spend from age."""
    hardship, calm = WORDS[language]
    troubled = rng.random(rows) < 0.4
    space = " " if language == "en" else ""
    texts = [[space.join(rng.choice(hardship if bad else calm, 4))] for bad in troubled]
    income, age = rng.normal(size=rows), rng.normal(size=rows)
    z = -1.5 + 2.5 * troubled - 2.0 * income
    spend = np.where(rng.random(rows) < 0.7, np.exp(3 + age + 1.5 * troubled), 0.0)
    return pl.DataFrame(
        {
            "row": np.arange(rows),
            "user_key": np.arange(rows),
            "income": income,
            "age": age,
            "city": rng.integers(0, 3, rows),
            "ties": [None] * rows,
            "texts": texts,
            "y_default": (rng.random(rows) < 1 / (1 + np.exp(-z))).astype(float),
            "y_spend": spend,
        },
        schema_overrides={"ties": pl.Float64},
    ).with_columns(as_of=pl.lit(datetime(2024, 1, 1, tzinfo=UTC)))


def snapshots(seed: int, language: str = "en") -> Frames:
    rng = np.random.default_rng(seed)
    return {role: snapshot(rng, language) for role in ROLES}


@pytest.fixture(scope="module")
def frames() -> Frames:
    return snapshots(7)


@pytest.fixture(scope="module")
def fitted(frames: Frames) -> Baselines:
    return fit_baselines(frames, COLUMNS, TASKS, seed=1)


@pytest.mark.parametrize("name", ["lightgbm", "tfidf"])
def test_beat_the_constant(frames: Frames, fitted: Baselines, name: str) -> None:
    assert fitted.notes == ()
    y, p = frames["test"]["y_default"], fitted.predictions["default"]
    assert measure("auc", y, p[name]) > 0.65
    assert measure("log_loss", y, p[name]) < measure("log_loss", y, p["constant"])
    spend = fitted.predictions["spend"]
    assert measure("spearman", frames["test"]["y_spend"], spend[name]) > 0.05
    assert measure("rmse", frames["test"]["y_spend"], spend["lightgbm"]) < measure(
        "rmse", frames["test"]["y_spend"], spend["constant"]
    )


def test_are_calibrated_on_the_calibrate_role(frames: Frames, fitted: Baselines) -> None:
    rate = frames["calibrate"]["y_default"].mean()
    assert fitted.predictions["default"]["constant"] == pytest.approx(np.full(ROWS, rate), rel=1e-3)
    mean = frames["calibrate"]["y_spend"].mean()
    assert fitted.predictions["spend"]["constant"] == pytest.approx(np.full(ROWS, mean))
    for p in fitted.predictions["default"].values():
        assert ((p > 0) & (p < 1)).all()


def test_same_seed_same_predictions(frames: Frames, fitted: Baselines) -> None:
    again = fit_baselines(frames, COLUMNS, TASKS, seed=1)
    for task, baselines in fitted.predictions.items():
        for name, values in baselines.items():
            np.testing.assert_array_equal(again.predictions[task][name], values)


def test_unknown_outcomes_teach_nothing(frames: Frames, fitted: Baselines) -> None:
    """Rows added without an outcome move no tree, line, calibrator or constant."""
    rng = np.random.default_rng(99)
    only_default = {"default": TASKS["default"]}
    more: Frames = {}
    for role in ROLES:
        extra = snapshot(rng, rows=50).with_columns(y_default=pl.lit(None, dtype=pl.Float64))
        more[role] = frames[role] if role == "test" else pl.concat([frames[role], extra])
    result = fit_baselines(more, COLUMNS, only_default, seed=1).predictions["default"]
    for name in ("lightgbm", "constant"):  # TF-IDF weighs words by all texts, labelled or not
        np.testing.assert_array_equal(result[name], fitted.predictions["default"][name])


def test_rows_without_an_outcome_are_predicted(frames: Frames) -> None:
    half = frames["test"].with_columns(
        y_default=pl.when(pl.col("row") % 2 == 0).then(pl.col("y_default"))
    )
    result = fit_baselines({**frames, "test": half}, COLUMNS, TASKS, seed=1)
    for baselines in result.predictions.values():
        for values in baselines.values():
            assert len(values) == ROWS and np.isfinite(values).all()


@pytest.mark.parametrize("texts", [[[]], [["", "…"]], None])
def test_without_texts_tfidf_is_left_out(frames: Frames, texts: list[list[str]] | None) -> None:
    def bare(frame: pl.DataFrame) -> pl.DataFrame:
        if texts is None:
            return frame.drop("texts")
        return frame.with_columns(texts=pl.Series(texts * ROWS, dtype=pl.List(pl.String)))

    result = fit_baselines({r: bare(f) for r, f in frames.items()}, COLUMNS, TASKS, seed=1)
    assert set(result.predictions["default"]) == {"lightgbm", "constant"}
    assert len(result.notes) == 1 and result.notes[0].startswith("tfidf: left out")


def test_texts_that_share_no_term(frames: Frames) -> None:
    def unlike(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(texts=pl.concat_list(pl.format("word{}", pl.col("row"))))

    result = fit_baselines({r: unlike(f) for r, f in frames.items()}, COLUMNS, TASKS, seed=1)
    assert result.notes == ("tfidf: left out, no term occurs in two texts of the fit role",)


def test_chinese_texts_are_learned_without_spaces() -> None:
    frames = snapshots(8, "zh")
    result = fit_baselines(frames, COLUMNS, {"default": TASKS["default"]}, seed=1)
    assert (
        measure("auc", frames["test"]["y_default"], result.predictions["default"]["tfidf"]) > 0.65
    )


@pytest.mark.parametrize(
    ("role", "value", "reason"),
    [
        ("fit", 0.0, "fewer than two different outcomes"),
        ("fit", None, "fewer than two different outcomes"),
        ("select", None, "no known outcome"),
    ],
)
def test_nothing_to_learn_from(
    frames: Frames, role: Role, value: float | None, reason: str
) -> None:
    flat = frames[role].with_columns(y_default=pl.lit(value, dtype=pl.Float64))
    result = fit_baselines({**frames, role: flat}, COLUMNS, TASKS, seed=1)
    assert result.predictions["default"] == {}
    assert set(result.predictions["spend"]) == {"lightgbm", "tfidf", "constant"}
    assert len(result.notes) == 1
    assert "tasks.default" in result.notes[0] and reason in result.notes[0]


@pytest.mark.parametrize("value", [1.0, None])
def test_a_calibrate_role_that_cannot_calibrate(frames: Frames, value: float | None) -> None:
    flat = frames["calibrate"].with_columns(y_default=pl.lit(value, dtype=pl.Float64))
    if value is None:
        flat = flat.with_columns(y_spend=pl.lit(None, dtype=pl.Float64))
    result = fit_baselines({**frames, "calibrate": flat}, COLUMNS, TASKS, seed=1)
    rate = frames["fit"]["y_default"].mean()
    assert result.predictions["default"]["constant"] == pytest.approx(np.full(ROWS, rate))
    assert any("not calibrated" in note for note in result.notes)


def test_net_refunds_are_learned_as_nothing_spent(frames: Frames) -> None:
    refunded = {
        role: frame.with_columns(
            y_spend=pl.when(pl.col("y_spend") == 0).then(-25.0).otherwise("y_spend")
        )
        for role, frame in frames.items()
    }
    spend = {"spend": TASKS["spend"]}
    result = fit_baselines(refunded, COLUMNS, spend, seed=1).predictions["spend"]
    clean = fit_baselines(frames, COLUMNS, spend, seed=1).predictions["spend"]
    for name, values in result.items():
        np.testing.assert_array_equal(values, clean[name])


def test_an_empty_test_role(frames: Frames) -> None:
    result = fit_baselines({**frames, "test": frames["test"].clear()}, COLUMNS, TASKS, seed=1)
    for baselines in result.predictions.values():
        assert {name: len(values) for name, values in baselines.items()} == {
            "lightgbm": 0,
            "tfidf": 0,
            "constant": 0,
        }
