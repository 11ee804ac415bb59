"""The expert tfidf: a linear model on TF-IDF of the terms that a user wrote.

The one implementation of TF-IDF (Spärck Jones 1972) here: the expert that a stack ships beside the
network, and the baseline that a report compares with. Shapes: N rows, V terms.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import model_validator
from scipy.sparse import csr_matrix, vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from models.data.schema import UserError
from models.data.strict import Strict
from models.data.tasks import Kind, Task
from models.scoring.parts import Part, with_outcome

FloatArray = NDArray[np.float64]

FILE = "terms.json"
INVERSE_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # C of the logistic regression
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)  # alpha of the ridge regression
MAX_TERMS = 50_000
LONGEST = (2, 3)  # tokens of a term, at most: one of these, by the losses of the select role
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Chinese and Japanese are written without spaces: there a character is a token, elsewhere a word.
TOKEN = rf"(?u)[{CJK}]|[^\W{CJK}]{{2,}}"


class Terms:
    """Texts → TF-IDF of terms up to `longest` tokens; a term has its `idf`."""

    def __init__(self, terms: Sequence[str], idf_V: FloatArray, longest: int) -> None:
        self.terms, self.idf_V, self.longest = list(terms), idf_V, longest
        self._vectorizer = _vectorizer(longest, self.terms)
        self._vectorizer.idf_ = idf_V

    def matrix(self, frame: pl.DataFrame) -> csr_matrix:
        """[N, V]: of each text by itself, summed over the texts of a row.

        Joined, the texts of a user who wrote three would count no more than a single one.
        """
        texts = _texts(frame)
        if texts.is_empty():  # scikit-learn refuses an empty list
            return csr_matrix((frame.height, len(self.terms)), dtype=np.float32)
        # in an order of their own: a row's terms are summed alike, alone and in company
        distinct = texts["text"].unique().sort()
        at = texts["text"].replace_strict(distinct, np.arange(len(distinct)))
        once = np.ones(len(at), dtype=np.float32)
        shape = (frame.height, len(distinct))
        wrote = csr_matrix((once, (texts["row"].to_numpy(), at.to_numpy())), shape)
        summed = csr_matrix(wrote @ self._vectorizer.transform(distinct.to_list()))
        summed.sort_indices()
        return summed


def _fit_terms(fit: pl.DataFrame, longest: int) -> Terms:
    """The terms of up to `longest` tokens that the fit role's rows hold twice or more often.

    Raises UserError where there is no term to learn from.
    """
    if "texts" not in fit.columns:
        raise UserError("there are no texts")
    texts = _texts(fit)["text"]
    if not texts.str.contains(r"\p{L}").any():
        raise UserError("the texts of the fit role have no letters")
    vectorizer = _vectorizer(longest)
    try:
        vectorizer.fit(texts.to_list())
    except ValueError as error:  # the only way it fails on strings: nothing is left after pruning
        raise UserError("no term occurs in two texts of the fit role") from error
    return Terms(vectorizer.get_feature_names_out().tolist(), vectorizer.idf_, longest)


@dataclass(frozen=True)
class Linear:
    """A task's line over terms: logits, or logarithms of 1 + amount up to `highest`."""

    kind: Kind
    weight_V: FloatArray
    intercept: float
    highest: float = np.inf

    def raw(self, x_NV: csr_matrix) -> FloatArray:
        """(N,) logits, or expected amounts; the same bits for a row alone and in any company."""
        line = np.asarray(x_NV @ self.weight_V, dtype=np.float64) + self.intercept
        return line if self.kind == "binary" else np.expm1(np.clip(line, 0.0, self.highest))


def _fit_linear(
    kind: Kind, fit: tuple[csr_matrix, FloatArray], select: tuple[csr_matrix, FloatArray]
) -> tuple[Linear, float]:
    """L2-regularised, as strongly as the select role's loss says; the line, and that loss."""
    return _logistic(fit, select) if kind == "binary" else _ridge(fit, select)


def _logistic(
    fit: tuple[csr_matrix, FloatArray], select: tuple[csr_matrix, FloatArray]
) -> tuple[Linear, float]:
    """Logistic regression; C by the log-loss."""

    def loss(model: LogisticRegression) -> float:
        z = model.decision_function(select[0])
        return float(np.mean(np.logaddexp(0.0, z) - select[1] * z))

    best = LogisticRegression(C=INVERSE_PENALTIES[0], max_iter=1000).fit(*fit)
    for c in INVERSE_PENALTIES[1:]:  # each is slower than the last, and the loss has one valley
        weaker = LogisticRegression(C=c, max_iter=1000).fit(*fit)
        if loss(weaker) >= loss(best):
            break
        best = weaker
    line = Linear("binary", best.coef_[0].astype(np.float64), float(best.intercept_[0]))
    return line, loss(best)


