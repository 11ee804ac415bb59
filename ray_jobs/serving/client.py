"""Requests to the endpoint made of what the lake knows: for the demo, and for parity tests."""

import json
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import polars as pl

from models.data.history import profile_as_of
from models.data.rows import rows_as_of
from ray_jobs.serving.api import MAX_EVENTS


def requests_of(
    users: Mapping[int, str], events: pl.DataFrame, profiles: pl.DataFrame | None, as_of: datetime
) -> Iterator[dict[str, Any]]:
    """One request body a user, with the last events before `as_of` that the endpoint takes.

    `users`: user_key → the user's own id. Events carry the lake's own numbers as `event_id`.
    """
    known = events.filter(pl.col("event_time") < as_of, pl.col("available_at") <= as_of)
    past = None
    if profiles is not None:
        rows = rows_as_of(pl.Series(list(users), dtype=pl.Int64), as_of)
        past = rows.join(profile_as_of(profiles, rows), on="row").drop("row", "as_of")
    for key, user_id in users.items():
        own = known.filter(pl.col("user_key") == key).sort("event_time", "event_id")
        body: dict[str, Any] = {
            "user_id": user_id,
            "as_of": as_of.isoformat(),
            "events": [_event(row) for row in own.tail(MAX_EVENTS).iter_rows(named=True)],
        }
        if past is not None:
            body["profile"] = _profile(past.filter(pl.col("user_key") == key))
        yield body


def post(url: str, token: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The endpoint's answer. Raises urllib.error.HTTPError on a 4xx or 5xx."""
    request = urllib.request.Request(
        f"{url}/v1/score",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    # a proxy that the environment names is not to see the token, nor need it reach this machine
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=30) as answer:
        result: dict[str, Any] = json.load(answer)
        return result


def _event(row: Mapping[str, Any]) -> dict[str, Any]:
    """An event of the lake as the endpoint takes it; times in the user's own offset."""
    event = {
        "event_id": row["event_id"],
        "event_time": _local(row["event_time"], row["utc_offset_min"]),
        "available_at": row["available_at"].isoformat(),
        "event_type": row["event_type"],
        "category": row["category"],
        "counterparty_id": None
        if row["counterparty_key"] is None
        else str(row["counterparty_key"]),
        "amount": None if row["amount"] is None else str(row["amount"]),
        "text": row["text"],
    }
    return {name: value for name, value in event.items() if value is not None}


def _local(time: datetime, offset_min: int) -> str:
    return time.astimezone(timezone(timedelta(minutes=offset_min))).isoformat()


def _profile(rows: pl.DataFrame) -> dict[str, Any]:
    row = rows.drop("user_key").row(0, named=True)
    return {name: value for name, value in row.items() if value is not None}
