import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain, pairwise

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.batch import CHUNK_TOKENS, EVENNESS, Batch, Texts, make_batch, make_texts, pad
from models.data.features import FeatureConfig, Features, features
from models.data.graph import social_columns
from models.data.history import History, view
from models.data.rows import TIME
from models.data.stats import Stats, fit_stats
from models.data.tasks import Task
from models.data.vocabulary import Vocabulary
from models.nets.text import load_tokenizer

Make = Callable[..., pl.DataFrame]

AS_OF = datetime(2024, 5, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TOKENS = 12
VOCABULARY = Vocabulary(
    event_types=("buy", "refund"),
    categories=("x",),
    relations=("device",),
    numeric=("income",),
    categorical=("city",),
    levels={"city": ("Oslo",)},
)
CONFIG = FeatureConfig(max_texts=2)


def letters(
    texts: Sequence[str], *, truncation: bool, max_length: int
) -> dict[str, list[list[int]]]:
    """A tokenizer of letters between a start and an end mark."""
    assert truncation and len(texts) == len(set(texts))
    inner = max_length - 2
    return {"input_ids": [[1, *map(ord, text[:inner]), 2] for text in texts]}


def features_of(log: list[dict[str, object]], users: int, make_events: Make) -> Features:
    """Users 1 … n; the first one's profile and ties are known."""
    keys = {"user_key": [1], "valid_from": [AS_OF], "available_at": [AS_OF]}
    profiles = pl.DataFrame({**keys, "income": [7.0], "city": ["Oslo"]}).cast(
        {"valid_from": TIME, "available_at": TIME}
    )
    ties = {c: [float(k)] for k, c in enumerate(social_columns(("device",)))}
    social = pl.DataFrame({"user_key": [1], "graph_date": [AS_OF], **ties}).cast(
        {"graph_date": TIME}
    )
    rows = pl.DataFrame({"user_key": range(1, users + 1)}, schema={"user_key": pl.Int64})
    rows = rows.with_row_index("row").with_columns(as_of=pl.lit(AS_OF).cast(TIME))
    history = History(make_events(log), profiles=profiles, social=social)
    return features(view(history, rows, CONFIG.history), VOCABULARY, CONFIG)


LOG: list[dict[str, object]] = [
    {"event_time": AS_OF - 3 * DAY, "amount": 5, "category": "x", "text": "late"},
    {"event_time": AS_OF - 2 * DAY, "event_type": "refund", "amount": -5, "text": "thanks"},
    {"event_time": AS_OF - HOUR, "event_type": "new", "category": "q", "amount": 9},
    {"event_time": AS_OF - DAY, "user_key": 2, "amount": 20, "text": "late"},
]


@pytest.fixture
def known(make_events: Make) -> Features:
    """Three users: two with events, texts and labels in part, one of whom nothing is known."""
    made = features_of(LOG, 3, make_events)
    labels = pl.DataFrame({"y_bad": [1.0, 0.0, None], "y_spend": [None, 3.0, 4.0]})
    return replace(made, frame=pl.concat([made.frame, labels], how="horizontal"))


@pytest.fixture
def stats(known: Features) -> Stats:
    tasks = {"bad": Task(kind="binary"), "spend": Task(kind="amount")}
    return fit_stats(VOCABULARY, known, known.frame, tasks)


def test_shapes_and_types(known: Features, stats: Stats) -> None:
    batch = make_batch(known, stats, letters, TOKENS, ["y_bad", "y_spend"])
    assert len(batch) == 3
    shapes = {
        "tabular_BF": (3, len(known.tabular)),
        "missing_BF": (3, len(known.tabular)),
        "categorical_BC": (3, 1),
        "social_BG": (3, 7),
        "tied_B": (3,),
        "type_BS": (3, 3),
        "hour_BS": (3, 3),
        "event_BSX": (3, 3, 3),
        "text_BT": (3, 2),
        "text_age_BT": (3, 2),
        "labels_BK": (3, 2),
    }
    assert {name: tuple(getattr(batch, name).shape) for name in shapes} == shapes
    assert batch.tabular_BF.dtype == batch.labels_BK.dtype == torch.float32
    assert batch.type_BS.dtype == batch.text_BT.dtype == torch.int64
    assert batch.to(torch.device("cpu")) is batch


def test_events_are_padded_on_the_right(known: Features, stats: Stats) -> None:
    batch = make_batch(known, stats, letters, TOKENS)
    assert batch.type_BS.tolist() == [[2, 3, 1], [2, 0, 0], [0, 0, 0]]
    assert batch.category_BS.tolist() == [[2, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert batch.hour_BS.tolist() == [[0, 0, 23], [0, 0, 0], [0, 0, 0]]
    assert batch.weekday_BS.tolist() == [[6, 0, 1], [1, 0, 0], [0, 0, 0]]
    amount, gap, age = batch.event_BSX.unbind(-1)
    assert not batch.event_BSX[batch.type_BS == 0].any()
    assert amount[0].tolist() == pytest.approx(stats.amount.apply(np.array([5.0, -5.0, 9.0])))
    assert gap[0].tolist() == pytest.approx([0, math.log1p(24) / 4, math.log1p(47) / 4])
    assert age[0].tolist() == pytest.approx([math.log1p(h) / 8 for h in (72, 48, 1)])
    assert batch.event_days[0].tolist() == pytest.approx([3, 2, 1 / 24], rel=1e-5)


def test_what_is_unknown_is_flagged_and_zero(known: Features, stats: Stats) -> None:
    batch = make_batch(known, stats, letters, TOKENS)
    unknown = known.frame.select(pl.col(known.tabular).is_null()).to_numpy()
    assert unknown[2].any() and not unknown[2].all()
    assert np.array_equal(batch.missing_BF.numpy(), unknown)
    assert not batch.tabular_BF[batch.missing_BF == 1].any()
    recency = known.tabular.index("recency_d")
    assert batch.tabular_BF[0, recency] < batch.tabular_BF[1, recency]
    assert batch.categorical_BC.tolist() == [[1], [0], [0]]


def test_who_has_ties_and_who_has_none(known: Features, stats: Stats) -> None:
    batch = make_batch(known, stats, letters, TOKENS)
    assert batch.tied_B.tolist() == [True, False, False]
    without = make_batch(replace(known, social=()), stats, letters, TOKENS)
    assert without.social_BG.shape == (3, 0)
    assert without.tied_B.tolist() == [False, False, False]


def test_labels_are_nan_where_unknown(known: Features, stats: Stats) -> None:
    labels = make_batch(known, stats, letters, TOKENS, ["y_spend", "y_bad"]).labels_BK
    assert torch.nan_to_num(labels, -1).tolist() == [[-1, 1], [3, 0], [4, -1]]
    assert make_batch(known, stats, letters, TOKENS).labels_BK.shape == (3, 0)


def test_each_text_is_encoded_once(known: Features, stats: Stats) -> None:
    """Two users wrote the same; the index finds it for both."""
    batch = make_batch(known, stats, letters, TOKENS)
    assert batch.texts.strings == ("late", "thanks")
    assert batch.text_BT.tolist() == [[0, 1], [0, -1], [-1, -1]]
    ages = [[math.log1p(3) / 4, math.log1p(2) / 4], [math.log1p(1) / 4, 0], [0, 0]]
    assert batch.text_age_BT.flatten().tolist() == pytest.approx(list(chain(*ages)))
    assert batch.text_days.flatten().tolist() == pytest.approx([3, 2, 1, 0, 0, 0], rel=1e-5)
    assert [n for mask in batch.texts.masks for n in mask.sum(1).tolist()] == [6, 8]


@pytest.mark.parametrize("users", [0, 1, 2])
def test_nobody_and_users_of_whom_nothing_is_known(
    known: Features, stats: Stats, make_events: Make, users: int
) -> None:
    nothing = features_of([], users, make_events)
    batch = make_batch(nothing, stats, letters, TOKENS)
    assert len(batch) == users
    assert batch.texts == Texts(tokens=(), masks=(), strings=())
    assert batch.type_BS.tolist() == [[0]] * users
    assert batch.text_BT.tolist() == [[-1]] * users
    rows = replace(known, frame=known.frame[:0])
    assert len(make_batch(rows, stats, letters, TOKENS, ["y_bad"])) == 0


def test_a_row_is_the_same_alone_but_for_the_padding(known: Features, stats: Stats) -> None:
    together = make_batch(known, stats, letters, TOKENS)
    for row in range(3):
        alone = make_batch(replace(known, frame=known.frame[row]), stats, letters, TOKENS)
        for name in ("tabular_BF", "missing_BF", "categorical_BC", "social_BG", "tied_B"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row])
        length = alone.type_BS.shape[1]
        for name in ("type_BS", "hour_BS", "event_BSX"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row, :length])


@settings(max_examples=25)
@given(st.lists(st.lists(st.text("abc", max_size=9), max_size=4), min_size=1, max_size=9))
def test_the_index_leads_back_to_the_texts(make_events: Make, per_user: list[list[str]]) -> None:
    log = [
        {"user_key": user, "event_time": AS_OF - HOUR * age, "text": text}
        for user, texts in enumerate(per_user, start=1)
        for age, text in enumerate(texts, start=1)
    ]
    made = features_of(log, len(per_user), make_events)
    empty = pl.DataFrame({"y": []})
    batch = make_batch(made, fit_stats(VOCABULARY, made, empty, {}), letters, TOKENS)
    strings = batch.texts.strings
    found = [[strings[i] for i in row if i >= 0] for row in batch.text_BT.tolist()]
    assert found == [texts[:2][::-1] for texts in per_user]
    assert len(set(strings)) == len(strings)
    for row in batch.text_BT.tolist():
        assert row == [i for i in row if i >= 0] + [-1] * row.count(-1)


def many_texts(count: int) -> list[str]:
    """Distinct texts with log-normal lengths, as those of a marketplace."""
    words = np.random.default_rng(1).lognormal(2.6, 0.7, count).astype(int).clip(1, 60)
    return [" ".join([f"n{place}", *["good"] * n]) for place, n in enumerate(words)]


def padding_share(texts: Texts) -> float:
    return 1 - sum(int(m.sum()) for m in texts.masks) / sum(m.numel() for m in texts.masks)


@pytest.mark.parametrize("count", [60, 1000])
def test_chunks_of_like_lengths_have_little_padding(count: int) -> None:
    tokenizer, strings = load_tokenizer("minilm"), many_texts(count)
    texts, rank = make_texts(strings, tokenizer, 64)
    assert [texts.strings[i] for i in rank] == strings
    for tokens, mask in zip(texts.tokens, texts.masks, strict=True):
        lengths = mask.sum(1)
        assert EVENNESS * tokens.shape[1] <= lengths.min() <= lengths.max() == tokens.shape[1]
        assert tokens.numel() <= CHUNK_TOKENS
    assert padding_share(texts) < 0.1
    encoded = tokenizer(strings, truncation=True, max_length=64)["input_ids"]
    mask = pad(encoded)[1]
    assert padding_share(Texts((mask,), (mask,), tuple(strings))) > 0.5


def test_a_chunk_has_a_text_however_long() -> None:
    long = [f"{place} " + "word " * (CHUNK_TOKENS + 9) for place in range(2)]
    texts, _ = make_texts(long, letters, 2 * CHUNK_TOKENS)
    assert [len(tokens) for tokens in texts.tokens] == [1, 1]


def test_tokens_are_the_tokenizers_and_the_mask_covers_them() -> None:
    tokenizer = load_tokenizer("minilm")
    strings = ["", "refund please", "the parcel never came and nobody answers " * 9]
    texts, rank = make_texts(strings, tokenizer, 20)
    expected = tokenizer(strings, truncation=True, max_length=20)["input_ids"]
    rows = [
        row
        for pair in zip(texts.tokens, texts.masks, strict=True)
        for row in zip(*pair, strict=True)
    ]
    for place, ids in zip(rank, expected, strict=True):
        tokens, mask = (part.tolist() for part in rows[place])
        assert tokens == ids + [0] * (len(tokens) - len(ids))
        assert mask == [1] * len(ids) + [0] * (len(tokens) - len(ids))


@pytest.mark.parametrize(
    "wrong",
    [
        {"tied_B": torch.zeros(2, dtype=torch.bool)},  # not as many rows
        {"tied_B": torch.zeros(3, 1, dtype=torch.bool)},  # not one axis
        {"social_BG": torch.full((3, 5), math.nan)},
        {"text_age_BT": torch.full((3, 2), math.inf)},
        {"text_BT": torch.full((3, 2), 2)},  # there are two texts, 0 and 1
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_batch_that_does_not_fit_together_is_a_fault(
    known: Features, stats: Stats, wrong: dict[str, torch.Tensor]
) -> None:
    batch: Batch = make_batch(known, stats, letters, TOKENS)
    with pytest.raises(AssertionError):
        replace(batch, **wrong)


def test_texts_that_do_not_fit_together_are_a_fault() -> None:
    one = torch.zeros(1, 8, dtype=torch.int64)
    for tokens, strings in (((one,), ("a",)), ((), ("a",)), ((one,), ())):
        with pytest.raises(AssertionError):
            Texts(tokens=tokens, masks=(), strings=strings)


def test_some_of_the_texts_keep_their_tokens() -> None:
    strings = [f"text {'word ' * n}{n}" for n in range(40)]
    texts, _ = make_texts(strings, load_tokenizer("minilm"), 32)
    chosen = [n % 3 == 0 for n in range(40)]
    some = texts.where(chosen)
    assert some.strings == texts.strings[::3]
    rows = [row for chunk in texts.tokens for row in chunk]
    kept = [row for chunk in some.tokens for row in chunk]
    assert all(torch.equal(a, b) for a, b in zip(kept, rows[::3], strict=True))
    assert sum(len(mask) for mask in some.masks) == len(kept) == sum(chosen)
    assert texts.where([n < 2 for n in range(40)]).strings == texts.strings[:2]


@settings(max_examples=25)
@given(st.integers(0, 200), st.integers(1, 20_000))
def test_merged_chunks_are_few_and_hold_the_same_texts_in_order(count: int, places: int) -> None:
    strings = many_texts(count)
    texts, _ = make_texts(strings, letters, 64) if strings else (Texts((), (), ()), None)
    merged = texts.merged(places)
    assert merged.strings == texts.strings
    assert own_tokens(merged) == own_tokens(texts)
    alone = {tokens.shape for tokens in texts.tokens}
    assert all(tokens.numel() <= places or tokens.shape in alone for tokens in merged.tokens)
    for shorter, longer in pairwise(merged.tokens):  # the next chunk did not fit
        assert (len(shorter) + len(longer)) * longer.shape[1] > places
    assert len(texts.merged(1).tokens) == len(texts.tokens)


def own_tokens(texts: Texts) -> list[list[int]]:
    return [
        one[mask.bool()].tolist()
        for chunk, masks in zip(texts.tokens, texts.masks, strict=True)
        for one, mask in zip(chunk, masks, strict=True)
    ]


def test_a_batch_on_another_device_has_fewer_chunks(known: Features, stats: Stats) -> None:
    batch = make_batch(known, stats, letters, 64)
    texts, _ = make_texts(many_texts(4000), letters, 64)
    moved = replace(batch, texts=texts).to(torch.device("meta"))
    assert moved.tabular_BF.device.type == "meta"
    assert 1 < len(moved.texts.tokens) < len(texts.tokens)
    assert all(tokens.device.type == "meta" for tokens in moved.texts.tokens)
    assert batch.to(torch.device("cpu")) is batch
