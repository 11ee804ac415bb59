"""A column of any type → text, ids, finite numbers, exact money or UTC times, with reasons.

Every function takes a column and returns `Parsed`: the values (null where there are none), and the
reason for each row whose value cannot be used. A reason names the type of a value, never the value.
"""

from dataclasses import dataclass

import polars as pl

from models.data.schema import AMOUNT_SCALE, MAX_ABS_AMOUNT

_EXACT = 2**53  # the first whole number that float64 cannot tell from its neighbour
_TIME = "expected a time such as 2011-12-09 08:26:00"
_OFFSET = r"(:\d{2}(?:\.\d+)?) ?(Z|UTC|[+-]\d{2}:?\d{2})$"
_FULL = r"^\d{4}-(?:\d{1,2}|[A-Za-z]{3})-\d{1,2} \d{1,2}:\d{2}:\d{2}(?:\.\d{1,9})?$"
# Common ways to write a date that mean one thing only (01/02/2011 means two), and short times.
_REWRITE = (
    (r"^(\d{4})/(\d{1,2})/(\d{1,2})\b", "${1}-${2}-${3}"),
    (r"^(\d{4})(\d{2})(\d{2})\b", "${1}-${2}-${3}"),
    (r"^(\d{1,2})\.(\d{1,2})\.(\d{4})\b", "${3}-${2}-${1}"),
    (r"^(\d{1,2})[ -]([A-Za-z]{3})[a-z]{0,6}[ -](\d{4})\b", "${3}-${2}-${1}"),
    (r"^([A-Za-z]{3})[a-z]{0,6} (\d{1,2}),? (\d{4})\b", "${3}-${1}-${2}"),
    (r"^(\S+)$", "${1} 00:00"),
    (r"^(\S+ \d{1,2}:\d{2})$", "${1}:00"),
)
# A number as a time: seconds, else milli-, micro- or nanoseconds since 1970. From 1973 to 5138
# the four ranges do not meet.
_EPOCHS = ((1e11, 1_000_000), (1e14, 1_000), (1e17, 1))


@dataclass(frozen=True)
class Parsed:
    """Values of one column, and why a row's value cannot be used (text; None: all can)."""

    values: pl.Series
    reason: pl.Series | None = None


def first_reason(*reasons: pl.Series | None) -> pl.Series | None:
    """The first reason of each row."""
    given = [reason for reason in reasons if reason is not None]
    return pl.select(pl.coalesce(given)).to_series() if given else None


def fault(mask: pl.Series, reason: str) -> pl.Series | None:
    """The reason for the rows of a mask; None when there are none."""
    if not mask.any():
        return None
    return pl.select(pl.when(mask).then(pl.lit(reason))).to_series()


def parse_text(column: pl.Series) -> Parsed:
    """Text without surrounding blanks; empty text and NaN are null; 6.0 reads 6."""
    dtype = column.dtype
    if dtype == pl.String:
        text = column.str.strip_chars()
        return Parsed(text.set(text == "", None) if (text == "").any() else text)
    if dtype.is_float():
        return Parsed(_float_text(column))
    if isinstance(dtype, pl.Date | pl.Datetime):
        return Parsed(column.dt.to_string("iso"))
    if dtype.is_nested() or dtype == pl.Binary:
        return _unusable(column, "expected text", pl.String())
    return Parsed(column.cast(pl.String))


def parse_id(column: pl.Series) -> Parsed:
    """An id as text: a float 17850.0 is "17850"; empty text and NaN are null."""
    dtype, name = column.dtype, column.name
    if dtype.is_float() or isinstance(dtype, pl.Decimal):
        numbers = column.cast(pl.Float64)
        finite = numbers.is_finite().fill_null(False)
        whole = finite & (numbers == numbers.floor()) & (numbers.abs() < _EXACT)
        given = numbers.is_not_null() & numbers.is_not_nan()
        reason = fault(given & ~whole, f"{name}: expected an id, got a number that is not whole")
        return Parsed(_float_text(numbers), reason)
    if dtype.is_integer() or isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Null):
        return parse_text(column)
    return _unusable(column, "expected an id", pl.String())


def parse_number(column: pl.Series) -> Parsed:
    """A finite float64; true and false are 1 and 0."""
    dtype, name = column.dtype, column.name
    if dtype == pl.String:
        text = parse_text(column).values
        numbers = text.cast(pl.Float64, strict=False)
        unread = text.is_not_null() & numbers.is_null()
        reason = fault(unread, f"{name}: expected a number, got text")
    elif dtype.is_numeric() or isinstance(dtype, pl.Boolean | pl.Null):
        numbers, reason = column.cast(pl.Float64), None
    else:
        return _unusable(column, "expected a number", pl.Float64())
    infinite = fault(~numbers.is_finite(), f"{name}: expected a number, got NaN or infinity")
    return Parsed(numbers, first_reason(reason, infinite))


