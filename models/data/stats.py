"""What is fitted on the fit role and travels with the model: vocabulary, quantiles, base rates.

Each part of the fit role has a `Summary` of a bounded size; merged, they give the `Stats`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import ndtri

from models.data.features import Features
from models.data.schema import UserError
from models.data.sketch import Moments, Sketch, pairwise
from models.data.strict import Strict
from models.data.tasks import Task
from models.data.vocabulary import Vocabulary

QUANTILES = 65
TAIL = 0.005  # scores are those of the quantiles clipped to [TAIL, 1 − TAIL]: ± 2.58


class Scale(Strict):
    """A monotone map of a column to about a standard normal: knots, and the score at each.

    `median`: the score of the fit role's median; None where nothing was known.
    """

    knots: tuple[float, ...]
    scores: tuple[float, ...]
    median: float | None

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores by linear interpolation, flat beyond the ends; NaN stays NaN."""
        if not self.knots:
            return np.where(np.isnan(values), np.nan, 0.0)
        return np.asarray(np.interp(values, self.knots, self.scores), dtype=np.float64)


class Target(Strict):
    """The base rate of a task: the share of positives, and the logarithm of positive amounts."""

    rate: float
    log_mean: float = 0.0
    log_std: float = 1.0


class Stats(Strict):
    """Fitted on the fit role only; converts new data exactly as it did the training data.

    `kept`: the tabular columns that the network sees; None: all. `absent`: modalities that nobody
    of the fit role has, so that nothing is known of what they say.
    """

    vocabulary: Vocabulary
    tabular: dict[str, Scale]
    social: dict[str, Scale]
    amount: Scale
    targets: dict[str, Target]
    kept: tuple[str, ...] | None = None
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """What `Stats` need to know of some rows of the fit role, in a size that does not grow."""

    tabular: dict[str, Sketch]
    social: dict[str, Sketch]
    amount: Sketch
    targets: dict[str, Moments]
    having: dict[str, int]  # modality → rows that have it

    @classmethod
    def of(cls, fit: Features, labels: pl.DataFrame, tasks: Iterable[str]) -> "Summary":
        """The summary of features; `labels` holds `y_<task>` with nulls, row by row."""
        return cls(
            tabular={c: Sketch.of(fit.frame[c]) for c in fit.tabular},
            social={c: Sketch.of(fit.frame[c]) for c in fit.social},
            amount=Sketch.of(fit.frame["events_amount"].explode()),
            targets={name: Moments.of(labels[f"y_{name}"]) for name in tasks},
            having=fit.having(),
        )

    def merge(self, other: "Summary") -> "Summary":
        """The summary of the rows of both, which have the same columns and tasks."""
        return Summary(
            tabular={c: one.merge(other.tabular[c]) for c, one in self.tabular.items()},
            social={c: one.merge(other.social[c]) for c, one in self.social.items()},
            amount=self.amount.merge(other.amount),
            targets={name: one.merge(other.targets[name]) for name, one in self.targets.items()},
            having={name: rows + other.having[name] for name, rows in self.having.items()},
        )

    @property
    def rank_error(self) -> float:
        """By what share of all ranks the quantiles of a column may be off, at most."""
        sketches = [*self.tabular.values(), *self.social.values(), self.amount]
        return max((s.error / s.n for s in sketches if s.n), default=0.0)

    def to_frame(self) -> pl.DataFrame:
        """(value, weight, part, name, error): to be written to a file and read again."""
        sketches = [
            *(("tabular", name, sketch) for name, sketch in self.tabular.items()),
            *(("social", name, sketch) for name, sketch in self.social.items()),
            ("amount", "", self.amount),
            *(
                ("targets", name, Sketch(np.r_[m.mean, m.squares], np.r_[m.known, m.positive]))
                for name, m in self.targets.items()
            ),
            *(
                ("having", name, Sketch(np.array([float(rows)]), np.ones(1, dtype=np.int64)))
                for name, rows in self.having.items()
            ),
        ]
        frames = [
            pl.DataFrame({"value": s.values, "weight": s.weights}).with_columns(
                part=pl.lit(part), name=pl.lit(name), error=pl.lit(s.error, dtype=pl.Int64)
            )
            for part, name, s in sketches
        ]
        return pl.concat(frames)

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, fit: Features, tasks: Iterable[str]) -> "Summary":
        """The summary that was written, of the columns that `fit` has and these tasks."""
        rows = frame.partition_by("part", "name", as_dict=True, maintain_order=True)

        def sketch(part: str, name: str) -> Sketch:
            one = rows.get((part, name), frame.clear())  # a column of nothing has no point
            error = one["error"][0] if one.height else 0
            return Sketch(one["value"].to_numpy(), one["weight"].to_numpy(), error)

        targets = {name: sketch("targets", name) for name in tasks}
        return cls(
            tabular={c: sketch("tabular", c) for c in fit.tabular},
            social={c: sketch("social", c) for c in fit.social},
            amount=sketch("amount", ""),
            targets={
                name: Moments(*one.weights.tolist(), *one.values.tolist())
                for name, one in targets.items()
            },
            having={name: int(sketch("having", name).values[0]) for name in fit.having()},
        )


