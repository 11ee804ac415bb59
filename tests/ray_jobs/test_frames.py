"""The rows of a training in one process: all of them in order, a share of the users, folds."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from ray_jobs.frames import Frames

USERS, ROWS_A_USER = 100, 3


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two files of the fit role, one of the select role; only `files` of a snapshot is needed."""
    folder = tmp_path_factory.mktemp("snapshot")
    keys = [user * 7919 for user in range(USERS) for _ in range(ROWS_A_USER)]
    frame = pl.DataFrame({"user_key": keys}).with_row_index("place")
    parts = {"fit-0": frame[:110], "fit-1": frame[110:], "select-0": frame[:50]}
    for name, part in parts.items():
        part.write_parquet(folder / f"{name}.parquet")
    return SimpleNamespace(files=lambda role: sorted(map(str, Path(folder).glob(f"{role}-*"))))


def rows(frames: Frames, role: Any, size: int = 64) -> pl.DataFrame:
    return pl.concat(list(frames(role, size)))


def test_all_rows_in_order_so_many_at_a_time(snapshot: Any) -> None:
    frames = Frames(snapshot, select_rows=1000, seed=1)
    heights = [part.height for part in frames("fit", 64)]
    assert heights == [64, 64, 64, 64, 44]
    assert rows(frames, "fit")["place"].to_list() == list(range(300))
    assert frames.count() == 300


@pytest.mark.parametrize(("limit", "size", "heights"), [(50, 20, [20, 20, 10]), (25, 20, [20, 5])])
def test_the_select_role_is_cut(snapshot: Any, limit: int, size: int, heights: list[int]) -> None:
    frames = Frames(snapshot, select_rows=limit, seed=1)
    assert [part.height for part in frames("select", size)] == heights
    assert rows(Frames(snapshot, select_rows=20, seed=1), "select", 20).height == 20


def test_a_share_is_of_users_and_of_the_fit_role_only(snapshot: Any) -> None:
    frames = Frames(snapshot, select_rows=1000, seed=1, share=0.5)
    part = rows(frames, "fit")
    assert set(part.group_by("user_key").len()["len"]) == {ROWS_A_USER}
    assert 30 <= part["user_key"].n_unique() <= 70 and frames.count() == part.height
    assert rows(frames, "select").height == 50
    assert rows(Frames(snapshot, 1000, seed=1, share=0.5), "fit").equals(part)
    assert not rows(Frames(snapshot, 1000, seed=2, share=0.5), "fit").equals(part)


def test_folds_part_the_users(snapshot: Any) -> None:
    held: list[int] = []
    for fold in range(3):
        frames = Frames(snapshot, select_rows=1000, seed=1, folds=3, fold=fold)
        fit, select = (set(rows(frames, role)["user_key"]) for role in ("fit", "select"))
        assert not fit & select and len(fit | select) == USERS
        held += select
    assert len(held) == len(set(held)) == USERS
