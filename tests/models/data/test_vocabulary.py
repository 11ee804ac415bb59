from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.data.schema import UserError
from models.data.vocabulary import (
    PAD,
    UNKNOWN,
    Vocabulary,
    check_event_types,
    count_values,
    most_frequent,
)

WORDS = Vocabulary(
    event_types=("buy", "refund"),
    categories=("shoes",),
    categorical=("city",),
    levels={"city": ("Oslo", "Bergen")},
)


def texts(*values: str | None) -> pl.Series:
    return pl.Series("value", values, dtype=pl.String)


def test_known_values_have_codes_of_their_own() -> None:
    assert WORDS.type_codes(texts("refund", "buy", "refund")).tolist() == [3, 2, 3]
    assert WORDS.category_codes(texts("shoes")).tolist() == [2]
    assert WORDS.level_codes("city", texts("Oslo", "Bergen")).tolist() == [1, 2]


@pytest.mark.parametrize("value", ["BUY", "", " buy", "new", None])
def test_values_not_seen_share_the_code_of_the_unknown(value: str | None) -> None:
    assert WORDS.type_codes(texts(value)).tolist() == [UNKNOWN]
    assert WORDS.category_codes(texts(value)).tolist() == [UNKNOWN]
    assert WORDS.level_codes("city", texts(value)).tolist() == [0]
    assert UNKNOWN != PAD


def test_codes_of_nothing_and_of_an_empty_vocabulary() -> None:
    nothing = Vocabulary(event_types=())
    for words in (WORDS, nothing):
        assert words.type_codes(texts()).tolist() == []
        assert words.level_codes("other", texts("a", None)).tolist() == [0, 0]
    assert nothing.type_codes(texts("a", None)).tolist() == [UNKNOWN, UNKNOWN]


PARTS = st.lists(st.lists(st.sampled_from(["a", "b", "c", "é", None]), max_size=8), max_size=5)


@given(PARTS, st.integers(0, 5))
def test_counts_of_parts_add_up_in_any_order(parts: list[list[str | None]], limit: int) -> None:
    counts = [count_values(texts(*part).to_frame(), "value") for part in parts]
    empty = pl.DataFrame(schema={"value": pl.String, "n": pl.Int64})
    whole = Counter(word for part in parts for word in part if word is not None)
    expected = tuple(sorted(whole, key=lambda word: (-whole[word], word)))[:limit]
    assert most_frequent(pl.concat([empty, *counts]), limit) == expected
    assert most_frequent(pl.concat([empty, *reversed(counts)]), limit) == expected


def test_counts_are_those_of_the_values() -> None:
    counted = count_values(texts("b", None, "a", "b").to_frame(), "value")
    assert counted.schema == {"value": pl.String, "n": pl.Int64}
    assert dict(counted.rows()) == {"a": 1, "b": 2}


def test_it_survives_json_and_refuses_what_it_does_not_know() -> None:
    assert Vocabulary.model_validate_json(WORDS.model_dump_json()) == WORDS
    with pytest.raises(ValidationError):
        Vocabulary.model_validate({"event_types": ["buy"], "colour": "red"})


def test_no_event_type_is_refused() -> None:
    check_event_types(["buy"])
    with pytest.raises(UserError, match="events: none lies before"):
        check_event_types([])
