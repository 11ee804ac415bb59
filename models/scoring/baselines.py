"""Honest baselines, trained on the same snapshots and calibrated as the model is.

- lightgbm: gradient boosted trees on the tabular, social and profile columns, as a stack has them;
- tfidf: a linear model on TF-IDF of the user's texts;
- constant: the base rate, or the mean amount.

Each is fitted on the fit role, its free choice (rounds, strength of regularisation) made on the
select role, and its output calibrated on the calibrate role by `models.scoring.calibrate`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import expit, logit
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from models.data.tasks import ROLES, Role, Task
from models.scoring.calibrate import fit_amount, fit_binary
from models.scoring.expert import Columns, fit_trees, labels_of

FloatArray = NDArray[np.float64]
Predict = Callable[[Any], Any]  # a matrix of one row or more → logits, or amounts
Fitter = Callable[[Any, FloatArray, Any, FloatArray, int], Predict]

INVERSE_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # C of the logistic regression
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)  # alpha of the ridge regression
MAX_TERMS = 50_000
MOSTLY = 0.5
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Chinese and Japanese are written without spaces: there a character is a token, elsewhere a word.
TOKEN = rf"(?u)[{CJK}]|[^\W{CJK}]{{2,}}"


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
    trees: bool = True,
) -> Baselines:
    """Fit every baseline of every task; predictions are for all rows of the test role, in order.

    `frames`: one snapshot a role, with `columns`, the list column `texts` and one `y_<task>` a
    task, null where the outcome is unknown; such rows are not learned from. Binary predictions
    are probabilities, amounts are in the unit of the task; negative amounts are learned as 0.
    `trees`: false where the model's own expert stands for lightgbm.
    """
    notes: list[str] = []
    matrices: dict[str, Mapping[Role, Any]] = {}
    if trees:
        matrices["lightgbm"] = {role: columns.matrix(frames[role]) for role in ROLES}
    terms = _tfidf(frames)
    if isinstance(terms, str):
        notes.append(f"tfidf: left out, {terms}")
    else:
        matrices["tfidf"] = terms
    matrices["constant"] = {role: np.empty((frames[role].height, 0)) for role in ROLES}
    predictions: dict[str, dict[str, FloatArray]] = {}
    for name, task in tasks.items():
        labels = {role: labels_of(frames[role], name, task.kind) for role in ROLES}
        reason = _not_learnable(labels)
        if reason:
            notes.append(f"tasks.{name}: no baselines, {reason}")
            predictions[name] = {}
            continue
        fitters = _fitters(task, columns)
        predictions[name] = {
            baseline: _predict(fitters[baseline], x, labels, task, seed)
            for baseline, x in matrices.items()
        }
        if task.kind == "binary" and not _two_values(labels["calibrate"]):
            notes.append(f"tasks.{name}: baselines not calibrated, one outcome in that role")
    return Baselines(predictions=predictions, notes=tuple(notes))


def _fitters(task: Task, columns: Columns) -> dict[str, Fitter]:
    def trees(x: Any, y: FloatArray, x_select: Any, y_select: FloatArray, seed: int) -> Predict:
        return fit_trees(task.kind, columns.codes, (x, y), (x_select, y_select), seed).raw

    if task.kind == "binary":
        return {"lightgbm": trees, "tfidf": _logistic, "constant": _constant_logit}
    return {"lightgbm": trees, "tfidf": _ridge, "constant": _constant_amount}


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


def _tfidf(frames: Mapping[Role, pl.DataFrame]) -> dict[Role, csr_matrix] | str:
    """TF-IDF of each role's texts, fitted on the fit role; or why there is none.

    A user's texts are joined. Words with their pairs; characters up to triples where the texts
    are mostly Chinese or Japanese.
    """
    if any("texts" not in frames[role].columns for role in ROLES):
        return "there are no texts"
    joined = {
        role: frames[role]["texts"].list.join(" ", ignore_nulls=True).fill_null("")
        for role in ROLES
    }
    letters = int(joined["fit"].str.count_matches(r"\p{L}").sum())
    if not letters:
        return "the texts of the fit role have no letters"
    cjk = int(joined["fit"].str.count_matches(r"[\p{Han}\p{Hiragana}\p{Katakana}]").sum())
    vectorizer = TfidfVectorizer(
        token_pattern=TOKEN,
        ngram_range=(1, 3) if cjk / letters > MOSTLY else (1, 2),
        min_df=2,
        max_features=MAX_TERMS,
        sublinear_tf=True,
        dtype=np.float32,
    )
    try:
        fitted = vectorizer.fit_transform(joined["fit"].to_list())
    except ValueError:  # the only way it fails on strings: nothing is left after pruning
        return "no term occurs in two texts of the fit role"
    nothing = csr_matrix((0, fitted.shape[1]))  # scikit-learn refuses an empty list
    others = {
        role: vectorizer.transform(joined[role].to_list()) if len(joined[role]) else nothing
        for role in ROLES[1:]
    }
    return {"fit": fitted, **others}


def _logistic(x: Any, y: FloatArray, x_select: Any, y_select: FloatArray, seed: int) -> Predict:
    """L2-regularised logistic regression; C by the log-loss of the select role."""

    def loss(model: LogisticRegression) -> float:
        z = model.decision_function(x_select)
        return float(np.mean(np.logaddexp(0.0, z) - y_select * z))

    best = LogisticRegression(C=INVERSE_PENALTIES[0], max_iter=1000).fit(x, y)
    for c in INVERSE_PENALTIES[1:]:  # each is slower than the last, and the loss has one valley
        weaker = LogisticRegression(C=c, max_iter=1000).fit(x, y)
        if loss(weaker) >= loss(best):
            break
        best = weaker
    decide: Predict = best.decision_function
    return decide


def _ridge(x: Any, y: FloatArray, x_select: Any, y_select: FloatArray, seed: int) -> Predict:
    """Ridge regression of ln(1 + amount); alpha by the squared error of the select role."""
    target, held_out = np.log1p(y), np.log1p(y_select)
    highest = float(target.max())  # a line may leave the range of what was ever seen

    def loss(model: Ridge) -> float:
        return float(np.mean((model.predict(x_select) - held_out) ** 2))

    candidates = [Ridge(alpha=alpha).fit(x, target) for alpha in PENALTIES]
    best = min(candidates, key=loss)
    return lambda rows: np.expm1(np.clip(best.predict(rows), 0.0, highest))


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
