"""A search: an Optuna study that is asked for jobs and told of every epoch of theirs.

The study is the only state. A search that was cut off goes on from what stands in it: trials that
ended are not run again; those left running are closed, and their points queued anew.
"""

import json
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import (
    CategoricalDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from models.data.schema import UserError
from tuning.config import Objective, TuneConfig
from tuning.parameters import Value
from tuning.space import Distribution, Point, Space

IDENTITY = "searched"  # of a study: all that its trials depend on, but their points
POINT = "point"  # of a trial: its values, and the keys that they unset
RUNS = "runs"  # of a trial: its trainings' epochs
CONTINUES = "continues"  # of a trial: the first one of its point, which was interrupted
REASON = "reason"  # why a trial has no value …
IMPOSSIBLE, INTERRUPTED = "impossible", "interrupted"  # … when it does not count
RANDOM = 5  # trials before the sampler's model; 10, Optuna's default, waste half of a short search
QUALITY: tuple[Objective, ...] = ("log_loss", "auc")
DRAWS = 30  # impossible points in a row after which the space is at fault
Epochs = list[dict[str, Any]]  # of a training: `Epoch.to_dict()`, and the objectives


@dataclass(frozen=True)
class Job:
    """One point to train: once a seed (added to the configuration's) and fold."""

    number: int  # of the study's trial
    key: str  # where its checkpoints are; a trial that is run again has its first one's
    point: Point
    seeds: tuple[int, ...]
    folds: int | None = None
    share: float = 1.0

    @property
    def runs(self) -> list[tuple[int, int | None]]:
        """The trainings, in order: seed and fold."""
        folds = [None] if self.folds is None else list(range(self.folds))
        return [(seed, fold) for seed in self.seeds for fold in folds]


@dataclass
class _Running:
    """A job under way: its Optuna trial, and what has been heard of it."""

    trial: Trial
    runs: dict[int, Epochs] = field(default_factory=dict)
    curve: dict[int, float] = field(default_factory=dict)
    stopped: bool = False


def open_study(
    storage: str | BaseStorage, config: TuneConfig, identity: Mapping[str, Any]
) -> optuna.Study:
    """The study of the configuration's name, made if it is not there.

    Raises UserError where a study of the same name searched something else.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage,
        study_name=config.name,
        directions=["minimize"] * len(config.objectives),
        load_if_exists=True,
    )
    wanted = json.loads(json.dumps(identity))
    known = study.user_attrs.get(IDENTITY)
    if known is None:
        study.set_user_attr(IDENTITY, wanted)
    elif known != wanted:
        raise UserError(
            f"tune: the study {config.name!r} is another search: {_difference(known, wanted)}; "
            "give this one a name of its own"
        )
    return study


def load_study(storage: str | BaseStorage, name: str) -> optuna.Study:
    """A study that is there. Raises UserError."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        raise UserError(f"there is no study {name!r}; run `raycredit tune` first") from error


def loss_of(objective: Objective, epoch: Mapping[str, Any]) -> float:
    """What is minimised, of an epoch's figures."""
    value = float(epoch[objective])
    return 1 - value if objective == "auc" else value


def figure_of(objective: Objective, loss: float) -> float:
    """The figure, of what is minimised."""
    return 1 - loss if objective == "auc" else loss


def kept(epochs: Epochs) -> dict[str, Any]:
    """The epoch that training keeps: the last that was the best so far."""
    return [epoch for epoch in epochs if epoch["best"]][-1]


class Search:
    """Gives out jobs. `epochs` is the most that one training lasts."""

    def __init__(
        self, study: optuna.Study, space: Space, config: TuneConfig, epochs: int, seed: int
    ) -> None:
        self.study, self.space, self.config, self.epochs = study, space, config, epochs
        self.running: dict[int, _Running] = {}
        grid = space.grid() if config.sampler == "grid" else None
        self.trials = config.trials if grid is None else len(grid)
        # another stream after a resumption: the first trials' draws are not repeated
        study.sampler = _sampler(config, seed + len(study.trials))
        for point in [space.defaults()] if grid is None else grid:
            study.enqueue_trial(point, skip_if_exists=True)
        self._close_interrupted()

    def next(self) -> Job | None:
        """What to train next; None when all is given out. Raises UserError where no draw is
        a possible configuration."""
        if len(ended(self.study)) + len(self.running) >= self.trials:
            return None
        for _ in range(DRAWS):
            trial = self.study.ask()
            point = self.space.draw(lambda path, how, trial=trial: _suggest(trial, path, how))  # type: ignore[misc]
            reason = self.space.impossible(point)
            if reason is None:
                self.running[trial.number] = _Running(trial)
                trial.set_user_attr(POINT, point)
                seeds = tuple(range(self.config.seeds))
                key = str(trial.user_attrs.get(CONTINUES, trial.number))
                return Job(trial.number, key, point, seeds, self.config.folds, self.config.share)
            self._close(trial, IMPOSSIBLE)
        raise UserError(f"tune.space: {DRAWS} draws, none of them possible: {reason}")

    @property
    def finished(self) -> bool:
        """Whether every trial has ended."""
        return not self.running and len(ended(self.study)) >= self.trials

    def report(self, job: Job, run: int, epochs: Epochs) -> bool:
        """Take down a training's epochs so far; whether the trial is to stop here."""
        state = self.running[job.number]
        state.runs[run] = epochs
        if len(self.config.objectives) > 1:  # no order among unfinished trials
            return False
        for count in range(1, len(epochs) + 1):
            step = run * self.epochs + count
            if step not in state.curve:
                so_far = [state.runs[k] for k in range(run)] + [epochs[:count]]
                state.curve[step] = self._losses(so_far)[0]
                state.trial.report(state.curve[step], step)
        if self.config.halving is None or not epochs:
            return False
        others = [
            t.intermediate_values
            for t in self.study.get_trials(deepcopy=False)
            if t.number != job.number and t.user_attrs.get(REASON) != INTERRUPTED
        ]
        step, last = run * self.epochs + len(epochs), self.epochs * len(job.runs)
        state.stopped = self.config.halving.stops(step, last, state.curve, others)
        return state.stopped

    def end(self, job: Job, failed: str | None = None) -> str:
        """Close a trial that trained to its end, or was told to stop, or `failed`; a line of it."""
        state = self.running.pop(job.number)
        runs = [state.runs[k] for k in sorted(state.runs)]
        state.trial.set_user_attr(RUNS, runs)
        if failed is not None:
            self._close(state.trial, failed)
            return f"trial {job.number} failed: {failed}"
        losses = self._losses(runs)
        if state.stopped:
            self.study.tell(state.trial, state=TrialState.PRUNED)
            step = max(state.curve)
            epochs = f"{step} epoch{'s' if step > 1 else ''}"
            return f"trial {job.number} stopped after {epochs}: {self._words(losses)}"
        self.study.tell(state.trial, losses)
        words = self._words(losses) if len(runs) == 1 else self._spread(runs)
        return f"trial {job.number}: {words}"

    def _words(self, losses: Sequence[float]) -> str:
        pairs = zip(self.config.objectives, losses, strict=True)
        return ", ".join(f"{name} {figure_of(name, loss):.4f}" for name, loss in pairs)

    def _spread(self, runs: Sequence[Epochs]) -> str:
        """What several trainings came to, by the objectives and by what is judged by anyway."""
        best = [kept(epochs) for epochs in runs]
        words = []
        for name in dict.fromkeys((*self.config.objectives, *QUALITY)):
            if all(name in epoch for epoch in best):
                figures = [float(epoch[name]) for epoch in best]
                mean, deviation = statistics.fmean(figures), statistics.stdev(figures)
                words.append(f"{name} {mean:.4f} ± {deviation:.4f}")
        return f"{', '.join(words)}, mean and standard deviation of {len(runs)} trainings"

    def _losses(self, runs: Sequence[Epochs]) -> list[float]:
        """Means over trainings, each of the epoch that it keeps."""
        best = [kept(epochs) for epochs in runs]
        return [
            statistics.fmean(loss_of(objective, epoch) for epoch in best)
            for objective in self.config.objectives
        ]

    def _close(self, trial: Trial, reason: str) -> None:
        trial.set_user_attr(REASON, reason)
        self.study.tell(trial, state=TrialState.FAIL)

    def _close_interrupted(self) -> None:
        for left in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            first = left.user_attrs.get(CONTINUES, left.number)
            self.study.enqueue_trial(left.params, user_attrs={CONTINUES: first})
            self._close(Trial(self.study, left._trial_id), INTERRUPTED)


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ended by themselves: whole, stopped early, or failed."""
    closed = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    trials = study.get_trials(deepcopy=False, states=closed)
    return [t for t in trials if t.user_attrs.get(REASON) not in (IMPOSSIBLE, INTERRUPTED)]


def point_of(trial: FrozenTrial) -> Point:
    """What a trial's configuration has in other places than the one searched."""
    point: Point = trial.user_attrs[POINT]
    return point


def whole(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that trained to their end."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _sampler(config: TuneConfig, seed: int) -> BaseSampler:
    if config.sampler != "tpe":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        # `group`: parameters that have no effect in some trials are still modelled together
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=seed, n_startup_trials=RANDOM, multivariate=True, group=True)


def _suggest(trial: Trial, path: str, distribution: Distribution) -> Value:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(path, distribution.choices)
    if isinstance(distribution, IntDistribution):
        whole = distribution
        return trial.suggest_int(path, whole.low, whole.high, step=whole.step, log=whole.log)
    real = distribution
    return trial.suggest_float(path, real.low, real.high, step=real.step, log=real.log)


def _difference(before: Any, now: Any, where: str = "") -> str:
    """The first place where two trees differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                return _difference(
                    before.get(key), now.get(key), f"{where}.{key}" if where else key
                )
    return f"{where} was {json.dumps(before)}, is now {json.dumps(now)}"
