import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.schema import (
    EDGES,
    EVENTS,
    IDENTITIES,
    LABELS,
    PARTITIONS,
    Table,
    bucket_of,
    empty,
    protected_table,
    users_table,
)

TABLES = (EVENTS, EDGES, LABELS, IDENTITIES, users_table(("income",), ("city",)))
KEYS = st.integers(-(2**63), 2**63 - 1)


def buckets(keys: list[int], count: int) -> list[int]:
    frame = pl.DataFrame({"user_key": keys}, schema={"user_key": pl.Int64})
    return frame.select(bucket_of(pl.col("user_key"), count)).to_series().to_list()


@given(st.lists(KEYS, max_size=20), st.integers(0, 15))
def test_doubling_the_buckets_splits_each_in_two(keys: list[int], k: int) -> None:
    few, many = buckets(keys, 2**k), buckets(keys, 2 ** (k + 1))
    assert few == [bucket // 2 for bucket in many]
    assert all(0 <= bucket < 2 ** (k + 1) for bucket in many)


@given(st.lists(KEYS, max_size=20))
def test_buckets_rise_with_the_key(keys: list[int]) -> None:
    assert buckets(sorted(keys), 64) == sorted(buckets(keys, 64))


def test_the_ends_of_the_keys_lie_in_the_end_buckets() -> None:
    for count in (2, 4):
        ends = [0, count // 2 - 1, count // 2, count - 1]
        assert buckets([-(2**63), -1, 0, 2**63 - 1], count) == ends
    assert buckets([-(2**63), 2**63 - 1], 65_536) == [0, 65_535]


@pytest.mark.parametrize("count", [3, 6, 2**17])
def test_a_number_of_buckets_that_is_no_power_of_two_is_a_fault(count: int) -> None:
    with pytest.raises(AssertionError):
        bucket_of(pl.col("user_key"), count)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_keys_and_order_are_columns_and_partitions_are_there(table: Table) -> None:
    frame = empty(table)
    assert frame.is_empty()
    assert {*table.key, *table.sort, *PARTITIONS} <= set(frame.columns)


def test_declared_columns_become_numbers_and_texts() -> None:
    schema = empty(users_table(("income",), ("city",))).schema
    assert (schema["income"], schema["city"]) == (pl.Float64, pl.String)
    assert empty(protected_table(("age_band",))).schema["age_band"] == pl.String
