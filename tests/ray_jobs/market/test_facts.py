from dataclasses import replace

import numpy as np
import pytest

from ray_jobs.market.block import Block
from ray_jobs.market.events import OFFSET, Log, empty_log, joined_log
from ray_jobs.market.facts import Facts, Outcomes, observe, spend_habit, tied_outcomes, tied_pairs
from ray_jobs.market.people import ADDRESS, DAY, DEVICE, REFERRAL, Ties
from ray_jobs.market.world import KIND, WORLD

AS_OF = 20_000 * DAY
NONE = Outcomes(user=np.empty(0, np.int64), value=np.empty(0), matured_at=np.empty(0, np.int64))
NO_TIES = Ties(*(np.empty(0, np.int64) for _ in range(3)), np.empty(0), np.empty(0, np.int64))


def events(*rows: tuple[int, float, str, dict[str, float]]) -> Log:
    """A log of (user, days before the as-of time, kind, other attributes)."""
    made = []
    for user, days, kind, other in rows:
        one = {
            "user": user, "time": AS_OF - int(days * DAY), "kind": KIND[kind], "category": 0,
            "item": 0, "counterparty": 0, "amount": np.nan, "text": None, "polarity": 0.0,
            "intent": 0.0, **other,
        }  # fmt: skip
        made.append(Log(**{name: np.array([value]) for name, value in one.items()}))
    return joined_log(made)


def facts_of(block: Block, log: Log, ties: Ties = NO_TIES, outcomes: Outcomes = NONE) -> Facts:
    return observe(log, block.people, ties, outcomes, [], AS_OF)


def test_windows_count_from_the_as_of_time(block: Block) -> None:
    failed = [(1, days, "pay_failed", {}) for days in (0.5, 29.9, 30.1, 89.9, 90.1)]
    facts = facts_of(block, events(*failed, (2, 5, "pay_late", {})))
    assert facts.fail_30[1] == 2
    assert facts.fail_90[1] == 4
    assert facts.late_30[2] == 1
    assert facts.fail_90[2] == 0
    assert facts.active[:4].tolist() == [False, True, True, False]


def test_an_event_at_the_as_of_time_is_not_seen(block: Block) -> None:
    facts = facts_of(block, events((1, 0, "pay_failed", {}), (1, -3, "pay_failed", {})))
    assert facts.fail_30[1] == 0
    assert not facts.active.any()


def test_no_events_at_all(block: Block) -> None:
    facts = facts_of(block, empty_log())
    assert not facts.active.any()
    assert (facts.usual_amount == WORLD.events.amount_median).all()
    assert all(np.isfinite(getattr(facts, name)).all() for name in Facts.__dataclass_fields__)


def test_the_order_of_topup_and_cash_out_counts_and_nothing_between(block: Block) -> None:
    def order(*kinds: str) -> float:
        rows = [(1, 50 - place, kind, {}) for place, kind in enumerate(kinds)]
        return float(facts_of(block, events(*rows)).order[1])

    assert order("topup", "cash_out") == 1
    assert order("cash_out", "topup") == -1
    assert order("topup", "cash_out", "topup") == 0
    assert order("topup", "view", "cash_out") == 0
    assert order("topup", "cash_out", "view", "topup", "cash_out") == 2
    last = WORLD.default.order_events
    assert order("topup", "cash_out", *["view"] * (last - 2)) == 1
    assert order("topup", "cash_out", *["view"] * (last - 1)) == 0


def test_events_of_two_users_do_not_follow_each_other(block: Block) -> None:
    facts = facts_of(block, events((1, 2, "topup", {}), (2, 1, "cash_out", {})))
    assert (facts.order == 0).all()


def test_what_texts_told_fades_with_age(block: Block) -> None:
    half_life = WORLD.default.text_half_life_days
    rows = [
        (1, half_life, "support", {"polarity": 1.0}),
        (2, 2 * half_life, "review", {"polarity": -1.0}),
        (2, half_life, "support", {"polarity": 1.0}),
        (3, 3.0, "view", {"polarity": 1.0}),
    ]
    assert facts_of(block, events(*rows)).text[:4] == pytest.approx([0, 0.5, 0.25, 0])


def test_only_the_last_texts_count(block: Block) -> None:
    older = (1, 50, "support", {"polarity": 1.0})
    newer = [(1, days, "support", {}) for days in range(1, WORLD.default.texts + 1)]
    assert facts_of(block, events(older, *newer)).text[1] == 0
    assert facts_of(block, events(older, *newer[1:])).text[1] > 0


