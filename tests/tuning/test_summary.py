"""The numbers of a study's report."""

from typing import Any

import pytest

from tuning.summary import Study, summary

DROPOUT, WIDTH = "network.dropout", "network.width"


def summed(world: Any, search: Any) -> Study:
    config, space = search.config, search.space
    return summary(search.study, config.objectives, list(space.parameters), space.defaults())


@pytest.fixture
def searched(world: Any) -> Any:
    search = world.open(trials=15, space={DROPOUT: None, WIDTH: [32, 64]}, confirm_seeds=2)
    search.end(search.next(), failed="it died")
    world.finish(search)
    world.finish(world.confirmation(search))
    return search


def test_trials_and_what_stopping_saved(world: Any, searched: Any) -> None:
    found = summed(world, searched)
    assert found.trials[0].how == "failed" and len(found.trials) == 15
    stopped = [t for t in found.trials if t.how == "stopped"]
    whole = [t for t in found.trials if t.how == "whole"]
    assert stopped and {t.epochs for t in whole} == {9} and {t.epochs for t in stopped} <= {1, 3}
    assert found.epochs == sum(t.epochs for t in found.trials)
    assert found.epochs_unstopped == 9 * 14 and 0 < found.saved < 1
    assert all(len(t.curve) == t.epochs for t in found.trials)


def test_importances_add_up_and_know_what_matters(world: Any, searched: Any) -> None:
    shares = summed(world, searched).importances
    assert sum(shares.values()) == pytest.approx(1) and shares[DROPOUT] > shares.get(WIDTH, 0)


def test_the_gain_is_over_the_defaults_on_the_same_seeds(world: Any) -> None:
    search = world.open(trials=6, confirm=1, confirm_seeds=2)
    world.finish(search)
    confirmation = world.confirmation(search)
    for job in iter(confirmation.next, None):
        loss = (0.50 if job.number == 0 else 0.45) + (0.02 if job.seeds == (2,) else 0)
        confirmation.report(job, 0, [{"log_loss": loss, "seconds": 1.0, "best": True}])
        confirmation.end(job)
    found = summed(world, search)
    assert found.winner == search.study.best_trial.number
    assert found.gain is not None and found.gain.mean == pytest.approx(0.05)
    assert found.gain.error == pytest.approx(0)
    first, second = found.candidates
    assert (first.number, second.defaults) == (found.winner, True)
    assert first.deviation == pytest.approx(0.02 / 2**0.5)


def test_figures_are_as_in_print_and_losses_inside(world: Any) -> None:
    search = world.open(trials=4, objectives=("auc",))
    world.finish(search)
    found = summed(world, search)
    best = found.trials[found.winner or 0]
    assert best.figures[0] == pytest.approx(1 - search.study.best_value)
    assert best.figures[0] == max(t.figures[0] for t in found.trials)


def test_of_nothing_there_is_nothing(world: Any) -> None:
    found = summed(world, world.open(trials=3))
    assert found.trials == () and found.winner is None and found.saved == 0.0
    assert found.importances == {} and found.candidates == ()


def test_several_objectives_have_a_front(world: Any) -> None:
    search = world.open(trials=6, objectives=("auc", "cost"))
    world.finish(search)
    found = summed(world, search)
    assert set(found.front) == {t.number for t in search.study.best_trials}
    assert found.winner is None and found.gain is None
