"""Calibrators of a trained model, fitted on the calibrate role's rows (never resampled), and
where a training is cross-fitted on those of each fold, as the training without it judges them.

With experts beside the network the same rows choose the weights of all: the stack is a part of the
calibration, of one parameter more an expert. Users are taken whole, however many rows they have.
Shape: N rows with a known outcome.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from models.data.features import Features
from models.data.schema import UserError
from models.data.tasks import Task
from models.scoring.calibrate import (
    AmountCalibrator,
    BinaryCalibrator,
    FloatArray,
    fit_amount,
    fit_binary,
)
from models.scoring.clusters import IntArray, numbered, resampled
from models.scoring.expert import Experts
from models.scoring.predict import Predictor
from models.scoring.stack import (
    ALONE,
    NETWORK,
    TaskStack,
    Values,
    Weights,
    choose,
    combine,
    fit_weights,
)

REPLICATES = 20  # bootstrap samples whose calibrators give a probability its interval


@dataclass(frozen=True)
class Calibration:
    """A calibrator a task, the replicates of each binary one, and how experts have their say.

    `stack`: by task; empty without experts.
    """

    calibrators: dict[str, BinaryCalibrator | AmountCalibrator]
    replicates: dict[str, tuple[BinaryCalibrator, ...]]
    stack: dict[str, TaskStack]


@dataclass(frozen=True)
class Judged:
    """What a model's sources say of rows, and what came of these: by task, where it is known.

    `values`: source → (N,) raw values; `outcomes`: (N,); `users`: (N,) which rows are of one user,
    as numbers that mean nothing elsewhere.
    """

    values: Mapping[str, Values]
    outcomes: Mapping[str, FloatArray]
    users: Mapping[str, IntArray]


def judge(
    predictor: Predictor,
    rows: Features,
    tasks: Mapping[str, Task],
    experts: Experts | None = None,
) -> Judged:
    """What the network, and experts beside it, say of rows that hold outcomes as `y_<task>`."""
    network = predictor.raw(rows)
    values: dict[str, dict[str, FloatArray]] = {name: {NETWORK: network[name]} for name in tasks}
    for source, expert in (experts or {}).items():
        seen = expert.read(rows.frame)
        for name in expert.tasks:
            values[name][source] = expert.raw(name, seen)
    labels = {name: rows.frame[f"y_{name}"] for name in tasks}
    known = {name: label.is_not_null().to_numpy() for name, label in labels.items()}
    keys = rows.frame["user_key"].to_numpy()
    return Judged(
        {name: {s: v[known[name]] for s, v in own.items()} for name, own in values.items()},
        {name: label.drop_nulls().to_numpy() for name, label in labels.items()},
        {name: numbered(keys[own]) for name, own in known.items()},
    )


def calibrators_of(judged: Sequence[Judged], tasks: Mapping[str, Task], seed: int) -> Calibration:
    """Calibrators of the network, or of its stack with experts.

    `judged`: of the calibrate role; before it, of the folds; each has other users.
    Raises UserError for a task without labels, or with one class only.
    """
    rng = np.random.default_rng(seed)
    calibrators: dict[str, BinaryCalibrator | AmountCalibrator] = {}
    replicates: dict[str, tuple[BinaryCalibrator, ...]] = {}
    stacks: dict[str, TaskStack] = {}
    with threadpool_limits(1, user_api="blas"):  # threads on such small matrices cost 25 times
        for name, task in tasks.items():
            y = np.concatenate([part.outcomes[name] for part in judged])
            users = _numbered_on([part.users[name] for part in judged])
            sources = judged[0].values[name]
            own = {s: np.concatenate([part.values[name][s] for part in judged]) for s in sources}
            try:
                if task.kind == "amount":
                    # a net refund is no negative purchase: the amount is what was spent
                    amounts = _amount(own, np.maximum(y, 0.0), users, seed)
                    calibrators[name], stacks[name] = amounts
                    continue
                binary = _binary(own, y, users, seed, rng)
                calibrators[name], replicates[name], stacks[name] = binary
            except UserError as error:
                raise UserError(f"tasks.{name}: role calibrate: {error}") from error
    stacked = any(len(own) > 1 for own in judged[0].values.values())
    return Calibration(calibrators, replicates, stacks if stacked else {})


def _numbered_on(parts: Sequence[IntArray]) -> IntArray:
    """The users of all parts, those of each counted on from the ones before."""
    before = np.cumsum([0, *(part.max(initial=-1) + 1 for part in parts[:-1])])
    return np.concatenate([part + own for part, own in zip(parts, before, strict=True)])


def _amount(
    values: Values, y: FloatArray, users: IntArray, seed: int
) -> tuple[AmountCalibrator, TaskStack]:
    """The calibrator of an amount, and how its value is made of the sources."""
    alone = {source: fit_amount(value, y) for source, value in values.items()}
    stacked, loss = choose("amount", values, y, users, seed)
    if not stacked:
        return alone[NETWORK], TaskStack(weights=ALONE, cv_loss=loss, alone=alone)
    weights = fit_weights("amount", values, y)
    calibrator = fit_amount(combine("amount", weights, values), y)
    return calibrator, TaskStack(weights=weights, cv_loss=loss, alone=alone)


def _binary(
    values: Values, y: FloatArray, users: IntArray, seed: int, rng: np.random.Generator
) -> tuple[BinaryCalibrator, tuple[BinaryCalibrator, ...], TaskStack]:
    """The calibrator of a probability, its bootstrap replicates, how its value is made."""
    alone = {s: fit_binary(value, y, users=users, seed=seed) for s, value in values.items()}
    stacked, loss = choose("binary", values, y, users, seed)

    def weights_of(rows: NDArray[np.int64]) -> Weights:
        own = {source: value[rows] for source, value in values.items()}
        return fit_weights("binary", own, y[rows]) if stacked else ALONE

    weights = weights_of(np.arange(len(y)))
    value = combine("binary", weights, values)
    calibrator = fit_binary(value, y, users=users, seed=seed) if stacked else alone[NETWORK]
    replicates, shares = [], []
    for _ in range(REPLICATES):
        sample, draws = resampled(users, rng)
        if 0 < y[sample].mean() < 1:
            shares.append(weights_of(sample))
            drawn = combine("binary", shares[-1], values)[sample]
            replicates.append(fit_binary(drawn, y[sample], users=draws, seed=seed, folds=2))
    stack = TaskStack(weights=weights, replicates=tuple(shares), cv_loss=loss, alone=alone)
    return calibrator, tuple(replicates), stack
