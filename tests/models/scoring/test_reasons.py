"""Reason codes: every column stands behind one, what is ignored has none."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.data.batch import Tokenizer
from models.data.features import FeatureConfig, Features, tabular_columns
from models.data.stats import Stats
from models.data.vocabulary import Vocabulary
from models.nets.fusion import MODALITIES
from models.nets.network import Network
from models.scoring import reasons as reasons_module
from models.scoring.config import ExpertName
from models.scoring.expert import Experts
from models.scoring.predict import Encoded, Predictor
from models.scoring.reasons import (
    GENERAL,
    LEAST_EFFECT,
    MODALITY_REASONS,
    MOST,
    TYPE,
    Reason,
    effects,
    reasons_of,
    top_reasons,
)
from models.scoring.trees import TreeExpert

# event types that look like parts of the columns' own names among them
NAMES = st.sampled_from(
    ["order", "order_item", "item", "n", "sum", "30d", "d", "lifetime", "amount", "median", "1h"]
) | st.text("ab_.\n款 ", min_size=1, max_size=4)
VOCABULARIES = st.builds(
    Vocabulary,
    event_types=st.lists(NAMES, min_size=1, max_size=6, unique=True).map(tuple),
    numeric=st.sampled_from([(), ("income",), ("income", "age")]),
    categorical=st.just(("never known", "region", "plan")),
    levels=st.sampled_from(
        [{}, {"never known": (), "region": ("north",), "plan": ("free", "paid")}]
    ),
)


@given(VOCABULARIES)
def test_every_column_stands_behind_exactly_one_reason(vocabulary: Vocabulary) -> None:
    """But for the profile columns of which no level is known: there is nothing to tell."""
    reasons = reasons_of(vocabulary)
    covered = sorted(column for reason in reasons for column in reason.columns)
    assert covered == list(range(len(tabular_columns(vocabulary))))
    told = [(r.code, r.categories) for r in reasons if r.categories]
    assert told == ([("profile", (1, 2))] if vocabulary.levels else [])
    codes = [reason.code for reason in reasons]
    assert len(set(codes)) == len(codes)
    none = [r.code for r in reasons if not r.columns and not r.categories]
    assert none == list(MODALITY_REASONS)


@given(VOCABULARIES)
def test_an_event_types_columns_are_its_own_whatever_its_name(vocabulary: Vocabulary) -> None:
    columns = tabular_columns(vocabulary)
    by_code = {r.code: {columns[k] for k in r.columns} for r in reasons_of(vocabulary)}
    for name in vocabulary.event_types:
        windows = {f"{m}_{name}_{w}" for m in ("n", "sum") for w in ("30d", "90d", "365d")}
        trends = {f"trend_n_{name}", f"trend_sum_{name}", f"recency_{name}_d"}
        assert by_code[f"event:{name}"] == windows | trends
    known = {*GENERAL, *MODALITY_REASONS, *(f"event:{n}" for n in vocabulary.event_types)}
    assert set(by_code) <= known
    assert ("profile" in by_code) == bool(vocabulary.numeric or vocabulary.levels)


def test_general_columns_are_where_a_reader_looks_for_them() -> None:
    vocabulary = Vocabulary(event_types=("pay",), numeric=("income",))
    columns = tabular_columns(vocabulary)
    of = {columns[k]: r.code for r in reasons_of(vocabulary) for k in r.columns}
    expected = {
        "n_7d": "activity",
        "categories_30d": "activity",
        "n_lifetime": "activity",
        "sum_1h": "amounts",
        "max_365d": "amounts",
        "amount_median": "amounts",
        "night_90d": "night",
        "trend_n": "trend",
        "recency_d": "recency",
        "tenure_d": "recency",
        "proposed_to_median": "proposed",
        "income": "profile",
        "trend_sum_pay": "event:pay",
        "recency_pay_d": "event:pay",
    }
    assert {column: of[column] for column in expected} == expected


@pytest.fixture
def predictor(
    make_network: Callable[..., Network],
    stats: Stats,
    tokenizer: Tokenizer,
    feature_config: FeatureConfig,
) -> Predictor:
    return Predictor(make_network(), stats, tokenizer, feature_config.max_tokens)


def raw(task: str, output: torch.Tensor, seen: Mapping[ExpertName, Any]) -> NDArray[np.float64]:
    """The log odds of a network alone that needs no calibration."""
    assert not seen
    return output.double().numpy()


def encoded(predictor: Predictor, known: Features) -> Encoded:
    (one,) = predictor.encode(known)
    return one


def ignore_columns(network: Network, columns: tuple[int, ...]) -> None:
    """Cut the columns, and the flags of their being missing, off the tabular tower."""
    width = len(network.tabular.wide.weight[0])
    total = (width - 16) // 2  # two embedded categories of 8 beside values and flags
    first = network.tabular.deep[0]
    assert isinstance(first, torch.nn.Linear)
    with torch.no_grad():
        for k in columns:
            for weight in (network.tabular.wide.weight, first.weight):
                weight[:, [k, total + k]] = 0.0


def test_columns_that_the_network_ignores_have_no_effect(
    predictor: Predictor, known: Features, vocabulary: Vocabulary
) -> None:
    reasons = reasons_of(vocabulary)
    ignored = next(r for r in reasons if r.code == "event:late")
    ignore_columns(predictor.network, ignored.columns)
    effect_BR = effects(predictor, encoded(predictor, known), "default", reasons, raw, {}, {})
    assert effect_BR.shape == (known.frame.height, len(reasons))
    none = [k for k, r in enumerate(reasons) if r.code in (ignored.code, "proposed")]
    assert np.abs(effect_BR[:, none]).max() < 1e-6  # of nobody is a transaction proposed
    assert (np.abs(np.delete(effect_BR, none, axis=1)).max(axis=0) > 1e-5).all()


def test_a_modality_that_is_not_there_has_no_effect(
    predictor: Predictor, known: Features, vocabulary: Vocabulary
) -> None:
    reasons = reasons_of(vocabulary)
    one = encoded(predictor, known)
    effect_BR = effects(predictor, one, "default", reasons, raw, {}, {})
    for k, reason in enumerate(reasons[:3]):
        there_B = one.known_BM[:, MODALITIES.index(reason.code)].numpy()
        assert np.abs(effect_BR[~there_B, k]).max(initial=0.0) < 1e-6
        assert (np.abs(effect_BR[there_B, k]) > 0).any(), reason.code


def test_an_effect_is_what_the_real_inputs_add_to_the_log_odds(
    predictor: Predictor, known: Features
) -> None:
    one = encoded(predictor, known)
    fuse = predictor.network.fuse
    without_BM = one.known_BM.clone()
    without_BM[:, MODALITIES.index("text")] = False
    with torch.inference_mode():
        rise_B = fuse(one.vectors_BMD, one.known_BM).tasks["fraud"]
        rise_B = rise_B - fuse(one.vectors_BMD, without_BM).tasks["fraud"]
    effect_BR = effects(
        predictor, one, "fraud", (Reason("text", "What the user wrote"),), raw, {}, {}
    )
    assert np.allclose(effect_BR[:, 0], rise_B.numpy(), atol=1e-6)
    assert np.abs(effect_BR).max() > 1e-4


def test_reasons_in_groups_are_as_all_at_once(
    predictor: Predictor,
    known: Features,
    vocabulary: Vocabulary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, reasons = encoded(predictor, known), reasons_of(vocabulary)
    found = []
    for rows in (1, 3 * len(one.batch), len(reasons) * len(one.batch)):
        monkeypatch.setattr(reasons_module, "ROWS", rows)
        found.append(effects(predictor, one, "default", reasons, raw, {}, {}))
    assert np.allclose(found[0], found[1], atol=1e-6)
    assert np.allclose(found[0], found[2], atol=1e-6)


def at_median(known: Features, reason: Reason, vocabulary: Vocabulary) -> Features:
    """The rows with a reason's columns at the fit role's median, null where it knew nothing, and
    at the most frequent level."""
    names = [known.tabular[k] for k in reason.columns]
    medians = [pl.lit(known.frame[c].median(), dtype=pl.Float64).alias(c) for c in names]
    words = {c: pl.Series(vocabulary.levels[c][:1]) for c in vocabulary.categorical}
    codes = {c: vocabulary.level_codes(c, word)[0] for c, word in words.items()}
    levels = [
        pl.lit(codes[known.categorical[k]]).alias(known.categorical[k]) for k in reason.categories
    ]
    return replace(known, frame=known.frame.with_columns(*medians, *levels))


def test_columns_are_compared_with_the_median_user(
    predictor: Predictor, known: Features, vocabulary: Vocabulary
) -> None:
    """Most are tied at their median, which is then no score of 0; some were never known."""
    one, network = encoded(predictor, known), predictor.network
    for reason in reasons_of(vocabulary)[len(MODALITY_REASONS) :]:
        median = encoded(predictor, at_median(known, reason, vocabulary))
        with torch.inference_mode():
            rise_B = network(one.batch).tasks["default"] - network(median.batch).tasks["default"]
        effect_BR = effects(predictor, one, "default", (reason,), raw, {}, {})
        assert np.allclose(effect_BR[:, 0], rise_B.numpy(), atol=1e-6), reason.code
        none_BR = effects(predictor, median, "default", (reason,), raw, {}, {})
        assert np.abs(none_BR).max() < 1e-6, reason.code


def test_who_proposes_nothing_has_no_proposal_for_a_reason(
    predictor: Predictor, known: Features, vocabulary: Vocabulary
) -> None:
    """Of a model whose fit role had proposals: the median is one."""
    reason = next(r for r in reasons_of(vocabulary) if r.code == "proposed")
    names = list(predictor.stats.tabular)
    scales = {
        name: predictor.stats.amount if place in reason.columns else scale
        for place, (name, scale) in enumerate(predictor.stats.tabular.items())
    }
    assert predictor.stats.amount.median is not None
    predictor.stats = predictor.stats.model_copy(update={"tabular": scales})
    half = np.arange(known.frame.height) % 2 == 0
    proposed = [
        pl.Series(names[k], np.where(half, 70.0, np.nan)).fill_nan(None) for k in reason.columns
    ]
    one = encoded(predictor, replace(known, frame=known.frame.with_columns(proposed)))
    effect_B = effects(predictor, one, "default", (reason,), raw, {}, {})[:, 0]
    assert (effect_B[~half] == 0).all() and (effect_B[half] != 0).all()


def test_a_level_can_be_a_reason(
    predictor: Predictor, known: Features, vocabulary: Vocabulary
) -> None:
    """Of a network that sees nothing of the profile but one category."""
    reason = next(r for r in reasons_of(vocabulary) if r.code == "profile")
    ignore_columns(predictor.network, reason.columns)
    region_B = known.frame["region"].to_numpy()
    effect_B = effects(
        predictor,
        encoded(predictor, replace(known, frame=known.frame.with_columns(plan=pl.lit(1)))),
        "default",
        (reason,),
        raw,
        {},
        {},
    )[:, 0]
    assert set(region_B) == {0, 1, 2, 3}
    assert np.abs(effect_B[region_B == 1]).max() < 1e-6
    assert np.abs(effect_B[region_B != 1]).min() > 1e-5


def test_the_expert_sees_the_replacement_that_the_network_sees(
    predictor: Predictor, known: Features, vocabulary: Vocabulary, experts: Experts
) -> None:
    """Of a score that is the expert's alone: what trees do not read has no effect at all."""
    one, reasons = encoded(predictor, known), reasons_of(vocabulary)
    expert = experts["lightgbm"]
    assert isinstance(expert, TreeExpert)
    trees = expert.trees["fraud"]  # fraud follows from ties

    def by_trees(
        task: str, output: torch.Tensor, seen: Mapping[ExpertName, Any]
    ) -> NDArray[np.float64]:
        assert len(seen["lightgbm"]) == len(output)
        return trees.raw(seen["lightgbm"])

    effect_BR = effects(
        predictor,
        one,
        "fraud",
        reasons,
        by_trees,
        {"lightgbm": expert},
        {"lightgbm": expert.read(one.frame)},
    )
    x_BC = expert.read(known.frame)
    for k, reason in enumerate(reasons):
        without = x_BC.copy()
        if reason.code == "social":
            without[:, len(known.tabular) : -len(known.categorical)] = np.nan
        for column in reason.columns:
            median = known.frame[known.tabular[column]].median()
            without[:, column] = np.nan if median is None else median
        without[:, [expert.columns.codes[c] for c in reason.categories]] = 1
        assert np.array_equal(effect_BR[:, k], trees.raw(x_BC) - trees.raw(without)), reason.code
    codes = [reason.code for reason in reasons]
    assert np.abs(effect_BR[:, codes.index("social")]).max() > 0.1
    assert (effect_BR[:, [codes.index("text"), codes.index("behaviour")]] == 0).all()


