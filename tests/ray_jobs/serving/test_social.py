"""Graph snapshots online: the same rows that a join would give, each month read once."""

from collections import Counter
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.serving import social
from ray_jobs.serving.social import SocialLookup

TIMES = pl.Datetime("us", "UTC")
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


class Reader:
    """Graph snapshots by date; counts how often each is read."""

    def __init__(self, *snapshots: pl.DataFrame) -> None:
        self.by_date = {s["graph_date"][0]: s for s in snapshots}
        self.reads: Counter[datetime] = Counter()

    def __call__(self, date: datetime) -> pl.DataFrame:
        self.reads[date] += 1
        return self.by_date.get(date, snapshot(date, []))


def ask(lookup: SocialLookup, pairs: list[tuple[int, datetime]]) -> pl.DataFrame | None:
    keys, dates = [k for k, _ in pairs], [d for _, d in pairs]
    return lookup.rows(pl.Series(keys, dtype=pl.Int64), pl.Series(dates, dtype=TIMES))


@given(st.lists(KEYS, min_size=1, unique=True), st.lists(KEYS, max_size=8))
def test_finds_what_a_join_finds(there: list[int], asked: list[int]) -> None:
    table = snapshot(MAY, there)
    found = ask(SocialLookup(Reader(table)), [(key, MAY) for key in asked])
    expected = table.filter(pl.col("user_key").is_in(asked)).sort("user_key")
    if not asked:
        assert found is None
    else:
        assert found is not None
        assert found.sort("user_key").equals(expected)


def test_each_month_is_read_once_and_rows_belong_to_their_month() -> None:
    reader = Reader(snapshot(MAY, [1, 2]), snapshot(JUNE, [2, 3], "address_nodes"))
    lookup = SocialLookup(reader)
    for _ in range(3):
        found = ask(lookup, [(2, MAY), (2, JUNE), (1, JUNE)])
        assert found is not None
        assert found.select("user_key", "graph_date").rows() == [(2, MAY), (2, JUNE)]
    assert reader.reads == {MAY: 1, JUNE: 1}


def test_a_month_not_there_yet_is_looked_for_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = Reader(snapshot(MAY, [1]))
    lookup = SocialLookup(reader)
    assert ask(lookup, [(1, JUNE)]) is None
    reader.by_date[JUNE] = snapshot(JUNE, [1])
    assert ask(lookup, [(1, JUNE)]) is None
    assert reader.reads[JUNE] == 1
    later = social.time.monotonic() + social.LOOK_AGAIN_S
    monkeypatch.setattr(social.time, "monotonic", lambda: later)
    found = ask(lookup, [(1, JUNE)])
    assert found is not None and found.height == 1


def test_memory_is_bounded() -> None:
    months = [datetime(2023, month, 1, tzinfo=UTC) for month in range(1, 13)]
    reader = Reader(*(snapshot(month, [1]) for month in months))
    lookup = SocialLookup(reader)
    for month in months:
        assert ask(lookup, [(1, month)]) is not None
    assert len(lookup._snapshots) == social.DATES_KEPT
    ask(lookup, [(1, months[-1])])
    assert reader.reads[months[-1]] == 1


def test_a_lake_may_have_no_ties_at_all() -> None:
    assert ask(SocialLookup(lambda _: None), [(1, MAY), (2, JUNE)]) is None
