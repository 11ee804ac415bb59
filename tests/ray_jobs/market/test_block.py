from dataclasses import fields, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.market.block import Block, simulate_block
from ray_jobs.market.events import Log, joined_log
from ray_jobs.market.facts import Outcomes, observe
from ray_jobs.market.people import DAY, People, Ties
from ray_jobs.market.risk import default_probability, fraud_probability, spend_mean
from ray_jobs.market.world import KINDS, SimulateConfig


def same_log(a: Log, b: Log) -> bool:
    return all(
        np.array_equal(getattr(a, f.name), getattr(b, f.name), equal_nan=f.name == "amount")
        for f in fields(Log)
    )


def another_future(
    block: Block, as_of: int, rng: np.random.Generator
) -> tuple[Log, People, Ties, Outcomes]:
    """The block with everything that is not known at `as_of` made up anew."""
    future = block.log.where(block.log.time >= as_of)
    n = len(future)
    changed = replace(
        future,
        kind=rng.integers(0, len(KINDS), size=n),
        amount=rng.normal(size=n) * 1000,
        polarity=rng.normal(size=n),
        intent=rng.normal(size=n),
        time=np.where(rng.random(n) < 0.2, as_of, future.time),
    ).where(rng.random(n) < 0.7)
    log = joined_log([block.log.before(as_of), changed])
    people, ties, outcomes = block.people, block.ties, block.outcomes()
    later = people.income_changed >= as_of
    people = replace(
        people,
        income_later=np.where(later, 1.0, people.income_later),
        stress=people.stress + 1,
        activity=people.activity * 2,
        thrift=people.thrift - 3,
    )
    ties = replace(ties, user=np.where(ties.since >= as_of, 0, ties.user))
    unknown = outcomes.matured_at > as_of
    outcomes = replace(outcomes, value=np.where(unknown, 1 - outcomes.value, outcomes.value))
    return log, people, ties, outcomes


@settings(max_examples=25)
@given(at=st.integers(0, 7), seed=st.integers(0, 2**32))
def test_nothing_after_the_as_of_time_moves_the_truth(block: Block, at: int, seed: int) -> None:
    as_of = block.as_ofs[at]
    log, people, ties, outcomes = another_future(block, as_of.time, np.random.default_rng(seed))
    facts = observe(log, people, ties, outcomes, block.months, as_of.time)
    month = next(month for month in block.months if month.start == as_of.time)
    truths = {
        "default": default_probability(facts, as_of.proposals),
        "fraud": fraud_probability(facts, as_of.proposals),
        "spend_30d": spend_mean(facts, month, people.shop_rate),
    }
    for task, expected in truths.items():
        assert (expected == as_of.truths[task].expected).all()
    assert (facts.active == as_of.active).all()


def test_the_past_does_move_the_truth(block: Block) -> None:
    as_of = block.as_ofs[3]
    log = block.log.where(block.log.time < as_of.time - 40 * DAY)
    facts = observe(log, block.people, block.ties, block.outcomes(), block.months, as_of.time)
    assert (default_probability(facts, as_of.proposals) != as_of.truths["default"].expected).any()


def test_a_block_is_the_same_again_and_unlike_the_others(
    config: SimulateConfig, blocks: list[Block]
) -> None:
    again = simulate_block(config, 3)
    assert same_log(again.log, blocks[3].log)
    ours, theirs = (b.as_ofs[5].truths["default"].expected for b in (again, blocks[3]))
    assert (ours == theirs).all()
    assert not same_log(blocks[2].log, blocks[3].log)


def test_more_users_do_not_change_those_before(block: Block) -> None:
    more = simulate_block(SimulateConfig(users=100_000, seed=20240501), 0)
    assert same_log(more.log, block.log)


def test_language_changes_nothing_but_the_words(config: SimulateConfig, block: Block) -> None:
    chinese = simulate_block(config.model_copy(update={"language": "zh"}), 0)
    assert same_log(replace(chinese.log, text=block.log.text), block.log)
    ours, theirs = (b.as_ofs[5].truths["default"].expected for b in (chinese, block))
    assert (ours == theirs).all()


def test_one_user() -> None:
    block = simulate_block(SimulateConfig(users=1, seed=3), 0)
    assert block.people.size == 1
    assert len(block.as_ofs) == 8


def test_more_events_when_asked() -> None:
    few, many = (
        simulate_block(SimulateConfig(users=500, seed=3, events_per_month=rate), 0)
        for rate in (9.0, 30.0)
    )
    assert 3 < len(many.log) / len(few.log) < 3.7


def test_a_policy_hides_outcomes_but_not_the_truth(config: SimulateConfig) -> None:
    chosen = config.model_copy(update={"selection": "policy"})
    hidden, explored, failed = [], [], []
    for number in range(4):
        block = simulate_block(chosen, number)
        for as_of in block.as_ofs:
            facts = observe(
                block.log, block.people, block.ties, block.outcomes(), block.months, as_of.time
            )
            declined = facts.fail_90 > 0
            observed = as_of.truths["default"].observed
            assert observed[~declined].all()
            assert (as_of.truths["fraud"].observed == observed).all()
            assert as_of.truths["spend_30d"].observed.all()
            assert np.isfinite(as_of.truths["default"].expected).all()
            hidden.append(~observed)
            explored.append(observed[declined])
            failed.append(as_of.truths["default"].value[declined])
        assert len(block.outcomes().user) < sum(a.active.sum() for a in block.as_ofs)
    assert 0.1 < np.concatenate(hidden).mean() < 0.4
    assert 0.005 < np.concatenate(explored).mean() < 0.04
    assert np.concatenate(failed).mean() > 0.2
