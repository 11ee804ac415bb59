"""The frozen parameters of the simulated marketplace, and what a user may choose of it.

Everything that decides what happens in the marketplace is a number in `World` or a phrase in
`phrases_en` and `phrases_zh`; `world_sha256` is the hash of all of them. A change to any of them,
or to the code that uses them, is a new world: raise `WORLD_VERSION`, since scores of models
trained in different worlds cannot be compared.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, timedelta
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ray_jobs.market import phrases_en, phrases_zh

WORLD_VERSION = 1
BLOCK_USERS = 500
TIMEZONE = "Asia/Shanghai"
UTC_OFFSET_MIN = 480
CURRENCY = "CNY"
OUTCOME_DAYS = 30
HISTORY_MONTHS = 2
CATEGORIES = tuple(phrases_en.PRODUCTS)
KINDS = (
    "view", "cart", "buy", "pay", "pay_late", "pay_failed",
    "topup", "cash_out", "refund", "review", "support",
)  # fmt: skip
KIND = {name: code for code, name in enumerate(KINDS)}
MODALITIES = ("text", "order", "social", "tabular")


class SimulateConfig(BaseModel):
    """What to simulate.

    `users`; `seed`; `start`, the first day of a month; `months` of events; `events_per_month`, the
    mean of a user; `language` of the texts; `selection`: with "policy" the outcomes of users whom
    a simple policy declined are missing from the labels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    users: int = Field(ge=1, le=1_000_000_000)
    seed: int = Field(ge=0)
    start: date = Field(default=date(2023, 11, 1), strict=False)
    months: int = Field(default=10, ge=3, le=120)
    events_per_month: float = Field(default=9.0, ge=5.0, le=1000.0)
    language: Literal["en", "zh", "mixed"] = "en"
    selection: Literal["none", "policy"] = "none"

    @model_validator(mode="after")
    def _has_an_as_of_date(self) -> Self:
        if self.start.day != 1:
            raise ValueError(f"start: expected the first day of a month, got {self.start}")
        if not self.as_ofs():
            raise ValueError(f"months: {self.months} hold no as-of date with its outcome window")
        return self

    @property
    def blocks(self) -> int:
        return -(-self.users // BLOCK_USERS)

    def month_starts(self) -> list[datetime]:
        """The start of every month and the end of the last: `months + 1` midnights, UTC."""
        first = self.start.year * 12 + self.start.month - 1
        numbers = range(first, first + self.months + 1)
        return [datetime(number // 12, number % 12 + 1, 1) for number in numbers]

    def as_ofs(self) -> list[datetime]:
        """Month starts with two months of history before and a whole outcome window after."""
        *starts, end = self.month_starts()
        window = timedelta(days=OUTCOME_DAYS)
        return [start for start in starts[HISTORY_MONTHS:] if start + window <= end]


@dataclass(frozen=True, kw_only=True)
class PeopleParams:
    """Hidden traits, profiles and ties. Standard normal traits unless said otherwise."""

    group_users: int = 12
    group_share: float = 0.45  # of the variance of stress and honesty, shared by a group
    stress_persistence: float = 0.88  # AR(1), a month
    trouble_persistence: float = 0.90
    trouble_from_stress: float = 0.40  # correlation
    joined_before_share: float = 0.78
    joined_before_days: float = 500.0  # mean tenure at the start
    income_median: float = 8000.0  # CNY a month
    income_sigma: float = 0.5
    income_change_share: float = 0.08
    income_change_sigma: float = 0.25
    age_shape: float = 2.2  # gamma, years above 18
    age_scale: float = 8.0
    channel_mix: tuple[float, ...] = (0.55, 0.2, 0.15, 0.1)
    city_tier_mix: tuple[float, ...] = (0.2, 0.3, 0.3, 0.2)
    housing_mix: tuple[float, ...] = (0.35, 0.45, 0.2)
    taste_concentration: float = 0.6  # Dirichlet over categories
    order_habit: float = 0.5  # beta(h, h): how often the topup of a pair comes first
    referral_share: float = 0.65
    referral_in_group: float = 0.85
    device_shared_share: float = 0.30
    household_max: int = 4
    tie_delay_days: float = 40.0
    tie_weight: float = 4.0
    ring_every: int = 200  # one fraud ring to so many users
    ring_min: int = 5
    ring_max: int = 9
    ring_delay_days: float = 60.0


@dataclass(frozen=True, kw_only=True)
class EventParams:
    """Rates are a month; probabilities are logits where the name says so."""

    activity_shape: float = 1.4  # gamma across users: a few users do very little
    other_events: float = 3.05  # events a month that are not view, cart or buy
    shop_mix: tuple[float, float, float] = (0.56, 0.17, 0.27)  # view, cart, buy
    text_rate: float = 0.6
    bill_rate: float = 0.75
    bill_to_price: float = 0.5  # of a bill's median to that of the user's buys
    bill_sigma: float = 0.4
    instalment_share: float = 0.30
    instalment_max: int = 4  # buys of a month that are paid in instalments, at most
    wallet_pair_rate: float = 0.50  # a topup and a cash_out within minutes, in either order
    wallet_single_rate: float = 0.12
    wallet_gap_min: tuple[float, float] = (3.0, 40.0)
    wallet_sigma: float = 0.5
    refund_share: float = 0.05
    fail_logit: float = -2.5
    fail_stress: float = 1.15
    fail_honesty: float = -0.35
    fail_defaulted: float = 0.35  # while a default is among the latest as-of times
    fail_defaulted_months: int = 3
    late_logit: float = -2.1
    late_stress: float = 0.7
    night_logit: float = -2.3
    night_stress: float = 0.65
    night_ring: float = 0.8
    evening_peak: float = 0.75  # of the waking day, where activity is highest
    weekday: tuple[float, ...] = (0.9, 0.9, 0.9, 0.95, 1.1, 1.3, 1.2)  # Monday first
    items: int = 500
    item_zipf: float = 1.05
    sellers: int = 3000
    known_sellers: int = 6
    new_seller_share: float = 0.25
    new_seller_ring: float = 0.7
    amount_median: float = 120.0  # CNY
    amount_income: float = 0.6
    amount_thrift: float = 0.5
    amount_sigma: float = 0.8


@dataclass(frozen=True, kw_only=True)
class TextParams:
    """What a text is about: about money or not, and how trouble tilts it."""

    money_share: float = 0.55
    bystander_share: float = 0.12  # of texts about money: the trouble of somebody else
    hardship_logit: float = -0.25
    hardship_trouble: float = 2.0
    other_mix: tuple[float, ...] = (0.30, 0.18, 0.22, 0.12, 0.18)
    polarity: tuple[float, ...] = (1.0, -1.0, 0.0, -0.5, 0.0, 0.0, 0.0, 0.0)  # by kind of text
    intent: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0, -1.0, 0.0)
    misdirected_share: float = 0.1  # reviews sent to support, and the other way round
    chinese_share: float = 0.5  # of users, when the language is mixed
    typo_share: float = 0.25
    filler_share: float = 0.7


@dataclass(frozen=True, kw_only=True)
class DefaultParams:
    """The log-odds of default, term by term; `mean_*` are what a withheld term is replaced by."""

    intercept: float = -3.9
    fail_30: float = 1.0
    fail_90: float = 1.15
    late_30: float = 0.3
    late_90: float = 0.6
    trend: float = 0.4
    tenure: float = -0.25
    night: float = 5.0
    night_prior: tuple[float, float] = (1.0, 8.0)  # events at night, of all, added to the count
    income: float = -0.8
    text: float = 1.15
    text_half_life_days: float = 75.0
    texts: int = 3
    order: float = 1.2
    order_events: int = 40
    tied_share: float = 1.0
    device: float = 0.95
    hardship_overspend: float = 0.8
    proposed: float = 0.7
    mean_tabular: float = 0.467
    mean_overspend: float = 0.155
    mean_text: float = -0.151
    mean_hardship: float = 0.205
    mean_order: float = 0.0
    mean_social: float = 0.605


@dataclass(frozen=True, kw_only=True)
class FraudParams:
    """The log-odds of fraud, term by term."""

    intercept: float = -5.4
    device: float = 1.2
    proposed: float = 0.9
    new_sellers: float = 0.6
    night: float = 5.0
    mean_tabular: float = 0.98
    mean_social: float = 0.463


@dataclass(frozen=True, kw_only=True)
class SpendParams:
    """How the intent told in texts moves the rate of buying."""

    intent: float = 0.8
    intent_half_life_days: float = 45.0
    texts: int = 3
    mean_factor: float = 1.067
    mean_price: float = 196.5


@dataclass(frozen=True, kw_only=True)
class ProposalParams:
    share: float = 0.5
    log_ratio_mean: float = 0.3  # of the amount to the user's median buy
    log_ratio_sigma: float = 0.9
    log_ratio_range: tuple[float, float] = (-1.0, 2.0)  # what a risk sees of it


@dataclass(frozen=True, kw_only=True)
class PolicyParams:
    """Selection: who is declined, and who is approved all the same."""

    declined_from_failed_90: int = 1
    explored_share: float = 0.02


@dataclass(frozen=True, kw_only=True)
class World:
    people: PeopleParams = field(default_factory=PeopleParams)
    events: EventParams = field(default_factory=EventParams)
    texts: TextParams = field(default_factory=TextParams)
    default: DefaultParams = field(default_factory=DefaultParams)
    fraud: FraudParams = field(default_factory=FraudParams)
    spend: SpendParams = field(default_factory=SpendParams)
    proposal: ProposalParams = field(default_factory=ProposalParams)
    policy: PolicyParams = field(default_factory=PolicyParams)


WORLD = World()


def world_sha256() -> str:
    """SHA-256 of the version, every parameter and every phrase, as hex."""
    phrases = [
        (grammar.TWINS, grammar.TEMPLATES, grammar.SLOTS, grammar.PRODUCTS, grammar.FILLERS)
        for grammar in (phrases_en, phrases_zh)
    ]
    content = json.dumps(
        {"version": WORLD_VERSION, "parameters": asdict(WORLD), "phrases": phrases},
        sort_keys=True,
    )
    return hashlib.sha256(content.encode()).hexdigest()
