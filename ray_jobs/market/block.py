"""One block of users, simulated month by month.

Users of different blocks have nothing to do with each other, and a block is seeded by its number
alone, so blocks may be simulated anywhere, in any order.
"""

from dataclasses import dataclass, replace

import numpy as np

from ray_jobs.market.events import Before, Log, Month, draw_month, empty_log, joined_log
from ray_jobs.market.facts import Facts, Outcomes, buy_factor, observe, told_intent
from ray_jobs.market.people import (
    DAY,
    Bools,
    Floats,
    People,
    Ties,
    draw_people,
    draw_ties,
    microseconds,
)
from ray_jobs.market.risk import (
    Proposals,
    default_probability,
    fraud_probability,
    spend_mean,
)
from ray_jobs.market.world import CATEGORIES, KIND, MODALITIES, OUTCOME_DAYS, WORLD, SimulateConfig


@dataclass(frozen=True)
class Truth:
    """A task as of a time, by user: `expected` (probability or mean), what came of it, and what
    an oracle without a modality would have expected."""

    expected: Floats
    value: Floats
    observed: Bools
    without: dict[str, Floats]


@dataclass(frozen=True)
class AsOf:
    """All users as of a time (UTC microseconds): who has events by then (`active`, the users that
    get labels), what they ask for, and the truth by task."""

    time: int
    active: Bools
    proposals: Proposals
    truths: dict[str, Truth]


@dataclass(frozen=True)
class Block:
    """Everything that happened in a block."""

    number: int
    people: People
    ties: Ties
    months: list[Month]
    log: Log
    as_ofs: list[AsOf]

    def outcomes(self) -> Outcomes:
        return known_outcomes(self.as_ofs)


def simulate_block(config: SimulateConfig, number: int) -> Block:
    """Simulate the users `500 · number` to `500 · number + 499`, or those of them there are."""
    seeds = np.random.SeedSequence([config.seed, number]).spawn(5)
    who, tied, what, words, came = (np.random.default_rng(seed) for seed in seeds)
    people = draw_people(config, number, who)
    ties = draw_ties(config, people, tied)
    starts = config.month_starts()
    months = [Month.of(m, *starts[m : m + 2]) for m in range(config.months)]
    dates = {microseconds(date) for date in config.as_ofs()}
    log, as_ofs = empty_log(), list[AsOf]()
    for month in months:
        if month.start in dates:
            facts = observe(log, people, ties, known_outcomes(as_ofs), months, month.start)
            as_ofs.append(_decide(config, came, people, facts, month))
        before = Before(
            buys=log.where((log.kind == KIND["buy"]) & (log.time >= _previous(months, month))),
            buy_factor=buy_factor(told_intent(log, people.size, month.start)),
            defaulted=_defaulted_lately(as_ofs, people.size),
        )
        log = joined_log([log, draw_month(what, words, people, month, before)])
    as_ofs = [_with_spend(as_of, log) for as_of in as_ofs]
    return Block(number=number, people=people, ties=ties, months=months, log=log, as_ofs=as_ofs)


def known_outcomes(as_ofs: list[AsOf]) -> Outcomes:
    """The outcomes of the default task that a shop sees, with the time when it sees them."""
    seen = [as_of.active & as_of.truths["default"].observed for as_of in as_ofs]
    users = [np.flatnonzero(mask) for mask in seen]
    values = [x.truths["default"].value[mask] for x, mask in zip(as_ofs, seen, strict=True)]
    times = np.repeat([as_of.time for as_of in as_ofs], [len(user) for user in users])
    return Outcomes(
        user=np.concatenate([np.empty(0, np.int64), *users]),
        value=np.concatenate([np.empty(0), *values]),
        matured_at=times.astype(np.int64) + OUTCOME_DAYS * DAY,
    )


def _previous(months: list[Month], month: Month) -> int:
    return months[max(month.number - 1, 0)].start


def _defaulted_lately(as_ofs: list[AsOf], n: int) -> Bools:
    """Defaults of loans that were given, at the latest as-of times."""
    latest = as_ofs[-WORLD.events.fail_defaulted_months :]
    truths = [as_of.truths["default"] for as_of in latest]
    defaulted = np.zeros(n, dtype=bool)
    for truth in truths:
        defaulted |= (truth.value > 0) & truth.observed
    return defaulted


def _decide(
    config: SimulateConfig, rng: np.random.Generator, people: People, facts: Facts, month: Month
) -> AsOf:
    """Proposals, probabilities and outcomes at the start of a month; spend is filled in later."""
    n = people.size
    proposals = _propose(rng, people, facts)
    observed = _approved(config, rng, facts)
    truths = {}
    for task, probability in (("default", default_probability), ("fraud", fraud_probability)):
        expected = probability(facts, proposals)
        truths[task] = Truth(
            expected=expected,
            value=(rng.random(n) < expected).astype(np.float64),
            observed=observed,
            without={m: probability(facts, proposals, m) for m in MODALITIES},
        )
    rate = people.shop_rate
    truths["spend_30d"] = Truth(
        expected=spend_mean(facts, month, rate),
        value=np.full(n, np.nan),
        observed=np.ones(n, dtype=bool),
        without={m: spend_mean(facts, month, rate, m) for m in MODALITIES},
    )
    return AsOf(time=month.start, active=facts.active, proposals=proposals, truths=truths)


def _propose(rng: np.random.Generator, people: People, facts: Facts) -> Proposals:
    p, n = WORLD.proposal, people.size
    ratio = np.exp(p.log_ratio_mean + p.log_ratio_sigma * rng.normal(size=n))
    made = rng.random(n) < p.share
    amount = np.maximum(np.round(facts.usual_amount * ratio, 2), 1.0)
    category = (people.tastes < rng.random((n, 1))).sum(axis=1)
    return Proposals(
        amount=np.where(made, amount, np.nan),
        category=np.minimum(category, len(CATEGORIES) - 1).astype(np.int64),
    )


def _approved(config: SimulateConfig, rng: np.random.Generator, facts: Facts) -> Bools:
    """Whose outcome is seen: everybody's, or that of those approved by the policy or by chance."""
    p = WORLD.policy
    explored = rng.random(len(facts.active)) < p.explored_share
    if config.selection == "none":
        return np.ones(len(facts.active), dtype=bool)
    return np.asarray((facts.fail_90 < p.declined_from_failed_90) | explored)


def _with_spend(as_of: AsOf, log: Log) -> AsOf:
    """The same with the spend that followed: the sum of buys in the outcome window."""
    end = as_of.time + OUTCOME_DAYS * DAY
    inside = (log.kind == KIND["buy"]) & (log.time >= as_of.time) & (log.time < end)
    n = len(as_of.active)
    value = np.bincount(log.user[inside], weights=log.amount[inside], minlength=n)
    spend = replace(as_of.truths["spend_30d"], value=value.astype(np.float64))
    return replace(as_of, truths={**as_of.truths, "spend_30d": spend})
