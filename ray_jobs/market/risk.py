"""The true probabilities of default and fraud, and the true mean of spend, from facts alone.

`withhold` names a modality whose terms are replaced by their population means: what is left is
what an oracle without that modality would say.
"""

from dataclasses import dataclass

import numpy as np

from ray_jobs.market.events import Month
from ray_jobs.market.facts import Facts, buy_factor
from ray_jobs.market.people import Bools, Floats, Ints
from ray_jobs.market.world import OUTCOME_DAYS, WORLD

TASKS = ("default", "fraud", "spend_30d")


@dataclass(frozen=True)
class Proposals:
    """What each user asks for: `amount`, CNY, NaN where nothing is proposed, and `category`."""

    amount: Floats
    category: Ints

    @property
    def made(self) -> Bools:
        return np.asarray(~np.isnan(self.amount))


def _asked(facts: Facts, proposals: Proposals) -> Floats:
    """Log ratio of the proposed to the usual amount, cut to a range; 0 where none is proposed."""
    amount = np.where(proposals.made, proposals.amount, facts.usual_amount)
    return np.asarray(np.clip(np.log(amount / facts.usual_amount), *WORLD.proposal.log_ratio_range))


def default_terms(facts: Facts, proposals: Proposals) -> dict[str, Floats]:
    """The terms of the log-odds of default that do not interact, by modality."""
    w = WORLD.default
    tabular = (
        w.fail_30 * np.log1p(facts.fail_30)
        + w.fail_90 * np.log1p(facts.fail_90)
        + w.late_30 * np.log1p(facts.late_30)
        + w.late_90 * np.log1p(facts.late_90)
        + w.trend * facts.trend
        + w.tenure * np.log1p(np.maximum(facts.tenure_days, 0.0) / 30)
        + w.night * facts.night_share
        + w.income * np.log(facts.income / WORLD.people.income_median)
        + w.proposed * _asked(facts, proposals)
    )
    return {
        "tabular": tabular,
        "text": w.text * facts.text,
        "order": w.order * np.tanh(facts.order / 2),
        "social": w.tied_share * facts.tied_share + w.device * np.log1p(facts.shared_devices),
    }


def default_probability(facts: Facts, proposals: Proposals, withhold: str | None = None) -> Floats:
    """PD within the outcome window, by user."""
    w = WORLD.default
    terms = default_terms(facts, proposals)
    hardship, overspend = np.maximum(facts.text, 0.0), np.maximum(facts.trend, 0.0)
    if withhold is not None:
        terms[withhold] = np.full_like(facts.text, getattr(w, f"mean_{withhold}"))
    if withhold == "text":
        hardship = np.full_like(hardship, w.mean_hardship)
    if withhold == "tabular":
        overspend = np.full_like(overspend, w.mean_overspend)
    interaction = w.hardship_overspend * hardship * overspend
    return _sigmoid(w.intercept + sum(terms.values(), start=interaction))


def fraud_probability(facts: Facts, proposals: Proposals, withhold: str | None = None) -> Floats:
    """Probability of fraud within the outcome window, by user. Texts and order do not matter."""
    w = WORLD.fraud
    terms = {
        "tabular": w.proposed * _asked(facts, proposals)
        + w.new_sellers * np.log1p(facts.new_sellers_30)
        + w.night * facts.night_share,
        "social": w.device * np.log1p(facts.shared_devices),
    }
    if withhold in terms:
        terms[withhold] = np.full_like(facts.text, getattr(w, f"mean_{withhold}"))
    return _sigmoid(w.intercept + sum(terms.values(), start=np.zeros_like(facts.text)))


def spend_mean(facts: Facts, month: Month, shop_rate: float, withhold: str | None = None) -> Floats:
    """Expected sum of buys in the outcome window, CNY, by user.

    Exact for the month of the as-of time; where the window reaches into the next month (February)
    the rate is taken to last. `shop_rate`: the mean of all users.
    """
    e = WORLD.events
    factor, rate = buy_factor(facts.intent), facts.shop_rate
    price = np.exp(facts.buy_price + (facts.buy_price_variance + e.amount_sigma**2) / 2)
    if withhold == "text":
        factor = np.full_like(factor, WORLD.spend.mean_factor)
    if withhold == "tabular":
        rate = np.full_like(rate, shop_rate)
        price = np.full_like(price, WORLD.spend.mean_price)
    days = len(month.days) - 1
    within = month.days[min(OUTCOME_DAYS, days)] + max(OUTCOME_DAYS - days, 0) / days
    return np.asarray(rate * e.shop_mix[2] * factor * price * within)


def _sigmoid(logit: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logit)))
