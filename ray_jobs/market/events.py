"""A month of events of one block, drawn from traits and from what was seen before the month.

Sign of `amount`, CNY: positive where money leaves the user (buy, pay, pay_late, topup; pay_failed
has the amount that was tried), negative where it comes back (refund, cash_out), NaN elsewhere.

Times are drawn as local times and kept as UTC. On the first of a month the shop is closed until
08:00 local time, which is midnight UTC: a month is the same set of events by either clock.
"""

from dataclasses import dataclass, fields
from datetime import datetime

import numpy as np
import numpy.typing as npt

from ray_jobs.market.people import DAY, Bools, Floats, Ints, People, microseconds
from ray_jobs.market.texts import INTENT, POLARITY, TEXT_KINDS, compose, draw_kinds
from ray_jobs.market.world import CATEGORIES, KIND, UTC_OFFSET_MIN, WORLD

HOUR = 3_600_000_000
MINUTE = 60_000_000
OFFSET = UTC_OFFSET_MIN * MINUTE
OPENING_HOUR = UTC_OFFSET_MIN // 60
NIGHT_HOURS = 6  # local hours 0 … 5
UTILITIES = 20
NOBODY = -1
_SUPPORT_KINDS = ("hardship", "denied", "bystander", "neutral")


@dataclass(frozen=True)
class Log:
    """Events, one array an attribute, sorted by user and time.

    `user`; `time` UTC; `kind`, an index into KINDS; `category` and `item` (−1: none);
    `counterparty` (−1: none; else a seller, then utilities, then bank cards); `amount`; `text`
    (None: none); `polarity` and `intent`, the truth of the text (0 where there is none).
    """

    user: Ints
    time: Ints
    kind: Ints
    category: Ints
    item: Ints
    counterparty: Ints
    amount: Floats
    text: npt.NDArray[np.object_]
    polarity: Floats
    intent: Floats

    def __len__(self) -> int:
        return len(self.user)

    def where(self, mask: Bools | Ints) -> "Log":
        return Log(**{f.name: getattr(self, f.name)[mask] for f in fields(self)})

    def before(self, time: int) -> "Log":
        return self.where(self.time < time)


def joined_log(logs: list[Log]) -> Log:
    """The events of several logs as one, sorted by user and time."""
    columns = {f.name: np.concatenate([getattr(x, f.name) for x in logs]) for f in fields(Log)}
    together = Log(**columns)
    return together.where(np.lexsort((together.time, together.user)))


def empty_log() -> Log:
    return _log(user=np.empty(0, np.int64), time=np.empty(0, np.int64), kind=np.empty(0, np.int64))


@dataclass(frozen=True)
class Month:
    """The calendar of one month: its number, UTC start, and cumulative weights of its days.

    `days[d]` is the share of a month's activity before day d; `days[-1]` is 1. Days are local.
    """

    number: int
    start: int
    days: Floats

    @classmethod
    def of(cls, number: int, start: datetime, end: datetime) -> "Month":
        count = (end - start).days
        weekday = (start.weekday() + np.arange(count)) % 7
        weights = np.asarray(WORLD.events.weekday)[weekday]
        days = np.concatenate([[0.0], np.cumsum(weights) / weights.sum()])
        days[-1] = 1.0
        return cls(number=number, start=microseconds(start), days=days)

    def missed(self, joined: Ints) -> Floats:
        """The share of the month that had passed when the day of joining ended, by user."""
        # `start`, midnight UTC, read as a local time is the local midnight before it.
        whole_days = (joined + OFFSET - self.start) // DAY + 1
        return np.asarray(self.days[np.clip(whole_days, 0, len(self.days) - 1)])


@dataclass(frozen=True)
class Before:
    """What the events of a month depend on besides traits: facts from before the month.

    `buys`: last month's buys; `buy_factor`: how much told intent moves the rate of buying;
    `defaulted`: whether the user defaulted lately.
    """

    buys: Log
    buy_factor: Floats
    defaulted: Bools


def draw_month(
    rng: np.random.Generator,
    words: np.random.Generator,
    people: People,
    month: Month,
    before: Before,
) -> Log:
    """All events of a month, sorted by user and time; `words` draws the sentences only."""
    missed = month.missed(people.joined)
    parts = [
        _shopping(rng, people, month, missed, before),
        _payments(rng, people, month, missed, before),
        _wallet(rng, people, month, missed),
        _refunds(rng, people, month, missed, before),
        _texts(rng, words, people, month, missed),
    ]
    return joined_log(parts)