@pytest.mark.parametrize(("amounts", "median"), [((5.0,), 5.0), ((9, 1, 4), 4), ((9, 1, 4, 2), 3)])
def test_the_usual_amount_is_the_median_of_payments(
    block: Block, amounts: tuple[float, ...], median: float
) -> None:
    paid = [(1, 1 + place, "buy", {"amount": amount}) for place, amount in enumerate(amounts)]
    back = (1, 9, "refund", {"amount": -100.0})
    assert facts_of(block, events(*paid, back, (1, 8, "view", {}))).usual_amount[1] == median


def test_new_sellers_are_those_never_bought_from_before(block: Block) -> None:
    def buy(days: float, seller: int) -> tuple[int, float, str, dict[str, float]]:
        return (1, days, "buy", {"counterparty": seller, "amount": 1.0})

    facts = facts_of(block, events(buy(60, 7), buy(5, 7), buy(4, 8), buy(3, 8), buy(2, 9)))
    assert facts.new_sellers_30[1] == 2


def test_night_is_by_the_local_clock(block: Block) -> None:
    def share(local_hour: int) -> float:
        days = 1 + (OFFSET / DAY) - local_hour / 24
        return float(facts_of(block, events((1, days, "view", {}))).night_share[1])

    assert share(5) == pytest.approx(2 / 9)
    assert share(6) == pytest.approx(1 / 9)


def test_spend_that_rises_has_a_positive_trend(block: Block) -> None:
    now = facts_of(block, events((1, 5, "buy", {"amount": 900.0}))).trend[1]
    before = facts_of(block, events((1, 70, "buy", {"amount": 900.0}))).trend[1]
    assert now > 0 > before


def test_income_is_the_last_one_declared(block: Block) -> None:
    people = block.people
    changed = people.income_changed.copy()
    changed[:2] = AS_OF - 1, AS_OF
    people = replace(people, income_changed=changed)
    facts = observe(empty_log(), people, NO_TIES, NONE, [], AS_OF)
    assert facts.income[0] == people.income_later[0]
    assert facts.income[1] == people.income_first[1]


def ties(*rows: tuple[int, int, int, int]) -> Ties:
    user, kind, other, since = np.array(rows).T
    return Ties(user=user, kind=kind, other=other, weight=np.ones(len(rows)), since=since)


def test_ties_go_both_ways_and_count_once_for_each_shared_node() -> None:
    known = ties(
        (0, DEVICE, 3, 1), (1, DEVICE, 3, 1), (2, DEVICE, 3, 1),
        (0, ADDRESS, 3, 1), (1, ADDRESS, 3, 1), (5, REFERRAL, 0, 1),
        (7, DEVICE, 9, 1), (8, DEVICE, 9, AS_OF),
    )  # fmt: skip
    pairs = sorted(zip(*(column.tolist() for column in tied_pairs(known, AS_OF)), strict=True))
    both = [(0, 1), (0, 2), (1, 2)]
    expected = [(a, b, DEVICE) for a, b in both] + [(b, a, DEVICE) for a, b in both]
    expected += [(0, 1, ADDRESS), (1, 0, ADDRESS), (0, 5, REFERRAL), (5, 0, REFERRAL)]
    assert pairs == sorted(expected)


def test_only_matured_outcomes_of_tied_users_are_known() -> None:
    known = ties((0, DEVICE, 3, 1), (1, DEVICE, 3, 1), (2, DEVICE, 3, 1))
    outcomes = Outcomes(
        user=np.array([1, 1, 2, 2]),
        value=np.array([1.0, 0.0, 0.0, 1.0]),
        matured_at=np.array([1, 2, 3, AS_OF + 1]),
    )
    count, share = tied_outcomes(known, outcomes, 4, AS_OF)
    assert count.tolist() == [2, 1, 1, 0]
    assert share.tolist() == [0.5, 0, 1, 0]


def test_spend_habits_are_learned_from_what_was_bought(block: Block) -> None:
    as_of = block.as_ofs[-1].time
    rate, price, variance = spend_habit(block.log.before(as_of), block.people, block.months, as_of)
    # Posterior means are calibrated: hidden values scatter around them without bias.
    old = block.people.joined < block.months[0].start
    assert (block.people.activity - rate)[old].mean() == pytest.approx(0, abs=0.25)
    assert np.corrcoef(block.people.activity[old], rate[old])[0, 1] > 0.9
    shown = price + WORLD.events.amount_thrift * block.people.thrift
    assert np.corrcoef(shown, np.log(block.people.income_first))[0, 1] > 0.7
    assert (variance <= WORLD.events.amount_thrift**2).all()
