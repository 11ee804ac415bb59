"""What is known of every user of a block at an as-of time: the only thing that risk depends on.

`observe` looks at nothing at or after the as-of time: not at an event, a tie, a declared income or
an outcome that had not matured. Hidden traits do not enter.
"""

from dataclasses import dataclass

import numpy as np

from ray_jobs.market.events import HOUR, NIGHT_HOURS, OFFSET, Log, Month
from ray_jobs.market.people import DAY, DEVICE, REFERRAL, Bools, Floats, Ints, People, Ties
from ray_jobs.market.world import KIND, WORLD

_LETTERS = (KIND["review"], KIND["support"])


@dataclass(frozen=True)
class Outcomes:
    """Known outcomes of the default task: `user`, `value` (1: default), `matured_at`, UTC."""

    user: Ints
    value: Floats
    matured_at: Ints


@dataclass(frozen=True)
class Facts:
    """Facts of n users, one float64 array each; counts unless said otherwise.

    `trend`: log of the spend of 30 days to a third of that of 90. `usual_amount`: median of what
    the user paid, CNY. `text`, `intent`: what the last texts told, the older the less. `order`:
    topups straight before a cash_out less the reverse, among the last events. `tied_share`:
    share of defaulters among tied users with a known outcome; `tied_known`, how many these are.
    `shared_devices`: other users on the user's devices. `buy_price`, `shop_rate`: posterior means
    of the log amount of a buy and of the monthly rate of view, cart and buy events;
    `buy_price_variance`, the posterior variance of the first.
    """

    active: Bools
    fail_30: Floats
    fail_90: Floats
    late_30: Floats
    late_90: Floats
    trend: Floats
    tenure_days: Floats
    night_share: Floats
    income: Floats
    usual_amount: Floats
    new_sellers_30: Floats
    text: Floats
    intent: Floats
    order: Floats
    tied_known: Floats
    tied_share: Floats
    shared_devices: Floats
    shop_rate: Floats
    buy_price: Floats
    buy_price_variance: Floats


def observe(
    log: Log, people: People, ties: Ties, outcomes: Outcomes, months: list[Month], as_of: int
) -> Facts:
    """The facts of all users at `as_of` (UTC microseconds). `months`: the calendar from the start
    of events on; later months are ignored."""
    seen, n = log.before(as_of), people.size
    age = as_of - seen.time
    month, quarter = age <= 30 * DAY, age <= 90 * DAY

    def count(mask: Bools, weights: Floats | None = None) -> Floats:
        chosen = None if weights is None else weights[mask]
        return np.bincount(seen.user[mask], weights=chosen, minlength=n).astype(np.float64)

    def of(name: str) -> Bools:
        return np.asarray(seen.kind == KIND[name])

    spent_30, spent_90 = (count(of("buy") & w, seen.amount) for w in (month, quarter))
    floor = WORLD.events.amount_median
    income_later = people.income_changed < as_of
    at_night, at_all = WORLD.default.night_prior
    night = (seen.time + OFFSET) % DAY < NIGHT_HOURS * HOUR
    tied_known, tied_share = tied_outcomes(ties, outcomes, n, as_of)
    shop_rate, price, variance = spend_habit(seen, people, months, as_of)
    return Facts(
        active=count(np.ones(len(seen), dtype=bool)) > 0,
        fail_30=count(of("pay_failed") & month),
        fail_90=count(of("pay_failed") & quarter),
        late_30=count(of("pay_late") & month),
        late_90=count(of("pay_late") & quarter),
        trend=np.log((spent_30 + floor) / (spent_90 / 3 + floor)),
        tenure_days=(as_of - people.joined) / DAY,
        night_share=(count(night & quarter) + at_night) / (count(quarter) + at_all),
        income=np.where(income_later, people.income_later, people.income_first),
        usual_amount=_median(seen, n),
        new_sellers_30=_new_sellers(seen, n, month),
        text=_told(seen, seen.polarity, WORLD.default.text_half_life_days, n, as_of),
        intent=told_intent(seen, n, as_of),
        order=_order(seen, n),
        tied_known=tied_known,
        tied_share=tied_share,
        shared_devices=_shared_devices(ties, n, as_of),
        shop_rate=shop_rate,
        buy_price=price,
        buy_price_variance=variance,
    )


def told_intent(seen: Log, n: int, as_of: int) -> Floats:
    """Intent to buy told in the last texts before `as_of`, halved with age."""
    return _told(seen, seen.intent, WORLD.spend.intent_half_life_days, n, as_of)


def _last(user: Ints, count: int) -> Bools:
    """Which rows are among the last `count` of their user; rows are sorted by user."""
    end = np.searchsorted(user, user, side="right")
    return np.asarray(end - np.arange(len(user)) <= count)


def _told(seen: Log, truth: Floats, half_life_days: float, n: int, as_of: int) -> Floats:
    letter = np.isin(seen.kind, _LETTERS)
    user, time, told = seen.user[letter], seen.time[letter], truth[letter]
    last = _last(user, WORLD.default.texts)
    weight = 0.5 ** ((as_of - time[last]) / (half_life_days * DAY))
    return np.bincount(user[last], weights=weight * told[last], minlength=n).astype(np.float64)


