from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from ray_jobs.market.block import AsOf, Block
from ray_jobs.market.facts import Facts, observe
from ray_jobs.market.risk import (
    Proposals,
    default_probability,
    default_terms,
    fraud_probability,
    spend_mean,
)
from ray_jobs.market.world import MODALITIES, WORLD


def pooled(blocks: list[Block], task: str) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """(outcome, truth, truth without each modality) of all active users at all times."""
    rows = [as_of for block in blocks for as_of in block.as_ofs]

    def joined(pick: str, name: str | None = None) -> np.ndarray:
        parts = []
        for row in rows:
            truth = row.truths[task]
            values = truth.without[name] if name else getattr(truth, pick)
            parts.append(values[row.active])
        return np.concatenate(parts)

    return joined("value"), joined("expected"), {m: joined("", m) for m in MODALITIES}


def seen(block: Block, as_of: AsOf) -> Facts:
    return observe(block.log, block.people, block.ties, block.outcomes(), block.months, as_of.time)


@pytest.fixture(scope="module")
def facts(block: Block) -> Facts:
    return seen(block, block.as_ofs[4])


@pytest.fixture(scope="module")
def proposals(block: Block) -> Proposals:
    return block.as_ofs[4].proposals


def test_default_rate_and_the_oracle(blocks: list[Block]) -> None:
    value, truth, without = pooled(blocks, "default")
    auc = roc_auc_score(value, truth)
    assert 0.10 < value.mean() < 0.14
    assert 0.84 < auc < 0.88
    cost = {name: auc - roc_auc_score(value, less) for name, less in without.items()}
    assert 0.03 < cost["text"] < 0.06
    assert 0.015 < cost["order"] < 0.035
    assert 0.012 < cost["social"] < 0.04
    assert 0.07 < cost["tabular"] < 0.12


def test_fraud_rate_and_the_oracle(blocks: list[Block]) -> None:
    value, truth, without = pooled(blocks, "fraud")
    auc = roc_auc_score(value, truth)
    assert 0.02 < value.mean() < 0.04
    assert auc > 0.72
    assert auc - roc_auc_score(value, without["social"]) > 0.02
    assert auc - roc_auc_score(value, without["tabular"]) > 0.05
    assert (without["text"] == truth).all()


@pytest.mark.parametrize("task", ["default", "fraud"])
def test_outcomes_come_as_often_as_the_truth_says(blocks: list[Block], task: str) -> None:
    value, truth, _ = pooled(blocks, task)
    for part in np.array_split(np.argsort(truth), 5):
        spread = np.sqrt((truth[part] * (1 - truth[part])).sum()) / len(part)
        assert value[part].mean() == pytest.approx(truth[part].mean(), abs=4 * spread)


def test_spend_comes_as_the_truth_says(blocks: list[Block]) -> None:
    value, truth, without = pooled(blocks, "spend_30d")
    for part in np.array_split(np.argsort(truth), 5):
        assert value[part].mean() == pytest.approx(truth[part].mean(), rel=0.08)
    assert spearmanr(value, truth)[0] > 0.55
    assert spearmanr(value, without["text"])[0] < spearmanr(value, truth)[0] - 0.01


def test_withheld_terms_are_replaced_by_their_means(blocks: list[Block]) -> None:
    w = WORLD.default
    terms: dict[str, list[np.ndarray]] = {name: [] for name in MODALITIES}
    hardship, overspend = [], []
    for block in blocks[:3]:
        for as_of in block.as_ofs:
            facts = seen(block, as_of)
            for name, values in default_terms(facts, as_of.proposals).items():
                terms[name].append(values[as_of.active])
            hardship.append(np.maximum(facts.text, 0)[as_of.active])
            overspend.append(np.maximum(facts.trend, 0)[as_of.active])
    for name, parts in terms.items():
        assert np.concatenate(parts).mean() == pytest.approx(getattr(w, f"mean_{name}"), abs=0.08)
    assert np.concatenate(hardship).mean() == pytest.approx(w.mean_hardship, abs=0.03)
    assert np.concatenate(overspend).mean() == pytest.approx(w.mean_overspend, abs=0.02)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("fail_30", 1), ("fail_90", 1), ("late_30", 1), ("late_90", 1), ("trend", 0.5),
        ("night_share", 0.1), ("income", -1000), ("text", 0.5), ("order", 1),
        ("tied_share", 0.2), ("shared_devices", 1),
    ],
)  # fmt: skip
def test_pd_rises_with(facts: Facts, proposals: Proposals, name: str, step: float) -> None:
    worse = replace(facts, **{name: getattr(facts, name) + step})
    before = default_probability(facts, proposals)
    assert (default_probability(worse, proposals) >= before).all()
    assert (default_probability(worse, proposals) > before).any()


def test_hardship_weighs_more_where_spend_rises(facts: Facts, proposals: Proposals) -> None:
    def effect(trend: float) -> float:
        at = replace(facts, trend=np.full_like(facts.trend, trend))
        told = replace(at, text=at.text * 0 + 1)
        silent = replace(at, text=at.text * 0)
        logit = [
            np.log(p / (1 - p)) for p in (default_probability(f, proposals) for f in (told, silent))
        ]
        return float((logit[0] - logit[1]).mean())

    assert effect(0.5) > effect(0.0) == pytest.approx(effect(-0.5))


def test_a_proposal_counts_against_the_usual_amount(facts: Facts, proposals: Proposals) -> None:
    none = replace(proposals, amount=np.full_like(facts.trend, np.nan))
    usual = replace(proposals, amount=facts.usual_amount)
    large = replace(proposals, amount=facts.usual_amount * 3)
    for probability in (default_probability, fraud_probability):
        assert probability(facts, none) == pytest.approx(probability(facts, usual))
        assert (probability(facts, large) > probability(facts, usual)).all()


@pytest.mark.parametrize("withheld", MODALITIES)
def test_a_withheld_modality_has_no_say(
    facts: Facts, proposals: Proposals, block: Block, withheld: str
) -> None:
    names = {
        "text": ("text", "intent"),
        "order": ("order",),
        "social": ("tied_share", "shared_devices"),
        "tabular": (
            "fail_30", "fail_90", "late_30", "late_90", "trend", "tenure_days", "night_share",
            "income", "new_sellers_30", "usual_amount", "shop_rate", "buy_price",
        ),
    }[withheld]  # fmt: skip
    other = replace(facts, **{name: np.roll(getattr(facts, name), 1) for name in names})
    same, month, rate = replace(proposals), block.months[6], block.people.shop_rate
    for probability in (default_probability, fraud_probability):
        assert (probability(facts, same, withheld) == probability(other, same, withheld)).all()
    # Spend without a modality keeps the variance of a price, which is no fact of the world's.
    ours, theirs = (spend_mean(f, month, rate, withheld) for f in (facts, other))
    assert (ours == theirs).all()