def _log(
    *,
    user: Ints,
    time: Ints,
    kind: Ints,
    category: Ints | None = None,
    item: Ints | None = None,
    counterparty: Ints | None = None,
    amount: Floats | None = None,
    text: npt.NDArray[np.object_] | None = None,
    polarity: Floats | None = None,
    intent: Floats | None = None,
) -> Log:
    n = len(user)
    none = np.full(n, NOBODY, dtype=np.int64)
    return Log(
        user=user,
        time=time,
        kind=kind,
        category=none if category is None else category,
        item=none if item is None else item,
        counterparty=none if counterparty is None else counterparty,
        amount=np.full(n, np.nan) if amount is None else amount,
        text=np.full(n, None, dtype=object) if text is None else text,
        polarity=np.zeros(n) if polarity is None else polarity,
        intent=np.zeros(n) if intent is None else intent,
    )


def _counts(rng: np.random.Generator, rate: Floats, missed: Floats) -> Ints:
    """The user of each event: Poisson counts at a monthly rate, over what is left of the month."""
    counts = rng.poisson(rate * (1 - missed))
    return np.repeat(np.arange(len(rate)), counts)


def _times(
    rng: np.random.Generator, people: People, month: Month, missed: Floats, user: Ints
) -> Ints:
    """A UTC time for an event of each user, after the day of joining; more at night in stress."""
    e = WORLD.events
    within = missed[user] + rng.random(len(user)) * (1 - missed[user])
    day = np.searchsorted(month.days, within, side="right") - 1
    day = np.minimum(day, len(month.days) - 2)
    tilt = e.night_stress * people.stress[user, month.number] + e.night_ring * (
        people.ring[user] >= 0
    )
    at_night = rng.random(len(user)) < _sigmoid(e.night_logit + tilt)
    clock = rng.random(len(user))
    # By day a triangle between 06:00 and 24:00 that peaks in the evening.
    peak = e.evening_peak
    rising = np.sqrt(clock * peak)
    falling = 1 - np.sqrt((1 - clock) * (1 - peak))
    by_day = NIGHT_HOURS + (24 - NIGHT_HOURS) * np.where(clock < peak, rising, falling)
    hour = np.where(at_night, NIGHT_HOURS * clock, by_day)
    hour = np.where((day == 0) & (hour < OPENING_HOUR), OPENING_HOUR + hour, hour)
    local = month.start + day * DAY + (hour * HOUR).astype(np.int64)
    return np.asarray(local - OFFSET, dtype=np.int64)


def _products(rng: np.random.Generator, people: People, user: Ints) -> tuple[Ints, Ints]:
    """(category, item) of an event of each user: by taste, and Zipf within the category."""
    e = WORLD.events
    category = (people.tastes[user] < rng.random((len(user), 1))).sum(axis=1)
    popularity = np.cumsum(np.arange(1, e.items + 1) ** -e.item_zipf)
    item = np.searchsorted(popularity, rng.random(len(user)) * popularity[-1])
    return np.minimum(category, len(CATEGORIES) - 1), np.minimum(item, e.items - 1)


def _shopping(
    rng: np.random.Generator, people: People, month: Month, missed: Floats, before: Before
) -> Log:
    e = WORLD.events
    kinds, users = [], []
    for name, share in zip(("view", "cart", "buy"), e.shop_mix, strict=True):
        factor = before.buy_factor if name == "buy" else 1.0
        user = _counts(rng, people.activity * share * factor, missed)
        users.append(user)
        kinds.append(np.full(len(user), KIND[name]))
    user, kind = np.concatenate(users), np.concatenate(kinds)
    category, item = _products(rng, people, user)
    bought = kind == KIND["buy"]
    n_buys = int(bought.sum())
    amount = np.full(len(user), np.nan)
    amount[bought] = price(people)[user[bought]] * _spread(rng, n_buys, e.amount_sigma)
    known = people.sellers[user[bought], rng.integers(0, e.known_sellers, size=n_buys)]
    new_share = np.where(people.ring[user[bought]] >= 0, e.new_seller_ring, e.new_seller_share)
    is_new = rng.random(n_buys) < new_share
    counterparty = np.full(len(user), NOBODY)
    counterparty[bought] = np.where(is_new, rng.integers(0, e.sellers, size=n_buys), known)
    return _log(
        user=user,
        time=_times(rng, people, month, missed, user),
        kind=kind,
        category=category,
        item=item,
        counterparty=counterparty,
        amount=_money(amount),
    )


def price(people: People) -> Floats:
    """The median amount of a user's buys: by declared income, and hidden thrift."""
    e, p = WORLD.events, WORLD.people
    level = e.amount_income * np.log(people.income_first / p.income_median)
    return np.asarray(e.amount_median * np.exp(level - e.amount_thrift * people.thrift))


