"""The winner is confirmed with fresh seeds, beside the defaults."""

from typing import Any

import pytest

from models.data.schema import UserError
from tuning.confirm import chosen, confirmed, winning
from tuning.search import whole

DROPOUT = "network.dropout"


def test_the_best_and_the_defaults_get_seeds_that_the_search_has_not_used(world: Any) -> None:
    search = world.open(trials=6, seeds=2, confirm=2, confirm_seeds=3)
    world.finish(search)
    jobs = world.finish(world.confirmation(search))
    assert {job.seeds for job in jobs} == {(2,), (3,), (4,)}
    best = search.study.best_trial.number
    candidates = {job.number for job in jobs}
    assert {best, 0} <= candidates
    assert len({job.key for job in jobs}) == len(jobs) == 3 * len(candidates)
    assert winning(search.study) == best
    assert chosen(search.study, None) == search.study.best_trial.params


def test_a_confirmation_goes_on_where_it_was(world: Any) -> None:
    search = world.open(trials=4)
    world.finish(search)
    first = world.confirmation(search)
    world.train(first, first.next())
    first.next()  # killed in the second
    again = world.confirmation(world.open(trials=4))
    whole_length = len(world.finish(world.confirmation(world.open(trials=4)))) + 1
    assert not again.running and whole_length == sum(map(len, confirmed(search.study).values()))


def test_a_lucky_trial_loses_to_the_defaults(world: Any) -> None:
    search = world.open(trials=5, confirm=1, confirm_seeds=2)
    world.finish(search)
    confirmation = world.confirmation(search)
    best = search.study.best_trial.number
    assert best != 0
    for job in iter(confirmation.next, None):
        epochs = [{"log_loss": 0.5 if job.number == 0 else 0.6, "best": True}]
        confirmation.report(job, 0, epochs)
        confirmation.end(job)
    assert winning(search.study) == 0 and chosen(search.study, None) == {DROPOUT: 0.25}
    assert chosen(search.study, best) == search.study.best_trial.params


def test_a_candidate_that_fails_does_not_win(world: Any) -> None:
    search = world.open(trials=5, confirm=1, confirm_seeds=2)
    world.finish(search)
    confirmation = world.confirmation(search)
    for job in iter(confirmation.next, None):
        confirmation.report(job, 0, [{"log_loss": 0.1 if job.number else 0.9, "best": True}])
        confirmation.end(job, failed="it died" if job.number and job.seeds == (2,) else None)
    assert confirmation.finished and winning(search.study) == 0


def test_of_several_objectives_one_has_to_be_named(world: Any) -> None:
    search = world.open(trials=5, objectives=("auc", "cost"))
    world.finish(search)
    assert world.confirmation(search).finished
    with pytest.raises(UserError, match="several objectives: name one of trials"):
        chosen(search.study, None)
    number = search.study.best_trials[0].number
    assert chosen(search.study, number) == search.study.trials[number].params


def test_a_trial_that_is_not_there_is_named(world: Any) -> None:
    search = world.open(trials=2)
    with pytest.raises(UserError, match="has no trial that trained to its end"):
        chosen(search.study, None)
    world.finish(search)
    there = ", ".join(str(trial.number) for trial in whole(search.study))
    with pytest.raises(UserError, match=f"trial 77 is none of those whole: {there}"):
        chosen(search.study, 77)