def _order(seen: Log, n: int) -> Floats:
    last = _last(seen.user, WORLD.default.order_events)
    user, kind = seen.user[last], seen.kind[last]
    follows = user[1:] == user[:-1]
    topup, cash_out = KIND["topup"], KIND["cash_out"]
    forward = follows & (kind[:-1] == topup) & (kind[1:] == cash_out)
    backward = follows & (kind[:-1] == cash_out) & (kind[1:] == topup)
    sign = forward.astype(np.float64) - backward
    return np.bincount(user[1:], weights=sign, minlength=n).astype(np.float64)


def _median(seen: Log, n: int) -> Floats:
    """The median of positive amounts; the marketplace's own where a user has none."""
    paid = seen.amount > 0
    user, amount = seen.user[paid], seen.amount[paid]
    order = np.lexsort((amount, user))
    amount = amount[order]
    count = np.bincount(user, minlength=n)
    first = np.cumsum(count) - count
    has = count > 0
    median = np.full(n, WORLD.events.amount_median)
    low = amount[(first + (count - 1) // 2)[has]]
    high = amount[(first + count // 2)[has]]
    median[has] = (low + high) / 2
    return median


def _new_sellers(seen: Log, n: int, recent: Bools) -> Floats:
    """Sellers bought from for the first time within the recent events."""
    buy = np.flatnonzero(seen.kind == KIND["buy"])
    pair = seen.user[buy] * WORLD.events.sellers + seen.counterparty[buy]
    # The log is in time order within a user, so the first of equal pairs is the oldest.
    first = buy[np.unique(pair, return_index=True)[1]]
    return np.bincount(seen.user[first[recent[first]]], minlength=n).astype(np.float64)


def tied_pairs(ties: Ties, as_of: int) -> tuple[Ints, Ints, Ints]:
    """(user, tied user, kind) of known ties, both ways; a pair counts once for each shared node.

    A device or an address ties all who are on it; a referral ties the two users.
    """
    known = ties.since < as_of
    user, kind, other = ties.user[known], ties.kind[known], ties.other[known]
    direct = kind == REFERRAL
    pairs = [
        (user[direct], other[direct], kind[direct]),
        (other[direct], user[direct], kind[direct]),
    ]
    user, kind, other = user[~direct], kind[~direct], other[~direct]
    node = kind * (int(other.max(initial=0)) + 1) + other
    order = np.argsort(node, kind="stable")
    user, kind, node = user[order], kind[order], node[order]
    # Members of a node lie next to each other: pair each with the one 1, 2, … places on.
    step = 1
    while True:
        same = node[step:] == node[:-step]
        if not same.any():
            break
        a, b, k = user[:-step][same], user[step:][same], kind[step:][same]
        pairs += [(a, b, k), (b, a, k)]
        step += 1
    columns = (np.concatenate(column) for column in zip(*pairs, strict=True))
    a, b, k = columns
    return a, b, k


def tied_outcomes(ties: Ties, outcomes: Outcomes, n: int, as_of: int) -> tuple[Floats, Floats]:
    """(tied users with a matured outcome, share of these that ever defaulted; 0 of none)."""
    matured = outcomes.matured_at <= as_of
    who = outcomes.user[matured]
    known = np.bincount(who, minlength=n) > 0
    bad = np.bincount(who, weights=outcomes.value[matured], minlength=n) > 0
    user, tied, _ = tied_pairs(ties, as_of)
    n_known = np.bincount(user, weights=known[tied], minlength=n)
    n_bad = np.bincount(user, weights=bad[tied], minlength=n)
    return n_known.astype(np.float64), n_bad / np.maximum(n_known, 1)


def _shared_devices(ties: Ties, n: int, as_of: int) -> Floats:
    user, _, kind = tied_pairs(ties, as_of)
    return np.bincount(user[kind == DEVICE], minlength=n).astype(np.float64)


def spend_habit(
    seen: Log, people: People, months: list[Month], as_of: int
) -> tuple[Floats, Floats, Floats]:
    """Posterior (shop rate a month, mean and variance of the log amount of a buy).

    Counts are Poisson with a gamma rate, log amounts normal with a normal mean, so both posteriors
    are conjugate (Gelman et al., Bayesian Data Analysis, 3rd ed., 2.5 and 2.6), and the expected
    spend of the simulator is exact though the user's rate and thrift are hidden.
    """
    e, p, n = WORLD.events, WORLD.people, people.size
    exposure = np.zeros(n)
    view, cart, buy = e.shop_mix
    for month in months:
        if month.start >= as_of:
            break
        factor = buy_factor(told_intent(seen.before(month.start), n, month.start))
        exposure += (1 - month.missed(people.joined)) * (view + cart + buy * factor)
    shop = np.isin(seen.kind, [KIND["view"], KIND["cart"], KIND["buy"]])
    count = np.bincount(seen.user[shop], minlength=n)
    rate_scale = e.activity_shape / people.shop_rate
    rate = (e.activity_shape + count) / (rate_scale + exposure)
    bought = seen.kind == KIND["buy"]
    income = np.log(people.income_first / p.income_median)
    prior = np.log(e.amount_median) + e.amount_income * income
    prior_precision, precision = e.amount_thrift**-2, e.amount_sigma**-2
    n_buys = np.bincount(seen.user[bought], minlength=n)
    total = np.bincount(seen.user[bought], weights=np.log(seen.amount[bought]), minlength=n)
    posterior_precision = prior_precision + n_buys * precision
    mean = (prior_precision * prior + precision * total) / posterior_precision
    return rate, mean, 1 / posterior_precision


def buy_factor(intent: Floats) -> Floats:
    """How much told intent multiplies the rate of buying."""
    return np.asarray(np.exp(WORLD.spend.intent * intent))