def _payments(
    rng: np.random.Generator, people: People, month: Month, missed: Floats, before: Before
) -> Log:
    """Bills, and instalments of last month's buys: paid, paid late, or failed."""
    e = WORLD.events
    bill = _counts(rng, np.full(people.size, e.bill_rate), missed)
    bill_amount = e.bill_to_price * price(people)[bill]
    buys = before.buys
    rank = np.arange(len(buys)) - np.searchsorted(buys.user, buys.user)
    part = buys.where((rng.random(len(buys)) < e.instalment_share) & (rank < e.instalment_max))
    none = np.full(len(bill), NOBODY)
    user = np.concatenate([bill, part.user])
    stress, honesty = people.stress[user, month.number], people.honesty[user]
    fail = _sigmoid(
        e.fail_logit
        + e.fail_stress * stress
        + e.fail_honesty * honesty
        + e.fail_defaulted * before.defaulted[user]
    )
    failed = rng.random(len(user)) < fail
    late = rng.random(len(user)) < _sigmoid(e.late_logit + e.late_stress * stress)
    utility = e.sellers + rng.integers(0, UTILITIES, size=len(bill))
    amount = np.concatenate([bill_amount * _spread(rng, len(bill), e.bill_sigma), part.amount / 3])
    return _log(
        user=user,
        time=_times(rng, people, month, missed, user),
        kind=np.where(failed, KIND["pay_failed"], np.where(late, KIND["pay_late"], KIND["pay"])),
        category=np.concatenate([none, part.category]),
        item=np.concatenate([none, part.item]),
        counterparty=np.concatenate([utility, part.counterparty]),
        amount=_money(amount),
    )


def _wallet(rng: np.random.Generator, people: People, month: Month, missed: Floats) -> Log:
    """Topups and cash_outs: in pairs, minutes apart, whose order is a habit, and alone.

    Either order has the same number of each, the same gaps and the same amounts.
    """
    e = WORLD.events
    pair = _counts(rng, np.full(people.size, e.wallet_pair_rate), missed)
    topup_first = rng.random(len(pair)) < people.topup_first[pair]
    first = _times(rng, people, month, missed, pair)
    gap = (rng.uniform(*e.wallet_gap_min, size=len(pair)) * MINUTE).astype(np.int64)
    # A pair stays within its month: late on the last day it is moved to before midnight.
    end = month.start + (len(month.days) - 1) * DAY - OFFSET
    first = np.minimum(first, end - gap - 1)
    topup, cash_out = KIND["topup"], KIND["cash_out"]
    alone = _counts(rng, np.full(people.size, 2 * e.wallet_single_rate), missed)
    user = np.concatenate([pair, pair, alone])
    value = price(people)[user] * _spread(rng, len(user), e.wallet_sigma)
    kind = np.concatenate(
        [
            np.where(topup_first, topup, cash_out),
            np.where(topup_first, cash_out, topup),
            np.where(rng.random(len(alone)) < 1 / 2, topup, cash_out),
        ]
    )
    return _log(
        user=user,
        time=np.concatenate([first, first + gap, _times(rng, people, month, missed, alone)]),
        kind=kind,
        counterparty=e.sellers + UTILITIES + people.first + user,
        amount=_money(np.where(kind == topup, value, -value)),
    )


def _refunds(
    rng: np.random.Generator, people: People, month: Month, missed: Floats, before: Before
) -> Log:
    chosen = before.buys.where(rng.random(len(before.buys)) < WORLD.events.refund_share)
    return _log(
        user=chosen.user,
        time=_times(rng, people, month, missed, chosen.user),
        kind=np.full(len(chosen), KIND["refund"]),
        category=chosen.category,
        item=chosen.item,
        counterparty=chosen.counterparty,
        amount=-chosen.amount,
    )


def _texts(
    rng: np.random.Generator,
    words: np.random.Generator,
    people: People,
    month: Month,
    missed: Floats,
) -> Log:
    """Reviews and letters to support. Money, bystanders and questions go mostly to support."""
    user = _counts(rng, np.full(people.size, WORLD.events.text_rate), missed)
    kinds = draw_kinds(rng, people.trouble[user, month.number])
    category, item = _products(rng, people, user)
    to_support = np.isin(kinds, [TEXT_KINDS.index(k) for k in _SUPPORT_KINDS])
    to_support ^= rng.random(len(user)) < WORLD.texts.misdirected_share
    sentences = np.empty(len(user), dtype=object)
    sentences[:] = compose(words, kinds, category, people.chinese[user])
    return _log(
        user=user,
        time=_times(rng, people, month, missed, user),
        kind=np.where(to_support, KIND["support"], KIND["review"]),
        category=category,
        item=item,
        text=sentences,
        polarity=POLARITY[kinds],
        intent=INTENT[kinds],
    )


def _spread(rng: np.random.Generator, n: int, sigma: float) -> Floats:
    """Log-normal factors with median 1."""
    return np.exp(sigma * rng.normal(size=n))


def _money(amount: Floats) -> Floats:
    """Rounded to cents, never to nothing."""
    return np.asarray(np.sign(amount) * np.maximum(np.round(np.abs(amount), 2), 0.01))


def _sigmoid(logit: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logit)))
