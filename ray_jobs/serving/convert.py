"""Requests → one History and the rows to score, by the functions that ingest uses."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import polars as pl

from models.data.history import EVENT_COLUMNS, History
from models.data.keys import COUNTERPARTY, id_hash, keys_of
from models.data.redact import redact
from models.data.schema import AMOUNT_SCALE
from models.data.tasks import month_floor
from models.data.values import parse_text, utc_offset_min
from ray_jobs.config import Profile
from ray_jobs.serving.api import Event, ScoreRequest, Terms

TIMES = pl.Datetime("us", "UTC")
AMOUNTS = pl.Decimal(18, AMOUNT_SCALE)


def identify(requests: Sequence[ScoreRequest], secret: bytes) -> pl.DataFrame:
    """(row, user_key, as_of, graph_date) of each request; `user_key` as in the lake."""
    ids = pl.Series("user_id", [one.user_id for one in requests], dtype=pl.String)
    times = pl.Series("as_of", [one.as_of.astimezone(UTC) for one in requests], dtype=TIMES)
    return pl.DataFrame({"user_key": keys_of(secret, ids), "as_of": times}).select(
        pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"),
        "user_key",
        "as_of",
        graph_date=month_floor(pl.col("as_of")),
    )


def to_history(
    requests: Sequence[ScoreRequest],
    *,
    secret: bytes,
    terms: Terms,
    social: pl.DataFrame | None,
) -> tuple[History, pl.DataFrame]:
    """All that a batch of requests tells, as one History, and the rows to score.

    `social`: rows of the graph table (user_key, graph_date, measures …), or None. The rows: row
    (0 … n−1, the requests in order), user_key, as_of, proposed_amount, proposed_category. A
    History is joined on `user_key`, and two requests of one batch may be about the same user as
    of two times, with different events: so here, and in the rows, each request is a user of its
    own, whose `user_key` is its row number.
    """
    known = identify(requests, secret)
    own_key = pl.col("row").cast(pl.Int64).alias("user_key")
    if social is not None:
        asked = known.select("user_key", "graph_date", own_key.alias("own_key"))
        social = asked.join(social, on=["user_key", "graph_date"]).select(
            pl.col("own_key").alias("user_key"), pl.exclude("user_key", "own_key")
        )
    proposed = [one.proposed for one in requests]
    rows = known.select(
        "row",
        own_key,
        "as_of",
        pl.Series("proposed_amount", [p and p.amount for p in proposed], dtype=AMOUNTS),
        pl.Series("proposed_category", [p and p.category for p in proposed], dtype=pl.String),
    )
    history = History(
        recent=_events(requests, secret, terms),
        profiles=_profiles(requests, rows, terms.profile),
        social=social,
    )
    return history, rows


def _events(requests: Sequence[ScoreRequest], secret: bytes, terms: Terms) -> pl.DataFrame:
    """The events of all requests with `EVENT_COLUMNS`, keyed by the request's row."""
    pairs = [(row, event) for row, one in enumerate(requests) for event in one.events]
    events = [event for _, event in pairs]
    others = COUNTERPARTY + _texts(event.counterparty_id for event in events)
    sources = [terms.source_of(event) for event in events]
    known = [e.available_at or e.event_time + s.lag for e, s in zip(events, sources, strict=True)]
    times = _times(event.event_time for event in events)
    return pl.DataFrame(
        {
            "user_key": pl.Series([row for row, _ in pairs], dtype=pl.Int64),
            "event_id": _event_ids(events, terms),
            "event_time": times,
            "available_at": _times(known),
            "utc_offset_min": _offsets(times, _texts(source.timezone for source in sources)),
            "event_type": _texts(event.event_type for event in events),
            "category": _texts(event.category for event in events),
            "counterparty_key": keys_of(secret, others),
            "amount": pl.Series([event.amount for event in events], dtype=AMOUNTS),
            "text": redact(parse_text(_texts(event.text for event in events)).values),
        }
    ).select(EVENT_COLUMNS)


def _profiles(
    requests: Sequence[ScoreRequest], rows: pl.DataFrame, profile: Profile
) -> pl.DataFrame | None:
    """The profile of each request, valid at its as-of time; None where no column is declared."""
    if not (profile.numeric or profile.categorical):
        return None
    numbers = [
        pl.Series(name, [one.profile.get(name) for one in requests], dtype=pl.Float64)
        for name in profile.numeric
    ]
    levels = [
        parse_text(pl.Series(name, [one.profile.get(name) for one in requests], dtype=pl.String))
        for name in profile.categorical
    ]
    return rows.select(
        "user_key", valid_from=pl.col("as_of"), available_at=pl.col("as_of")
    ).with_columns(*numbers, *(level.values for level in levels))


def _event_ids(events: Sequence[Event], terms: Terms) -> pl.Series:
    """int64 of each event's id: a whole number as it is, a text as ingest hashes it."""
    ids = [event.event_id for event in events]
    result = pl.Series("event_id", [i if isinstance(i, int) else None for i in ids], dtype=pl.Int64)
    texts = _texts(i if isinstance(i, str) else None for i in ids)
    sources = _texts(terms.name_of(event) for event in events)
    for source in sources.unique():
        hashed = texts.is_not_null() & (sources == source)
        result = id_hash(texts, source).zip_with(hashed, result)
    return result


def _times(values: Iterable[datetime]) -> pl.Series:
    return pl.Series([value.astimezone(UTC) for value in values], dtype=TIMES)


def _texts(values: Iterable[str | None]) -> pl.Series:
    return pl.Series(list(values), dtype=pl.String)


def _offsets(times: pl.Series, zones: pl.Series) -> pl.Series:
    """Minutes that each event's local time is ahead of UTC, in the zone of its source."""
    result = pl.Series([None] * len(times), dtype=pl.Int16)
    for zone in zones.unique():
        result = utc_offset_min(times, zone).zip_with(zones == zone, result)
    return result
