"""The expert lightgbm: trees as text answer as trees fitted, a row alone as in company."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.special import expit

from models.data.features import Features
from models.data.schema import UserError
from models.data.tasks import Task
from models.scoring.config import Resampling
from models.scoring.metrics import measure
from models.scoring.trees import Columns, TreeExpert, Trees, fit_tree_expert, fit_trees

N = 1500


def world(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three columns, the last a category; a rare outcome, and an amount with zeros."""
    rng = np.random.default_rng(seed)
    x = np.c_[rng.normal(size=(N, 2)), rng.integers(0, 4, N)].astype(np.float32)
    x[rng.random(N) < 0.1, 1] = np.nan
    z = -2.5 + 1.5 * x[:, 0] + (x[:, 2] == 3) + np.isnan(x[:, 1])
    y = (rng.random(N) < expit(z)).astype(float)
    spend = np.where(rng.random(N) < 0.6, np.exp(3 + 0.7 * x[:, 0]), 0.0)
    return x, y, spend


@pytest.fixture(scope="module")
def trees() -> Trees:
    (x, y, _), (x_select, y_select, _) = world(1), world(2)
    return fit_trees("binary", [2], (x, y), (x_select, y_select), seed=1)


def test_it_learns(trees: Trees) -> None:
    x, y, _ = world(3)
    z = trees.raw(x)
    assert measure("auc", y, z) > 0.75
    assert expit(z).mean() == pytest.approx(y.mean(), rel=0.2)


def test_amounts_are_amounts() -> None:
    (x, _, spend), (x_select, _, select) = world(1), world(2)
    found = fit_trees("amount", [2], (x, spend), (x_select, select), seed=1).raw(x_select)
    assert (found >= 0).all() and found.mean() == pytest.approx(select.mean(), rel=0.1)


def test_gains_are_shares_of_columns(trees: Trees) -> None:
    assert trees.gains.sum() == pytest.approx(1) and trees.gains.argmax() == 0
    (x, y, _), (x_select, y_select, _) = world(1), world(2)
    nothing = fit_trees("binary", [], (np.zeros_like(x), y), (x_select, y_select), seed=1)
    assert np.array_equal(nothing.gains, np.zeros(3))


def test_a_row_alone_has_the_bits_that_it_has_in_company(trees: Trees) -> None:
    x, _, _ = world(3)
    whole = trees.raw(x)
    np.testing.assert_array_equal(whole[:50], [trees.raw(x[k : k + 1])[0] for k in range(50)])
    assert trees.raw(x[:0]).shape == (0,)


def test_the_text_is_all_of_it(trees: Trees) -> None:
    x, _, _ = world(3)
    again = Trees("binary", trees.text)
    np.testing.assert_array_equal(again.raw(x), trees.raw(x))
    assert again.columns == 3


def test_the_seed_alone_decides(trees: Trees) -> None:
    (x, y, _), (x_select, y_select, _) = world(1), world(2)
    again = fit_trees("binary", [2], (x, y), (x_select, y_select), seed=1)
    assert again.text == trees.text


@pytest.mark.parametrize("text", ["", "tree\nversion=v4\n", "not a model"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="no trees of LightGBM") as refused:
        Trees("binary", text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("how", ["over", "under", "smote"])
def test_resampled_trees_rank_as_well_and_stop_in_time(trees: Trees, how: Resampling) -> None:
    """Judged by the right log odds, the select loss does not have its minimum at once."""
    (x, y, _), (x_select, y_select, _) = world(1), world(2)
    found = fit_trees("binary", [2], (x, y), (x_select, y_select), 1, how)
    x, y, _ = world(3)
    assert measure("auc", y, found.raw(x)) > measure("auc", y, trees.raw(x)) - 0.02
    assert found.raw(x).mean() > trees.raw(x).mean() + 1  # the base rate that it was shown
    assert found.text.count("\nTree=") > 10


@pytest.fixture(scope="module")
def rows(known: Features) -> Features:
    return known


def test_an_expert_has_trees_of_each_task_that_can_be_judged(
    rows: Features, tasks: dict[str, Task]
) -> None:
    none = replace(rows, frame=rows.frame.with_columns(y_fraud=pl.lit(None, dtype=pl.Float64)))
    expert = fit_tree_expert(rows, none, tasks, seed=1)
    assert set(expert.tasks) == {"default", "spend"}
    assert expert.columns == Columns(rows.tabular, rows.categorical, rows.social)
    x = expert.columns.matrix(rows.frame)
    assert x.shape == (rows.frame.height, len(expert.columns.names)) and x.dtype == np.float32
    assert [expert.columns.names[k] for k in expert.columns.codes] == list(rows.categorical)
    assert [expert.columns.names[k] for k in expert.columns.ties] == list(rows.social)
    median = dict(zip(rows.tabular, expert.medians, strict=True))
    assert median["income"] == rows.frame["income"].median()
    assert median["proposed_amount"] is None


def test_without_a_part_its_columns_are_typical(rows: Features, tasks: dict[str, Task]) -> None:
    expert = fit_tree_expert(rows, rows, tasks, seed=1)
    x = expert.read(rows.frame)[:5]
    income, region = (expert.columns.names.index(name) for name in ("income", "region"))
    actual, profile, social = np.split(
        expert.without(x, [("profile", (income,), (0,)), ("social", (), ())]), 3
    )
    np.testing.assert_array_equal(actual, x)
    assert (profile[:, income] == np.float32(expert.medians[income])).all()
    assert (profile[:, region] == 1).all()  # the first of the vocabulary's levels
    assert np.isnan(social[:, expert.columns.ties]).all()
    for one, own in ((profile, [income, region]), (social, list(expert.columns.ties))):
        np.testing.assert_array_equal(np.delete(one, own, axis=1), np.delete(x, own, axis=1))


def test_what_is_read_is_what_was_written(
    rows: Features, tasks: dict[str, Task], tmp_path: Path
) -> None:
    expert = fit_tree_expert(rows, rows, tasks, seed=1)
    expert.write(tmp_path, tuple(tasks))
    again = TreeExpert.load(tmp_path, tasks)
    assert (again.columns, again.medians) == (expert.columns, expert.medians)
    assert [t.text for t in again.trees.values()] == [t.text for t in expert.trees.values()]


def test_trees_of_other_columns_are_refused(trees: Trees, tmp_path: Path) -> None:
    columns = Columns(("a", "b"))
    TreeExpert(columns, {"default": trees}, (None, None)).write(tmp_path, ("default",))
    with pytest.raises(UserError, match=r"0\.txt: not of 2 columns"):
        TreeExpert.load(tmp_path, {"default": Task(kind="binary")})
