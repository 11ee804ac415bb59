"""What a study came to: every number of its report, as plain records."""

import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from models.data.strict import Strict
from tuning.config import Objective
from tuning.confirm import confirmed, winning
from tuning.parameters import Value
from tuning.policy import pareto
from tuning.search import RUNS, ended, figure_of, point_of, whole

How = Literal["whole", "stopped", "failed"]
HOW: dict[TrialState, How] = {
    TrialState.COMPLETE: "whole",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}


class TrialRow(Strict):
    """One trial. `figures`: of the objectives, in their order, as they are written in print."""

    number: int
    how: How
    point: dict[str, Value]
    figures: tuple[float, ...]
    epochs: int
    seconds: float
    curve: tuple[float, ...] = ()  # of the first training: the first objective, epoch by epoch


class Candidate(Strict):
    """A trial confirmed with fresh seeds, by the first objective."""

    number: int
    defaults: bool
    searched: float | None  # the figure that the search saw
    figures: tuple[float, ...]
    mean: float
    deviation: float | None  # over seeds


class Gain(Strict):
    """How much better the winner is than the defaults, seed by seed; more than 0 is better."""

    mean: float
    error: float  # standard error of the mean


class Study(Strict):
    """Everything about a search. `defaults`: the configuration's own values."""

    name: str
    objectives: tuple[Objective, ...]
    trials: tuple[TrialRow, ...]
    parameters: tuple[str, ...]
    defaults: dict[str, Value]
    importances: dict[str, float]
    epochs: int
    epochs_unstopped: int
    winner: int | None = None
    front: tuple[int, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    gain: Gain | None = None  # None: not confirmed, or the defaults won

    @property
    def saved(self) -> float:
        """The share of epochs that early stopping spared."""
        return 1 - self.epochs / self.epochs_unstopped if self.epochs_unstopped else 0.0

    def better(self, left: float, right: float) -> bool:
        """Whether a figure of the first objective is better than another."""
        return left > right if self.objectives[0] == "auc" else left < right


def summary(
    study: optuna.Study,
    objectives: Sequence[Objective],
    parameters: Sequence[str],
    defaults: Mapping[str, Value],
) -> Study:
    """The records of a study; of one that has not ended, so far."""
    done, several = ended(study), len(objectives) > 1
    rows = [_row(trial, objectives) for trial in done]
    trained = [row for row in rows if row.how != "failed"]
    longest = max((row.epochs for row in trained if row.how == "whole"), default=0)
    complete = {trial.number: trial.values for trial in whole(study)}
    return Study(
        name=study.study_name,
        objectives=tuple(objectives),
        trials=tuple(rows),
        parameters=tuple(parameters),
        defaults=dict(defaults),
        importances=_importances(study, done),
        epochs=sum(row.epochs for row in trained),
        epochs_unstopped=sum(max(row.epochs, longest) for row in trained),
        winner=winning(study) if complete and not several else None,
        front=tuple(pareto(complete)) if several else (),
        candidates=tuple(_candidates(study, objectives[0], defaults)),
        gain=_gain(study, defaults) if complete and not several else None,
    )


def _row(trial: FrozenTrial, objectives: Sequence[Objective]) -> TrialRow:
    runs = trial.user_attrs.get(RUNS, [])
    figures: tuple[float, ...] = ()
    if trial.values:
        pairs = zip(objectives, trial.values, strict=True)
        figures = tuple(figure_of(name, value) for name, value in pairs)
    return TrialRow(
        number=trial.number,
        how=HOW[trial.state],
        point=point_of(trial),
        figures=figures,
        epochs=sum(map(len, runs)),
        seconds=sum(epoch["seconds"] for epochs in runs for epoch in epochs),
        curve=tuple(epoch[objectives[0]] for epoch in (runs[0] if runs else [])),
    )


def _candidates(
    study: optuna.Study, objective: Objective, defaults: Mapping[str, Value]
) -> list[Candidate]:
    """Best mean first."""
    found = []
    for number, by_seed in confirmed(study).items():
        losses = [loss for loss in by_seed.values() if loss is not None]
        if losses:
            trial = study.trials[number]
            seen = trial.values[0] if trial.state == TrialState.COMPLETE else None
            row = Candidate(
                number=number,
                defaults=point_of(trial) == defaults,
                searched=None if seen is None else figure_of(objective, seen),
                figures=tuple(figure_of(objective, loss) for loss in losses),
                mean=figure_of(objective, statistics.fmean(losses)),
                deviation=statistics.stdev(losses) if len(losses) > 1 else None,
            )
            found.append((statistics.fmean(losses), number, row))
    return [row for _, _, row in sorted(found, key=lambda one: one[:2])]


def _gain(study: optuna.Study, defaults: Mapping[str, Value]) -> Gain | None:
    losses, won = confirmed(study), winning(study)
    plain = next((n for n in losses if point_of(study.trials[n]) == defaults), None)
    if plain is None or plain == won:
        return None
    pairs = [(losses[plain].get(seed), loss) for seed, loss in losses.get(won, {}).items()]
    gains = [before - now for before, now in pairs if before is not None and now is not None]
    if len(gains) < 2:
        return None
    error = statistics.stdev(gains) / len(gains) ** 0.5
    return Gain(mean=statistics.fmean(gains), error=error)


def _importances(study: optuna.Study, trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Parameter → share of what decides whether a trial is among the best (PED-ANOVA).

    A trial that was stopped counts with the value that it had then. Empty for too few trials.
    """
    copy = optuna.create_study(directions=study.directions)
    for trial in trials:
        if trial.values:
            copy.add_trial(
                optuna.create_trial(
                    values=trial.values, params=trial.params, distributions=trial.distributions
                )
            )
    varied = {name for trial in copy.trials for name in trial.params}
    if len(copy.trials) < 4 or not varied:
        return {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some regimes for parameter")  # had few trials
        shares: dict[str, float] = optuna.importance.get_param_importances(copy)
    return shares
