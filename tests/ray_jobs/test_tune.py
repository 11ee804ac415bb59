"""A search on a cluster: trials are trained, stopped, confirmed; what won is trained by `train`."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import ray

from models.data.schema import UserError
from ray_jobs import jobs, ranks, snapshot, tune
from ray_jobs.cluster import on_gpus
from ray_jobs.config import Config
from ray_jobs.feed import concurrency
from ray_jobs.frames import Frames
from tuning.confirm import confirmed
from tuning.search import RUNS, Search, ended, load_study, open_study
from tuning.space import applied

RATE = "train.loop.learning_rate"
SMALL = {"train.loop.epochs": 1, "train.select_rows": 200, "train.loop.batch_rows": 256}


def tuned(config: Config, **keys: Any) -> Config:
    """The configuration with a search in it."""
    base = {"concurrent": 2, "cpus_per_trial": 0.5, "share": 0.2, "confirm": 0}
    tree = applied(config, SMALL).model_dump(mode="json")
    return Config.model_validate(tree | {"tune": base | keys})


@pytest.fixture(scope="module")
def searched(demo_run: Config) -> Config:
    """A search of three trials, the best of them confirmed."""
    space = {RATE: [0.0001, 0.003], "network.width": [16, 32]}
    config = tuned(demo_run, name="one", trials=3, space=space, confirm=1, confirm_seeds=2)
    tune.tune(config, jobs.tables(config))
    return config


def test_trials_are_trained_and_the_best_confirmed(searched: Config) -> None:
    study = load_study(tune.storage_of(searched), "one")
    trials = ended(study)
    assert len(trials) == 3 and trials[0].params == {RATE: 0.003, "network.width": 32}
    assert all(0 < trial.values[0] < 1 for trial in trials)
    epochs = trials[0].user_attrs[RUNS][0]
    assert {"train_loss", "select_loss", "log_loss", "auc", "seconds"} <= set(epochs[0])
    assert all(len(seeds) == 2 for seeds in confirmed(study).values()) and confirmed(study)
    folder = Path(searched.work) / "tuning" / "one"
    assert "Confirmation" in (folder / "tuning_report.html").read_text(encoding="utf-8")
    assert not list((folder / "checkpoints").iterdir())


def test_the_same_command_again_runs_nothing(
    searched: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    tune.tune(searched, jobs.tables(searched))
    told = capsys.readouterr().out
    assert not re.search(r"trial \d+(:| stopped| failed)", told) and "3 trials" in told


def test_train_takes_what_won_or_a_named_trial(searched: Config) -> None:
    study = load_study(tune.storage_of(searched), "one")
    best = tune.from_study(searched, None)
    assert best.train.loop.learning_rate in (0.0001, 0.003)
    whole = [trial for trial in ended(study) if trial.state.name == "COMPLETE"]
    for trial in whole:
        named = tune.from_study(searched, trial.number)
        assert named.network.width == trial.params["network.width"]
    with pytest.raises(UserError, match="there is no study 'two'"):
        tune.from_study(tune.named(searched, "two"), None)


def test_train_refuses_what_a_study_found_and_the_configuration_does_not_take(
    demo_config: Config, tmp_path: Path
) -> None:
    space = {"train.loop.frozen_epochs": [1]}
    here = demo_config.model_copy(update={"work": str(tmp_path)})
    config = tuned(here, name="frozen", trials=1, space=space)
    tune.folder_of(config).mkdir(parents=True)
    study = open_study(tune.storage_of(config), config.tune, {})
    search = Search(study, tune.space_of(config), config.tune, epochs=1, seed=0)
    job = search.next()
    assert job is not None
    search.report(job, 0, [{"log_loss": 0.5, "best": True}])
    search.end(job)
    assert tune.from_study(config, None).train.loop.frozen_epochs == 1
    sharded = applied(config, {"train.sharding": "fsdp", "train.loop.frozen_epochs": 0})
    with pytest.raises(UserError, match="study 'frozen': train: sharding: fsdp needs") as refused:
        tune.from_study(sharded, None)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("study.db", "Could not parse SQLAlchemy URL"),
        ("posgresql://u@h/db", "Can't load plugin"),
        ("mssql+pymssql://u@h/db", "Failed to import DB access module"),
        ("postgresql://u@h:prot/db", "invalid literal"),
        ("sqlite:////no/such/folder/study.db", "unable to open database file"),
    ],
)
def test_a_database_that_is_none_is_one_line(demo_config: Config, url: str, reason: str) -> None:
    config = tuned(demo_config, storage=url)
    with pytest.raises(UserError, match=re.escape(f"tune.storage {url}: ")) as refused:
        tune.from_study(config, None)
    assert reason in str(refused.value) and "\n" not in str(refused.value)


def test_another_space_under_the_same_name_is_refused(searched: Config) -> None:
    other = tuned(searched, name="one", space={RATE: [0.001, 0.003]})
    with pytest.raises(UserError, match=f"'one' is another search: space.{RATE}"):
        tune.tune(other, jobs.tables(other))


def test_a_failure_of_every_trial_is_told_once(
    demo_run: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    wild, space = applied(demo_run, {RATE: 1e30}), {"network.width": [16, 32]}
    config = tuned(wild, name="failing", trials=9, give_up_after=2, space=space)
    with pytest.raises(UserError, match=r"the first [23] trials all failed: epoch 0, step"):
        tune.tune(config, jobs.tables(config))
    assert capsys.readouterr().out.count("Traceback") == 1
    assert len(ended(load_study(tune.storage_of(config), "failing"))) <= 3


def test_features_are_searched_by_trials_that_hold_every_cpu(demo_run: Config) -> None:
    """A trial that has ended keeps its process, and the CPUs, for the next one."""
    all_of_it = {"concurrent": 1, "cpus_per_trial": ray.cluster_resources()["CPU"]}
    space = {"features.max_texts": [1, 2]}
    config = tuned(demo_run, name="features", sampler="grid", space=space, **all_of_it)
    tune.tune(config, jobs.tables(config))
    trials = ended(load_study(tune.storage_of(config), "features"))
    assert {trial.params["features.max_texts"] for trial in trials} == {1, 2}


def test_a_user_of_several_periods_has_the_attributes_said_last(demo_config: Config) -> None:
    said = pl.DataFrame({"user_key": [1, 2, 1], "sex": ["f", "m", None], "age": ["3", "4", "5"]})
    tables = SimpleNamespace(buckets=[1], read=lambda table, bucket: said)
    config = applied(demo_config, {"tune.objectives": ["log_loss", "fairness_gap"]})
    tune.folder_of(config).mkdir(parents=True, exist_ok=True)
    path = tune._protected(config, tables)  # type: ignore[arg-type]
    assert path is not None
    assert pl.read_parquet(path).sort("user_key").rows() == [(1, "f", "5"), (2, "m", "4")]
    path.unlink()


def test_a_trial_sees_the_rows_that_a_rank_of_train_sees(demo_run: Config) -> None:
    made = snapshot.snapshot(demo_run, jobs.tables(demo_run))
    here = list(Frames(made, demo_run.train.select_rows, seed=0)("fit", 1000))
    there = ranks.dataset(made, "fit")
    there.context.execution_options.preserve_order = True  # a dataset copies its context
    batches = there.iter_batches(batch_size=1000, batch_format="pyarrow")
    for mine, table in zip(here, batches, strict=True):
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame) and mine.equals(frame)


@pytest.mark.parametrize(
    ("keys", "total", "trials"),
    [
        ({"cpus_per_trial": 0.25}, {"CPU": 2.0}, 8),
        ({}, {"CPU": 4.0, "GPU": 2.0}, 2),
        ({"gpus_per_trial": 0.5}, {"CPU": 64.0, "GPU": 1.0}, 2),
        ({"workers": 2}, {"CPU": 4.0}, 2),
        ({"workers": 2}, {"CPU": 1.0}, 1),
        ({"concurrent": 7}, {"CPU": 1.0}, 7),
        ({}, {}, 1),
    ],
)
def test_as_many_at_a_time_as_the_cluster_holds(
    demo_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, Any],
    total: dict[str, float],
    trials: int,
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: total)
    monkeypatch.setattr("ray.nodes", lambda: [{}, {}])
    alone = {"concurrent": None, "cpus_per_trial": 1.0, "share": 1.0}
    assert concurrency(tuned(demo_config, **(alone | keys))) == trials


@pytest.mark.parametrize(
    ("asked", "total", "gpus"),
    [(None, {"GPU": 1.0}, True), (None, {}, False), (True, {}, True), (False, {"GPU": 1.0}, False)],
)
def test_gpus_that_are_not_there_yet_can_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: bool | None, total: dict[str, float], gpus: bool
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: total)
    assert on_gpus(asked) is gpus
