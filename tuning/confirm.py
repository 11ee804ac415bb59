"""What a search found, trained again with seeds that it has not seen, beside the defaults.

A search picks the best of many noisy figures, so the figure of its best trial flatters it. The
winner is the point with the best mean over fresh seeds, which may be that of the defaults.
"""

from dataclasses import dataclass, field

import optuna

from models.data.schema import UserError
from tuning.config import TuneConfig
from tuning.policy import pareto, winner
from tuning.search import Epochs, Job, ended, figure_of, kept, loss_of, point_of, whole
from tuning.space import Point, Space

CONFIRMED = "confirmed"  # of a study: trial → seed → loss, None where the training failed


@dataclass
class Confirmation:
    """Gives out one job a candidate and seed, once the search has ended.

    A study of several objectives has no one winner, and one of a single trial no choice: nothing
    is confirmed.
    """

    study: optuna.Study
    space: Space
    config: TuneConfig
    running: dict[tuple[int, int], Epochs] = field(default_factory=dict)

    def next(self) -> Job | None:
        """What to train next; None when all is given out."""
        for job in self._left():
            self.running[job.number, job.seeds[0]] = []
            return job
        return None

    @property
    def finished(self) -> bool:
        """Whether every candidate has been trained with every seed."""
        return not self.running and not self._left()

    def report(self, job: Job, run: int, epochs: Epochs) -> bool:
        """Take down a training's epochs so far; never stops one."""
        self.running[job.number, job.seeds[0]] = epochs
        return False

    def end(self, job: Job, failed: str | None = None) -> str:
        """Take down what a training came to; a line of it."""
        seed = job.seeds[0]
        epochs = self.running.pop((job.number, seed))
        loss = None if failed else loss_of(self.config.objectives[0], kept(epochs))
        known = confirmed(self.study)
        known.setdefault(job.number, {})[seed] = loss
        self.study.set_user_attr(CONFIRMED, known)
        objective = self.config.objectives[0]
        came_to = failed if loss is None else f"{objective} {figure_of(objective, loss):.4f}"
        return f"trial {job.number} again, seed {seed}: {came_to}"

    def _left(self) -> list[Job]:
        known, seeds = confirmed(self.study), self.config.seeds
        return [
            Job(number, f"{number}-seed-{seed}", point, (seed,))
            for seed in range(seeds, seeds + self.config.confirm_seeds)
            for number, point in self._candidates().items()
            if seed not in known.get(number, {}) and (number, seed) not in self.running
        ]

    def _candidates(self) -> dict[int, Point]:
        """The best trials of different points, and the defaults."""
        several = len(self.config.objectives) > 1
        if not self.config.confirm or several or len(ended(self.study)) == 1:
            return {}
        ranked = sorted(whole(self.study), key=lambda t: (t.values[0], t.number))
        points: dict[int, Point] = {}
        for trial in ranked:
            if len(points) < self.config.confirm and point_of(trial) not in points.values():
                points[trial.number] = point_of(trial)
        if points:
            for trial in ended(self.study):
                if (
                    point_of(trial) == self.space.defaults()
                    and point_of(trial) not in points.values()
                ):
                    points[trial.number] = point_of(trial)
        return points


def confirmed(study: optuna.Study) -> dict[int, dict[int, float | None]]:
    """Trial → seed → loss of the winner's confirmation, so far."""
    written = study.user_attrs.get(CONFIRMED, {})  # JSON: its keys are strings
    return {int(n): {int(s): loss for s, loss in seeds.items()} for n, seeds in written.items()}


def chosen(study: optuna.Study, number: int | None) -> Point:
    """The point of a trial, or the one that won. Raises UserError where neither is there."""
    trials = {trial.number: trial for trial in whole(study)}
    name = study.study_name
    if not trials:
        raise UserError(f"the study {name!r} has no trial that trained to its end")
    if number is not None:
        if number not in trials:
            there = ", ".join(map(str, trials))
            raise UserError(f"the study {name!r}: trial {number} is none of those whole: {there}")
        return point_of(trials[number])
    if len(study.directions) > 1:
        front = pareto({n: trial.values for n, trial in trials.items()})
        there = ", ".join(map(str, front))
        raise UserError(f"the study {name!r} has several objectives: name one of trials {there}")
    return point_of(study.trials[winning(study)])


def winning(study: optuna.Study) -> int:
    """The trial that won: of those confirmed, or as long as there are none, the best."""
    sound = {
        number: [loss for loss in losses.values() if loss is not None]
        for number, losses in confirmed(study).items()
        if None not in losses.values()
    }
    most = max(map(len, sound.values()), default=0)
    sound = {number: losses for number, losses in sound.items() if len(losses) == most}
    return winner(sound) if sound else study.best_trial.number
