"""A search whose driver or trial is killed goes on, and no finished trial runs again; one whose
trials of several ranks are stopped is left with room for the next."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import yaml
from optuna.trial import TrialState

from ray_jobs import tune
from ray_jobs.config import Config, load
from tuning.search import INTERRUPTED, REASON, RUNS, ended

TRIALS, EPOCHS = 5, 4
LONGEST_S = 240.0
TICK_S = 0.1


def made(demo_run: Config, folder: Path, **keys: Any) -> Config:
    """The demo with a search of its own that stops no trial, unless `keys` say so."""
    tree = demo_run.model_dump(mode="json", exclude_unset=True)
    tree["train"]["loop"] |= {"epochs": EPOCHS, "patience": EPOCHS}
    space = {"network.dropout": None, "network.width": [16, 32]}
    tree["tune"] = {"name": folder.name, "trials": TRIALS, "halving": None, "confirm": 0}
    tree["tune"] |= {"space": space, "concurrent": 2, "cpus_per_trial": 0.5} | keys
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load(str(path))


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The search with a Ray of its own, which dies with its driver."""
    return subprocess.Popen(
        [sys.executable, "-m", "ray_jobs", "tune", "-c", str(folder / "config.yaml")],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def study_of(config: Config) -> optuna.Study | None:
    if not (Path(config.work) / "tuning" / config.tune.name / "study.db").exists():
        return None
    try:
        return optuna.load_study(study_name=config.tune.name, storage=tune.storage_of(config))
    except (KeyError, optuna.exceptions.StorageInternalError):  # being made
        return None


def wait_until(
    job: subprocess.Popen[bytes], config: Config, when: Callable[[optuna.Study], bool]
) -> None:
    """Look at the study again and again while the search runs."""
    for _ in range(int(LONGEST_S / TICK_S)):
        study = study_of(config)
        if study is not None and when(study):
            return
        try:
            job.wait(TICK_S)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError("the search ended before")
    raise AssertionError("the moment did not come")


def one_done_one_under_way(study: optuna.Study) -> bool:
    trials = study.get_trials(deepcopy=False)
    under_way = [t for t in trials if t.state == TrialState.RUNNING and t.intermediate_values]
    return bool(under_way) and any(t.state == TrialState.COMPLETE for t in trials)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_killed_search_goes_on(demo_run: Config, tmp_path: Path) -> None:
    config = made(demo_run, tmp_path)
    job = start(tmp_path)
    wait_until(job, config, one_done_one_under_way)
    job.send_signal(signal.SIGKILL)
    job.wait()
    study = study_of(config)
    assert study is not None
    before = {t.number: t.datetime_complete for t in ended(study)}
    left = [t for t in study.trials if t.state == TrialState.RUNNING]
    checkpoints = Path(config.work) / "tuning" / config.tune.name / "checkpoints"
    reached = {
        int(path.parents[2].name.split("-")[0]): json.loads(path.read_text(encoding="utf-8"))
        for path in checkpoints.glob("*/0/[0-9]*/epochs.json")
    }
    assert before and left and reached

    assert start(tmp_path).wait(LONGEST_S) == 0
    study = study_of(config)
    assert study is not None and len(ended(study)) == TRIALS
    assert not [t for t in study.trials if t.state == TrialState.RUNNING]
    for number, at in before.items():  # none was run again
        assert study.trials[number].datetime_complete == at
    points = [t.params for t in ended(study)]
    for trial in left:
        assert study.trials[trial.number].user_attrs[REASON] == INTERRUPTED
        assert trial.params in points
    for trial in ended(study):  # no epoch of a checkpoint was trained again
        first = trial.user_attrs.get("continues")
        if first in reached:
            history = reached[first]
            assert trial.user_attrs[RUNS][0][: len(history)] == history
            assert len(trial.user_attrs[RUNS][0]) == EPOCHS


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_killed_trial_is_tried_again(demo_run: Config, tmp_path: Path) -> None:
    config = made(demo_run, tmp_path)
    job = start(tmp_path)
    wait_until(job, config, one_done_one_under_way)
    children = psutil.Process(job.pid).children(recursive=True)
    trials = [child for child in children if "ImplicitFunc" in " ".join(child.cmdline()[:1])]
    trials[0].kill()
    assert job.wait(LONGEST_S) == 0
    study = study_of(config)
    assert study is not None and len(study.trials) == TRIALS
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_stopped_ranks_make_room(demo_run: Config, tmp_path: Path) -> None:
    """What a stopped trial's ranks held would else be lost, and the third such trial wait for ever;
    there is another Ray on this machine, so that the state API cannot tell which is meant."""
    halving = {"first": 1, "factor": 4}
    config = made(demo_run, tmp_path, workers=2, concurrent=1, halving=halving, trials=6)
    assert start(tmp_path).wait(2 * LONGEST_S) == 0
    study = study_of(config)
    assert study is not None and len(ended(study)) == 6
    assert sum(t.state == TrialState.PRUNED for t in study.trials) >= 3
