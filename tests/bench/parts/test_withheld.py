"""Tests of what a modality withheld leaves of features, and of the shares of an oracle's loss."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from models.data.features import Features
from models.data.stats import Scale
from models.data.vocabulary import Vocabulary
from tests.bench.parts.withheld import (
    mirrored,
    share,
    without_social,
    without_tabular,
    without_text,
)

VOCABULARY = Vocabulary(event_types=("view", "topup", "cash_out"), categories=("toys", "food"))
VIEW, TOPUP, CASH_OUT = 2, 3, 4


def features_of(types: Sequence[Sequence[int]]) -> Features:
    """Rows of events whose amounts count up, so that each can be told from the others."""
    counts = [len(own) for own in types]
    frame = pl.DataFrame(
        {
            "row": pl.Series(range(len(types)), dtype=pl.UInt32),
            "n": np.arange(len(types), dtype=np.float64),
            "level": pl.Series([3] * len(types), dtype=pl.Int64),
            "ties": [1.0] * len(types),
            "events_type": pl.Series(types, dtype=pl.List(pl.Int32)),
            "events_category": pl.Series([[3] * n for n in counts], dtype=pl.List(pl.Int32)),
            "events_amount": pl.Series([list(range(n)) for n in counts], dtype=pl.List(pl.Float32)),
            "events_age_h": pl.Series([list(range(n)) for n in counts], dtype=pl.List(pl.Float32)),
            "events_hour": pl.Series([[3] * n for n in counts], dtype=pl.List(pl.Int32)),
        }
    )
    return Features(frame, ("n",), ("level",), ("ties",))


def order_of(types: Sequence[int]) -> int:
    """The simulator's fact: topups straight before a cash-out less the reverse."""
    pairs = list(pairwise(types))
    return pairs.count((TOPUP, CASH_OUT)) - pairs.count((CASH_OUT, TOPUP))


def test_mirrored_turns_the_order_and_keeps_the_rest() -> None:
    rows = [
        [VIEW, TOPUP, CASH_OUT, VIEW, CASH_OUT, TOPUP, CASH_OUT],
        [],
        [TOPUP, CASH_OUT],  # a run ends with its user
        [CASH_OUT, CASH_OUT, TOPUP, VIEW],
    ]
    known = features_of(rows)
    turned = mirrored(known, VOCABULARY)
    types = turned.frame["events_type"].to_list()
    assert [order_of(own) for own in types] == [-order_of(own) for own in rows]
    assert [sorted(own) for own in types] == [sorted(own) for own in rows]
    assert turned.frame["events_amount"].to_list()[0] == [0, 2, 1, 3, 6, 5, 4]
    assert turned.frame["events_age_h"].equals(known.frame["events_age_h"])
    assert mirrored(turned, VOCABULARY).frame.equals(
        known.frame.select(turned.frame.columns), null_equal=True
    )


def test_without_tabular_leaves_the_order_only() -> None:
    rows = [[VIEW, TOPUP, CASH_OUT, 1], [], [1, 1]]
    fitted = {"n": Scale(knots=(0.0, 10.0), scores=(-1.0, 1.0), median=0.0)}
    frame = without_tabular(features_of(rows), VOCABULARY, fitted).frame
    assert frame["events_type"].to_list() == [[VIEW, TOPUP, CASH_OUT, VIEW], [], [VIEW, VIEW]]
    assert frame["events_amount"].to_list() == [[None, 1, 2, None], [], [None, None]]
    assert frame["events_category"].to_list() == [[2, 3, 3, 2], [], [2, 2]]
    assert set(frame["events_hour"].explode().drop_nulls()) == {12}
    assert frame["n"].to_list() == [5.0] * 3
    assert frame["level"].to_list() == [0] * 3


def test_without_social_knows_no_tie() -> None:
    assert without_social(features_of([[VIEW]])).frame["ties"].to_list() == [None]


def test_share_is_of_what_the_oracle_loses() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(2, 4000))
    y = (rng.random(4000) < 1 / (1 + np.exp(-one - other))).astype(np.float64)
    found = share(y, (one + other, other), (one + other, other), seed=1, resamples=100)
    assert found["share"].value == found["share"].low == found["share"].high == pytest.approx(1)
    assert found["model"] == found["oracle"]
    half = share(y, (one + other, one / 2 + other), (one + other, other), seed=1, resamples=100)
    assert 0 < half["share"].low < half["share"].value < half["share"].high < 0.9


def test_of_users_who_wrote_nothing_no_text_is_left() -> None:
    known = features_of([[VIEW], []])
    texts = pl.Series("texts", [["late again", "fine"], []], dtype=pl.List(pl.String))
    ages = pl.Series("texts_age_d", [[3.0, 1.0], []], dtype=pl.List(pl.Float32))
    wrote = replace(known, frame=known.frame.with_columns(texts, ages))
    silent = without_text(wrote).frame
    assert silent.schema == wrote.frame.schema
    assert silent["texts"].to_list() == silent["texts_age_d"].to_list() == [[], []]
    assert silent.drop("texts", "texts_age_d").equals(known.frame)
