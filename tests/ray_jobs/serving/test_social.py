"""Graph snapshots online: the same rows that a join would give, each part read once."""

from collections import Counter
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.buckets import bucket_of
from ray_jobs.serving import social
from ray_jobs.serving.social import GraphReader, SocialLookup

TIMES = pl.Datetime("us", "UTC")
BUCKETS = 4
MAY, JUNE = datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 6, 1, tzinfo=UTC)
KEYS = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)


def snapshot(date: datetime, keys: list[int], measure: str = "device_nodes") -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user_key": pl.Series(keys, dtype=pl.Int64),
            "graph_date": pl.Series([date] * len(keys), dtype=TIMES),
            measure: [float(i) for i in range(len(keys))],
        }
    )


def bucket(key: int) -> int:
    return int(pl.select(bucket_of(pl.lit(key, pl.Int64), BUCKETS)).item())


class Snapshots:
    """Graph snapshots by date; counts how often each part is read."""

    def __init__(self, *snapshots: pl.DataFrame) -> None:
        self.by_date = {s["graph_date"][0]: s for s in snapshots}
        self.reads: Counter[tuple[datetime, int]] = Counter()

    def lookup(self) -> SocialLookup:
        return SocialLookup(GraphReader(self._read, BUCKETS))

    def _read(self, date: datetime, number: int) -> pl.DataFrame | None:
        self.reads[date, number] += 1
        if date not in self.by_date:
            return None
        return self.by_date[date].filter(bucket_of(pl.col("user_key"), BUCKETS) == number)


def ask(lookup: SocialLookup, pairs: list[tuple[int, datetime]]) -> pl.DataFrame | None:
    keys, dates = [k for k, _ in pairs], [d for _, d in pairs]
    return lookup.rows(pl.Series(keys, dtype=pl.Int64), pl.Series(dates, dtype=TIMES))


@given(st.lists(KEYS, min_size=1, unique=True), st.lists(KEYS, max_size=8))
def test_finds_what_a_join_finds(there: list[int], asked: list[int]) -> None:
    table = snapshot(MAY, there)
    found = ask(Snapshots(table).lookup(), [(key, MAY) for key in asked])
    expected = table.filter(pl.col("user_key").is_in(asked)).sort("user_key")
    if not asked:
        assert found is None
    else:
        assert found is not None
        assert found.sort("user_key").equals(expected)


def test_each_part_is_read_once_and_rows_belong_to_their_month() -> None:
    snapshots = Snapshots(snapshot(MAY, [1, 2]), snapshot(JUNE, [2, 3], "address_nodes"))
    lookup = snapshots.lookup()
    for _ in range(3):
        found = ask(lookup, [(2, MAY), (2, JUNE), (1, JUNE)])
        assert found is not None
        assert found.select("user_key", "graph_date").rows() == [(2, MAY), (2, JUNE)]
    assert snapshots.reads == {(MAY, bucket(2)): 1, (JUNE, bucket(2)): 1}


def test_only_the_parts_of_who_is_asked_for_are_read() -> None:
    low, high = -(2**62), 2**62
    snapshots = Snapshots(snapshot(MAY, [low, high]))
    lookup = snapshots.lookup()
    assert ask(lookup, [(low, MAY)]) is not None
    assert snapshots.reads == {(MAY, bucket(low)): 1}
    found = ask(lookup, [(low, MAY), (high, MAY), (high - 1, MAY), (high, MAY)])
    assert found is not None
    assert found["user_key"].to_list() == [low, high]


def test_a_part_without_ties_is_read_once() -> None:
    snapshots = Snapshots(snapshot(MAY, [-1]))
    lookup = snapshots.lookup()
    for _ in range(2):
        found = ask(lookup, [(1, MAY)])
        assert found is not None and found.is_empty()
    assert snapshots.reads == {(MAY, bucket(1)): 1}


def test_a_month_not_there_yet_is_looked_for_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    snapshots = Snapshots(snapshot(MAY, [1]))
    lookup = snapshots.lookup()
    assert ask(lookup, [(1, JUNE)]) is None
    snapshots.by_date[JUNE] = snapshot(JUNE, [-1, 1])
    assert ask(lookup, [(1, JUNE), (-1, JUNE)]) is None
    assert snapshots.reads == {(JUNE, bucket(1)): 1}
    later = social.time.monotonic() + social.LOOK_AGAIN_S
    monkeypatch.setattr(social.time, "monotonic", lambda: later)
    found = ask(lookup, [(1, JUNE), (-1, JUNE)])
    assert found is not None and found.height == 2


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(social, "BYTES_KEPT", 4 * social.PART_BYTES)
    months = [datetime(2023, month, 1, tzinfo=UTC) for month in range(1, 13)]
    snapshots = Snapshots(*(snapshot(month, [1]) for month in months))
    lookup = snapshots.lookup()
    for month in months:
        assert ask(lookup, [(1, month)]) is not None
        assert ask(lookup, [(1, months[0])]) is not None  # what is asked for often stays
    assert 1 < len(lookup._parts) <= 4
    ask(lookup, [(1, months[-1])])
    assert snapshots.reads == {(month, bucket(1)): 1 for month in months}
    ask(lookup, [(1, months[1])])
    assert snapshots.reads[months[1], bucket(1)] == 2


def test_a_part_larger_than_memory_allows_is_still_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(social, "BYTES_KEPT", 1)
    lookup = Snapshots(snapshot(MAY, [-1, 1])).lookup()
    found = ask(lookup, [(1, MAY), (-1, MAY)])
    assert found is not None and found.height == 2
    assert len(lookup._parts) == 1


def test_a_lake_may_have_no_ties_at_all() -> None:
    assert ask(Snapshots().lookup(), [(1, MAY), (2, JUNE)]) is None
