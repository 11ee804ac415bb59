"""What experts share: the labels they learn from, and the parts of their inputs."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.data.tasks import Kind

FloatArray = NDArray[np.float64]

# A part of what is known of a user: a modality whole, or places of tabular columns and places of
# categorical ones.
Part = tuple[str, tuple[int, ...], tuple[int, ...]]


def labels_of(frame: pl.DataFrame, task: str, kind: Kind) -> FloatArray:
    """(N,) labels, NaN where unknown; a net refund is no negative purchase."""
    y_N = np.asarray(frame[f"y_{task}"].cast(pl.Float64).to_numpy(), dtype=np.float64)
    return np.maximum(y_N, 0.0) if kind == "amount" else y_N


def with_outcome(x: Any, frame: pl.DataFrame, task: str, kind: Kind) -> tuple[Any, FloatArray]:
    """The rows of a matrix, dense or sparse, whose outcome is known, and their labels."""
    y_N = labels_of(frame, task, kind)
    known_N = np.isfinite(y_N)
    return x[known_N], y_N[known_N]
