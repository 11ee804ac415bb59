"""The network's columns are chosen by the rows that it is trained on, and travel with the model."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from models.scoring.scorer import Scorer
from ray_jobs import jobs, registry, snapshot
from ray_jobs.config import Config
from ray_jobs.frames import Frames
from ray_jobs.kept import with_kept
from ray_jobs.lake import Lake
from ray_jobs.snapshot import Snapshot
from tuning.space import applied

KEEP = 12
FOLDS = 3


@pytest.fixture(scope="module")
def shop(demo_run: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The demo's snapshot in a folder of its own, some columns to be kept."""
    folder = tmp_path_factory.mktemp("kept")
    shutil.copytree(demo_run.lake, folder / "lake")
    shutil.copytree(Path(demo_run.work) / "snapshots", folder / "snapshots")
    own = demo_run.model_copy(update={"lake": str(folder / "lake"), "work": str(folder)})
    return applied(own, {"train.select_rows": 200, "network.tabular.keep": KEEP})


@pytest.fixture
def made(shop: Config, tmp_path: Path) -> Snapshot:
    """A copy of the snapshot, to be changed."""
    folder = snapshot.snapshot(shop, jobs.tables(shop)).folder
    return snapshot.load(Path(shutil.copytree(folder, tmp_path / "snapshot")))


def frames(made: Snapshot, fold: int | None = None) -> Frames:
    folds = None if fold is None else FOLDS
    return Frames(made, select_rows=200, seed=1, folds=folds, fold=fold)


def turned(made: Snapshot, files: list[str], users: list[int] | None = None) -> int:
    """Turn the outcomes of some files round, of these users or all; how many rows."""
    count = 0
    for file in files:
        rows = pl.read_parquet(file)
        own = pl.lit(True) if users is None else pl.col("user_key").is_in(users)
        count += rows.filter(own).height
        other = pl.when(own).then(1 - pl.col("y_default")).otherwise("y_default")
        rows.with_columns(y_default=other).write_parquet(file)
    return count


def test_only_the_fit_role_is_looked_at(shop: Config, made: Snapshot) -> None:
    before = with_kept(shop, frames(made)).stats.kept
    assert before is not None and len(set(before)) == KEEP and set(before) < set(made.tabular)
    for role in ("select", "calibrate", "test"):
        assert turned(made, made.files(role))
    assert with_kept(shop, frames(made)).stats.kept == before


def test_the_fold_that_judges_is_not_looked_at(shop: Config, made: Snapshot) -> None:
    before = [with_kept(shop, frames(made, fold)).stats.kept for fold in range(FOLDS)]
    judges = pl.concat(frames(made, 0)("select", 10_000))["user_key"].unique().to_list()
    turned(made, made.files("fit"), judges)
    after = [with_kept(shop, frames(made, fold)).stats.kept for fold in range(FOLDS)]
    assert after[0] == before[0] and after[1:] != before[1:]


def test_as_many_as_there_are_means_all(shop: Config, made: Snapshot) -> None:
    for keep in (None, len(made.tabular), 10_000):
        config = applied(shop, {"network.tabular.keep": keep})
        assert with_kept(config, frames(made)) is made


def test_the_model_sees_what_was_chosen(demo_run: Config) -> None:
    made = snapshot.snapshot(demo_run, jobs.tables(demo_run))
    whole = Frames(made, demo_run.train.select_rows, demo_run.seed)
    scorer = Scorer.load(registry.champion(Lake(demo_run.lake)).path)
    kept = scorer.spec.stats.kept
    assert kept is not None and kept == with_kept(demo_run, whole).stats.kept
    tower = scorer.artifact.network.tabular
    assert tower.wide.in_features == 2 * len(kept) + 8 * len(made.categorical)
    assert scorer.score_features(made.read("test"))["default"].struct.field("probability").std()
