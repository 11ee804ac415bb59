"""Folds of the fit role's users, and of a cross-fitted training: a snapshot a fold."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from models.data.schema import UserError
from ray_jobs.snapshot import Snapshot


def inside(fold: int, folds: int, seed: int) -> pl.Expr:
    """Whether a row is of the fold; a user's rows stay together."""
    return pl.col("user_key").hash(seed + 1) % folds == fold


@contextmanager
def fold_of(
    snapshot: Snapshot, fold: int, folds: int, seed: int, folder: Path
) -> Iterator[Snapshot]:
    """The snapshot, but its calibrate role is a fold of its fit role, which has the other rows.

    They lie in `folder` while the block runs. Raises UserError where a fold has nobody, or all of
    one outcome.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut off
    whole = snapshot.read("fit").frame.drop("row")
    own = inside(fold, folds, seed)
    parts = {"fit": whole.filter(~own), "calibrate": whole.filter(own)}
    _check(whole, parts, folds)
    try:
        for role, frame in parts.items():
            (folder / role).mkdir(parents=True)
            frame.write_parquet(folder / role / "fold.parquet")
        shutil.copytree(Path(snapshot.folder) / "select", folder / "select")
        rows = snapshot.rows | {role: frame.height for role, frame in parts.items()}
        yield snapshot.model_copy(update={"folder": str(folder), "rows": rows})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check(whole: pl.DataFrame, parts: dict[str, pl.DataFrame], folds: int) -> None:
    """Raises UserError where a network cannot be trained without a fold, or judged on it."""
    many = f"train.cross_fit: {folds} folds are too many for the fit role's {whole.height} rows"
    if not all(frame.height for frame in parts.values()):
        raise UserError(f"{many}: one has nobody")
    for label in (c for c in whole.columns if c.startswith("y_")):
        if _outcomes(whole, label) > 1 >= _outcomes(parts["fit"], label):
            raise UserError(f"{many}: one has all of an outcome of {label[2:]}")


def _outcomes(frame: pl.DataFrame, label: str) -> int:
    return frame[label].drop_nulls().n_unique()
