"""Every table of the lake, one definition: Arrow schema, primary key, sort order, checks.

Times are `timestamp[us, UTC]`, money is `decimal(18, 4)` in the row's own currency with its sign
(positive: the user pays), keys are 64 bits. Every table that is keyed by a user carries `bucket`,
`source` and `period`, the Delta partition columns of a source file's month: a corrected file
replaces exactly its own partitions.
"""

from dataclasses import dataclass

import polars as pl
import pyarrow as pa

TIMESTAMP = pa.timestamp("us", tz="UTC")
AMOUNT_SCALE = 4  # decimal places of an amount; sums are exact in units of 10**-4
MAX_ABS_AMOUNT = 10**10  # a larger one is a fault in the file, and would overflow lifetime sums
FIRST_YEAR = 1990  # earlier event times are faults in the file (zero epochs, two-digit years)
PARTITIONS = ("source", "period", "bucket")


class UserError(ValueError):
    """Something that the user can put right; one clear line. The command exits with 2."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A canonical table: its columns, the key that makes a row unique, the order on disk."""

    name: str
    schema: pa.Schema
    key: tuple[str, ...]
    sort: tuple[str, ...]
    required: tuple[str, ...]  # what a source must map


def _fields(*pairs: tuple[str, pa.DataType]) -> list[pa.Field]:
    return [pa.field(name, kind) for name, kind in pairs]


_ORIGIN = _fields(("source", pa.string()), ("period", pa.string()), ("bucket", pa.int32()))

EVENTS = Table(
    name="events",
    schema=pa.schema(
        [
            *_fields(
                ("user_key", pa.int64()),
                ("event_id", pa.int64()),
                ("event_time", TIMESTAMP),
                ("available_at", TIMESTAMP),
                ("utc_offset_min", pa.int16()),
                ("event_type", pa.string()),
                ("item", pa.string()),
                ("category", pa.string()),
                ("counterparty_key", pa.int64()),
                ("amount", pa.decimal128(18, AMOUNT_SCALE)),
                ("currency", pa.string()),
                ("text", pa.string()),
            ),
            *_ORIGIN,
        ]
    ),
    key=("user_key", "event_id"),
    sort=("user_key", "event_time", "event_id"),
    required=("user_id", "event_time", "event_type"),
)

EDGES = Table(
    name="edges",
    schema=pa.schema(
        [
            *_fields(
                ("user_key", pa.int64()),  # src: always a user
                ("dst", pa.int64()),  # a user, device, address or referral code
                ("dst_kind", pa.string()),
                ("relation", pa.string()),
                ("weight", pa.float64()),
                ("valid_from", TIMESTAMP),
                ("valid_to", TIMESTAMP),
                ("available_at", TIMESTAMP),
            ),
            *_ORIGIN,
        ]
    ),
    key=("user_key", "dst", "relation", "valid_from"),
    sort=("user_key", "relation", "dst", "valid_from"),
    required=("user_id", "other_id", "relation", "valid_from"),
)

LABELS = Table(
    name="labels",
    schema=pa.schema(
        [
            *_fields(
                ("user_key", pa.int64()),
                ("task", pa.string()),
                ("as_of", TIMESTAMP),
                ("value", pa.float64()),
                ("matured_at", TIMESTAMP),
                ("proposed_amount", pa.decimal128(18, AMOUNT_SCALE)),
                ("proposed_category", pa.string()),
            ),
            *_ORIGIN,
        ]
    ),
    key=("user_key", "task", "as_of"),
    sort=("user_key", "as_of", "task"),
    required=("user_id", "task", "as_of", "value", "matured_at"),
)

IDENTITIES = Table(
    name="identities",
    schema=pa.schema([*_fields(("user_key", pa.int64()), ("user_id", pa.string())), *_ORIGIN]),
    key=("user_key", "user_id"),
    sort=("user_key",),
    required=("user_id",),
)

REJECTED = Table(
    name="rejected",
    schema=pa.schema(
        _fields(
            ("source", pa.string()),
            ("period", pa.string()),
            ("file", pa.string()),
            ("row", pa.int64()),  # null: the file as a whole
            ("reason", pa.string()),
            ("content", pa.string()),  # the row as JSON, ids and texts masked
        )
    ),
    key=("source", "file", "row"),
    sort=("source", "file", "row"),
    required=(),
)


def users_table(numeric: tuple[str, ...], categorical: tuple[str, ...]) -> Table:
    """The `users` table for the profile columns that a configuration declares.

    Columns: `user_key`, `valid_from`, `available_at`, one float64 a numeric column, one string a
    categorical column.
    """
    declared = [(c, pa.float64()) for c in numeric] + [(c, pa.string()) for c in categorical]
    return Table(
        name="users",
        schema=pa.schema(
            [
                *_fields(
                    ("user_key", pa.int64()),
                    ("valid_from", TIMESTAMP),
                    ("available_at", TIMESTAMP),
                    *declared,
                ),
                *_ORIGIN,
            ]
        ),
        key=("user_key", "valid_from"),
        sort=("user_key", "valid_from"),
        required=("user_id",),
    )


def protected_table(columns: tuple[str, ...]) -> Table:
    """The `protected` table: read by `tune` alone, to judge fairness by."""
    pairs = [(c, pa.string()) for c in columns]
    return Table(
        name="protected",
        schema=pa.schema([*_fields(("user_key", pa.int64()), *pairs), *_ORIGIN]),
        key=("user_key",),
        sort=("user_key",),
        required=("user_id",),
    )


def empty(table: Table) -> pl.DataFrame:
    """A frame of the table with no rows."""
    frame = pl.from_arrow(table.schema.empty_table())
    assert isinstance(frame, pl.DataFrame)
    return frame
