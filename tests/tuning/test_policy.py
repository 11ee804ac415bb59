"""Which trials go on, and which one wins."""

import pytest

from tuning.policy import Halving, pareto, winner

RULE = Halving(first=1, factor=3)


def test_rungs_are_before_the_last_epoch() -> None:
    assert RULE.rungs(9) == [1, 3]
    assert RULE.rungs(10) == [1, 3, 9]
    assert RULE.rungs(1) == []
    assert Halving(first=2, factor=2).rungs(9) == [2, 4, 8]


def test_the_best_third_of_those_who_came_so_far_goes_on() -> None:
    others = [{1: value / 10} for value in range(5)]  # 0.0 … 0.4, this one is the sixth
    assert not RULE.stops(1, 9, {1: 0.0}, others)
    assert not RULE.stops(1, 9, {1: 0.05}, others)  # second of six
    assert RULE.stops(1, 9, {1: 0.15}, others)  # third


def test_the_first_to_come_goes_on_and_the_worse_second_does_not() -> None:
    assert not RULE.stops(1, 9, {1: 5.0}, [])
    assert RULE.stops(1, 9, {1: 5.0}, [{1: 4.0}])
    assert not RULE.stops(1, 9, {1: 4.0}, [{1: 4.0}])


def test_between_rungs_and_after_the_last_epoch_nobody_is_stopped() -> None:
    others = [{step: 0.0 for step in range(1, 10)}] * 9
    for step in (2, 4, 9):
        assert not RULE.stops(step, 9, {step: 1.0}, others)
    assert RULE.stops(3, 9, {3: 1.0}, others)


def test_those_who_have_not_come_so_far_do_not_count() -> None:
    assert not RULE.stops(3, 9, {1: 1.0, 3: 1.0}, [{1: 0.0}, {1: 0.0}])


def test_the_pareto_front_keeps_what_nothing_beats() -> None:
    points = {0: (1.0, 5.0), 1: (2.0, 2.0), 2: (2.0, 3.0), 3: (3.0, 1.0), 4: (2.0, 2.0)}
    assert pareto(points) == [0, 1, 4, 3]
    assert pareto({}) == []


@pytest.mark.parametrize(
    ("confirmed", "best"),
    [({3: [1.0, 3.0], 5: [1.9, 1.9]}, 5), ({7: [1.0], 2: [1.0]}, 2)],
)
def test_the_winner_has_the_best_mean(confirmed: dict[int, list[float]], best: int) -> None:
    assert winner(confirmed) == best
