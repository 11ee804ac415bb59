"""Calibrators of a trained network, fitted on the calibrate role's rows (never resampled)."""

from collections.abc import Mapping

import numpy as np
from threadpoolctl import threadpool_limits

from models.data.features import Features
from models.data.schema import UserError
from models.data.tasks import Task
from models.scoring.calibrate import (
    AmountCalibrator,
    BinaryCalibrator,
    FloatArray,
    fit_amount,
    fit_binary,
)
from models.scoring.predict import Predictor

Calibrators = tuple[
    dict[str, BinaryCalibrator | AmountCalibrator], dict[str, tuple[BinaryCalibrator, ...]]
]
REPLICATES = 20  # bootstrap samples whose calibrators give a probability its interval


def calibrators_of(
    predictor: Predictor, rows: Features, tasks: Mapping[str, Task], seed: int
) -> Calibrators:
    """A calibrator a task, and the replicates of each binary one.

    `rows` holds the labels as `y_<task>`. Raises UserError for a task without labels, or with one
    class only.
    """
    raw = predictor.raw(rows)
    with threadpool_limits(1, user_api="blas"):  # threads on such small matrices cost 25 times
        return _fit(raw, rows, tasks, seed)


def _fit(
    raw: dict[str, FloatArray], rows: Features, tasks: Mapping[str, Task], seed: int
) -> Calibrators:
    rng = np.random.default_rng(seed)
    calibrators: dict[str, BinaryCalibrator | AmountCalibrator] = {}
    replicates: dict[str, tuple[BinaryCalibrator, ...]] = {}
    for name, task in tasks.items():
        label = rows.frame[f"y_{name}"]
        known = label.is_not_null().to_numpy()
        y, value = label.drop_nulls().to_numpy(), raw[name][known]
        try:
            if task.kind == "amount":
                # a net refund is no negative purchase: the amount is what was spent
                calibrators[name] = fit_amount(value, np.maximum(y, 0.0))
                continue
            calibrators[name] = fit_binary(value, y, seed=seed)
            samples = (rng.integers(0, len(y), len(y)) for _ in range(REPLICATES))
            replicates[name] = tuple(
                fit_binary(value[s], y[s], seed=seed, folds=2)
                for s in samples
                if 0 < y[s].mean() < 1
            )
        except UserError as error:
            raise UserError(f"tasks.{name}: role calibrate: {error}") from error
    return calibrators, replicates
