"""How `tune` searches."""

from typing import Literal

from pydantic import Field, model_validator

from models.data.strict import Strict
from tuning.parameters import Parameter
from tuning.policy import Halving

# All of the task that gives the PD, on the select role; turned into losses: less is better.
Objective = Literal["log_loss", "auc", "cost", "fairness_gap"]


class TuneConfig(Strict):
    """One study. `space`: what is searched, None for a built-in range; left out, all of these.
    Every combination of its features is a snapshot, made before the first trial.

    A trial is trained once a seed and, with `folds`, once a fold of the fit role's users (then
    it is judged on that fold instead of the select role). With `space: {}` and `trials: 1` that
    is the configuration as it is, cross-validated. Trials of several objectives are not
    stopped early.
    """

    name: str = Field(default="study", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    trials: int = Field(default=30, ge=1)
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    objectives: tuple[Objective, ...] = Field(default=("log_loss",), min_length=1)
    space: dict[str, Parameter | None] | None = None
    halving: Halving | None = Halving()
    seeds: int = Field(default=1, ge=1)
    folds: int | None = Field(default=None, ge=2)
    share: float = Field(default=1.0, gt=0, le=1)  # of the fit role's users, in the search
    confirm: int = Field(default=2, ge=0)  # the best trials, beside the defaults, that …
    confirm_seeds: int = Field(default=3, ge=2)  # … are trained with so many seeds, on all users
    # a database URL of Optuna's, without a password; default: SQLite in the work folder
    storage: str | None = None
    workers: int = Field(default=1, ge=1)  # ranks of a trial; several go through Ray Train
    concurrent: int | None = Field(default=None, ge=1)  # None: as many as the cluster holds
    cpus_per_trial: float = Field(default=1.0, gt=0)
    gpus_per_trial: float = Field(default=1.0, gt=0)  # where trainings take GPUs; 0.5: two share
    max_failures: int = Field(default=2, ge=0)  # of a trial's process or node
    give_up_after: int = Field(default=3, ge=1)  # so many trials failed, and none succeeded

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "TuneConfig":
        if len(set(self.objectives)) != len(self.objectives):
            raise ValueError("objectives: one is named twice")
        if self.workers > 1 and (self.folds is not None or self.share < 1):
            raise ValueError("folds and share are for trials of one rank (workers: 1)")
        if self.workers > 1 and "fairness_gap" in self.objectives:
            raise ValueError("fairness_gap is for trials of one rank (workers: 1)")
        return self