def test_looking_for_reasons_leaves_the_inputs_as_they_were(
    predictor: Predictor, known: Features, vocabulary: Vocabulary
) -> None:
    one = encoded(predictor, known)
    kept = one.vectors_BMD.clone(), one.known_BM.clone(), one.batch.tabular_BF.clone()
    effects(predictor, one, "default", reasons_of(vocabulary), raw, {}, {})
    now = one.vectors_BMD, one.known_BM, one.batch.tabular_BF
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))


@given(st.lists(st.lists(st.floats(-3, 3), min_size=6, max_size=6), max_size=5))
def test_the_largest_effects_come_first_and_small_ones_not_at_all(
    rows: list[list[float]],
) -> None:
    reasons = tuple(Reason(f"code{k}", f"text {k}") for k in range(6))
    found = top_reasons(np.array(rows).reshape(-1, 6), reasons)
    assert found.dtype.inner == TYPE  # type: ignore[attr-defined]  # of a list
    assert len(found) == len(rows)
    for row, given_reasons in zip(rows, found.to_list(), strict=True):
        wanted = sorted((e for e in row if e >= LEAST_EFFECT), reverse=True)[:MOST]
        assert [g["effect"] for g in given_reasons] == wanted
        for g in given_reasons:
            k = int(g["code"].removeprefix("code"))
            assert (row[k], g["text"]) == (g["effect"], f"text {k}")
