"""The expert lightgbm: boosted trees on columns that are the same bits offline and online.

The one implementation of LightGBM (Ke et al. 2017) here: the expert that a stack ships beside the
network, and the baseline that a report compares with. Shapes: N rows, C columns.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import lightgbm as lgb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.data.features import Features
from models.data.schema import UserError
from models.data.strict import Strict
from models.data.tasks import Kind, Task
from models.data.vocabulary import FIRST_LEVEL
from models.scoring.config import Resampling
from models.scoring.parts import Part, with_outcome
from models.scoring.resample import log_odds_shift, resampled

FloatArray = NDArray[np.float64]
Matrix = NDArray[np.float32]

# Two threads that wait for each other at every node are many times slower than one where cores are
# shared, and the trees are the same.
THREADS = 1
MAX_ROUNDS = 2000
PATIENCE = 50  # rounds without a better select loss
COLUMNS = "columns.json"
PARAMETERS = {
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 20,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    "num_threads": THREADS,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


@dataclass(frozen=True)
class Columns:
    """Which columns of a frame are what; as in `models.data.features.Features`."""

    tabular: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    social: tuple[str, ...] = ()

    @classmethod
    def of(cls, features: Features) -> "Columns":
        """The columns of feature rows."""
        return cls(features.tabular, features.categorical, features.social)

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of a matrix: tabular, social, categorical."""
        return (*self.tabular, *self.social, *self.categorical)

    @property
    def ties(self) -> range:
        """The places of the social columns in a matrix."""
        return range(len(self.tabular), len(self.tabular) + len(self.social))

    @property
    def codes(self) -> range:
        """The places of the categorical columns in a matrix."""
        return range(self.ties.stop, len(self.names))

    def matrix(self, frame: pl.DataFrame) -> Matrix:
        """(N, C) of a frame's columns, NaN where null."""
        values = frame.select(pl.col(self.names).cast(pl.Float32)).to_numpy()
        return np.ascontiguousarray(values, dtype=np.float32)


class Trees:
    """The trees of one task, and the text that they are."""

    def __init__(self, kind: Kind, text: str) -> None:
        """Raises UserError for a text that LightGBM did not write."""
        try:
            self._booster = lgb.Booster(model_str=text)
        except lgb.basic.LightGBMError as error:
            raise UserError(f"no trees of LightGBM: {str(error).splitlines()[0]}") from error
        self.kind, self.text = kind, text

    @property
    def columns(self) -> int:
        """How many columns a row of `raw` has."""
        return int(self._booster.num_feature())

    @property
    def gains(self) -> FloatArray:
        """(C,) each column's share of what the splits gained; zeros where nothing was split."""
        gain_C = np.asarray(self._booster.feature_importance("gain"), dtype=np.float64)
        return gain_C / (gain_C.sum() or 1.0)

    def raw(self, x_NC: Matrix) -> FloatArray:
        """(N,) logits, or expected amounts; the same bits for a row alone and in any company."""
        if not len(x_NC):  # the library refuses a matrix without rows
            return np.empty(0)
        logits = self.kind == "binary"
        raw = self._booster.predict(x_NC, raw_score=logits, num_threads=THREADS)
        return np.asarray(raw, dtype=np.float64)


def fit_trees(
    kind: Kind,
    codes: Sequence[int],
    fit: tuple[Matrix, FloatArray],
    select: tuple[Matrix, FloatArray],
    seed: int,
    resampling: Resampling = "none",
) -> Trees:
    """Trees of the fit role, the number of rounds chosen on the select role.

    `fit`, `select`: a matrix whose columns `codes` are categories, and the labels, all known. An
    amount is estimated by the mean of a Tweedie distribution, which allows for many zeros
    (Jørgensen 1987). Resampling is of the fit role's classes; the select role keeps its own, and
    is judged by the log odds that are right for it.
    """
    binary = kind == "binary"
    x_NC, y_N = resampled(*fit, codes, resampling, seed) if binary else fit
    shift = log_odds_shift(fit[1], y_N) if binary and resampling != "none" else 0.0
    train = lgb.Dataset(x_NC, y_N, categorical_feature=list(codes), params={"verbosity": -1})
    held_out = lgb.Dataset(
        select[0],
        select[1],
        reference=train,
        init_score=np.full(len(select[1]), -shift) if shift else None,
    )
    booster = lgb.train(
        PARAMETERS | {"objective": "binary" if binary else "tweedie", "seed": seed % 2**31},
        train,
        num_boost_round=MAX_ROUNDS,
        valid_sets=[held_out],
        callbacks=[lgb.early_stopping(PATIENCE, verbose=False)],
    )
    return Trees(kind, booster.model_to_string(num_iteration=booster.best_iteration))


