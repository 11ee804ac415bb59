"""The users of one block: hidden traits, profiles that they declare, and who is tied to whom.

Arrays are indexed by the user's number within the block, 0 … n − 1. Times are int64 microseconds
since 1970 in UTC.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from ray_jobs.market.world import BLOCK_USERS, CATEGORIES, WORLD, SimulateConfig

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

DAY = 86_400_000_000
NEVER = np.iinfo(np.int64).max
SEXES = ("female", "male")
AGE_BANDS = ((18, "18-24"), (25, "25-34"), (35, "35-44"), (45, "45-54"), (55, "55+"))
CHANNELS = ("app", "web", "mini_program", "partner")
CITY_TIERS = ("tier1", "tier2", "tier3", "tier4")
HOUSING = ("own", "rent", "family")
DEVICE, ADDRESS, REFERRAL = 0, 1, 2
TIE_KINDS = ("device", "address", "referral")


@dataclass(frozen=True)
class Ties:
    """Bipartite ties, one array an attribute.

    `user`; `kind`, an index into `TIE_KINDS`; `other`, the number of a device or address within
    the block, or of the referring user; `weight`; `since`, the time from which the tie is known.
    """

    user: Ints
    kind: Ints
    other: Ints
    weight: Floats
    since: Ints


@dataclass(frozen=True)
class People:
    """Traits of n users over m months. What a risk may depend on: `joined`, `income_first`,
    `income_later`, `income_changed` (the time of the second declaration; the end of time where
    there is none); everything else is hidden or without influence."""

    first: int  # the number of user 0 among all users
    shop_rate: float  # mean view, cart and buy events of a user a month
    joined: Ints
    income_first: Floats
    income_later: Floats
    income_changed: Ints
    age: Ints
    sex: Ints
    channel: Ints
    city_tier: Ints
    housing: Ints
    chinese: Bools
    thrift: Floats
    honesty: Floats
    stress: Floats  # (n, m)
    trouble: Floats  # (n, m)
    activity: Floats  # view, cart and buy events a month
    topup_first: Floats  # how often the topup comes first in a pair of topup and cash_out
    tastes: Floats  # (n, categories), cumulative
    sellers: Ints  # (n, known sellers)
    ring: Ints  # −1: in none
    group: Ints

    @property
    def size(self) -> int:
        return len(self.joined)

    @property
    def changes(self) -> Bools:
        """Who declares another income later."""
        return np.asarray(self.income_changed < NEVER)


def microseconds(time: datetime) -> int:
    """A naive UTC time as microseconds since 1970."""
    return round(time.replace(tzinfo=UTC).timestamp()) * 1_000_000


def draw_people(config: SimulateConfig, block: int, rng: np.random.Generator) -> People:
    """The users of a block; the last block has what is left."""
    p, e = WORLD.people, WORLD.events
    first = block * BLOCK_USERS
    n = min(BLOCK_USERS, config.users - first)
    shop_rate = config.events_per_month - e.other_events
    starts = [microseconds(start) for start in config.month_starts()]
    group = rng.integers(0, max(1, n // p.group_users), size=n)
    stress = _shared(rng, group, config.months, p.stress_persistence)
    own_trouble = _walk(rng, n, config.months, p.trouble_persistence)
    trouble = p.trouble_from_stress * stress + np.sqrt(1 - p.trouble_from_stress**2) * own_trouble
    honesty = _shared(rng, group, 1, 0.0)[:, 0]
    joined = _joined(rng, n, starts)
    income = np.log(p.income_median) + p.income_sigma * rng.normal(size=n)
    changes = rng.random(n) < p.income_change_share
    change_span = np.maximum(starts[-1] - np.maximum(joined, starts[0]), 1)
    changed_at = np.maximum(joined, starts[0]) + 1 + (rng.random(n) * change_span).astype(np.int64)
    later = income + p.income_change_sigma * rng.normal(size=n)
    tastes = rng.dirichlet(np.full(len(CATEGORIES), p.taste_concentration), size=n)
    return People(
        first=first,
        shop_rate=shop_rate,
        joined=joined,
        income_first=np.round(np.exp(income), -1),
        income_later=np.round(np.exp(later), -1),
        income_changed=np.where(changes, changed_at, NEVER),
        age=np.clip(18 + rng.gamma(p.age_shape, p.age_scale, size=n), 18, 85).astype(np.int64),
        sex=rng.integers(0, len(SEXES), size=n),
        channel=_pick(rng, n, p.channel_mix),
        city_tier=_pick(rng, n, p.city_tier_mix),
        housing=_pick(rng, n, p.housing_mix),
        chinese=_chinese(config, rng, n),
        thrift=rng.normal(size=n),
        honesty=honesty,
        stress=stress,
        trouble=trouble,
        activity=shop_rate * rng.gamma(e.activity_shape, 1 / e.activity_shape, size=n),
        topup_first=rng.beta(p.order_habit, p.order_habit, size=n),
        tastes=np.cumsum(tastes, axis=1),
        sellers=rng.integers(0, e.sellers, size=(n, e.known_sellers)),
        ring=_rings(rng, n),
        group=group,
    )


def draw_ties(config: SimulateConfig, people: People, rng: np.random.Generator) -> Ties:
    """Devices, households and referrals, mostly within a group of alike users, and fraud rings.

    Device i < n is user i's own; devices from n on belong to rings, one or two a ring.
    """
    p, n = WORLD.people, people.size
    start = microseconds(config.month_starts()[0])
    users = np.arange(n)
    mate = _mates(rng, people.group)
    shares = (rng.random(n) < p.device_shared_share) & (mate != users)
    own = (users, users, people.joined)
    both_joined = np.maximum(people.joined, people.joined[mate])
    shared_since = both_joined + _delay(rng, n, p.tie_delay_days)
    shared = (users[shares], mate[shares], shared_since[shares])
    member = np.flatnonzero(people.ring >= 0)
    ring_since = np.maximum(people.joined[member], start) + _delay(
        rng, len(member), p.ring_delay_days
    )
    ringed = (member, n + people.ring[member], ring_since)
    device = [np.concatenate(parts) for parts in zip(own, shared, ringed, strict=True)]
    household = (users, _households(rng, people.group), people.joined)
    referred = rng.random(n) < p.referral_share
    within = rng.random(n) < p.referral_in_group
    referrer = np.where(within, mate, rng.integers(0, n, size=n))
    referred &= (referrer != users) & (people.joined[referrer] < people.joined)
    referral = (users[referred], referrer[referred], people.joined[referred])
    kinds = (device, household, referral)
    sizes = [len(part[0]) for part in kinds]
    total = sum(sizes)
    return Ties(
        user=np.concatenate([part[0] for part in kinds]),
        kind=np.repeat([DEVICE, ADDRESS, REFERRAL], sizes),
        other=np.concatenate([part[1] for part in kinds]),
        weight=1.0 + rng.poisson(p.tie_weight, size=total).astype(np.float64),
        since=np.concatenate([part[2] for part in kinds]),
    )


def _walk(rng: np.random.Generator, rows: int, months: int, persistence: float) -> Floats:
    """Stationary AR(1) walks, standard normal in every month: (rows, months)."""
    shocks = rng.normal(size=(rows, months))
    walk = np.empty_like(shocks)
    walk[:, 0] = shocks[:, 0]
    for month in range(1, months):
        fresh = np.sqrt(1 - persistence**2) * shocks[:, month]
        walk[:, month] = persistence * walk[:, month - 1] + fresh
    return walk


def _shared(rng: np.random.Generator, group: Ints, months: int, persistence: float) -> Floats:
    """A trait that members of a group have partly in common: (n, months)."""
    share = WORLD.people.group_share
    common = _walk(rng, int(group.max()) + 1, months, persistence)[group]
    own = _walk(rng, len(group), months, persistence)
    return np.asarray(np.sqrt(share) * common + np.sqrt(1 - share) * own)


def _joined(rng: np.random.Generator, n: int, starts: list[int]) -> Ints:
    p = WORLD.people
    before = starts[0] - DAY - _delay(rng, n, p.joined_before_days)
    during = rng.integers(starts[0], starts[-2], size=n)
    # Nobody joined before the marketplace opened, ten years before.
    opened = starts[0] - 3650 * DAY
    return np.where(rng.random(n) < p.joined_before_share, np.maximum(before, opened), during)


def _pick(rng: np.random.Generator, n: int, mix: tuple[float, ...]) -> Ints:
    return np.searchsorted(np.cumsum(mix)[:-1], rng.random(n), side="right").astype(np.int64)


def _chinese(config: SimulateConfig, rng: np.random.Generator, n: int) -> Bools:
    share = {"en": 0.0, "zh": 1.0, "mixed": WORLD.texts.chinese_share}[config.language]
    return np.asarray(rng.random(n) < share)


def _rings(rng: np.random.Generator, n: int) -> Ints:
    """The fraud ring of each user; −1: in none. Members come from the whole block."""
    p = WORLD.people
    ring = np.full(n, -1, dtype=np.int64)
    sizes = rng.integers(p.ring_min, p.ring_max + 1, size=n // p.ring_every)
    members = rng.permutation(n)[: int(sizes.sum())]
    ring[members] = np.repeat(np.arange(len(sizes)), sizes)
    return ring


def _mates(rng: np.random.Generator, group: Ints) -> Ints:
    """Another member of each user's group; the user itself where it is alone."""
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group)[group]
    first = np.searchsorted(group[order], group)
    place = np.empty(len(group), dtype=np.int64)
    place[order] = np.arange(len(group))
    step = 1 + (rng.random(len(group)) * (sizes - 1)).astype(np.int64)
    return order[first + (place - first + np.where(sizes > 1, step, 0)) % sizes]


def _households(rng: np.random.Generator, group: Ints) -> Ints:
    """The address of each user: one to four members of a group live together."""
    order = np.argsort(group, kind="stable")
    sizes = rng.integers(1, WORLD.people.household_max + 1, size=len(group))
    household = np.empty(len(group), dtype=np.int64)
    household[order] = np.repeat(np.arange(len(group)), sizes)[: len(group)]
    # A household never spans two groups: number the pairs of both.
    pair = household * (int(group.max()) + 1) + group
    return np.asarray(np.unique(pair, return_inverse=True)[1], dtype=np.int64)


def _delay(rng: np.random.Generator, n: int, days: float) -> Ints:
    return rng.exponential(days * DAY, size=n).astype(np.int64)
