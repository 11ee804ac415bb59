"""The evaluation of a model on the test role: every number of the report, as JSON."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import polars as pl
import polars.selectors as cs
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import expit

from models.data.schema import UserError
from models.data.strict import Strict
from models.data.tasks import Roles, Task
from models.scoring.baselines import Baselines
from models.scoring.clusters import IntArray, count_of, numbered
from models.scoring.comparison import (
    MODEL,
    AmountTask,
    BinaryTask,
    Cut,
    Truth,
    compare_amount,
    compare_binary,
)
from models.scoring.curves import Number
from models.scoring.policy import PolicyConfig
from models.scoring.portfolio import (
    DecisionRow,
    GradeRow,
    Histogram,
    ModalityRow,
    TierRow,
    decision_table,
    grade_table,
    modality_table,
    score_histogram,
    tier_table,
)
from models.scoring.scorecard import ScorecardConfig
from models.scoring.stack import NETWORK

FloatArray = NDArray[np.float64]
RESAMPLES = 500
LIKELY = Cut(name="more likely than not", probability=0.5)


class Epoch(Strict):
    """One epoch of training; losses are means over rows with a label, weighted over tasks."""

    epoch: int
    train_loss: Number
    select_loss: Number
    seconds: Number = None
    best: bool = False


class About(Strict):
    """What was evaluated: enough to do it again. `config` is the configuration as text.

    `kept`: the tabular columns that the network sees, where it does not see all.
    """

    title: str
    made_at: str
    model_sha256: str
    data_versions: dict[str, str]
    seed: int
    config: str
    currency: str = ""
    kept: tuple[str, ...] = ()


class Evaluation(Strict):
    """`model_dump_json` and `model_validate_json` give the same back; NaN is null.

    `accounts`: job → what it counted, in the job's own order.
    """

    about: About
    tasks: dict[str, Annotated[BinaryTask | AmountTask, Field(discriminator="kind")]]
    pd_task: str
    users: int
    grades: tuple[GradeRow, ...]
    decisions: tuple[DecisionRow, ...]
    tiers: tuple[TierRow, ...]
    scores: Histogram
    weights: tuple[ModalityRow, ...]
    training: tuple[Epoch, ...] = ()
    accounts: dict[str, dict[str, int]] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


def evaluate(
    test: pl.DataFrame,
    predictions: pl.DataFrame,
    baselines: Baselines,
    *,
    about: About,
    tasks: Mapping[str, Task],
    roles: Roles,
    scorecard: ScorecardConfig,
    policy: PolicyConfig,
    oracle: pl.DataFrame | None = None,
    withheld: Sequence[str] = (),
    training: Iterable[Mapping[str, Any]] = (),
    accounts: Mapping[str, Mapping[str, int]] | None = None,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Everything about the test role.

    `test`: row, user_key, as_of and one `y_<task>` a task, null where unknown. `predictions`:
    row; one struct a task with `probability` or `amount`; score, grade; structs weights and
    decision (action, review_level, limit, tier); of a stack `alone`, as `Scorer.alone` gives it.
    `baselines`: of the rows of `test`, in order.
    `oracle`: user_key, as_of, task, probability (or mean), value, observed (false: hidden from
    the lender), and the `withheld` columns, the probability without one modality. `training`:
    dictionaries with the fields of `Epoch`.

    Raises UserError when no row was scored, or the oracle has two rows of a task and time.
    """
    rows = test.select("row", "user_key", "as_of", *(f"y_{name}" for name in tasks))
    scored = rows.with_columns(order=pl.int_range(pl.len())).join(
        predictions.select(
            "row", *tasks, "score", "grade", "weights", "decision", cs.matches("^alone$")
        ),
        on="row",
        how="inner",
        maintain_order="left",
    )
    if scored.is_empty():
        raise UserError("evaluate: no row of the test role was scored")
    at = scored["order"].to_numpy()
    whose = numbered(scored["user_key"].to_numpy())
    results: dict[str, BinaryTask | AmountTask] = {}
    for name, task in tasks.items():
        y = _floats(scored[f"y_{name}"])
        field = "probability" if task.kind == "binary" else "amount"
        others = {k: values[at] for k, values in baselines.predictions.get(name, {}).items()}
        model = _floats(scored[name].struct.field(field))
        contenders = {MODEL: model, **_sources(scored, name, model), **others}
        truth = _truth(name, scored, oracle, withheld)
        if task.kind == "amount":
            results[name] = compare_amount(
                y, contenders, users=whose, seed=about.seed, resamples=resamples, truth=truth
            )
            continue
        cuts = cuts_of(name, roles, scorecard, policy)
        results[name] = compare_binary(
            y, contenders, cuts, users=whose, seed=about.seed, resamples=resamples, truth=truth
        )
    users = scored.with_columns(
        pd=pl.col(roles.pd).struct.field("probability"), outcome=pl.col(f"y_{roles.pd}")
    )
    return Evaluation(
        about=about,
        tasks=results,
        pd_task=roles.pd,
        users=users.height,
        grades=grade_table(users),
        decisions=decision_table(users),
        tiers=tier_table(users),
        scores=score_histogram(users),
        weights=modality_table(users),
        training=tuple(_epoch(entry) for entry in training),
        accounts={job: dict(account) for job, account in (accounts or {}).items()},
        notes=(*baselines.notes, *_notes(test.height, whose, results)),
    )