class _Columns(Strict):
    """`columns.json`: what the trees read, and the fit role's medians of the tabular columns."""

    tabular: tuple[str, ...]
    categorical: tuple[str, ...]
    social: tuple[str, ...]
    medians: tuple[float | None, ...]


@dataclass(frozen=True)
class TreeExpert:
    """The trees of each task that has any; `medians` are null for a column never known."""

    columns: Columns
    trees: Mapping[str, Trees]
    medians: tuple[float | None, ...]

    @property
    def tasks(self) -> Collection[str]:
        return self.trees.keys()

    def read(self, frame: pl.DataFrame) -> Matrix:
        """[N, C] of a frame's rows."""
        return self.columns.matrix(frame)

    def raw(self, task: str, rows: Matrix) -> FloatArray:
        """(N,) logits, or expected amounts."""
        return self.trees[task].raw(rows)

    def without(self, rows: Matrix, parts: Sequence[Part]) -> Matrix:
        """As `Expert.without`: columns at their medians, categorical ones at their most frequent
        level; ties that are not known are null."""
        medians = np.array(self.medians, dtype=np.float32)
        blocks = [rows]
        for code, columns, categories in parts:
            block = rows.copy()
            block[:, list(columns)] = medians[list(columns)]
            block[:, [self.columns.codes[k] for k in categories]] = FIRST_LEVEL
            if code == "social":
                block[:, list(self.columns.ties)] = np.nan
            blocks.append(block)
        return np.concatenate(blocks)

    def write(self, folder: Path, tasks: Sequence[str]) -> None:
        """As files; trees by the task's number, since its name need be no file name."""
        columns = _Columns(**asdict(self.columns), medians=self.medians)
        (folder / COLUMNS).write_text(columns.model_dump_json(), encoding="utf-8")
        for k, task in enumerate(tasks):
            if task in self.trees:
                (folder / f"{k}.txt").write_text(self.trees[task].text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, tasks: Mapping[str, Task]) -> "TreeExpert":
        """What `write` wrote. Raises UserError for other files."""
        columns = _Columns.model_validate_json((folder / COLUMNS).read_text(encoding="utf-8"))
        own = Columns(columns.tabular, columns.categorical, columns.social)
        trees = {}
        for k, (name, task) in enumerate(tasks.items()):
            path = folder / f"{k}.txt"
            if path.exists():
                trees[name] = Trees(task.kind, path.read_text(encoding="utf-8"))
                if trees[name].columns != len(own.names):
                    raise UserError(f"{path}: not of {len(own.names)} columns")
        return cls(own, trees, columns.medians)


def fit_tree_expert(
    fit: Features,
    select: Features,
    tasks: Mapping[str, Task],
    seed: int,
    resampling: Resampling = "none",
) -> TreeExpert:
    """Trees of the fit role's rows, their number chosen on the select role.

    Both hold the labels as `y_<task>`. A task without an outcome in the select role has no trees.
    """
    columns = Columns.of(fit)
    x_fit, x_select = columns.matrix(fit.frame), columns.matrix(select.frame)
    trees = {}
    for name, task in tasks.items():
        learned = with_outcome(x_fit, fit.frame, name, task.kind)
        judged = with_outcome(x_select, select.frame, name, task.kind)
        if len(judged[1]):
            trees[name] = fit_trees(task.kind, columns.codes, learned, judged, seed, resampling)
    (medians,) = fit.frame.select(pl.col(columns.tabular).median()).rows()
    return TreeExpert(columns, trees, medians)
