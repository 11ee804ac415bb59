"""Classes made equal in number before trees are fitted; never where they are judged or calibrated.

Shapes: N rows, C columns, K neighbours.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from models.data import resample
from models.data.resample import ResampleConfig
from models.scoring.config import Resampling

FloatArray = NDArray[np.float64]
Matrix = NDArray[np.float32]
NEIGHBOURS = 5  # as in Chawla et al.


def resampled(
    x_NC: Matrix, y_N: FloatArray, codes: Sequence[int], how: Resampling, seed: int
) -> tuple[Matrix, FloatArray]:
    """Rows with both classes equally frequent; with one class only, the rows as they are.

    `over` and `under` repeat and leave out rows (`models.data.resample`); `smote` adds new rows of
    the rarer class between neighbours of it (`synthetic`). `codes`: columns that are categories.
    """
    if how == "none":
        return x_NC, y_N
    if how != "smote":
        rows = resample.resampled(y_N, ResampleConfig(task="", method=how), seed)
        return x_NC[rows], y_N[rows]
    rare, frequent = sorted((np.flatnonzero(y_N == 1), np.flatnonzero(y_N != 1)), key=len)
    missing = len(frequent) - len(rare)
    if not missing or not len(rare):
        return x_NC, y_N
    new_MC = synthetic(x_NC[rare], codes, missing, np.random.default_rng(seed))
    return np.concatenate([x_NC, new_MC]), np.r_[y_N, np.full(missing, y_N[rare[0]])]


def synthetic(x_NC: Matrix, codes: Sequence[int], rows: int, rng: np.random.Generator) -> Matrix:
    """New rows, each at random between one of x and one of its nearest neighbours in x.

    SMOTE-NC (Chawla et al. 2002, "SMOTE: Synthetic minority over-sampling technique", sections
    4.2 and 6.1): a category is the one that most neighbours have, and in the distance a different
    category counts as much as a standard deviation of a number. What is unknown (NaN) of either
    end stays unknown, and lies at the mean in the distance.
    """
    base = rng.integers(0, len(x_NC), rows)
    k = min(NEIGHBOURS, len(x_NC) - 1)
    if k == 0:  # nothing to lie between
        return x_NC[base]
    space = _standardised(x_NC, codes)
    near_NK = NearestNeighbors(n_neighbors=k).fit(space).kneighbors(return_distance=False)
    other = near_NK[base, rng.integers(0, k, rows)]
    part = rng.random((rows, 1), dtype=np.float32)
    result = x_NC[base] + part * (x_NC[other] - x_NC[base])
    for column in codes:
        result[:, column] = _most_frequent(x_NC[:, column][near_NK])[base]
    return np.asarray(result, dtype=np.float32)


def log_odds_shift(before: FloatArray, after: FloatArray) -> float:
    """By how much resampling raised the log odds of every row (King and Zeng 2001, eq. 7)."""
    odds = [y.sum() / (len(y) - y.sum()) for y in (before, after)]
    return float(np.log(odds[1] / odds[0]))


def _standardised(x_NC: Matrix, codes: Sequence[int]) -> Matrix:
    """Numbers in standard deviations from their mean, categories as indicators of 1 / √2."""
    numbers = np.delete(x_NC, codes, axis=1).astype(np.float64)
    known = np.isfinite(numbers)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, numbers, 0.0).sum(axis=0) / count
    off = np.where(known, numbers - mean, 0.0)
    spread = np.sqrt((off**2).sum(axis=0) / count)
    parts = [off / np.where(spread > 0, spread, 1.0)]
    for column in codes:
        levels = np.unique(x_NC[:, column])
        parts.append((x_NC[:, column, None] == levels) / np.sqrt(2))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _most_frequent(values_NK: Matrix) -> Matrix:
    """The value that most columns of a row have; of equally frequent ones the first."""
    count_NK = (values_NK[:, :, None] == values_NK[:, None, :]).sum(axis=2)
    most_N1 = count_NK.argmax(axis=1, keepdims=True)
    return np.take_along_axis(values_NK, most_N1, axis=1)[:, 0]