def parse_amount(column: pl.Series) -> Parsed:
    """Money as decimal(18, 4), rounded half to even at the fourth place.

    Float64 holds every amount up to 10**10 exactly enough: its error is below 10**-6.
    """
    if column.dtype == pl.Boolean:
        return _unusable(column, "expected a number", pl.Decimal(18, AMOUNT_SCALE))
    number = parse_number(column)
    beyond = number.values.abs() > MAX_ABS_AMOUNT
    usable = number.values.set((beyond | ~number.values.is_finite()).fill_null(True), None)
    units = (usable * 10**AMOUNT_SCALE).round(0, mode="half_to_even").cast(pl.Int64)
    amount = pl.select(units.cast(pl.Decimal(38, AMOUNT_SCALE)) / 10**AMOUNT_SCALE).to_series()
    too_large = fault(beyond, f"{column.name}: an amount beyond ±{MAX_ABS_AMOUNT:,}")
    return Parsed(
        amount.cast(pl.Decimal(18, AMOUNT_SCALE)).alias(column.name),
        first_reason(number.reason, too_large),
    )


def parse_time(column: pl.Series, zone: str) -> Parsed:
    """A time as timestamp[us, UTC]: text, a date, a timestamp or a number since 1970.

    What carries no offset is local time in `zone`; of an hour that comes twice the earlier one is
    meant, and an hour that a clock change leaves out is refused.
    """
    dtype = column.dtype
    if dtype == pl.String:
        return _text_time(column, zone)
    if dtype.is_numeric():
        return _epoch(column)
    if dtype == pl.Date:
        return _local(column.cast(pl.Datetime("us")), zone)
    if isinstance(dtype, pl.Datetime):
        times = column.dt.cast_time_unit("us")
        return Parsed(times.dt.convert_time_zone("UTC")) if dtype.time_zone else _local(times, zone)
    if dtype == pl.Null:
        return Parsed(column.cast(pl.Datetime("us", "UTC")))
    return _unusable(column, _TIME, pl.Datetime("us", "UTC"))


def utc_offset_min(times: pl.Series, zone: str) -> pl.Series:
    """The zone's offset from UTC at each time, in minutes, int16."""
    local = times.dt.convert_time_zone(zone).dt.replace_time_zone(None)
    return (local - times.dt.replace_time_zone(None)).dt.total_minutes().cast(pl.Int16)


def _float_text(column: pl.Series) -> pl.Series:
    whole = column.is_finite() & (column == column.floor()) & (column.abs() < _EXACT)
    integers = column.set(~whole.fill_null(False), None).cast(pl.Int64).cast(pl.String)
    rest = column.set(column.is_nan().fill_null(False), None).cast(pl.String)
    return integers.zip_with(whole.fill_null(False), rest)


def _unusable(column: pl.Series, expected: str, dtype: pl.DataType) -> Parsed:
    kind = str(column.dtype.base_type()).lower()
    values = pl.Series(column.name, [None], dtype=dtype).new_from_index(0, column.len())
    return Parsed(values, fault(column.is_not_null(), f"{column.name}: {expected}, got {kind}"))


def _local(times: pl.Series, zone: str) -> Parsed:
    local = times.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    skipped = times.is_not_null() & local.is_null()
    reason = fault(skipped, f"{times.name}: a local time that {zone} skips")
    return Parsed(local.dt.convert_time_zone("UTC"), reason)


def _epoch(column: pl.Series) -> Parsed:
    exact = column.dtype.is_integer()
    numbers = column.cast(pl.Float64)
    size = numbers.abs()
    out_of_range = ~(size < 2.0**63)
    plain = column.set(out_of_range.fill_null(False), None)
    plain = plain.cast(pl.Int64 if exact else pl.Float64)
    units = pl.select(plain // 1000 if exact else plain / 1000).to_series()
    for limit, factor in reversed(_EPOCHS):
        units = (plain * factor).zip_with((size < limit).fill_null(False), units)
    times = units.round(0).cast(pl.Int64).cast(pl.Datetime("us", "UTC"))
    given = ~numbers.is_nan() & out_of_range
    return Parsed(times, fault(given.fill_null(False), f"{column.name}: {_TIME}, got a number"))


def _text_time(column: pl.Series, zone: str) -> Parsed:
    name = column.name
    text = parse_text(column).values
    numeric = text.str.contains(r"^-?\d{9,18}(?:\.\d+)?$").fill_null(False)
    since_1970 = _epoch(text.set(~numeric, None).cast(pl.Float64)).values
    offset = text.str.extract(_OFFSET, 2).str.replace("Z|UTC", "+00:00")
    body = text.str.replace(_OFFSET, "${1}").str.replace(r"^(\d{4}-\d{2}-\d{2})T", "${1} ")
    full = body.str.contains(_FULL)
    if not full.all():
        for pattern, replacement in _REWRITE:
            body = body.str.replace(pattern, replacement)
        full = body.str.contains(_FULL)
    body = body.set(~full.fill_null(False), None)
    naive = body.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False, time_unit="us")
    if naive.null_count() > body.null_count():
        named = body.str.to_datetime("%Y-%b-%d %H:%M:%S%.f", strict=False, time_unit="us")
        naive = naive.zip_with(naive.is_not_null(), named)
    local = _local(naive.set(offset.is_not_null(), None).alias(name), zone)
    minutes = offset.str.slice(1, 2).cast(pl.Int64) * 60 + offset.str.slice(-2).cast(pl.Int64)
    signed = minutes.zip_with(offset.str.starts_with("+"), -minutes)
    ahead = (signed * 60_000_000).cast(pl.Duration("us"))
    absolute = (naive - ahead).dt.replace_time_zone("UTC")
    times = pl.select(pl.coalesce(since_1970, absolute, local.values)).to_series().alias(name)
    unread = text.is_not_null() & times.is_null()
    return Parsed(times, first_reason(local.reason, fault(unread, f"{name}: {_TIME}, got text")))
