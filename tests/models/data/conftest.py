"""Frames of the canonical tables from a few words each; what is left out has a plain default."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from models.data.history import EVENT_COLUMNS
from models.data.rows import TIME, number
from models.data.schema import EDGES, EVENTS, LABELS, Table, empty

START = datetime(2024, 1, 1, tzinfo=UTC)

MakeFrame = Callable[[Iterable[Mapping[str, Any]]], pl.DataFrame]
MakeRows = Callable[[Sequence[tuple[int, datetime]]], pl.DataFrame]


def _frame(table: Table, records: list[dict[str, Any]]) -> pl.DataFrame:
    schema = empty(table).schema
    columns = {name: [r.get(name) for r in records] for name in schema}
    return pl.DataFrame(columns, schema=schema)


@pytest.fixture(scope="session")
def make_events() -> MakeFrame:
    """Canonical events. Left out: user 1, ids by place, available at once, a "buy" of nothing."""

    def build(given: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
        records = []
        for place, one in enumerate(given):
            record = {
                "user_key": 1,
                "event_id": place,
                "available_at": one["event_time"],
                "utc_offset_min": 0,
                "event_type": "buy",
                **one,
            }
            records.append(record | {"amount": Decimal(str(record.get("amount", 0)))})
        return _frame(EVENTS, records).select(EVENT_COLUMNS)

    return build


@pytest.fixture(scope="session")
def make_edges() -> MakeFrame:
    """Canonical edges. Left out: the relation "device" to a device, valid and known since START."""

    def build(given: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
        default = {"dst_kind": "device", "relation": "device", "weight": 1.0}
        times = {"valid_from": START, "available_at": START}
        return _frame(EDGES, [{**default, **times, **one} for one in given])

    return build


@pytest.fixture(scope="session")
def make_labels() -> MakeFrame:
    """Canonical labels. Left out: user 1, the task "default"."""

    def build(given: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
        return _frame(LABELS, [{"user_key": 1, "task": "default", **one} for one in given])

    return build


@pytest.fixture(scope="session")
def make_rows() -> MakeRows:
    """Rows of (user_key, as_of) pairs, numbered as they are given."""

    def build(given: Sequence[tuple[int, datetime]]) -> pl.DataFrame:
        schema = {"user_key": pl.Int64, "as_of": TIME}
        return number(pl.DataFrame(given, schema=schema, orient="row"))

    return build
