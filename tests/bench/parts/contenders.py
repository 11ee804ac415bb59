"""Contenders that come from outside an evaluation, compared with the model as its own are."""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.data.tasks import Kind
from models.scoring.clusters import IntArray
from models.scoring.comparison import MODEL, AmountTask, BinaryTask, compare_amount, compare_binary
from models.scoring.evaluation import LIKELY, RESAMPLES, Evaluation
from ray_jobs.config import Config
from ray_jobs.snapshot import Snapshot

FloatArray = NDArray[np.float64]


def evaluation_of(config: Config) -> Evaluation:
    """The last one."""
    text = (Path(config.work) / "evaluation.json").read_text(encoding="utf-8")
    return Evaluation.model_validate_json(text)


def scored_rows(config: Config, made: Snapshot) -> pl.DataFrame:
    """What the last evaluation's model said of the test role, in the order of the snapshot."""
    folder = Path(config.work) / "predictions"
    return pl.concat([pl.read_parquet(folder / Path(file).name) for file in made.files("test")])


def estimates(scored: pl.DataFrame, task: str, kind: Kind) -> FloatArray:
    """(N,) a task's probabilities or amounts."""
    field = "probability" if kind == "binary" else "amount"
    return scored[task].struct.field(field).to_numpy()


def with_contender(
    task: BinaryTask | AmountTask,
    name: str,
    y: FloatArray,
    model: FloatArray,
    values: FloatArray,
    users: IntArray,
    seed: int,
) -> BinaryTask | AmountTask:
    """The task with one contender more; all columns are of the test rows, `y` NaN if unknown."""
    two = {MODEL: model, name: values}
    found: BinaryTask | AmountTask
    if isinstance(task, AmountTask):
        found = compare_amount(y, two, users=users, seed=seed, resamples=RESAMPLES)
    else:
        found = compare_binary(y, two, (LIKELY,), users=users, seed=seed, resamples=RESAMPLES)
    more = {
        "contenders": (*task.contenders, *(one for one in found.contenders if one.name == name)),
        "differences": (*task.differences, *found.differences),
    }
    return task.model_copy(update=more)
