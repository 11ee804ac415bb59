"""The fit role in folds of its users, each a snapshot of its own, and what was said of them."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl

from models.data.schema import UserError
from models.scoring.calibrate import FloatArray
from models.scoring.clusters import IntArray
from models.scoring.fit_calibration import Judged
from ray_jobs.snapshot import Snapshot

OUTCOME, USER = "outcome", "user"  # in the place of a source, in a file of what was said
FILE_FORMAT = 2  # another for files that read otherwise
FILE = pl.Schema({"task": pl.String(), "source": pl.String(), "values": pl.List(pl.Float64())})


def inside(fold: int, folds: int, seed: int) -> pl.Expr:
    """Whether a row is of the fold; a user's rows stay together."""
    return pl.col("user_key").hash(seed + 1) % folds == fold


def check_folds(snapshot: Snapshot, labels: Sequence[str], folds: int, seed: int) -> None:
    """Raises UserError where a fold has nobody, or all that have one of two outcomes.

    `labels`: the columns `y_<task>`.
    """
    whole = snapshot.read("fit", ["user_key", *labels]).frame
    many = f"train.cross_fit: {folds} folds are too many for the fit role's {whole.height} rows"
    for fold in range(folds):
        rest = whole.filter(~inside(fold, folds, seed))
        if rest.height == whole.height:
            raise UserError(f"{many}: one has nobody")
        for label in labels:
            if whole[label].drop_nulls().n_unique() > 1 >= rest[label].drop_nulls().n_unique():
                raise UserError(f"{many}: one has all of an outcome of {label[2:]}")


@contextmanager
def fold_of(
    snapshot: Snapshot, fold: int, folds: int, seed: int, folder: Path
) -> Iterator[Snapshot]:
    """The snapshot, but its calibrate role is a fold of its fit role, which has the other rows.

    They lie in `folder` while the block runs.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut off
    try:
        shutil.copytree(Path(snapshot.folder) / "select", folder / "select")
        rows = _write(snapshot, inside(fold, folds, seed), folder)
        yield snapshot.model_copy(update={"folder": str(folder), "rows": snapshot.rows | rows})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(snapshot: Snapshot, own: pl.Expr, folder: Path) -> dict[str, int]:
    """The fit role's files in two parts, one file at a time; the rows of each."""
    rows = {"fit": 0, "calibrate": 0}
    for role in rows:
        (folder / role).mkdir(parents=True)
    for file in map(Path, snapshot.files("fit")):
        frame = pl.read_parquet(file)
        for role, part in (("fit", frame.filter(~own)), ("calibrate", frame.filter(own))):
            rows[role] += part.height
            if part.height:
                part.write_parquet(folder / role / file.name)
    return rows


def write_judged(judged: Judged, path: Path) -> None:
    """As one file, put in place in one step; it tells which rows are of one user, not of whom."""
    parts = [
        {"task": name, "source": source, "values": values.tolist()}
        for name, own in judged.values.items()
        for source, values in (
            *own.items(),
            (OUTCOME, judged.outcomes[name]),
            (USER, judged.users[name]),
        )
    ]
    staged = path.with_name(f".{path.name}")
    pl.DataFrame(parts, FILE).write_parquet(staged)
    staged.replace(path)


def read_judged(path: Path) -> Judged:
    """What `write_judged` wrote, in its order."""
    values: dict[str, dict[str, FloatArray]] = {}
    outcomes: dict[str, FloatArray] = {}
    users: dict[str, IntArray] = {}
    for task, source, own in pl.read_parquet(path).iter_rows():
        if source == OUTCOME:
            outcomes[task] = np.array(own, dtype=np.float64)
        elif source == USER:
            users[task] = np.array(own, dtype=np.int64)
        else:
            values.setdefault(task, {})[source] = np.array(own, dtype=np.float64)
    return Judged(values, outcomes, users)
