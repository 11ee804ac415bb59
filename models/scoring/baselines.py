"""Honest baselines, trained on the same snapshots and calibrated as the model is.

- lightgbm: boosted trees on the tabular, social and profile columns (`models.scoring.trees`);
- tfidf: a linear model on TF-IDF of the user's texts (`models.scoring.terms`);
- constant: the base rate, or the mean amount.

Each is fitted on the fit role, its free choice (rounds, strength of regularisation) made on the
select role, and its output calibrated on the calibrate role by `models.scoring.calibrate`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit, logit

from models.data.schema import UserError
from models.data.tasks import ROLES, Role, Task
from models.scoring.calibrate import fit_amount, fit_binary
from models.scoring.parts import labels_of
from models.scoring.terms import TermExpert, fit_term_expert
from models.scoring.trees import Columns, fit_trees

FloatArray = NDArray[np.float64]
Predict = Callable[[Any], Any]  # a matrix of one row or more → logits, or amounts
Fitter = Callable[[Any, FloatArray, Any, FloatArray, int], Predict]


@dataclass(frozen=True)
class Baselines:
    """`predictions`: task → baseline → (N,) calibrated probabilities or amounts of the test rows.

    `notes` say what was left out, and why.
    """

    predictions: dict[str, dict[str, FloatArray]]
    notes: tuple[str, ...] = ()


def fit_baselines(
    frames: Mapping[Role, pl.DataFrame],
    columns: Columns,
    tasks: Mapping[str, Task],
    *,
    seed: int,
    leave_out: Collection[str] = (),
) -> Baselines:
    """Fit every baseline of every task; predictions are for all rows of the test role, in order.

    `frames`: one snapshot a role, with `columns`, the list column `texts` and one `y_<task>` a
    task, null where the outcome is unknown; such rows are not learned from. Binary predictions
    are probabilities, amounts are in the unit of the task; negative amounts are learned as 0.
    `leave_out`: baselines that the experts of the model's own stack stand for.
    """
    notes: list[str] = []
    labels = {
        name: {role: labels_of(frames[role], name, task.kind) for role in ROLES}
        for name, task in tasks.items()
    }
    reasons = {name: _not_learnable(of) for name, of in labels.items()}
    learnable = {name: task for name, task in tasks.items() if reasons[name] is None}
    terms: TermExpert | None = None
    matrices: dict[str, Mapping[Role, Any]] = {}
    if "lightgbm" not in leave_out:
        matrices["lightgbm"] = {role: columns.matrix(frames[role]) for role in ROLES}
    if "tfidf" not in leave_out:
        try:
            terms = fit_term_expert(frames["fit"], frames["select"], learnable)
            matrices["tfidf"] = {role: terms.read(frames[role]) for role in ROLES}
        except UserError as error:
            notes.append(f"tfidf: left out, {error}")
    matrices["constant"] = {role: np.empty((frames[role].height, 0)) for role in ROLES}
    predictions: dict[str, dict[str, FloatArray]] = {}
    for name, task in tasks.items():
        if name not in learnable:
            notes.append(f"tasks.{name}: no baselines, {reasons[name]}")
            predictions[name] = {}
            continue
        fitters = _fitters(name, task, columns, terms)
        predictions[name] = {
            baseline: _predict(fitters[baseline], x, labels[name], task, seed)
            for baseline, x in matrices.items()
        }
        if task.kind == "binary" and not _two_values(labels[name]["calibrate"]):
            notes.append(f"tasks.{name}: baselines not calibrated, one outcome in that role")
    return Baselines(predictions=predictions, notes=tuple(notes))


def _fitters(
    name: str, task: Task, columns: Columns, terms: TermExpert | None
) -> dict[str, Fitter]:
    def trees(x: Any, y: FloatArray, x_select: Any, y_select: FloatArray, seed: int) -> Predict:
        return fit_trees(task.kind, columns.codes, (x, y), (x_select, y_select), seed).raw

    def line(*_: Any) -> Predict:  # fitted already: the lines of all tasks share their terms
        assert terms is not None
        return partial(terms.raw, name)

    constant = _constant_logit if task.kind == "binary" else _constant_amount
    return {"lightgbm": trees, "tfidf": line, "constant": constant}


def _predict(
    fitter: Fitter,
    x: Mapping[Role, Any],
    labels: Mapping[Role, FloatArray],
    task: Task,
    seed: int,
) -> FloatArray:
    """Fit on the known rows of fit and select, calibrate, predict every test row."""
    known = {role: np.flatnonzero(np.isfinite(y)) for role, y in labels.items()}
    y = {role: labels[role][known[role]] for role in ROLES}
    fitted = fitter(
        x["fit"][known["fit"]], y["fit"], x["select"][known["select"]], y["select"], seed
    )

    def raw(rows: Any) -> FloatArray:
        # the libraries refuse a matrix without rows
        return np.asarray(fitted(rows) if rows.shape[0] else [], dtype=np.float64)

    held_out, test = raw(x["calibrate"][known["calibrate"]]), raw(x["test"])
    if task.kind == "amount":
        return fit_amount(held_out, y["calibrate"]).apply(test) if len(held_out) else test
    if not _two_values(y["calibrate"]):
        return np.asarray(expit(test), dtype=np.float64)
    return fit_binary(held_out, y["calibrate"], seed=seed).apply(test)


def _two_values(y: FloatArray) -> bool:
    known = y[np.isfinite(y)]
    return bool(len(known) and known.min() < known.max())


def _not_learnable(labels: Mapping[Role, FloatArray]) -> str | None:
    if not _two_values(labels["fit"]):
        return "the fit role has fewer than two different outcomes"
    if not np.isfinite(labels["select"]).any():
        return "the select role has no known outcome"
    return None


def _constant_logit(
    x: Any, y: FloatArray, x_select: Any, y_select: FloatArray, seed: int
) -> Predict:
    value = float(logit(y.mean()))
    return lambda rows: np.full(rows.shape[0], value)


def _constant_amount(
    x: Any, y: FloatArray, x_select: Any, y_select: FloatArray, seed: int
) -> Predict:
    value = float(y.mean())
    return lambda rows: np.full(rows.shape[0], value)
