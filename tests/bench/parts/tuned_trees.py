"""LightGBM on the model's own tabular, social and profile columns, tuned by Optuna.

Trials are fitted on the fit role and judged by the log-loss of the select role, which also says
after how many rounds each stops. What is searched are the parameters that LightGBM's guide to
tuning names.
"""

from collections.abc import Mapping
from typing import Any

import lightgbm as lgb
import numpy as np
import optuna
from numpy.typing import NDArray

from models.data.tasks import Task
from models.scoring.parts import with_outcome
from models.scoring.trees import Columns
from ray_jobs.snapshot import Snapshot

FloatArray = NDArray[np.float64]
MAX_ROUNDS = 2000
PATIENCE = 50
SEED = 1


def tuned_trees(made: Snapshot, tasks: Mapping[str, Task], trials: int) -> dict[str, FloatArray]:
    """Binary task → (N,) probabilities of the test role, by the best trial's trees."""
    columns = Columns(made.tabular, made.categorical, made.social)
    frames = {role: made.read(role).frame for role in ("fit", "select", "test")}
    x = {role: columns.matrix(frame) for role, frame in frames.items()}
    found = {}
    for name, task in tasks.items():
        if task.kind != "binary":
            continue
        fit, select = (
            with_outcome(x[role], frames[role], name, task.kind) for role in ("fit", "select")
        )
        best = _search(fit, select, list(columns.codes), trials)
        found[name] = np.asarray(best.predict(x["test"]), dtype=np.float64)
    return found


def _search(
    fit: tuple[NDArray[np.float32], FloatArray],
    select: tuple[NDArray[np.float32], FloatArray],
    codes: list[int],
    trials: int,
) -> lgb.Booster:
    """The trees of the best trial."""
    binned = {"verbosity": -1, "feature_pre_filter": False}
    train = lgb.Dataset(*fit, categorical_feature=codes, params=binned, free_raw_data=False)
    held_out = lgb.Dataset(*select, reference=train, free_raw_data=False)
    boosters: dict[int, lgb.Booster] = {}

    def objective(trial: optuna.Trial) -> float:
        booster = lgb.train(
            _parameters(trial),
            train,
            num_boost_round=MAX_ROUNDS,
            valid_sets=[held_out],
            callbacks=[lgb.early_stopping(PATIENCE, verbose=False)],
        )
        boosters[trial.number] = booster
        loss: float = booster.best_score["valid_0"]["binary_logloss"]
        return loss

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=SEED))
    study.optimize(objective, n_trials=trials)
    return boosters[study.best_trial.number]


def _parameters(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "objective": "binary",
        "num_threads": 2,
        "verbosity": -1,
        "seed": SEED,
        "bagging_freq": 1,
        "feature_pre_filter": False,
        "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.2, log=True),
        "num_leaves": trial.suggest_int("num_leaves", 4, 128, log=True),
        "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 5, 200, log=True),
        "feature_fraction": trial.suggest_float("feature_fraction", 0.3, 1.0),
        "bagging_fraction": trial.suggest_float("bagging_fraction", 0.4, 1.0),
        "lambda_l1": trial.suggest_float("lambda_l1", 1e-8, 10.0, log=True),
        "lambda_l2": trial.suggest_float("lambda_l2", 1e-8, 10.0, log=True),
        "min_gain_to_split": trial.suggest_float("min_gain_to_split", 0.0, 1.0),
    }
