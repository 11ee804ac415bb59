"""A search over a study: what it runs, what it stops, and how it goes on."""

from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from models.data.schema import UserError
from tuning.search import INTERRUPTED, REASON, RUNS, ended, load_study, open_study, whole

DROPOUT, WIDTH, HEADS = "network.dropout", "network.width", "network.behaviour.heads"


def test_the_first_trial_has_the_defaults_and_counts(world: Any) -> None:
    search = world.open(trials=5)
    jobs = world.finish(search)
    assert [job.number for job in jobs] == list(range(5))
    assert jobs[0].point == {DROPOUT: 0.25}
    assert len(ended(search.study)) == 5
    assert world.open(trials=5).next() is None


def test_bad_trials_are_stopped_and_cost_little(world: Any) -> None:
    search = world.open(trials=20)
    spent = []
    while (job := search.next()) is not None:
        spent.append(world.train(search, job))
    assert set(spent) <= {1, 3, 9} and spent[0] == 9
    assert sum(spent) < 0.6 * 20 * 9
    states = [trial.state for trial in search.study.trials]
    stopped = [n for n, epochs in enumerate(spent) if epochs < 9]
    assert [n for n, s in enumerate(states) if s == TrialState.PRUNED] == stopped
    assert search.study.best_trial.params[DROPOUT] == pytest.approx(0.4, abs=0.12)
    one = search.study.trials[stopped[0]]
    assert one.value == one.intermediate_values[spent[stopped[0]]]
    assert len(one.user_attrs[RUNS][0]) == spent[stopped[0]]


def test_without_halving_nobody_is_stopped(world: Any) -> None:
    search = world.open(trials=6, halving=None, sampler="random")
    assert all(world.train(search, job) == 9 for job in iter(search.next, None))


def test_a_killed_search_goes_on_where_it_was(world_on_disk: Any) -> None:
    world = world_on_disk
    first = world.open(trials=4)
    done = [first.next(), first.next()]
    world.train(first, done[0])
    first.report(done[1], 0, world.epochs(done[1], 2))
    left = first.next()  # two are under way; the driver is killed here

    second = world.open(trials=4)
    reasons = {t.number: t.user_attrs.get(REASON) for t in second.study.trials}
    assert reasons[1] == reasons[2] == INTERRUPTED
    assert not second.study.get_trials(states=(TrialState.RUNNING,))
    again = world.finish(second)
    assert [job.point for job in again[:2]] == [done[1].point, left.point]
    assert [job.key for job in again[:2]] == ["1", "2"]  # their checkpoints
    assert len(again) == 3 and len(ended(second.study)) == 4


def test_a_trial_interrupted_twice_keeps_its_checkpoints(world: Any) -> None:
    point = world.open(trials=1).next().point
    world.open(trials=1).next()
    job = world.open(trials=1).next()
    assert job.number == 2 and job.key == "0" and job.point == point


def test_what_is_told_again_is_taken_down_once(world: Any) -> None:
    search = world.open(trials=1)
    job = search.next()
    search.report(job, 0, world.epochs(job, 3))
    search.report(job, 0, world.epochs(job, 3))
    world.train(search, job)
    assert sorted(search.study.trials[0].intermediate_values) == list(range(1, 10))


def test_a_larger_number_of_trials_continues_the_study(world: Any) -> None:
    world.finish(world.open(trials=2))
    assert len(world.finish(world.open(trials=5))) == 3


def test_a_study_of_another_space_is_refused(world: Any) -> None:
    world.open()
    changed = {"network": {"width": 32}, "tables": {"events": 1}}
    with pytest.raises(UserError, match=r"'study' is another search: network.width was 64, is now"):
        open_study(world.storage, world.config(), changed)
    open_study(world.storage, world.config(name="other"), changed)
    with pytest.raises(UserError, match="there is no study 'third'"):
        load_study(world.storage, "third")


def test_the_loss_is_of_the_epoch_that_training_keeps(world: Any) -> None:
    search = world.open(trials=1)
    job = search.next()
    epochs = world.epochs(job, 3)
    epochs[1] |= {"log_loss": 0.1, "best": True}
    epochs[2] |= {"log_loss": 0.01, "best": False}
    search.report(job, 0, epochs)
    search.end(job)
    assert search.study.trials[0].value == 0.1


def test_a_failed_trial_is_closed_and_counts(world: Any) -> None:
    search = world.open(trials=2)
    search.end(search.next(), failed="epoch 0: the loss is nan")
    world.finish(search)
    first = search.study.trials[0]
    assert first.state == TrialState.FAIL and first.user_attrs[REASON].endswith("nan")
    assert len(whole(search.study)) == 1


def test_impossible_points_are_not_given_out(world: Any) -> None:
    heads = {WIDTH: [24, 32], HEADS: [3, 4]}
    search = world.open(trials=6, space=heads, sampler="random")
    jobs = world_points(search)
    assert len(jobs) == 6
    assert all(job.point[WIDTH] % job.point[HEADS] == 0 for job in jobs)
    nothing = world.open(name="n", trials=6, space={WIDTH: [32, 64], HEADS: [3, 5]})
    with pytest.raises(UserError, match="none of them possible: network: width"):
        nothing.next()


def world_points(search: Any) -> list[Any]:
    """All jobs, not trained."""
    jobs = []
    while (job := search.next()) is not None:
        jobs.append(job)
        search.end(job, failed="not trained")
    return jobs


def test_a_grid_is_walked_once(world: Any) -> None:
    given = {WIDTH: [24, 32], HEADS: [3, 4], DROPOUT: [0.1]}
    search = world.open(space=given, sampler="grid", halving=None)
    points = [(job.point[WIDTH], job.point[HEADS]) for job in world.finish(search)]
    assert points == [(24, 3), (24, 4), (32, 4)]
    assert world.open(space=given, sampler="grid").next() is None


def test_folds_and_seeds_are_trained_one_after_the_other(world: Any) -> None:
    search = world.open(trials=1, seeds=2, folds=2)
    job = search.next()
    assert job.runs == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert world.train(search, job) == 36
    trial = search.study.trials[0]
    assert len(trial.user_attrs[RUNS]) == 4
    assert trial.value == pytest.approx(world.loss(job, 8))


def test_folds_of_one_point_are_told_with_their_deviation(world: Any) -> None:
    """Without a space the point is the configuration itself, which needs no confirmation."""
    search = world.open(trials=1, folds=2, space={})
    job = search.next()
    assert job.point == {}
    for run, loss in enumerate((0.5, 0.7)):
        last = {"log_loss": 9.0, "auc": 0.1, "best": False}
        search.report(job, run, [{"log_loss": loss, "auc": loss / 2, "best": True}, last])
    told = "trial 0: log_loss 0.6000 ± 0.1414, auc 0.3000 ± 0.0707, mean and standard deviation of"
    assert search.end(job) == f"{told} 2 trainings"
    assert search.finished and world.confirmation(search).finished


def test_several_objectives_have_a_front_and_no_stopping(world: Any) -> None:
    search = world.open(trials=8, objectives=("auc", "cost"))
    assert all(world.train(search, job) == 9 for job in iter(search.next, None))
    assert all(len(trial.values) == 2 for trial in search.study.best_trials)
    assert len(search.study.best_trials) > 1


def test_optuna_reads_the_study(world_on_disk: Any) -> None:
    world = world_on_disk
    world.finish(world.open(trials=3))
    names = optuna.get_all_study_names(world.storage)
    assert names == ["study"]
    assert optuna.load_study(study_name="study", storage=world.storage).best_value < 1
