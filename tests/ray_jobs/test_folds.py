"""Folds of a cross-fitted training: every user of the fit role is in one, and trained without."""

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from models.data.schema import UserError
from models.scoring.fit_calibration import Judged
from ray_jobs.folds import check_folds, fold_of, read_judged, write_judged
from ray_jobs.snapshot import Snapshot

USERS, ROWS_A_USER = 90, 2
ROLES = ("fit", "select", "calibrate")


def of(folder: Path, labels: list[float | None]) -> Snapshot:
    """Rows of two files in the fit role, one in the others."""
    keys = [user * 7919 for user in range(USERS) for _ in range(ROWS_A_USER)]
    frame = pl.DataFrame({"user_key": keys, "y_default": labels}).with_row_index("place")
    for role in ROLES:
        (folder / role).mkdir(parents=True)
        for number, part in enumerate((frame[:70], frame[70:]) if role == "fit" else (frame[:9],)):
            part.write_parquet(folder / role / f"bucket-{number}.parquet")
    rows = {"fit": frame.height, "select": 9, "calibrate": 9}
    manifest: Any = {"folder": str(folder), "rows": rows, "versions": {}, "stats": None}
    columns = dict.fromkeys(("tabular", "categorical", "social"), ())
    return Snapshot.model_construct(**manifest, **columns, account={})


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return of(tmp_path_factory.mktemp("folds") / "whole", [0.0, 1.0] * USERS)


def rows(snapshot: Snapshot, role: Any) -> pl.DataFrame:
    return snapshot.read(role).frame.drop("row")


@given(folds=st.integers(2, 6), seed=st.integers(0, 2**31))
def test_each_user_is_in_one_fold_and_trained_without(
    snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory, folds: int, seed: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fold"
    whole, held = rows(snapshot, "fit"), []
    check_folds(snapshot, ["y_default"], folds, seed)
    for number in range(folds):
        with fold_of(snapshot, number, folds, seed, folder) as fold:
            fit, own = rows(fold, "fit"), rows(fold, "calibrate")
            assert not set(fit["user_key"]) & set(own["user_key"])
            assert_frame_equal(pl.concat([fit, own]).sort("place"), whole)
            assert_frame_equal(rows(fold, "select"), rows(snapshot, "select"))
            assert fold.rows == {"fit": fit.height, "select": 9, "calibrate": own.height}
            held.append(own)
        assert not folder.exists()
    assert_frame_equal(pl.concat(held).sort("place"), whole)


def test_what_a_cut_off_run_left_is_written_anew(snapshot: Snapshot, tmp_path: Path) -> None:
    shutil.copytree(snapshot.folder, tmp_path / "fold")
    with fold_of(snapshot, 0, 2, 1, tmp_path / "fold") as fold:
        assert rows(fold, "fit").height + rows(fold, "calibrate").height == USERS * ROWS_A_USER


def test_too_many_folds_are_refused(tmp_path: Path) -> None:
    one = cast(list[float | None], [1.0] + [0.0] * (USERS * ROWS_A_USER - 1))
    rare = of(tmp_path / "rare", one)
    with pytest.raises(UserError, match=r"3 folds .* 180 rows: one has all of an outcome of defau"):
        check_folds(rare, ["y_default"], 3, seed=1)
    with pytest.raises(UserError, match=r"train\.cross_fit: 5000 folds .* one has nobody$"):
        check_folds(rare, ["y_default"], 5000, seed=1)


def test_what_was_said_is_read_as_it_was_written(tmp_path: Path) -> None:
    said = Judged(
        {
            "spend": {"network": np.array([3.0, 1e-9])},
            "a": {"tfidf": np.ones(1), "b": np.zeros(1)},
            "nobody": {"network": np.zeros(0)},
        },
        {"spend": np.array([0.0, 2.5]), "a": np.ones(1), "nobody": np.zeros(0)},
        {n: np.arange(rows) for n, rows in (("spend", 2), ("a", 1), ("nobody", 0))},
    )
    write_judged(said, tmp_path / "fold.parquet")
    found = read_judged(tmp_path / "fold.parquet")
    assert repr(found) == repr(said)
    assert [path.name for path in tmp_path.iterdir()] == ["fold.parquet"]
