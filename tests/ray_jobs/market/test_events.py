from datetime import datetime

import numpy as np
import pytest

from ray_jobs.market.block import Block
from ray_jobs.market.events import (
    HOUR,
    NIGHT_HOURS,
    OFFSET,
    Before,
    Log,
    Month,
    draw_month,
    empty_log,
    joined_log,
)
from ray_jobs.market.people import DAY, draw_people
from ray_jobs.market.world import KIND, KINDS, WORLD, SimulateConfig


@pytest.fixture(scope="module")
def log(blocks: list[Block]) -> Log:
    """The events of all blocks, in the order of the blocks."""
    parts = [block.log for block in blocks]
    names = Log.__dataclass_fields__
    return Log(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def test_a_user_does_about_nine_things_a_month(blocks: list[Block]) -> None:
    events = sum(len(block.log) for block in blocks)
    there = sum(
        (1 - month.missed(block.people.joined)).sum() for block in blocks for month in block.months
    )
    assert events / there == pytest.approx(9.0, rel=0.04)


def test_some_users_do_very_little(blocks: list[Block]) -> None:
    counts = np.concatenate(
        [np.bincount(block.log.user, minlength=block.people.size) for block in blocks]
    )
    low, median, high = np.percentile(counts, [5, 50, 95])
    assert low < median / 3
    assert high > 2.5 * median


def test_logs_are_sorted_by_user_and_time(block: Block) -> None:
    order = np.lexsort((block.log.time, block.log.user))
    assert (order == np.arange(len(order))).all()


def test_nothing_happens_before_joining_or_after_the_end(block: Block) -> None:
    log, last = block.log, block.months[-1]
    assert (log.time > block.people.joined[log.user]).all()
    assert log.time.min() >= block.months[0].start
    assert log.time.max() < last.start + (len(last.days) - 1) * DAY - OFFSET


def test_a_month_is_the_same_by_local_time_and_by_utc(log: Log) -> None:
    local = (log.time + OFFSET).astype("datetime64[us]").astype("datetime64[M]")
    utc = log.time.astype("datetime64[us]").astype("datetime64[M]")
    assert (local == utc).all()


def test_money_that_leaves_the_user_is_positive(log: Log) -> None:
    for name in KINDS:
        amount = log.amount[log.kind == KIND[name]]
        assert len(amount) > 0
        if name in ("view", "cart", "review", "support"):
            assert np.isnan(amount).all()
        elif name in ("refund", "cash_out"):
            assert (amount <= -0.01).all()
        else:
            assert (amount >= 0.01).all()


def test_texts_are_on_reviews_and_letters_only(log: Log) -> None:
    letter = np.isin(log.kind, [KIND["review"], KIND["support"]])
    has_text = np.array([text is not None for text in log.text])
    assert (has_text == letter).all()
    assert (log.polarity[~letter] == 0).all()


def test_counts_do_not_tell_the_order_of_topup_and_cash_out(log: Log) -> None:
    next_to = log.user[1:] == log.user[:-1]
    first, second = log.kind[:-1][next_to], log.kind[1:][next_to]
    topup, cash_out = KIND["topup"], KIND["cash_out"]
    forward = ((first == topup) & (second == cash_out)).sum()
    backward = ((first == cash_out) & (second == topup)).sum()
    assert forward / backward == pytest.approx(1, abs=0.06)
    assert (log.kind == topup).sum() / (log.kind == cash_out).sum() == pytest.approx(1, abs=0.03)


def test_stress_shows_at_night_and_in_failed_payments(blocks: list[Block]) -> None:
    night, failed, stress, due_stress = [], [], [], []
    for block in blocks:
        log, people = block.log, block.people
        mean = people.stress.mean(axis=1)[log.user]
        night.append((log.time + OFFSET) % DAY < NIGHT_HOURS * HOUR)
        stress.append(mean)
        due = np.isin(log.kind, [KIND["pay"], KIND["pay_late"], KIND["pay_failed"]])
        failed.append(log.kind[due] == KIND["pay_failed"])
        due_stress.append(mean[due])
    assert np.corrcoef(np.concatenate(night), np.concatenate(stress))[0, 1] > 0.05
    assert np.corrcoef(np.concatenate(failed), np.concatenate(due_stress))[0, 1] > 0.1


def test_weekdays_weigh_as_stated() -> None:
    month = Month.of(0, datetime(2023, 11, 1), datetime(2023, 12, 1))  # begins on a Wednesday
    weights = np.diff(month.days)
    assert weights[0] / weights[3] == pytest.approx(
        WORLD.events.weekday[2] / WORLD.events.weekday[5]
    )
    assert month.days[-1] == 1


def test_who_joins_within_a_month_misses_what_was_before() -> None:
    month = Month.of(0, datetime(2023, 11, 1), datetime(2023, 12, 1))
    before, tenth, after = month.start - DAY, month.start + 9 * DAY, month.start + 40 * DAY
    missed = month.missed(np.array([before, tenth, after]))
    assert missed[0] == 0
    assert missed[1] == month.days[10]
    assert missed[2] == 1


def test_a_month_without_users_that_joined_is_empty() -> None:
    config = SimulateConfig(users=5, seed=1)
    people = draw_people(config, 0, np.random.default_rng(0))
    month = Month.of(0, datetime(2003, 1, 1), datetime(2003, 2, 1))
    before = Before(buys=empty_log(), buy_factor=np.ones(5), defaulted=np.zeros(5, dtype=bool))
    rngs = np.random.default_rng(1), np.random.default_rng(2)
    assert len(draw_month(*rngs, people, month, before)) == 0


def test_joining_nothing_is_nothing() -> None:
    assert len(joined_log([empty_log(), empty_log()])) == 0