def _ridge(
    fit: tuple[csr_matrix, FloatArray], select: tuple[csr_matrix, FloatArray]
) -> tuple[Linear, float]:
    """Ridge regression of ln(1 + amount); alpha by the squared error."""
    target, held_out = np.log1p(fit[1]), np.log1p(select[1])

    def loss(model: Ridge) -> float:
        return float(np.mean((model.predict(select[0]) - held_out) ** 2))

    candidates = [Ridge(alpha=alpha).fit(fit[0], target) for alpha in PENALTIES]
    best = min(candidates, key=loss)
    # a line may leave the range of what was ever seen
    highest = float(target.max())
    line = Linear("amount", best.coef_.astype(np.float64), float(best.intercept_), highest)
    return line, loss(best)


def _texts(frame: pl.DataFrame) -> pl.DataFrame:
    """`row` (its place) and `text`, of all that the rows' users wrote."""
    lists = frame.select(text="texts").with_row_index("row")
    return lists.explode("text").drop_nulls("text")


def _vectorizer(longest: int, terms: list[str] | None = None) -> TfidfVectorizer:
    return TfidfVectorizer(
        token_pattern=TOKEN,
        ngram_range=(1, longest),
        min_df=2,
        max_features=MAX_TERMS,
        sublinear_tf=True,
        dtype=np.float32,
        vocabulary=terms,
    )


class _Line(Strict):
    """A `Linear` as JSON."""

    weights: tuple[float, ...]
    intercept: float
    highest: float | None


class _File(Strict):
    """`terms.json`: the terms, the idf of each, a line a task."""

    longest: int
    terms: tuple[str, ...]
    idf: tuple[float, ...]
    lines: dict[str, _Line]

    @model_validator(mode="after")
    def _one_length(self) -> "_File":
        lengths = [len(self.idf), *(len(line.weights) for line in self.lines.values())]
        if set(lengths) != {len(self.terms)}:
            raise ValueError(f"{len(self.terms)} terms with {lengths} weights")
        return self


@dataclass(frozen=True)
class TermExpert:
    """The line of each task that has any, over the same terms."""

    terms: Terms
    lines: Mapping[str, Linear]

    @property
    def tasks(self) -> Collection[str]:
        return self.lines.keys()

    def read(self, frame: pl.DataFrame) -> csr_matrix:
        """[N, V] of a frame's rows."""
        return self.terms.matrix(frame)

    def raw(self, task: str, rows: csr_matrix) -> FloatArray:
        """(N,) logits, or expected amounts."""
        return self.lines[task].raw(rows)

    def without(self, rows: csr_matrix, parts: Sequence[Part]) -> csr_matrix:
        """As `Expert.without`: of a user who wrote nothing there is no term."""
        nothing = csr_matrix(rows.shape, dtype=rows.dtype)
        return vstack([rows, *(nothing if name == "text" else rows for name, _, _ in parts)], "csr")

    def write(self, folder: Path, tasks: Sequence[str]) -> None:
        """As one file."""
        lines = {
            name: _Line(
                weights=tuple(line.weight_V.tolist()),
                intercept=line.intercept,
                highest=line.highest if np.isfinite(line.highest) else None,
            )
            for name, line in self.lines.items()
        }
        terms, idf = tuple(self.terms.terms), tuple(self.terms.idf_V.tolist())
        file = _File(longest=self.terms.longest, terms=terms, idf=idf, lines=lines)
        (folder / FILE).write_text(file.model_dump_json(), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, tasks: Mapping[str, Task]) -> "TermExpert":
        """What `write` wrote. Raises ValueError for another file."""
        file = _File.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
        lines = {}
        for name, line in file.lines.items():
            highest = np.inf if line.highest is None else line.highest
            weight_V = np.array(line.weights)
            lines[name] = Linear(tasks[name].kind, weight_V, line.intercept, highest)
        return cls(Terms(file.terms, np.array(file.idf), file.longest), lines)


def fit_term_expert(
    fit: pl.DataFrame, select: pl.DataFrame, tasks: Mapping[str, Task]
) -> TermExpert:
    """Lines of the fit role's rows; their penalty, and how long terms are, by the select role.

    Both hold `texts` and the labels as `y_<task>`; the fit role has two outcomes or more of every
    task. A task without an outcome in the select role has no line. Raises UserError where nobody
    wrote anything to learn from.
    """
    fitted = [_of_terms(_fit_terms(fit, longest), fit, select, tasks) for longest in LONGEST]
    # the smaller geometric mean: log-losses and squared errors have no common unit
    return min(fitted, key=lambda one: math.prod(one[1]))[0]


def _of_terms(
    terms: Terms, fit: pl.DataFrame, select: pl.DataFrame, tasks: Mapping[str, Task]
) -> tuple[TermExpert, list[float]]:
    """The expert of such terms, and the select role's loss of each of its lines."""
    x_fit, x_select = terms.matrix(fit), terms.matrix(select)
    lines, losses = {}, []
    for name, task in tasks.items():
        judged = with_outcome(x_select, select, name, task.kind)
        if not len(judged[1]):
            continue
        learned = with_outcome(x_fit, fit, name, task.kind)
        lines[name], loss = _fit_linear(task.kind, learned, judged)
        losses.append(loss)
    return TermExpert(terms, lines), losses
