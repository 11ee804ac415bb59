"""What a source is: the user's own files, and how their columns map to a canonical table."""

from datetime import datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from models.data.schema import EDGES, EVENTS, LABELS
from models.data.strict import Strict

TableName = Literal["events", "users", "edges", "labels", "protected"]

# What a source may map to, beside the profile or protected columns that it declares. Ids are the
# user's own; ingest turns them into keys.
MAPPABLE: dict[str, tuple[str, ...]] = {
    "events": (
        "user_id", "event_id", "event_time", "available_at", "event_type", "item", "category",
        "counterparty_id", "amount", "currency", "text",
    ),
    "users": ("user_id", "valid_from", "available_at"),
    "edges": (
        "user_id", "other_id", "other_kind", "relation", "weight", "valid_from", "valid_to",
        "available_at",
    ),
    "labels": (
        "user_id", "task", "as_of", "value", "matured_at", "proposed_amount", "proposed_category",
    ),
    "protected": ("user_id",),
}  # fmt: skip
REQUIRED: dict[str, tuple[str, ...]] = {
    "events": EVENTS.required,
    "users": ("user_id",),
    "edges": EDGES.required,
    "labels": LABELS.required,
    "protected": ("user_id",),
}


class Source(Strict):
    """One source: files of one shape, mapped to one canonical table.

    `columns` maps a canonical column to a column of the file or a row-wise SQL expression over
    its columns; `values` then maps the values of a canonical text column. Local times are read
    in `timezone`. An event is known `lag` after it happened unless `available_at` is mapped.
    Nothing at or after `complete_until` may be relied on: as-of times and outcome windows beyond
    it are refused.
    """

    table: TableName
    path: str  # a file, a folder or a glob; local, s3:// or gs://
    format: Literal["parquet", "csv", "jsonl"] | None = None  # None: by the file's ending
    period: str | None = None  # a regular expression with one group, matched on the path
    columns: dict[str, str]
    values: dict[str, dict[str, str]] = Field(default_factory=dict)
    timezone: str = "UTC"
    currency: str | None = None
    lag: timedelta = timedelta(0)
    complete_until: datetime | None = None
    immutable: bool = False  # a users source without history: its columns never change
    max_rejected_fraction: float = Field(default=0.05, ge=0, le=1)

    @field_validator("timezone")
    @classmethod
    def _zone_exists(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError) as error:
            raise ValueError(f"unknown time zone {value!r}") from error
        return value

    @model_validator(mode="after")
    def _columns_fit_the_table(self) -> "Source":
        missing = [c for c in REQUIRED[self.table] if c not in self.columns]
        if missing:
            raise ValueError(f"columns: {self.table} needs {', '.join(missing)}")
        if self.table in ("events", "edges", "labels"):
            unknown = [c for c in self.columns if c not in MAPPABLE[self.table]]
            if unknown:
                allowed = ", ".join(MAPPABLE[self.table])
                raise ValueError(f"columns: {self.table} has no {unknown[0]!r}; it has {allowed}")
        has_currency = self.currency is not None or "currency" in self.columns
        if self.table == "events" and "amount" in self.columns and not has_currency:
            raise ValueError("an events source with amounts must state its currency")
        if self.table == "users" and not self.immutable and "valid_from" not in self.columns:
            raise ValueError(
                "a users source without valid_from has no history: its columns may have changed "
                "since; map valid_from, or mark the source immutable: true"
            )
        return self

    @property
    def complete_until_utc(self) -> datetime | None:
        """The watermark as UTC; a date or naive time is read in the source's own zone."""
        value = self.complete_until
        if value is None:
            return None
        local = value if value.tzinfo else value.replace(tzinfo=ZoneInfo(self.timezone))
        return local.astimezone(ZoneInfo("UTC"))