def _sources(scored: pl.DataFrame, task: str, model: FloatArray) -> dict[str, FloatArray]:
    """What each source of the task's stack says alone; not the network where it is the model."""
    if "alone" not in scored.columns:
        return {}
    alone = scored["alone"].struct.field(task).struct.unnest()
    sources = {column.name: _floats(column) for column in alone.iter_columns()}
    if np.array_equal(sources[NETWORK], model):
        del sources[NETWORK]
    return sources


def cuts_of(
    task: str, roles: Roles, scorecard: ScorecardConfig, policy: PolicyConfig
) -> tuple[Cut, ...]:
    """The policy's thresholds of a task as probabilities; 0.5 where the policy has none.

    A threshold of 0 is none: scores are clipped there, so that nobody's lies below.
    """
    if task == roles.pd:
        named = (("declined", policy.decline_below), ("not approved", policy.approve_at))
        cuts = tuple(Cut(name, _pd_at(score, scorecard), score) for name, score in named if score)
        return cuts or (LIKELY,)
    if task == roles.fraud:
        return (
            Cut("declined as fraud", policy.fraud_decline_at),
            Cut("reviewed as fraud", policy.fraud_review_at),
        )
    return (LIKELY,)


def _pd_at(score: float, scorecard: ScorecardConfig) -> float:
    """The PD of a score: the inverse of the scorecard's line."""
    return float(expit((scorecard.offset - score) / scorecard.factor))


def _truth(
    task: str, scored: pl.DataFrame, oracle: pl.DataFrame | None, withheld: Sequence[str]
) -> Truth | None:
    if oracle is None:
        return None
    own = oracle.filter(pl.col("task") == task)
    if own.is_empty():
        return None
    key = ["user_key", "as_of"]
    if own.select(key).is_duplicated().any():
        raise UserError(f"oracle: task {task!r} has two rows of one user and time")
    own = own.with_columns(pl.col("as_of").cast(scored.schema["as_of"]))
    known = scored.select(key).join(
        own.select(*key, "probability", "value", "observed", *withheld),
        on=key,
        how="left",
        maintain_order="left",
    )
    return Truth(
        expected=_floats(known["probability"]),
        value=_floats(known["value"]),
        hidden=known["observed"].eq(False).fill_null(False).to_numpy(),
        withheld={name: _floats(known[name]) for name in withheld},
    )


def _floats(column: pl.Series) -> FloatArray:
    return np.asarray(column.cast(pl.Float64).to_numpy(), dtype=np.float64)


def _epoch(entry: Mapping[str, Any]) -> Epoch:
    return Epoch.model_validate({k: v for k, v in entry.items() if k in Epoch.model_fields})


def _notes(
    rows: int, whose: IntArray, results: Mapping[str, BinaryTask | AmountTask]
) -> Iterable[str]:
    scored, users = len(whose), count_of(whose, whose >= 0)
    if scored < rows:
        yield f"{rows - scored} of {rows} test rows were not scored and are left out"
    if users < scored:
        yield (
            f"the {scored} test rows are of {users} users: each as-of time of a user counts as a "
            "user here; intervals take users whole, but those of bins and groups, and the ECE's "
            "band, take rows for independent"
        )
    for name, result in results.items():
        if not result.known:
            yield f"tasks.{name}: no known outcome in the test role"
        elif isinstance(result, BinaryTask) and not result.contenders[0].roc.x:
            yield f"tasks.{name}: one outcome only in the test role; rank metrics are unknown"
        oracle = result.oracle
        if oracle is not None and oracle.rows < result.known:
            yield f"tasks.{name}: the oracle speaks of {oracle.rows} of {result.known} known rows"
