"""Requests made of what the lake knows."""

import json
from datetime import UTC, datetime, timedelta

import polars as pl

from models.data.history import HistoryConfig, no_events, profile_as_of, view
from models.data.rows import rows_as_of
from ray_jobs.config import Profile
from ray_jobs.serving import api, convert
from ray_jobs.serving.client import requests_of

AS_OF, DAY = datetime(2024, 5, 1, tzinfo=UTC), timedelta(days=1)


def test_a_request_tells_the_profile_that_training_sees() -> None:
    """Of two sources; of a user whom one of them knows later, and of one whom none knows."""
    known = [
        ("crm", 1, datetime(1990, 1, 1, tzinfo=UTC), None, "Leeds"),
        ("bank", 1, AS_OF - DAY, 20.0, None),
        ("bank", 1, AS_OF + DAY, 30.0, None),
        ("bank", 2, AS_OF + DAY, 40.0, None),
    ]
    names = ["source", "user_key", "valid_from", "income", "city"]
    times = {"valid_from": pl.Datetime("us", "UTC")}
    profiles = pl.DataFrame(known, schema=names, orient="row", schema_overrides=times)
    profiles = profiles.with_columns(available_at="valid_from", period=pl.lit("all"))
    users = {3: "c", 1: "a", 2: "b"}
    bodies = list(requests_of(users, no_events(), profiles, AS_OF))
    told = {body["user_id"]: body["profile"] for body in bodies}
    assert told == {"a": {"income": 20.0, "city": "Leeds"}, "b": {}, "c": {}}

    terms = api.Terms(profile=Profile(numeric=("income",), categorical=("city",)))
    asked = [api.parse(json.dumps(body).encode(), terms) for body in bodies]
    history, rows = convert.to_history(asked, secret=b"s", terms=terms, social=None)
    served = view(history, rows, HistoryConfig()).profile
    trained = profile_as_of(profiles, rows_as_of(pl.Series(list(users)), AS_OF))
    order = sorted(users).index
    assert served is not None
    assert served.drop("row").rows() == [trained.drop("row").row(order(key)) for key in users]
