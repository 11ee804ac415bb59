"""Rows of a rare class repeated, or of the other one left out: for training only.

Calibration, selection and test see the data as they are.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.data.strict import Strict

Ints = NDArray[np.int64]


class ResampleConfig(Strict):
    """The binary task whose classes are brought nearer to each other, and how.

    "over" repeats rows of the smaller class, "under" leaves out rows of the larger, until there are
    `ratio` of the smaller to one of the larger. A class that is not that small stays as it is.
    """

    task: str
    method: Literal["over", "under"]
    ratio: float = Field(default=1.0, gt=0, le=1)


def resampled(
    labels: NDArray[np.float64], config: ResampleConfig, seed: int, count: int | None = None
) -> Ints:
    """Which rows to train on, ascending, repeated ones beside each other.

    `labels`: 0, 1 or NaN where unknown; such a row is kept, once. Each row of the class that is
    resampled is there as often as any other of it, or once more. With a `count`, some of all these
    rows are then left out or repeated at random, so that there are so many whatever the labels.
    """
    classes = [np.flatnonzero(labels == value) for value in (0.0, 1.0)]
    small, large = sorted(classes, key=len)
    unknown = np.flatnonzero(np.isnan(labels))
    few, many = resampled_counts(len(small), len(large), config)
    rng = np.random.default_rng(seed)
    rows = np.concatenate([unknown, _drawn(small, few, rng), _drawn(large, many, rng)])
    if count is not None:
        rows = _drawn(rows, count, rng)
    return np.sort(rows).astype(np.int64)


def resampled_counts(small: int, large: int, config: ResampleConfig) -> tuple[int, int]:
    """How many rows of the smaller and of the larger class there are to be."""
    if small == 0 or small >= config.ratio * large:
        return small, large
    if config.method == "over":
        return round(config.ratio * large), large
    return small, round(small / config.ratio)


def _drawn(rows: Ints, count: int, rng: np.random.Generator) -> Ints:
    """`count` of the rows, each `count // len(rows)` times or once more."""
    if len(rows) == 0:
        return rows
    times, rest = divmod(count, len(rows))
    return np.concatenate([np.repeat(rows, times), rng.permutation(rows)[:rest]])