def merged(parts: Iterable[Summary]) -> Summary | None:
    """The summary of all parts, in their order; None where there is none."""
    return pairwise(parts, Summary.merge)


def stats_of(vocabulary: Vocabulary, summary: Summary, tasks: Mapping[str, Task]) -> Stats:
    """The stats that a summary of the whole fit role gives. Raises UserError as `target_of`."""
    targets = {name: target_of(name, task, summary.targets[name]) for name, task in tasks.items()}
    return Stats(
        vocabulary=vocabulary,
        tabular={c: scale_of(sketch) for c, sketch in summary.tabular.items()},
        social={c: scale_of(sketch) for c, sketch in summary.social.items()},
        amount=scale_of(summary.amount),
        targets=targets,
        absent=tuple(name for name, rows in summary.having.items() if rows == 0),
    )


def fit_stats(
    vocabulary: Vocabulary, fit: Features, labels: pl.DataFrame, tasks: Mapping[str, Task]
) -> Stats:
    """Stats of the fit role's features; `labels` holds `y_<task>` with nulls, row by row."""
    return stats_of(vocabulary, Summary.of(fit, labels, tasks), tasks)


def fit_scale(values: pl.Series) -> Scale:
    """`scale_of` the known values."""
    return scale_of(Sketch.of(values))


def scale_of(sketch: Sketch) -> Scale:
    """Knots at the quantiles of the known values; tied quantiles share their mean score."""
    if sketch.n == 0:
        return Scale(knots=(), scores=(), median=None)
    at = np.linspace(0.0, 1.0, QUANTILES)
    scores = ndtri(np.clip(at, TAIL, 1 - TAIL))
    knots, which = np.unique(sketch.quantiles(at), return_inverse=True)
    if len(knots) == 1:
        return Scale(knots=(), scores=(), median=0.0)
    mean = np.bincount(which, weights=scores) / np.bincount(which)
    median = float(mean[which[QUANTILES // 2]])
    return Scale(knots=tuple(knots.tolist()), scores=tuple(mean.tolist()), median=median)


def fit_target(name: str, task: Task, labels: pl.Series) -> Target:
    """`target_of` the labels."""
    return target_of(name, task, Moments.of(labels))


def target_of(name: str, task: Task, labels: Moments) -> Target:
    """The base rate of a task. Raises UserError when there is nothing to learn."""
    if labels.known == 0:
        raise UserError(f"tasks.{name}: no label in the fit role")
    rate = labels.positive / labels.known
    if task.kind == "binary":
        if rate in (0.0, 1.0):
            raise UserError(f"tasks.{name}: only one class in the fit role (all {int(rate)})")
        return Target(rate=rate)
    if labels.positive < 2:
        raise UserError(f"tasks.{name}: fewer than two positive amounts in the fit role")
    std = math.sqrt(labels.squares / (labels.positive - 1))
    return Target(rate=min(rate, 1 - 1e-6), log_mean=labels.mean, log_std=max(std, 1e-3))


def logit(rate: float) -> float:
    """Log odds of a rate."""
    return math.log(rate / (1 - rate))
