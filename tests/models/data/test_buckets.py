import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.buckets import MOST, ROWS, bucket_of, buckets, count_for, overlap, within

KEYS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20)
COUNTS = st.integers(0, 15).map(lambda k: 2**k)


def frame_of(keys: list[int]) -> pl.DataFrame:
    return pl.DataFrame({"user_key": keys}, schema={"user_key": pl.Int64})


def placed(keys: list[int], count: int) -> list[int]:
    return frame_of(keys).select(bucket_of(pl.col("user_key"), count)).to_series().to_list()


@given(KEYS, COUNTS)
def test_doubling_the_buckets_splits_each_in_two(keys: list[int], count: int) -> None:
    few, many = placed(keys, count), placed(keys, 2 * count)
    assert few == [bucket // 2 for bucket in many]
    assert set(many) <= set(buckets(2 * count))


@given(KEYS)
def test_buckets_rise_with_the_key(keys: list[int]) -> None:
    assert placed(sorted(keys), 64) == sorted(placed(keys, 64))


def test_the_ends_of_the_keys_lie_in_the_end_buckets() -> None:
    for count in (2, 4):
        ends = [count, count + count // 2 - 1, count + count // 2, 2 * count - 1]
        assert placed([-(2**63), -1, 0, 2**63 - 1], count) == ends
    assert placed([-(2**63), 2**63 - 1], MOST) == [MOST, 2 * MOST - 1]


@given(KEYS, COUNTS, COUNTS)
def test_files_of_any_fineness_give_the_users_of_a_bucket(
    keys: list[int], held_count: int, asked_count: int
) -> None:
    """Whatever the files' buckets, each user is found in one bucket: their own."""
    rows = frame_of(keys)
    files = {
        held: rows.filter(bucket_of(pl.col("user_key"), held_count) == held)
        for held in set(placed(keys, held_count))
    }
    for asked in set(placed(keys, asked_count)):
        found = [
            within(file, held, asked)["user_key"].to_list()
            for held, file in files.items()
            if overlap(held, asked)
        ]
        if held_count <= asked_count:  # else the files are parts of the bucket
            assert len(found) == 1
        own = rows.filter(bucket_of(pl.col("user_key"), asked_count) == asked)
        assert sorted(k for one in found for k in one) == sorted(own["user_key"].to_list())


@pytest.mark.parametrize("count", [3, 6, 2 * MOST])
def test_a_number_of_buckets_that_is_no_power_of_two_is_a_fault(count: int) -> None:
    with pytest.raises(AssertionError):
        bucket_of(pl.col("user_key"), count)


@pytest.mark.parametrize(
    ("rows", "count"),
    [(0, 4), (4 * ROWS, 4), (4 * ROWS + 1, 8), (100_000_000, 128), (10**15, MOST)],
)
def test_a_bucket_has_at_most_about_a_million_rows(rows: int, count: int) -> None:
    assert count_for(rows) == count
