"""Raw rows of a file → rows of a canonical table, rejected rows with a reason, and identities."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import polars as pl
import polars.selectors as cs

from models.data import keys
from models.data.buckets import bucket_of
from models.data.doubles import may_be_double
from models.data.mapping import Mapped, evaluate
from models.data.redact import redact
from models.data.schema import (
    EVENTS,
    FIRST_YEAR,
    IDENTITIES,
    REJECTED,
    Table,
    UserError,
    empty,
)
from models.data.source import Source
from models.data.values import (
    Parsed,
    fault,
    first_reason,
    parse_amount,
    parse_id,
    parse_number,
    parse_text,
    parse_time,
    utc_offset_min,
)

ORIGIN = ("file", "row", "content")  # where a label came from, until its user is known to exist
_MASK = "***"
_MASKED = ("user_id", "other_id", "counterparty_id", "text")
_IDS = ("user_id", "other_id", "counterparty_id")
_AMOUNTS = ("amount", "proposed_amount")
ERASED = "erased user"  # the reason of a row that names a user who was erased
_START = datetime(FIRST_YEAR, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Cleaned:
    """What became of the rows: rows in = accepted + rejected + duplicates.

    `accepted` has the columns of the canonical table (labels also `ORIGIN`), one row a key;
    `rejected` and `identities` those of their tables.
    """

    accepted: pl.DataFrame
    rejected: pl.DataFrame
    identities: pl.DataFrame
    duplicates: int


@dataclass(frozen=True, kw_only=True)
class Cleaner:
    """Cleans the rows of one source; `now` is the latest time that a row may carry.

    `erased`: hashes of the users who were erased. A row that names one is rejected, whatever else
    is wrong with it, and its content is not kept.
    """

    name: str
    source: Source
    table: Table
    buckets: int
    secret: bytes = field(repr=False)
    now: datetime
    erased: frozenset[str] = frozenset()

    def clean(
        self,
        raw: pl.DataFrame,
        rows: pl.Series,
        mapped: tuple[Mapped, ...],
        *,
        file: str,
        period: str,
    ) -> Cleaned:
        """Clean the rows of a slice.

        `raw` holds the file's columns, `rows` (int64) the row numbers in the file, `mapped` the
        source's columns resolved against this file. The order of the rows does not matter.
        """
        raw = raw.with_columns(cs.binary().bin.encode("hex"))
        origin = [pl.lit(self.name).alias("source"), pl.lit(period).alias("period")]
        values, reason = self._parse(raw, mapped)
        values = self._with_defaults(values)
        reason = first_reason(
            self._erased(values), reason, *self._missing(values), *self._wrong(values)
        )
        rejected = empty(REJECTED)
        if reason is not None:
            bad = reason.is_not_null()
            rejected = _numbered(raw.filter(bad), rows.filter(bad), mapped, file)
            rejected = rejected.with_columns(reason.filter(bad).alias("reason"), *origin)
            shown = pl.when(pl.col("reason") != ERASED).then("content").alias("content")
            rejected = rejected.with_columns(shown)
            values, raw, rows = values.filter(~bad), raw.filter(~bad), rows.filter(~bad)
        users = keys.key_pairs(self.secret, values["user_id"])
        keyed = self._with_keys(values, raw, users).with_columns(origin)
        identities = self._identities(users.select(user_key="key", user_id="id"), keyed)
        identities = conform(identities.with_columns(origin), IDENTITIES)
        if self.table.name == "labels":
            keyed = keyed.hstack(_numbered(raw, rows, mapped, file))
        accepted, duplicates = dedupe(conform(keyed, self.table, ORIGIN), self.table)
        return Cleaned(accepted, conform(rejected, REJECTED), identities, duplicates)

    def _parse(
        self, raw: pl.DataFrame, mapped: tuple[Mapped, ...]
    ) -> tuple[pl.DataFrame, pl.Series | None]:
        """The mapped columns as canonical types, under their canonical names."""
        columns, reasons = [], []
        for column in mapped:
            series, failed = evaluate(column, raw)
            names = self.source.values.get(column.name)
            if names:
                text = parse_text(series)
                series, failed = text.values.replace(names), first_reason(failed, text.reason)
            parsed = self._parsed(column.name, series.alias(column.name))
            columns.append(parsed.values.alias(column.name))
            reasons += [failed, parsed.reason]
        return pl.DataFrame(columns), first_reason(*reasons)

    def _parsed(self, name: str, series: pl.Series) -> Parsed:
        if name in _IDS:
            return parse_id(series)
        if name == "event_id":
            return Parsed(series) if series.dtype.is_integer() else parse_id(series)
        if name in _AMOUNTS:
            return parse_amount(series)
        if name in self.table.schema.names:
            kind = empty(self.table).schema[name]
            if isinstance(kind, pl.Datetime):
                return parse_time(series, self.source.timezone)
            if kind == pl.Float64:
                return parse_number(series)
        text = parse_text(series)
        return Parsed(redact(text.values), text.reason) if name == "text" else text

    def _with_defaults(self, values: pl.DataFrame) -> pl.DataFrame:
        """Fill in what the source does not map."""
        given, has = values.columns, self.table.schema.names
        extra = []
        if "valid_from" in has and "valid_from" not in given:
            extra.append(pl.lit(_START, dtype=pl.Datetime("us", "UTC")).alias("valid_from"))
        if self.table.name == "edges":
            weight = pl.col("weight") if "weight" in given else pl.lit(None)
            kind = pl.col("other_kind") if "other_kind" in given else pl.lit(None)
            extra.append(weight.cast(pl.Float64).fill_null(1.0).alias("weight"))
            extra.append(kind.cast(pl.String).fill_null("user").alias("dst_kind"))
        if "currency" in has and (self.source.currency or "currency" in given):
            stated = pl.lit(self.source.currency, dtype=pl.String)
            mapped = pl.col("currency") if "currency" in given else stated
            extra.append(pl.coalesce(mapped, stated).str.to_uppercase().alias("currency"))
        values = values.with_columns(extra)
        if "available_at" in has and "available_at" not in given:
            happened = "event_time" if "event_time" in has else "valid_from"
            values = values.with_columns((pl.col(happened) + self.source.lag).alias("available_at"))
        return values

    def _erased(self, values: pl.DataFrame) -> pl.Series | None:
        """The reason of rows that name an erased user, on either side of a tie."""
        if not self.erased:
            return None
        named = [values["user_id"]]
        if self.table.name == "edges":
            users = pl.when(pl.col("dst_kind") == "user").then("other_id")
            named.append(values.select(users).to_series())
        hashes = [keys.erased_hashes(self.secret, keys.keys_of(self.secret, n)) for n in named]
        gone = pl.Series(list(self.erased), dtype=pl.String).implode()
        return fault(
            pl.select(pl.any_horizontal(h.is_in(gone) for h in hashes)).to_series(), ERASED
        )

    def _missing(self, values: pl.DataFrame) -> list[pl.Series | None]:
        """The reasons of rows that lack what their table needs."""
        needed = [*self.table.required, "event_id", "valid_from", "available_at"]
        return [
            fault(values[c].is_null(), "no user id" if c == "user_id" else f"{c}: missing")
            for c in dict.fromkeys(needed)
            if c in values.columns
        ]

    def _wrong(self, values: pl.DataFrame) -> list[pl.Series | None]:
        """The reasons of rows whose values cannot be true."""
        reasons = []
        for name in self.source.columns:
            if values.schema[name] == pl.Datetime("us", "UTC"):
                times = values[name]
                reasons.append(fault(times < _START, f"{name}: before {FIRST_YEAR}"))
                if name != "valid_to":
                    reasons.append(fault(times > self.now, f"{name}: in the future"))
        checks = {
            "matured_at: before as_of": pl.col("matured_at") < pl.col("as_of"),
            "valid_to: before valid_from": pl.col("valid_to") < pl.col("valid_from"),
            "other_id: a tie of a user to themselves": (pl.col("other_id") == pl.col("user_id"))
            & (pl.col("dst_kind") == "user"),
            "currency: expected a code of three letters": pl.col("amount").is_not_null()
            & ~pl.col("currency").str.contains("^[A-Z]{3}$").fill_null(False),
        }
        for reason, check in checks.items():
            if set(check.meta.root_names()) <= set(values.columns):
                reasons.append(fault(values.select(check).to_series(), reason))
        return reasons

    def _with_keys(
        self, values: pl.DataFrame, raw: pl.DataFrame, users: pl.DataFrame
    ) -> pl.DataFrame:
        """Replace ids by keys, and place each row in the bucket of its user."""
        columns = [keys.each_of(users, values["user_id"]).alias("user_key")]
        if self.table.name == "events":
            zone = self.source.timezone
            columns.append(utc_offset_min(values["event_time"], zone).alias("utc_offset_min"))
            if "event_id" in values.columns:
                columns.append(keys.id_hash(values["event_id"], self.name))
            else:
                columns.append(keys.row_hash(raw, self.name))
            if "counterparty_id" in values.columns:
                ids = keys.COUNTERPARTY + values["counterparty_id"]
                columns.append(keys.keys_of(self.secret, ids).alias("counterparty_key"))
        if self.table.name == "edges":
            prefix = pl.col("dst_kind") + ":"
            prefix = pl.when(pl.col("dst_kind") == "user").then(pl.lit("")).otherwise(prefix)
            ids = values.select(prefix + pl.col("other_id")).to_series()
            columns.append(keys.keys_of(self.secret, ids).alias("dst"))
        bucket = bucket_of(pl.col("user_key"), self.buckets).alias("bucket")
        return values.with_columns(columns).with_columns(bucket)

    def _identities(self, users: pl.DataFrame, keyed: pl.DataFrame) -> pl.DataFrame:
        """(user_key, user_id, bucket), one row an id; none for labels, whose users must be known.

        `users`: those of the rows themselves. Ties name further ones.
        """
        if self.table.name == "labels":
            return empty(IDENTITIES).select("user_key", "user_id", "bucket")
        if self.table.name == "edges":
            others = keyed.filter(pl.col("dst_kind") == "user")
            named = others.select(user_key="dst", user_id="other_id")
            users = pl.concat([users, named]).unique()
        return users.with_columns(bucket_of(pl.col("user_key"), self.buckets).alias("bucket"))


def dedupe(
    frame: pl.DataFrame, table: Table, key: tuple[str, ...] | None = None
) -> tuple[pl.DataFrame, int]:
    """One row a key (the table's unless one is given), and how many rows that dropped.

    Rows come in any order. Of the rows of a key the one known earliest stays (by `available_at`
    or `matured_at`), then the one with the smallest other columns.
    """
    key = key or table.key
    double = may_be_double(frame.select(key))
    if double is None:
        return frame, 0
    known = [c for c in ("available_at", "matured_at") if c in frame.columns]
    order = list(dict.fromkeys([*key, *known, *frame.columns]))
    kept = (
        frame.filter(double)
        .sort(order, nulls_last=True)
        .unique(key, keep="first", maintain_order=True)
    )
    result = pl.concat([frame.filter(~double), kept])
    return result, frame.height - result.height


def each_once(events: pl.DataFrame) -> pl.DataFrame:
    """Events of any number of files, in order of user, time and id, each once.

    An event that a source's files bring in two periods counts once. Raises UserError when two
    sources give one id to different events of a user, and for amounts in two currencies.
    """
    once, _ = dedupe(events, EVENTS, (*EVENTS.key, "source"))
    shared = once.filter(pl.struct(EVENTS.key).is_duplicated())
    if shared.height:
        names = " and ".join(shared["source"].unique().sort())
        raise UserError(
            f"sources {names} give the same event_id to different events of a user; map an "
            "event_id that names its source, or none"
        )
    _check_currency(once)
    return once.sort(EVENTS.sort)


def _check_currency(events: pl.DataFrame) -> None:
    amounts = events.lazy().filter(pl.col("amount").is_not_null())
    sources = amounts.group_by("currency").agg(pl.col("source").min()).sort("currency").collect()
    if sources.height > 1:
        (one, first), (other, second) = sources.rows()[:2]
        raise UserError(
            f"amounts in {one} (source {first}) and in {other} (source {second}), which would be "
            "added up; expected one currency: convert the others in columns.amount"
        )


def conform(frame: pl.DataFrame, table: Table, extra: tuple[str, ...] = ()) -> pl.DataFrame:
    """The columns of the table in its order and types (null where the frame has none), and those
    of `extra` that the frame has."""
    schema: Mapping[str, pl.DataType] = empty(table).schema
    columns = [
        (pl.col(name) if name in frame.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in schema.items()
    ]
    return frame.select(*columns, *(c for c in extra if c in frame.columns and c not in schema))


def _numbered(
    raw: pl.DataFrame, rows: pl.Series, mapped: tuple[Mapped, ...], file: str
) -> pl.DataFrame:
    """Where each row came from, and its mapped columns as JSON with ids and texts masked."""
    roots = {root: False for column in mapped for root in column.roots}
    roots |= {root: True for column in mapped if column.name in _MASKED for root in column.roots}
    shown = [
        pl.when(pl.col(root).is_not_null()).then(pl.lit(_MASK)).alias(root) if hidden else root
        for root, hidden in roots.items()
    ]
    content = raw.select(pl.struct(shown).struct.json_encode().alias("content"))
    return content.select(pl.lit(file).alias("file"), rows.alias("row"), "content")
