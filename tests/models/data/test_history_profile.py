"""What is told of users beside their events, as of a time."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from models.data.history import History, HistoryConfig, no_events, profile_as_of, view

Make = Callable[..., pl.DataFrame]

START, MONTH = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
KEEP = HistoryConfig()


def test_the_profile_is_the_one_valid_and_known_as_of(make_rows: Make) -> None:
    month = timedelta(days=31)
    known = [
        (1, START, START, 10.0),
        (1, START + month, START + month, 20.0),
        (1, START + 2 * month, START + 3 * month, 30.0),  # known a month late
        (2, START + 5 * month, START, 99.0),  # announced, not yet valid
    ]
    names = ["user_key", "valid_from", "available_at", "income"]
    times = {c: pl.Datetime("us", "UTC") for c in names[1:3]}
    profiles = pl.DataFrame(known, schema=names, orient="row", schema_overrides=times)
    as_ofs = [START - DAY, START, START + month, START + 2 * month, START + 3 * month]
    rows = make_rows([(1, t) for t in as_ofs] + [(2, MONTH), (3, MONTH)])
    for order in (profiles, profiles.reverse()):
        seen = view(History(no_events(), profiles=order), rows, KEEP).profile
        assert seen is not None and seen.columns == ["row", "income"]
        assert seen["income"].to_list() == [None, 10.0, 20.0, 20.0, 30.0, None, None]


@given(st.permutations(range(5)))
def test_sources_of_profiles_do_not_erase_each_others_columns(
    make_rows: Make, order: list[int]
) -> None:
    """Of each source its latest row; of what several tell, the latest that tells it."""
    known = [
        ("crm", datetime(1990, 1, 1, tzinfo=UTC), 10.0, "Leeds", "f"),  # an immutable source
        ("bank", START, 20.0, None, None),
        ("bank", START + DAY, None, "York", None),  # the bank no longer knows the income
        ("app", START + DAY, 30.0, None, None),
        ("app", START + 2 * DAY, 40.0, None, None),
    ]
    names = ["source", "valid_from", "income", "city", "sex"]
    times = {"valid_from": pl.Datetime("us", "UTC")}
    profiles = pl.DataFrame(known, schema=names, orient="row", schema_overrides=times)
    profiles = profiles.with_columns(user_key=pl.lit(1, pl.Int64), available_at="valid_from")
    rows = make_rows([(1, START + days * DAY) for days in (-1, 0, 1, 2)] + [(2, START)])
    seen = view(History(no_events(), profiles=profiles[order]), rows, KEEP).profile
    assert seen is not None and seen.drop("row").rows() == [
        (10.0, "Leeds", "f"),
        (20.0, "Leeds", "f"),
        (30.0, "York", "f"),
        (40.0, "York", "f"),
        (None, None, None),
    ]
    nothing = profiles.drop("income", "city", "sex")
    assert profile_as_of(nothing, rows).equals(rows.select("row"))
