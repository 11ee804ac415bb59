"""Honest baselines, trained on the same snapshots and calibrated on the calibrate role.

- lightgbm: boosted trees on the tabular, social and profile columns (`models.scoring.trees`);
- tfidf: a linear model on TF-IDF of the user's texts (`models.scoring.terms`);
- constant: the base rate, or the mean amount.

Each is fitted on the fit role, its free choices (rounds, strength of regularisation, length of
terms) made on the select role, and its output calibrated by `models.scoring.calibrate`.
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
        known = {role: np.flatnonzero(np.isfinite(y)) for role, y in labels[name].items()}
        y = {role: labels[name][role][known[role]] for role in ROLES}
        predictions[name] = {}
        for baseline, x in matrices.items():
            if terms is not None and baseline == "tfidf":
                # fitted already: the lines of all tasks share their terms
                fitted: Predict = partial(terms.raw, name)
            else:
                learned = x["fit"][known["fit"]], y["fit"]
                judged = x["select"][known["select"]], y["select"]
                fitted = _fitters(task, columns)[baseline](*learned, *judged, seed)
            held_out = x["calibrate"][known["calibrate"]], y["calibrate"]
            predictions[name][baseline] = _predict(fitted, held_out, x["test"], task, seed)
        if task.kind == "binary" and not _two_values(labels[name]["calibrate"]):
            notes.append(f"tasks.{name}: baselines not calibrated, one outcome in that role")
    return Baselines(predictions=predictions, notes=tuple(notes))


def _fitters(task: Task, columns: Columns) -> dict[str, Fitter]:
    def trees(x: Any, y: FloatArray, x_select: Any, y_select: FloatArray, seed: int) -> Predict:
        return fit_trees(task.kind, columns.codes, (x, y), (x_select, y_select), seed).raw

    constant = _constant_logit if task.kind == "binary" else _constant_amount
    return {"lightgbm": trees, "constant": constant}


def _predict(
    fitted: Predict, calibrate: tuple[Any, FloatArray], test: Any, task: Task, seed: int
) -> FloatArray:
    """Calibrated on the known rows of that role, every test row."""

    def raw(rows: Any) -> FloatArray:
        # the libraries refuse a matrix without rows
        return np.asarray(fitted(rows) if rows.shape[0] else [], dtype=np.float64)

    held_out, y, found = raw(calibrate[0]), calibrate[1], raw(test)
    if task.kind == "amount":
        return fit_amount(held_out, y).apply(found) if len(held_out) else found
    if not _two_values(y):
        return np.asarray(expit(found), dtype=np.float64)
    return fit_binary(held_out, y, seed=seed).apply(found)


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
